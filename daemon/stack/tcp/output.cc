// What a connection may send now: called once a turn for every connection that is marked.
//
//   duplicate ACKs -> lost segments -> new data (window, cwnd, Nagle, cork) -> FIN -> the ACK, if nothing carried it
#include <algorithm>

#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/tcp/ecn.h"
#include "daemon/stack/tcp/mss.h"
#include "daemon/stack/tcp/shared.h"

namespace culvert::stack::tcp {
namespace {

/// [RFC8985 7.2] What may pass between two timers of ours anyway; Linux keeps to two jiffies, 2 to 8 ms.
constexpr Duration kMinProbeTimeout = std::chrono::milliseconds(5);
/// TLP.max_ack_delay: the longest that receivers in use delay a lone segment's ACK (Linux, Windows).
constexpr Duration kMaxAckDelay = std::chrono::milliseconds(200);
/// Four ticks of the timer wheel: late by one is a quarter of it, and made up for at the next departure.
constexpr Duration kPacingQuantum = std::chrono::milliseconds(1);

Duration transmission_time(std::uint64_t bytes, std::uint64_t rate) {
    constexpr std::uint64_t kSecond = 1'000'000'000;
    return Duration(static_cast<std::int64_t>(std::min(bytes, UINT64_MAX / kSecond) * kSecond / rate));
}

/// From when what leaves now is counted: lost time is made up for, but no more of it than a late timer can cost.
Instant departure(const Flight& flight, Instant now) {
    return flight.depart_at + kPacingQuantum < now ? now : flight.depart_at;
}

}  // namespace

void Connection::output(Instant now) {
    if (ended()) return;
    if (!reassembler_.empty() && !orphan_ && can_receive() && has_undelivered()) [[unlikely]] {
        deliver_late(now);
        if (ended()) return;
    }
    if (!refresh_path(now)) {
        // No way there: it may come back, the timers try again. [RFC1122 4.2.3.9: not a hard error]
        duplicate_acks_due_ = 0;
        ack_due_ = false;
        delayed_ack_.on_ack_sent();
        const bool waits = syn_due_ || queue_end() > snd_nxt_ || (shutdown_ && !fin_sent_);
        if (waits && retransmit_at_ == kNever) {
            if (in_flight() == 0 && rtt_.backoffs() == 0) progress_at_ = now;  // the wait for a way begins
            arm_retransmission(now);
        }
        return;
    }
    if (state_ == State::kSynSent || state_ == State::kSynReceived) {
        if (syn_due_) send_syn(now);
        // [RFC7413 4.2.2] an answer may follow the SYN-ACK before that is acknowledged
        if (!fast_open_passive_ || syn_due_ || queue_end() <= snd_nxt_) return;
    }
    // With SACK every ACK tells everything, so three are enough to be counted; without, each one counts.
    std::uint8_t duplicates = sack_ ? std::min<std::uint8_t>(duplicate_acks_due_, 3) : duplicate_acks_due_;
    for (duplicate_acks_due_ = 0; duplicates > 0; --duplicates)
        if (!send_ack(now)) break;
    send_data(now);
    // [RFC9293 3.8.4 MAY-6 left out] the octet of garbage is for peers of before 1989; Linux sends none either
    if (probe_due_) {  // an old byte of no length: whoever gets it must answer [RFC9293 3.8.4]
        probe_due_ = !send_segment(snd_una_ - 1, 0, wire::kAck, segment_options(now), nullptr, now);
        if (urgent_) ack_due_ = true;  // where the probe stands, the peer looks for no URG
    }
    // [RFC9293 3.8.6.3 MUST-58] [RFC9293 3.10.7.4 MUST-59] one for all of this turn, unless data carried it
    if (ack_due_) send_ack(now);
}

/// What could go out next, were the congestion window wide enough. [RFC9293 3.8.6.2.1 MUST-38] [RFC9293 3.7.4 SHLD-28]
Connection::Sendable Connection::next_new_data(std::uint32_t room) const {
    Sendable next;
    if (fin_sent_) return next;
    const std::uint64_t available = queue_end() - snd_nxt_;
    if (available == 0) {
        next.fin = fin_wanted();  // one octet of sequence space: sent into any window, as a probe would be
        return next;
    }
    const Position edge = snd_una_ + snd_wnd_;
    // [RFC9293 3.8.6 MUST-34, SHLD-15] the edge may have moved left of what was sent: then nothing new goes
    const std::uint64_t usable = edge > snd_nxt_ ? edge - snd_nxt_ : 0;
    const auto length = static_cast<std::uint32_t>(std::min({available, usable, std::uint64_t{room}}));
    const bool all = length == available;
    bool go = false;
    if (length == 0) {
        go = false;
    } else if (length == room || push_out_) {
        go = true;
    } else if (all) {
        go = last_may_be_small();
    } else {
        go = length >= max_snd_wnd_ / 2;  // [RFC9293 3.8.6.2.1 (4)]
    }
    if (!go) {
        next.blocked = true;
        return next;
    }
    next.length = length;
    next.fin = all && fin_wanted();
    return next;
}

/// May what is left in the queue go, though it fills no segment? [RFC9293 3.7.4 SHLD-7, MUST-17] Nagle, in Minshall's form: one
/// small segment at a time
bool Connection::last_may_be_small() const {
    return shutdown_ || urgent_ || (!options_->cork && !more_to_come_ && (options_->no_delay || snd_small_ <= snd_una_));
}

/// As many full segments as the device takes for one packet and cuts itself, and the small one at the end of the queue if it
/// may go now; `next` where it takes none.
Connection::Sendable Connection::widened(const Sendable& next, std::uint64_t permitted, std::uint32_t room) const {
    const std::uint32_t limit = path_.local || path_.tagged ? 0 : path_.interface->segmentation_limit;
    if (limit < 2 * room || next.length != room || next.fin || cwr_due_) return next;
    const std::uint64_t available = queue_end() - snd_nxt_;
    const std::uint64_t usable = snd_una_ + snd_wnd_ - snd_nxt_;  // at least `room`: next_new_data has looked
    const std::uint64_t most = std::min({available, usable, permitted, std::uint64_t{limit}});
    const std::uint64_t length = most == available && last_may_be_small() ? most : most / room * room;
    if (length <= room) return next;
    return {.length = static_cast<std::uint32_t>(length), .fin = length == available && fin_wanted(), .blocked = false};
}

void Connection::send_data(Instant now) {
    if (state_ == State::kFinWait2) return;
    const bool idle = in_flight() == 0;
    if (idle && queue_end() == snd_nxt_ && (!fin_wanted() || fin_sent_)) return;  // only an ACK is due
    sending();  // a FIN alone has none yet
    if (idle && last_sent_ != Instant{} && now - last_sent_ > rtt_.rto()) congestion_->on_idle_restart();

    const wire::TcpOptions options = segment_options(now);
    const std::uint32_t room = payload_room(options);
    if (Flight* const flight = sending_->recovery.flight(); flight != nullptr && flight->probe_due) {
        if (!send_probe(options, room, now)) return;
    }
    const std::uint64_t rate = pacing_rate();
    Instant quantum_ends = Instant::min();  // paced: what departs before it leaves now
    const Position sent_before = snd_nxt_;
    window_limited_ = false;
    bool blocked = false;
    for (;;) {
        if (rate != 0 && !departs(rate, room, quantum_ends, now)) break;
        Sendable next = next_new_data(room);
        if (searches_mtu()) [[unlikely]]
            next = probing_mtu(next, room, now);
        if (!next && sending_->recovery.quiet()) {  // nothing to send, nothing to repair
            blocked = next.blocked;
            break;
        }
        const LossRecovery::Permit permit = sending_->recovery.next(snd_una_, snd_nxt_, *congestion_, static_cast<bool>(next));
        if (permit.kind == LossRecovery::Permit::Kind::kRetransmit) {
            if (!retransmit(permit, options, room, now)) break;
            continue;
        }
        if (permit.kind == LossRecovery::Permit::Kind::kNothing ||
            (next.length > permit.bytes && in_flight() > 0)) {  // never cut a segment to fit cwnd
            window_limited_ = static_cast<bool>(next);
            blocked = next.blocked;
            break;
        }
        if (snd_nxt_ - sent_before >= kMaxBurst) {
            mark();
            break;
        }
        const std::uint64_t burst_left = kMaxBurst - (snd_nxt_ - sent_before);
        // A device that cuts would give every piece the same urgent pointer, and would cut a probe.
        const bool wide = rate == 0 && !urgent_ && !next.probe;
        if (!transmit_new(wide ? widened(next, std::min(permit.bytes, burst_left), room) : next, options, room, now)) break;
    }
    if (snd_nxt_ != sent_before) arm_loss_probe(now);
    if (congestion_->wants_delivery() && !window_limited_ && queue_end() < snd_nxt_ + room)
        sending_->recovery.on_app_limited(snd_una_, snd_nxt_);
    push_out_ = false;
    // [RFC9293 3.9.1.2 MUST-60] what waits for more, or for a wider window, does not wait for ever
    if (blocked && in_flight() == 0 && !probing_) {
        // Nothing will bring an ACK, so time must: the cork's limit, or the first window probe. [RFC9293 3.8.6.1 MUST-36]
        probing_ = true;
        progress_at_ = now;  // [RFC5482 1] the user timeout counts from here
        retransmit_at_ = now + (snd_wnd_ >= room ? kCorkTimeout : rtt_.rto());
        due(retransmit_at_);
    }
}

/// False: no frame was free.
bool Connection::transmit_new(const Sendable& next, const wire::TcpOptions& options, std::uint32_t room, Instant now) {
    const Position first = snd_nxt_;
    wire::TcpFlags flags = wire::kAck;
    // [RFC9293 3.9.1.2 MAY-14, MAY-15, MAY-16, MAY-17 left out] sockets know neither PUSH nor flush nor records
    // [RFC9293 3.9.1.2 MUST-61, SHLD-27] once, behind everything there is
    if (next.length > 0 && first + next.length == queue_end()) flags |= wire::kPsh;
    if (next.fin) flags |= wire::kFin;
    if (next.length > 0) {
        SendQueue::Reader reader = sending_->queue.read(first, true);
        if (!send_segment(first, next.length, flags, options, &reader, now, next.probe ? next.length : room)) return false;
    } else if (!send_segment(first, 0, flags, options, nullptr, now)) {
        return false;
    }
    const std::uint32_t taken = next.length + (next.fin ? 1 : 0);
    if (next.probe) [[unlikely]]
        note_mtu_probe({first, first + taken}, room);
    if (first == snd_una_) progress_at_ = now;
    log_sent({first, first + taken}, false, now);
    snd_nxt_ += taken;
    fin_sent_ = next.fin;
    sending_->recovery.on_new_data(taken);
    if (next.length < room || (!next.probe && next.length % room != 0)) snd_small_ = snd_nxt_;
    if (!timing_) {
        timing_ = true;
        sending_->timed_end = snd_nxt_;
        sending_->timed_at = now;
    }
    last_sent_ = now;
    if (probing_ || retransmit_at_ == kNever) arm_retransmission(now);  // [RFC6298 5.1]
    return true;
}

/// One segment that makes the peer say what it has: new data, though cwnd has no room for it, or the tail again.
/// [RFC8985 7.3] False: no frame was free.
bool Connection::send_probe(const wire::TcpOptions& options, std::uint32_t room, Instant now) {
    Flight& flight = *sending_->recovery.flight();
    if (in_flight() == 0 || sending_->recovery.state() != LossRecovery::State::kOpen) {
        flight.probe_due = false;
        return true;
    }
    const bool push_out = push_out_;
    push_out_ = true;
    const Sendable next = next_new_data(room);
    push_out_ = push_out;
    const bool again = !next;
    if (again) {
        const Position tail = snd_nxt_ - std::min<std::uint64_t>(in_flight(), room);
        if (!retransmit({.kind = LossRecovery::Permit::Kind::kRetransmit, .range = {tail, snd_nxt_}, .probe = true},
                        options, room, now))
            return false;
    } else if (!transmit_new(next, options, room, now)) {
        return false;
    }
    sending_->recovery.on_probe_sent(snd_nxt_, again);
    if (Flight* const left = sending_->recovery.flight()) left->probe_due = false;
    measured_ = false;
    ++shared_.counters.tcp_loss_probes;
    return true;
}

void Connection::log_sent(Range range, bool again, Instant now) {
    if (!sending_->recovery.record(shared_.flights, range, again, snd_una_, snd_nxt_, rtt_.srtt(), now))
        ++shared_.counters.tcp_no_flight_memory;
    const std::uint64_t rate = pacing_rate();
    Flight* const flight = sending_->recovery.flight();
    if (rate == 0 || flight == nullptr) return;
    flight->depart_at = departure(*flight, now) + transmission_time(range.size(), rate);
}

/// Bytes a second; 0: not paced.
std::uint64_t Connection::pacing_rate() const {
    const std::uint64_t wanted = congestion_->pacing_rate();
    const std::uint64_t most = options_->max_pacing_rate;
    return most != 0 && (wanted == 0 || wanted > most) ? most : wanted;
}

/// Whether the next segment may leave: as long as the quantum lasts, and when the next one is due. A quantum is what the
/// rate gives in kPacingQuantum, at least two segments, so that a timer serves more than one and the peer has no reason
/// to delay its ACK.
bool Connection::departs(std::uint64_t rate, std::uint32_t room, Instant& quantum_ends, Instant now) {
    Flight* const flight = sending_->recovery.flight();
    const Duration quantum = std::max(kPacingQuantum, transmission_time(std::uint64_t{2} * room, rate));
    if (flight == nullptr) {  // the first of a flight, or one without memory
        quantum_ends = now + quantum;
        return true;
    }
    if (flight->depart_at < quantum_ends) return true;
    if (flight->depart_at <= now) {
        quantum_ends = departure(*flight, now) + quantum;
        return true;
    }
    flight->held = true;
    due(flight->depart_at);
    window_limited_ = true;  // the application is not what holds the sender back
    return false;
}

bool Connection::retransmit(const LossRecovery::Permit& permit, const wire::TcpOptions& options, std::uint32_t room,
                            Instant now) {
    const Position first = permit.range.first;
    const Position data_end = std::min(permit.range.end, queue_end());
    std::uint32_t length = 0;
    if (first < data_end) length = static_cast<std::uint32_t>(std::min<std::uint64_t>(data_end - first, room));
    const bool fin = fin_sent_ && first + length == queue_end() && permit.range.end > queue_end();
    wire::TcpFlags flags = wire::kAck;
    if (length > 0 && first + length == queue_end()) flags |= wire::kPsh;
    if (fin) flags |= wire::kFin;
    if (length > 0) {
        SendQueue::Reader reader = sending_->queue.read(first, false);
        if (!send_segment(first, length, flags, options, &reader, now)) return false;
    } else if (!send_segment(first, 0, flags, options, nullptr, now)) {
        return false;
    }
    if (timing_ && sending_->timed_end > first) timing_ = false;  // [RFC9293 3.8.1 MUST-18] [RFC6298 3] Karn
    ++shared_.counters.tcp_retransmits;
    ++total_retransmits_;
    std::optional<std::uint32_t> stamp;
    if (timestamps_) stamp = now_stamp(now);
    const Range sent{first, first + length + (fin ? 1 : 0)};
    sending_->recovery.on_retransmitted(permit, sent, snd_nxt_, stamp);
    if (Flight* const flight = sending_->recovery.flight(); permit.probe && flight != nullptr) flight->forget(sent);
    log_sent(sent, true, now);
    if (probing_ || retransmit_at_ == kNever) arm_retransmission(now);
    return true;
}

/// False: no frame was free; the connection stays marked and tries again when the device has given some back.
bool Connection::send_segment(Position first, std::uint32_t length, wire::TcpFlags flags,
                              const wire::TcpOptions& options, SendQueue::Reader* payload, Instant now,
                              std::uint32_t segment_size) {
    const wire::Ecn ecn = ecn_ ? mark_segment(first, length, flags) : wire::Ecn::kNotCapable;
    wire::TcpHeader header{.source = local_.port,
                           .destination = remote_.port,
                           .sequence = to_wire(first),
                           .acknowledgment = to_wire(rcv_nxt_),
                           .flags = flags,
                           .window = window_to_advertise()};
    if (urgent_) [[unlikely]]
        point_at_urgent(first, header);
    // [RFC9293 3.9.1 MUST-48, SHLD-21, SHLD-22, MUST-49] as the application wants them by now
    const std::uint8_t tos = with_ecn(options_->tos, ecn);
    const bool sent =
        length > segment_size
            ? shared_.output.send_super(path_, local_.address, remote_.address, header, options, *payload, length,
                                        static_cast<std::uint16_t>(segment_size), tos, options_->ttl, now)
            : shared_.output.send(path_, local_.address, remote_.address, header, options, payload, length, tos, options_->ttl,
                                  now);
    if (!sent) {
        mark();
        return false;
    }
    if (flags.cwr()) cwr_due_ = false;
    last_ack_sent_ = rcv_nxt_;
    ack_due_ = false;
    delayed_ack_.on_ack_sent();
    dsack_ = {};
    return true;
}

bool Connection::send_ack(Instant now) {
    return send_segment(snd_nxt_, 0, wire::kAck, segment_options(now), nullptr, now);
}

/// [RFC9293 3.10.5] At once, so that it leaves before the connection is gone.
void Connection::send_reset(Instant now) {
    const bool synchronized = state_ != State::kSynSent && state_ != State::kClosed && state_ != State::kTimeWait;
    if (!synchronized || !refresh_path(now)) return;
    if (shared_.output.send(path_, local_.address, remote_.address,
                            {.source = local_.port,
                             .destination = remote_.port,
                             .sequence = to_wire(snd_nxt_),
                             .acknowledgment = to_wire(rcv_nxt_),
                             .flags = wire::kRst | wire::kAck},
                            {}, nullptr, 0, with_ecn(options_->tos, wire::Ecn::kNotCapable), options_->ttl, now))
        ++shared_.counters.tcp_resets_out;
}

wire::TcpOptions Connection::segment_options(Instant now) const {
    wire::TcpOptions options;
    if (timestamps_) options.timestamps = {.value = now_stamp(now), .echo = ts_recent_};  // [RFC7323 3.2]
    if (sack_ && (!reassembler_.empty() || dsack_.first != dsack_.end)) {
        std::array<Range, Reassembler::kMaxSackBlocks> ranges;
        const std::size_t limit = wire::max_sack_blocks(timestamps_);
        std::optional<Range> dsack;
        if (dsack_.first != dsack_.end) {
            const Position first = widen(dsack_.first, rcv_nxt_);
            dsack = {first, first + (dsack_.end - dsack_.first)};
        }
        const std::size_t count = reassembler_.sack_blocks(std::span(ranges).first(limit), dsack);
        for (std::size_t i = 0; i < count; ++i)
            options.sack_blocks[i] = {.left = to_wire(ranges[i].first), .right = to_wire(ranges[i].end)};
        options.sack_count = static_cast<std::uint8_t>(count);
    }
    return options;
}

/// SACK blocks in a data segment take their room from the payload. [RFC9293 3.7.1 MUST-16]
std::uint32_t Connection::payload_room(const wire::TcpOptions& options) const {
    const auto usual = static_cast<std::uint32_t>(timestamps_ ? wire::kTcpTimestampsLength : 0);
    const auto more = static_cast<std::uint32_t>(wire::tcp_header_length(options) - wire::kTcpHeaderLength) - usual;
    return mss_ - more;
}

std::uint32_t Connection::now_stamp(Instant now) const { return ts_offset_ + SegmentOutput::timestamp(now); }

bool Connection::refresh_path(Instant now) {
    if (path_.interface != nullptr && !shared_.ip.stale(path_)) return true;
    const std::uint32_t mtu = path_.mtu;
    auto path = shared_.ip.find_path(local_.address, remote_.address, now);
    if (!path) {
        shared_.counters.drop(Drop::kIpNoRoute);
        path_.interface = nullptr;
        return false;
    }
    path_ = *path;
    // [RFC9293 3.7.5 SHLD-6]
    if (path_.mtu != mtu && established_once_) update_mss();
    return true;
}

std::uint32_t Connection::advertised_mss() const {
    const std::uint32_t mss = mss_for_mtu(path_.mtu, remote_.address);
    return options_->max_segment != 0 ? std::min<std::uint32_t>(mss, options_->max_segment) : mss;
}

void Connection::update_mss() {
    std::uint32_t mss = mss_for_mtu(usable_mtu(), remote_.address);
    mss = std::min(mss, std::max<std::uint32_t>(peer_mss_, kMinMss));
    if (options_->max_segment != 0) mss = std::min<std::uint32_t>(mss, std::max<std::uint32_t>(options_->max_segment, kMinMss));
    // [RFC6691 2] an announced MSS does not count options
    mss_ = mss - static_cast<std::uint32_t>(timestamps_ ? wire::kTcpTimestampsLength : 0);
    congestion_->set_mss(mss_);
}

/// [RFC8985 7.2] TLP_calc_PTO
void Connection::arm_loss_probe(Instant now) {
    if (!sack_ || probing_ || retransmit_at_ == kNever) return;
    Duration timeout = RttEstimator::kInitialRto;
    if (rtt_.has_sample()) {
        timeout = std::max(2 * rtt_.srtt(), kMinProbeTimeout);
        if (in_flight() <= mss_) timeout += kMaxAckDelay;
    }
    sending_->recovery.arm_probe(timeout, retransmit_at_, now);
    if (Flight* const flight = sending_->recovery.flight()) due(flight->timer_at);
}

void Connection::arm_retransmission(Instant now) {
    probing_ = false;
    retransmit_at_ = now + rtt_.rto();
    due(retransmit_at_);
}

}  // namespace culvert::stack::tcp
