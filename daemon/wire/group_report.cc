#include "daemon/wire/group_report.h"

#include <cstring>

#include "shm/base/check.h"

namespace culvert::wire {

Address load_address(Family family, const std::byte* from) {
    return family == Family::kIpv4 ? Address::from_v4(std::span<const std::byte, 4>(from, 4))
                                   : Address::from_v6(std::span<const std::byte, 16>(from, 16));
}

GroupReportWriter::GroupReportWriter(Family family, std::uint8_t type, std::span<std::byte> out)
    : out_(out), address_length_(family == Family::kIpv4 ? 4 : 16) {
    DCHECK(out.size() >= kGroupReportHeaderLength);
    std::memset(out_.data(), 0, kGroupReportHeaderLength);
    store_8(out_.data(), type);
}

bool GroupReportWriter::begin(GroupRecordType type, const Address& group) {
    if (at_ + 4 + 2 * address_length_ > out_.size() || records_ == UINT16_MAX) return false;
    record_ = at_;
    sources_ = 0;
    store_8(out_.data() + at_, static_cast<std::uint8_t>(type));
    store_8(out_.data() + at_ + 1, 0);
    store_be16(out_.data() + at_ + 2, 0);
    at_ += 4;
    put(group);
    store_be16(out_.data() + 6, ++records_);
    return true;
}

bool GroupReportWriter::add(const Address& source) {
    DCHECK(record_ != 0);
    if (at_ + address_length_ > out_.size()) return false;
    put(source);
    store_be16(out_.data() + record_ + 2, ++sources_);
    return true;
}

void GroupReportWriter::put(const Address& address) {
    DCHECK(address.wire_bytes().size() == address_length_);
    std::memcpy(out_.data() + at_, address.wire_bytes().data(), address_length_);
    at_ += address_length_;
}

Address GroupRecord::source(std::size_t index) const {
    return load_address(family, sources.data() + index * (family == Family::kIpv4 ? 4 : 16));
}

GroupRecord GroupReportView::record_at(std::size_t at) const {
    const std::size_t sources = load_be16(message_.data() + at + 2);
    return {.type = static_cast<GroupRecordType>(load_8(message_.data() + at)),
            .group = load_address(family_, message_.data() + at + 4),
            .family = family_,
            .sources = message_.subspan(at + 4 + address_length(), sources * address_length())};
}

std::expected<GroupReportView, Drop> GroupReportView::parse(Family family, std::span<const std::byte> message) {
    if (message.size() < kGroupReportHeaderLength) return std::unexpected(Drop::kGroupMessageMalformed);
    GroupReportView view(family, message);
    std::size_t at = kGroupReportHeaderLength;
    for (std::uint16_t i = 0; i < view.records(); ++i) {
        const std::size_t fixed = 4 + view.address_length();
        if (at + fixed > message.size()) return std::unexpected(Drop::kGroupMessageMalformed);
        const std::size_t length = fixed + std::size_t{load_be16(message.data() + at + 2)} * view.address_length() +
                                   std::size_t{load_8(message.data() + at + 1)} * 4;
        if (at + length > message.size()) return std::unexpected(Drop::kGroupMessageMalformed);
        at += length;
    }
    return view;
}

}  // namespace culvert::wire
