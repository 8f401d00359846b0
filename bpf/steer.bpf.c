/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Steering: which packets of an interface are Culvert's. Shared address mode: the kernel keeps its addresses, ARP, ping
 * and every port that Culvert has not taken.
 *
 *                    local end = destination (ICMP error: source of the quoted packet)
 *   frame --> parse --> local address in `addresses`? --> bit of its port set in `ports`? --> filter --> ours
 *               |               | no       | dedicated: all of it -------------------------------^  |
 *               |               |          |                  | no, or in `kernel_flows`            | denied
 *               +---------------+----------|------------------+--> the kernel's                     v dropped
 *
 * Whatever these programs do not understand goes to the kernel, and so does everything when the daemon is gone: its
 * AF_XDP sockets leave `xsks` when they close, and a redirect to nothing is XDP_PASS; links of tc go with their owner.
 *
 *   culvert_steer   XDP: ours to the AF_XDP socket of the receive queue
 *   culvert_take    filter of a packet socket: it receives what is ours ...
 *   culvert_leave   tc ingress: ... and the kernel does not
 *
 * The filter judges only what is ours: what is the kernel's meets the kernel's own (nftables), and ssh cannot be locked out.
 *
 * Fragments. Dedicated addresses: all of them are Culvert's. Shared ones: of UDP all go to the kernel, which reassembles
 * them for the kernel socket that lies under each Culvert socket. Of TCP, the first one carries the ports and goes where
 * they say, so that Culvert counts it; the others go to the kernel. Nobody can then put the segment together, on purpose:
 * a kernel that could would find a listener but no connection, and would reset the peer. TCP sets DF; its fragments are
 * rare, and lost like any segment.
 *
 * Merged packets. Generic XDP sees what GRO has joined and GSO has not cut yet. Of TCP that is as good as its segments; in a
 * joined UDP packet nothing says how long each datagram was, so the kernel has it, and cuts it for the socket under Culvert's.
 */
#include "steer_tables.h"

#include "steer_read_xdp.h"
#include "steer_parse.h"

#include "steer_read_skb.h"
#include "steer_parse.h"

SEC("xdp.frags")
int culvert_steer(struct xdp_md *ctx) {
    struct steer_xdp_cursor cursor = {.at = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end};
    struct steer_packet packet = {};
    int reason = steer_xdp_judge(&cursor, &packet);
    if (reason >= 0) {
        steer_count((__u32)reason);
        return XDP_PASS;
    }
    if (reason == STEER_GO_ON && !steer_filter_allows(&packet)) {
        steer_count(STEER_COUNT_filtered);
        return XDP_DROP;
    }
    int action = (int)bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
    steer_count(action == XDP_REDIRECT ? STEER_COUNT_redirected : STEER_COUNT_passed_no_socket);
    return action;
}

/* The reason of the first stage is the second's too; it is counted there, once. The kernel has taken
 * the VLAN tag off before either of them sees the packet. */
static __always_inline int judge_buffer(struct __sk_buff *skb, struct steer_packet *packet) {
    struct steer_skb_cursor cursor = {.skb = skb, .at = 0};
    if (skb->vlan_present) packet->tag = STEER_TAG(bpf_ntohs((__be16)skb->vlan_proto), skb->vlan_tci);
    return steer_skb_judge(&cursor, packet);
}

SEC("socket")
int culvert_take(struct __sk_buff *skb) {
    struct steer_packet packet = {};
    int reason = judge_buffer(skb, &packet);
    if (reason >= 0) return 0;
    if (reason == STEER_GO_ON && !steer_filter_allows(&packet)) {
        steer_count(STEER_COUNT_filtered);
        return 0;
    }
    steer_count(STEER_COUNT_redirected);
    return (int)skb->len;
}

#define TC_NEXT (-1) /* TCX_NEXT: what comes after us on the interface; else the kernel's stack */
#define TC_DROP 2    /* TCX_DROP */

SEC("tc")
int culvert_leave(struct __sk_buff *skb) {
    struct steer_packet packet = {};
    int reason = judge_buffer(skb, &packet);
    if (reason < 0) return TC_DROP; /* the socket has it, or the filter did not want it */
    steer_count((__u32)reason);
    return TC_NEXT;
}

char _license[] SEC("license") = "Dual MIT/GPL";
