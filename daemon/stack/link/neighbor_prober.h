// Who resolves neighbours where the kernel does not: ARP (RFC 826, RFC 1122 2.3.2) and neighbour unreachability detection
// (RFC 4861 7.3), one state machine for both families.
//
//                     resolve()                       answer
//     (none) ------------------------> INCOMPLETE --------------> REACHABLE <------------+
//       ^ \                               |  3 requests unanswered     | 15-45 s         | answer, or progress
//       |  \ a neighbour asks us          v                            v                 | of TCP (confirm)
//       |   +-------------------------> FAILED          +--------->  STALE               |
//       |  evicted                        ^             |              | resolve()       |
//       |                                 |             | other MAC    v 5 s             |
//       |                                 +-------------+---------- DELAY --> PROBE -----+
//                                           3 unicast requests unanswered
//
// NeighborTable (../neighbor.h) asks `resolve` when a packet has nowhere to go, and uses what it is told; it keeps the
// packets that wait. It knows only the neighbours that we talk to. What a neighbour tells about itself by asking us is
// kept here alone, so that a flood of askers costs entries of a bounded pool and nothing else: the stalest goes first.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/base/lazy_pool.h"
#include "daemon/stack/link/control_output.h"
#include "daemon/stack/link/link_interface.h"
#include "daemon/stack/neighbor.h"

namespace culvert::stack {

/// Told when a neighbour that we believed in does not answer any more, or says that it is no router.
class NeighborWatcher {
public:
    virtual ~NeighborWatcher() = default;
    virtual void on_neighbor_lost(Interface& interface, const Address& address, Instant now) = 0;
    virtual void on_no_router(Interface& interface, const Address& address, Instant now) = 0;
};

/// Other engines, for whom this one resolves: told whenever what is known of a neighbour that one of them has asked about
/// changes. `state` kIncomplete: it is forgotten.
class NeighborAudience {
public:
    virtual ~NeighborAudience() = default;
    virtual void on_neighbor(const Interface& interface, const Address& address, const MacAddress& mac, NeighborState state) = 0;
};

class NeighborProber {
public:
    static constexpr std::uint32_t kMaxNeighbors = 4096;
    static constexpr unsigned kMaxSolicitations = 3;  // [RFC4861 10] MAX_MULTICAST_SOLICIT, MAX_UNICAST_SOLICIT
    static constexpr Duration kDelayFirstProbe = std::chrono::seconds(5);  // [RFC4861 10] DELAY_FIRST_PROBE_TIME
    /// Between two changes of one neighbour's MAC by ARP: of two hosts that fight for an address, one is heard.
    static constexpr Duration kLockTime = std::chrono::seconds(1);
    static constexpr Duration kMaxHold = std::chrono::seconds(8);

    enum class State : std::uint8_t { kIncomplete, kReachable, kStale, kDelay, kProbe, kFailed };

    NeighborProber(NeighborTable& table, ControlOutput& output, TimerWheel& wheel, Counters& counters, Rng& rng,
                   const std::uint64_t (&secret)[2], std::uint32_t& unconfirmed);
    ~NeighborProber();
    void set_watcher(NeighborWatcher* watcher) { watcher_ = watcher; }
    void set_audience(NeighborAudience* audience) { audience_ = audience; }

    /// For NeighborTable: what is known; if that is nothing, a request goes out and the answer comes by table.update().
    OwnResolver::Answer resolve(LinkInterface& link, const Address& next_hop, Instant now) {
        return resolve(link, next_hop, &Neighbor::in_table, now);
    }
    /// For other engines' tables: the audience is told what is known, now or when it is. Requires: set_audience().
    void resolve_for_others(LinkInterface& link, const Address& next_hop, Instant now);

    /// [RFC826] [RFC4861 7.2.3] The neighbour has asked us, or has told its MAC in passing. `create`: remember it even if
    /// we do not know it yet. `lock`: see kLockTime. Gives what is wrong with it, or kNone.
    Drop heard(LinkInterface& link, const Address& address, const MacAddress& mac, bool create, bool lock, Instant now);

    struct Advertisement {
        std::optional<MacAddress> mac;
        bool solicited = false;
        bool overrides = false;
        std::optional<bool> router;  // unknown in ARP
    };
    /// [RFC4861 7.2.5] It has answered. Nothing is learned about who is not in the table.
    Drop advertised(LinkInterface& link, const Address& address, const Advertisement& advertisement, Instant now);

    /// [RFC4861 7.3.1] Something above has got an answer through this neighbour.
    void confirm(LinkInterface& link, const Address& address, Instant now);

    /// [RFC4861 6.3.6] Known, and not known to be silent.
    bool maybe_reachable(const LinkInterface& link, const Address& address) const;
    void set_router(LinkInterface& link, const Address& address, bool router);
    std::optional<State> state_of(const LinkInterface& link, const Address& address) const;
    std::uint32_t size() const { return pool_.used(); }

    /// Of a kNeighborTimer. Gives when it wants to be called again.
    Instant on_timer(TimerNode& node, Instant now);

private:
    struct Neighbor : TimerNode {
        Neighbor() : TimerNode(kNeighborTimer) {}
        LinkInterface* link = nullptr;
        Address address;
        MacAddress mac;
        State state = State::kIncomplete;
        std::uint8_t probes = 0;    // requests sent in this state
        std::uint8_t failures = 0;  // in a row
        bool router = false;
        bool in_table = false;      // NeighborTable has asked, and is told of changes
        bool in_others = false;     // another engine's has, and the audience is
        Instant mac_since{};
        Instant deadline = kNever;
        std::uint32_t next = LazyPool::kNone;  // in the bucket
        std::uint32_t older = LazyPool::kNone, newer = LazyPool::kNone;  // in the list of those that may be evicted
        bool evictable = false;
    };

    OwnResolver::Answer resolve(LinkInterface& link, const Address& next_hop, bool Neighbor::* asked, Instant now);
    Neighbor& at(std::uint32_t index) { return *reinterpret_cast<Neighbor*>(pool_.at(index)); }
    std::uint32_t& bucket(const LinkInterface& link, const Address& address);
    Neighbor* find(const LinkInterface& link, const Address& address);
    const Neighbor* find(const LinkInterface& link, const Address& address) const {
        return const_cast<NeighborProber*>(this)->find(link, address);
    }
    Neighbor* add(LinkInterface& link, const Address& address);
    void erase(Neighbor& neighbor);
    void list(Neighbor& neighbor);
    void unlist(Neighbor& neighbor);

    /// The one place where a state changes: timer, eviction list and NeighborTable follow.
    void enter(Neighbor& neighbor, State state, Instant now);
    void set_mac(Neighbor& neighbor, const MacAddress& mac, Instant now);
    bool solicit(Neighbor& neighbor, Instant now);
    void tell_table(Neighbor& neighbor);
    void fail(Neighbor& neighbor, Instant now);

    NeighborTable& table_;
    ControlOutput& output_;
    TimerWheel& wheel_;
    Counters& counters_;
    Rng& rng_;
    NeighborWatcher* watcher_ = nullptr;
    NeighborAudience* audience_ = nullptr;
    LazyPool pool_;
    std::vector<std::uint32_t> buckets_;
    std::uint64_t key_[2];
    std::uint32_t oldest_ = LazyPool::kNone, newest_ = LazyPool::kNone;  // of those that may be evicted
    std::uint32_t& unconfirmed_;  // in DELAY or PROBE; OwnResolver's
};

}  // namespace culvert::stack
