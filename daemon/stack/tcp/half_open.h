// Half-open connections: a SYN was received and answered, the handshake is not done (SYN-RECEIVED, passive side).
//
//   SYN -> HalfOpen, SYN-ACK    (timer: SYN-ACK again, 5 times, doubling from 1 s)
//   ACK -> accept queue full?   the ACK is dropped; the SYN-ACK timer or the client's data tries again
//       -> Connection, established, given to the listener's owner
//
// With TCP_DEFER_ACCEPT an ACK without data only stops the timer, until data comes or the time is up: then the SYN-ACK
// goes again, and the ACK it draws makes the connection after all. A SYN with a Fast Open cookie makes one at once.
//
// A record is small and knows everything that the SYN said, so a flood of SYNs costs no connections. The queue is
// bounded: while it is full, answers carry cookies and nothing is remembered (syn_cookie.h), so that a flood drives no
// honest client out. With cookies off, the oldest record makes room. [RFC4987 3.3, 3.4, 3.6]
#pragma once

#include <cstdint>

#include "daemon/base/lazy_pool.h"
#include "daemon/base/timer_wheel.h"
#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/tcp/listener.h"
#include "daemon/stack/tcp/segment.h"
#include "daemon/stack/tcp/shared.h"

namespace culvert::stack::tcp {

struct HalfOpen : TimerNode {
    HalfOpen() : TimerNode(kHalfOpenTimer) {}

    Listener* listener = nullptr;
    Endpoint local;
    Endpoint remote;
    std::uint32_t hash = 0;
    std::uint32_t irs = 0;
    std::uint32_t iss = 0;
    std::uint32_t ts_recent = 0;
    std::uint32_t ts_offset = 0;
    std::uint32_t older = LazyPool::kNone;
    std::uint32_t newer = LazyPool::kNone;
    std::uint16_t peer_window = 0;
    std::uint16_t advertised_window = 0;
    std::uint16_t peer_mss = 0;  // 0: none announced
    std::uint8_t peer_scale = 0;
    std::uint8_t retransmits = 0;
    bool scaling = false;
    bool timestamps = false;
    bool sack = false;
    bool cookie_due = false;  // the SYN-ACK brings a Fast Open cookie
    bool acked = false;  // the ACK has come, data is waited for (TCP_DEFER_ACCEPT)
    bool timed = true;  // the ACK of the first SYN-ACK tells the round trip
    bool ecn = false;   // the SYN asked, and we agree
    Instant sent_at{};  // the first SYN-ACK

    /// Our clock, as the peer sees it.
    std::uint32_t stamp(Instant now) const { return ts_offset + SegmentOutput::timestamp(now); }
    /// What the SYN said.
    wire::TcpOptions options() const;
};
static_assert(sizeof(HalfOpen) <= 128);

class SynQueue {
public:
    explicit SynQueue(Shared& shared) : shared_(shared), pool_(sizeof(HalfOpen), shared.config.max_half_open) {}
    ~SynQueue();

    /// A SYN for a listener. `minimum_iss`: one more than what an earlier incarnation of the flow may have used.
    void on_syn(const Segment& segment, std::uint32_t hash, Listener& listener, std::optional<std::uint32_t> minimum_iss,
                Instant now);
    /// An ACK for a listener, of no flow we know: the answer to a SYN cookie? False: cookies are not in use, it is nobody's.
    /// True: done with, and `opened` is the connection if it made one: give it the segment too.
    bool on_cookie(const Segment& segment, std::uint32_t hash, Listener& listener, Connection*& opened, Instant now);
    /// A segment of a half-open flow. The connection, when this completes the handshake: give it the segment too.
    Connection* on_segment(std::uint32_t index, const Segment& segment, Instant now);
    Instant on_timer(HalfOpen& half_open, Instant now);
    /// The listener closes: its half-open connections go with it, or on with `heir`.
    void forget(const Listener& listener, Listener* heir);

    bool matches(std::uint32_t index, const Endpoint& local, const Endpoint& remote) {
        const HalfOpen& half_open = at(index);
        return half_open.local == local && half_open.remote == remote;
    }
    std::uint32_t size() const { return pool_.used(); }

private:
    static constexpr unsigned kMaxRetransmits = 5;  // tcp_synack_retries of Linux
    static constexpr Duration kFirstTimeout = std::chrono::seconds(1);  // [RFC6298 2.1]

    void fill(HalfOpen& half_open, const Segment& segment, std::uint32_t hash, Listener& listener) const;
    bool fast_open(const Segment& segment, std::uint32_t hash, Listener& listener,
                   std::optional<std::uint32_t> minimum_iss, bool& cookie_due, Instant now);
    void accept_with_syn(const Segment& segment, Connection& connection, Listener& listener);
    bool deferred(HalfOpen& half_open, const Segment& segment, Instant now);
    void send_cookie(const Segment& segment, std::uint32_t hash, Listener& listener, Instant now);
    HalfOpen& at(std::uint32_t index) { return *reinterpret_cast<HalfOpen*>(pool_.at(index)); }
    bool send_syn_ack(const HalfOpen& half_open, std::uint32_t stamp, Instant now);
    Congestion listener_congestion(const Listener& listener) const;
    void challenge(HalfOpen& half_open, Drop reason, Instant now);
    /// `known`: what the flow was in the flow table.
    Connection* complete(const HalfOpen& half_open, FlowRef known, Instant now);
    void remove(HalfOpen& half_open);
    void destroy(HalfOpen& half_open);

    Shared& shared_;
    LazyPool pool_;
    std::uint32_t oldest_ = LazyPool::kNone;
    std::uint32_t newest_ = LazyPool::kNone;
};

}  // namespace culvert::stack::tcp
