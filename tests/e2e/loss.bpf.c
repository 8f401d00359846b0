/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * A bad link for tests: tc programs that drop packets at random, or those that are too long. There is no netem on the machines
 * that run them. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define TC_ACT_OK 0
#define TC_ACT_SHOT 2

/* Of 1000 packets so many are lost. */
static __always_inline int lose(unsigned per_thousand) {
    return bpf_get_prandom_u32() % 1000 < per_thousand ? TC_ACT_SHOT : TC_ACT_OK;
}

SEC("loss10")
int lose_10(struct __sk_buff *skb) { return lose(10); }

SEC("loss50")
int lose_50(struct __sk_buff *skb) { return lose(50); }

/* A path of which a part takes no more than 1300 bytes of IP, and says nothing. */
SEC("hole1300")
int swallow_1300(struct __sk_buff *skb)
{
    const unsigned headers = 14 + 40 + 32; /* what each piece has of a packet that was merged on its way */
    const unsigned length = skb->gso_size != 0 ? skb->gso_size + headers : skb->len;
    return length > 14 + 1300 ? TC_ACT_SHOT : TC_ACT_OK;
}

char _license[] SEC("license") = "Dual MIT/GPL";
