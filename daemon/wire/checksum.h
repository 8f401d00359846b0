// The Internet checksum (RFC 1071): the one's-complement sum of 16-bit words, complemented.
//
// A sum is kept as 64 bits in *memory* byte order until the end: RFC 1071 2(B) allows it, so the hot loops load
// eight bytes as they stand and never swap. Only `fold` turns a sum into a number in host order.
//
//   sum_bytes ------+
//   copy_and_checksum --> PartialSum --add--> PartialSum --fold--> uint16 --complement--> field
//   pseudo_header_sum +
//
// Fragments: a piece that starts at an odd offset adds its sum with the two bytes of each word exchanged
// (RFC 1071 2(B) again). ChecksumAccumulator keeps track of that.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "daemon/base/packet.h"
#include "daemon/wire/address.h"
#include "daemon/wire/bytes.h"
#include "daemon/wire/ip_protocol.h"

namespace culvert::wire {

/// A one's-complement sum on its way, in memory byte order. Zero only if every byte summed was zero.
class PartialSum {
public:
    constexpr PartialSum() = default;
    constexpr explicit PartialSum(std::uint64_t memory_order) : value_(memory_order) {}

    /// Adds the sum of bytes that follow at an even offset.
    constexpr PartialSum& operator+=(PartialSum other) {
        value_ += other.value_;
        value_ += value_ < other.value_ ? 1u : 0u;  // end-around carry
        return *this;
    }
    friend constexpr PartialSum operator+(PartialSum a, PartialSum b) { return a += b; }

    /// The same bytes, one position further: each pair exchanged.
    constexpr PartialSum shifted() const { return PartialSum(std::rotl(value_, 8)); }

    constexpr std::uint64_t memory_order() const { return value_; }

private:
    std::uint64_t value_ = 0;
};

/// The 16-bit one's-complement sum in host order, not complemented.
constexpr std::uint16_t fold(PartialSum sum) {
    std::uint64_t value = sum.memory_order();
    value = (value & 0xffffffffu) + (value >> 32);
    value = (value & 0xffffffffu) + (value >> 32);
    value = (value & 0xffff) + (value >> 16);
    value = (value & 0xffff) + (value >> 16);
    return swap_be16(static_cast<std::uint16_t>(value));
}

/// The value of a checksum field that covers what `sum` covers, in host order.
constexpr std::uint16_t checksum(PartialSum sum) { return static_cast<std::uint16_t>(~fold(sum)); }

/// [RFC1624 3] The checksum after one 16-bit word has changed: HC' = ~(~HC + ~m + m').
constexpr std::uint16_t updated_checksum(std::uint16_t old_checksum, std::uint16_t old_word, std::uint16_t new_word) {
    std::uint32_t sum = static_cast<std::uint16_t>(~old_checksum);
    sum += static_cast<std::uint16_t>(~old_word);
    sum += new_word;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<std::uint16_t>(~sum);
}

/// One 16-bit word of a header, given in host order.
constexpr PartialSum sum_word(std::uint16_t word) { return PartialSum(swap_be16(word)); }

/// The sum of `bytes`, the first of which stands at an even offset; an odd end is padded with zero.
PartialSum sum_bytes(std::span<const std::byte> bytes);

/// The same for a header of fixed length, a multiple of four: a few adds, no call.
template <std::size_t kLength>
requires(kLength % 4 == 0) PartialSum sum_fixed(const std::byte* bytes) {
    PartialSum sum;
    for (std::size_t at = 0; at + 8 <= kLength; at += 8) {
        std::uint64_t word;
        std::memcpy(&word, bytes + at, sizeof word);
        sum += PartialSum(word);
    }
    if constexpr (kLength % 8 != 0) {
        std::uint32_t word;
        std::memcpy(&word, bytes + kLength - 4, sizeof word);
        sum += PartialSum(word);
    }
    return sum;
}

/// Copies `source` to `destination` and sums it in the same pass. Every source byte is read once, so the sum is the
/// sum of what was copied even when somebody else writes to `source` meanwhile.
/// Requires: destination.size() >= source.size(); the two do not overlap.
PartialSum copy_and_checksum(std::span<std::byte> destination, std::span<const std::byte> source);

/// The pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 3.1, RFC 768, RFC 8200 8.1). `length` is the length of the
/// upper-layer header and data. Requires: both addresses of one family.
inline PartialSum pseudo_header_sum(const Address& source, const Address& destination, IpProtocol protocol,
                                    std::uint32_t length) {
    std::uint64_t words[4];
    std::memcpy(&words[0], source.bytes().data(), 16);
    std::memcpy(&words[2], destination.bytes().data(), 16);
    // An IPv4-mapped address adds 0xffff, which is zero in one's complement, so both families go one way; the rest of
    // the pseudo-header is never zero, so no sum can come out as the other zero.
    PartialSum sum(words[0]);
    sum += PartialSum(words[1]);
    sum += PartialSum(words[2]);
    sum += PartialSum(words[3]);
    sum += PartialSum(swap_be32(length));
    sum += sum_word(static_cast<std::uint16_t>(protocol));
    return sum;
}

/// Sums bytes that come in pieces of any length.
class ChecksumAccumulator {
public:
    ChecksumAccumulator() = default;
    /// Starts from a sum of something of even length: usually the pseudo-header.
    explicit ChecksumAccumulator(PartialSum start) : sum_(start) {}

    void add(std::span<const std::byte> bytes) { add(sum_bytes(bytes), bytes.size()); }
    /// A piece that has been summed already (by copy_and_checksum).
    void add(PartialSum piece, std::size_t length) {
        sum_ += odd_ ? piece.shifted() : piece;
        odd_ ^= (length & 1) != 0;
    }
    PartialSum sum() const { return sum_; }

private:
    PartialSum sum_;
    bool odd_ = false;  // the next piece starts at an odd offset
};

/// The sum of `length` bytes of `packet` from `offset` on, through all its fragments.
/// Requires: offset + length <= packet.length.
PartialSum sum_packet(const RxPacket& packet, std::size_t offset, std::size_t length);

/// True if the checksum of the upper-layer message at `transport_offset` of `packet` is acceptable:
///   - the device has verified it (kVerified), or
///   - packet.checksum is kMaybePartial and the field is exactly the folded, uncomplemented pseudo-header sum, which is
///     what a local Linux sender leaves for a device with checksum offload (CHECKSUM_PARTIAL); no pass over the data
///   - it is right; for UDP over IPv4 also if the sender made none (field zero, RFC 768).
/// Protocols: TCP, UDP, ICMPv6, and ICMP (which has no pseudo-header).
/// Requires: the field lies in packet.head; false if the message is not all there.
bool verify_transport_checksum(const RxPacket& packet, std::size_t transport_offset, std::size_t transport_length,
                               const Address& source, const Address& destination, IpProtocol protocol);

}  // namespace culvert::wire
