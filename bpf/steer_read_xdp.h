/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * How steer_parse.h reads a packet in an XDP program: in place. Both pointers are packet pointers. */
#define STEER_NAME(name) steer_xdp_##name
#define STEER_HEADER(type, name, cursor) \
    type *name = (cursor)->at;           \
    if ((void *)(name + 1) > (cursor)->end) return STEER_COUNT_passed_malformed

struct steer_xdp_cursor {
    void *at;
    void *end;
};

/* At the ports. What has no room for flags has none. */
static __always_inline void steer_xdp_read_tcp_flags(struct steer_xdp_cursor *cursor, struct steer_packet *packet) {
    struct steer_tcp *tcp = cursor->at;
    if ((void *)(tcp + 1) <= cursor->end) packet->tcp_flags = tcp->flags;
}

static __always_inline void steer_xdp_skip(struct steer_xdp_cursor *cursor, __u32 bytes) { cursor->at += bytes; }
