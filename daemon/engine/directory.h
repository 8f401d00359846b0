// Which engine has what: flows by hash, and sockets that wait for packets on a port. One for all engines.
//
//   flow hash --> set of 16 words   { hash 32 | engine + 1 : 8 | uses 24 } ...     read without a lock, written under one
//   port      --> set of engines    one word for each protocol and port            read without a lock, written under one
//   address, port --> how many      a map                                          read and written under a lock: cold
//
// Reading is for packets that an engine cannot place, so it must cost little and never wait: one or two cache lines, no
// lock. Writing happens when connections and sockets come and go. A reader that races with a writer may miss what has
// just begun or find what has just ended; then the packet is treated as it would have been a moment earlier or later.
// What must not race is who owns a flow, so flow_began() decides it under the lock: of two engines that get copies of
// one SYN at once, exactly one is told yes.
//
// A flow whose set is full is not written down (counted in `overflows`): then, and only then, packets that nobody knows
// are shown to every engine in turn.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "daemon/engine/hand_over_ring.h"
#include "daemon/stack/stack.h"
#include "daemon/wire/address.h"

namespace culvert::engine {

class Directory {
public:
    using Protocol = stack::PortOwner::Protocol;

    /// For about `flows` flows at once: a set has then 8 of its 16 places in use on average. Throws std::system_error.
    explicit Directory(std::uint64_t flows);
    ~Directory();
    Directory(const Directory&) = delete;
    Directory& operator=(const Directory&) = delete;

    /// False: another engine has a flow with this hash, and `share` does not say that it is another flow.
    bool flow_began(std::uint32_t engine, std::uint32_t hash, bool share);
    void flow_ended(std::uint32_t engine, std::uint32_t hash);
    /// The engines that have a flow with this hash: hardly ever more than one. Lock-free.
    EngineSet owner(std::uint32_t hash) const;
    /// Flows that found no place, now: while there are any, owner() may not know a flow that lives.
    std::uint64_t overflows() const { return overflows_.load(std::memory_order_relaxed); }

    void bound(std::uint32_t engine, Protocol protocol, const Endpoint& local);
    void unbound(std::uint32_t engine, Protocol protocol, const Endpoint& local);
    /// Engines with a socket bound to the port, on whatever address. Lock-free.
    EngineSet bound_to(Protocol protocol, Port port) const {
        return ports_[static_cast<std::size_t>(protocol)][port].load(std::memory_order_relaxed);
    }
    /// Engines with a socket that takes packets to `local`. Locks.
    EngineSet bound_to(Protocol protocol, const Endpoint& local) const;

private:
    static constexpr std::size_t kWays = 16;
    using Word = std::atomic<std::uint64_t>;
    struct alignas(2 * shm::kCacheLine) Set {
        std::array<Word, kWays> words;
    };
    struct Bound {
        Protocol protocol;
        Port port;
        std::uint32_t engine;
        Address address;
        auto operator<=>(const Bound&) const = default;
    };

    /// The low bits number slots in the engines' own tables, so the high ones number sets.
    std::size_t index_of(std::uint32_t hash) const { return (std::uint64_t{hash} * set_count_) >> 32; }
    Set& set_of(std::uint32_t hash) const { return sets_[index_of(hash)]; }
    /// Of the set, so that two hashes which share one share its lock too.
    std::mutex& lock_of(std::uint32_t hash) { return locks_[index_of(hash) % locks_.size()]; }

    Set* sets_ = nullptr;
    std::uint64_t set_count_;
    std::array<std::mutex, 256> locks_;  // of sets, each of many
    std::atomic<std::uint64_t> overflows_{0};
    std::map<std::uint64_t, std::uint32_t> unlisted_;  // engine << 32 | hash: uses; guarded by ports_mutex_
    std::array<std::vector<std::atomic<EngineSet>>, 2> ports_;
    mutable std::mutex ports_mutex_;
    std::map<Bound, std::uint32_t> bound_;
};

}  // namespace culvert::engine
