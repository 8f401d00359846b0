// Internet Protocol version 4, RFC 791.
//
//    0               1               2               3
//   |version| ihl   | traffic class | total length                  |
//   | identification                |  |D|M| fragment offset        |
//   | time to live  | protocol      | header checksum               |
//   | source                                                        |
//   | destination                                                   |
//   | options (0-40 bytes)                                          |
//
// A view is parsed from the first fragment of a packet; the payload may go beyond it. What follows the total length is
// padding of the link and belongs to nobody.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>

#include "daemon/base/drop.h"
#include "daemon/wire/address.h"
#include "daemon/wire/bytes.h"
#include "daemon/wire/checksum.h"
#include "daemon/wire/ip_protocol.h"

namespace culvert::wire {

inline constexpr std::size_t kIpv4HeaderLength = 20;  // what we send: no options

// [RFC9293 3.9.2.1 MUST-51 .. 53, SHLD-24 left out] source routes are refused and never sent [RFC7126 4.3, 4.4]
// [RFC9293 3.9.2.1 MAY-10, MAY-11 left out] what we send carries no options: routers drop or delay it [RFC7126 3]
// [RFC1122 3.2.1.8 source-route, completed-route, return-route, one-route left out] the same
// [RFC1122 3.3.5 source-routes left out] the same
// [RFC1122 3.2.1.8 send, receive left out] as above: IP_OPTIONS of a datagram socket leaves it to the kernel
// [RFC1122 4.1.3.2 options-up, options-down left out] the same
inline constexpr std::uint8_t kLooseSourceRoute = 131;
inline constexpr std::uint8_t kStrictSourceRoute = 137;

/// kNone if the option list is one we accept (and then ignore): well-formed, no source route.
/// [RFC7126 4.3, 4.4] source-routed packets are dropped.
/// `offset`: of the option that was refused.
Drop check_ipv4_options(std::span<const std::byte> options, std::size_t* offset = nullptr);
/// [RFC2113] True if the options ask routers to look at the packet.
bool has_router_alert(std::span<const std::byte> options);

class Ipv4View {
public:
    /// `head` starts at the IP header; `available` counts the bytes from there to the end of the packet.
    /// Accepts iff the header lies in `head`, its checksum is right, and all of the packet is there.
    static std::expected<Ipv4View, Drop> parse(std::span<const std::byte> head, std::size_t available) {
        if (head.size() < kIpv4HeaderLength) return std::unexpected(Drop::kIpv4Truncated);
        const std::uint8_t first = load_8(head.data());
        const std::size_t header_length = std::size_t{first & 0x0fu} * 4;
        // [RFC1122 3.2.1.1 version] a version other than 4 is silently discarded
        if ((first >> 4) != 4 || header_length < kIpv4HeaderLength) return std::unexpected(Drop::kIpv4Version);
        const std::size_t total_length = load_be16(head.data() + 2);
        if (head.size() < header_length || total_length < header_length || total_length > available)
            return std::unexpected(Drop::kIpv4Truncated);
        // [RFC1122 3.2.1.2 checksum] a host MUST verify the header checksum
        PartialSum sum = sum_fixed<kIpv4HeaderLength>(head.data());
        const auto options = head.subspan(kIpv4HeaderLength, header_length - kIpv4HeaderLength);
        if (!options.empty()) [[unlikely]]
            sum += sum_bytes(options);
        if (fold(sum) != 0xffff) return std::unexpected(Drop::kIpv4Checksum);
        if (!options.empty()) [[unlikely]] {
            const Drop drop = check_ipv4_options(options);
            if (drop != Drop::kNone) return std::unexpected(drop);
        }
        return Ipv4View(head.first(std::min(head.size(), total_length)));
    }
    static std::expected<Ipv4View, Drop> parse(std::span<const std::byte> packet) {
        return parse(packet, packet.size());
    }

    std::size_t header_length() const { return std::size_t{load_8(at(0)) & 0x0fu} * 4; }
    std::size_t total_length() const { return load_be16(at(2)); }
    std::size_t payload_length() const { return total_length() - header_length(); }
    /// The payload as far as it lies in `head`, without padding.
    std::span<const std::byte> payload_in_head() const { return head_.subspan(header_length()); }

    std::span<const std::byte> options() const { return head_.subspan(kIpv4HeaderLength, header_length() - kIpv4HeaderLength); }
    bool router_alert() const { return has_router_alert(options()); }
    std::uint8_t traffic_class() const { return load_8(at(1)); }
    Ecn ecn() const { return static_cast<Ecn>(traffic_class() & 3); }
    std::uint16_t identification() const { return load_be16(at(4)); }
    bool dont_fragment() const { return (load_be16(at(6)) & 0x4000) != 0; }
    bool more_fragments() const { return (load_be16(at(6)) & 0x2000) != 0; }
    /// In bytes.
    std::size_t fragment_offset() const { return std::size_t{load_be16(at(6)) & 0x1fffu} * 8; }
    bool is_fragment() const { return (load_be16(at(6)) & 0x3fff) != 0; }
    std::uint8_t hop_limit() const { return load_8(at(8)); }
    IpProtocol protocol() const { return static_cast<IpProtocol>(load_8(at(9))); }
    Address source() const { return Address::from_v4(std::span<const std::byte, 4>(at(12), 4)); }
    Address destination() const { return Address::from_v4(std::span<const std::byte, 4>(at(16), 4)); }

private:
    explicit Ipv4View(std::span<const std::byte> head) : head_(head) {}
    const std::byte* at(std::size_t offset) const { return head_.data() + offset; }
    std::span<const std::byte> head_;
};

struct Ipv4Header {
    Address source;
    Address destination;
    IpProtocol protocol = IpProtocol::kTcp;
    std::uint8_t hop_limit = 64;
    std::uint8_t traffic_class = 0;
    std::uint16_t identification = 0;  // may stay zero for atomic datagrams [RFC6864 4.1]
    bool dont_fragment = true;
    bool more_fragments = false;
    std::uint16_t fragment_offset = 0;  // in bytes, a multiple of 8

    friend bool operator==(const Ipv4Header&, const Ipv4Header&) = default;
};

/// Writes kIpv4HeaderLength bytes, checksum included. Requires: room; IPv4 addresses; the total fits 65535.
inline void emit(const Ipv4Header& header, std::size_t payload_length, std::span<std::byte> out) {
    DCHECK(out.size() >= kIpv4HeaderLength && payload_length <= 0xffff - kIpv4HeaderLength);
    DCHECK(header.source.is_v4() && header.destination.is_v4() && header.fragment_offset % 8 == 0);
    const auto total_length = static_cast<std::uint16_t>(kIpv4HeaderLength + payload_length);
    const auto fragment = static_cast<std::uint16_t>((header.dont_fragment ? 0x4000 : 0) |
                                                     (header.more_fragments ? 0x2000 : 0) | header.fragment_offset / 8);
    std::uint32_t source, destination;
    std::memcpy(&source, header.source.bytes().data() + 12, 4);
    std::memcpy(&destination, header.destination.bytes().data() + 12, 4);
    // Summed from the values: reading back what has just been written in smaller pieces would wait for the store buffer.
    const std::uint32_t words = 0x4500u + header.traffic_class + total_length + header.identification + fragment +
                                (std::uint32_t{header.hop_limit} << 8) + static_cast<std::uint8_t>(header.protocol);
    PartialSum sum(swap_be32(words));
    sum += PartialSum(source);
    sum += PartialSum(destination);
    std::byte* to = out.data();
    store_8(to, 0x45);
    store_8(to + 1, header.traffic_class);
    store_be16(to + 2, total_length);
    store_be16(to + 4, header.identification);
    store_be16(to + 6, fragment);
    store_8(to + 8, header.hop_limit);
    store_8(to + 9, static_cast<std::uint8_t>(header.protocol));
    store_be16(to + 10, checksum(sum));
    std::memcpy(to + 12, &source, 4);
    std::memcpy(to + 16, &destination, 4);
}

}  // namespace culvert::wire
