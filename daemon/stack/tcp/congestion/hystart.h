// HyStart++, RFC 9406: leave slow start when the round-trip time begins to rise, before the queue overflows.
//
//   slow start --- min RTT of a round rose by 1/8 (4..16 ms) ---> conservative slow start (CSS), a quarter as fast
//        ^                                                          |            |
//        +------------ min RTT fell below the baseline -------------+            +-- 5 rounds --> congestion avoidance
#pragma once

#include <cstdint>

#include "daemon/base/instant.h"
#include "daemon/stack/tcp/sequence.h"

namespace culvert::stack::tcp {

class Hystart {
public:
    enum class Phase : std::uint8_t { kSlowStart, kConservative, kDone };

    /// [RFC9406 4.3] L: growth per ACK in segments, for a sender that does not pace.
    static constexpr std::uint32_t kMaxSegmentsPerAck = 8;
    /// [RFC9406 4.3]
    static constexpr std::uint32_t kConservativeDivisor = 4;

    /// An ACK in the first slow start; `rtt` zero: it measured nothing. Returns the phase that holds from here on.
    Phase on_ack(Duration rtt, Position snd_una, Position snd_nxt);
    /// Slow start ended otherwise (loss).
    void stop() { phase_ = Phase::kDone; }
    Phase phase() const { return phase_; }

private:
    static constexpr std::uint32_t kNone = UINT32_MAX;

    Position round_end_ = 0;
    std::uint32_t last_min_us_ = kNone;
    std::uint32_t current_min_us_ = kNone;
    std::uint32_t baseline_us_ = kNone;
    std::uint8_t samples_ = 0;
    std::uint8_t conservative_rounds_ = 0;
    Phase phase_ = Phase::kSlowStart;
};
static_assert(sizeof(Hystart) <= 24);

}  // namespace culvert::stack::tcp
