// Half-open connections: a SYN was received and answered, the handshake is not done (SYN-RECEIVED, passive side).
//
//   SYN -> HalfOpen, SYN-ACK    (timer: SYN-ACK again, 5 times, doubling from 1 s)
//   ACK -> accept queue full?   the ACK is dropped; the SYN-ACK timer or the client's data tries again
//       -> Connection, established, given to the listener's owner
//
// A record is small and knows everything that the SYN said, so a flood of SYNs costs no connections. The queue is
// bounded: when it is full, the oldest makes room. [RFC4987 3.3, 3.4]
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
    Instant sent_at{};  // the first SYN-ACK

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
    /// A segment of a half-open flow. The connection, when this completes the handshake: give it the segment too.
    Connection* on_segment(std::uint32_t index, const Segment& segment, Instant now);
    Instant on_timer(HalfOpen& half_open, Instant now);
    /// The listener closes: its half-open connections go with it.
    void forget(const Listener& listener);

    bool matches(std::uint32_t index, const Endpoint& local, const Endpoint& remote) {
        const HalfOpen& half_open = at(index);
        return half_open.local == local && half_open.remote == remote;
    }
    std::uint32_t size() const { return pool_.used(); }

private:
    static constexpr unsigned kMaxRetransmits = 5;  // tcp_synack_retries of Linux
    static constexpr Duration kFirstTimeout = std::chrono::seconds(1);  // [RFC6298 2.1]

    HalfOpen& at(std::uint32_t index) { return *reinterpret_cast<HalfOpen*>(pool_.at(index)); }
    void send_syn_ack(HalfOpen& half_open, Instant now);
    void challenge(HalfOpen& half_open, Drop reason, Instant now);
    Connection* complete(HalfOpen& half_open, Instant now);
    void remove(HalfOpen& half_open);
    void destroy(HalfOpen& half_open);

    Shared& shared_;
    LazyPool pool_;
    std::uint32_t oldest_ = LazyPool::kNone;
    std::uint32_t newest_ = LazyPool::kNone;
};

}  // namespace culvert::stack::tcp
