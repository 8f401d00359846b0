// Internet Group Management Protocol: version 1 (RFC 1112), 2 (RFC 2236) and 3 (RFC 3376).
//
//    0               1               2               3
//   | type          | max response  | checksum                      |
//   | group                                                         |
//   | resv |S| QRV  | QQIC          | number of sources             |   queries of version 3 only
//   | sources ...
//
// Reports of version 3: group_report.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>

#include "daemon/base/drop.h"
#include "daemon/base/instant.h"
#include "daemon/wire/address.h"
#include "daemon/wire/bytes.h"
#include "daemon/wire/checksum.h"
#include "daemon/wire/group_report.h"

namespace culvert::wire {

inline constexpr std::size_t kIgmpLength = 8;
inline constexpr std::size_t kIgmpV3QueryLength = 12;

enum class IgmpType : std::uint8_t {
    kQuery = 0x11,
    kV1Report = 0x12,
    kV2Report = 0x16,
    kLeave = 0x17,
    kV3Report = 0x22,
};

class IgmpView {
public:
    /// `message` is the whole IP payload. Accepts iff its length is one of its type's and the checksum is right.
    static std::expected<IgmpView, Drop> parse(std::span<const std::byte> message) {
        if (message.size() < kIgmpLength) return std::unexpected(Drop::kGroupMessageMalformed);
        // [RFC3376 9.1] the checksum covers the whole IP payload
        if (fold(sum_bytes(message)) != 0xffff) return std::unexpected(Drop::kGroupMessageChecksum);
        IgmpView view(message);
        if (view.type() == IgmpType::kQuery && message.size() > kIgmpLength) {
            // [RFC3376 7.1] a query of a length between the versions is silently ignored
            if (message.size() < kIgmpV3QueryLength ||
                message.size() < kIgmpV3QueryLength + std::size_t{load_be16(message.data() + 10)} * 4)
                return std::unexpected(Drop::kGroupMessageMalformed);
        }
        return view;
    }

    IgmpType type() const { return static_cast<IgmpType>(load_8(message_.data())); }
    Address group() const { return load_address(Family::kIpv4, message_.data() + 4); }

    // Of a query.
    /// [RFC3376 7.1] by length, and version 1 has no response time.
    unsigned version() const {
        if (message_.size() >= kIgmpV3QueryLength) return 3;
        return load_8(message_.data() + 1) == 0 ? 1 : 2;
    }
    /// [RFC2236 4] a query of version 1 means ten seconds.
    Duration max_response() const {
        const std::uint8_t code = load_8(message_.data() + 1);
        const std::uint32_t tenths = version() == 1 ? 100 : version() == 2 ? code : decode_time8(code);
        return std::chrono::milliseconds(tenths * 100);
    }
    // Of version 3.
    bool suppresses() const { return (load_8(message_.data() + 8) & 0x08) != 0; }
    std::uint8_t robustness() const { return load_8(message_.data() + 8) & 0x07; }
    std::chrono::seconds interval() const { return std::chrono::seconds(decode_time8(load_8(message_.data() + 9))); }
    std::size_t source_count() const { return version() == 3 ? load_be16(message_.data() + 10) : 0; }
    Address source(std::size_t index) const { return load_address(Family::kIpv4, message_.data() + 12 + index * 4); }

private:
    explicit IgmpView(std::span<const std::byte> message) : message_(message) {}
    std::span<const std::byte> message_;
};

/// A message of versions 1 and 2, or a query of version 3 without the sources.
struct IgmpHeader {
    IgmpType type = IgmpType::kQuery;
    std::uint8_t max_response_code = 0;
    Address group = Address::any(Family::kIpv4);

    friend bool operator==(const IgmpHeader&, const IgmpHeader&) = default;
};

/// Writes kIgmpLength bytes; the checksum stays zero until finish_igmp_checksum. Requires: room; an IPv4 address.
inline void emit(const IgmpHeader& header, std::span<std::byte> out) {
    DCHECK(out.size() >= kIgmpLength && header.group.is_v4());
    store_8(out.data(), static_cast<std::uint8_t>(header.type));
    store_8(out.data() + 1, header.max_response_code);
    store_be16(out.data() + 2, 0);
    std::memcpy(out.data() + 4, header.group.wire_bytes().data(), 4);
}

inline void finish_igmp_checksum(std::span<std::byte> message) {
    store_be16(message, 2, 0);
    store_be16(message, 2, checksum(sum_bytes(message)));
}

}  // namespace culvert::wire
