// A connection's deadlines. There is one wheel node for all of them: it stands at the earliest that was ever set, and
// when it comes up and nothing is due, it goes back to the wheel with the earliest that holds now.
//
//   retransmit_at_   SYN, retransmission, or (probing_) zero-window probe and the end of a cork
//   delayed_ack_     the ACK that found nothing to ride on
//   recovery         (in the Flight, while there is one) RACK's reordering timer or the loss probe's, and pacing
//   idle_at_         keepalive; FIN-WAIT-2 of a connection whose application has gone
#include <algorithm>

#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/tcp/shared.h"

namespace culvert::stack::tcp {
namespace {

// [RFC9293 3.8.4 MUST-28] two hours; 75 s and 9 probes as in Linux.
constexpr Duration kKeepAliveIdle = std::chrono::hours(2);
constexpr Duration kKeepAliveInterval = std::chrono::seconds(75);
constexpr std::uint32_t kKeepAliveCount = 9;

Duration either(Duration chosen, Duration usual) { return chosen > Duration::zero() ? chosen : usual; }

}  // namespace

Instant Connection::earliest_deadline() const {
    // An ACK that is owed leaves at the flush of this turn and needs no timer.
    const Instant ack_at = ack_due_ ? kNever : delayed_ack_.deadline();
    const Instant first = std::min({retransmit_at_, ack_at, idle_at_});
    const Flight* const flight = sending_ == nullptr ? nullptr : sending_->recovery.flight();
    if (flight == nullptr) return first;
    return std::min({first, flight->timer_at, flight->held ? flight->depart_at : kNever});
}

void Connection::due(Instant deadline) {
    // An error may have come back while a segment went out (the neighbour does not answer).
    if (!ended()) shared_.wheel.arm(*this, deadline);
}

Instant Connection::on_timer(Instant now) {
    if (delayed_ack_.deadline() <= now) {
        if (!ack_due_) ++shared_.counters.tcp_delayed_acks;
        owe_ack();
    }
    if (Flight* const flight = sending_ == nullptr ? nullptr : sending_->recovery.flight(); flight != nullptr) {
        if (flight->held && flight->depart_at <= now) {
            flight->held = false;
            mark();
            if (in_flight() == 0) sending_->recovery.on_flight_empty(now);
        } else if (flight->timer_at <= now) {
            on_flight_timer(now);
        }
    }
    if (retransmit_at_ <= now) {
        retransmit_at_ = kNever;
        if (state_ == State::kSynSent || state_ == State::kSynReceived)
            on_syn_timer(now);
        else if (probing_)
            on_probe_timer(now);
        else
            on_retransmission_timer(now);
    }
    if (!ended() && idle_at_ <= now) on_idle_timer(now);
    if (ended()) return kNever;
    settle();  // the node lies in the wheel since the last segment left, so this is the first moment of rest
    return earliest_deadline();
}

/// [RFC9293 3.8.3 MUST-20] R2, or the user's own timeout [RFC5482] [RFC9293 3.9.1 MUST-21].
/// [RFC9293 3.8.3 SHLD-9 left out] sockets have no call for it: TCP_INFO shows the retransmissions, as on Linux
/// [RFC9293 3.8.3 SHLD-10 left out] no R1: the neighbour is asked once progress stops confirming it [RFC4861 7.3.1]
bool Connection::give_up(unsigned retries, unsigned limit, Instant now) {
    const bool late = options_->user_timeout > Duration::zero() ? now - progress_at_ >= options_->user_timeout
                                                               : retries >= limit;
    if (late) finish(soft_error_ != 0 ? soft_error_ : ETIMEDOUT);  // [RFC9293 3.9.1.8 MUST-47] why nobody answered
    return late;
}

void Connection::on_flight_timer(Instant now) {
    const bool open = sending_->recovery.state() == LossRecovery::State::kOpen;
    switch (sending_->recovery.on_timer(snd_una_, snd_nxt_, round_trip(), now, *congestion_)) {
        case LossRecovery::Fired::kNothing: break;
        case LossRecovery::Fired::kLost:
            if (open) {
                ++shared_.counters.tcp_fast_retransmits;
                if (searches_mtu() && mtu_probe_lost(snd_una_, now))
                    forgive_mtu_probe();
                else
                    note_reduction();
            }
            mark();
            break;
        case LossRecovery::Fired::kProbe:
            // [RFC8985 7.3] one probe at a time, and none without a round trip measured since the last; the
            // retransmission timer starts anew, whether a probe leaves or not
            arm_retransmission(now);
            if (sending_->recovery.probe_out() || !measured_) break;
            sending_->recovery.flight()->probe_due = true;
            mark();
            break;
    }
}

/// [RFC9293 3.8.3 MUST-22]
/// [RFC9293 3.8.3 MUST-23 left out] 127 seconds as on Linux (tcp_syn_retries = 6): programs count on connect() failing
void Connection::on_syn_timer(Instant now) {
    if (give_up(retries_, kMaxSynRetries, now)) {
        ++shared_.counters.tcp_failed_opens;
        return;
    }
    ++retries_;
    ++shared_.counters.tcp_retransmits;
    ++total_retransmits_;
    timing_ = false;
    rtt_.back_off();
    syn_due_ = true;
    arm_retransmission(now);
    mark();
}

/// [RFC6298 5.4 - 5.6] [RFC9293 3.8.2 MUST-19] the next timeout is twice as far, and the controller begins anew.
void Connection::on_retransmission_timer(Instant now) {
    if (in_flight() == 0) {  // there was no path when it was set: try again
        if (give_up(rtt_.backoffs(), orphan_ ? kMaxOrphanRetries : kMaxDataRetries, now)) return;
        rtt_.back_off();
        mark();
        return;
    }
    // A peer that answers, but holds its window shut, is not gone. [RFC9293 3.8.6.1 MUST-37] [RFC9293 3.8.6 SHLD-17]
    const bool answers = snd_wnd_ == 0 && now - last_received_ < 2 * rtt_.rto();
    if (!answers && give_up(rtt_.backoffs(), orphan_ ? kMaxOrphanRetries : kMaxDataRetries, now)) return;
    ++shared_.counters.tcp_timeouts;
    rtt_.back_off();
    timing_ = false;
    if (searches_mtu()) mtu_probe_lost(snd_una_, now);
    suspect_black_hole();
    // [RFC9293 3.8.6 SHLD-16, MAY-7] all that was sent, also what lies beyond a window that has shrunk since
    sending_->recovery.on_timeout(snd_una_, snd_nxt_, now, *congestion_, shared_.sacks, round_trip());
    note_reduction();
    arm_retransmission(now);
    mark();
}

/// Data waits, nothing is in flight. [RFC9293 3.8.6.1 MUST-35, SHLD-29]
void Connection::on_probe_timer(Instant now) {
    if (in_flight() > 0 || (queue_end() == snd_nxt_ && (!shutdown_ || fin_sent_))) {
        probing_ = false;
        return;
    }
    mark();
    if (snd_wnd_ > 0) {  // [RFC9293 3.8.6.2.1] the override of sender's SWS avoidance, or the end of a cork
        push_out_ = true;
        more_to_come_ = false;
        probing_ = false;
        return;
    }
    if (give_up(retries_, orphan_ ? kMaxOrphanRetries : kMaxDataRetries, now)) return;
    ++retries_;
    ++shared_.counters.tcp_zero_window_probes;
    rtt_.back_off();  // [RFC9293 3.8.6.1 SHLD-30]
    probe_due_ = true;
    retransmit_at_ = now + rtt_.rto();
}

void Connection::start_idle_timer(Instant now) {
    if (orphan_ && state_ == State::kFinWait2) {
        idle_at_ = now + shared_.config.fin_wait_2;
    } else if (options_->keep_alive && !orphan_) {
        idle_at_ = last_received_ + either(options_->keep_alive_idle, kKeepAliveIdle);
    } else {
        idle_at_ = kNever;
    }
    due(idle_at_);
}

/// [RFC9293 3.8.4 MUST-24 .. 27, MUST-29, SHLD-12, MAY-5] A probe is an old sequence number without data.
void Connection::on_idle_timer(Instant now) {
    if (orphan_ && state_ == State::kFinWait2) {  // the peer never says FIN, and nobody would read what else it says
        finish(0);
        return;
    }
    if (orphan_ || !options_->keep_alive) {
        idle_at_ = kNever;
        return;
    }
    const Instant due = last_received_ + either(options_->keep_alive_idle, kKeepAliveIdle);
    if (now < due) {  // something came meanwhile
        keepalive_probes_ = 0;
        idle_at_ = due;
        return;
    }
    const Duration interval = either(options_->keep_alive_interval, kKeepAliveInterval);
    if (in_flight() > 0 || queue_end() > snd_nxt_) {  // retransmission and probes find out by themselves
        idle_at_ = now + interval;
        return;
    }
    // The timer was set when the last probe left; what came since then has answered it, however long the interval.
    if (keepalive_probes_ > 0 && last_received_ > idle_at_ - interval) keepalive_probes_ = 0;
    const std::uint32_t count = options_->keep_alive_count != 0 ? options_->keep_alive_count : kKeepAliveCount;
    // A user timeout overrides the number of probes. [RFC5482 4.2]
    const bool dead = options_->user_timeout > Duration::zero()
                          ? keepalive_probes_ > 0 && now - last_received_ >= options_->user_timeout
                          : keepalive_probes_ >= count;
    if (dead) {
        send_reset(now);
        finish(ETIMEDOUT);
        return;
    }
    ++keepalive_probes_;
    ++shared_.counters.tcp_keepalive_probes;
    probe_due_ = true;
    mark();
    idle_at_ = now + interval;
}

void Connection::on_icmp_error(const IcmpError& error, Instant now) {
    // [RFC5927 4.1] it must speak of something that is on its way
    const Position position = widen(error.sequence, snd_una_);
    if (position < snd_una_ || position > snd_nxt_ || ended()) {
        shared_.counters.drop(Drop::kIcmpSequence);
        return;
    }
    if (error.next_hop_mtu != 0) {
        const std::uint32_t mtu = std::max(error.next_hop_mtu, PathMtuCache::least(remote_.address.family()));
        if (mtu >= path_.mtu) {
            shared_.counters.drop(Drop::kIcmpMtuKnown);
            return;
        }
        ++shared_.counters.icmp_in;
        path_.mtu = mtu;  // and the host remembers it (PathMtuCache); when that grows old, the path is looked up again
        if (!established_once_) return;
        const std::uint32_t mss_before = mss_;
        if (searches_mtu()) mtu_search().told(mtu);
        update_mss();
        // Only a probe can have been too large: it is found lost, and the search knows why.
        if (in_flight() == 0 || mss_ == mss_before) return;
        // What is in flight was too large and is gone. No congestion: the window stays. [RFC1191 6.5]
        const std::uint32_t cwnd = congestion_->cwnd();
        const std::uint32_t ssthresh = congestion_->ssthresh();
        sending_->recovery.on_timeout(snd_una_, snd_nxt_, now, *congestion_, shared_.sacks, round_trip(), true);
        congestion_->adopt(cwnd, ssthresh);
        timing_ = false;
        arm_retransmission(now);
        mark();
        return;
    }
    ++shared_.counters.icmp_in;
    // [RFC5461] [RFC9293 3.9.2.2 MUST-54 .. 56] an established connection survives what may be forged or passing
    // [RFC9293 3.9.2.2 SHLD-26 left out] also of codes 2 to 4: anybody who knows the ports could end it [RFC5927 5.2]
    if (error.error == 0) return;
    if (state_ != State::kSynSent && state_ != State::kSynReceived) {
        // [RFC9293 3.9.2.2 SHLD-25] As Linux: kept, and the reason that is given if the connection does end.
        soft_error_ = static_cast<std::uint8_t>(error.error);
        if (owner_ != nullptr) owner_->on_soft_error(*this, error.error);
        return;
    }
    ++shared_.counters.tcp_failed_opens;
    if (owner_ != nullptr) owner_->on_attempt_refused(*this, error);
    finish(error.error);
}

}  // namespace culvert::stack::tcp
