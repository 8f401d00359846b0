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

inline void put16(Bytes& bytes, std::size_t at, std::size_t value) {
    bytes[at] = static_cast<std::byte>(value >> 8 & 0xff);
    bytes[at + 1] = static_cast<std::byte>(value & 0xff);
}

/// Ethernet, IPv4 and UDP (without checksum) around the payload.
inline Bytes udp_frame(const MacAddress& from_mac, const MacAddress& to_mac, const Endpoint& from, const Endpoint& to,
                       std::span<const std::byte> payload) {
    Bytes frame(kEthernet + kIpv4 + kUdp);
    std::memcpy(frame.data(), to_mac.bytes.data(), 6);
    std::memcpy(frame.data() + 6, from_mac.bytes.data(), 6);
    put16(frame, 12, 0x0800);
    put16(frame, 14, 0x4500);
    put16(frame, 16, kIpv4 + kUdp + payload.size());
    put16(frame, 20, 0x4000);
    put16(frame, 22, 0x4011);
    std::memcpy(frame.data() + 26, from.address.wire_bytes().data(), 4);
    std::memcpy(frame.data() + 30, to.address.wire_bytes().data(), 4);
    std::uint32_t sum = 0;
    for (std::size_t i = 14; i < 34; i += 2)
        sum += std::to_integer<std::uint32_t>(frame[i]) << 8 | std::to_integer<std::uint32_t>(frame[i + 1]);
    while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
    put16(frame, 24, ~sum & 0xffff);
    put16(frame, 34, from.port);
    put16(frame, 36, to.port);
    put16(frame, 38, kUdp + payload.size());
    frame.insert(frame.end(), payload.begin(), payload.end());
    return frame;
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
