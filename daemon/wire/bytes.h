// The only byte-order code in the daemon: numbers to and from network order, at any alignment.
//
// The pointer forms are for views, which proved their bounds once; the span forms check them in debug builds.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "shm/base/check.h"

namespace culvert::wire {

/// Host order to network order and back; a no-op on a big-endian machine.
constexpr std::uint16_t swap_be16(std::uint16_t value) {
    return std::endian::native == std::endian::little ? std::byteswap(value) : value;
}
constexpr std::uint32_t swap_be32(std::uint32_t value) {
    return std::endian::native == std::endian::little ? std::byteswap(value) : value;
}

inline std::uint8_t load_8(const std::byte* from) { return std::to_integer<std::uint8_t>(*from); }

inline std::uint16_t load_be16(const std::byte* from) {
    std::uint16_t value;
    std::memcpy(&value, from, sizeof value);
    return swap_be16(value);
}

inline std::uint32_t load_be32(const std::byte* from) {
    std::uint32_t value;
    std::memcpy(&value, from, sizeof value);
    return swap_be32(value);
}

inline void store_8(std::byte* to, std::uint8_t value) { *to = std::byte{value}; }

inline void store_be16(std::byte* to, std::uint16_t value) {
    value = swap_be16(value);
    std::memcpy(to, &value, sizeof value);
}

inline void store_be32(std::byte* to, std::uint32_t value) {
    value = swap_be32(value);
    std::memcpy(to, &value, sizeof value);
}

/// Requires: offset + size of the number <= bytes.size().
inline std::uint16_t load_be16(std::span<const std::byte> bytes, std::size_t offset) {
    DCHECK(offset + 2 <= bytes.size());
    return load_be16(bytes.data() + offset);
}
inline std::uint32_t load_be32(std::span<const std::byte> bytes, std::size_t offset) {
    DCHECK(offset + 4 <= bytes.size());
    return load_be32(bytes.data() + offset);
}
inline void store_be16(std::span<std::byte> bytes, std::size_t offset, std::uint16_t value) {
    DCHECK(offset + 2 <= bytes.size());
    store_be16(bytes.data() + offset, value);
}
inline void store_be32(std::span<std::byte> bytes, std::size_t offset, std::uint32_t value) {
    DCHECK(offset + 4 <= bytes.size());
    store_be32(bytes.data() + offset, value);
}

}  // namespace culvert::wire
