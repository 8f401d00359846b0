/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * The kernel's end of a VLAN, for tests on kernels without 8021q: whatever leaves by the interface gets a tag, and what comes
 * with that tag loses it. Frames with another tag, or none, are nobody's. */
#include <linux/bpf.h>
#include <linux/if_ether.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TC_ACT_OK 0
#define TC_ACT_SHOT 2

static __always_inline int push(struct __sk_buff *skb, __u16 type, __u16 id) {
    return bpf_skb_vlan_push(skb, bpf_htons(type), id) == 0 ? TC_ACT_OK : TC_ACT_SHOT;
}
static __always_inline int pop(struct __sk_buff *skb, __u16 type, __u16 id) {
    if (!skb->vlan_present || skb->vlan_proto != bpf_htons(type) || (skb->vlan_tci & 0xfff) != id) return TC_ACT_SHOT;
    return bpf_skb_vlan_pop(skb) == 0 ? TC_ACT_OK : TC_ACT_SHOT;
}

SEC("push100")
int push_100(struct __sk_buff *skb) { return push(skb, ETH_P_8021Q, 100); }
SEC("pop100")
int pop_100(struct __sk_buff *skb) { return pop(skb, ETH_P_8021Q, 100); }

SEC("push101")
int push_101(struct __sk_buff *skb) { return push(skb, ETH_P_8021Q, 101); }

SEC("push200s")
int push_200_service(struct __sk_buff *skb) { return push(skb, ETH_P_8021AD, 200); }
SEC("pop200s")
int pop_200_service(struct __sk_buff *skb) { return pop(skb, ETH_P_8021AD, 200); }

char _license[] SEC("license") = "Dual MIT/GPL";
