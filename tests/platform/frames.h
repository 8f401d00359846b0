// Frames written and read by hand, so that these tests need nothing of daemon/wire but addresses.
#pragma once

#include <cstring>
#include <span>
#include <vector>

#include "daemon/device/device.h"
#include "daemon/wire/address.h"
#include "tests/platform/veth_pair.h"

namespace culvert::platform {

inline constexpr std::size_t kEthernet = 14;
inline constexpr std::size_t kIpv4 = 20;
inline constexpr std::size_t kIpv6 = 40;
inline constexpr std::size_t kUdp = 8;
inline constexpr std::size_t kTcp = 20;

inline void put16(Bytes& bytes, std::size_t at, std::size_t value) {
    bytes[at] = static_cast<std::byte>(value >> 8 & 0xff);
    bytes[at + 1] = static_cast<std::byte>(value & 0xff);
}

inline std::size_t get16(const Bytes& bytes, std::size_t at) {
    return std::to_integer<std::size_t>(bytes[at]) << 8 | std::to_integer<std::size_t>(bytes[at + 1]);
}

/// The sum of 16-bit words [RFC1071]; a last odd byte counts as a high one.
inline std::uint32_t ones_sum(std::span<const std::byte> bytes, std::uint32_t sum = 0) {
    for (std::size_t i = 0; i < bytes.size(); ++i)
        sum += std::to_integer<std::uint32_t>(bytes[i]) << (i % 2 == 0 ? 8 : 0);
    while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

/// Ethernet and IPv4 headers around a message.
inline Bytes ipv4_frame(const MacAddress& from_mac, const MacAddress& to_mac, const Address& from, const Address& to,
                        std::uint8_t protocol, std::span<const std::byte> message) {
    Bytes frame(kEthernet + kIpv4);
    std::memcpy(frame.data(), to_mac.bytes.data(), 6);
    std::memcpy(frame.data() + 6, from_mac.bytes.data(), 6);
    put16(frame, 12, 0x0800);
    put16(frame, 14, 0x4500);
    put16(frame, 16, kIpv4 + message.size());
    put16(frame, 20, 0x4000);
    put16(frame, 22, std::size_t{0x4000} | protocol);
    std::memcpy(frame.data() + 26, from.wire_bytes().data(), 4);
    std::memcpy(frame.data() + 30, to.wire_bytes().data(), 4);
    put16(frame, 24, ~ones_sum(std::span(frame).subspan(kEthernet)) & 0xffff);
    frame.insert(frame.end(), message.begin(), message.end());
    return frame;
}

/// The sum of an IPv4 frame's TCP or UDP message and its pseudo-header: 0xffff when its checksum is right.
inline std::uint32_t transport_sum(const Bytes& frame) {
    const auto message = std::span(frame).subspan(kEthernet + kIpv4);
    const auto rest = static_cast<std::uint32_t>(message.size()) + std::to_integer<std::uint32_t>(frame[kEthernet + 9]);
    return ones_sum(message, ones_sum(std::span(frame).subspan(kEthernet + 12, 8), rest));
}

/// A TCP segment (PSH, ACK) whose checksum field holds the pseudo-header's sum alone, as one that the device shall cut.
inline Bytes tcp_frame(const MacAddress& from_mac, const MacAddress& to_mac, const Endpoint& from, const Endpoint& to,
                       std::uint32_t sequence, std::span<const std::byte> payload) {
    Bytes message(kTcp);
    put16(message, 0, from.port);
    put16(message, 2, to.port);
    put16(message, 4, sequence >> 16);
    put16(message, 6, sequence);
    put16(message, 12, 0x5018);
    put16(message, 14, 0xffff);
    message.insert(message.end(), payload.begin(), payload.end());
    Bytes frame = ipv4_frame(from_mac, to_mac, from.address, to.address, 6, message);
    put16(frame, kEthernet + kIpv4 + 16,
          ones_sum(std::span(frame).subspan(kEthernet + 12, 8), static_cast<std::uint32_t>(message.size()) + 6));
    return frame;
}
inline std::uint32_t tcp_sequence(const Bytes& frame) {
    return static_cast<std::uint32_t>(get16(frame, kEthernet + kIpv4 + 4) << 16 | get16(frame, kEthernet + kIpv4 + 6));
}

/// Ethernet, IPv4 and UDP (without checksum) around the payload.
inline Bytes udp_frame(const MacAddress& from_mac, const MacAddress& to_mac, const Endpoint& from, const Endpoint& to,
                       std::span<const std::byte> payload) {
    Bytes message(kUdp);
    put16(message, 0, from.port);
    put16(message, 2, to.port);
    put16(message, 4, kUdp + payload.size());
    message.insert(message.end(), payload.begin(), payload.end());
    return ipv4_frame(from_mac, to_mac, from.address, to.address, 17, message);
}

inline Bytes bytes_of(const RxPacket& packet) {
    Bytes bytes(packet.head.begin(), packet.head.end());
    for (const auto fragment : packet.rest) bytes.insert(bytes.end(), fragment.begin(), fragment.end());
    return bytes;
}

inline bool queue(TxQueue& tx, std::span<const std::byte> bytes) {
    TxPacket packet;
    if (!tx.reserve(static_cast<std::uint32_t>(bytes.size()), packet)) return false;
    for (std::uint32_t i = 0; i < packet.count; ++i) {
        std::memcpy(packet.fragments[i].data(), bytes.data(), packet.fragments[i].size());
        bytes = bytes.subspan(packet.fragments[i].size());
    }
    tx.commit(packet);
    return true;
}

inline Bytes pattern(std::size_t size, unsigned seed) {
    Bytes bytes(size);
    for (std::size_t i = 0; i < size; ++i)
        bytes[i] = static_cast<std::byte>((i * 31 + i / 256 * 7 + seed * 131) & 0xff);
    return bytes;
}

}  // namespace culvert::platform
