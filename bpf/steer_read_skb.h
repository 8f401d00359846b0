/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * How steer_parse.h reads a packet in a program of a socket buffer: header by header into the program's stack. From the
 * link header, wherever the buffer begins for the program. */
#define STEER_NAME(name) steer_skb_##name
#define STEER_HEADER(type, name, cursor) \
    type name##_copy;                    \
    type *name = &name##_copy;           \
    if (bpf_skb_load_bytes_relative((cursor)->skb, (cursor)->at, name, sizeof *name, BPF_HDR_START_MAC) != 0) return STEER_COUNT_passed_malformed

struct steer_skb_cursor {
    struct __sk_buff *skb;
    __u32 at;
};

static __always_inline void steer_skb_read_tcp_flags(struct steer_skb_cursor *cursor, struct steer_packet *packet) {}

static __always_inline void steer_skb_skip(struct steer_skb_cursor *cursor, __u32 bytes) { cursor->at += bytes; }
