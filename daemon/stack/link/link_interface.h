// What the link's protocols share about one interface, and about time: parameters that routers may set, limits on what
// strangers can make us send, and the kinds of timers on the link layer's wheel.
#pragma once

#include <chrono>
#include <cstdint>

#include "daemon/base/instant.h"
#include "daemon/base/rng.h"
#include "daemon/base/timer_wheel.h"
#include "daemon/base/token_bucket.h"
#include "daemon/stack/interface.h"

namespace culvert::stack {

/// Whose TimerNode fired.
enum LinkTimerKind : std::uint8_t { kNeighborTimer = 1, kAddressTimer, kRouterTimer, kGroupTimer, kReporterTimer };

/// At most `rate` a second in the long run, and `burst` at once.
class RateLimit {
public:
    RateLimit(unsigned rate, unsigned burst) : interval_(Duration(std::chrono::seconds(1)) / rate), burst_(burst) {}
    bool take(Instant now) { return bucket_.take(now, interval_, burst_); }

private:
    Duration interval_;
    std::uint32_t burst_;
    TokenBucket bucket_;
};

/// One interface whose neighbours we resolve ourselves.
struct LinkInterface {
    explicit LinkInterface(Interface& of) : interface(of) {}

    Interface& interface;
    Duration base_reachable_time = std::chrono::seconds(30);  // [RFC4861 10] REACHABLE_TIME, or what a router says
    Duration reachable_time = base_reachable_time;            // the base times 0.5 to 1.5, drawn anew now and then
    Duration retransmit_time = std::chrono::seconds(1);       // [RFC4861 10] RETRANS_TIMER
    RateLimit answers{10000, 1000};       // ARP replies and neighbour advertisements
    RateLimit solicitations{1000, 200};   // ARP requests and neighbour solicitations
};

/// Uniform in [from, to).
inline Duration random_duration(Rng& rng, Duration from, Duration to) {
    return to <= from ? from : from + Duration(static_cast<std::int64_t>(rng.below(static_cast<std::uint64_t>((to - from).count()))));
}

}  // namespace culvert::stack
