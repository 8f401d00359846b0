// NewReno: RFC 5681 slow start and congestion avoidance with appropriate byte counting (RFC 3465), halving on loss.
// What to retransmit, RFC 6582, is the business of loss_recovery.
#pragma once

#include "daemon/stack/tcp/congestion/controller.h"

namespace culvert::stack::tcp {

class NewReno final : public CongestionController {
public:
    explicit NewReno(std::uint32_t mss) : CongestionController(mss) {}

    Algorithm algorithm() const override { return Algorithm::kNewReno; }
    void on_ack(const AckEvent& event) override;
    void on_congestion_echo(Instant now, std::uint64_t in_flight) override;
    void on_enter_recovery(Instant now, std::uint64_t in_flight) override;
    void on_exit_recovery(Instant now) override;
    void on_rto(Instant now, std::uint64_t in_flight, bool first) override;
    void undo() override;

private:
    std::uint32_t bytes_acked_ = 0;     // towards the next segment of growth in congestion avoidance
    std::uint32_t prior_cwnd_ = 0;      // before the last reduction; 0: nothing to undo
    std::uint32_t prior_ssthresh_ = 0;
};

}  // namespace culvert::stack::tcp
