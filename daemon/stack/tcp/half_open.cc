#include "daemon/stack/tcp/half_open.h"

#include <algorithm>
#include <new>

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

void SynQueue::on_syn(const Segment& segment, std::uint32_t hash, Listener& listener,
                      std::optional<std::uint32_t> minimum_iss, Instant now) {
    if (pool_.capacity() == 0) {
        shared_.counters.drop(Drop::kTcpSynQueueFull);
        return;
    }
    if (pool_.used() == pool_.capacity()) {  // [RFC4987 3.4] recycle the oldest
        shared_.counters.drop(Drop::kTcpSynQueueFull);
        remove(at(oldest_));
    }
    const std::uint32_t index = pool_.allocate();
    auto& half_open = *new (pool_.at(index)) HalfOpen;
    half_open.listener = &listener;
    half_open.local = segment.local;
    half_open.remote = segment.remote;
    half_open.hash = hash;
    half_open.irs = segment.sequence;
    half_open.iss = minimum_iss ? *minimum_iss : shared_.isn.generate(segment.local, segment.remote, now);
    half_open.ts_offset = shared_.timestamp_offset(segment.local, segment.remote);
    half_open.peer_window = segment.window;
    half_open.peer_mss = segment.options.mss.value_or(0);
    if ((half_open.scaling = segment.options.window_scale.has_value()))
        half_open.peer_scale = *segment.options.window_scale;
    if ((half_open.timestamps = segment.options.timestamps.has_value()))
        half_open.ts_recent = segment.options.timestamps->value;
    half_open.sack = segment.options.sack_permitted;
    const std::uint32_t buffer = listener.options().receive_buffer != 0 ? listener.options().receive_buffer
                                                                        : shared_.config.default_receive_buffer;
    half_open.advertised_window = static_cast<std::uint16_t>(
        std::min(std::clamp(buffer, 2048u, std::max(shared_.config.max_receive_buffer, 2048u)), 0xffffu));
    half_open.sent_at = now;
    if (const auto inserted = shared_.flows.insert(hash, {FlowRef::Kind::kHalfOpen, index});
        inserted != FlowTable::Inserted::kYes) {
        half_open.~HalfOpen();
        pool_.release(index);
        // Elsewhere: the same SYN reached another engine in this very moment (a copy on another queue).
        if (inserted == FlowTable::Inserted::kFull || !shared_.peers->pass_to_owner(segment.ip, hash, true))
            shared_.counters.drop(Drop::kTcpConnectionLimit);
        return;
    }
    half_open.older = newest_;
    (newest_ == LazyPool::kNone ? oldest_ : at(newest_).newer) = index;
    newest_ = index;
    send_syn_ack(half_open, now);
    shared_.wheel.schedule(half_open, now + kFirstTimeout);
}

void SynQueue::send_syn_ack(HalfOpen& half_open, Instant now) {
    auto path = shared_.ip.find_path(half_open.local.address, half_open.remote.address, now);
    if (!path) {
        shared_.counters.drop(Drop::kIpNoRoute);
        return;
    }
    const Options& wanted = half_open.listener->options();
    std::uint32_t mss = mss_for_mtu(path->mtu, half_open.remote.address);
    if (wanted.max_segment != 0) mss = std::min<std::uint32_t>(mss, wanted.max_segment);
    wire::TcpOptions options;
    options.mss = static_cast<std::uint16_t>(mss);
    options.sack_permitted = half_open.sack;
    if (half_open.scaling) options.window_scale = shared_.receive_scale();
    if (half_open.timestamps)
        options.timestamps = {.value = half_open.ts_offset + SegmentOutput::timestamp(now), .echo = half_open.ts_recent};
    shared_.output.send(*path, half_open.local.address, half_open.remote.address,
                        {.source = half_open.local.port,
                         .destination = half_open.remote.port,
                         .sequence = half_open.iss,
                         .acknowledgment = half_open.irs + 1,
                         .flags = wire::kSyn | wire::kAck,
                         .window = half_open.advertised_window},
                        options, nullptr, 0, wanted.tos, wanted.ttl, now);
}

/// [RFC5961 4.2, 3.2] the true peer answers this with what proves it; a blind attacker never sees it.
void SynQueue::challenge(HalfOpen& half_open, Drop reason, Instant now) {
    shared_.counters.drop(reason);
    ++shared_.counters.tcp_challenge_acks;
    wire::TcpOptions options;
    if (half_open.timestamps)
        options.timestamps = {.value = half_open.ts_offset + SegmentOutput::timestamp(now), .echo = half_open.ts_recent};
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
        if (!segment.flags.ack() && segment.sequence == half_open.irs)
            send_syn_ack(half_open, now);
        else
            challenge(half_open, Drop::kTcpSynInWindow, now);
        return nullptr;
    }
    if (segment.flags.rst()) {
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
    if (!half_open.listener->owner().can_accept()) {
        shared_.counters.drop(Drop::kTcpAcceptQueueFull);
        return nullptr;
    }
    return complete(half_open, now);
}

Connection* SynQueue::complete(HalfOpen& half_open, Instant now) {
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
    Listener& listener = *half_open.listener;
    auto* const connection = new (shared_.connections.at(slot))
        Connection(shared_, half_open.local, half_open.remote, half_open.hash, listener.options());
    shared_.flows.replace(half_open.hash, {FlowRef::Kind::kHalfOpen, pool_.index_of(&half_open)},
                          {FlowRef::Kind::kConnection, slot});
    shared_.ports.take(half_open.local);
    connection->establish(half_open, *path, now);
    destroy(half_open);
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
    if (half_open.retransmits == kMaxRetransmits) {
        ++shared_.counters.tcp_failed_opens;
        remove(half_open);
        return kNever;
    }
    ++half_open.retransmits;
    ++shared_.counters.tcp_retransmits;
    send_syn_ack(half_open, now);
    return now + kFirstTimeout * (1 << half_open.retransmits);
}

void SynQueue::forget(const Listener& listener) {
    for (std::uint32_t index = oldest_; index != LazyPool::kNone;) {
        HalfOpen& half_open = at(index);
        index = half_open.newer;
        if (half_open.listener == &listener) remove(half_open);
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
