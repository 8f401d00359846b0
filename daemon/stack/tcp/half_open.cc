#include "daemon/stack/tcp/half_open.h"

#include <algorithm>
#include <new>

#include "daemon/stack/tcp/ecn.h"
#include "daemon/stack/tcp/mss.h"

namespace culvert::stack::tcp {

wire::TcpOptions HalfOpen::options() const {
    wire::TcpOptions said;
    if (peer_mss != 0) said.mss = peer_mss;
    if (scaling) said.window_scale = peer_scale;
    if (timestamps) said.timestamps = {.value = ts_recent, .echo = 0};
    said.sack_permitted = sack;
    return said;
}

SynQueue::~SynQueue() {
    while (oldest_ != LazyPool::kNone) destroy(at(oldest_));
}

void SynQueue::fill(HalfOpen& half_open, const Segment& segment, std::uint32_t hash, Listener& listener) const {
    half_open.listener = &listener;
    half_open.local = segment.local;
    half_open.remote = segment.remote;
    half_open.hash = hash;
    half_open.ts_offset = shared_.timestamp_offset(segment.local, segment.remote);
    half_open.peer_window = segment.window;
    if ((half_open.timestamps = segment.options.timestamps.has_value()))
        half_open.ts_recent = segment.options.timestamps->value;
    const std::uint32_t buffer = shared_.config.receive_buffer(listener.options().receive_buffer);
    const std::uint32_t clamp = listener.options().window_clamp;
    half_open.advertised_window = static_cast<std::uint16_t>(std::min({buffer, clamp != 0 ? clamp : 0xffffu, 0xffffu}));
}

void SynQueue::on_syn(const Segment& segment, std::uint32_t hash, Listener& listener,
                      std::optional<std::uint32_t> minimum_iss, Instant now) {
    bool cookie_due = false;
    if (segment.options.fast_open_cookie && listener.options().fast_open_queue > 0 && shared_.config.fast_open_server &&
        fast_open(segment, hash, listener, minimum_iss, cookie_due, now))
        return;
    if (segment.payload_length > 0) shared_.counters.drop(Drop::kTcpSynData);  // the client sends it again
    const bool full = pool_.used() == pool_.capacity();
    const SynCookiePolicy policy = shared_.config.syn_cookies;
    // A cookie cannot promise an ISS above an earlier incarnation's. There are no more of those than TIME-WAIT records.
    if (!minimum_iss && (policy == SynCookiePolicy::kAlways || (full && policy == SynCookiePolicy::kAuto)))
        return send_cookie(segment, hash, listener, now);
    if (full) {
        shared_.counters.drop(Drop::kTcpSynQueueFull);
        if (pool_.capacity() == 0) return;
        remove(at(oldest_));  // [RFC4987 3.4] recycle the oldest
    }
    const std::uint32_t index = pool_.allocate();
    auto& half_open = *new (pool_.at(index)) HalfOpen;
    fill(half_open, segment, hash, listener);
    half_open.irs = segment.sequence;
    half_open.iss = minimum_iss ? *minimum_iss : shared_.isn.generate(segment.local, segment.remote, now);
    half_open.peer_mss = segment.options.mss.value_or(0);
    if ((half_open.scaling = segment.options.window_scale.has_value()))
        half_open.peer_scale = *segment.options.window_scale;
    half_open.sack = segment.options.sack_permitted;
    half_open.ecn = grants_ecn(shared_.config.ecn, listener_congestion(listener), segment);
    half_open.cookie_due = cookie_due;
    half_open.sent_at = now;
    auto inserted = shared_.flows.insert(hash, {FlowRef::Kind::kHalfOpen, index});
    // Elsewhere: the same SYN reached another engine in this very moment (a copy on another queue); or that engine has
    // said that its flow is another, of the same hash.
    const bool passed = inserted == FlowTable::Inserted::kElsewhere && shared_.peers->pass_to_owner(segment.ip, hash, true);
    if (inserted == FlowTable::Inserted::kElsewhere && !passed)
        inserted = shared_.flows.insert(hash, {FlowRef::Kind::kHalfOpen, index}, true);
    if (inserted != FlowTable::Inserted::kYes) {
        half_open.~HalfOpen();
        pool_.release(index);
        if (!passed) shared_.counters.drop(Drop::kTcpConnectionLimit);
        return;
    }
    half_open.older = newest_;
    (newest_ == LazyPool::kNone ? oldest_ : at(newest_).newer) = index;
    newest_ = index;
    send_syn_ack(half_open, half_open.stamp(now), now);
    shared_.wheel.schedule(half_open, now + kFirstTimeout);
}

/// The controller that connections of the listener will begin with.
Congestion SynQueue::listener_congestion(const Listener& listener) const {
    return chosen_congestion(listener.options().congestion, shared_.config.congestion);
}

/// A SYN with the Fast Open option. True: it has made a connection (or was refused as one). False: an ordinary SYN, whose
/// answer may bring a cookie. [RFC7413 4.1.2, 4.2.2]
bool SynQueue::fast_open(const Segment& segment, std::uint32_t hash, Listener& listener,
                         std::optional<std::uint32_t> minimum_iss, bool& cookie_due, Instant now) {
    using Match = FastOpenCookies::Match;
    const Match match = shared_.fast_open_cookies.check(segment.local.address, segment.remote.address,
                                                        *segment.options.fast_open_cookie, now);
    if (match == Match::kNone) {
        if (!segment.options.fast_open_cookie->empty()) ++shared_.counters.tcp_fast_open_refused;
        cookie_due = true;
        return false;
    }
    cookie_due = match == Match::kOld;
    // [RFC7413 5.1] beyond the limit the three-way handshake decides who is real
    if (!listener.fast_open.room(listener.options().fast_open_queue, now) || shared_.fast_open_pending.full()) {
        ++shared_.counters.tcp_fast_open_overflow;
        return false;
    }
    if (!listener.owner().can_accept()) return false;
    auto path = shared_.ip.find_path(segment.local.address, segment.remote.address, now);
    if (!path) return false;  // counted where the SYN-ACK fails
    const std::uint32_t slot = shared_.connections.allocate();
    if (slot == LazyPool::kNone) return false;
    if (shared_.flows.insert(hash, {FlowRef::Kind::kConnection, slot}) != FlowTable::Inserted::kYes) {
        shared_.connections.release(slot);
        return false;
    }
    auto* const connection = new (shared_.connections.at(slot))
        Connection(shared_, segment.local, segment.remote, hash, listener.options());
    shared_.ports.take(segment.local);
    const std::uint32_t iss = minimum_iss ? *minimum_iss : shared_.isn.generate(segment.local, segment.remote, now);
    connection->open_with_syn(segment, *path, iss, cookie_due, now);
    shared_.fast_open_pending.began(slot, listener);
    ++shared_.counters.tcp_passive_opens;
    ++shared_.counters.tcp_fast_open_passive;
    accept_with_syn(segment, *connection, listener);
    return true;
}

void SynQueue::accept_with_syn(const Segment& segment, Connection& connection, Listener& listener) {
    ConnectionOwner* const owner = listener.owner().on_accept(connection);
    if (owner == nullptr) return connection.abort();
    connection.set_owner(*owner);
    if (connection.ended()) return owner->on_closed(connection, ECONNABORTED);
    connection.take_syn_data(segment);
}

/// Answers a SYN and forgets it. [RFC4987 3.6]
void SynQueue::send_cookie(const Segment& segment, std::uint32_t hash, Listener& listener, Instant now) {
    HalfOpen answer;  // never in the queue
    fill(answer, segment, hash, listener);
    answer.irs = segment.sequence;
    const std::uint32_t usual = segment.remote.address.is_v4() ? Connection::kDefaultMss : Connection::kDefaultMssIpv6;
    answer.iss = shared_.syn_cookies.make(segment.local, segment.remote, segment.sequence,
                                          segment.options.mss.value_or(static_cast<std::uint16_t>(usual)), now);
    std::uint32_t stamp = 0;
    if (answer.timestamps) {  // the peer will bring them back
        answer.scaling = segment.options.window_scale.has_value();
        answer.sack = segment.options.sack_permitted;
        answer.ecn = grants_ecn(shared_.config.ecn, listener_congestion(listener), segment);
        stamp = StampedOptions{.window_scale = segment.options.window_scale, .sack = answer.sack, .ecn = answer.ecn}.stamp(
            answer.stamp(now));
    }
    if (!send_syn_ack(answer, stamp, now)) return;
    ++shared_.counters.tcp_syn_cookies_sent;
    listener.cookies_until = now + SynCookies::kLifetime;
}

bool SynQueue::on_cookie(const Segment& segment, std::uint32_t hash, Listener& listener, Connection*& opened,
                         Instant now) {
    if (now >= listener.cookies_until) return false;
    const std::uint32_t irs = segment.sequence - 1;
    const std::uint32_t iss = segment.acknowledgment - 1;
    const SynCookies::Verdict verdict = shared_.syn_cookies.check(segment.local, segment.remote, irs, iss, now);
    if (verdict.drop != Drop::kNone) {
        // The cookie is bound to the peer's ISN, which only its first segment tells. What overtakes that, or comes alone because
        // it was lost (also a pure ACK behind data), cannot be judged: a reset would end an honest connection, silence makes
        // it try again. One forger in sixteen gets no reset either. Otherwise [RFC9293 3.10.7.2] an ACK to LISTEN.
        if (verdict.early) return shared_.counters.drop(Drop::kTcpSynCookieEarly), true;
        shared_.counters.drop(verdict.drop);
        ++shared_.counters.tcp_syn_cookies_failed;
        shared_.output.send_reset(segment, now);  // [RFC9293 3.10.7.2] an ACK to LISTEN
        return true;
    }
    if (!listener.owner().can_accept()) {  // the client's data will bring the cookie again
        shared_.counters.drop(Drop::kTcpAcceptQueueFull);
        return true;
    }
    HalfOpen answered;
    fill(answered, segment, hash, listener);
    answered.irs = irs;
    answered.iss = iss;
    answered.peer_mss = verdict.mss;
    answered.timed = false;
    if (answered.timestamps) {
        const auto options = StampedOptions::from(segment.options.timestamps->echo);
        if ((answered.scaling = options.window_scale.has_value())) answered.peer_scale = *options.window_scale;
        answered.sack = options.sack;
        // The echo is the peer's word only: it can give itself what our configuration allows, no more.
        answered.ecn = options.ecn && (shared_.config.ecn != EcnMode::kOff ||
                                       listener_congestion(listener) == Congestion::kDctcp);
    }
    opened = complete(answered, {}, now);
    if (opened != nullptr) ++shared_.counters.tcp_syn_cookies_accepted;
    return true;
}

/// `stamp`: TSval, if the peer uses timestamps. False: nothing was sent.
bool SynQueue::send_syn_ack(const HalfOpen& half_open, std::uint32_t stamp, Instant now) {
    auto path = shared_.ip.find_path(half_open.local.address, half_open.remote.address, now);
    if (!path) {
        shared_.counters.drop(Drop::kIpNoRoute);
        return false;
    }
    const Options& wanted = half_open.listener->options();
    std::uint32_t mss = mss_for_mtu(path->mtu, half_open.remote.address);
    if (wanted.max_segment != 0) mss = std::min<std::uint32_t>(mss, wanted.max_segment);
    wire::TcpOptions options;
    options.mss = static_cast<std::uint16_t>(mss);
    options.sack_permitted = half_open.sack;
    if (half_open.scaling) options.window_scale = shared_.receive_scale();
    if (half_open.timestamps) options.timestamps = {.value = stamp, .echo = half_open.ts_recent};
    const wire::TcpFlags ece = half_open.ecn ? wire::kEce : wire::TcpFlags{};  // [RFC3168 6.1.1]
    const bool capable = half_open.ecn && listener_congestion(*half_open.listener) == Congestion::kDctcp;  // [RFC8257 3.5]
    FastOpenCookies::Cookie cookie;
    if (half_open.cookie_due) {
        cookie = shared_.fast_open_cookies.make(half_open.local.address, half_open.remote.address, now);
        options.fast_open_cookie = std::span<const std::byte>(cookie);
        ++shared_.counters.tcp_fast_open_cookies;
    }
    return shared_.output.send(*path, half_open.local.address, half_open.remote.address,
                               {.source = half_open.local.port,
                                .destination = half_open.remote.port,
                                .sequence = half_open.iss,
                                .acknowledgment = half_open.irs + 1,
                                .flags = wire::kSyn | wire::kAck | ece,
                                .window = half_open.advertised_window},
                               options, nullptr, 0,
                               with_ecn(wanted.tos, capable ? wire::Ecn::kCapable0 : wire::Ecn::kNotCapable), wanted.ttl,
                               now);
}

/// [RFC5961 4.2, 3.2] the true peer answers this with what proves it; a blind attacker never sees it.
void SynQueue::challenge(HalfOpen& half_open, Drop reason, Instant now) {
    shared_.counters.drop(reason);
    ++shared_.counters.tcp_challenge_acks;
    wire::TcpOptions options;
    if (half_open.timestamps) options.timestamps = {.value = half_open.stamp(now), .echo = half_open.ts_recent};
    shared_.output.send_once(half_open.local, half_open.remote,
                             {.source = half_open.local.port,
                              .destination = half_open.remote.port,
                              .sequence = half_open.iss + 1,
                              .acknowledgment = half_open.irs + 1,
                              .flags = wire::kAck,
                              .window = half_open.advertised_window},
                             options, now);
}

Connection* SynQueue::on_segment(std::uint32_t index, const Segment& segment, Instant now) {
    HalfOpen& half_open = at(index);
    const std::uint32_t rcv_nxt = half_open.irs + 1;
    if (segment.flags.syn()) {
        // The same SYN again: our SYN-ACK was lost. Anything else is judged as on a live connection. [RFC9293 3.10.7.4]
        if (!segment.flags.ack() && segment.sequence == half_open.irs) {
            if (!asks_for_ecn(segment.flags)) half_open.ecn = false;  // [RFC3168 6.1.1.1] the peer has fallen back
            send_syn_ack(half_open, half_open.stamp(now), now);
        } else {
            challenge(half_open, Drop::kTcpSynInWindow, now);
        }
        return nullptr;
    }
    if (segment.flags.rst()) {
        // [RFC9293 3.10.7.4 MUST-11] it came from LISTEN: back to it, and nobody is told
        if (segment.sequence == rcv_nxt) {
            ++shared_.counters.tcp_resets_in;
            ++shared_.counters.tcp_failed_opens;
            remove(half_open);
        } else if (segment.sequence - rcv_nxt < half_open.advertised_window) {
            challenge(half_open, Drop::kTcpResetInvalid, now);
        } else {
            shared_.counters.drop(Drop::kTcpStrayReset);
        }
        return nullptr;
    }
    if (!segment.flags.ack()) {
        shared_.counters.drop(Drop::kTcpNoAck);
        return nullptr;
    }
    if (half_open.timestamps && segment.options.timestamps &&
        before(segment.options.timestamps->value, half_open.ts_recent)) {
        challenge(half_open, Drop::kTcpPaws, now);
        return nullptr;
    }
    if (segment.acknowledgment != half_open.iss + 1) {  // [RFC9293 3.10.7.4] <SEQ=SEG.ACK><CTL=RST>
        shared_.counters.drop(Drop::kTcpAckInvalid);
        shared_.output.send_reset(segment, now);
        return nullptr;
    }
    // A later segment of the window will do: the ACK itself may be lost.
    if (segment.sequence - rcv_nxt > half_open.advertised_window) {
        challenge(half_open, Drop::kTcpOutOfWindow, now);
        return nullptr;
    }
    if (deferred(half_open, segment, now)) return nullptr;
    if (!half_open.listener->owner().can_accept()) {
        shared_.counters.drop(Drop::kTcpAcceptQueueFull);
        return nullptr;
    }
    return complete(half_open, {FlowRef::Kind::kHalfOpen, index}, now);
}

/// TCP_DEFER_ACCEPT: an ACK that brings nothing only proves that the client is there.
bool SynQueue::deferred(HalfOpen& half_open, const Segment& segment, Instant now) {
    const Duration wait = half_open.listener->options().defer_accept;
    if (wait <= Duration::zero() || segment.length() > 0 || now >= half_open.sent_at + wait) return false;
    shared_.counters.drop(Drop::kTcpDeferred);
    if (!half_open.acked) ++shared_.counters.tcp_deferred;
    half_open.acked = true;
    half_open.timed = false;  // what comes next tells how long the client thinks, not how far away it is
    return true;
}

Connection* SynQueue::complete(const HalfOpen& half_open, FlowRef known, Instant now) {
    auto path = shared_.ip.find_path(half_open.local.address, half_open.remote.address, now);
    if (!path) {
        shared_.counters.drop(Drop::kIpNoRoute);
        return nullptr;
    }
    const std::uint32_t slot = shared_.connections.allocate();
    if (slot == LazyPool::kNone) {
        shared_.counters.drop(Drop::kTcpConnectionLimit);
        return nullptr;
    }
    const FlowRef flow{FlowRef::Kind::kConnection, slot};
    if (known) {
        shared_.flows.replace(half_open.hash, known, flow);
    } else if (shared_.flows.insert(half_open.hash, flow) != FlowTable::Inserted::kYes) {
        // Full; or another engine got a copy of the same ACK in this very moment, and has the connection.
        shared_.counters.drop(Drop::kTcpConnectionLimit);
        shared_.connections.release(slot);
        return nullptr;
    }
    Listener& listener = *half_open.listener;
    auto* const connection = new (shared_.connections.at(slot))
        Connection(shared_, half_open.local, half_open.remote, half_open.hash, listener.options());
    shared_.ports.take(half_open.local);
    connection->establish(half_open, *path, now);
    if (known) destroy(at(known.index));
    ++shared_.counters.tcp_passive_opens;
    ConnectionOwner* const owner = listener.owner().on_accept(*connection);
    if (owner == nullptr) {
        connection->abort();
        return nullptr;
    }
    connection->set_owner(*owner);
    if (connection->ended()) {  // the owner changed its mind while it was asked
        owner->on_closed(*connection, ECONNABORTED);
        return nullptr;
    }
    return connection;
}

Instant SynQueue::on_timer(HalfOpen& half_open, Instant now) {
    if (half_open.acked) {  // the client is there, so it need not be asked before its time is up
        const Instant due = half_open.sent_at + half_open.listener->options().defer_accept;
        if (now < due) return due;
    }
    if (half_open.retransmits == kMaxRetransmits) {
        ++shared_.counters.tcp_failed_opens;
        remove(half_open);
        return kNever;
    }
    ++half_open.retransmits;
    ++shared_.counters.tcp_retransmits;
    send_syn_ack(half_open, half_open.stamp(now), now);
    return now + kFirstTimeout * (1 << half_open.retransmits);
}

void SynQueue::forget(const Listener& listener, Listener* heir) {
    for (std::uint32_t index = oldest_; index != LazyPool::kNone;) {
        HalfOpen& half_open = at(index);
        index = half_open.newer;
        if (half_open.listener != &listener) continue;
        if (heir != nullptr)
            half_open.listener = heir;
        else
            remove(half_open);
    }
}

void SynQueue::remove(HalfOpen& half_open) {
    shared_.flows.erase(half_open.hash, {FlowRef::Kind::kHalfOpen, pool_.index_of(&half_open)});
    destroy(half_open);
}

void SynQueue::destroy(HalfOpen& half_open) {
    (half_open.older == LazyPool::kNone ? oldest_ : at(half_open.older).newer) = half_open.newer;
    (half_open.newer == LazyPool::kNone ? newest_ : at(half_open.newer).older) = half_open.older;
    shared_.wheel.cancel(half_open);
    const std::uint32_t index = pool_.index_of(&half_open);
    half_open.~HalfOpen();
    pool_.release(index);
}

}  // namespace culvert::stack::tcp
