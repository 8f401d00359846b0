#include "daemon/stack/tcp/rtt_estimator.h"

#include <algorithm>

namespace culvert::stack::tcp {

namespace {
std::uint32_t to_us(Duration d) {
    const auto us = std::chrono::duration_cast<std::chrono::microseconds>(d).count();
    return static_cast<std::uint32_t>(std::clamp<std::int64_t>(us, 0, UINT32_MAX - 1));
}
}  // namespace

RttEstimator::RttEstimator(Duration min_rto) : min_rto_us_(to_us(min_rto)) {}

void RttEstimator::sample(Duration rtt, Instant now) {
    rtt = std::clamp<Duration>(rtt, Duration(1), kMaxRto);  // a clock step or a forged timestamp must not poison SRTT
    if (!has_sample()) {
        srtt_ = rtt;  // [RFC6298 2.2]
        rttvar_ = rtt / 2;
        window_start_ = now;
    } else {
        const Duration error = rtt > srtt_ ? rtt - srtt_ : srtt_ - rtt;
        rttvar_ += (error - rttvar_) / 4;  // [RFC6298 2.3] beta = 1/4, and before SRTT
        srtt_ = std::max<Duration>(srtt_ + (rtt - srtt_) / 8, Duration(1));  // alpha = 1/8
    }
    backoffs_ = 0;

    if (now - window_start_ >= kMinRttWindow) {
        // If nothing was measured for two windows, the old minimum says nothing any more.
        previous_min_us_ = now - window_start_ >= 2 * kMinRttWindow ? UINT32_MAX : window_min_us_;
        window_min_us_ = UINT32_MAX;
        window_start_ = now;
    }
    window_min_us_ = std::min(window_min_us_, to_us(rtt));
}

Duration RttEstimator::rto() const {
    Duration base = syn_lost_ ? kInitialRtoAfterSynLoss : kInitialRto;
    if (has_sample()) {
        const Duration floor = std::chrono::microseconds(min_rto_us_);
        base = srtt_ + std::max<Duration>(4 * rttvar_, floor);  // [RFC6298 2.3] K = 4
    }
    base = std::min(base, kMaxRto);
    for (unsigned i = 0; i < backoffs_ && base < kMaxRto; ++i) base *= 2;
    return std::min(base, kMaxRto);
}

Duration RttEstimator::min_rtt() const {
    const std::uint32_t us = std::min(window_min_us_, previous_min_us_);
    return us == UINT32_MAX ? Duration::max() : Duration(std::chrono::microseconds(us));
}

}  // namespace culvert::stack::tcp
