/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * Somebody else's XDP program, that lets everything pass: what Culvert must live beside. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

SEC("xdp.frags")
int neighbour(struct xdp_md *ctx) {
    return XDP_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
