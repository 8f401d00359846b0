// BBR version 3, draft-ietf-ccwg-bbr-06: a model of the path (how fast, how far, how much it holds) instead of a reaction
// to loss. The rate of delivery and the least round-trip time are measured; pacing and window follow from them.
//
//             bandwidth no longer grows,            queue gone
//             or 2 % loss for a round
//   Startup -------------------------> Drain -------------------> ProbeBW:
//   2.77 * bw, window 2 BDP            0.5 * bw
//                                                +-> Down 0.9 ---> Cruise 1.0 --- 2-3 s, or 62 rounds ---+
//                                                |     (leave room)                                       v
//                                                +--- Up 1.25 (more and more in flight) <--- Refill 1.0, one round
//
//   ProbeRTT   from anywhere: no lower round trip for 5 s -> half a BDP for 200 ms, so that queues empty and the true
//              round trip shows; back to Cruise (or Startup)
//
//   bounds     max_bw               the fastest of the last two probing cycles
//              bw_shortterm         and inflight_shortterm: since the last loss outside of probing; forgotten by Refill
//              inflight_longterm    what was in flight when probing lost 2 %; raised by the next probes
//
// The model is larger than a connection's CongestionState: it lies in a pool of the engine (BbrPool). The names are those of
// the draft, so that the two can be read side by side. Bytes, and bytes a second.
//
// Departures, each because of what the sender here can tell: a loss is judged by the sample of the ACK that showed it, not
// segment by segment (RACK reports both at once), and "more than six ranges lost in a round" counts ACKs that showed loss.
// ECN (RFC 3168), on which the draft is silent: an echo counts as a round with too much loss.
#pragma once

#include <cstdint>

#include "daemon/base/lazy_pool.h"
#include "daemon/base/rng.h"
#include "daemon/stack/tcp/congestion/controller.h"

namespace culvert::stack::tcp {

struct BbrModel {
    static constexpr std::uint64_t kInfinity = UINT64_MAX;
    enum class State : std::uint8_t { kStartup, kDrain, kDown, kCruise, kRefill, kUp, kProbeRtt };
    enum class AckPhase : std::uint8_t { kInit, kRefilling, kProbeStarting, kProbeFeedback, kProbeStopping };

    explicit BbrModel(std::uint64_t seed) : rng(seed) {}

    Rng rng;
    std::uint64_t delivered = 0;             // C.delivered at the last event
    std::uint64_t acked = 0;                 // delivered since this controller took over
    std::uint64_t next_round_delivered = 0;  // a segment sent from here on ends the round
    std::uint32_t round_count = 0;
    std::uint32_t rounds_since_probe_up = 0;
    // how fast
    std::uint64_t bw = 0;
    std::uint64_t max_bw_filter[2] = {0, 0};  // the last probing cycle, and this one
    std::uint64_t bw_shortterm = kInfinity;
    std::uint64_t bw_latest = 0;
    std::uint64_t full_bw = 0;
    // how much
    std::uint64_t inflight_shortterm = kInfinity;
    std::uint64_t inflight_longterm = kInfinity;
    std::uint64_t inflight_latest = 0;
    std::uint64_t max_inflight = 0;
    std::uint64_t probe_up_acked_per_inc = kInfinity;
    std::uint64_t bw_probe_up_acked = 0;
    std::uint64_t loss_round_delivered = 0;
    std::uint64_t extra_acked_delivered = 0;
    std::uint64_t extra_acked[2] = {0, 0};   // the largest of the last window of rounds, and of this one
    std::uint64_t app_limited_from = 0;      // samples that began in here were held back by ProbeRTT
    std::uint64_t app_limited_until = 0;
    std::uint32_t extra_acked_round = 0;     // when this window began
    std::uint32_t drain_start_round = 0;
    std::uint32_t prior_cwnd = 0;
    // how far
    Duration min_rtt = Duration::max();
    Duration probe_rtt_min_delay = Duration::max();
    Instant min_rtt_stamp{};
    Instant probe_rtt_min_stamp{};
    Instant probe_rtt_done_stamp{};          // zero: not low enough yet
    Instant extra_acked_interval_start{};
    Instant cycle_stamp{};
    Duration bw_probe_wait{};
    // undo
    std::uint64_t undo_bw_shortterm = 0;
    std::uint64_t undo_inflight_shortterm = 0;
    std::uint64_t undo_inflight_longterm = 0;
    State undo_state = State::kProbeRtt;     // kStartup or kUp: go back there; else nothing

    State state = State::kStartup;
    AckPhase ack_phase = AckPhase::kInit;
    std::uint8_t full_bw_count = 0;
    std::uint8_t bw_probe_up_rounds = 0;
    std::uint8_t loss_events_in_round = 0;
    bool started : 1 = false;                // the first event has come
    bool rtt_seen : 1 = false;
    bool round_start : 1 = false;
    bool loss_round_start : 1 = false;
    bool is_loss_in_round : 1 = false;
    bool full_bw_now : 1 = false;
    bool full_bw_reached : 1 = false;
    bool is_bw_probe_sample : 1 = false;
    bool prev_probe_too_high : 1 = false;
    bool prev_probe_precautionary : 1 = false;
    bool probe_rtt_expired : 1 = false;
    bool probe_rtt_round_done : 1 = false;
    bool idle_restart : 1 = false;
    bool in_loss_recovery : 1 = false;
};

/// The models of one engine.
class BbrPool {
public:
    BbrPool(std::uint32_t count, Rng& rng) : pool_(sizeof(BbrModel), count), rng_(rng) {}

    /// nullptr when all are in use: the connection then runs CUBIC.
    BbrModel* create();
    void destroy(BbrModel* model);
    std::uint32_t used() const { return pool_.used(); }

private:
    LazyPool pool_;
    Rng& rng_;
};

class Bbr final : public CongestionController {
public:
    // [BBR 2.4, 2.5, 2.8]
    static constexpr double kStartupPacingGain = 2.77;
    static constexpr double kDrainPacingGain = 0.5;
    static constexpr double kDefaultCwndGain = 2.0;
    static constexpr double kLossThresh = 0.02;
    static constexpr double kBeta = 0.7;
    static constexpr double kHeadroom = 0.15;
    static constexpr double kPacingMargin = 0.99;
    static constexpr double kProbeRttCwndGain = 0.5;
    static constexpr std::uint8_t kStartupFullLossCount = 6;
    static constexpr Duration kMinRttFilterLength = std::chrono::seconds(10);
    static constexpr Duration kProbeRttInterval = std::chrono::seconds(5);
    static constexpr Duration kProbeRttDuration = std::chrono::milliseconds(200);

    using State = BbrModel::State;
    using AckPhase = BbrModel::AckPhase;

    Bbr(std::uint32_t mss, BbrModel& model);

    Algorithm algorithm() const override { return Algorithm::kBbr; }
    void on_delivery(const DeliveryEvent& event) override;
    void on_ack(const AckEvent&) override {}  // on_delivery tells more
    void on_congestion_echo(Instant now, std::uint64_t in_flight) override;
    void on_enter_recovery(Instant now, std::uint64_t in_flight) override;
    void on_exit_recovery(Instant now) override;
    void on_rto(Instant now, std::uint64_t in_flight, bool first) override;
    void undo() override;
    void on_idle_restart() override;

    BbrModel& model() { return m_; }
    const BbrModel& model() const { return m_; }
    std::uint64_t max_bw() const;
    /// Bytes in flight that keep the path busy at `rate`, times `gain`. [BBR 5.6.4.2]
    std::uint64_t bdp_multiple(std::uint64_t rate, double gain) const;

private:
    /// What the draft calls RS.
    struct Sample {
        std::uint64_t delivery_rate = 0;  // 0: not known
        bool app_limited = false;
        bool valid = false;               // it began at a known time
    };

    // bbr.cc: the model
    Sample sample_of(const DeliveryEvent& event) const;
    void begin(const DeliveryEvent& event);
    void update_latest_signals(const DeliveryEvent& event, const Sample& sample);
    void update_congestion_signals(const DeliveryEvent& event, const Sample& sample);
    void update_round(const DeliveryEvent& event, const Sample& sample);
    void adapt_lower_bounds();
    void update_ack_aggregation(const DeliveryEvent& event);
    void update_min_rtt(const DeliveryEvent& event);
    void note_loss();
    void save_state();
    void on_lost(const DeliveryEvent& event, const Sample& sample);
    bool inflight_too_high(std::uint64_t lost, std::uint64_t flight) const;
    void handle_inflight_too_high(std::uint64_t flight, bool app_limited, Instant now);
    void reset_congestion_signals();
    void reset_short_term();
    void start_round() { m_.next_round_delivered = m_.delivered; }
    void save_cwnd();
    void restore_cwnd();
    void set_pacing_rate(double gain);
    void set_cwnd(const DeliveryEvent& event);
    std::uint64_t quantized(std::uint64_t inflight) const;
    std::uint64_t inflight_at(std::uint64_t rate, double gain) const { return quantized(bdp_multiple(rate, gain)); }
    std::uint64_t inflight_with_headroom() const;
    std::uint64_t probe_rtt_cwnd() const;
    std::uint64_t target_inflight() const;
    std::uint64_t min_pipe_cwnd() const { return std::uint64_t{4} * mss_; }
    double pacing_gain() const;
    double cwnd_gain() const;

    // bbr_states.cc: the state machine
    void check_full_bw(const Sample& sample);
    void reset_full_bw();
    void check_startup_done(const DeliveryEvent& event, const Sample& sample);
    void leave_startup_for_loss();
    void check_drain_done(const DeliveryEvent& event);
    void update_probe_bw(const DeliveryEvent& event, const Sample& sample);
    bool adapt_long_term(const DeliveryEvent& event, const Sample& sample);
    void probe_longterm_upward(const DeliveryEvent& event);
    void raise_longterm_slope();
    bool time_to_probe(Instant now);
    bool time_to_cruise(const DeliveryEvent& event) const;
    bool time_to_go_down(const DeliveryEvent& event, const Sample& sample);
    void start_down(Instant now);
    void start_refill();
    void start_up(const Sample& sample);
    void check_probe_rtt(const DeliveryEvent& event);
    void check_probe_rtt_done(Instant now);
    bool in_probe_bw() const { return m_.state >= State::kDown && m_.state <= State::kUp; }
    bool probing_bw() const {
        return m_.state == State::kStartup || m_.state == State::kRefill || m_.state == State::kUp;
    }
    bool cwnd_limited(const DeliveryEvent& event) const {
        return event.in_flight + event.newly_delivered + event.newly_lost + mss_ > cwnd_;
    }

    BbrModel& m_;
};

}  // namespace culvert::stack::tcp
