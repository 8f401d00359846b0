// How a connection begins: by our SYN, or from a half-open one that was acknowledged.
#include <algorithm>

#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/tcp/ecn.h"
#include "daemon/stack/tcp/half_open.h"
#include "daemon/stack/tcp/mss.h"
#include "daemon/stack/tcp/shared.h"

namespace culvert::stack::tcp {

void Connection::open(ConnectionOwner& owner, const Path& path, std::uint32_t iss, std::uint32_t ts_recent,
                      Instant now) {
    owner_ = &owner;
    path_ = path;
    snd_una_ = snd_nxt_ = initial_position(iss);
    sending().queue.start(snd_una_ + 1);
    rcv_scale_ = shared_.receive_scale();
    ecn_ = wants_ecn(shared_.config.ecn, chosen_congestion(options_->congestion, shared_.config.congestion));
    ts_recent_ = ts_recent;
    progress_at_ = now;
    set_state(State::kSynSent);
    if (options_->fast_open && shared_.config.fast_open_client &&
        !shared_.fast_open_cache.blocked(local_.address, remote_.address, now)) {
        fast_open_active_ = true;
        syn_waits_ = shared_.fast_open_cache.find(local_.address, remote_.address, now) != nullptr;
    }
    syn_due_ = !syn_waits_;
    mark();
}

void Connection::open_with_syn(const Segment& syn, const Path& path, std::uint32_t iss, bool cookie_due, Instant now) {
    path_ = path;
    fast_open_passive_ = true;
    cookie_due_ = cookie_due;
    rcv_scale_ = shared_.receive_scale();
    negotiate(syn.options);
    ecn_ = grants_ecn(shared_.config.ecn, chosen_congestion(options_->congestion, shared_.config.congestion), syn);
    snd_una_ = snd_nxt_ = initial_position(iss);
    sending().queue.start(snd_una_ + 1);
    rcv_nxt_ = initial_position(syn.sequence) + 1;
    rcv_edge_ = rcv_nxt_ + std::min(window_space(), 0xffffu);
    last_ack_sent_ = rcv_nxt_;
    snd_wl1_ = to_wire(rcv_nxt_ - 1);
    snd_wl2_ = to_wire(snd_una_);
    snd_wnd_ = max_snd_wnd_ = syn.window;  // not scaled in a SYN [RFC7323 2.2]
    update_mss();
    congestion_->adopt(CongestionController::initial_window(mss_), UINT32_MAX);
    progress_at_ = now;
    set_state(State::kSynReceived);
    syn_due_ = true;
    mark();
}

void Connection::take_syn_data(const Segment& syn) {
    const auto room = static_cast<std::uint32_t>(rcv_edge_ - rcv_nxt_);
    const std::uint32_t length = std::min(syn.payload_length, room);
    if (length == 0) return;
    const std::uint32_t taken = deliver(syn, 0, length);
    if (taken < syn.payload_length) shared_.counters.drop(Drop::kTcpReceiveBufferFull);
    syn_data_ = taken > 0;
}

/// What the first SYN says of Fast Open, and how many bytes it takes along. Later ones say nothing, in case that is what
/// got lost. [RFC7413 4.1.3, 4.2.1]
std::uint32_t Connection::add_fast_open(wire::TcpOptions& options, Instant now) {
    if (!fast_open_active_ || retries_ > 0) return 0;
    const FastOpenCache::Entry* const known = shared_.fast_open_cache.find(local_.address, remote_.address, now);
    options.fast_open_cookie = known != nullptr ? known->cookie() : std::span<const std::byte>{};
    if (known == nullptr) return 0;
    const std::uint32_t mss = std::min<std::uint32_t>(known->mss, mss_for_mtu(path_.mtu, remote_.address));
    const auto used = static_cast<std::uint32_t>(wire::tcp_header_length(options) - wire::kTcpHeaderLength);
    const std::uint64_t waiting = queue_end() - (snd_una_ + 1);
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(waiting, mss > used ? mss - used : 0));
}

/// A SYN-ACK: what it says of Fast Open. `ack` is at least that of our SYN.
void Connection::judge_fast_open(const Segment& segment, Position ack, Instant now) {
    FastOpenCache& cache = shared_.fast_open_cache;
    if (segment.options.fast_open_cookie && !segment.options.fast_open_cookie->empty())
        cache.learn(local_.address, remote_.address, *segment.options.fast_open_cookie, peer_mss_, now);
    const bool sent_data = snd_nxt_ > snd_una_ + 1;
    syn_data_ = ack > snd_una_ + 1;
    if (syn_data_) {
        ++shared_.counters.tcp_fast_open_active;
        cache.worked(local_.address, remote_.address, now);
    } else if (sent_data || retries_ > 0) {
        ++shared_.counters.tcp_fast_open_failed;
    }
    // [RFC7413 4.1.3] only a SYN without the option came through
    if (retries_ > 0 && !syn_data_) cache.failed(local_.address, remote_.address, FastOpenCache::Failure::kOption, now);
}

void Connection::negotiate(const wire::TcpOptions& options) {
    // [RFC9293 3.7.1 MUST-15]
    peer_mss_ = options.mss.value_or(remote_.address.is_v4() ? kDefaultMss : kDefaultMssIpv6);
    timestamps_ = options.timestamps.has_value();
    sack_ = options.sack_permitted;
    scaling_ = options.window_scale.has_value();
    // [RFC7323 2.2] both or neither
    snd_scale_ = scaling_ ? *options.window_scale : 0;
    if (!scaling_) rcv_scale_ = 0;
    if (timestamps_) {
        ts_recent_ = options.timestamps->value;
        ts_recent_at_ = shared_.now;
    }
}

void Connection::establish(const HalfOpen& half_open, const Path& path, Instant now) {
    path_ = path;
    rcv_scale_ = shared_.receive_scale();
    negotiate(half_open.options());
    ecn_ = half_open.ecn;
    ts_recent_ = half_open.ts_recent;
    snd_una_ = snd_nxt_ = initial_position(half_open.iss) + 1;
    rcv_nxt_ = initial_position(half_open.irs) + 1;
    rcv_edge_ = rcv_nxt_ + half_open.advertised_window;
    last_ack_sent_ = rcv_nxt_;
    snd_wl1_ = to_wire(rcv_nxt_ - 1);
    snd_wl2_ = to_wire(snd_una_);
    snd_wnd_ = max_snd_wnd_ = half_open.peer_window;  // not scaled in a SYN [RFC7323 2.2]
    snd_small_ = snd_una_;
    retries_ = half_open.retransmits;
    if (half_open.retransmits == 0 && half_open.timed) {
        rtt_.sample(now - half_open.sent_at, now);
        measured_ = true;  // [RFC8985 7.3] a probe may go with the first flight, too
    }
    become_established(now);
}

void Connection::become_established(Instant now) {
    if (retries_ > 0 && !rtt_.has_sample()) rtt_.on_syn_lost();
    update_mss();
    if (shared_.config.mtu_probing == MtuProbing::kOn) suspect_path();
    // [RFC5681 3.1] [RFC6928 2] more than one SYN lost: begin with one segment
    congestion_->adopt(retries_ > 1 ? mss_ : CongestionController::initial_window(mss_), UINT32_MAX);
    retries_ = 0;
    retransmit_at_ = kNever;
    if (fast_open_passive_) shared_.fast_open_pending.ended(shared_.connections.index_of(this), false, now);
    if (in_flight() > 0) arm_retransmission(now);  // sent behind a SYN-ACK that had not been acknowledged
    established_once_ = true;
    if (ecn_) ++shared_.counters.tcp_ecn_connections;
    progress_at_ = last_received_ = tune_start_ = now;
    set_state(State::kEstablished);
    if (options_->quick_ack) delayed_ack_.enter_quick_mode();
    start_idle_timer(now);
    if (shutdown_) set_state(State::kFinWait1);
}

/// [RFC9293 3.10.7.3]
void Connection::input_syn_sent(const Segment& segment, Instant now) {
    const Position ack = widen(segment.acknowledgment, snd_una_);
    const bool acknowledges = segment.flags.ack();
    // First: SEG.ACK must be of our SYN, and at most of the data that went with it.
    if (acknowledges && (ack <= snd_una_ || ack > snd_nxt_)) {
        shared_.counters.drop(Drop::kTcpAckInvalid);
        if (!segment.flags.rst()) shared_.output.send_reset(segment, now);
        return;
    }
    // Second: a reset counts only with that ACK. [RFC5961 3.2 keeps this]
    if (segment.flags.rst()) {
        if (!acknowledges) {
            shared_.counters.drop(Drop::kTcpStrayReset);
            return;
        }
        ++shared_.counters.tcp_resets_in;
        ++shared_.counters.tcp_failed_opens;
        finish(ECONNREFUSED);
        return;
    }
    if (!segment.flags.syn()) {
        shared_.counters.drop(Drop::kTcpNoAck);
        return;
    }
    // Fourth: the SYN.
    const Position irs = initial_position(segment.sequence);
    rcv_nxt_ = irs + 1;
    rcv_edge_ = rcv_nxt_ + std::min(window_space(), 0xffffu);
    last_ack_sent_ = rcv_nxt_;
    negotiate(segment.options);
    // [RFC3168 6.1.1] Only what both ends have said. In a simultaneous open each one asks.
    ecn_ = ecn_ && (acknowledges ? agrees_to_ecn(segment.flags) : asks_for_ecn(segment.flags));
    snd_wnd_ = max_snd_wnd_ = segment.window;
    snd_wl1_ = to_wire(irs);
    snd_wl2_ = to_wire(snd_una_);
    if (!acknowledges) {  // simultaneous open [RFC9293 3.5 MUST-10]
        set_state(State::kSynReceived);
        syn_due_ = true;
        mark();
        return;
    }
    measure_round_trip(segment, ack, false, now);
    if (fast_open_active_) judge_fast_open(segment, ack, now);
    snd_wl2_ = to_wire(ack);
    ++snd_una_;
    snd_nxt_ = snd_small_ = ack;  // data that went with the SYN and was not taken goes again
    syn_due_ = false;
    become_established(now);
    owe_ack();
    if (!orphan_) owner_->on_established(*this);
    if (!ended() && ack > snd_una_) {
        const Position before = std::exchange(snd_una_, ack);
        advance_una(before, now);
    }
    // [RFC9293 3.10.7.3] other text is processed at once: a server may answer in its SYN-ACK [RFC7413 4.2.2]
    if (!ended() && segment.payload_length > 0) input_text(segment, rcv_nxt_, now);
}

void Connection::send_syn(Instant now) {
    wire::TcpOptions options;
    // [RFC9293 3.7.1 MUST-14, SHLD-5, MAY-3, MUST-65] in every SYN, also where it is the default, and nowhere else
    options.mss = static_cast<std::uint16_t>(advertised_mss());
    const bool answer = state_ == State::kSynReceived;  // offer only what was offered [RFC7323 2.2, 3.2] [RFC2018 2]
    options.sack_permitted = !answer || sack_;
    if (!answer || scaling_) options.window_scale = shared_.receive_scale();
    if (!answer || timestamps_)
        options.timestamps = {.value = now_stamp(now), .echo = answer ? ts_recent_ : 0};
    wire::TcpHeader header{.source = local_.port,
                           .destination = remote_.port,
                           .sequence = to_wire(snd_una_),
                           .flags = wire::kSyn,
                           .window = static_cast<std::uint16_t>(std::min(window_space(), 0xffffu))};
    std::uint32_t length = 0;
    FastOpenCookies::Cookie cookie;
    if (answer) {
        header.flags |= wire::kAck;
        header.acknowledgment = to_wire(rcv_nxt_);
        rcv_edge_ = std::max(rcv_edge_, rcv_nxt_ + header.window);
        last_ack_sent_ = rcv_nxt_;
        if (cookie_due_) {
            cookie = shared_.fast_open_cookies.make(local_.address, remote_.address, now);
            options.fast_open_cookie = std::span<const std::byte>(cookie);
            ++shared_.counters.tcp_fast_open_cookies;
        }
    } else {
        length = add_fast_open(options, now);
    }
    if (ecn_ && retries_ > 0 && !answer) {  // [RFC3168 6.1.1.1] something on the way may drop what asks for ECN
        ecn_ = false;
        ++shared_.counters.tcp_ecn_fallbacks;
    }
    // A reset in answer to such a SYN ends the attempt: RFC 3168 6.1.1.1 would let us try again without, Linux does not.
    if (ecn_) header.flags |= answer ? wire::kEce : wire::kEce | wire::kCwr;
    // [RFC8257 3.5] DCTCP's handshake is ECN-capable, or its switches would drop it; [RFC3168 6.1.1] nobody else's is.
    const auto ecn = ecn_ && congestion_->wants_exact_echo() ? wire::Ecn::kCapable0 : wire::Ecn::kNotCapable;
    std::optional<SendQueue::Reader> data;
    if (length > 0) data = sending_->queue.read(snd_una_ + 1, false);
    if (!shared_.output.send(path_, local_.address, remote_.address, header, options, data ? &*data : nullptr, length,
                             with_ecn(options_->tos, ecn), options_->ttl, now)) {
        mark();  // no frame: at the next flush
        return;
    }
    syn_due_ = ack_due_ = false;
    const bool first = snd_nxt_ == snd_una_;
    snd_nxt_ = std::max(snd_nxt_, snd_una_ + 1 + length);
    if (first) {
        timing_ = true;
        sending_->timed_end = snd_una_ + 1;
        sending_->timed_at = now;
    }
    arm_retransmission(now);
}

}  // namespace culvert::stack::tcp
