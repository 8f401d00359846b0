// Packets for device tests: bytes that differ, sent and received whole.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "daemon/device/device.h"

namespace culvert::device {

using Bytes = std::vector<std::byte>;

/// `size` bytes that depend on `seed` and on their position.
inline Bytes pattern(std::size_t size, unsigned seed) {
    Bytes bytes(size);
    for (std::size_t i = 0; i < size; ++i)
        bytes[i] = static_cast<std::byte>((i * 31 + i / 256 * 7 + seed * 131) & 0xff);
    return bytes;
}

inline Bytes bytes_of(const RxPacket& packet) {
    Bytes bytes(packet.head.begin(), packet.head.end());
    for (const auto fragment : packet.rest) bytes.insert(bytes.end(), fragment.begin(), fragment.end());
    return bytes;
}

/// False: no room.
inline bool queue(TxQueue& tx, std::span<const std::byte> bytes) {
    TxPacket packet;
    if (!tx.reserve(static_cast<std::uint32_t>(bytes.size()), packet)) return false;
    auto from = bytes.begin();
    for (std::uint32_t i = 0; i < packet.count; ++i) {
        const auto size = static_cast<std::ptrdiff_t>(packet.fragments[i].size());
        std::copy(from, from + size, packet.fragments[i].begin());
        from += size;
    }
    tx.commit(packet);
    return true;
}

/// Everything that the device has now.
inline std::vector<Bytes> drain(Device& device) {
    std::vector<Bytes> result;
    RxPacket burst[16];
    while (const std::size_t count = device.receive(burst))
        for (const RxPacket& packet : std::span(burst).first(count)) result.push_back(bytes_of(packet));
    return result;
}

inline std::uint64_t statistic(const Device& device, const std::string& name) {
    for (const Statistic& statistic : device.statistics())
        if (statistic.name == name) return statistic.value;
    return UINT64_MAX;
}

}  // namespace culvert::device
