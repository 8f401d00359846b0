/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Steering: which packets of an interface are Culvert's. Shared address mode: the kernel keeps its addresses, ARP, ping
 * and every port that Culvert has not taken.
 *
 *                    local end = destination (ICMP error: source of the quoted packet)
 *   frame --> parse --> local address in `addresses`? --> bit of its port set in `ports`? --> redirect to xsks[queue]
 *               |               | no                        | no, or in `kernel_flows`           | no socket there
 *               +---------------+---------------------------+------------------------------------+--> XDP_PASS
 *
 * Whatever this program does not understand goes to the kernel, and so does everything when the daemon is gone: its
 * AF_XDP sockets leave `xsks` when they close, and a redirect to nothing is XDP_PASS.
 *
 * Fragments. UDP: all to the kernel, which reassembles them for the kernel socket that lies under each Culvert socket.
 * TCP: the first one carries the ports and goes where they say, so that Culvert counts it; the others go to the
 * kernel. Nobody can then put the segment together, on purpose: a kernel that could would find a listener but no
 * connection, and would reset the peer. TCP sets DF; its fragments are rare, and lost like any segment.
 */
#include "steer_parse.h"

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, STEER_MAX_ADDRESSES);
    __type(key, struct steer_address);
    __type(value, __u32);
} addresses SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, STEER_MAX_ADDRESSES * STEER_PROTO_COUNT);
    __type(key, __u32);
    __type(value, struct steer_ports);
} ports SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, STEER_MAX_KERNEL_FLOWS);
    __type(key, struct steer_flow);
    __type(value, __u8);
} kernel_flows SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, STEER_CONTROL_WORDS);
    __type(key, __u32);
    __type(value, __u64);
} control SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, STEER_COUNT_TOTAL);
    __type(key, __u32);
    __type(value, __u64);
} counters SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, STEER_MAX_QUEUES);
    __type(key, __u32);
    __type(value, __u32);
} xsks SEC(".maps");

static __always_inline __u64 control_word(__u32 index) {
    __u64 *word = bpf_map_lookup_elem(&control, &index);
    return word ? *(volatile __u64 *)word : 0;
}

/* STEER_GO_ON, or the counter of the reason why not. */
static __always_inline int verdict(struct xdp_md *ctx) {
    struct steer_cursor cursor = {.at = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end};
    struct steer_packet packet = {};
    int reason;

    if (!control_word(STEER_CONTROL_ENABLED)) return STEER_COUNT_passed_disabled;

    struct steer_eth *eth = cursor.at;
    if ((void *)(eth + 1) > cursor.end) return STEER_COUNT_passed_malformed;
    __be16 type = eth->type;
    cursor.at += sizeof *eth;
    if (type == bpf_htons(ETH_P_IP))
        reason = steer_read_ipv4(&cursor, &packet);
    else if (type == bpf_htons(ETH_P_IPV6))
        reason = steer_read_ipv6(&cursor, &packet);
    else
        return STEER_COUNT_passed_ethertype;
    if (reason != STEER_GO_ON) return reason;

    /* The packet's own destination must be ours, for an ICMP error too. */
    __u32 *slot = bpf_map_lookup_elem(&addresses, &packet.destination);
    if (!slot) return STEER_COUNT_passed_address;

    int icmp = 0;
    if ((packet.protocol == IPPROTO_ICMP && type == bpf_htons(ETH_P_IP)) ||
        (packet.protocol == IPPROTO_ICMPV6_ && type == bpf_htons(ETH_P_IPV6))) {
        if (packet.first_fragment) return STEER_COUNT_passed_fragment;
        struct steer_icmp *message = cursor.at;
        if ((void *)(message + 1) > cursor.end) return STEER_COUNT_passed_malformed;
        if (!steer_is_icmp_error(packet.protocol, message->type)) return STEER_COUNT_passed_protocol;
        cursor.at += sizeof *message;
        icmp = 1;
        /* The quoted packet left this host: its source is the local end. */
        if (type == bpf_htons(ETH_P_IP))
            reason = steer_read_ipv4(&cursor, &packet);
        else
            reason = steer_read_ipv6(&cursor, &packet);
        if (reason != STEER_GO_ON) return reason;
        slot = bpf_map_lookup_elem(&addresses, &packet.source);
        if (!slot) return STEER_COUNT_passed_address;
    }

    __u32 proto;
    if (packet.protocol == IPPROTO_TCP) {
        proto = STEER_PROTO_TCP;
    } else if (packet.protocol == IPPROTO_UDP) {
        if (packet.first_fragment && !icmp) return STEER_COUNT_passed_fragment;
        proto = STEER_PROTO_UDP;
    } else {
        return STEER_COUNT_passed_protocol;
    }
    reason = steer_read_ports(&cursor, &packet);
    if (reason != STEER_GO_ON) return reason;

    struct steer_flow flow = {};
    flow.local = icmp ? packet.source : packet.destination;
    flow.remote = icmp ? packet.destination : packet.source;
    flow.local_port = icmp ? packet.source_port : packet.destination_port;
    flow.remote_port = icmp ? packet.destination_port : packet.source_port;
    flow.proto = proto;

    __u32 bitmap = *slot * STEER_PROTO_COUNT + proto;
    struct steer_ports *taken = bpf_map_lookup_elem(&ports, &bitmap);
    if (!taken) return STEER_COUNT_passed_address;
    __u64 word = *(volatile __u64 *)&taken->words[(flow.local_port >> 6) & (STEER_PORT_WORDS - 1)];
    if (!(word >> (flow.local_port & 63) & 1)) return STEER_COUNT_passed_port;

    if (control_word(STEER_CONTROL_KERNEL_FLOWS) && bpf_map_lookup_elem(&kernel_flows, &flow))
        return STEER_COUNT_passed_kernel_flow;
    return STEER_GO_ON;
}

SEC("xdp.frags")
int culvert_steer(struct xdp_md *ctx) {
    int action = XDP_PASS;
    __u32 reason;
    int result = verdict(ctx);
    if (result == STEER_GO_ON) {
        action = (int)bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
        reason = action == XDP_REDIRECT ? STEER_COUNT_redirected : STEER_COUNT_passed_no_socket;
    } else {
        reason = (__u32)result;
    }
    __u64 *count = bpf_map_lookup_elem(&counters, &reason);
    if (count) *count += 1;
    return action;
}

char _license[] SEC("license") = "Dual MIT/GPL";
