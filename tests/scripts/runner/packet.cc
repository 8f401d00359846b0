#include "tests/scripts/runner/packet.h"

#include <algorithm>
#include <cstdio>

#include "daemon/wire/bytes.h"
#include "daemon/wire/checksum.h"
#include "daemon/wire/icmp.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"
#include "daemon/wire/tcp.h"
#include "daemon/wire/udp.h"

namespace culvert::script {
namespace {

template <class... Functions>
struct Overloaded : Functions... {
    using Functions::operator()...;
};

void put8(Bytes& out, std::uint32_t value) { out.push_back(static_cast<std::byte>(value)); }
void put16(Bytes& out, std::uint32_t value) {
    put8(out, value >> 8);
    put8(out, value);
}
void put32(Bytes& out, std::uint32_t value) {
    put16(out, value >> 16);
    put16(out, value);
}
void put_bytes(Bytes& out, std::span<const std::uint8_t> bytes) {
    for (const std::uint8_t byte : bytes) put8(out, byte);
}

void put_option(Bytes& out, const Option& option) {
    std::visit(Overloaded{[&](const NoOperation&) { put8(out, 1); },
                          [&](const EndOfOptions&) { put8(out, 0); },
                          [&](const Mss& mss) {
                              put16(out, 0x0204);
                              put16(out, mss.bytes);
                          },
                          [&](const WindowScale& scale) {
                              put16(out, 0x0303);
                              put8(out, scale.shift);
                          },
                          [&](const SackPermitted&) { put16(out, 0x0402); },
                          [&](const Timestamps& stamps) {
                              put16(out, 0x080a);
                              put32(out, stamps.value);
                              put32(out, stamps.echo);
                          },
                          [&](const Sack& sack) {
                              put8(out, 5);
                              put8(out, static_cast<std::uint32_t>(2 + 8 * sack.blocks.size()));
                              for (const auto& [left, right] : sack.blocks) {
                                  put32(out, left);
                                  put32(out, right);
                              }
                          },
                          [&](const FastOpen& fast_open) {
                              put8(out, 34);
                              put8(out, static_cast<std::uint32_t>(2 + fast_open.cookie.size()));
                              put_bytes(out, fast_open.cookie);
                          },
                          [&](const OtherOption& other) {
                              put8(out, other.kind);
                              put8(out, static_cast<std::uint32_t>(2 + other.data.size()));
                              put_bytes(out, other.data);
                          }},
               option);
}

/// The option at the front of `from`, which is `length` bytes long as it says.
Option read_option(std::span<const std::byte> from) {
    const auto kind = std::to_integer<std::uint8_t>(from[0]);
    const auto data = from.subspan(2);
    const auto copy = [&] {
        std::vector<std::uint8_t> bytes;
        for (const std::byte byte : data) bytes.push_back(std::to_integer<std::uint8_t>(byte));
        return bytes;
    };
    if (kind == 2 && data.size() == 2) return Mss{wire::load_be16(data, 0)};
    if (kind == 3 && data.size() == 1) return WindowScale{std::to_integer<std::uint8_t>(data[0])};
    if (kind == 4 && data.empty()) return SackPermitted{};
    if (kind == 8 && data.size() == 8) return Timestamps{wire::load_be32(data, 0), wire::load_be32(data, 4)};
    if (kind == 34) return FastOpen{.cookie = copy(), .captured = false};
    if (kind == 5 && data.size() % 8 == 0 && !data.empty()) {
        Sack sack;
        for (std::size_t at = 0; at < data.size(); at += 8)
            sack.blocks.emplace_back(wire::load_be32(data, at), wire::load_be32(data, at + 4));
        return sack;
    }
    return OtherOption{.kind = kind, .data = copy()};
}

std::expected<std::vector<Option>, std::string> read_options(std::span<const std::byte> from) {
    std::vector<Option> options;
    while (!from.empty()) {
        const auto kind = std::to_integer<std::uint8_t>(from[0]);
        if (kind == 0) {
            options.emplace_back(EndOfOptions{});
            return options;
        }
        if (kind == 1) {
            options.emplace_back(NoOperation{});
            from = from.subspan(1);
            continue;
        }
        const std::size_t length = from.size() < 2 ? 0 : std::to_integer<std::size_t>(from[1]);
        if (length < 2 || length > from.size()) return std::unexpected("a TCP option with a wrong length");
        options.push_back(read_option(from.first(length)));
        from = from.subspan(length);
    }
    return options;
}

/// Writes the IP header in front of a transport message that lies at its place already.
void put_ip(Bytes& packet, const Address& from, const Address& to, wire::IpProtocol protocol, std::uint8_t traffic_class,
            std::uint8_t ttl, std::size_t transport_length) {
    if (from.is_v4())
        wire::emit(wire::Ipv4Header{.source = from, .destination = to, .protocol = protocol, .hop_limit = ttl,
                                    .traffic_class = traffic_class},
                   transport_length, packet);
    else
        wire::emit(wire::Ipv6Header{.source = from, .destination = to, .protocol = protocol, .hop_limit = ttl,
                                    .traffic_class = traffic_class},
                   transport_length, packet);
}
std::size_t ip_header(const Address& address) { return address.is_v4() ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength; }

}  // namespace

std::expected<Bytes, std::string> encode(const WirePacket& packet) {
    const std::size_t ip = ip_header(packet.from.address);
    if (const auto* udp = std::get_if<UdpPacket>(&packet.content)) {
        const std::size_t length = wire::kUdpHeaderLength + udp->length;
        Bytes bytes(ip + length);
        put_ip(bytes, packet.from.address, packet.to.address, wire::IpProtocol::kUdp, packet.traffic_class, packet.ttl, length);
        const auto header = std::span(bytes).subspan(ip);
        wire::emit(wire::UdpHeader{packet.from.port, packet.to.port}, udp->length, header);
        std::ranges::copy(packet.payload, header.begin() + wire::kUdpHeaderLength);
        wire::finish_udp_checksum(header.first(wire::kUdpHeaderLength), wire::sum_bytes(packet.payload),
                                  packet.from.address, packet.to.address);
        return bytes;
    }
    const auto& tcp = std::get<TcpPacket>(packet.content);
    Bytes options;
    for (const Option& option : tcp.options) put_option(options, option);
    if (options.size() > wire::kMaxTcpOptionsLength)
        return std::unexpected("the options take " + std::to_string(options.size()) + " bytes; there is room for 40");
    if (options.size() % 4 != 0)
        return std::unexpected("the options take " + std::to_string(options.size()) + " bytes; pad them with nop to a multiple of 4");
    const std::size_t header_length = wire::kTcpHeaderLength + options.size();
    Bytes bytes(ip + header_length + packet.payload.size());
    put_ip(bytes, packet.from.address, packet.to.address, wire::IpProtocol::kTcp, packet.traffic_class, packet.ttl,
           header_length + packet.payload.size());
    const auto at_tcp = std::span(bytes).subspan(ip);
    wire::emit(wire::TcpHeader{.source = packet.from.port, .destination = packet.to.port, .sequence = tcp.first,
                               .acknowledgment = tcp.ack.value_or(0), .flags = {tcp.flags},
                               .window = tcp.window.value_or(0), .urgent = tcp.urgent},
               wire::TcpOptions{}, at_tcp);
    at_tcp[12] = static_cast<std::byte>(header_length / 4 << 4);
    std::ranges::copy(options, at_tcp.begin() + wire::kTcpHeaderLength);
    std::ranges::copy(packet.payload, at_tcp.begin() + static_cast<std::ptrdiff_t>(header_length));
    wire::finish_tcp_checksum(at_tcp.first(header_length), wire::sum_bytes(packet.payload), packet.payload.size(),
                              packet.from.address, packet.to.address);
    return bytes;
}

std::expected<WirePacket, Undecodable> decode(std::span<const std::byte> ip_packet) {
    const auto wrong = [](std::string why, bool ignorable = false) {
        return std::unexpected(Undecodable{std::move(why), ignorable});
    };
    if (ip_packet.empty()) return wrong("an empty packet");
    WirePacket packet;
    std::size_t ip = 0;
    wire::IpProtocol protocol{};
    if (std::to_integer<unsigned>(ip_packet[0]) >> 4 == 4) {
        const auto view = wire::Ipv4View::parse(ip_packet);
        if (!view) return wrong("a broken IPv4 header");
        packet.from.address = view->source();
        packet.to.address = view->destination();
        packet.traffic_class = view->traffic_class();
        packet.ttl = view->hop_limit();
        packet.dont_fragment = view->dont_fragment();
        if (view->is_fragment()) return wrong("a fragment");
        protocol = view->protocol();
        ip = view->header_length();
        if (view->total_length() != ip_packet.size()) return wrong("an IPv4 header with a wrong total length");
    } else {
        const auto view = wire::Ipv6View::parse(ip_packet);
        if (!view) return wrong("a broken IPv6 header");
        packet.from.address = view->source();
        packet.to.address = view->destination();
        packet.traffic_class = view->traffic_class();
        packet.ttl = view->hop_limit();
        if (view->is_fragment()) return wrong("a fragment");
        protocol = view->protocol();
        ip = view->header_length();
        if (view->total_length() != ip_packet.size()) return wrong("an IPv6 header with a wrong payload length");
    }
    if (protocol != wire::IpProtocol::kTcp && protocol != wire::IpProtocol::kUdp)
        return wrong("protocol " + std::to_string(static_cast<int>(protocol)), true);
    const auto transport = ip_packet.subspan(ip);
    const RxPacket whole{.head = ip_packet, .rest = {}, .length = static_cast<std::uint32_t>(ip_packet.size())};
    if (!wire::verify_transport_checksum(whole, ip, transport.size(), packet.from.address, packet.to.address, protocol))
        return wrong("a wrong checksum");
    if (protocol == wire::IpProtocol::kUdp) {
        const auto view = wire::UdpView::parse(transport);
        if (!view) return wrong("a broken UDP header");
        packet.from.port = view->source();
        packet.to.port = view->destination();
        packet.content = UdpPacket{static_cast<std::uint32_t>(view->payload_length())};
        packet.payload.assign(view->payload_in_head().begin(), view->payload_in_head().end());
        return packet;
    }
    const auto view = wire::TcpView::parse(transport);
    if (!view) return wrong("a broken TCP header");
    auto options = read_options(view->options());
    if (!options) return wrong(options.error());
    packet.from.port = view->source();
    packet.to.port = view->destination();
    const auto length = static_cast<std::uint32_t>(view->payload_length());
    TcpPacket tcp{.flags = view->flags().bits, .first = view->sequence(), .last = view->sequence() + length, .length = length};
    if (view->flags().ack()) tcp.ack = view->acknowledgment();
    tcp.window = view->window();
    tcp.urgent = view->urgent();
    tcp.options = std::move(*options);
    packet.content = std::move(tcp);
    packet.payload.assign(view->payload_in_head().begin(), view->payload_in_head().end());
    return packet;
}

namespace {

struct IcmpKind {
    std::string_view type, code;
    std::uint8_t type4, code4, type6, code6;
};
// RFC 792, RFC 1122 3.2.2.1, RFC 4443. What IPv6 has not is sent there as its nearest relative.
constexpr IcmpKind kIcmpKinds[] = {
    {"unreachable", "net_unreachable", 3, 0, 1, 0},    {"unreachable", "host_unreachable", 3, 1, 1, 3},
    {"unreachable", "protocol_unreachable", 3, 2, 4, 1}, {"unreachable", "port_unreachable", 3, 3, 1, 4},
    {"unreachable", "frag_needed", 3, 4, 2, 0},        {"unreachable", "source_route_failed", 3, 5, 1, 5},
    {"unreachable", "net_prohibited", 3, 9, 1, 1},     {"unreachable", "host_prohibited", 3, 10, 1, 1},
    {"unreachable", "packet_filtered", 3, 13, 1, 1},   {"packet_too_big", "", 3, 4, 2, 0},
    {"time_exceeded", "exceeded_in_transit", 11, 0, 3, 0}, {"time_exceeded", "", 11, 0, 3, 0},
    {"parameter_problem", "", 12, 0, 4, 0},            {"source_quench", "", 4, 0, 0, 0}};

}  // namespace

std::expected<Bytes, std::string> encode_icmp(const IcmpPacket& message, std::span<const std::byte> offending,
                                              const Address& router, const Address& to) {
    const auto* kind = std::ranges::find_if(kIcmpKinds, [&](const IcmpKind& known) {
        return known.type == message.type && known.code == message.code;
    });
    if (kind == std::end(kIcmpKinds)) return std::unexpected("no ICMP message is called " + message.type + " " + message.code);
    const bool v4 = to.is_v4();
    if (!v4 && kind->type6 == 0) return std::unexpected("IPv6 has no " + message.type);
    // IPv4: header and 8 bytes are enough, and the least that must be understood; IPv6: as much as fits 1280 bytes.
    const auto quoted = offending.first(std::min<std::size_t>(offending.size(), v4 ? wire::kIpv4HeaderLength + 8 : 1232));
    const std::size_t ip = ip_header(to), length = wire::kIcmpHeaderLength + quoted.size();
    Bytes bytes(ip + length);
    put_ip(bytes, router, to, v4 ? wire::IpProtocol::kIcmp : wire::IpProtocol::kIcmpv6, 0, 64, length);
    wire::emit(wire::IcmpHeader{.type = v4 ? kind->type4 : kind->type6, .code = v4 ? kind->code4 : kind->code6,
                                .rest = message.mtu.value_or(0)},
               quoted, router, to, std::span(bytes).subspan(ip));
    return bytes;
}

std::string describe(const std::vector<Option>& options) {
    const auto hex = [](const std::vector<std::uint8_t>& bytes) {
        std::string text;
        char two[3];
        for (const std::uint8_t byte : bytes) {
            std::snprintf(two, sizeof two, "%02x", byte);
            text += two;
        }
        return text;
    };
    std::string text;
    for (const Option& option : options) {
        text += text.empty() ? "<" : ",";
        text += std::visit(
            Overloaded{[](const NoOperation&) { return std::string("nop"); },
                       [](const EndOfOptions&) { return std::string("eol"); },
                       [](const Mss& mss) { return "mss " + std::to_string(mss.bytes); },
                       [](const WindowScale& scale) { return "wscale " + std::to_string(scale.shift); },
                       [](const SackPermitted&) { return std::string("sackOK"); },
                       [](const Timestamps& stamps) {
                           return "TS val " + std::to_string(stamps.value) + " ecr " + std::to_string(stamps.echo);
                       },
                       [](const Sack& sack) {
                           std::string blocks = "sack";
                           for (const auto& [left, right] : sack.blocks)
                               blocks += " " + std::to_string(left) + ":" + std::to_string(right);
                           return blocks;
                       },
                       [&](const FastOpen& fast_open) {
                           return "FO" + (fast_open.captured ? " TFO_COOKIE"
                                          : fast_open.cookie.empty() ? "" : " " + hex(fast_open.cookie));
                       },
                       [&](const OtherOption& other) {
                           return "kind " + std::to_string(other.kind) + " " + hex(other.data);
                       }},
            option);
    }
    return text.empty() ? "" : text + ">";
}

std::string describe_flags(std::uint8_t flags) {
    constexpr std::pair<std::uint8_t, char> kLetters[] = {{0x02, 'S'}, {0x01, 'F'}, {0x04, 'R'}, {0x08, 'P'},
                                                          {0x20, 'U'}, {0x40, 'E'}, {0x80, 'W'}, {0x10, '.'}};
    std::string text;
    for (const auto& [bit, letter] : kLetters)
        if ((flags & bit) != 0) text += letter;
    return text.empty() ? "-" : text;
}

}  // namespace culvert::script
