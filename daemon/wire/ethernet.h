// Ethernet II.
//
//   0                 6                 12       14
//   | destination     | source          | type   | payload ...
//
// VLAN tags are not looked into: a tagged frame has EtherType 0x8100, which the stack refuses, so that traffic of
// another VLAN can never be taken for ours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <span>

#include "daemon/base/drop.h"
#include "daemon/wire/address.h"
#include "daemon/wire/bytes.h"

namespace culvert::wire {

enum class EtherType : std::uint16_t {
    kIpv4 = 0x0800,
    kArp = 0x0806,
    kVlan = 0x8100,
    kIpv6 = 0x86dd,
};

inline constexpr std::size_t kEthernetHeaderLength = 14;
inline constexpr MacAddress kBroadcastMac{{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}};

inline MacAddress load_mac(const std::byte* from) {
    MacAddress mac;
    std::memcpy(mac.bytes.data(), from, 6);
    return mac;
}
inline void store_mac(std::byte* to, const MacAddress& mac) { std::memcpy(to, mac.bytes.data(), 6); }

class EthernetView {
public:
    /// `head` is the frame, or its first fragment.
    static std::expected<EthernetView, Drop> parse(std::span<const std::byte> head) {
        if (head.size() < kEthernetHeaderLength) return std::unexpected(Drop::kEthernetTruncated);
        return EthernetView(head);
    }

    MacAddress destination() const { return load_mac(head_.data()); }
    MacAddress source() const { return load_mac(head_.data() + 6); }
    EtherType ether_type() const { return static_cast<EtherType>(load_be16(head_.data() + 12)); }
    static constexpr std::size_t header_length() { return kEthernetHeaderLength; }
    /// The payload as far as it lies in `head`, with any padding.
    std::span<const std::byte> payload_in_head() const { return head_.subspan(kEthernetHeaderLength); }

private:
    explicit EthernetView(std::span<const std::byte> head) : head_(head) {}
    std::span<const std::byte> head_;
};

struct EthernetHeader {
    MacAddress destination;
    MacAddress source;
    EtherType ether_type = EtherType::kIpv4;

    friend bool operator==(const EthernetHeader&, const EthernetHeader&) = default;
};

/// Requires: out.size() >= kEthernetHeaderLength.
inline void emit(const EthernetHeader& header, std::span<std::byte> out) {
    DCHECK(out.size() >= kEthernetHeaderLength);
    store_mac(out.data(), header.destination);
    store_mac(out.data() + 6, header.source);
    store_be16(out.data() + 12, static_cast<std::uint16_t>(header.ether_type));
}

}  // namespace culvert::wire
