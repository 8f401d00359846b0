#include "daemon/stack/tcp/congestion/hystart.h"

#include <algorithm>

namespace culvert::stack::tcp {

namespace {
// [RFC9406 4.3]
constexpr std::uint32_t kMinRttThreshUs = 4'000;
constexpr std::uint32_t kMaxRttThreshUs = 16'000;
constexpr std::uint32_t kMinRttDivisor = 8;
constexpr std::uint8_t kRttSamples = 8;
constexpr std::uint8_t kConservativeRounds = 5;
}  // namespace

Hystart::Phase Hystart::on_ack(Duration rtt, Position snd_una, Position snd_nxt) {
    if (phase_ == Phase::kDone) return phase_;

    if (rtt > Duration::zero()) {
        const auto us = std::chrono::duration_cast<std::chrono::microseconds>(rtt).count();
        current_min_us_ =
            std::min(current_min_us_, static_cast<std::uint32_t>(std::clamp<std::int64_t>(us, 0, kNone - 1)));
        if (samples_ < UINT8_MAX) ++samples_;
    }

    if (samples_ >= kRttSamples) {
        if (phase_ == Phase::kSlowStart && last_min_us_ != kNone) {
            const std::uint32_t threshold = std::clamp(last_min_us_ / kMinRttDivisor, kMinRttThreshUs, kMaxRttThreshUs);
            if (current_min_us_ >= last_min_us_ + threshold) {
                baseline_us_ = current_min_us_;
                conservative_rounds_ = 0;
                phase_ = Phase::kConservative;
            }
        } else if (phase_ == Phase::kConservative && current_min_us_ < baseline_us_) {
            baseline_us_ = kNone;  // the rise was noise: resume slow start
            phase_ = Phase::kSlowStart;
        }
    }

    if (snd_una > round_end_) {  // the round is over: what was sent when it began is acknowledged
        if (phase_ == Phase::kConservative && ++conservative_rounds_ >= kConservativeRounds) phase_ = Phase::kDone;
        round_end_ = snd_nxt;
        last_min_us_ = current_min_us_;
        current_min_us_ = kNone;
        samples_ = 0;
    }
    return phase_;
}

}  // namespace culvert::stack::tcp
