// A segment arrives at a connection: RFC 9293 3.10.7, in its order.
//
//   predicted? ------------------------------------------------+   nearly every segment: in order, in window, no surprise
//     no: PAWS -> sequence -> RST -> SYN -> (ACK bit) ---------+--> timestamp -> ACK -> text -> FIN
#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/tcp/shared.h"

namespace culvert::stack::tcp {

/// [RFC9293 3.9.2 MAY-9 left out] a stream has no place for the field of one packet; datagrams have (IP_RECVTOS)
void Connection::input(const Segment& segment, Instant now) {
    last_received_ = now;
    if (state_ == State::kSynSent) return input_syn_sent(segment, now);
    if (ended()) return;

    const Position sequence = widen(segment.sequence, rcv_nxt_);
    if (!predicted(segment)) [[unlikely]] {
        if (fast_open_passive_ && state_ == State::kSynReceived && segment.flags.syn() && !segment.flags.ack() &&
            to_wire(sequence) == snd_wl1_) {  // the SYN again: our SYN-ACK was lost
            shared_.counters.drop(Drop::kTcpDuplicate);
            syn_due_ = true;
            return mark();
        }
        if (!passes_paws(segment, now)) return;
        if (!acceptable(segment, sequence, now)) return;
        if (segment.flags.rst()) return input_reset(sequence, now);
        if (segment.flags.syn()) {  // [RFC5961 4.2] [RFC9293 3.10.7.4, fourth]
            if (state_ == State::kSynReceived && segment.flags.ack() && sequence + 1 == rcv_nxt_) {
                // The peer's half of a simultaneous open: its SYN again, now with an ACK of ours.
            } else {
                return challenge(Drop::kTcpSynInWindow, now);
            }
        }
        if (!segment.flags.ack()) {
            shared_.counters.drop(Drop::kTcpNoAck);
            return;
        }
    }
    if (timestamps_) record_timestamp(segment, sequence, now);
    if (ecn_) note_marks(segment, now);
    if (!input_ack(segment, sequence, now)) return;
    // [RFC9293 3.8.6 MUST-66] before the text, which may not fit the window
    if (segment.flags.urg()) [[unlikely]]
        input_urgent(segment, sequence);
    // The SYN of a simultaneous open's SYN-ACK stands before its text.
    const Position text = sequence + (segment.flags.syn() ? 1 : 0);
    if (segment.payload_length > 0 || segment.flags.fin()) input_text(segment, text, now);
}

/// Header prediction: what the slow path would let through without a word.
bool Connection::predicted(const Segment& segment) const {
    if (segment.flags.any_of(wire::kSyn | wire::kFin | wire::kRst | wire::kUrg) || !segment.flags.ack()) return false;
    if (segment.sequence != to_wire(rcv_nxt_)) return false;
    if (segment.payload_length > rcv_edge_ - rcv_nxt_) return false;
    return !timestamps_ || (segment.options.timestamps && !before(segment.options.timestamps->value, ts_recent_));
}

/// [RFC7323 5.3 R1]. A segment without timestamps is let through, as Linux does: middleboxes strip them.
bool Connection::passes_paws(const Segment& segment, Instant now) {
    if (!timestamps_ || !segment.options.timestamps || segment.flags.rst()) return true;  // [RFC7323 5.2]
    if (!before(segment.options.timestamps->value, ts_recent_)) return true;
    if (now - ts_recent_at_ > kPawsIdle) return true;  // [RFC7323 5.5]
    challenge(Drop::kTcpPaws, now);
    return false;
}

/// [RFC9293 3.10.7.4, first] False: dropped, and answered with an ACK unless it is a reset.
bool Connection::acceptable(const Segment& segment, Position sequence, Instant now) {
    const std::uint32_t length = segment.length();
    // [RFC9293 3.10.7.4 MUST-66] At RCV.NXT itself everything is looked at, also with a closed window: its ACK, RST or
    // FIN may be good.
    if (sequence == rcv_nxt_) return true;
    if (length == 0 ? rcv_nxt_ <= sequence && sequence <= rcv_edge_
                    : sequence < rcv_edge_ && sequence + length > rcv_nxt_)
        return true;
    if (segment.flags.rst()) {
        shared_.counters.drop(Drop::kTcpStrayReset);
        return false;
    }
    // A simultaneous open's SYN-ACK stands one before RCV.NXT.
    if (state_ == State::kSynReceived && segment.flags.has(wire::kSyn | wire::kAck) && sequence + 1 == rcv_nxt_)
        return true;
    if (segment.payload_length > 0 && sequence + length <= rcv_nxt_) {
        // All of it was received before: our ACK was lost, or the peer retransmitted too early.
        shared_.counters.drop(Drop::kTcpDuplicate);
        if (sack_) report_duplicate({sequence, sequence + segment.payload_length});  // [RFC2883 4]
        owe_ack();
        return false;
    }
    if (segment.flags.fin() && sequence + length == rcv_nxt_) {  // a FIN again: the ACK of it was lost
        shared_.counters.drop(Drop::kTcpDuplicate);
        owe_ack();
        return false;
    }
    challenge(Drop::kTcpOutOfWindow, now);
    return false;
}

/// [RFC9293 3.5.3 SHLD-2] It may carry data, which is nobody's.
/// [RFC5961 3.2] Only a reset exactly at RCV.NXT counts; the true peer can repeat a wrong one with the right number.
void Connection::input_reset(Position sequence, Instant now) {
    if (sequence != rcv_nxt_) return challenge(Drop::kTcpResetInvalid, now);
    ++shared_.counters.tcp_resets_in;
    // [RFC9293 3.10.7.4 MUST-11] it came from SYN-SENT (a passive open is a HalfOpen until it is done): refused
    if (state_ == State::kSynReceived) {
        ++shared_.counters.tcp_failed_opens;
        return finish(fast_open_passive_ ? ECONNRESET : ECONNREFUSED);
    }
    finish(state_ == State::kCloseWait ? EPIPE : ECONNRESET);  // as Linux: the peer had already said good-bye
}

/// Drops a segment and answers it with an ACK, at most one in kChallengeInterval, so that two confused ends cannot
/// answer each other for ever. The limit is the connection's own, so it tells nobody else anything (CVE-2016-5696).
/// [RFC5961 7]
void Connection::challenge(Drop reason, Instant now) {
    shared_.counters.drop(reason);
    if (now < challenge_at_) return;
    challenge_at_ = now + kChallengeInterval;
    ++shared_.counters.tcp_challenge_acks;
    owe_ack();
}

/// [RFC7323 4.3 (2)]
void Connection::record_timestamp(const Segment& segment, Position sequence, Instant now) {
    if (!segment.options.timestamps || sequence > last_ack_sent_) return;
    if (before(segment.options.timestamps->value, ts_recent_) && now - ts_recent_at_ <= kPawsIdle) return;
    ts_recent_ = segment.options.timestamps->value;
    ts_recent_at_ = now;
}

}  // namespace culvert::stack::tcp
