// NewReno: RFC 5681 slow start and congestion avoidance with appropriate byte counting (RFC 3465), halving on loss.
// What to retransmit, RFC 6582, is the business of loss_recovery.
#pragma once

#include "daemon/stack/tcp/congestion/controller.h"

namespace culvert::stack::tcp {

/// What NewReno and DCTCP have in common.
class RenoBase : public CongestionController {
public:
    void on_ack(const AckEvent& event) override;
    void on_congestion_echo(Instant now, std::uint64_t in_flight) override;
    void on_enter_recovery(Instant now, std::uint64_t in_flight) override;
    void on_exit_recovery(Instant now) override;
    void on_rto(Instant now, std::uint64_t in_flight, bool first) override;
    void undo() override;

protected:
    explicit RenoBase(std::uint32_t mss) : CongestionController(mss) {}
    ~RenoBase() = default;
    /// Both windows become `bytes`, two segments at least. A mark is never spurious: a later undo of a loss must not
    /// give back what it took.
    void shrink_for_mark(std::uint32_t bytes);

private:
    std::uint32_t bytes_acked_ = 0;     // towards the next segment of growth in congestion avoidance
    std::uint32_t prior_cwnd_ = 0;      // before the last reduction; 0: nothing to undo
    std::uint32_t prior_ssthresh_ = 0;
};

class NewReno final : public RenoBase {
public:
    explicit NewReno(std::uint32_t mss) : RenoBase(mss) {}
    Algorithm algorithm() const override { return Algorithm::kNewReno; }
};

}  // namespace culvert::stack::tcp
