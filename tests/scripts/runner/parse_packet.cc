// Packets of the dialect:
//
//   < [ect0] P. 1:1001(1000) ack 1 win 257 urg 5 <nop,nop,TS val 100 ecr 7>
//   > udp (100)
//   < icmp unreachable frag_needed mtu 1400 [1:1001(1000)]
#include <algorithm>

#include "tests/scripts/runner/cursor.h"

namespace culvert::script {
namespace {

constexpr struct {
    char letter;
    std::uint8_t bit;
} kFlags[] = {{'F', 0x01}, {'S', 0x02}, {'R', 0x04}, {'P', 0x08}, {'.', 0x10}, {'U', 0x20}, {'E', 0x40}, {'W', 0x80}};

std::uint32_t number32(Cursor& cursor, const char* what) {
    return static_cast<std::uint32_t>(cursor.number(what, UINT32_MAX));
}

/// 1:1001(1000), or 1001(1000) without the start when `short_form`.
void parse_range(Cursor& cursor, TcpPacket& packet) {
    packet.first = number32(cursor, "a sequence range: FIRST:LAST(LENGTH)");
    cursor.require(":");
    packet.last = number32(cursor, "the end of the sequence range");
    cursor.require("(");
    packet.length = static_cast<std::uint32_t>(cursor.number("the payload's length", 65535));
    cursor.require(")");
    if (packet.last - packet.first != packet.length)
        cursor.complain("the range " + std::to_string(packet.first) + ":" + std::to_string(packet.last) +
                        " does not have " + std::to_string(packet.length) + " bytes");
}

std::vector<std::uint8_t> parse_hex(Cursor& cursor) {
    const auto digit = [](char c) -> int {
        if (c >= '0' && c <= '9') return c - '0';
        if (c >= 'a' && c <= 'f') return c - 'a' + 10;
        if (c >= 'A' && c <= 'F') return c - 'A' + 10;
        return -1;
    };
    std::vector<std::uint8_t> bytes;
    while (digit(cursor.peek()) >= 0) {
        const int high = digit(cursor.peek());
        const int low = digit(cursor.peek(1));
        if (low < 0) cursor.expected("an even number of hexadecimal digits");
        if (bytes.size() == 38) cursor.complain("an option has at most 38 bytes behind its length");
        bytes.push_back(static_cast<std::uint8_t>(high << 4 | low));
        cursor.advance(2);
    }
    return bytes;
}

Sack parse_sack(Cursor& cursor) {
    Sack sack;
    do {
        const std::uint32_t left = number32(cursor, "a SACK block: LEFT:RIGHT");
        cursor.require(":");
        sack.blocks.emplace_back(left, number32(cursor, "the right edge of the SACK block"));
        if (sack.blocks.size() > 4) cursor.complain("there is room for four SACK blocks");
        cursor.skip_space();
    } while (std::isdigit(static_cast<unsigned char>(cursor.peek())));
    return sack;
}

Option parse_option(Cursor& cursor) {
    if (cursor.accept_word("nop")) return NoOperation{};
    if (cursor.accept_word("eol")) return EndOfOptions{};
    if (cursor.accept_word("mss")) return Mss{static_cast<std::uint16_t>(cursor.number("the MSS", 65535))};
    if (cursor.accept_word("wscale")) return WindowScale{static_cast<std::uint8_t>(cursor.number("the shift", 255))};
    if (cursor.accept_word("sackOK")) return SackPermitted{};
    if (cursor.accept_word("sack")) return parse_sack(cursor);
    if (cursor.accept_word("TS")) {
        if (!cursor.accept_word("val")) cursor.expected("val");
        const std::uint32_t value = number32(cursor, "a timestamp");
        if (!cursor.accept_word("ecr")) cursor.expected("ecr");
        return Timestamps{value, number32(cursor, "the echoed timestamp")};
    }
    if (cursor.accept_word("FO")) {
        cursor.skip_space();
        if (cursor.accept_word("TFO_COOKIE")) return FastOpen{.cookie = {}, .captured = true};
        return FastOpen{.cookie = parse_hex(cursor), .captured = false};
    }
    if (cursor.accept_word("kind")) {
        OtherOption other{.kind = static_cast<std::uint8_t>(cursor.number("the option's kind", 255)), .data = {}};
        cursor.skip_space();
        other.data = parse_hex(cursor);
        return other;
    }
    cursor.expected("a TCP option: nop, eol, mss, wscale, sackOK, sack, TS, FO or kind");
}

TcpPacket parse_tcp(Cursor& cursor, bool inbound) {
    TcpPacket packet;
    cursor.skip_space();
    const std::size_t first = cursor.offset();
    if (cursor.peek() == '-') {
        cursor.advance();
    } else {
        for (;;) {
            const auto* flag = std::ranges::find(kFlags, cursor.peek(), &std::remove_cvref_t<decltype(kFlags[0])>::letter);
            if (flag == std::end(kFlags)) break;
            if ((packet.flags & flag->bit) != 0) cursor.complain("the same flag twice");
            packet.flags |= flag->bit;
            cursor.advance();
        }
    }
    if (cursor.offset() == first || !std::isspace(static_cast<unsigned char>(cursor.peek())))
        cursor.expected("TCP flags (of FSRP.UEW, or -), udp or icmp");
    parse_range(cursor, packet);
    if (cursor.accept_word("ack")) packet.ack = number32(cursor, "an acknowledgment number");
    const bool has_ack = (packet.flags & 0x10) != 0;
    if (has_ack && !packet.ack) cursor.expected("'ack NUMBER' (the packet has the flag '.')");
    if (!has_ack && packet.ack) cursor.complain("'ack' without the flag '.'");
    if (cursor.accept_word("win")) packet.window = static_cast<std::uint16_t>(cursor.number("a window", 65535));
    if (cursor.accept_word("urg")) packet.urgent = static_cast<std::uint16_t>(cursor.number("an urgent pointer", 65535));
    if (inbound && !packet.window && (packet.flags & 0x04) == 0) cursor.expected("'win NUMBER' of an inbound packet");
    if (!cursor.accept("<")) return packet;
    if (cursor.accept("...")) {
        if (inbound) cursor.complain("<...> says what is accepted, not what to send");
        packet.any_options = true;
    } else if (!cursor.accept(">")) {
        do packet.options.push_back(parse_option(cursor));
        while (cursor.accept(","));
        cursor.require(">");
        return packet;
    } else {
        return packet;
    }
    cursor.require(">");
    return packet;
}

UdpPacket parse_udp(Cursor& cursor) {
    cursor.require("(");
    UdpPacket packet{static_cast<std::uint32_t>(cursor.number("the datagram's length", 65507))};
    cursor.require(")");
    return packet;
}

IcmpPacket parse_icmp(Cursor& cursor) {
    IcmpPacket packet;
    packet.type = cursor.name("an ICMP type");
    if (packet.type != "unreachable" && packet.type != "time_exceeded" && packet.type != "packet_too_big" &&
        packet.type != "parameter_problem" && packet.type != "source_quench")
        cursor.complain("no ICMP type is called " + packet.type);
    bool mtu = cursor.accept_word("mtu");
    if (!mtu && Cursor::is_word(cursor.peek())) {
        packet.code = cursor.name("an ICMP code");
        mtu = cursor.accept_word("mtu");
    }
    if (mtu) packet.mtu = static_cast<std::uint32_t>(cursor.number("the MTU", 65535));
    cursor.require("[");
    if (cursor.accept_word("udp")) {
        packet.about = parse_udp(cursor);
    } else {
        TcpPacket about;
        parse_range(cursor, about);
        packet.about = about;
    }
    cursor.require("]");
    return packet;
}

/// [ect0], [noecn,ttl 3]
IpFields parse_ip_fields(Cursor& cursor) {
    IpFields fields;
    if (!cursor.accept("[")) return fields;
    do {
        if (cursor.accept_word("noecn")) fields.ecn = EcnField::kNotEct;
        else if (cursor.accept_word("ect0")) fields.ecn = EcnField::kEct0;
        else if (cursor.accept_word("ect1")) fields.ecn = EcnField::kEct1;
        else if (cursor.accept_word("ect01")) fields.ecn = EcnField::kEct01;
        else if (cursor.accept_word("ce")) fields.ecn = EcnField::kCe;
        else if (cursor.accept_word("tos")) fields.tos = static_cast<std::uint8_t>(cursor.number("the TOS", 255));
        else if (cursor.accept_word("ttl")) fields.ttl = static_cast<std::uint8_t>(cursor.number("the TTL", 255));
        else cursor.expected("an IP field: noecn, ect0, ect1, ect01, ce, tos or ttl");
    } while (cursor.accept(","));
    cursor.require("]");
    return fields;
}

}  // namespace

Packet parse_packet(Cursor& cursor) {
    Packet packet;
    packet.inbound = cursor.accept("<");
    if (!packet.inbound) cursor.require(">");
    packet.ip = parse_ip_fields(cursor);
    if (packet.inbound && packet.ip.ecn == EcnField::kEct01) cursor.complain("ect01 says what is accepted, not what to send");
    if (cursor.accept_word("udp")) {
        packet.content = parse_udp(cursor);
    } else if (cursor.accept_word("icmp")) {
        if (!packet.inbound) cursor.complain("an outbound ICMP message cannot be expected in this dialect");
        packet.content = parse_icmp(cursor);
    } else {
        packet.content = parse_tcp(cursor, packet.inbound);
    }
    return packet;
}

}  // namespace culvert::script
