// User Datagram Protocol, RFC 768.
//
//    0               2               4               6
//   | source port   | destination   | length        | checksum      | payload ...
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>

#include "daemon/base/drop.h"
#include "daemon/wire/address.h"
#include "daemon/wire/bytes.h"
#include "daemon/wire/checksum.h"

namespace culvert::wire {

inline constexpr std::size_t kUdpHeaderLength = 8;

class UdpView {
public:
    /// `head` starts at the UDP header; `available` is the length of the IP payload, which may go beyond `head`.
    /// Accepts iff the header lies in `head` and the datagram is all there. The checksum, over `length()` bytes, is
    /// left to verify_transport_checksum.
    static std::expected<UdpView, Drop> parse(std::span<const std::byte> head, std::size_t available) {
        if (head.size() < kUdpHeaderLength || available < kUdpHeaderLength) return std::unexpected(Drop::kUdpTruncated);
        const std::size_t length = load_be16(head.data() + 4);
        if (length < kUdpHeaderLength || length > available) return std::unexpected(Drop::kUdpTruncated);
        return UdpView(head.first(std::min(head.size(), length)));
    }
    static std::expected<UdpView, Drop> parse(std::span<const std::byte> datagram) {
        return parse(datagram, datagram.size());
    }

    Port source() const { return load_be16(head_.data()); }
    Port destination() const { return load_be16(head_.data() + 2); }
    /// Header and payload.
    std::size_t length() const { return load_be16(head_.data() + 4); }
    std::uint16_t checksum() const { return load_be16(head_.data() + 6); }
    static constexpr std::size_t header_length() { return kUdpHeaderLength; }
    std::size_t payload_length() const { return length() - kUdpHeaderLength; }
    /// The payload as far as it lies in `head`.
    std::span<const std::byte> payload_in_head() const { return head_.subspan(kUdpHeaderLength); }

private:
    explicit UdpView(std::span<const std::byte> head) : head_(head) {}
    std::span<const std::byte> head_;
};

struct UdpHeader {
    Port source = 0;
    Port destination = 0;

    friend bool operator==(const UdpHeader&, const UdpHeader&) = default;
};

/// Writes kUdpHeaderLength bytes; the checksum stays zero until finish_udp_checksum.
/// Requires: room; header and payload fit 65535.
inline void emit(const UdpHeader& header, std::size_t payload_length, std::span<std::byte> out) {
    DCHECK(out.size() >= kUdpHeaderLength && payload_length <= 0xffff - kUdpHeaderLength);
    store_be16(out.data(), header.source);
    store_be16(out.data() + 2, header.destination);
    store_be16(out.data() + 4, static_cast<std::uint16_t>(kUdpHeaderLength + payload_length));
    store_be16(out.data() + 6, 0);
}

/// Sets the checksum of an emitted header, given the sum of the payload.
inline void finish_udp_checksum(std::span<std::byte> header, PartialSum payload, const Address& source,
                                const Address& destination) {
    PartialSum sum = payload;
    sum += pseudo_header_sum(source, destination, IpProtocol::kUdp, load_be16(header.data() + 4));
    sum += sum_fixed<kUdpHeaderLength>(header.data());
    // [RFC768] a computed zero is sent as all ones: zero means "no checksum"
    const std::uint16_t value = wire::checksum(sum);
    store_be16(header.data() + 6, value == 0 ? std::uint16_t{0xffff} : value);
}

}  // namespace culvert::wire
