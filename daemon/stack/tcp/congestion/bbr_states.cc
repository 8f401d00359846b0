// BBR: the state machine. draft-ietf-ccwg-bbr-06, section 5.3.
#include <algorithm>

#include "daemon/stack/tcp/congestion/bbr.h"

namespace culvert::stack::tcp {

// --- Startup and Drain [BBR 5.3.1, 5.3.2] ---------------------------------------------------------------------------

void Bbr::reset_full_bw() {
    m_.full_bw = 0;
    m_.full_bw_count = 0;
    m_.full_bw_now = false;
}

/// Three rounds in which trying to send faster did not deliver a quarter more: the pipe is full. [BBR 5.3.1.2]
void Bbr::check_full_bw(const Sample& sample) {
    if (m_.full_bw_now || !m_.round_start || sample.app_limited || sample.delivery_rate == 0) return;
    if (static_cast<double>(sample.delivery_rate) >= static_cast<double>(m_.full_bw) * 1.25) {
        reset_full_bw();
        m_.full_bw = sample.delivery_rate;
        return;
    }
    ++m_.full_bw_count;
    m_.full_bw_now = m_.full_bw_count >= 3;
    if (m_.full_bw_now) m_.full_bw_reached = true;
}

void Bbr::leave_startup_for_loss() {
    m_.undo_state = State::kStartup;
    m_.full_bw_reached = true;
    m_.inflight_longterm = std::max(bdp_multiple(max_bw(), 1.0), m_.inflight_latest);
}

/// [BBR 5.3.1.3]
void Bbr::check_startup_done(const DeliveryEvent& event, const Sample& sample) {
    if (m_.state == State::kStartup && !m_.full_bw_reached && m_.loss_round_start && event.in_recovery && sample.valid &&
        m_.loss_events_in_round >= kStartupFullLossCount &&
        inflight_too_high(event.lost_since_send, event.flight_at_send))
        leave_startup_for_loss();
    if (m_.loss_round_start) m_.loss_events_in_round = 0;
    if (m_.state == State::kStartup && m_.full_bw_reached) {
        m_.state = State::kDrain;
        m_.drain_start_round = m_.round_count;
    }
}

void Bbr::check_drain_done(const DeliveryEvent& event) {
    if (m_.state != State::kDrain) return;
    if (event.in_flight <= inflight_at(std::min(max_bw(), m_.bw_shortterm), 1.0) ||
        m_.round_count > m_.drain_start_round + 3)
        start_down(event.now);
}

// --- ProbeBW [BBR 5.3.3.9] ------------------------------------------------------------------------------------------

void Bbr::start_down(Instant now) {
    reset_congestion_signals();
    m_.probe_up_acked_per_inc = BbrModel::kInfinity;
    // [BBR 5.3.3.8] how long until the next probe: 2 to 3 seconds, so that flows do not probe together
    m_.rounds_since_probe_up = static_cast<std::uint32_t>(m_.rng.below(2));
    m_.bw_probe_wait = std::chrono::seconds(2) + Duration(static_cast<Duration::rep>(m_.rng.below(1'000'000'000)));
    m_.cycle_stamp = now;
    m_.ack_phase = AckPhase::kProbeStopping;
    start_round();
    m_.state = State::kDown;
}

void Bbr::start_refill() {
    reset_short_term();
    m_.bw_probe_up_rounds = 0;
    m_.bw_probe_up_acked = 0;
    m_.prev_probe_precautionary = false;
    m_.ack_phase = AckPhase::kRefilling;
    start_round();
    m_.state = State::kRefill;
}

void Bbr::start_up(const Sample& sample) {
    m_.ack_phase = AckPhase::kProbeStarting;
    start_round();
    reset_full_bw();
    m_.full_bw = sample.delivery_rate;
    m_.state = State::kUp;
    raise_longterm_slope();
}

void Bbr::update_probe_bw(const DeliveryEvent& event, const Sample& sample) {
    if (!m_.full_bw_reached) return;
    if (adapt_long_term(event, sample)) return;
    switch (m_.state) {
        case State::kDown:
            if (!time_to_probe(event.now) && time_to_cruise(event)) m_.state = State::kCruise;
            break;
        case State::kCruise: time_to_probe(event.now); break;
        case State::kRefill:
            if (m_.round_start) {
                m_.is_bw_probe_sample = true;
                start_up(sample);
            }
            break;
        case State::kUp:
            if (time_to_go_down(event, sample)) {
                m_.prev_probe_too_high = false;  // no high loss yet
                start_down(event.now);
            }
            break;
        default: break;
    }
}

/// After 2 to 3 seconds, or as often as Reno would have lost a segment on this path. [BBR 5.3.3.8]
bool Bbr::time_to_probe(Instant now) {
    const std::uint64_t reno_rounds = target_inflight() / mss_;
    if (now <= m_.cycle_stamp + m_.bw_probe_wait &&
        m_.rounds_since_probe_up < std::min<std::uint64_t>(reno_rounds, 63))
        return false;
    start_refill();
    return true;
}

bool Bbr::time_to_cruise(const DeliveryEvent& event) const {
    return event.in_flight <= inflight_with_headroom() && event.in_flight <= inflight_at(max_bw(), 1.0);
}

bool Bbr::time_to_go_down(const DeliveryEvent& event, const Sample& sample) {
    if (m_.prev_probe_too_high && event.in_flight >= m_.inflight_longterm) {  // [BBR 5.3.3.6] deceleration
        m_.prev_probe_precautionary = true;
        return true;
    }
    if (cwnd_limited(event) && cwnd_ >= m_.inflight_longterm) {
        reset_full_bw();  // the bound, not the path, holds the rate
        m_.full_bw = sample.delivery_rate;
        return false;
    }
    return m_.full_bw_now;
}

/// The additive increase doubles each round: 1, 2, 4 ... segments. [BBR 5.3.3.5]
void Bbr::raise_longterm_slope() {
    const std::uint64_t growth_this_round = std::uint64_t{1} << m_.bw_probe_up_rounds;
    m_.bw_probe_up_rounds = static_cast<std::uint8_t>(std::min(m_.bw_probe_up_rounds + 1, 30));
    m_.probe_up_acked_per_inc = std::max<std::uint64_t>(cwnd_ / growth_this_round, mss_);
}

void Bbr::probe_longterm_upward(const DeliveryEvent& event) {
    if (!cwnd_limited(event) || cwnd_ < m_.inflight_longterm) return;
    m_.bw_probe_up_acked += event.newly_delivered;
    if (m_.bw_probe_up_acked >= m_.probe_up_acked_per_inc) {
        const std::uint64_t delta = m_.bw_probe_up_acked / m_.probe_up_acked_per_inc;
        m_.bw_probe_up_acked -= delta * m_.probe_up_acked_per_inc;
        m_.inflight_longterm += delta * mss_;
    }
    if (m_.round_start) raise_longterm_slope();
}

/// True: a state transition was decided.
bool Bbr::adapt_long_term(const DeliveryEvent& event, const Sample& sample) {
    if (m_.ack_phase == AckPhase::kProbeStarting && m_.round_start) m_.ack_phase = AckPhase::kProbeFeedback;
    if (m_.ack_phase == AckPhase::kProbeStopping && m_.round_start) {
        m_.is_bw_probe_sample = false;
        m_.ack_phase = AckPhase::kInit;
        if (in_probe_bw() && !sample.app_limited && m_.max_bw_filter[1] != 0) {  // [BBR 5.5.6] AdvanceMaxBwFilter
            m_.max_bw_filter[0] = m_.max_bw_filter[1];
            m_.max_bw_filter[1] = 0;
        }
        if (in_probe_bw() && m_.prev_probe_precautionary && !m_.prev_probe_too_high) {  // [BBR 5.3.3.6] acceleration
            start_refill();
            return true;
        }
    }
    if (m_.inflight_longterm == BbrModel::kInfinity || inflight_too_high(event.lost_since_send, event.flight_at_send)) return false;
    m_.inflight_longterm = std::max(m_.inflight_longterm, event.flight_at_send);
    if (m_.state == State::kUp) probe_longterm_upward(event);
    return false;
}

// --- ProbeRTT [BBR 5.3.4.3] -----------------------------------------------------------------------------------------

void Bbr::check_probe_rtt(const DeliveryEvent& event) {
    if (m_.state != State::kProbeRtt && m_.probe_rtt_expired && !m_.idle_restart) {
        save_cwnd();
        m_.state = State::kProbeRtt;
        m_.probe_rtt_done_stamp = {};
        m_.ack_phase = AckPhase::kProbeStopping;
        m_.app_limited_from = m_.delivered;
        start_round();
    }
    if (m_.state == State::kProbeRtt) {
        // What is sent now is held back by us: its samples say nothing about the path.
        m_.app_limited_until = std::max<std::uint64_t>(m_.delivered + event.in_flight, 1);
        if (m_.probe_rtt_done_stamp == Instant{}) {
            if (event.in_flight <= probe_rtt_cwnd()) {
                m_.probe_rtt_done_stamp = event.now + kProbeRttDuration;
                m_.probe_rtt_round_done = false;
                start_round();
            }
        } else {
            if (m_.round_start) m_.probe_rtt_round_done = true;
            if (m_.probe_rtt_round_done) check_probe_rtt_done(event.now);
        }
    }
    m_.idle_restart = false;
}

/// [BBR 5.3.4.4]
void Bbr::check_probe_rtt_done(Instant now) {
    if (m_.probe_rtt_done_stamp == Instant{} || now <= m_.probe_rtt_done_stamp) return;
    m_.probe_rtt_min_stamp = now;  // the next one in 5 seconds
    restore_cwnd();
    reset_short_term();
    if (!m_.full_bw_reached) {
        m_.state = State::kStartup;
        return;
    }
    start_down(now);
    m_.state = State::kCruise;  // in flight is less than the BDP already
}

}  // namespace culvert::stack::tcp
