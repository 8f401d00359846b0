// Transmission Control Protocol, the segment header of RFC 9293 3.1.
//
//    0               1               2               3
//   | source port                   | destination port              |
//   | sequence number                                               |
//   | acknowledgment number                                         |
//   | offset|  0    | flags         | window                        |
//   | checksum                      | urgent pointer                |
//   | options (0-40 bytes)                                          |
//   | payload ...
//
// Numbers are as on the wire: 32-bit sequence numbers, the window not scaled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>

#include "daemon/base/drop.h"
#include "daemon/wire/address.h"
#include "daemon/wire/bytes.h"
#include "daemon/wire/checksum.h"
#include "daemon/wire/tcp_options.h"

namespace culvert::wire {

inline constexpr std::size_t kTcpHeaderLength = 20;  // without options
inline constexpr std::size_t kMaxTcpHeaderLength = kTcpHeaderLength + kMaxTcpOptionsLength;

/// The control bits. `TcpFlags flags = kSyn | kAck; if (flags.syn()) ...`
struct TcpFlags {
    std::uint8_t bits = 0;

    constexpr bool fin() const { return (bits & 0x01) != 0; }
    constexpr bool syn() const { return (bits & 0x02) != 0; }
    constexpr bool rst() const { return (bits & 0x04) != 0; }
    constexpr bool psh() const { return (bits & 0x08) != 0; }
    constexpr bool ack() const { return (bits & 0x10) != 0; }
    constexpr bool urg() const { return (bits & 0x20) != 0; }
    constexpr bool ece() const { return (bits & 0x40) != 0; }
    constexpr bool cwr() const { return (bits & 0x80) != 0; }
    /// All of `wanted` are set.
    constexpr bool has(TcpFlags wanted) const { return (bits & wanted.bits) == wanted.bits; }
    constexpr bool any_of(TcpFlags wanted) const { return (bits & wanted.bits) != 0; }
    constexpr TcpFlags without(TcpFlags unwanted) const { return {static_cast<std::uint8_t>(bits & ~unwanted.bits)}; }
    constexpr TcpFlags& operator|=(TcpFlags other) {
        bits |= other.bits;
        return *this;
    }
    friend constexpr TcpFlags operator|(TcpFlags a, TcpFlags b) { return a |= b; }
    friend constexpr TcpFlags operator&(TcpFlags a, TcpFlags b) { return {static_cast<std::uint8_t>(a.bits & b.bits)}; }
    friend constexpr bool operator==(const TcpFlags&, const TcpFlags&) = default;
};

inline constexpr TcpFlags kFin{0x01};
inline constexpr TcpFlags kSyn{0x02};
inline constexpr TcpFlags kRst{0x04};
inline constexpr TcpFlags kPsh{0x08};
inline constexpr TcpFlags kAck{0x10};
inline constexpr TcpFlags kUrg{0x20};
inline constexpr TcpFlags kEce{0x40};
inline constexpr TcpFlags kCwr{0x80};

class TcpView {
public:
    /// `head` starts at the TCP header; `available` is the length of the IP payload, which may go beyond `head`.
    /// Accepts iff header and options lie in `head`. The checksum is verify_transport_checksum's; what the options mean
    /// is TcpOptions::parse's.
    static std::expected<TcpView, Drop> parse(std::span<const std::byte> head, std::size_t available) {
        if (head.size() < kTcpHeaderLength || available < kTcpHeaderLength) return std::unexpected(Drop::kTcpTruncated);
        const std::size_t header_length = std::size_t{load_8(head.data() + 12)} >> 4 << 2;
        if (header_length < kTcpHeaderLength || header_length > head.size() || header_length > available)
            return std::unexpected(Drop::kTcpTruncated);
        return TcpView(head, header_length, available - header_length);
    }
    static std::expected<TcpView, Drop> parse(std::span<const std::byte> segment) {
        return parse(segment, segment.size());
    }

    Port source() const { return load_be16(at(0)); }
    Port destination() const { return load_be16(at(2)); }
    std::uint32_t sequence() const { return load_be32(at(4)); }
    std::uint32_t acknowledgment() const { return load_be32(at(8)); }
    TcpFlags flags() const { return {load_8(at(13))}; }
    std::uint16_t window() const { return load_be16(at(14)); }
    std::uint16_t checksum() const { return load_be16(at(16)); }
    std::uint16_t urgent() const { return load_be16(at(18)); }
    std::span<const std::byte> options() const { return {at(kTcpHeaderLength), header_length_ - kTcpHeaderLength}; }
    std::size_t header_length() const { return header_length_; }
    std::size_t payload_length() const { return payload_length_; }
    /// The payload as far as it lies in `head`.
    std::span<const std::byte> payload_in_head() const { return {at(header_length_), payload_in_head_}; }
    /// SEG.LEN: payload, SYN and FIN [RFC9293 3.4].
    std::uint32_t segment_length() const {
        return payload_length_ + (flags().syn() ? 1u : 0u) + (flags().fin() ? 1u : 0u);
    }

private:
    TcpView(std::span<const std::byte> head, std::size_t header_length, std::size_t payload_length)
        : data_(head.data()),
          header_length_(static_cast<std::uint32_t>(header_length)),
          payload_length_(static_cast<std::uint32_t>(payload_length)),
          payload_in_head_(static_cast<std::uint32_t>(
              head.size() - header_length < payload_length ? head.size() - header_length : payload_length)) {}
    const std::byte* at(std::size_t offset) const { return data_ + offset; }

    const std::byte* data_;
    std::uint32_t header_length_;
    std::uint32_t payload_length_;
    std::uint32_t payload_in_head_;
};

struct TcpHeader {
    Port source = 0;
    Port destination = 0;
    std::uint32_t sequence = 0;
    std::uint32_t acknowledgment = 0;
    TcpFlags flags;
    std::uint16_t window = 0;
    std::uint16_t urgent = 0;

    friend bool operator==(const TcpHeader&, const TcpHeader&) = default;
};

/// The length of the header that `emit` writes with these options.
inline std::size_t tcp_header_length(const TcpOptions& options) { return kTcpHeaderLength + emitted_length(options); }

/// Writes the header with `options` to the front of `out` and returns its length; the checksum stays zero until
/// finish_tcp_checksum. Requires: out.size() >= tcp_header_length(options).
inline std::size_t emit(const TcpHeader& header, const TcpOptions& options, std::span<std::byte> out) {
    const std::size_t length = tcp_header_length(options);
    DCHECK(out.size() >= length && length <= kMaxTcpHeaderLength);
    std::byte* to = out.data();
    store_be16(to, header.source);
    store_be16(to + 2, header.destination);
    store_be32(to + 4, header.sequence);
    store_be32(to + 8, header.acknowledgment);
    store_8(to + 12, static_cast<std::uint8_t>(length / 4 << 4));
    store_8(to + 13, header.flags.bits);
    store_be16(to + 14, header.window);
    store_be16(to + 16, 0);
    store_be16(to + 18, header.urgent);
    if (length > kTcpHeaderLength) emit(options, out.subspan(kTcpHeaderLength, length - kTcpHeaderLength));
    return length;
}

/// Sets the checksum of an emitted header (`header` is all of it, options included), given length and sum of the
/// payload (copy_and_checksum, ChecksumAccumulator).
inline void finish_tcp_checksum(std::span<std::byte> header, PartialSum payload, std::size_t payload_length,
                                const Address& source, const Address& destination) {
    PartialSum sum = payload;
    sum += pseudo_header_sum(source, destination, IpProtocol::kTcp,
                             static_cast<std::uint32_t>(header.size() + payload_length));
    sum += sum_bytes(header);
    store_be16(header.data() + 16, wire::checksum(sum));
}

/// Leaves the checksum to whoever cuts and sends the segment: the field holds the sum of the pseudo-header, for all of
/// `payload_length`. (CHECKSUM_PARTIAL of Linux, include/linux/skbuff.h)
inline void leave_tcp_checksum(std::span<std::byte> header, std::size_t payload_length, const Address& source,
                               const Address& destination) {
    const PartialSum sum = pseudo_header_sum(source, destination, IpProtocol::kTcp,
                                             static_cast<std::uint32_t>(header.size() + payload_length));
    store_be16(header.data() + 16, static_cast<std::uint16_t>(~wire::checksum(sum)));
}

}  // namespace culvert::wire
