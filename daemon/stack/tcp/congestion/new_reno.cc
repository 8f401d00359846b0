#include "daemon/stack/tcp/congestion/new_reno.h"

#include <algorithm>

namespace culvert::stack::tcp {

void RenoBase::on_ack(const AckEvent& event) {
    if (!may_grow(event)) return;
    std::uint64_t acked = event.acked_bytes;
    if (in_slow_start()) {
        // [RFC5681 3.1] cwnd += min(N, SMSS) per ACK; since receivers and NICs merge ACKs, all N bytes count, as they
        // do in Linux. Never past ssthresh: the rest counts as congestion avoidance.
        const std::uint64_t step = std::min<std::uint64_t>(acked, ssthresh_ - cwnd_);
        grow(step);
        acked -= step;
        if (acked == 0) return;
    }
    // [RFC5681 3.1] [RFC3465 2.1] one segment per window of acknowledged bytes
    std::uint64_t credit = bytes_acked_ + acked;
    while (credit >= cwnd_) {
        credit -= cwnd_;
        grow(mss_);
    }
    bytes_acked_ = static_cast<std::uint32_t>(credit);
}

void RenoBase::on_enter_recovery(Instant, std::uint64_t in_flight) {
    prior_cwnd_ = cwnd_;
    prior_ssthresh_ = ssthresh_;
    ssthresh_ = std::max(flight_size(in_flight) / 2, 2 * mss_);  // [RFC5681 3.1] equation (4)
    cwnd_ = ssthresh_;
    bytes_acked_ = 0;
}

void RenoBase::shrink_for_mark(std::uint32_t bytes) {
    ssthresh_ = std::max(bytes, 2 * mss_);
    cwnd_ = ssthresh_;
    bytes_acked_ = 0;
    prior_cwnd_ = 0;
}

void RenoBase::on_congestion_echo(Instant, std::uint64_t in_flight) {
    // [RFC8511 3.1] beta_ecn = 0.8: a mark says that a queue began to grow, a loss that it was full.
    shrink_for_mark(static_cast<std::uint32_t>(std::uint64_t{flight_size(in_flight)} * 4 / 5));
}

void RenoBase::on_exit_recovery(Instant) {
    // [RFC6582 3.2 step 3 (2)]. What undo needs stays: a D-SACK often arrives just after the end of recovery.
    cwnd_ = std::max(ssthresh_, mss_);
}

void RenoBase::on_rto(Instant, std::uint64_t in_flight, bool first) {
    if (first) {
        prior_cwnd_ = cwnd_;
        prior_ssthresh_ = ssthresh_;
        ssthresh_ = std::max(flight_size(in_flight) / 2, 2 * mss_);
    }
    cwnd_ = mss_;  // [RFC5681 3.1] loss window
    bytes_acked_ = 0;
}

void RenoBase::undo() {
    if (prior_cwnd_ == 0) return;
    cwnd_ = std::max(cwnd_, prior_cwnd_);
    ssthresh_ = std::max(ssthresh_, prior_ssthresh_);
    prior_cwnd_ = 0;
}

}  // namespace culvert::stack::tcp
