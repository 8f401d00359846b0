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
 * `kernel_flows` names the connections that the kernel had when a port was taken. A client may use the same ports again as soon as
 * one is over, and before the daemon has noticed (it looks every two seconds). culvert_steer therefore asks the kernel when a SYN
 * comes: only while it has the connection is the SYN the kernel's. Else the flow leaves the map at that moment, and no connection
 * ever begins with the kernel and goes on with Culvert, which would reset it. The socket filter may not ask: see README.md.
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

/* Verified once, as the function below: in line the verifier would look at it on every way on which a packet can be read. */
__attribute__((noinline)) int steer_rules_allow(struct steer_packet *packet) { return packet && steer_filter_allows(packet); }

static __always_inline int filter_allows(struct steer_packet *packet) {
    return !steer_control_word(STEER_CONTROL_FILTER) || steer_rules_allow(packet);
}

/* Is there still a connection behind the flow, for the kernel to see the segment? TIME-WAIT is none for somebody who begins.
 * If not, the flow leaves `kernel_flows`: 1. A global function, which the verifier looks at once and not on every way to it. */
__attribute__((noinline)) int steer_begin_anew(struct xdp_md *ctx, struct steer_flow *flow) {
    struct bpf_sock_tuple tuple = {};
    struct bpf_sock *socket;
    if (!flow) return 0;
    if (steer_is_mapped(flow->local.bytes)) {
        __builtin_memcpy(&tuple.ipv4.saddr, flow->remote.bytes + 12, 4);
        __builtin_memcpy(&tuple.ipv4.daddr, flow->local.bytes + 12, 4);
        tuple.ipv4.sport = bpf_htons(flow->remote_port);
        tuple.ipv4.dport = bpf_htons(flow->local_port);
        socket = bpf_skc_lookup_tcp(ctx, &tuple, sizeof tuple.ipv4, BPF_F_CURRENT_NETNS, 0);
    } else {
        __builtin_memcpy(tuple.ipv6.saddr, flow->remote.bytes, 16);
        __builtin_memcpy(tuple.ipv6.daddr, flow->local.bytes, 16);
        tuple.ipv6.sport = bpf_htons(flow->remote_port);
        tuple.ipv6.dport = bpf_htons(flow->local_port);
        socket = bpf_skc_lookup_tcp(ctx, &tuple, sizeof tuple.ipv6, BPF_F_CURRENT_NETNS, 0);
    }
    if (socket) {
        __u32 state = socket->state;
        bpf_sk_release(socket);
        if (state != BPF_TCP_LISTEN && state != BPF_TCP_TIME_WAIT) return 0;
    }
    if (bpf_map_delete_elem(&kernel_flows, flow) == 0) {
        __u32 index = STEER_CONTROL_KERNEL_FLOWS;
        __u64 *count = bpf_map_lookup_elem(&control, &index);
        if (count) __sync_fetch_and_sub(count, 1);
    }
    return 1;
}

/* A packet of a flow in `kernel_flows`: does it begin a connection that is ours? */
static __always_inline int begins_anew(struct xdp_md *ctx, const struct steer_packet *packet) {
    if (packet->protocol != IPPROTO_TCP) return 0; /* the quotation in an ICMP error begins nothing */
    if ((packet->tcp_flags & (STEER_TCP_SYN | STEER_TCP_ACK | STEER_TCP_RST)) != STEER_TCP_SYN) return 0;
    struct steer_flow flow = {.local = packet->destination, .remote = packet->source, .local_port = packet->destination_port,
                              .remote_port = packet->source_port, .proto = STEER_PROTO_TCP};
    return steer_begin_anew(ctx, &flow);
}

SEC("xdp.frags")
int culvert_steer(struct xdp_md *ctx) {
    struct steer_xdp_cursor cursor = {.begin = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end};
    struct steer_packet packet = {};
    int reason = steer_xdp_judge(&cursor, &packet);
    if (reason == STEER_COUNT_passed_kernel_flow && begins_anew(ctx, &packet)) reason = STEER_GO_ON;
    if (reason >= 0) {
        steer_count((__u32)reason);
        return XDP_PASS;
    }
    if (reason == STEER_GO_ON && !filter_allows(&packet)) {
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
    if (reason == STEER_GO_ON && !filter_allows(&packet)) {
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
