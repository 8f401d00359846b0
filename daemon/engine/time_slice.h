// How long this thread may run before others that wait for its core.
//
// An engine runs for microseconds and is waited for by everybody; what computes beside it runs as long as it may, a few
// milliseconds. Linux (EEVDF, 6.12) lets a thread that wakes with a short slice go before one in the middle of a long one,
// and gives it no more of the core for that.
#pragma once

#include <chrono>
#include <cstdint>

namespace culvert::engine {

/// struct sched_attr of linux/sched/types.h, which defines sched_param a second time and so cannot be included in C++. First version.
struct SchedulingAttributes {
    std::uint32_t size = sizeof(SchedulingAttributes);
    std::uint32_t policy = 0;
    std::uint64_t flags = 0;
    std::int32_t nice = 0;
    std::uint32_t priority = 0;
    std::uint64_t runtime = 0;  // ns: the slice, of a thread that is scheduled fairly
    std::uint64_t deadline = 0;
    std::uint64_t period = 0;
};
static_assert(sizeof(SchedulingAttributes) == 48);

/// Asks for a slice for the calling thread, 100 us to 100 ms (the kernel bounds it); 0 keeps the kernel's own. Does nothing
/// before Linux 6.12, and to a thread of a real-time or idle policy. See sched_setattr(2), Documentation/scheduler/sched-eevdf.
/// False: not permitted (a seccomp filter).
bool ask_for_slice(std::chrono::microseconds slice);

}  // namespace culvert::engine
