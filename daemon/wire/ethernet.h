// Ethernet II.
//
//   0                 6                 12       14
//   | destination     | source          | type   | payload ...
//
// One VLAN tag (IEEE 802.1Q, or 802.1ad's service tag) may stand between source and type:
//
//   0                 6                 12              14                16       18
//   | destination     | source          | 8100 or 88a8 | prio D VLAN id | type   | payload ...
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
    kServiceVlan = 0x88a8,
};

inline constexpr std::size_t kEthernetHeaderLength = 14;
inline constexpr std::size_t kVlanTagLength = 4;
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
    bool is_tagged() const { return ether_type() == EtherType::kVlan || ether_type() == EtherType::kServiceVlan; }
    /// The payload as far as it lies in `head`, with any padding.
    std::span<const std::byte> payload_in_head() const { return head_.subspan(kEthernetHeaderLength); }

private:
    explicit EthernetView(std::span<const std::byte> head) : head_(head) {}
    std::span<const std::byte> head_;
};

/// The tag and the type behind it of a frame for which EthernetView::is_tagged().
class VlanView {
public:
    static std::expected<VlanView, Drop> parse(std::span<const std::byte> head) {
        if (head.size() < kEthernetHeaderLength + kVlanTagLength) return std::unexpected(Drop::kEthernetTruncated);
        return VlanView(head);
    }
    /// 1 to 4094; 0 is a tag that only carries a priority: the frame belongs to no VLAN.
    std::uint16_t id() const { return load_be16(head_.data() + 14) & 0xfff; }
    EtherType ether_type() const { return static_cast<EtherType>(load_be16(head_.data() + 16)); }

private:
    explicit VlanView(std::span<const std::byte> head) : head_(head) {}
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

/// The same with a tag: kEthernetHeaderLength + kVlanTagLength bytes. `tag` is the EtherType that announces it.
inline void emit_tagged(const EthernetHeader& header, EtherType tag, std::uint16_t id, std::span<std::byte> out) {
    DCHECK(out.size() >= kEthernetHeaderLength + kVlanTagLength && id < 4095);
    store_mac(out.data(), header.destination);
    store_mac(out.data() + 6, header.source);
    store_be16(out.data() + 12, static_cast<std::uint16_t>(tag));
    store_be16(out.data() + 14, id);
    store_be16(out.data() + 16, static_cast<std::uint16_t>(header.ether_type));
}

}  // namespace culvert::wire
