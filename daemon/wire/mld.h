// Multicast Listener Discovery: version 1 (RFC 2710) and 2 (RFC 3810). IGMP's messages as ICMPv6.
//
//    0               1               2               3
//   | type 130-132  | code 0        | checksum                      |
//   | max response delay            | reserved                      |
//   | group (16 bytes)                                              |
//   | resv |S| QRV  | QQIC          | number of sources             |   queries of version 2 only
//   | sources ...
//
// Reports of version 2 (type 143): group_report.h. Every message has hop limit 1 and a router alert in a hop-by-hop header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>

#include "daemon/base/drop.h"
#include "daemon/base/instant.h"
#include "daemon/wire/address.h"
#include "daemon/wire/bytes.h"
#include "daemon/wire/group_report.h"

namespace culvert::wire {

inline constexpr std::size_t kMldLength = 24;
inline constexpr std::size_t kMldV2QueryLength = 28;

enum class MldType : std::uint8_t {
    kQuery = 130,
    kV1Report = 131,
    kDone = 132,
    kV2Report = 143,
};

class MldView {
public:
    /// `message` is the whole ICMPv6 message, its checksum verified; of type 130 to 132.
    static std::expected<MldView, Drop> parse(std::span<const std::byte> message) {
        if (message.size() < kMldLength) return std::unexpected(Drop::kGroupMessageMalformed);
        MldView view(message);
        if (view.group().is_v4()) return std::unexpected(Drop::kGroupMessageMalformed);
        if (view.type() == MldType::kQuery && message.size() > kMldLength) {
            // [RFC3810 8.1] a query of a length between the versions is silently ignored
            if (message.size() < kMldV2QueryLength ||
                message.size() < kMldV2QueryLength + std::size_t{load_be16(message.data() + 26)} * 16)
                return std::unexpected(Drop::kGroupMessageMalformed);
        }
        return view;
    }

    MldType type() const { return static_cast<MldType>(load_8(message_.data())); }
    Address group() const { return load_address(Family::kIpv6, message_.data() + 8); }

    // Of a query.
    unsigned version() const { return message_.size() >= kMldV2QueryLength ? 2 : 1; }
    Duration max_response() const {
        const std::uint16_t code = load_be16(message_.data() + 4);
        return std::chrono::milliseconds(version() == 1 ? code : decode_time16(code));
    }
    // Of version 2.
    bool suppresses() const { return (load_8(message_.data() + 24) & 0x08) != 0; }
    std::uint8_t robustness() const { return load_8(message_.data() + 24) & 0x07; }
    std::chrono::seconds interval() const { return std::chrono::seconds(decode_time8(load_8(message_.data() + 25))); }
    std::size_t source_count() const { return version() == 2 ? load_be16(message_.data() + 26) : 0; }
    Address source(std::size_t index) const { return load_address(Family::kIpv6, message_.data() + 28 + index * 16); }

private:
    explicit MldView(std::span<const std::byte> message) : message_(message) {}
    std::span<const std::byte> message_;
};

/// A message of version 1.
struct MldHeader {
    MldType type = MldType::kQuery;
    std::uint16_t max_response_code = 0;
    Address group;

    friend bool operator==(const MldHeader&, const MldHeader&) = default;
};

/// Writes kMldLength bytes; the checksum stays zero until finish_icmpv6_checksum. Requires: room; an IPv6 address.
inline void emit(const MldHeader& header, std::span<std::byte> out) {
    DCHECK(out.size() >= kMldLength && !header.group.is_v4());
    store_8(out.data(), static_cast<std::uint8_t>(header.type));
    store_8(out.data() + 1, 0);
    store_be16(out.data() + 2, 0);
    store_be16(out.data() + 4, header.max_response_code);
    store_be16(out.data() + 6, 0);
    std::memcpy(out.data() + 8, header.group.bytes().data(), 16);
}

}  // namespace culvert::wire
