// Helpers for tests of wire formats: byte strings from hex and from random numbers, and copies that end exactly where a
// view may look (so that AddressSanitizer sees a read too far).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "daemon/base/rng.h"

namespace culvert::wire {

using Bytes = std::vector<std::byte>;

/// "45 00 0014": spaces are ignored.
inline Bytes from_hex(std::string_view text) {
    Bytes bytes;
    int high = -1;
    for (const char c : text) {
        if (c == ' ') continue;
        const int digit = c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
        if (high < 0) {
            high = digit;
        } else {
            bytes.push_back(static_cast<std::byte>(high << 4 | digit));
            high = -1;
        }
    }
    return bytes;
}

inline Bytes random_bytes(Rng& rng, std::size_t length) {
    Bytes bytes(length);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng.next());
    return bytes;
}

/// The first `length` bytes in a buffer of exactly that size.
inline Bytes truncated(std::span<const std::byte> bytes, std::size_t length) {
    return Bytes(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length));
}

inline Bytes operator+(Bytes a, const Bytes& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

/// RFC 1071 as it is written, one 16-bit word after the other: the oracle. Not complemented.
inline std::uint16_t naive_sum(std::span<const std::byte> bytes) {
    std::uint32_t sum = 0;
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        const std::uint32_t byte = std::to_integer<std::uint32_t>(bytes[i]);
        sum += i % 2 == 0 ? byte << 8 : byte;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return static_cast<std::uint16_t>(sum);
}

}  // namespace culvert::wire
