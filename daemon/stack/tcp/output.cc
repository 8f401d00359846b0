// What a connection may send now: called once a turn for every connection that is marked.
//
//   duplicate ACKs -> lost segments -> new data (window, cwnd, Nagle, cork) -> FIN -> the ACK, if nothing carried it
#include <algorithm>

#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/tcp/ecn.h"
#include "daemon/stack/tcp/mss.h"
#include "daemon/stack/tcp/shared.h"

namespace culvert::stack::tcp {

void Connection::output(Instant now) {
    if (ended()) return;
    if (!refresh_path(now)) {
        // No way there: it may come back, the timers try again. [RFC1122 4.2.3.9: not a hard error]
        duplicate_acks_due_ = 0;
        ack_due_ = false;
        delayed_ack_.on_ack_sent();
        const bool waits = syn_due_ || queue_.end() > snd_nxt_ || (shutdown_ && !fin_sent_);
        if (waits && retransmit_at_ == kNever) arm_retransmission(now);
        return;
    }
    if (state_ == State::kSynSent || state_ == State::kSynReceived) {
        if (syn_due_) send_syn(now);
        return;
    }
    // With SACK every ACK tells everything, so three are enough to be counted; without, each one counts.
    std::uint8_t duplicates = sack_ ? std::min<std::uint8_t>(duplicate_acks_due_, 3) : duplicate_acks_due_;
    for (duplicate_acks_due_ = 0; duplicates > 0; --duplicates)
        if (!send_ack(now)) break;
    send_data(now);
    if (probe_due_) {  // an old byte of no length: whoever gets it must answer [RFC9293 3.8.4]
        probe_due_ = !send_segment(snd_una_ - 1, 0, wire::kAck, segment_options(now), nullptr, now);
    }
    if (ack_due_) send_ack(now);
    rearm();
}

/// What could go out next, were the congestion window wide enough. [RFC9293 3.8.6.2.1, 3.7.4]
Connection::Sendable Connection::next_new_data(std::uint32_t room) const {
    Sendable next;
    if (fin_sent_) return next;
    const std::uint64_t available = queue_.end() - snd_nxt_;
    if (available == 0) {
        next.fin = shutdown_;  // one octet of sequence space: sent into any window, as a probe would be
        return next;
    }
    const Position edge = snd_una_ + snd_wnd_;
    const std::uint64_t usable = edge > snd_nxt_ ? edge - snd_nxt_ : 0;
    const auto length = static_cast<std::uint32_t>(std::min({available, usable, std::uint64_t{room}}));
    const bool all = length == available;
    bool go = false;
    if (length == 0) {
        go = false;
    } else if (length == room || push_out_) {
        go = true;
    } else if (all) {
        // [RFC9293 3.7.4 SHLD-7] Nagle, in Minshall's form: one small segment at a time
        go = shutdown_ || (!options_.cork && (options_.no_delay || snd_small_ <= snd_una_));
    } else {
        go = length >= max_snd_wnd_ / 2;  // [RFC9293 3.8.6.2.1 (4)]
    }
    if (!go) {
        next.blocked = true;
        return next;
    }
    next.length = length;
    next.fin = all && shutdown_;
    return next;
}

void Connection::send_data(Instant now) {
    if (state_ == State::kFinWait2) return;
    const bool idle = in_flight() == 0;
    if (idle && queue_.end() == snd_nxt_ && (!shutdown_ || fin_sent_)) return;  // only an ACK is due
    if (idle && last_sent_ != Instant{} && now - last_sent_ > rtt_.rto()) congestion_->on_idle_restart();

    const wire::TcpOptions options = segment_options(now);
    const std::uint32_t room = payload_room(options);
    std::uint32_t burst = 0;
    window_limited_ = false;
    bool blocked = false;
    for (;;) {
        const Sendable next = next_new_data(room);
        const LossRecovery::Permit permit = recovery_.next(snd_una_, snd_nxt_, *congestion_, static_cast<bool>(next));
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
        if (burst >= kMaxBurst) {
            mark();
            break;
        }
        const Position first = snd_nxt_;
        wire::TcpFlags flags = wire::kAck;
        if (next.length > 0 && first + next.length == queue_.end()) flags |= wire::kPsh;  // [RFC9293 3.9.1 MUST-61]
        if (next.fin) flags |= wire::kFin;
        if (next.length > 0) {
            SendQueue::Reader reader = queue_.read(first, true);
            if (!send_segment(first, next.length, flags, options, &reader, now)) break;
        } else if (!send_segment(first, 0, flags, options, nullptr, now)) {
            break;
        }
        const std::uint32_t taken = next.length + (next.fin ? 1 : 0);
        if (first == snd_una_) progress_at_ = now;
        snd_nxt_ += taken;
        fin_sent_ = next.fin;
        recovery_.on_new_data(taken);
        if (next.length < room) snd_small_ = snd_nxt_;
        if (!timing_) {
            timing_ = true;
            timed_end_ = snd_nxt_;
            timed_at_ = now;
        }
        last_sent_ = now;
        burst += next.length;
        if (probing_ || retransmit_at_ == kNever) arm_retransmission(now);  // [RFC6298 5.1]
    }
    push_out_ = false;
    if (blocked && in_flight() == 0 && !probing_) {
        // Nothing will bring an ACK, so time must: the cork's limit, or the first window probe. [RFC9293 3.8.6.1 MUST-36]
        probing_ = true;
        retransmit_at_ = now + (snd_wnd_ >= room ? kCorkTimeout : rtt_.rto());
    }
}

bool Connection::retransmit(const LossRecovery::Permit& permit, const wire::TcpOptions& options, std::uint32_t room,
                            Instant now) {
    const Position first = permit.range.first;
    const Position data_end = std::min(permit.range.end, queue_.end());
    std::uint32_t length = 0;
    if (first < data_end) length = static_cast<std::uint32_t>(std::min<std::uint64_t>(data_end - first, room));
    const bool fin = fin_sent_ && first + length == queue_.end() && permit.range.end > queue_.end();
    wire::TcpFlags flags = wire::kAck;
    if (length > 0 && first + length == queue_.end()) flags |= wire::kPsh;
    if (fin) flags |= wire::kFin;
    if (length > 0) {
        SendQueue::Reader reader = queue_.read(first, false);
        if (!send_segment(first, length, flags, options, &reader, now)) return false;
    } else if (!send_segment(first, 0, flags, options, nullptr, now)) {
        return false;
    }
    if (timing_ && timed_end_ > first) timing_ = false;  // [RFC6298 3] Karn
    ++shared_.counters.tcp_retransmits;
    ++total_retransmits_;
    std::optional<std::uint32_t> stamp;
    if (timestamps_) stamp = now_stamp(now);
    recovery_.on_retransmitted(permit, {first, first + length + (fin ? 1 : 0)}, snd_nxt_, stamp);
    if (probing_ || retransmit_at_ == kNever) arm_retransmission(now);
    return true;
}

/// False: no frame was free; the connection stays marked and tries again when the device has given some back.
bool Connection::send_segment(Position first, std::uint32_t length, wire::TcpFlags flags,
                              const wire::TcpOptions& options, SendQueue::Reader* payload, Instant now) {
    const wire::Ecn ecn = ecn_ ? mark_segment(first, length, flags) : wire::Ecn::kNotCapable;
    const wire::TcpHeader header{.source = local_.port,
                                 .destination = remote_.port,
                                 .sequence = to_wire(first),
                                 .acknowledgment = to_wire(rcv_nxt_),
                                 .flags = flags,
                                 .window = window_to_advertise()};
    if (!shared_.output.send(path_, local_.address, remote_.address, header, options, payload, length,
                             with_ecn(options_.tos, ecn), options_.ttl, now)) {
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
                            {}, nullptr, 0, with_ecn(options_.tos, wire::Ecn::kNotCapable), options_.ttl, now))
        ++shared_.counters.tcp_resets_out;
}

wire::TcpOptions Connection::segment_options(Instant now) const {
    wire::TcpOptions options;
    if (timestamps_) options.timestamps = {.value = now_stamp(now), .echo = ts_recent_};  // [RFC7323 3.2]
    if (sack_ && (!reassembler_.empty() || !dsack_.empty())) {
        std::array<Range, Reassembler::kMaxSackBlocks> ranges;
        const std::size_t limit = wire::max_sack_blocks(timestamps_);
        std::optional<Range> dsack;
        if (!dsack_.empty()) dsack = dsack_;
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
    if (path_.mtu != mtu && established_once_) update_mss();
    return true;
}

std::uint32_t Connection::advertised_mss() const {
    const std::uint32_t mss = mss_for_mtu(path_.mtu, remote_.address);
    return options_.max_segment != 0 ? std::min<std::uint32_t>(mss, options_.max_segment) : mss;
}

void Connection::update_mss() {
    std::uint32_t mss = mss_for_mtu(std::min(path_.mtu, path_mtu_), remote_.address);
    mss = std::min(mss, std::max<std::uint32_t>(peer_mss_, kMinMss));
    if (options_.max_segment != 0) mss = std::min<std::uint32_t>(mss, std::max<std::uint32_t>(options_.max_segment, kMinMss));
    // [RFC6691 2] an announced MSS does not count options
    mss_ = mss - static_cast<std::uint32_t>(timestamps_ ? wire::kTcpTimestampsLength : 0);
    congestion_->set_mss(mss_);
}

void Connection::arm_retransmission(Instant now) {
    probing_ = false;
    retransmit_at_ = now + rtt_.rto();
    rearm();
}

}  // namespace culvert::stack::tcp
