// Address Resolution Protocol for IPv4 over Ethernet, RFC 826.
//
//    0        2        4   5   6        8                14          18               24          28
//   | hw = 1 | 0x0800 | 6 | 4 | op     | sender MAC     | sender IP | target MAC     | target IP |
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>

#include "daemon/base/drop.h"
#include "daemon/wire/address.h"
#include "daemon/wire/bytes.h"
#include "daemon/wire/ethernet.h"

namespace culvert::wire {

inline constexpr std::size_t kArpLength = 28;

enum class ArpOperation : std::uint16_t { kRequest = 1, kReply = 2 };

class ArpView {
public:
    /// Accepts requests and replies for IPv4 over Ethernet; trailing padding is ignored.
    static std::expected<ArpView, Drop> parse(std::span<const std::byte> packet) {
        if (packet.size() < kArpLength) return std::unexpected(Drop::kArpMalformed);
        const std::byte* data = packet.data();
        if (load_be32(data) != 0x00010800 || load_be16(data + 4) != 0x0604) return std::unexpected(Drop::kArpMalformed);
        const std::uint16_t operation = load_be16(data + 6);
        if (operation != 1 && operation != 2) return std::unexpected(Drop::kArpMalformed);
        return ArpView(data);
    }

    ArpOperation operation() const { return static_cast<ArpOperation>(load_be16(data_ + 6)); }
    MacAddress sender_mac() const { return load_mac(data_ + 8); }
    Address sender() const { return Address::from_v4(std::span<const std::byte, 4>(data_ + 14, 4)); }
    MacAddress target_mac() const { return load_mac(data_ + 18); }
    Address target() const { return Address::from_v4(std::span<const std::byte, 4>(data_ + 24, 4)); }

private:
    explicit ArpView(const std::byte* data) : data_(data) {}
    const std::byte* data_;
};

struct ArpHeader {
    ArpOperation operation = ArpOperation::kRequest;
    MacAddress sender_mac;
    Address sender;
    MacAddress target_mac;
    Address target;

    friend bool operator==(const ArpHeader&, const ArpHeader&) = default;
};

/// Writes kArpLength bytes. Requires: room; IPv4 addresses.
inline void emit(const ArpHeader& header, std::span<std::byte> out) {
    DCHECK(out.size() >= kArpLength && header.sender.is_v4() && header.target.is_v4());
    std::byte* to = out.data();
    store_be32(to, 0x00010800);
    store_be16(to + 4, 0x0604);
    store_be16(to + 6, static_cast<std::uint16_t>(header.operation));
    store_mac(to + 8, header.sender_mac);
    std::memcpy(to + 14, header.sender.bytes().data() + 12, 4);
    store_mac(to + 18, header.target_mac);
    std::memcpy(to + 24, header.target.bytes().data() + 12, 4);
}

}  // namespace culvert::wire
