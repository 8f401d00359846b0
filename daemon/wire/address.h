// Addresses, family-neutral: inner code never asks which IP it is speaking.
//
// An Address is always 16 bytes in network order; IPv4 is held in its IPv4-mapped form (RFC 4291 2.5.5.2,
// ::ffff:a.b.c.d), so comparing and hashing need no branch. A mapped address never travels in an IPv6 header
// (RFC 4038 / 6890): parsing refuses it, so the two families cannot be confused.
#pragma once

#include <array>
#include <bit>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace culvert {

enum class Family : std::uint8_t { kIpv4 = 4, kIpv6 = 6 };

/// A TCP or UDP port in host order.
using Port = std::uint16_t;

struct MacAddress {
    std::array<std::uint8_t, 6> bytes{};

    bool is_multicast() const { return (bytes[0] & 1) != 0; }  // broadcast included
    std::string to_string() const;
    friend bool operator==(const MacAddress&, const MacAddress&) = default;
};

class Address {
public:
    /// "::", the unspecified IPv6 address. See any(Family) for 0.0.0.0.
    constexpr Address() = default;
    static constexpr Address v4(std::uint8_t a, std::uint8_t b, std::uint8_t c, std::uint8_t d) {
        return Address(0, 0xffff'0000'0000 | std::uint64_t{a} << 24 | std::uint64_t{b} << 16 | std::uint64_t{c} << 8 | d);
    }
    /// From 4 bytes in network order.
    static Address from_v4(std::span<const std::byte, 4> bytes) {
        std::uint32_t number;
        std::memcpy(&number, bytes.data(), sizeof number);
        if constexpr (std::endian::native == std::endian::little) number = std::byteswap(number);
        return Address(0, 0xffff'0000'0000 | number);
    }
    /// From 16 bytes in network order, as they stand.
    static Address from_v6(std::span<const std::byte, 16> bytes) {
        Address address;
        std::memcpy(&address.words_, bytes.data(), 16);
        return address;
    }
    static constexpr Address any(Family family) { return family == Family::kIpv4 ? v4(0, 0, 0, 0) : Address(); }
    /// "10.0.0.1" or "fe80::1"; nothing else.
    static std::optional<Address> parse(std::string_view text);

    constexpr bool is_v4() const {
        return words_[0] == 0 && low() >> 32 == 0xffff;
    }
    constexpr Family family() const { return is_v4() ? Family::kIpv4 : Family::kIpv6; }
    /// 0.0.0.0 or ::
    constexpr bool is_unspecified() const { return *this == any(Family::kIpv6) || *this == any(Family::kIpv4); }
    /// 127/8 or ::1
    constexpr bool is_loopback() const {
        return words_[0] == 0 && (low() >> 24 == 0xffff7f || low() == 1);
    }
    /// 224/4 or ff00::/8
    constexpr bool is_multicast() const { return is_v4() ? low() >> 28 == 0xffffe : high() >> 56 == 0xff; }
    bool is_link_local() const;  // 169.254/16 or fe80::/10
    /// 255.255.255.255
    constexpr bool is_broadcast() const { return *this == v4(255, 255, 255, 255); }

    /// All 16 bytes in network order (IPv4 mapped).
    std::span<const std::uint8_t, 16> bytes() const {
        return std::span<const std::uint8_t, 16>(reinterpret_cast<const std::uint8_t*>(&words_), 16);
    }
    /// The bytes as they stand in an IP header: 4 or 16.
    std::span<const std::uint8_t> wire_bytes() const {
        return std::span<const std::uint8_t>(bytes()).subspan(is_v4() ? 12 : 0);
    }
    /// True when the first `prefix_length` bits (0-32 for IPv4, 0-128 for IPv6) are those of `network`, same family.
    bool in(const Address& network, unsigned prefix_length) const;
    std::string to_string() const;

    // Asked several times a packet: two registers, no call of memcmp.
    friend constexpr bool operator==(const Address& a, const Address& b) {
        return ((a.words_[0] ^ b.words_[0]) | (a.words_[1] ^ b.words_[1])) == 0;
    }
    /// By bytes in network order.
    friend constexpr std::strong_ordering operator<=>(const Address& a, const Address& b) {
        return a.words_[0] != b.words_[0] ? a.high() <=> b.high() : a.low() <=> b.low();
    }

private:
    constexpr Address(std::uint64_t high, std::uint64_t low) : words_{number(high), number(low)} {}
    /// Between a number and the word that holds it in network order: the same both ways.
    static constexpr std::uint64_t number(std::uint64_t word) {
        return std::endian::native == std::endian::little ? std::byteswap(word) : word;
    }
    constexpr std::uint64_t high() const { return number(words_[0]); }
    constexpr std::uint64_t low() const { return number(words_[1]); }

    // Words rather than bytes, so that an address stays in two registers: made of bytes it is assembled in memory, and
    // reading it back in one piece waits until the pieces have left the store buffer.
    // Aligned like a port, so that an endpoint has no holes.
    using Word [[gnu::aligned(2)]] = std::uint64_t;
    Word words_[2] = {0, 0};
};
static_assert(sizeof(Address) == 16 && alignof(Address) == 2);

/// An address and a port: one end of a flow.
struct Endpoint {
    Address address;
    Port port = 0;

    /// "10.0.0.1:80", "[fe80::1]:80"
    std::string to_string() const;
    friend constexpr bool operator==(const Endpoint&, const Endpoint&) = default;
    friend constexpr auto operator<=>(const Endpoint&, const Endpoint&) = default;
};

}  // namespace culvert

template <>
struct std::hash<culvert::Address> {
    std::size_t operator()(const culvert::Address& address) const noexcept {
        std::uint64_t half[2];
        std::memcpy(half, address.bytes().data(), sizeof half);
        return (half[0] * 0x9e3779b97f4a7c15u) ^ (half[1] * 0xc2b2ae3d27d4eb4fu);
    }
};
