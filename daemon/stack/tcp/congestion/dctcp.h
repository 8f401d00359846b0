// Data Center TCP, RFC 8257: the queue marks early and often, and the window shrinks by as much as was marked.
//
//   alpha   the fraction of bytes that were marked, smoothed over windows
//   a mark  cwnd *= 1 - alpha / 2, once a window: a hair when few segments were marked, half when all were
//   a loss  as NewReno
//
// Needs exact echoes (Connection::echo_exactly at the other end) and ECN on every hop. Without ECN it is NewReno.
#pragma once

#include "daemon/stack/tcp/congestion/new_reno.h"

namespace culvert::stack::tcp {

class Dctcp final : public RenoBase {
public:
    explicit Dctcp(std::uint32_t mss) : RenoBase(mss) { exact_echo_ = true; }

    Algorithm algorithm() const override { return Algorithm::kDctcp; }
    void on_delivery(const DeliveryEvent& event) override;
    void on_congestion_echo(Instant now, std::uint64_t in_flight) override;

    float alpha() const { return alpha_; }

private:
    static constexpr float kGain = 1.0f / 16;  // [RFC8257 4.2] g

    float alpha_ = 1;                // [RFC8257 3.3] careful until measured
    Position last_una_ = 0;          // 0: no event yet
    Position window_end_ = 0;        // [RFC8257 3.3] DCTCP.WindowEnd
    std::uint64_t acked_bytes_ = 0;
    std::uint64_t marked_bytes_ = 0;
};

}  // namespace culvert::stack::tcp
