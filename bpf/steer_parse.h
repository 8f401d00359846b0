/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The steering program's parser: from a frame to the flow that it belongs to, as far as steering needs it.
 *
 *   frame -> [ethernet] -> [IPv4 | IPv6 + bounded extension headers] -> ports
 *                                                     \-> [ICMP error -> embedded IP header -> its ports]
 *
 * A parser that cannot answer returns the counter of its reason; the packet then goes to the kernel. Nothing here
 * checks what the stack checks again (checksums, lengths beyond the ports): steering decides who parses, no more.
 *
 * Headers must lie in the first buffer of a multi-buffer packet; drivers put them there. Those that lie elsewhere
 * count as malformed and go to the kernel.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "steer_shared.h"

#define STEER_GO_ON (-1) /* parsers: "go on", else a steer_counter */

#define IPPROTO_HOPOPTS_ 0
#define IPPROTO_FRAGMENT_ 44
#define IPPROTO_ICMPV6_ 58
#define IPPROTO_DSTOPTS_ 60

/* Header layouts by offset, so that no packed struct is needed. */
struct steer_eth { __u8 to[6], from[6]; __be16 type; };
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
struct steer_icmp { __u8 type, code; __be16 checksum; __be32 rest; };

/* What a packet says about itself. `source` and `destination` are those of the header that was read: the packet's own,
 * or, for an ICMP error, those of the packet that it quotes. */
struct steer_packet {
    struct steer_address source;
    struct steer_address destination;
    __u16 source_port;
    __u16 destination_port;
    __u8 protocol; /* IPPROTO_TCP, _UDP, _ICMP, _ICMPV6 */
    __u8 first_fragment;
};

/* Reading position. Both are packet pointers: the verifier tracks them. */
struct steer_cursor {
    void *at;
    void *end;
};

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

static __always_inline int steer_read_ipv4(struct steer_cursor *cursor, struct steer_packet *packet) {
    struct steer_ipv4 *ip = cursor->at;
    if ((void *)(ip + 1) > cursor->end) return STEER_COUNT_passed_malformed;
    __u32 header = (ip->version_ihl & 0x0f) * 4;
    if ((ip->version_ihl >> 4) != 4 || header < sizeof *ip) return STEER_COUNT_passed_malformed;
    __u16 fragment = bpf_ntohs(ip->fragment);
    if (fragment & 0x1fff) return STEER_COUNT_passed_fragment; /* no ports in it */
    packet->first_fragment = (fragment & 0x2000) != 0;
    packet->protocol = ip->protocol;
    steer_map_v4(&packet->source, ip->source);
    steer_map_v4(&packet->destination, ip->destination);
    cursor->at += header;
    return STEER_GO_ON;
}

static __always_inline int steer_read_ipv6(struct steer_cursor *cursor, struct steer_packet *packet) {
    struct steer_ipv6 *ip = cursor->at;
    if ((void *)(ip + 1) > cursor->end) return STEER_COUNT_passed_malformed;
    if ((bpf_ntohl(ip->version_class_flow) >> 28) != 6) return STEER_COUNT_passed_malformed;
    if (steer_is_mapped(ip->source) || steer_is_mapped(ip->destination)) return STEER_COUNT_passed_malformed;
    __builtin_memcpy(packet->source.bytes, ip->source, 16);
    __builtin_memcpy(packet->destination.bytes, ip->destination, 16);
    __u8 next = ip->next;
    cursor->at += sizeof *ip;

#pragma unroll
    for (int i = 0; i < STEER_MAX_EXTENSION_HEADERS; ++i) {
        if (next == IPPROTO_FRAGMENT_) {
            struct steer_ipv6_fragment *fragment = cursor->at;
            if ((void *)(fragment + 1) > cursor->end) return STEER_COUNT_passed_malformed;
            __u16 offset = bpf_ntohs(fragment->offset);
            if (offset & 0xfff8) return STEER_COUNT_passed_fragment;
            if (offset & 1) packet->first_fragment = 1; /* else an atomic fragment, RFC 6946: a whole packet */
            next = fragment->next;
            cursor->at += sizeof *fragment;
        } else if (next == IPPROTO_HOPOPTS_ || next == IPPROTO_DSTOPTS_) {
            struct steer_ipv6_extension *extension = cursor->at;
            if ((void *)(extension + 1) > cursor->end) return STEER_COUNT_passed_malformed;
            next = extension->next;
            cursor->at += ((__u32)extension->length + 1) * 8;
        } else {
            break;
        }
    }
    packet->protocol = next; /* routing headers, AH, ESP, and chains too long: not TCP, so the kernel's */
    return STEER_GO_ON;
}

static __always_inline int steer_read_ports(struct steer_cursor *cursor, struct steer_packet *packet) {
    struct steer_l4_ports *ports = cursor->at;
    if ((void *)(ports + 1) > cursor->end) return STEER_COUNT_passed_malformed;
    packet->source_port = bpf_ntohs(ports->source);
    packet->destination_port = bpf_ntohs(ports->destination);
    return STEER_GO_ON;
}

/* Errors that concern one flow. Redirects concern routes, queries concern the host: the kernel's. */
static __always_inline int steer_is_icmp_error(__u8 protocol, __u8 type) {
    if (protocol == IPPROTO_ICMP) return type == 3 || type == 11 || type == 12; /* RFC 792 */
    return type >= 1 && type <= 4;                                             /* RFC 4443 3 */
}
