// The text and FIN of a segment: the receiver's side. RFC 9293 3.10.7.4, seventh and eighth.
#include <algorithm>

#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/tcp/shared.h"

namespace culvert::stack::tcp {

void Connection::input_text(const Segment& segment, Position sequence, Instant now) {
    if (!can_receive()) {  // behind the peer's FIN
        shared_.counters.drop(Drop::kTcpOutOfWindow);
        owe_ack();
        return;
    }
    std::uint32_t length = segment.payload_length;
    bool fin = segment.flags.fin();
    if (orphan_ && length > 0 && sequence + length > rcv_nxt_) return refuse_after_close(now);
    // Cut to the window: on the left what is known already, on the right what there is no room for.
    const auto skip = sequence < rcv_nxt_
                          ? static_cast<std::uint32_t>(std::min<Position>(length, rcv_nxt_ - sequence))
                          : 0u;
    if (skip > 0 && sack_) report_duplicate({sequence, sequence + skip});
    const Position first = sequence + skip;
    length -= skip;
    if (first + length > rcv_edge_) {
        shared_.counters.drop(rcv_edge_ == rcv_nxt_ ? Drop::kTcpZeroWindow : Drop::kTcpOutOfWindow);
        length = rcv_edge_ > first ? static_cast<std::uint32_t>(rcv_edge_ - first) : 0;
        fin = false;
        owe_ack();
    }
    if (fin && !fin_known_) {
        fin_known_ = true;
        peer_fin_ = to_wire(first + length);
    }
    if (first > rcv_nxt_) {
        if (length > 0 || fin) receive_early(segment, first, skip, length, now);
        return;
    }
    if (length > 0) receive_in_order(segment, skip, length, now);
    if (!ended() && fin_known_ && to_wire(rcv_nxt_) == peer_fin_) input_fin(now);
}

void Connection::receive_in_order(const Segment& segment, std::uint32_t skip, std::uint32_t length, Instant now) {
    if (fin_known_ && rcv_nxt_ + length > peer_fin()) {  // bytes behind the FIN do not exist
        shared_.counters.drop(Drop::kTcpOutOfWindow);
        length = static_cast<std::uint32_t>(peer_fin() - rcv_nxt_);
        if (length == 0) return;
    }
    const bool nothing_waits = reassembler_.empty();
    // A first segment that is not full: the peer talks, it does not stream. The answer will carry the ACK.
    if (delayed_ack_.quick() && !options_->quick_ack) {
        const std::uint32_t merged_of = segment.ip.packet.segment_size;
        if (std::min(length, merged_of != 0 ? merged_of : length) < mss_) delayed_ack_.leave_quick_mode();
    }
    // With a small buffer and large segments a quarter of the buffer counts as a segment's worth two times over: the
    // sender must not run into the window before the first ACK.
    const std::uint32_t worth_an_ack = std::min(mss_, std::min(receive_buffer_, window_clamp()) / 8);
    if (delayed_ack_.on_data(length, worth_an_ack, nothing_waits, segment.flags.fin(), now, shared_.config.delayed_ack) ==
        DelayedAck::Urgency::kNow)
        owe_ack();
    else
        due(delayed_ack_.deadline());
    if (deliver(segment, skip, length) < length) {
        shared_.counters.drop(Drop::kTcpReceiveBufferFull);
        if (!ended()) owe_ack();
        return;
    }
    if (nothing_waits || ended()) return;
    drain_reassembler();
    // The owner closed while it was served, and there was more.
    if (orphan_ && !ended() && !reassembler_.empty() && !reassembler_.peek(rcv_nxt_, shared_.reassembly).empty())
        refuse_after_close(now);
}

/// [RFC1122 4.2.2.13] Data that nobody will read: the peer must learn that it is lost.
void Connection::refuse_after_close(Instant now) {
    shared_.counters.drop(Drop::kTcpAfterClose);
    send_reset(now);
    finish(ECONNRESET);
}

std::uint32_t Connection::deliver(const Segment& segment, std::uint32_t skip, std::uint32_t length) {
    const auto head = segment.ip.packet.head;
    const std::size_t at = std::size_t{segment.payload_offset} + skip;
    if (at + length <= head.size()) [[likely]] {  // one piece, as nearly always
        const std::span<const std::byte> piece = head.subspan(at, length);
        return deliver({&piece, 1}, length);
    }
    const PayloadSlice slice(segment, skip, length);
    return deliver(slice.fragments(), slice.length());
}

/// Hands bytes over in order; the owner may do anything meanwhile, also end the connection.
std::uint32_t Connection::deliver(Payload payload, std::uint32_t length) {
    unread_ += length;  // before the call: the owner may consume at once
    rcv_nxt_ += length;
    const std::uint32_t taken = std::min(owner_->on_data(*this, payload, length), length);
    unread_ -= std::min(length - taken, unread_);
    rcv_nxt_ -= length - taken;
    return taken;
}

void Connection::drain_reassembler() {
    const Position before = rcv_nxt_;
    std::uint64_t refused = 0;
    reassembler_.take_in_order(
        before,
        [&](std::span<const std::byte> run) -> std::size_t {
            if (ended() || orphan_) return 0;
            const Payload one{&run, 1};
            const auto length = static_cast<std::uint32_t>(run.size());
            const std::uint32_t taken = deliver(one, length);
            refused += length - taken;
            return taken;
        },
        shared_.reassembly);
    if (refused > 0) shared_.counters.drop(Drop::kTcpReceiveBufferFull);
}

/// The owner had no room for data that are in order by now; the peer has a SACK for them and sends them no more.
bool Connection::has_undelivered() {
    return !reassembler_.empty() && !reassembler_.peek(rcv_nxt_, shared_.reassembly).empty();
}

void Connection::deliver_late(Instant now) {
    const Position before = rcv_nxt_;
    drain_reassembler();
    if (ended() || rcv_nxt_ == before) return;
    owe_ack();
    if (fin_known_ && rcv_nxt_ == peer_fin()) input_fin(now);
}

void Connection::receive_early(const Segment& segment, Position first, std::uint32_t skip, std::uint32_t length,
                               Instant now) {
    ++shared_.counters.tcp_out_of_order;
    if (length > 0) {
        const PayloadSlice slice(segment, skip, length);
        const auto inserted = reassembler_.insert(first, slice.fragments(), rcv_nxt_, shared_.reassembly);
        if (inserted.truncated) shared_.counters.drop(Drop::kTcpReassemblyFull);
        if (inserted.duplicate && sack_) report_duplicate(*inserted.duplicate);
    }
    // [RFC9293 3.10.7.4 SHLD-31] [RFC9293 3.8.6.3 MAY-13] [RFC5681 4.2] a duplicate ACK at once, for every such segment
    delayed_ack_.on_data(0, mss_, false, false, now);
    if (duplicate_acks_due_ < kMaxDuplicateAcks) ++duplicate_acks_due_;
    owe_ack();
}

/// RCV.NXT stands at the peer's FIN.
void Connection::input_fin(Instant now) {
    ++rcv_nxt_;
    reassembler_.clear(shared_.reassembly);
    owe_ack();
    switch (state_) {
        case State::kEstablished: set_state(State::kCloseWait); break;
        case State::kFinWait1: set_state(State::kClosing); break;  // had our FIN been acknowledged, it were FIN-WAIT-2
        default: break;
    }
    if (!orphan_) owner_->on_end_of_stream(*this);
    if (state_ == State::kFinWait2) enter_time_wait(now);
}

/// The window to write into a segment, and what it promises. [RFC9293 3.8.6.2.2 MUST-39] The right edge never moves left
/// [RFC9293 3.8.6 SHLD-14, MAY-8], and right only by enough to be worth a segment.
std::uint16_t Connection::window_to_advertise() {
    const Position possible = rcv_nxt_ + std::min<std::uint64_t>(window_space(), std::uint64_t{0xffff} << rcv_scale_);
    const std::uint64_t step = std::min<std::uint64_t>(mss_, std::min(receive_buffer_, window_clamp()) / 2);
    if (possible >= rcv_edge_ + step) rcv_edge_ = possible;
    const std::uint64_t window = rcv_edge_ > rcv_nxt_ ? rcv_edge_ - rcv_nxt_ : 0;
    return static_cast<std::uint16_t>(std::min<std::uint64_t>(window >> rcv_scale_, 0xffff));
}

/// Dynamic right-sizing: who reads more than half a buffer in a round trip could read faster with a larger one.
/// While memory is scarce it shrinks instead, by half each round trip: the window closes as data comes in, its edge stays.
void Connection::tune_receive_buffer(std::uint32_t consumed_bytes, bool memory_scarce, Instant now) {
    if (fixed_buffer_) return;
    tune_bytes_ += consumed_bytes;
    const Duration round = std::max<Duration>(rtt_.srtt(), std::chrono::milliseconds(1));
    if (now - tune_start_ < round) return;
    if (memory_scarce) {
        ++shared_.counters.tcp_memory_pressure;
        receive_buffer_ = std::max(receive_buffer_ / 2, std::min(receive_buffer_, shared_.config.min_receive_buffer));
    } else if (now - tune_start_ < 2 * round && tune_bytes_ > receive_buffer_ / 2) {
        receive_buffer_ = static_cast<std::uint32_t>(
            std::min<std::uint64_t>(std::uint64_t{receive_buffer_} * 2, std::max(shared_.config.max_receive_buffer, receive_buffer_)));
    }
    tune_start_ = now;
    tune_bytes_ = 0;
}

}  // namespace culvert::stack::tcp
