// Urgent data of a received stream, in one word: SocketRecord::urgent. Written by the daemon, read by the application.
//
//   63                       10  9        8       7      0
//   | position, modulo 2^54    | arrived | known | octet  |
//
// `position` is that of the last urgent octet in the stream, counted as rx_delivered and rx_consumed are. One word, so that
// octet and position always belong together. Modulo 2^54 is no restriction: the position is at most 2^16 bytes ahead of
// what has been delivered, and what lies behind rx_consumed is of no interest to anybody.
#pragma once

#include <cstdint>

namespace culvert::shm {

inline constexpr std::uint64_t kUrgentKnown = 1u << 8;
inline constexpr std::uint64_t kUrgentArrived = 1u << 9;  // `octet` is valid
inline constexpr unsigned kUrgentPositionShift = 10;

constexpr std::uint64_t urgent_word(std::uint64_t position) { return position << kUrgentPositionShift | kUrgentKnown; }
constexpr std::uint64_t with_octet(std::uint64_t word, std::uint8_t octet) { return word | kUrgentArrived | octet; }
/// How far the urgent octet lies ahead of `position`; negative: behind it. Requires: kUrgentKnown.
constexpr std::int64_t urgent_ahead(std::uint64_t word, std::uint64_t position) {
    const std::uint64_t distance = (word >> kUrgentPositionShift) - position;
    return static_cast<std::int64_t>(distance << kUrgentPositionShift) >> kUrgentPositionShift;
}
constexpr std::uint8_t urgent_octet(std::uint64_t word) { return static_cast<std::uint8_t>(word); }
/// What AppLine::urgent_read holds when this octet has been taken out of band. Never 0.
constexpr std::uint32_t urgent_mark(std::uint64_t position) { return static_cast<std::uint32_t>(position) << 1 | 1; }

}  // namespace culvert::shm
