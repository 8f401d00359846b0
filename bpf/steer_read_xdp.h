/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * How steer_parse.h reads a packet in an XDP program: in place. Where it reads is a number, not a pointer: to the verifier two ways to
 * the same place are then one, whatever was read on them; with pointers it looked at 600,000 instructions, not 85,000. */
#define STEER_NAME(name) steer_xdp_##name
#define STEER_HEADER(type, name, cursor)   \
    type *name = steer_xdp_at(cursor);     \
    if (!name || (void *)(name + 1) > (cursor)->end) return STEER_COUNT_passed_malformed

/* Longer than any chain of headers that is followed (two IPv6 headers with six extensions of 2048 bytes each). */
#define STEER_XDP_MOST 0x7fff

struct steer_xdp_cursor {
    void *begin;
    void *end;
    __u32 at;
};

static __always_inline void *steer_xdp_at(const struct steer_xdp_cursor *cursor) {
    __u64 at = cursor->at;
    __asm__ volatile("" : "+r"(at)); /* else the compiler goes on from the pointer that it has */
    return at <= STEER_XDP_MOST ? cursor->begin + at : 0;
}

/* At the ports. What has no room for flags has none. */
static __always_inline void steer_xdp_read_tcp_flags(struct steer_xdp_cursor *cursor, struct steer_packet *packet) {
    struct steer_tcp *tcp = steer_xdp_at(cursor);
    if (tcp && (void *)(tcp + 1) <= cursor->end) packet->tcp_flags = tcp->flags;
}

static __always_inline void steer_xdp_skip(struct steer_xdp_cursor *cursor, __u32 bytes) { cursor->at += bytes; }
