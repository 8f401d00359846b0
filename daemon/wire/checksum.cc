#include "daemon/wire/checksum.h"

#include <algorithm>

namespace culvert::wire {
namespace {

// The hot loop. Each 8-byte word is split in two 32-bit halves that are added into 64-bit lanes, so no carry is lost
// for 2^32 words and there is no chain of dependent carries. The vector types are GCC's: SSE2 on x86-64, NEON on
// aarch64, plain registers elsewhere.
using Lanes = std::uint64_t __attribute__((vector_size(16)));
constexpr std::size_t kVector = sizeof(Lanes);
constexpr std::size_t kBlock = 4 * kVector;  // a cache line a turn

Lanes load(const std::byte* from) {
    Lanes lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

std::uint64_t load_tail(const std::byte* from, std::size_t length) {
    std::uint64_t word = 0;  // RFC 1071: padded with zero bytes at the end
    std::memcpy(&word, from, length);
    return word;
}

template <bool kCopy>
PartialSum sum(const std::byte* from, [[maybe_unused]] std::byte* to, std::size_t length) {
    PartialSum total;
    if (length >= kBlock) {
        constexpr Lanes kLowHalf = {0xffffffffu, 0xffffffffu};
        Lanes low[2] = {};
        Lanes high[2] = {};
        do {
            const Lanes a = load(from), b = load(from + kVector);
            const Lanes c = load(from + 2 * kVector), d = load(from + 3 * kVector);
            if constexpr (kCopy) {
                std::memcpy(to, &a, kVector);
                std::memcpy(to + kVector, &b, kVector);
                std::memcpy(to + 2 * kVector, &c, kVector);
                std::memcpy(to + 3 * kVector, &d, kVector);
                to += kBlock;
            }
            low[0] += (a & kLowHalf) + (b & kLowHalf);
            high[0] += (a >> 32) + (b >> 32);
            low[1] += (c & kLowHalf) + (d & kLowHalf);
            high[1] += (c >> 32) + (d >> 32);
            from += kBlock;
            length -= kBlock;
        } while (length >= kBlock);
        const Lanes lanes = low[0] + low[1] + high[0] + high[1];
        total += PartialSum(lanes[0]);
        total += PartialSum(lanes[1]);
    }
    while (length >= 8) {
        std::uint64_t word;
        std::memcpy(&word, from, 8);
        if constexpr (kCopy) {
            std::memcpy(to, &word, 8);
            to += 8;
        }
        total += PartialSum(word);
        from += 8;
        length -= 8;
    }
    if (length > 0) {
        const std::uint64_t word = load_tail(from, length);
        if constexpr (kCopy) std::memcpy(to, &word, length);
        total += PartialSum(word);
    }
    return total;
}

struct Field {
    std::size_t offset;  // of the checksum in the upper-layer header
    bool pseudo_header;  // is part of the sum
};

constexpr Field field_of(IpProtocol protocol) {
    switch (protocol) {
        case IpProtocol::kTcp:
            return {16, true};
        case IpProtocol::kUdp:
            return {6, true};
        case IpProtocol::kIcmpv6:
            return {2, true};
        default:
            break;
    }
    CHECK(protocol == IpProtocol::kIcmp);
    return {2, false};
}

}  // namespace

PartialSum sum_bytes(std::span<const std::byte> bytes) { return sum<false>(bytes.data(), nullptr, bytes.size()); }

PartialSum copy_and_checksum(std::span<std::byte> destination, std::span<const std::byte> source) {
    DCHECK(destination.size() >= source.size());
    return sum<true>(source.data(), destination.data(), source.size());
}

PartialSum sum_packet(const RxPacket& packet, std::size_t offset, std::size_t length) {
    ChecksumAccumulator accumulator;
    const auto take = [&](std::span<const std::byte> fragment) {
        if (offset >= fragment.size()) {
            offset -= fragment.size();
            return;
        }
        const std::size_t here = std::min(length, fragment.size() - offset);
        accumulator.add(fragment.subspan(offset, here));
        offset = 0;
        length -= here;
    };
    take(packet.head);
    for (const std::span<const std::byte> fragment : packet.rest) {
        if (length == 0) break;
        take(fragment);
    }
    DCHECK(length == 0);
    return accumulator.sum();
}

bool verify_transport_checksum(const RxPacket& packet, std::size_t transport_offset, std::size_t transport_length,
                               const Address& source, const Address& destination, IpProtocol protocol) {
    if (packet.checksum == ChecksumState::kVerified) return true;
    const Field field = field_of(protocol);
    if (transport_length < field.offset + 2 || transport_offset + transport_length > packet.length) return false;
    DCHECK(transport_offset + field.offset + 2 <= packet.head.size());

    PartialSum pseudo_header;
    if (field.pseudo_header) {
        const std::uint16_t value = load_be16(packet.head, transport_offset + field.offset);
        // [RFC768] a UDP sender over IPv4 may leave the checksum out; over IPv6 it may not [RFC8200 8.1]
        if (protocol == IpProtocol::kUdp && value == 0) return source.is_v4();
        pseudo_header = pseudo_header_sum(source, destination, protocol, static_cast<std::uint32_t>(transport_length));
        if (packet.checksum == ChecksumState::kMaybePartial && value == fold(pseudo_header)) return true;
    }
    return fold(pseudo_header + sum_packet(packet, transport_offset, transport_length)) == 0xffff;
}

}  // namespace culvert::wire
