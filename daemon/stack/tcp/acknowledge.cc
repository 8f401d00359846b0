// The ACK of a segment: the sender's side. RFC 9293 3.10.7.4, fifth.
#include <algorithm>

#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/tcp/ecn.h"
#include "daemon/stack/tcp/shared.h"

namespace culvert::stack::tcp {

/// False: the segment is done with.
bool Connection::input_ack(const Segment& segment, Position sequence, Instant now) {
    const Position ack = widen(segment.acknowledgment, snd_una_);
    if (state_ == State::kSynReceived) {
        if (ack <= snd_una_ || ack > snd_nxt_) {
            shared_.counters.drop(Drop::kTcpAckInvalid);
            shared_.output.send_reset(segment, now);
            return false;
        }
        input_ack_of_syn(segment, sequence, ack, now);
        return !ended();
    }
    if (ack > snd_nxt_) {  // of something never sent
        challenge(Drop::kTcpAckInvalid, now);
        return false;
    }
    if (ack + max_snd_wnd_ < snd_una_) {  // [RFC9293 3.10.7.4 MAY-12] [RFC5961 5.2]
        challenge(Drop::kTcpAckInvalid, now);
        return false;
    }
    take_ack(segment, sequence, ack, now);
    return !ended();
}

/// SYN-RECEIVED: a simultaneous open, or a connection that began with its SYN and may have answered already.
void Connection::input_ack_of_syn(const Segment& segment, Position sequence, Position ack, Instant now) {
    // [RFC3168 6.1.1] a SYN-ACK that does not agree takes back what was asked for
    if (segment.flags.syn() && !agrees_to_ecn(segment.flags)) ecn_ = false;
    measure_round_trip(segment, ack, false, now);
    ++snd_una_;
    if (!fast_open_passive_) snd_nxt_ = ack;  // data that went with our SYN and was not taken goes again
    snd_small_ = std::max(snd_small_, snd_una_);
    syn_due_ = false;
    snd_wnd_ = segment.flags.syn() ? segment.window : std::uint32_t{segment.window} << snd_scale_;
    max_snd_wnd_ = snd_wnd_;
    snd_wl1_ = to_wire(sequence);
    snd_wl2_ = to_wire(ack);
    become_established(now);
    mark();
    if (!fast_open_passive_) {
        owe_ack();
        if (!orphan_) owner_->on_established(*this);
    }
    if (!ended() && ack > snd_una_) take_ack(segment, sequence, ack, now);
}

void Connection::take_ack(const Segment& segment, Position sequence, Position ack, Instant now) {
    if (soft_error_ != 0) [[unlikely]] {  // as Linux: whatever was wrong with the path, an answer has come
        soft_error_ = 0;
        if (owner_ != nullptr) owner_->on_soft_error(*this, 0);
    }
    const std::uint32_t window_before = snd_wnd_;
    update_send_window(segment, sequence, ack);
    const std::uint64_t flight = in_flight();
    // [RFC2883 4] [RFC3708] A D-SACK often comes when all is acknowledged: of a probe, or of the last that was sent again.
    if (flight == 0) {
        if (sending_ != nullptr && ack == snd_una_ && (segment.options.sack_count > 0 || sending_->recovery.probe_out()))
            take_late_ack(segment, snd_wnd_ == window_before, now);
        return;
    }
    if (ecn_reduced_ && !before(to_wire(ack), ecn_recover_)) ecn_reduced_ = false;

    const bool moved = ack > snd_una_;
    // [RFC5681 2]
    const bool duplicate = ack == snd_una_ && segment.payload_length == 0 && !segment.flags.fin() &&
                           snd_wnd_ == window_before;
    const bool echo = segment.flags.ece() && ecn_ && ack >= snd_una_;
    LossRecovery::Verdict verdict;
    if (moved && segment.options.sack_count == 0 && sending_->recovery.clean(snd_una_) && !congestion_->wants_delivery()) [[likely]] {
        verdict = sending_->recovery.on_clean_ack(snd_una_, ack, now);  // advance_una marks if anything waits
    } else if (moved || duplicate || segment.options.sack_count > 0) {
        std::array<Range, wire::kMaxSackBlocks> sacks;
        const std::size_t count = sack_ranges(segment, sacks);
        AckFacts facts{.snd_una = snd_una_,
                       .ack = std::max(ack, snd_una_),
                       .snd_nxt = snd_nxt_,
                       .sack_permitted = sack_,
                       .duplicate = duplicate,
                       .echo = echo,
                       .sack = {sacks.data(), count},
                       .ts_echo = {},
                       .ts_offset = ts_offset_,
                       .srtt = rtt_.srtt(),
                       .min_rtt = rtt_.min_rtt(),
                       .now = now};
        if (timestamps_ && segment.options.timestamps) facts.ts_echo = segment.options.timestamps->echo;
        verdict = sending_->recovery.on_ack(facts, *congestion_, shared_.sacks);
        if (verdict.entered_recovery) {
            ++shared_.counters.tcp_fast_retransmits;
            if (searches_mtu() && mtu_probe_lost(facts.ack, now)) [[unlikely]]
                forgive_mtu_probe();
            else
                note_reduction();
        }
        if (verdict.undone) ++shared_.counters.tcp_spurious_recoveries;
        if (verdict.repaired) {
            ++shared_.counters.tcp_loss_probe_repairs;
            note_reduction();
        }
        if (sending_->recovery.state() != LossRecovery::State::kOpen || verdict.delivered > 0) mark();
        if (const Flight* const left = sending_->recovery.flight()) due(left->timer_at);
    }
    if (echo) hear_echo(now);
    if (!moved) return;

    const auto samples_before = timing_;
    const Instant timed_at = sending_->timed_at;
    measure_round_trip(segment, ack, verdict.dsack.has_value(), now);
    const Position una_before = snd_una_;
    snd_una_ = ack;
    shared_.ip.confirm(path_, remote_.address, now);  // [RFC4861 7.3.1] the peer has what we sent, so its first hop is alive
    if (verdict.grow && !echo) {  // what tells of congestion is no reason to grow
        congestion_->on_ack({.acked_bytes = verdict.newly_acked,
                             .rtt = samples_before && !timing_ ? now - timed_at : Duration::zero(),
                             .now = now,
                             .in_flight = flight,
                             .app_limited = !window_limited_,
                             .snd_una = snd_una_,
                             .snd_nxt = snd_nxt_});
    }
    advance_una(una_before, now);
}

std::size_t Connection::sack_ranges(const Segment& segment, std::span<Range, wire::kMaxSackBlocks> ranges) const {
    if (!sack_) return 0;
    std::size_t count = 0;
    for (const wire::SackBlock& block : segment.options.sack()) {
        const Position left = widen(block.left, snd_una_);
        ranges[count++] = {left, widen(block.right, left)};
    }
    return count;
}

/// Everything is acknowledged, but what was sent twice may be reported only now.
void Connection::take_late_ack(const Segment& segment, bool same_window, Instant now) {
    std::array<Range, wire::kMaxSackBlocks> sacks;
    const std::size_t count = sack_ranges(segment, sacks);
    const auto verdict = sending_->recovery.on_late_ack(
        {.snd_una = snd_una_,
         .ack = snd_una_,
         .snd_nxt = snd_nxt_,
         .sack_permitted = sack_,
         .duplicate = same_window && segment.payload_length == 0 && !segment.flags.fin(),
         .sack = {sacks.data(), count},
         .ts_echo = {},
         .now = now},
        *congestion_);
    if (verdict.undone) ++shared_.counters.tcp_spurious_recoveries;
}

/// SND.UNA has moved from `before`.
void Connection::advance_una(Position before, Instant now) {
    rtt_.reset_backoff();
    retries_ = 0;
    more_to_come_ = false;  // as Linux: an ACK lets go what Nagle lets go
    probing_ = false;
    if (urgent_) [[unlikely]]
        end_urgent();
    if (searches_mtu()) [[unlikely]]
        hear_of_mtu_probe(now);
    if (snd_una_ == snd_nxt_) {
        retransmit_at_ = kNever;
        sending_->recovery.on_flight_empty(now);
        if (const Flight* const held = sending_->recovery.flight()) due(held->depart_at);
    } else {
        retransmit_at_ = now + rtt_.rto();  // [RFC6298 5.2, 5.3]
        due(retransmit_at_);
        // [RFC5482 1] since the oldest byte was sent, if that is still known
        Flight* const flight = sending_->recovery.flight();
        const SentRun* const oldest = flight == nullptr ? nullptr : flight->log.front();
        progress_at_ = oldest != nullptr && !oldest->again && oldest->range.contains(snd_una_) ? oldest->sent_at : now;
        arm_loss_probe(now);
    }
    if (queue_end() > snd_nxt_ || (shutdown_ && !fin_sent_)) mark();

    const Position data_end = queue_end();
    const auto bytes = static_cast<std::uint32_t>(std::min(snd_una_, data_end) - std::min(before, data_end));
    SendChunk* const released = sending_->queue.acknowledge(std::min(snd_una_, data_end));
    // The chunks first: an owner that ends the connection when it hears of progress must have had all of them back.
    if (released != nullptr) owner_->on_released(*this, released);
    if (bytes > 0 && !ended()) owner_->on_acknowledged(*this, bytes);
    if (!ended() && fin_acknowledged()) on_fin_acknowledged(now);
}

/// Our FIN has arrived, and with it everything.
void Connection::on_fin_acknowledged(Instant now) {
    switch (state_) {
        case State::kFinWait1:
            set_state(State::kFinWait2);
            if (orphan_) start_idle_timer(now);
            break;
        case State::kClosing: enter_time_wait(now); break;
        case State::kLastAck: finish(0); break;
        default: break;
    }
}

/// One segment a window is timed [RFC6298 3]; a segment sent twice is not (Karn), unless timestamps tell the copies apart
/// [RFC7323 4]. The timestamps' millisecond is too coarse to be the rule on a local network. `late`: the ACK answers what had
/// arrived before, so its echo is of then, and the time since is no round trip (RFC 7323 5.3: only news move TS.Recent).
void Connection::measure_round_trip(const Segment& segment, Position ack, bool late, Instant now) {
    if (timing_) {
        if (ack < sending_->timed_end) return;
        timing_ = false;
        measured_ = true;
        rtt_.sample(now - sending_->timed_at, now);
        return;
    }
    const bool ambiguous = sending_->recovery.state() != LossRecovery::State::kOpen || rtt_.backoffs() > 0;
    if (!ambiguous || late || !timestamps_ || !segment.options.timestamps) return;
    const std::uint32_t ticks = now_stamp(now) - segment.options.timestamps->echo;
    if (ticks > 60'000) return;  // not an echo of ours
    measured_ = true;
    rtt_.sample(std::chrono::milliseconds(std::max(ticks, 1u)), now);
}

/// [RFC9293 3.10.7.4] SND.WL1 and SND.WL2 keep old segments from setting an old window.
void Connection::update_send_window(const Segment& segment, Position sequence, Position ack) {
    if (ack < snd_una_) return;
    const std::uint32_t wl1 = to_wire(sequence);
    const std::uint32_t wl2 = to_wire(ack);
    if (before(wl1, snd_wl1_) || (snd_wl1_ == wl1 && before(wl2, snd_wl2_))) return;
    // [RFC9293 3.1 MUST-1, REC-1] never negative, and 32 bits once it is scaled
    const std::uint32_t window = std::uint32_t{segment.window} << snd_scale_;
    snd_wl1_ = wl1;
    snd_wl2_ = wl2;
    if (probing_) {
        // [RFC9293 3.8.6.1 MUST-37] a peer that answers probes is alive, however long its window stays closed
        retries_ = 0;
        if (window > snd_wnd_) {
            probing_ = false;
            retransmit_at_ = kNever;
            rtt_.reset_backoff();
        }
    }
    if (window > snd_wnd_) mark();
    snd_wnd_ = window;
    max_snd_wnd_ = std::max(max_snd_wnd_, window);
}

}  // namespace culvert::stack::tcp
