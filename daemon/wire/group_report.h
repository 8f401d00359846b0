// What IGMPv3 (RFC 3376) and MLDv2 (RFC 3810) have in common: the report, which differs in its type and in the length of
// addresses, and the numbers that queries write in floating point.
//
//    0               1               2               3
//   | type          | reserved      | checksum                      |
//   | reserved                      | number of records             |
//   | record type   | aux length 0  | number of sources             |   one record, again and again
//   | group (4 or 16 bytes) | source (4 or 16 bytes) ...
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>

#include "daemon/base/drop.h"
#include "daemon/wire/address.h"
#include "daemon/wire/bytes.h"

namespace culvert::wire {

/// [RFC3376 4.2.12] [RFC3810 5.2.12]
enum class GroupRecordType : std::uint8_t {
    kModeIsInclude = 1,
    kModeIsExclude = 2,
    kChangeToInclude = 3,
    kChangeToExclude = 4,
    kAllowNewSources = 5,
    kBlockOldSources = 6,
};

inline constexpr std::size_t kGroupReportHeaderLength = 8;

/// Fills one report with records, as many as fit. The checksum is the caller's.
class GroupReportWriter {
public:
    /// Requires: room for the header.
    GroupReportWriter(Family family, std::uint8_t type, std::span<std::byte> out);

    /// Starts a record. False: no room for it and one source; send what there is and start a new report.
    bool begin(GroupRecordType type, const Address& group);
    /// Adds a source to the record. False: no room.
    bool add(const Address& source);

    std::uint16_t records() const { return records_; }
    std::size_t length() const { return at_; }

private:
    void put(const Address& address);

    std::span<std::byte> out_;
    std::size_t address_length_;
    std::size_t at_ = kGroupReportHeaderLength;
    std::size_t record_ = 0;  // where the current one starts
    std::uint16_t sources_ = 0;
    std::uint16_t records_ = 0;
};

/// A record of a report that came in; the addresses are wire bytes.
struct GroupRecord {
    GroupRecordType type;
    Address group;
    Family family;
    std::span<const std::byte> sources;

    std::size_t source_count() const { return sources.size() / (family == Family::kIpv4 ? 4 : 16); }
    Address source(std::size_t index) const;
};

class GroupReportView {
public:
    /// Accepts iff every record is there. The checksum is not looked at.
    static std::expected<GroupReportView, Drop> parse(Family family, std::span<const std::byte> message);

    std::uint16_t records() const { return load_be16(message_.data() + 6); }
    template <class Visit>
    void for_each_record(Visit&& visit) const {
        std::size_t at = kGroupReportHeaderLength;
        for (std::uint16_t i = 0; i < records(); ++i) {
            const GroupRecord record = record_at(at);
            visit(record);
            at += 4 + address_length() + record.sources.size() + std::size_t{load_8(message_.data() + at + 1)} * 4;
        }
    }

private:
    GroupReportView(Family family, std::span<const std::byte> message) : message_(message), family_(family) {}
    std::size_t address_length() const { return family_ == Family::kIpv4 ? 4 : 16; }
    GroupRecord record_at(std::size_t at) const;

    std::span<const std::byte> message_;
    Family family_;
};

/// 4 or 16 bytes in network order.
Address load_address(Family family, const std::byte* from);

/// [RFC3376 4.1.1, 4.1.7] Below 128 as it stands, above: 1eeemmmm is (mant | 10000) << (exp + 3).
constexpr std::uint32_t decode_time8(std::uint8_t code) {
    return code < 128 ? code : ((code & 0x0fu) | 0x10u) << (((code >> 4) & 0x07u) + 3);
}
/// [RFC3810 5.1.3] Below 32768 as it stands, above: 1eeemmmmmmmmmmmm is (mant | 1000h) << (exp + 3).
constexpr std::uint32_t decode_time16(std::uint16_t code) {
    return code < 32768 ? code : ((code & 0x0fffu) | 0x1000u) << (((code >> 12) & 0x07u) + 3);
}

}  // namespace culvert::wire
