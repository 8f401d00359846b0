#include "daemon/stack/tcp/connection.h"

#include <algorithm>

#include "daemon/stack/tcp/shared.h"

namespace culvert::stack::tcp {
namespace {

Algorithm algorithm_of(Congestion wanted, Congestion fallback) {
    switch (chosen_congestion(wanted, fallback)) {
        case Congestion::kNewReno: return Algorithm::kNewReno;
        case Congestion::kBbr: return Algorithm::kBbr;
        case Congestion::kDctcp: return Algorithm::kDctcp;
        default: return Algorithm::kCubic;
    }
}

Congestion congestion_of(Algorithm algorithm) {
    switch (algorithm) {
        case Algorithm::kNewReno: return Congestion::kNewReno;
        case Algorithm::kCubic: return Congestion::kCubic;
        case Algorithm::kBbr: return Congestion::kBbr;
        case Algorithm::kDctcp: return Congestion::kDctcp;
    }
    return Congestion::kDefault;
}

/// The drawing in connection.h.
bool may_change(State from, State to) {
    switch (from) {
        case State::kClosed:
            return to == State::kSynSent || to == State::kSynReceived || to == State::kEstablished;
        case State::kSynSent:
            return to == State::kSynReceived || to == State::kEstablished || to == State::kClosed;
        case State::kSynReceived: return to == State::kEstablished || to == State::kClosed;
        case State::kEstablished: return to == State::kFinWait1 || to == State::kCloseWait || to == State::kClosed;
        case State::kFinWait1:
            return to == State::kFinWait2 || to == State::kClosing || to == State::kTimeWait || to == State::kClosed;
        case State::kFinWait2: return to == State::kTimeWait || to == State::kClosed;
        case State::kCloseWait: return to == State::kLastAck || to == State::kClosed;
        case State::kClosing: return to == State::kTimeWait || to == State::kClosed;
        case State::kLastAck: return to == State::kClosed;
        case State::kTimeWait: return to == State::kClosed;
        case State::kListen: return false;
    }
    return false;
}

}  // namespace

Connection::Connection(Shared& shared, const Endpoint& local, const Endpoint& remote, std::uint32_t flow_hash,
                       const Options& options)
    : TimerNode(kConnectionTimer),
      shared_(shared),
      rtt_(shared.config.min_rto),
      congestion_(algorithm_of(options.congestion, shared.config.congestion), kDefaultMss, &shared.bbr_models),
      local_(local),
      remote_(remote),
      hash_(flow_hash),
      options_(shared.options.take(options)) {
    fixed_buffer_ = options.receive_buffer != 0;
    receive_buffer_ = shared.config.receive_buffer(options.receive_buffer);
    ts_offset_ = shared.timestamp_offset(local, remote);
    last_received_ = shared.now;
    if (congestion_->algorithm() != algorithm_of(options.congestion, shared.config.congestion))
        ++shared.counters.tcp_bbr_refused;
}

Connection::~Connection() {
    shared_.options.give(options_);
    if (sending_ == nullptr) return;
    sending_->~Sending();
    shared_.senders.release(shared_.senders.index_of(sending_));
}

Sending& Connection::sending() {
    if (sending_ == nullptr) {
        const std::uint32_t index = shared_.senders.allocate();
        CHECK(index != LazyPool::kNone);  // as many as connections
        sending_ = new (shared_.senders.at(index)) Sending(queue_end(), learned_);
    }
    return *sending_;
}

void Connection::settle() {
    if (sending_ == nullptr || in_flight() > 0 || !established_once_ || timing_) return;
    if (!sending_->queue.empty() || !sending_->recovery.settled()) return;
    DCHECK(queue_end() == snd_nxt_ - (fin_sent_ ? 1 : 0));
    learned_ = sending_->recovery.learned();
    sending_->~Sending();
    shared_.senders.release(shared_.senders.index_of(sending_));
    sending_ = nullptr;
}

void Connection::set_state(State state) {
    CHECK(may_change(state_, state));
    state_ = state;
    // tcpCurrEstab of RFC 4022
    const bool counts = state == State::kEstablished || state == State::kCloseWait;
    if (counts != counted_) {
        counted_ = counts;
        counts ? ++shared_.counters.tcp_established : --shared_.counters.tcp_established;
    }
}

void Connection::mark() {
    if (marked_) return;
    marked_ = true;
    (shared_.marked == nullptr ? shared_.marked : shared_.last_marked->next_marked_) = this;
    shared_.last_marked = this;
}

void Connection::send(SendChunk* first, SendChunk* last, bool more) {
    if (ended() || shutdown_) {
        last->next = nullptr;
        owner_->on_released(*this, first);
        return;
    }
    sending().queue.append(first, last);
    more_to_come_ = more;
    let_syn_go();
    mark();
}

void Connection::shutdown_write() {
    if (ended() || shutdown_) return;
    shutdown_ = true;
    if (state_ == State::kEstablished) set_state(State::kFinWait1);
    if (state_ == State::kCloseWait) set_state(State::kLastAck);
    let_syn_go();
    mark();
}

void Connection::consumed(std::uint32_t bytes, bool memory_scarce) {
    unread_ -= std::min(bytes, unread_);
    if (!can_receive()) return;
    if (has_undelivered()) mark();  // at the next flush: the owner may be in the middle of on_data
    tune_receive_buffer(bytes, memory_scarce, shared_.now);
    // [RFC9293 3.8.6.2.2] The peer must be told only when it has next to nothing left to send into, and the window has
    // become much larger; otherwise the next ACK tells it for nothing.
    const std::uint64_t left = rcv_edge_ > rcv_nxt_ ? rcv_edge_ - rcv_nxt_ : 0;
    const std::uint64_t space = std::min<std::uint64_t>(window_space(), std::uint64_t{0xffff} << rcv_scale_);
    const std::uint32_t most = std::min(receive_buffer_, window_clamp());
    if (left < std::max<std::uint64_t>(2 * mss_, most / 8) && space >= 2 * left &&
        space - left >= std::min<std::uint64_t>(mss_, most / 2))
        owe_ack();
}

void Connection::abort() {
    if (ended()) return;
    send_reset(shared_.now);
    finish(ECONNABORTED);
}

void Connection::close(ConnectionOwner& orphan, bool unread_data, bool linger_zero) {
    owner_ = &orphan;
    if (ended()) return;
    orphan_ = true;
    // [RFC9293 3.6.1 SHLD-3, MAY-1] data that the application will never read: the peer must learn that it is lost.
    // [RFC9293 3.10.4] CLOSE in SYN-SENT deletes the TCB, unless the application was told that it is connected.
    const bool told = fast_open_active_ && sending_ != nullptr && !sending_->queue.empty();
    if (unread_data || linger_zero || (state_ == State::kSynSent && !told)) {
        send_reset(shared_.now);
        finish(ECONNABORTED);
        return;
    }
    shutdown_write();
    if (state_ == State::kFinWait2) start_idle_timer(shared_.now);
}

// [RFC9293 3.9.1 SHLD-23 left out] to leave the field alone once it is set is advice for applications
// [RFC9293 3.8.5 SHLD-13 left out] not to begin using urgent data is, too
void Connection::set_options(const Options& options) {
    const Options before = *options_;
    const Options* const chosen = shared_.options.take(options);
    shared_.options.give(std::exchange(options_, chosen));
    if (ended()) return;
    if (options.congestion != before.congestion &&
        !congestion_.change(algorithm_of(options.congestion, shared_.config.congestion), &shared_.bbr_models))
        ++shared_.counters.tcp_bbr_refused;
    if (options.receive_buffer != before.receive_buffer && options.receive_buffer != 0) {
        fixed_buffer_ = true;
        receive_buffer_ = shared_.config.receive_buffer(options.receive_buffer);
    }
    if (options.quick_ack != before.quick_ack)
        options.quick_ack ? delayed_ack_.enter_quick_mode() : delayed_ack_.leave_quick_mode();
    if (established_once_ && options.max_segment != before.max_segment) update_mss();
    if (established_once_) start_idle_timer(shared_.now);
    mark();  // Nagle or the cork may no longer hold data back
}

std::uint32_t Connection::window_clamp() const {
    return options_->window_clamp != 0 ? options_->window_clamp : UINT32_MAX;
}

std::uint32_t Connection::unsent_bytes() const {
    return queue_end() > snd_nxt_ ? static_cast<std::uint32_t>(queue_end() - snd_nxt_) : 0;
}

std::uint32_t Connection::unacknowledged_bytes() const {
    return queue_end() > snd_una_ ? static_cast<std::uint32_t>(queue_end() - snd_una_) : 0;
}

Info Connection::info() const {
    Info info;
    info.state = state_;
    info.srtt = rtt_.srtt();
    info.rttvar = rtt_.rttvar();
    info.rto = rtt_.rto();
    info.min_rtt = rtt_.min_rtt();
    info.cwnd_bytes = congestion_->cwnd();
    info.ssthresh_bytes = congestion_->ssthresh();
    info.mss = mss_;
    info.path_mtu = path_.mtu;
    info.in_flight_bytes = static_cast<std::uint32_t>(in_flight());
    info.unsent_bytes = unsent_bytes();
    info.receive_buffer = receive_buffer_;
    info.total_retransmits = total_retransmits_;
    info.backoffs = rtt_.backoffs();
    info.receive_window = rcv_edge_ > rcv_nxt_ ? static_cast<std::uint32_t>(rcv_edge_ - rcv_nxt_) : 0;
    info.send_window = snd_wnd_;
    info.send_scale = snd_scale_;
    info.receive_scale = rcv_scale_;
    info.timestamps = timestamps_;
    info.sack = sack_;
    info.window_scaling = scaling_;
    info.congestion = congestion_of(congestion_->algorithm());
    info.pacing_rate = congestion_->pacing_rate();
    if (options_->max_pacing_rate != 0 && (info.pacing_rate == 0 || info.pacing_rate > options_->max_pacing_rate))
        info.pacing_rate = options_->max_pacing_rate;
    switch (sending_ == nullptr ? LossRecovery::State::kOpen : sending_->recovery.state()) {
        case LossRecovery::State::kOpen:
            info.ca_state = ecn_reduced_                      ? CaState::kReduced
                            : sending_ != nullptr && sending_->recovery.duplicate_acks() > 0 ? CaState::kDisorder
                                                                                             : CaState::kOpen;
            break;
        case LossRecovery::State::kRecovery: info.ca_state = CaState::kRecovery; break;
        case LossRecovery::State::kLoss: info.ca_state = CaState::kLoss; break;
    }
    info.ecn = ecn_ && established_once_;
    info.ecn_seen = ect_seen_;
    info.syn_data = syn_data_;
    return info;
}

void Connection::enter_time_wait(Instant now) {
    if (ack_due_ && refresh_path(now)) send_ack(now);  // the way may have been lost since the last segment
    if (ended()) return;
    set_state(State::kTimeWait);
    const bool recorded =
        shared_.time_wait.enter({.local = local_,
                                 .remote = remote_,
                                 .hash = hash_,
                                 .snd_nxt = to_wire(snd_nxt_),
                                 .rcv_nxt = to_wire(rcv_nxt_),
                                 .ts_recent = ts_recent_,
                                 .timestamps = timestamps_},
                                {FlowRef::Kind::kConnection, shared_.connections.index_of(this)}, now);
    handed_over_ = recorded;
    finish(0);
}

void Connection::discard() {
    set_state(State::kClosed);
    shared_.wheel.cancel(*this);
    retransmit_at_ = idle_at_ = kNever;
    if (urgent_) end_urgent();
    if (searches_mtu()) end_mtu_search();
    reassembler_.clear(shared_.reassembly);
    congestion_.release(shared_.bbr_models);
    if (sending_ != nullptr) {
        sending_->recovery.release(shared_.sacks);
        sending_->recovery.release_flight();
    }
    mark();
}

void Connection::finish(int error) {
    if (ended()) return;
    if (fast_open_passive_ && state_ == State::kSynReceived)
        shared_.fast_open_pending.ended(shared_.connections.index_of(this), error == ECONNRESET, shared_.now);
    // The path may swallow what begins like this. [RFC7413 4.1.3]
    if (fast_open_active_ && error == ETIMEDOUT && (!established_once_ || syn_data_)) {
        ++shared_.counters.tcp_fast_open_failed;
        shared_.fast_open_cache.failed(local_.address, remote_.address, FastOpenCache::Failure::kConnection, shared_.now);
    }
    discard();
    if (!handed_over_) {
        shared_.flows.erase(hash_, {FlowRef::Kind::kConnection, shared_.connections.index_of(this)});
    }
    shared_.ports.release(local_);
    if (owner_ == nullptr) return;
    SendChunk* const chunks = sending_ == nullptr ? nullptr : sending_->queue.take_all();
    if (chunks != nullptr) owner_->on_released(*this, chunks);
    // [RFC9293 3.6 MUST-12]
    owner_->on_closed(*this, error);
}

}  // namespace culvert::stack::tcp
