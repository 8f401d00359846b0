// Loss recovery by time: RFC 8985, with the log of the Flight, and what else the log makes possible: F-RTO's question
// whether anything arrived that was never sent again (RFC 5682), and the rate sample (draft-ietf-ccwg-bbr 4.1).
#include <algorithm>

#include "daemon/stack/tcp/loss_recovery.h"
#include "shm/base/check.h"

namespace culvert::stack::tcp {

bool LossRecovery::record(FlightPool& pool, Range range, bool again, Position snd_una, Position snd_nxt, Duration srtt,
                          Instant now) {
    if (flight_ == nullptr) {
        if (snd_una != snd_nxt) return true;  // this flight goes without, as was said when it began
        tail_resent_ = false;
        flight_ = Flight::create(pool, snd_una, now);
        if (flight_ == nullptr) return false;
    }
    const std::uint64_t in_flight = pipe(snd_una, snd_nxt);
    if (flight_->record({.range = range,
                         .again = again,
                         // A segment sent again has left the lost ranges already, and is in the pipe.
                         .in_flight = again ? in_flight - std::min(in_flight, range.size()) : in_flight,
                         .lost_total = lost_total_,
                         .srtt = srtt,
                         .now = now}))
        return true;
    judge_without_log(snd_una);
    release_flight();
    return false;
}

/// The log is given up (or SACK is, for want of a scoreboard): what it had found lost is told to RFC 6675's rules.
void LossRecovery::judge_without_log(Position snd_una) {
    high_rxt_ = snd_una;
    lost_below_ = 0;
    if (flight_->lost.empty()) return;
    high_rxt_ = std::max(snd_una, flight_->lost.ranges()[0].first);
    lost_below_ = flight_->lost.end();
}

std::uint64_t LossRecovery::pipe_by_time(Position snd_una, Position snd_nxt) const {
    std::uint64_t bytes = snd_nxt - snd_una;
    if (board_ != nullptr) bytes -= std::min(bytes, board_->sacked_in({snd_una, snd_nxt}));
    for (const Range& range : flight_->lost.ranges())
        bytes -= std::min(bytes, unsacked({std::max(range.first, snd_una), std::min(range.end, snd_nxt)}));
    return bytes;
}

/// [RFC8985 6.2 step 4]
void LossRecovery::adapt_reordering_window(const AckFacts& facts, const Verdict& verdict) {
    Position& round = flight_->rack.dsack_round;
    if (round != 0 && facts.ack >= round) round = 0;
    if (round == 0 && verdict.dsack) {  // needless retransmissions: wait longer, once more each round trip
        round = facts.snd_nxt;
        if (reo_wnd_mult_ < UINT8_MAX) ++reo_wnd_mult_;
        reo_wnd_persist_ = 16;
    }
}

Duration LossRecovery::reordering_window(RoundTrip path) const {
    // Nobody has seen this path reorder: three segments above a hole are enough, as ever.
    const bool dup_thresh = dup_acks_ >= 3 || (board_ != nullptr && board_->loss_edge() > 0);
    if (!reordering_seen_ && (state_ != State::kOpen || dup_thresh)) return Duration::zero();
    const Duration minimum = path.minimum == Duration::max() ? flight_->rack.rtt : path.minimum;
    return std::min(reo_wnd_mult_ * minimum / 4, path.srtt);
}

/// [RFC8985 6.2 steps 3 to 5]
void LossRecovery::judge_by_time(const AckFacts& facts, const Delivery& arrived, Verdict& verdict) {
    if (arrived.reordered) reordering_seen_ = true;
    if (verdict.dsack || flight_->rack.dsack_round != 0) adapt_reordering_window(facts, verdict);
    if (board_ == nullptr && arrived.top <= facts.ack && flight_->log.again() == 0) {
        // In order: nothing left before what has arrived.
        if (verdict.newly_acked > 0) flight_->timer_at = kNever;
        return;
    }
    verdict.newly_lost = flight_->detect(facts.ack, board_, reordering_window({facts.srtt, facts.min_rtt}), facts.now);
    lost_total_ += verdict.newly_lost;
}

LossRecovery::Fired LossRecovery::on_timer(Position snd_una, Position snd_nxt, RoundTrip path, Instant now,
                                           CongestionController& cc) {
    if (flight_ == nullptr || flight_->timer_at > now) return Fired::kNothing;
    flight_->timer_at = kNever;
    if (flight_->timer_is_probe) return Fired::kProbe;
    if (!by_time()) return Fired::kNothing;
    const std::uint64_t lost = flight_->detect(snd_una, board_, reordering_window(path), now);
    lost_total_ += lost;
    if (lost == 0) return Fired::kNothing;
    const AckFacts facts{.snd_una = snd_una, .ack = snd_una, .snd_nxt = snd_nxt, .sack_permitted = true, .sack = {},
                         .ts_echo = {}, .now = now};
    Verdict verdict;
    verdict.newly_lost = lost;
    if (state_ == State::kOpen) enter_recovery(facts, cc, verdict);
    if (state_ == State::kRecovery) reduce_proportionally(facts, verdict, true, cc);
    return Fired::kLost;
}

/// [RFC8985 7.2] Recovery, the reordering timer and limited transmit look after a flight of which something is SACKed.
void LossRecovery::arm_probe(Duration timeout, Instant latest, Instant now) {
    if (!by_time() || state_ != State::kOpen || board_ != nullptr || probe_out_) return;
    flight_->timer_at = std::min(now + timeout, latest);
    flight_->timer_is_probe = true;
}

/// [RFC8985 7.4] Was the probe's loss, or what it repaired, a loss that nobody else has noticed?
void LossRecovery::close_probe(const AckFacts& facts, CongestionController& cc, Verdict& verdict) {
    const Position end = widen(probe_end_, facts.ack);
    if (facts.ack < end) return;
    if (!probe_again_) {
        probe_out_ = false;  // new data arrived: it told what there was to tell
    } else if (verdict.dsack && verdict.dsack->end == end) {
        probe_out_ = false;  // case 1: it arrived twice, nothing was lost
    } else if (facts.ack > end) {
        probe_out_ = false;  // case 2: only the probe arrived
        if (state_ != State::kOpen) return;
        verdict.repaired = true;
        verdict.grow = false;
        cc.on_enter_recovery(facts.now, cc.cwnd());  // the flight that lost it is gone, and was no smaller than it was let be
        cc.on_exit_recovery(facts.now);
    } else if (facts.duplicate && facts.sack.empty()) {
        probe_out_ = false;  // case 3: a receiver without D-SACK got it twice
    }
}

LossRecovery::Verdict LossRecovery::on_late_ack(const AckFacts& facts, CongestionController& cc) {
    DCHECK(facts.snd_una == facts.snd_nxt && facts.ack == facts.snd_una);
    Verdict verdict;
    verdict.dsack = find_dsack(facts.sack, facts.ack, facts.snd_nxt);
    const bool probe_was_out = probe_out_;
    if (probe_out_) close_probe(facts, cc, verdict);
    if (probe_was_out != probe_out_) return verdict;  // the D-SACK of a probe says nothing of an episode
    if (proves_spurious(facts, verdict)) undo(facts, cc, verdict);
    return verdict;
}

/// [RFC5682 2.1, 3.1] True: what has arrived was sent before the timeout and never again, so the timeout was none.
bool LossRecovery::refuted_by_frto(const AckFacts& facts, const Delivery& arrived, const Verdict& verdict,
                                   CongestionController& cc) {
    if (frto_ == FRto::kOff) return false;
    const bool advanced = verdict.newly_acked > 0;
    if (facts.ack >= recover_ || (!advanced && verdict.delivered == 0 && !facts.duplicate)) {
        if (facts.ack >= recover_) frto_ = FRto::kOff;  // all of it: nothing can be told
        return false;
    }
    if (frto_ == FRto::kFirstAck) {
        // step 2: a duplicate means a hole; otherwise new data shall find out
        frto_ = advanced ? FRto::kSecondAck : FRto::kOff;
        return false;
    }
    if (frto_sent_ == 0) return false;
    frto_ = FRto::kOff;
    // The tail may have arrived as a loss probe.
    const Position known = recover_ - (tail_resent_ ? std::min<Position>(cc.mss(), recover_) : 0);
    const bool spurious = by_time() ? arrived.original < known : advanced;
    // step 3a: real after all; the new segments were two too many
    if (!spurious) cc.adopt(std::min(cc.cwnd(), 3 * cc.mss()), cc.ssthresh());
    return spurious;
}

/// Nothing was lost: the window comes back, and what waits to be sent again need not be.
void LossRecovery::undo(const AckFacts& facts, CongestionController& cc, Verdict& verdict) {
    cc.undo();
    verdict.undone = true;
    if (by_time() && !flight_->unmark(board_, facts.now)) {
        flight_->lost.clear();
        release_flight();
    }
    if (state_ != State::kOpen) leave(state_, verdict);
    recover_ = facts.ack;
    verdict.grow = verdict.newly_acked > 0;
}

/// [BBR 4.1.2.4]
void LossRecovery::on_app_limited(Position snd_una, Position snd_nxt) {
    if (flight_ == nullptr || !flight_->lost.empty()) return;
    flight_->app_limited_until = std::max<std::uint64_t>(flight_->delivered + pipe(snd_una, snd_nxt), 1);
}

/// The rate sample of this ACK. [BBR 4.1.2.3]
void LossRecovery::report_delivery(const AckFacts& facts, const Delivery& arrived, const Verdict& verdict,
                                   CongestionController& cc) {
    if (flight_ != nullptr && verdict.delivered > 0) {
        flight_->delivered += verdict.delivered;
        flight_->delivered_at = facts.now;
        if (flight_->app_limited_until != 0 && flight_->delivered > flight_->app_limited_until)
            flight_->app_limited_until = 0;
        if (arrived.any) flight_->first_sent_at = arrived.newest.sent_at;
    }
    if (!cc.wants_delivery() || (verdict.delivered == 0 && verdict.newly_lost == 0 && !facts.echo)) return;
    const bool ends = state_ != State::kOpen && facts.ack >= recover_;
    DeliveryEvent event{.now = facts.now,
                        .snd_una = facts.ack,
                        .snd_nxt = facts.snd_nxt,
                        .delivered_total = flight_ != nullptr ? flight_->delivered : facts.ack + sacked_bytes(),
                        .newly_delivered = verdict.delivered,
                        .newly_lost = verdict.newly_lost,
                        .lost_total = lost_total_,
                        .in_flight = pipe(facts.ack, facts.snd_nxt)};
    event.in_recovery = (state_ != State::kOpen && !ends) || anything_lost(facts.ack);
    event.echo = facts.echo;
    if (flight_ != nullptr && arrived.any && verdict.delivered > 0) {
        const SentRun& sent = arrived.newest;
        event.flight_at_send = sent.flight;
        event.prior_delivered = sent.delivered;
        event.lost_since_send = static_cast<std::uint32_t>(lost_total_) - sent.lost;
        event.sample_bytes = flight_->delivered - sent.delivered;
        event.app_limited = sent.app_limited;
        if (!sent.again) event.rtt = facts.now - sent.sent_at;
        // The slower of the two: what left in a burst arrives in none, and the other way round.
        const Duration interval = std::max<Duration>(sent.sent_at - sent.first_sent_at, facts.now - sent.delivered_at);
        if (facts.min_rtt == Duration::max() || interval >= facts.min_rtt) event.interval = interval;
    }
    cc.on_delivery(event);
}

}  // namespace culvert::stack::tcp
