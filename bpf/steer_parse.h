/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The steering programs' parser: from a frame to the flow that it belongs to, as far as steering needs it.
 *
 *   frame -> [ethernet] -> [VLAN tag] -> [ARP]
 *                                     -> [IPv4 | IPv6 + bounded extension headers] -> ports
 *                                                                   \-> [ICMP error -> embedded IP header -> its ports]
 *
 * A parser that cannot answer returns the counter of its reason; the packet then goes to the kernel. Nothing here
 * checks what the stack checks again (checksums, lengths beyond the ports): steering decides who parses, no more.
 *
 * Headers must lie in the first buffer of a multi-buffer packet; drivers put them there. Those that lie elsewhere
 * count as malformed and go to the kernel.
 *
 * The same text reads packets in two ways, by which of two headers came before it:
 *   steer_read_xdp.h   packet pointers: the verifier tracks them
 *   steer_read_skb.h   copies out of a socket buffer (a socket filter has no pointers into it)
 * Both define struct STEER_NAME(cursor), STEER_HEADER (a header at the cursor, or malformed), steer_skip and STEER_NAME.
 */
static __always_inline int STEER_NAME(read_ipv4)(struct STEER_NAME(cursor) *cursor, struct steer_packet *packet) {
    STEER_HEADER(struct steer_ipv4, ip, cursor);
    __u32 header = (ip->version_ihl & 0x0f) * 4;
    if ((ip->version_ihl >> 4) != 4 || header < sizeof *ip) return STEER_COUNT_passed_malformed;
    __u16 fragment = bpf_ntohs(ip->fragment);
    packet->later_fragment = (fragment & 0x1fff) != 0; /* no ports in it */
    packet->first_fragment = !packet->later_fragment && (fragment & 0x2000) != 0;
    packet->protocol = ip->protocol;
    packet->length = bpf_ntohs(ip->length);
    steer_map_v4(&packet->source, ip->source);
    steer_map_v4(&packet->destination, ip->destination);
    STEER_NAME(skip)(cursor, header);
    return STEER_GO_ON;
}

static __always_inline int STEER_NAME(read_ipv6)(struct STEER_NAME(cursor) *cursor, struct steer_packet *packet) {
    STEER_HEADER(struct steer_ipv6, ip, cursor);
    if ((bpf_ntohl(ip->version_class_flow) >> 28) != 6) return STEER_COUNT_passed_malformed;
    if (steer_is_mapped(ip->source) || steer_is_mapped(ip->destination)) return STEER_COUNT_passed_malformed;
    __builtin_memcpy(packet->source.bytes, ip->source, 16);
    __builtin_memcpy(packet->destination.bytes, ip->destination, 16);
    packet->length = sizeof *ip + bpf_ntohs(ip->length);
    __u8 next = ip->next;
    packet->later_fragment = 0;
    STEER_NAME(skip)(cursor, sizeof *ip);

#pragma unroll
    for (int i = 0; i < STEER_MAX_EXTENSION_HEADERS; ++i) {
        if (next == IPPROTO_FRAGMENT_) {
            STEER_HEADER(struct steer_ipv6_fragment, fragment, cursor);
            __u16 offset = bpf_ntohs(fragment->offset);
            next = fragment->next;
            if (offset & 0xfff8) {
                packet->later_fragment = 1;
                break;
            }
            if (offset & 1) packet->first_fragment = 1; /* else an atomic fragment, RFC 6946: a whole packet */
            STEER_NAME(skip)(cursor, sizeof *fragment);
        } else if (next == IPPROTO_HOPOPTS_ || next == IPPROTO_DSTOPTS_) {
            STEER_HEADER(struct steer_ipv6_extension, extension, cursor);
            __u32 length = ((__u32)extension->length + 1) * 8;
            next = extension->next;
            STEER_NAME(skip)(cursor, length);
        } else {
            break;
        }
    }
    packet->protocol = next; /* routing headers, AH, ESP, and chains too long: not TCP, so the kernel's */
    return STEER_GO_ON;
}

static __always_inline int STEER_NAME(read_ports)(struct STEER_NAME(cursor) *cursor, struct steer_packet *packet) {
    STEER_HEADER(struct steer_l4_ports, ports, cursor);
    packet->source_port = bpf_ntohs(ports->source);
    packet->destination_port = bpf_ntohs(ports->destination);
    STEER_NAME(read_tcp_flags)(cursor, packet);
    return STEER_GO_ON;
}

/* ARP concerns us when it asks for, answers to, or claims a dedicated address. RFC 826 */
static __always_inline int STEER_NAME(judge_arp)(struct STEER_NAME(cursor) *cursor, struct steer_packet *packet) {
    STEER_HEADER(struct steer_arp, arp, cursor);
    if (arp->hardware != bpf_htons(1) || arp->protocol != bpf_htons(ETH_P_IP) || arp->hardware_length != 6 ||
        arp->protocol_length != 4)
        return STEER_COUNT_passed_ethertype;
    __be32 target, sender;
    __builtin_memcpy(&target, arp->target, 4);
    __builtin_memcpy(&sender, arp->sender, 4);
    steer_map_v4(&packet->destination, target);
    steer_map_v4(&packet->source, sender);
    if (!steer_is_whole(&packet->destination) && !steer_is_whole(&packet->source)) return STEER_COUNT_passed_ethertype;
    return STEER_NOT_FILTERED;
}

/* The fields that the filter looks at are in `packet` when the answer is STEER_GO_ON. packet->tag is the tag that has been
 * taken off the frame before, if one was; else the frame's own is read. Two tags are nobody's. */
static __always_inline int STEER_NAME(judge)(struct STEER_NAME(cursor) *cursor, struct steer_packet *packet) {
    int reason;

    if (!steer_control_word(STEER_CONTROL_ENABLED)) return STEER_COUNT_passed_disabled;

    STEER_HEADER(struct steer_eth, eth, cursor);
    __be16 type = eth->type;
    STEER_NAME(skip)(cursor, sizeof *eth);
    if (packet->tag == 0 && (type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD))) {
        STEER_HEADER(struct steer_vlan, vlan, cursor);
        packet->tag = STEER_TAG(bpf_ntohs(type), bpf_ntohs(vlan->control));
        type = vlan->type;
        STEER_NAME(skip)(cursor, sizeof *vlan);
    }
    if (packet->tag != steer_control_word(STEER_CONTROL_TAG)) return STEER_COUNT_passed_vlan;
    if (type == bpf_htons(ETH_P_IP))
        reason = STEER_NAME(read_ipv4)(cursor, packet);
    else if (type == bpf_htons(ETH_P_IPV6))
        reason = STEER_NAME(read_ipv6)(cursor, packet);
    else if (type == bpf_htons(ETH_P_ARP))
        return STEER_NAME(judge_arp)(cursor, packet);
    else
        return STEER_COUNT_passed_ethertype;
    if (reason != STEER_GO_ON) return reason;

    int icmp = (packet->protocol == IPPROTO_ICMP && type == bpf_htons(ETH_P_IP)) ||
               (packet->protocol == IPPROTO_ICMPV6_ && type == bpf_htons(ETH_P_IPV6));

    /* The packet's own destination must be ours, for an ICMP error too. */
    __u32 *slot = bpf_map_lookup_elem(&addresses, &packet->destination);
    if (!slot) {
        /* A question about a dedicated address comes by multicast: its target says whom it concerns. RFC 4861 4.3 */
        if (!icmp || type != bpf_htons(ETH_P_IPV6) || packet->later_fragment || packet->first_fragment)
            return STEER_COUNT_passed_address;
        STEER_HEADER(struct steer_neighbor, message, cursor);
        if (message->type != 135 && message->type != 136) return STEER_COUNT_passed_address;
        struct steer_address target;
        __builtin_memcpy(target.bytes, message->target, 16);
        return steer_is_whole(&target) ? STEER_NOT_FILTERED : STEER_COUNT_passed_address;
    }
    if (*slot & STEER_ADDRESS_WHOLE) {
        if (packet->later_fragment) {
            packet->source_port = packet->destination_port = 0;
        } else if (packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP) {
            reason = STEER_NAME(read_ports)(cursor, packet);
            if (reason != STEER_GO_ON) return reason;
        }
        return STEER_GO_ON;
    }
    if (packet->later_fragment) return STEER_COUNT_passed_fragment;

    struct steer_packet quoted = {};
    struct steer_packet *which = packet;
    if (icmp) {
        if (packet->first_fragment) return STEER_COUNT_passed_fragment;
        STEER_HEADER(struct steer_icmp, message, cursor);
        if (!steer_is_icmp_error(packet->protocol, message->type)) return STEER_COUNT_passed_protocol;
        STEER_NAME(skip)(cursor, sizeof *message);
        /* The quoted packet left this host: its source is the local end. */
        if (type == bpf_htons(ETH_P_IP))
            reason = STEER_NAME(read_ipv4)(cursor, &quoted);
        else
            reason = STEER_NAME(read_ipv6)(cursor, &quoted);
        if (reason != STEER_GO_ON) return reason;
        if (quoted.later_fragment) return STEER_COUNT_passed_fragment;
        slot = bpf_map_lookup_elem(&addresses, &quoted.source);
        if (!slot) return STEER_COUNT_passed_address;
        which = &quoted;
    }

    __u32 proto;
    if (which->protocol == IPPROTO_TCP) {
        proto = STEER_PROTO_TCP;
    } else if (which->protocol == IPPROTO_UDP) {
        if (which->first_fragment && !icmp) return STEER_COUNT_passed_fragment;
        __u64 longest = steer_control_word(STEER_CONTROL_DATAGRAM);
        if (longest && packet->length > longest) return STEER_COUNT_passed_merged;
        proto = STEER_PROTO_UDP;
    } else {
        return STEER_COUNT_passed_protocol;
    }
    reason = STEER_NAME(read_ports)(cursor, which);
    if (reason != STEER_GO_ON) return reason;
    return steer_judge_flow(which, *slot & ~STEER_ADDRESS_WHOLE, proto, icmp);
}
#undef STEER_NAME
#undef STEER_HEADER
