// Packets byte by byte, independent of daemon/wire: what steers must not be tested with the code it steers to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "daemon/wire/address.h"

namespace culvert::bpf_test {

class Bytes {
public:
    Bytes& u8(unsigned value) {
        bytes_.push_back(static_cast<std::byte>(value & 0xff));
        return *this;
    }
    Bytes& u16(unsigned value) { return u8(value >> 8).u8(value); }
    Bytes& u32(std::uint32_t value) { return u16(value >> 16).u16(value); }
    Bytes& zeros(std::size_t count) {
        bytes_.resize(bytes_.size() + count);
        return *this;
    }
    Bytes& address(const Address& address) {
        for (const std::uint8_t byte : address.wire_bytes()) u8(byte);
        return *this;
    }
    Bytes& add(const Bytes& other) {
        bytes_.insert(bytes_.end(), other.bytes_.begin(), other.bytes_.end());
        return *this;
    }
    std::size_t size() const { return bytes_.size(); }
    const std::byte* data() const { return bytes_.data(); }
    Bytes first(std::size_t size) const {
        Bytes result = *this;
        result.bytes_.resize(size);
        return result;
    }

private:
    std::vector<std::byte> bytes_;
};

inline constexpr unsigned kTcp = 6;
inline constexpr unsigned kUdp = 17;
inline constexpr unsigned kIcmp = 1;
inline constexpr unsigned kIcmpv6 = 58;
inline constexpr unsigned kFragment = 44;

inline Bytes ethernet(unsigned type, const Bytes& payload) { return Bytes().zeros(12).u16(type).add(payload); }

/// `fragment`: flags and offset as on the wire. `options`: bytes of IPv4 options, a multiple of 4.
inline Bytes ipv4(const Address& from, const Address& to, unsigned protocol, const Bytes& payload,
                  unsigned fragment = 0, std::size_t options = 0) {
    const auto header = static_cast<unsigned>(20 + options);
    return Bytes()
        .u8(0x40 | header / 4)
        .u8(0)
        .u16(static_cast<unsigned>(header + payload.size()))
        .u16(1)
        .u16(fragment)
        .u8(64)
        .u8(protocol)
        .u16(0)
        .address(from)
        .address(to)
        .zeros(options)
        .add(payload);
}

inline Bytes ipv6(const Address& from, const Address& to, unsigned next, const Bytes& payload) {
    return Bytes()
        .u32(0x60000000)
        .u16(static_cast<unsigned>(payload.size()))
        .u8(next)
        .u8(64)
        .address(from)
        .address(to)
        .add(payload);
}

/// A hop-by-hop (0) or destination (60) options header of (1 + units) * 8 bytes.
inline Bytes extension(unsigned next, unsigned units, const Bytes& payload) {
    return Bytes().u8(next).u8(units).zeros(6 + units * 8).add(payload);
}
inline Bytes fragment6(unsigned next, unsigned offset_and_more, const Bytes& payload) {
    return Bytes().u8(next).u8(0).u16(offset_and_more).u32(7).add(payload);
}

/// The first 20 bytes of a TCP segment, or (size 8) of a UDP datagram.
inline Bytes l4(unsigned from, unsigned to, std::size_t size = 20) { return Bytes().u16(from).u16(to).zeros(size - 4); }

inline Bytes icmp(unsigned type, const Bytes& quoted) { return Bytes().u8(type).u8(0).u16(0).u32(0).add(quoted); }

}  // namespace culvert::bpf_test
