// Sequence numbers. On the wire they are 32 bits and wrap; inside this TCP everything is a 64-bit stream position that
// never does, so comparing is `<` and a length is a subtraction.
//
//   wire   ....fffffffe ffffffff 00000000 00000001....
//   inside ....1fffffffe 1ffffffff 200000000 200000001....   the low 32 bits are the wire number
//
// Numbers are converted at the edge, where a segment is read or written, and nowhere else. [RFC9293 3.4]
#pragma once

#include <cstdint>

namespace culvert::stack::tcp {

/// A place in one direction of a connection's stream, SYN and FIN counted.
using Position = std::uint64_t;

/// [first, end)
struct Range {
    Position first = 0;
    Position end = 0;

    std::uint64_t size() const { return end - first; }
    bool empty() const { return end <= first; }
    bool contains(Position p) const { return first <= p && p < end; }
    friend bool operator==(const Range&, const Range&) = default;
};

/// The position of the SYN of a stream that starts with `isn`. Starts at 2^32, so that a wire number that lies before
/// it (an old duplicate) still has a position and never wraps below zero.
constexpr Position initial_position(std::uint32_t isn) { return (Position{1} << 32) | isn; }

/// The position nearest to `reference` (RCV.NXT or SND.UNA) that reads `wire` on the wire: within 2^31 of it.
constexpr Position widen(std::uint32_t wire, Position reference) {
    const auto distance = static_cast<std::int32_t>(wire - static_cast<std::uint32_t>(reference));
    return reference + static_cast<Position>(static_cast<std::int64_t>(distance));
}

constexpr std::uint32_t to_wire(Position position) { return static_cast<std::uint32_t>(position); }

/// For numbers that stay 32 bits wide: RFC 7323 timestamps, and wire numbers before there is a reference.
constexpr bool before(std::uint32_t a, std::uint32_t b) { return static_cast<std::int32_t>(a - b) < 0; }
constexpr bool after(std::uint32_t a, std::uint32_t b) { return before(b, a); }

}  // namespace culvert::stack::tcp
