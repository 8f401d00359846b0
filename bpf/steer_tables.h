/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The steering programs' maps, the headers they read, and what is decided without reading any further: ports, flows, rules.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "steer_shared.h"

/* Answers of the parsers besides a steer_counter (the reason why a packet is the kernel's). */
#define STEER_GO_ON (-1)        /* ours, if the filter lets it */
#define STEER_NOT_FILTERED (-2) /* ours, and beneath the filter: ARP, neighbour discovery */

#define IPPROTO_HOPOPTS_ 0
#define IPPROTO_FRAGMENT_ 44
#define IPPROTO_ICMPV6_ 58
#define IPPROTO_DSTOPTS_ 60

/* Header layouts by offset, so that no packed struct is needed. */
struct steer_eth { __u8 to[6], from[6]; __be16 type; };
struct steer_vlan { __be16 control, type; };
struct steer_arp {
    __be16 hardware, protocol;
    __u8 hardware_length, protocol_length;
    __be16 operation;
    __u8 sender_mac[6], sender[4], target_mac[6], target[4];
};
struct steer_ipv4 {
    __u8 version_ihl, tos;
    __be16 length, id, fragment;
    __u8 ttl, protocol;
    __be16 checksum;
    __be32 source, destination;
};
struct steer_ipv6 { __be32 version_class_flow; __be16 length; __u8 next, hops; __u8 source[16], destination[16]; };
struct steer_ipv6_extension { __u8 next, length; __be16 rest; __be32 more; };
struct steer_ipv6_fragment { __u8 next, reserved; __be16 offset; __be32 id; };
struct steer_l4_ports { __be16 source, destination; };
struct steer_tcp { __be16 source, destination; __be32 sequence, acknowledgement; __u8 offset, flags; };
#define STEER_TCP_SYN 0x02
#define STEER_TCP_RST 0x04
#define STEER_TCP_ACK 0x10
struct steer_icmp { __u8 type, code; __be16 checksum; __be32 rest; };
struct steer_neighbor { __u8 type, code; __be16 checksum; __be32 rest; __u8 target[16]; };

/* What a packet says about itself. */
struct steer_packet {
    struct steer_address source;
    struct steer_address destination;
    __u16 source_port;
    __u16 destination_port;
    __u8 protocol; /* IPPROTO_TCP, _UDP, _ICMP, _ICMPV6 */
    __u8 first_fragment;
    __u8 later_fragment;
    __u8 tcp_flags; /* only where a program can make something of them, see steer_read_xdp.h; else 0 */
    __u32 length; /* by the IP header, which is in it */
    __u32 tag; /* STEER_TAG(); 0: none */
};

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

struct {
    __uint(type, BPF_MAP_TYPE_LPM_TRIE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 4 * STEER_MAX_RULES + 8); /* two fields, two generations, and each field's "everything" */
    __type(key, struct steer_prefix);
    __type(value, struct steer_rules);
} filter_prefixes SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 4 << 16);
    __type(key, __u32);
    __type(value, __u16);
} filter_ports SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 6 * STEER_MAX_CLASSES);
    __type(key, __u32);
    __type(value, struct steer_rules);
} filter_classes SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 2 * STEER_MAX_RULES);
    __type(key, __u32);
    __type(value, __u8);
} filter_actions SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 2 * STEER_MAX_RULES);
    __type(key, __u32);
    __type(value, __u64);
} filter_counts SEC(".maps");

static __always_inline __u64 steer_control_word(__u32 index) {
    __u64 *word = bpf_map_lookup_elem(&control, &index);
    return word ? *(volatile __u64 *)word : 0;
}

static __always_inline void steer_count(__u32 reason) {
    __u64 *count = bpf_map_lookup_elem(&counters, &reason);
    if (count) *count += 1;
}

static __always_inline void steer_map_v4(struct steer_address *out, __be32 address) {
    __builtin_memset(out->bytes, 0, 10);
    out->bytes[10] = 0xff;
    out->bytes[11] = 0xff;
    __builtin_memcpy(out->bytes + 12, &address, 4);
}

/* ::ffff:0:0/96 never travels in an IPv6 header; taking it for IPv4 would let a stranger cross families. */
static __always_inline int steer_is_mapped(const __u8 *address) {
    __u64 high;
    __u32 third;
    __builtin_memcpy(&high, address, 8);
    __builtin_memcpy(&third, address + 8, 4);
    return high == 0 && third == bpf_htonl(0xffff);
}

static __always_inline int steer_is_whole(const struct steer_address *address) {
    __u32 *slot = bpf_map_lookup_elem(&addresses, address);
    return slot && (*slot & STEER_ADDRESS_WHOLE);
}

/* Errors that concern one flow. Redirects concern routes, queries concern the host: the kernel's. */
static __always_inline int steer_is_icmp_error(__u8 protocol, __u8 type) {
    if (protocol == IPPROTO_ICMP) return type == 3 || type == 11 || type == 12; /* RFC 792 */
    return type >= 1 && type <= 4;                                             /* RFC 4443 3 */
}

/* `packet`: the packet itself, or the one that an ICMP error quotes. */
static __always_inline int steer_judge_flow(const struct steer_packet *packet, __u32 slot, __u32 proto, int quoted) {
    struct steer_flow flow = {};
    flow.local = quoted ? packet->source : packet->destination;
    flow.remote = quoted ? packet->destination : packet->source;
    flow.local_port = quoted ? packet->source_port : packet->destination_port;
    flow.remote_port = quoted ? packet->destination_port : packet->source_port;
    flow.proto = proto;

    __u32 bitmap = slot * STEER_PROTO_COUNT + proto;
    struct steer_ports *taken = bpf_map_lookup_elem(&ports, &bitmap);
    if (!taken) return STEER_COUNT_passed_address;
    __u64 word = *(volatile __u64 *)&taken->words[(flow.local_port >> 6) & (STEER_PORT_WORDS - 1)];
    if (!(word >> (flow.local_port & 63) & 1)) return STEER_COUNT_passed_port;

    if (steer_control_word(STEER_CONTROL_KERNEL_FLOWS) && bpf_map_lookup_elem(&kernel_flows, &flow))
        return STEER_COUNT_passed_kernel_flow;
    return STEER_GO_ON;
}

static __always_inline struct steer_rules *steer_rules_of_class(__u32 generation, __u32 kind, __u32 number) {
    __u32 index = STEER_CLASS_INDEX(generation, kind, number);
    return bpf_map_lookup_elem(&filter_classes, &index);
}

static __always_inline struct steer_rules *steer_rules_of_port(__u32 generation, __u32 is_destination, __u16 port) {
    __u32 index = STEER_PORT_INDEX(generation, is_destination, port);
    __u16 *number = bpf_map_lookup_elem(&filter_ports, &index);
    if (!number) return 0;
    return steer_rules_of_class(generation, STEER_CLASS_SOURCE_PORT + is_destination, *number);
}

static __always_inline int steer_first_bit(__u64 word) { /* word != 0; BPF has no instruction for it */
    int bit = 0;
#pragma unroll
    for (int width = 32; width > 0; width /= 2)
        if (!(word & ((1ull << width) - 1))) {
            bit += width;
            word >>= width;
        }
    return bit;
}

/* Counts the rule that decides. True: the packet may go on. */
static __always_inline int steer_filter_allows(const struct steer_packet *packet) {
    __u64 state = steer_control_word(STEER_CONTROL_FILTER);
    if (state == 0) return 1;
    __u32 generation = (state - 1) & 1;

    struct steer_prefix key = {.prefix_length = 16 + 128, .generation = generation, .field = STEER_FIELD_SOURCE};
    __builtin_memcpy(key.address, packet->source.bytes, 16);
    struct steer_rules *sets[5];
    sets[0] = bpf_map_lookup_elem(&filter_prefixes, &key);
    key.field = STEER_FIELD_DESTINATION;
    __builtin_memcpy(key.address, packet->destination.bytes, 16);
    sets[1] = bpf_map_lookup_elem(&filter_prefixes, &key);
    sets[2] = steer_rules_of_class(generation, STEER_CLASS_PROTOCOL, packet->protocol);
    sets[3] = steer_rules_of_port(generation, 0, packet->source_port);
    sets[4] = steer_rules_of_port(generation, 1, packet->destination_port);
    if (!sets[0] || !sets[1] || !sets[2] || !sets[3] || !sets[4]) return 1; /* never: each has an entry for everything */

#pragma unroll
    for (int i = 0; i < STEER_RULE_WORDS; ++i) {
        __u64 word = sets[0]->words[i] & sets[1]->words[i] & sets[2]->words[i] & sets[3]->words[i] & sets[4]->words[i];
        if (word == 0) continue;
        __u32 rule = generation * STEER_MAX_RULES + i * 64 + (__u32)steer_first_bit(word);
        __u64 *count = bpf_map_lookup_elem(&filter_counts, &rule);
        if (count) *count += 1;
        __u8 *action = bpf_map_lookup_elem(&filter_actions, &rule);
        return !action || *action == STEER_FILTER_ALLOW;
    }
    return 1; /* never: the default matches everything */
}
