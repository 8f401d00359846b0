/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What the steering program and the daemon agree on: the maps' keys and values. Read by clang for BPF and by g++.
 *
 *   map           type              key               value              written by          read by
 *   addresses     hash              steer_address     __u32 slot, flag   daemon (syscall)    programs
 *   ports         array, mmapable   slot * 2 + proto  steer_ports        daemon (atomic op)  program
 *   kernel_flows  hash              steer_flow        __u8 (no meaning)  daemon; XDP removes program
 *   control       array, mmapable   STEER_CONTROL_*   __u64              daemon; see below   program
 *   counters      per-CPU array     STEER_COUNT_*     __u64              program             daemon (syscall)
 *   filter_prefixes  LPM trie       steer_prefix      steer_rules        daemon (syscall)    programs
 *   filter_ports  array             steer_port_index  __u16 class        daemon (syscall)    programs
 *   filter_classes   array          steer_class_index steer_rules        daemon (syscall)    programs
 *   filter_actions   array          generation * 256 + rule  __u8        daemon (syscall)    programs
 *   filter_counts    per-CPU array  generation * 256 + rule  __u64       programs            daemon (syscall)
 *   xsks          XSKMAP            receive queue     AF_XDP socket      daemon (syscall)    kernel
 *
 * Ordering: every shared word stands alone; the program acts on whichever value it sees. A packet that races with a
 * port being taken or released goes one way or the other, as it would with a socket being bound or closed.
 */
#pragma once

#include <linux/types.h>

#define STEER_MAX_ADDRESSES 64 /* local addresses of one interface */
#define STEER_MAX_QUEUES 64
#define STEER_MAX_KERNEL_FLOWS 65536
#define STEER_MAX_EXTENSION_HEADERS 6 /* of IPv6: more is nobody's honest packet */

/* In a value of `addresses`: every packet for it is Culvert's, whatever its protocol, and so are ARP and neighbour
 * discovery about it (a dedicated address: the kernel does not know it). */
#define STEER_ADDRESS_WHOLE (1u << 31)

/* Filter. Ordered rules; the first that matches decides. Each field of a packet (source, destination, protocol, the two
 * ports) is looked up once and answers with the set of rules it satisfies; the first rule in all five sets is the one. Two
 * generations of tables: one is in use, the other is being written. Ports are classed: ports that satisfy the same rules
 * have the same class. */
#define STEER_MAX_RULES 256 /* the last is the default, which always matches */
#define STEER_RULE_WORDS (STEER_MAX_RULES / 64)
#define STEER_MAX_CLASSES 1024
#define STEER_FILTER_DENY 0
#define STEER_FILTER_ALLOW 1

struct steer_rules {
    __u64 words[STEER_RULE_WORDS];
};

enum steer_field { STEER_FIELD_SOURCE, STEER_FIELD_DESTINATION, STEER_FIELD_PROTOCOL, STEER_FIELD_SOURCE_PORT, STEER_FIELD_PORT };

/* Key of filter_prefixes: prefix_length counts the two bytes of generation and field. */
struct steer_prefix {
    __u32 prefix_length;
    __u8 generation; /* 0 or 1 */
    __u8 field;      /* STEER_FIELD_SOURCE, _DESTINATION */
    __u8 address[16];
    __u8 zero[2];
};

/* Index of filter_ports: 0 for what has no ports. Of filter_classes: protocols first, then both directions' port classes. */
#define STEER_PORT_INDEX(generation, is_destination, port) ((((generation) * 2 + (is_destination)) << 16) + (port))
#define STEER_CLASS_INDEX(generation, kind, number) (((generation) * 3 + (kind)) * STEER_MAX_CLASSES + (number))
#define STEER_CLASS_PROTOCOL 0
#define STEER_CLASS_SOURCE_PORT 1
#define STEER_CLASS_PORT 2

/* Index of a protocol's bitmap within an address's slot. */
#define STEER_PROTO_TCP 0
#define STEER_PROTO_UDP 1
#define STEER_PROTO_COUNT 2

#define STEER_PORT_WORDS (65536 / 64)

/* An address in network order, IPv4 in its IPv4-mapped form (RFC 4291 2.5.5.2). */
struct steer_address {
    __u8 bytes[16];
};

/* One bit a port: word port / 64, bit port % 64. Set: Culvert's. */
struct steer_ports {
    __u64 words[STEER_PORT_WORDS];
};

/* A flow that the kernel owned before Culvert took its port. Ports in host order. */
struct steer_flow {
    struct steer_address local;
    struct steer_address remote;
    __u16 local_port;
    __u16 remote_port;
    __u8 proto; /* STEER_PROTO_* */
    __u8 zero[3];
};

#ifdef __cplusplus
#define STEER_U32(value) static_cast<__u32>(value)
#else
#define STEER_U32(value) ((__u32)(value))
#endif

/* A VLAN: the EtherType that announces its tag (0x8100 or 0x88a8), and its number. Never 0. */
#define STEER_TAG(type, control) (STEER_U32(type) << 16 | (STEER_U32(control) & 0xfff))

enum steer_control {
    STEER_CONTROL_ENABLED,      /* 0: everything to the kernel */
    STEER_CONTROL_KERNEL_FLOWS, /* how many entries kernel_flows has (atomic: whoever removes one); 0 saves the look-up */
    STEER_CONTROL_FILTER,       /* 0: no rules; else 1 + the generation in use */
    STEER_CONTROL_TAG,          /* 0: untagged frames are ours; else STEER_TAG() of the one VLAN whose frames are */
    STEER_CONTROL_DATAGRAM, /* 0, or the longest UDP packet that is one; a longer one is several that GRO or GSO has joined */
    STEER_CONTROL_WORDS
};

/* X(name, for a person). The name is that of the counter in `culvert stat`. */
#define STEER_COUNTERS(X)                                                              \
    X(redirected, "packets steered to Culvert")                                        \
    X(filtered, "packets for Culvert dropped by a filter rule")                        \
    X(passed_disabled, "packets to the kernel: steering switched off")                 \
    X(passed_vlan, "packets to the kernel: of another VLAN")                           \
    X(passed_ethertype, "packets to the kernel: neither IPv4 nor IPv6")                \
    X(passed_malformed, "packets to the kernel: headers cut short or impossible")      \
    X(passed_address, "packets to the kernel: destination address not ours")           \
    X(passed_protocol, "packets to the kernel: neither TCP, UDP nor an ICMP error")    \
    X(passed_fragment, "packets to the kernel: IP fragments")                          \
    X(passed_merged, "packets to the kernel: several datagrams in one")                \
    X(passed_port, "packets to the kernel: port not taken")                            \
    X(passed_kernel_flow, "packets to the kernel: flow older than Culvert's claim")    \
    X(passed_no_socket, "packets to the kernel: no AF_XDP socket on the receive queue")

enum steer_counter {
#define STEER_COUNTER_ENUM(name, text) STEER_COUNT_##name,
    STEER_COUNTERS(STEER_COUNTER_ENUM)
#undef STEER_COUNTER_ENUM
    STEER_COUNT_TOTAL
};
