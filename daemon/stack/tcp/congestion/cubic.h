// CUBIC, RFC 9438: after a loss the window follows a cubic curve of *time* back to where the loss happened, rests there,
// and then probes beyond. Where Reno would be faster (short round trips, small windows) it goes as fast as Reno.
// The first slow start is HyStart++ (RFC 9406).
//
//     cwnd ^                                        /
//          |  W_max ......................._______./     C (t - K)^3 + W_max
//          |  |                      ___---       K
//          |  | beta = 0.7        _--
//          |  v .................-
//          +--------------------------------------------> t since the reduction
#pragma once

#include "daemon/stack/tcp/congestion/controller.h"
#include "daemon/stack/tcp/congestion/hystart.h"

namespace culvert::stack::tcp {

class Cubic final : public CongestionController {
public:
    explicit Cubic(std::uint32_t mss) : CongestionController(mss) {}

    Algorithm algorithm() const override { return Algorithm::kCubic; }
    void on_ack(const AckEvent& event) override;
    void on_congestion_echo(Instant now, std::uint64_t in_flight) override;
    void on_enter_recovery(Instant now, std::uint64_t in_flight) override;
    void on_exit_recovery(Instant now) override;
    void on_rto(Instant now, std::uint64_t in_flight, bool first) override;
    void undo() override;
    void on_idle_restart() override;

    Hystart::Phase hystart_phase() const { return searching_ ? hystart_.phase() : Hystart::Phase::kDone; }

private:
    /// Reduces W_max and ssthresh (to `beta` of what is in flight), not cwnd. [RFC9438 4.6, 4.7]
    void reduce(std::uint64_t in_flight, double beta);
    void begin_epoch(Instant now);
    void end_epoch() {
        if (!searching_) curve_.epoch_start = kNever;
    }
    void stop_searching() {
        searching_ = false;
        curve_ = Curve{};
    }
    void avoid_congestion(std::uint64_t acked, Instant now);
    void slow_start(const AckEvent& event, std::uint64_t& acked);

    // Windows in bytes, times in seconds.
    struct Curve {
        double w_est = 0;               // what Reno would have by now
        Instant epoch_start = kNever;   // kNever: the next ACK in congestion avoidance begins an epoch
        float k = 0;                    // when the curve is back at w_max_
        float credit = 0;               // growth of less than a byte
    };
    // The search for the end of the first slow start is over before there is a curve.
    union {
        Hystart hystart_{};             // searching_
        Curve curve_;                   // otherwise
    };
    Instant limited_since_ = kNever;   // the window is not used since: that time does not count
    std::uint32_t cwnd_prior_ = 0;     // before the last reduction
    std::uint32_t prior_ssthresh_ = 0; // 0: nothing to undo
    float w_max_ = 0;                  // window at the last reduction; 0: there was none
    float prior_w_max_ = 0;
    std::uint32_t rtt_us_ = 0;         // last measured
    bool searching_ = true;
};

}  // namespace culvert::stack::tcp
