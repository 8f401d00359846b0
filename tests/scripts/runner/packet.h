// A packet as it travels: IP bytes in and out of values. The numbers are those on the wire; flow.h turns them into the
// script's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "daemon/wire/address.h"
#include "tests/scripts/runner/script.h"

namespace culvert::script {

using Bytes = std::vector<std::byte>;

/// A TCP segment or UDP datagram. `tcp.length` and `udp.length` are payload.size().
struct WirePacket {
    Endpoint from, to;
    std::uint8_t traffic_class = 0;
    std::uint8_t ttl = 64;
    bool dont_fragment = true;
    std::variant<TcpPacket, UdpPacket> content;
    Bytes payload;
};

/// A complete IP packet with correct checksums. Options stand as listed; fails if they are not a multiple of 4 bytes, or
/// more than 40.
std::expected<Bytes, std::string> encode(const WirePacket& packet);
/// Reads an IP packet, checksums verified. Fails with what is wrong with it; `ignorable` errors are those of packets that
/// are neither TCP nor UDP (MLD, router solicitations).
struct Undecodable {
    std::string why;
    bool ignorable = false;
};
std::expected<WirePacket, Undecodable> decode(std::span<const std::byte> ip_packet);

/// An ICMP or ICMPv6 error from `router` that quotes the front of `offending` (an IP packet).
std::expected<Bytes, std::string> encode_icmp(const IcmpPacket& message, std::span<const std::byte> offending,
                                              const Address& router, const Address& to);

/// "<mss 1460,nop,wscale 7>", or nothing.
std::string describe(const std::vector<Option>& options);
/// "S.", "P.", "-"
std::string describe_flags(std::uint8_t flags);

}  // namespace culvert::script
