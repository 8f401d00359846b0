// Time comes in through the door: everything below the engine takes `Instant now`.
#pragma once

#include <chrono>
#include <cstdint>

namespace culvert {

/// The daemon's clock: CLOCK_MONOTONIC in production, a number that a test sets otherwise.
/// It has no now(): only the engine reads a clock, once a turn.
struct EngineClock {
    using rep = std::int64_t;
    using period = std::nano;
    using duration = std::chrono::nanoseconds;
    using time_point = std::chrono::time_point<EngineClock, duration>;
    static constexpr bool is_steady = true;
};

using Duration = EngineClock::duration;
using Instant = EngineClock::time_point;

/// Later than any deadline.
inline constexpr Instant kNever = Instant::max();

}  // namespace culvert
