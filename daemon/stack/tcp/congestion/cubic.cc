#include "daemon/stack/tcp/congestion/cubic.h"

#include <algorithm>
#include <cmath>

namespace culvert::stack::tcp {

namespace {
constexpr double kBeta = 0.7;  // [RFC9438 4.6]
// [RFC8511 3.1] a mark says that a queue began to grow, a loss that it was full
constexpr double kBetaEcn = 0.85;
constexpr double kC = 0.4;     // [RFC9438 5.1] segments per second cubed
// [RFC9438 4.3] makes the average of w_est that of Reno with a reduction to kBeta
constexpr double kAlpha = 3 * (1 - kBeta) / (1 + kBeta);

double seconds(Duration d) { return std::chrono::duration<double>(d).count(); }
}  // namespace

void Cubic::on_ack(const AckEvent& event) {
    if (event.rtt > Duration::zero()) {
        rtt_us_ = static_cast<std::uint32_t>(
            std::min<std::int64_t>(std::chrono::duration_cast<std::chrono::microseconds>(event.rtt).count(), INT32_MAX));
    }
    std::uint64_t acked = event.acked_bytes;
    if (!may_grow(event)) {
        if (limited_since_ == kNever) limited_since_ = event.now;
        return;
    }
    if (limited_since_ != kNever) {
        // [RFC9438 5.8] the curve does not advance while the application, not the path, is the limit.
        if (!searching_ && curve_.epoch_start != kNever) curve_.epoch_start += event.now - limited_since_;
        limited_since_ = kNever;
    }
    if (in_slow_start()) slow_start(event, acked);
    if (acked > 0) avoid_congestion(acked, event.now);
}

void Cubic::slow_start(const AckEvent& event, std::uint64_t& acked) {
    std::uint64_t step = acked;
    if (ssthresh_ == UINT32_MAX) {  // [RFC9406 4.3] only the first slow start
        const auto phase = searching_ ? hystart_.on_ack(event.rtt, event.snd_una, event.snd_nxt) : Hystart::Phase::kDone;
        if (phase == Hystart::Phase::kDone) {
            ssthresh_ = cwnd_;
            return;
        }
        step = std::min<std::uint64_t>(step, std::uint64_t{Hystart::kMaxSegmentsPerAck} * mss_);
        if (phase == Hystart::Phase::kConservative) step /= Hystart::kConservativeDivisor;
        acked = 0;
    } else {
        step = std::min<std::uint64_t>(step, ssthresh_ - cwnd_);
        acked -= step;
    }
    grow(step);
}

void Cubic::begin_epoch(Instant now) {
    if (searching_) stop_searching();
    curve_.epoch_start = now;
    const double cwnd = cwnd_;
    if (cwnd < static_cast<double>(w_max_)) {
        curve_.k = static_cast<float>(std::cbrt((static_cast<double>(w_max_) - cwnd) / (kC * mss_)));  // [RFC9438 4.2]
    } else {
        curve_.k = 0;  // slow start ended without a loss, or beyond the last one
        w_max_ = static_cast<float>(cwnd);
    }
    curve_.w_est = cwnd;
    curve_.credit = 0;
}

void Cubic::avoid_congestion(std::uint64_t acked, Instant now) {
    if (searching_ || curve_.epoch_start == kNever) begin_epoch(now);
    const double cwnd = cwnd_;
    const double bytes = static_cast<double>(acked);
    const double t = seconds(now - curve_.epoch_start);
    const auto curve = [&](double at) {
        const double x = at - static_cast<double>(curve_.k);
        return kC * mss_ * x * x * x + static_cast<double>(w_max_);  // [RFC9438 4.2] figure 1
    };

    // [RFC9438 4.3] once past the window of the last reduction, Reno's own increase of one segment a round trip
    const double alpha = curve_.w_est < static_cast<double>(cwnd_prior_) ? kAlpha : 1.0;
    curve_.w_est += alpha * mss_ * bytes / cwnd;

    double growth = 0;
    if (curve(t) < curve_.w_est) {
        growth = curve_.w_est - cwnd;
    } else {
        const double target = std::clamp(curve(t + rtt_us_ * 1e-6), cwnd, 1.5 * cwnd);  // [RFC9438 4.2]
        growth = (target - cwnd) * std::min(bytes / cwnd, 1.0);                         // [RFC9438 4.4, 4.5]
    }
    growth = std::max(growth, 0.0) + static_cast<double>(curve_.credit);
    const double whole = std::floor(growth);
    curve_.credit = static_cast<float>(growth - whole);
    grow(static_cast<std::uint64_t>(whole));
}

void Cubic::reduce(std::uint64_t in_flight, double beta) {
    cwnd_prior_ = cwnd_;
    prior_ssthresh_ = ssthresh_;
    prior_w_max_ = w_max_;
    const double cwnd = cwnd_;
    // [RFC9438 4.7] fast convergence: a flow that did not reach its last maximum gives way to newer ones.
    w_max_ = static_cast<float>(cwnd < static_cast<double>(w_max_) ? cwnd * (1 + kBeta) / 2 : cwnd);
    ssthresh_ = std::max(static_cast<std::uint32_t>(flight_size(in_flight) * beta), 2 * mss_);  // [RFC9438 4.6]
    limited_since_ = kNever;
    stop_searching();
}

void Cubic::on_enter_recovery(Instant, std::uint64_t in_flight) {
    reduce(in_flight, kBeta);
    cwnd_ = ssthresh_;
}

void Cubic::on_congestion_echo(Instant, std::uint64_t in_flight) {
    reduce(in_flight, kBetaEcn);
    cwnd_ = ssthresh_;
    prior_ssthresh_ = 0;  // a mark is never spurious: a later undo of a loss must not give this back
}

void Cubic::on_exit_recovery(Instant) {
    cwnd_ = std::max(ssthresh_, mss_);
    end_epoch();  // the curve starts when congestion avoidance does
}

void Cubic::on_rto(Instant, std::uint64_t in_flight, bool first) {
    if (first) reduce(in_flight, kBeta);  // [RFC9438 4.8]
    end_epoch();
    cwnd_ = mss_;
}

void Cubic::undo() {  // [RFC9438 4.9]
    if (prior_ssthresh_ == 0) return;
    cwnd_ = std::max(cwnd_, cwnd_prior_);
    ssthresh_ = std::max(ssthresh_, prior_ssthresh_);
    w_max_ = std::max(w_max_, prior_w_max_);
    prior_ssthresh_ = 0;
    end_epoch();
}

void Cubic::on_idle_restart() {
    CongestionController::on_idle_restart();
    end_epoch();
    limited_since_ = kNever;
}

}  // namespace culvert::stack::tcp
