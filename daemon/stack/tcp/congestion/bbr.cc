// BBR: the model of the path, and what follows from it. draft-ietf-ccwg-bbr-06, sections 5.5 and 5.6.
#include "daemon/stack/tcp/congestion/bbr.h"

#include <algorithm>
#include <new>

namespace culvert::stack::tcp {
namespace {

constexpr std::uint32_t kExtraAckedRounds = 5;  // two windows of them: 10 rounds [BBR 2.11]

std::uint64_t scaled(std::uint64_t value, double gain) {
    return value == BbrModel::kInfinity ? BbrModel::kInfinity : static_cast<std::uint64_t>(static_cast<double>(value) * gain);
}

std::uint64_t in(Duration time, std::uint64_t rate) {
    return static_cast<std::uint64_t>(static_cast<double>(rate) * std::chrono::duration<double>(time).count());
}

std::uint64_t rate_of(std::uint64_t bytes, Duration time) {
    return static_cast<std::uint64_t>(static_cast<double>(bytes) / std::chrono::duration<double>(time).count());
}

}  // namespace

BbrModel* BbrPool::create() {
    const std::uint32_t index = pool_.allocate();
    return index == LazyPool::kNone ? nullptr : new (pool_.at(index)) BbrModel(rng_.next());
}

void BbrPool::destroy(BbrModel* model) {
    const std::uint32_t index = pool_.index_of(model);
    model->~BbrModel();
    pool_.release(index);
}

// [BBR 5.2.1]
Bbr::Bbr(std::uint32_t mss, BbrModel& model) : CongestionController(mss), m_(model) {
    governs_recovery_ = true;
    // [BBR 5.6.2] No round trip is known yet: a millisecond stands for it.
    pacing_rate_ = scaled(rate_of(cwnd_, std::chrono::milliseconds(1)), kStartupPacingGain);
}

std::uint64_t Bbr::max_bw() const { return std::max(m_.max_bw_filter[0], m_.max_bw_filter[1]); }

/// Clocks start with the first event: the constructor has none.
void Bbr::begin(const DeliveryEvent& event) {
    if (m_.started && event.delivered_total >= m_.delivered) return;
    if (!m_.started) {
        m_.min_rtt_stamp = m_.probe_rtt_min_stamp = m_.extra_acked_interval_start = m_.cycle_stamp = event.now;
        m_.started = true;
    }
    // The count of delivered bytes began, or began anew: what was remembered in terms of it means nothing.
    m_.next_round_delivered = m_.loss_round_delivered = event.prior_delivered;
    m_.app_limited_from = m_.app_limited_until = 0;
}

Bbr::Sample Bbr::sample_of(const DeliveryEvent& event) const {
    Sample sample;
    sample.valid = event.flight_at_send != 0;
    if (event.interval > Duration::zero()) sample.delivery_rate = rate_of(event.sample_bytes, event.interval);
    const bool held_back = m_.app_limited_until != 0 && event.prior_delivered >= m_.app_limited_from &&
                           event.prior_delivered <= m_.app_limited_until;
    sample.app_limited = event.app_limited || held_back;
    return sample;
}

// [BBR 5.2.3]
void Bbr::on_delivery(const DeliveryEvent& event) {
    if (event.newly_delivered == 0 && event.newly_lost == 0) return;  // an echo alone: on_congestion_echo
    begin(event);
    m_.delivered = event.delivered_total;
    m_.acked += event.newly_delivered;
    if (m_.in_loss_recovery && !event.in_recovery) restore_cwnd();  // [BBR 5.6.4.4]
    m_.in_loss_recovery = event.in_recovery;
    if (event.rtt > Duration::zero() && !m_.rtt_seen) {  // [BBR 5.6.2] InitPacingRate
        m_.rtt_seen = true;
        pacing_rate_ = scaled(rate_of(cwnd_, event.rtt), kStartupPacingGain);
    }
    const Sample sample = sample_of(event);
    if (event.newly_lost > 0) on_lost(event, sample);
    if (event.newly_delivered == 0) return;

    update_latest_signals(event, sample);
    update_congestion_signals(event, sample);
    update_ack_aggregation(event);
    check_full_bw(sample);
    check_startup_done(event, sample);
    check_drain_done(event);
    update_probe_bw(event, sample);
    update_min_rtt(event);
    check_probe_rtt(event);
    if (m_.loss_round_start) {  // AdvanceLatestDeliverySignals
        m_.bw_latest = sample.delivery_rate;
        m_.inflight_latest = event.sample_bytes;
    }
    m_.bw = std::min(max_bw(), m_.bw_shortterm);
    set_pacing_rate(pacing_gain());
    set_cwnd(event);
}

// --- delivery and loss [BBR 5.5.10] ---------------------------------------------------------------------------------

void Bbr::update_latest_signals(const DeliveryEvent& event, const Sample& sample) {
    m_.loss_round_start = false;
    if (!sample.valid) return;
    m_.bw_latest = std::max(m_.bw_latest, sample.delivery_rate);
    m_.inflight_latest = std::max(m_.inflight_latest, event.sample_bytes);
    if (event.prior_delivered >= m_.loss_round_delivered) {
        m_.loss_round_delivered = event.delivered_total;
        m_.loss_round_start = true;
    }
}

/// [BBR 5.5.1] A round trip is over when something is acknowledged that was sent after the last one was.
void Bbr::update_round(const DeliveryEvent& event, const Sample& sample) {
    m_.round_start = sample.valid && event.prior_delivered >= m_.next_round_delivered;
    if (!m_.round_start) return;
    start_round();
    ++m_.round_count;
    ++m_.rounds_since_probe_up;
}

void Bbr::update_congestion_signals(const DeliveryEvent& event, const Sample& sample) {
    update_round(event, sample);
    // [BBR 5.5.5] A sample that the application held back counts only if it shows more than was known.
    if (sample.delivery_rate > 0 && (sample.delivery_rate >= max_bw() || !sample.app_limited))
        m_.max_bw_filter[1] = std::max(m_.max_bw_filter[1], sample.delivery_rate);
    if (!m_.loss_round_start) return;
    adapt_lower_bounds();
    m_.is_loss_in_round = false;
}

void Bbr::adapt_lower_bounds() {
    if (probing_bw() || !m_.is_loss_in_round) return;
    if (m_.bw_shortterm == BbrModel::kInfinity) m_.bw_shortterm = max_bw();
    if (m_.inflight_shortterm == BbrModel::kInfinity) m_.inflight_shortterm = cwnd_;
    // We send 1 % less than bw on purpose, and what was not sent cannot have been delivered: without the correction the
    // bound would sink by the margin in every round with a single loss.
    m_.bw_shortterm = std::max(scaled(m_.bw_latest, 1 / kPacingMargin), scaled(m_.bw_shortterm, kBeta));
    m_.inflight_shortterm = std::max(m_.inflight_latest, scaled(m_.inflight_shortterm, kBeta));
}

void Bbr::reset_congestion_signals() {
    m_.is_loss_in_round = false;
    m_.bw_latest = 0;
    m_.inflight_latest = 0;
}

void Bbr::reset_short_term() {
    m_.bw_shortterm = BbrModel::kInfinity;
    m_.inflight_shortterm = BbrModel::kInfinity;
}

void Bbr::save_state() {  // [BBR 5.5.11.1]
    save_cwnd();
    m_.undo_state = State::kProbeRtt;
    m_.undo_bw_shortterm = m_.bw_shortterm;
    m_.undo_inflight_shortterm = m_.inflight_shortterm;
    m_.undo_inflight_longterm = m_.inflight_longterm;
}

void Bbr::note_loss() {
    if (!m_.is_loss_in_round) {
        m_.loss_round_delivered = m_.delivered;
        save_state();
    }
    m_.is_loss_in_round = true;
}

bool Bbr::inflight_too_high(std::uint64_t lost, std::uint64_t flight) const {
    return static_cast<double>(lost) > static_cast<double>(flight) * kLossThresh;
}

void Bbr::on_lost(const DeliveryEvent& event, const Sample& sample) {
    note_loss();
    if (m_.loss_events_in_round < UINT8_MAX) ++m_.loss_events_in_round;
    if (!m_.is_bw_probe_sample || event.flight_at_send == 0) return;
    if (!inflight_too_high(event.lost_since_send, event.flight_at_send)) return;
    // At which volume in flight did the losses become too many? [BBR 5.5.10.2] InflightAtLoss
    const double size = static_cast<double>(std::min(event.newly_lost, event.flight_at_send));
    const double flight_before = static_cast<double>(event.flight_at_send) - size;
    const double lost_before = std::max(static_cast<double>(event.lost_since_send) - size, 0.0);
    const double prefix = std::max((kLossThresh * flight_before - lost_before) / (1 - kLossThresh), 0.0);
    handle_inflight_too_high(static_cast<std::uint64_t>(flight_before + prefix), sample.app_limited, event.now);
}

void Bbr::handle_inflight_too_high(std::uint64_t flight, bool app_limited, Instant now) {
    m_.prev_probe_too_high = true;
    m_.is_bw_probe_sample = false;  // once a probe
    if (!app_limited) m_.inflight_longterm = std::max(flight, scaled(target_inflight(), kBeta));
    if (m_.state == State::kUp) {
        m_.undo_state = State::kUp;
        start_down(now);
    }
}

void Bbr::on_congestion_echo(Instant now, std::uint64_t in_flight) {
    note_loss();
    if (m_.state == State::kStartup) {
        leave_startup_for_loss();
    } else if (m_.is_bw_probe_sample) {
        handle_inflight_too_high(in_flight, false, now);
    }
}

void Bbr::on_enter_recovery(Instant, std::uint64_t) {
    if (!m_.is_loss_in_round) save_state();
    m_.in_loss_recovery = true;
}

void Bbr::on_exit_recovery(Instant) {
    restore_cwnd();
    m_.in_loss_recovery = false;
}

void Bbr::on_rto(Instant, std::uint64_t, bool first) {  // [BBR 5.6.4.4]
    if (first && !m_.is_loss_in_round) save_state();
    m_.is_loss_in_round = true;
    m_.in_loss_recovery = true;
    cwnd_ = mss_;
}

void Bbr::undo() {  // [BBR 5.5.11.2]
    restore_cwnd();
    m_.in_loss_recovery = false;
    m_.is_loss_in_round = false;
    reset_full_bw();
    m_.bw_shortterm = std::max(m_.bw_shortterm, m_.undo_bw_shortterm);
    m_.inflight_shortterm = std::max(m_.inflight_shortterm, m_.undo_inflight_shortterm);
    m_.inflight_longterm = std::max(m_.inflight_longterm, m_.undo_inflight_longterm);
    if (m_.undo_state == State::kStartup && m_.state != State::kStartup) {
        m_.full_bw_reached = false;
        if (m_.state != State::kProbeRtt) m_.state = State::kStartup;
    } else if (m_.undo_state == State::kUp && m_.state != State::kUp) {
        if (m_.state != State::kProbeRtt) start_refill();
    }
    m_.undo_state = State::kProbeRtt;
}

/// [BBR 5.4.1] The window says something about the path even now; the pace is the path's own.
void Bbr::on_idle_restart() {
    if (!m_.started) return;
    m_.idle_restart = true;
    m_.extra_acked_delivered = 0;
    m_.extra_acked_interval_start = kNever;  // from the next ACK on
    if (in_probe_bw()) set_pacing_rate(1.0);
}

// --- aggregation and round trip [BBR 5.5.7, 5.5.9] ------------------------------------------------------------------

void Bbr::update_ack_aggregation(const DeliveryEvent& event) {
    if (m_.extra_acked_interval_start == kNever) m_.extra_acked_interval_start = event.now;
    std::uint64_t expected = in(event.now - m_.extra_acked_interval_start, m_.bw);
    if (m_.extra_acked_delivered <= expected) {
        m_.extra_acked_delivered = 0;
        m_.extra_acked_interval_start = event.now;
        expected = 0;
    }
    m_.extra_acked_delivered += event.newly_delivered;
    const std::uint64_t extra = std::min<std::uint64_t>(m_.extra_acked_delivered - expected, cwnd_);
    const std::uint32_t window = m_.full_bw_reached ? kExtraAckedRounds : 1;
    if (m_.round_count - m_.extra_acked_round >= window) {
        m_.extra_acked_round = m_.round_count;
        m_.extra_acked[0] = m_.full_bw_reached ? m_.extra_acked[1] : 0;
        m_.extra_acked[1] = 0;
    }
    m_.extra_acked[1] = std::max(m_.extra_acked[1], extra);
}

void Bbr::update_min_rtt(const DeliveryEvent& event) {  // [BBR 5.3.4.3]
    m_.probe_rtt_expired = event.now > m_.probe_rtt_min_stamp + kProbeRttInterval;
    if (event.rtt > Duration::zero() && (event.rtt < m_.probe_rtt_min_delay || m_.probe_rtt_expired)) {
        m_.probe_rtt_min_delay = event.rtt;
        m_.probe_rtt_min_stamp = event.now;
    }
    const bool expired = event.now > m_.min_rtt_stamp + kMinRttFilterLength;
    if (m_.probe_rtt_min_delay < m_.min_rtt || expired) {
        m_.min_rtt = m_.probe_rtt_min_delay;
        m_.min_rtt_stamp = m_.probe_rtt_min_stamp;
    }
}

// --- control [BBR 5.6] ----------------------------------------------------------------------------------------------

double Bbr::pacing_gain() const {
    switch (m_.state) {
        case State::kStartup: return kStartupPacingGain;
        case State::kDrain: return kDrainPacingGain;
        case State::kDown: return 0.90;
        case State::kUp: return 1.25;
        case State::kCruise:
        case State::kRefill:
        case State::kProbeRtt: return 1.0;
    }
    return 1.0;
}

double Bbr::cwnd_gain() const {
    if (m_.state == State::kUp) return 2.25;
    return m_.state == State::kProbeRtt ? kProbeRttCwndGain : kDefaultCwndGain;
}

void Bbr::set_pacing_rate(double gain) {
    const std::uint64_t rate = scaled(m_.bw, gain * kPacingMargin);
    if (rate == 0) return;
    if (m_.full_bw_reached || rate > pacing_rate_) pacing_rate_ = rate;
}

std::uint64_t Bbr::bdp_multiple(std::uint64_t rate, double gain) const {
    if (m_.min_rtt == Duration::max()) return initial_window(mss_);
    return scaled(in(m_.min_rtt, rate), gain);
}

/// [BBR 5.6.4.2, 5.5.8.1] Enough for the batches in which segments leave and are acknowledged.
std::uint64_t Bbr::quantized(std::uint64_t inflight) const {
    const std::uint64_t quantum =
        std::clamp<std::uint64_t>(pacing_rate_ / 1000, std::uint64_t{2} * mss_, std::uint64_t{64} * 1024);
    inflight = std::max({inflight, 3 * quantum, min_pipe_cwnd()});
    return m_.state == State::kUp ? inflight + std::uint64_t{2} * mss_ : inflight;
}

std::uint64_t Bbr::inflight_with_headroom() const {
    if (m_.inflight_longterm == BbrModel::kInfinity) return BbrModel::kInfinity;
    const std::uint64_t headroom = std::max<std::uint64_t>(mss_, scaled(m_.inflight_longterm, kHeadroom));
    return std::max(m_.inflight_longterm - std::min(m_.inflight_longterm, headroom), min_pipe_cwnd());
}

std::uint64_t Bbr::probe_rtt_cwnd() const {
    return std::max(bdp_multiple(m_.bw, kProbeRttCwndGain), min_pipe_cwnd());
}

std::uint64_t Bbr::target_inflight() const { return std::min<std::uint64_t>(bdp_multiple(m_.bw, 1.0), cwnd_); }

void Bbr::save_cwnd() {
    const bool modulated = m_.in_loss_recovery || m_.state == State::kProbeRtt;
    m_.prior_cwnd = modulated ? std::max(m_.prior_cwnd, cwnd_) : cwnd_;
}

void Bbr::restore_cwnd() { cwnd_ = std::max(cwnd_, m_.prior_cwnd); }

void Bbr::set_cwnd(const DeliveryEvent& event) {  // [BBR 5.6.4.6]
    const std::uint64_t aggregated = std::max(m_.extra_acked[0], m_.extra_acked[1]);
    m_.max_inflight = quantized(bdp_multiple(m_.bw, cwnd_gain()) + aggregated);
    std::uint64_t cwnd = cwnd_;
    if (m_.full_bw_reached)
        cwnd = std::min(cwnd + event.newly_delivered, m_.max_inflight);
    else if (cwnd < m_.max_inflight || m_.acked < initial_window(mss_))
        cwnd += event.newly_delivered;
    cwnd = std::max(cwnd, min_pipe_cwnd());
    if (m_.state == State::kProbeRtt) cwnd = std::min(cwnd, probe_rtt_cwnd());

    std::uint64_t cap = BbrModel::kInfinity;  // [BBR 5.6.4.7]
    if (m_.state == State::kCruise || m_.state == State::kProbeRtt)
        cap = inflight_with_headroom();
    else if (in_probe_bw())
        cap = m_.inflight_longterm;
    cap = std::max(std::min(cap, m_.inflight_shortterm), min_pipe_cwnd());
    constexpr std::uint64_t kMaxWindow = std::uint64_t{1} << 30;  // the largest window RFC 7323 can advertise
    cwnd_ = static_cast<std::uint32_t>(std::min({cwnd, cap, kMaxWindow}));
}

}  // namespace culvert::stack::tcp
