// Internet Protocol version 6, RFC 8200: the fixed header and the walk over extension headers.
//
//    0               1               2               3
//   |version| traffic class |          flow label                   |
//   | payload length                | next header   | hop limit     |
//   | source (16 bytes)                                             |
//   | destination (16 bytes)                                        |
//   | hop-by-hop? routing? fragment? destination options? | upper layer ...
//
// The view hides the chain: `protocol`, `header_length` and `payload_length` speak of the upper layer (of the bytes of
// the fragment, if the packet is one). Accepted and skipped: hop-by-hop options, destination options, routing headers
// with no segments left. Refused: everything else, by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>

#include "daemon/base/drop.h"
#include "daemon/wire/address.h"
#include "daemon/wire/bytes.h"
#include "daemon/wire/ip_protocol.h"

namespace culvert::wire {

inline constexpr std::size_t kIpv6HeaderLength = 40;
inline constexpr std::size_t kIpv6FragmentHeaderLength = 8;
inline constexpr int kMaxExtensionHeaders = 8;  // more than any honest sender uses

/// What to tell the sender of a packet whose extension headers were refused (ICMPv6 parameter problem).
struct Ipv6Problem {
    bool tell = false;
    bool even_group = false;    // also if the packet was sent to a group
    std::uint8_t code = 0;
    std::uint32_t pointer = 0;  // bytes from the IPv6 header to what was wrong
};
/// Looks again at the extension headers of a packet that Ipv6View has refused. Cold. `head` as for Ipv6View::parse.
Ipv6Problem find_ipv6_problem(std::span<const std::byte> head, std::size_t available);

class Ipv6View {
public:
    /// `head` starts at the IP header; `available` counts the bytes from there to the end of the packet.
    /// Accepts iff all headers before the upper layer lie in `head` and all of the packet is there.
    static std::expected<Ipv6View, Drop> parse(std::span<const std::byte> head, std::size_t available) {
        auto view = parse_fixed(head, available);
        if (view && is_extension(view->protocol_)) [[unlikely]] {
            const Drop drop = view->walk_extensions(nullptr);
            if (drop != Drop::kNone) return std::unexpected(drop);
        }
        return view;
    }
    static std::expected<Ipv6View, Drop> parse(std::span<const std::byte> packet) {
        return parse(packet, packet.size());
    }
    /// The fixed header alone, as a router reads it: protocol() is its next header field, whatever that is.
    static std::expected<Ipv6View, Drop> parse_fixed(std::span<const std::byte> head, std::size_t available) {
        if (head.size() < kIpv6HeaderLength) return std::unexpected(Drop::kIpv6Truncated);
        if ((load_8(head.data()) >> 4) != 6) return std::unexpected(Drop::kIpv6Version);
        const std::size_t total_length = kIpv6HeaderLength + load_be16(head.data() + 4);
        if (total_length > available) return std::unexpected(Drop::kIpv6Truncated);
        Ipv6View view(head.first(head.size() < total_length ? head.size() : total_length));
        // address.h: the mapped form means IPv4 inside the stack, so it must not come in by this door
        if (view.source().is_v4() || view.destination().is_v4()) return std::unexpected(Drop::kIpv6MappedAddress);
        view.protocol_ = static_cast<IpProtocol>(load_8(head.data() + 6));
        return view;
    }

    /// The fixed header and the extension headers: where the upper layer starts.
    std::size_t header_length() const { return header_length_; }
    std::size_t total_length() const { return kIpv6HeaderLength + load_be16(at(4)); }
    std::size_t payload_length() const { return total_length() - header_length_; }
    /// The payload as far as it lies in `head`, without padding.
    std::span<const std::byte> payload_in_head() const { return head_.subspan(header_length_); }

    std::uint8_t traffic_class() const { return static_cast<std::uint8_t>(load_be16(at(0)) >> 4); }
    Ecn ecn() const { return static_cast<Ecn>(traffic_class() & 3); }
    std::uint32_t flow_label() const { return load_be32(at(0)) & 0xfffff; }
    std::uint8_t hop_limit() const { return load_8(at(7)); }
    /// The upper layer's.
    IpProtocol protocol() const { return protocol_; }
    Address source() const { return Address::from_v6(std::span<const std::byte, 16>(at(8), 16)); }
    Address destination() const { return Address::from_v6(std::span<const std::byte, 16>(at(24), 16)); }

    /// False for an atomic fragment, which is a whole packet [RFC6946].
    bool is_fragment() const { return fragment_ != 0; }
    /// In bytes.
    std::size_t fragment_offset() const { return fragment_ & 0xfff8; }
    bool more_fragments() const { return (fragment_ & 1) != 0; }
    std::uint32_t identification() const { return identification_; }
    /// Of a packet with a fragment header: where that stands, and what it says comes next.
    std::size_t fragment_header() const { return fragment_at_; }
    IpProtocol fragment_protocol() const { return static_cast<IpProtocol>(load_8(at(fragment_at_))); }
    /// Where the number stands that protocol() is.
    std::uint32_t protocol_field() const { return protocol_field_; }
    /// [RFC2711] the hop-by-hop option that makes routers look.
    bool router_alert() const { return router_alert_; }

private:
    explicit Ipv6View(std::span<const std::byte> head) : head_(head) {}
    static bool is_extension(IpProtocol protocol) {
        return protocol == IpProtocol::kHopByHop || protocol == IpProtocol::kRouting ||
               protocol == IpProtocol::kFragment || protocol == IpProtocol::kDestinationOptions;
    }
    friend Ipv6Problem find_ipv6_problem(std::span<const std::byte> head, std::size_t available);
    Drop walk_extensions(Ipv6Problem* problem);
    Drop walk_options(std::size_t begin, std::size_t end, Ipv6Problem* problem);
    const std::byte* at(std::size_t offset) const { return head_.data() + offset; }

    std::span<const std::byte> head_;
    std::uint32_t identification_ = 0;  // of the fragment header
    std::uint16_t header_length_ = kIpv6HeaderLength;
    std::uint16_t fragment_ = 0;     // offset and M flag as on the wire
    std::uint16_t fragment_at_ = 0;  // of the fragment header; 0: there is none
    std::uint16_t protocol_field_ = 6;
    bool router_alert_ = false;
    IpProtocol protocol_ = IpProtocol::kNoNextHeader;
};

struct Ipv6Header {
    Address source;
    Address destination;
    IpProtocol protocol = IpProtocol::kTcp;
    std::uint8_t hop_limit = 64;
    std::uint8_t traffic_class = 0;
    std::uint32_t flow_label = 0;  // 20 bits

    friend bool operator==(const Ipv6Header&, const Ipv6Header&) = default;
};

/// Writes kIpv6HeaderLength bytes. Requires: room; IPv6 addresses; the payload fits 65535.
inline void emit(const Ipv6Header& header, std::size_t payload_length, std::span<std::byte> out) {
    DCHECK(out.size() >= kIpv6HeaderLength && payload_length <= 0xffff && header.flow_label <= 0xfffff);
    DCHECK(!header.source.is_v4() && !header.destination.is_v4());
    std::byte* to = out.data();
    store_be32(to, 0x60000000u | std::uint32_t{header.traffic_class} << 20 | header.flow_label);
    store_be16(to + 4, static_cast<std::uint16_t>(payload_length));
    store_8(to + 6, static_cast<std::uint8_t>(header.protocol));
    store_8(to + 7, header.hop_limit);
    std::memcpy(to + 8, header.source.bytes().data(), 16);
    std::memcpy(to + 24, header.destination.bytes().data(), 16);
}

}  // namespace culvert::wire
