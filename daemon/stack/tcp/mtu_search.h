// The search for the packet size of a path whose routers say nothing: RFC 4821, with what RFC 8899 5 made of it. A connection
// has one only since large packets were lost again and again (or from its beginning, tcp.mtu_probing = "on"), until the path
// takes what its first link takes; then it is given back. Bounded for the engine; without a place a connection goes on as if
// routers told (Counters::tcp_no_mtu_search).
//
//        low              probe             high = what link, routers and peer allow
//   -----|------------------|-----------------|-->  bytes of a packet
//    gets through      data, larger than    not known, or lost kLosses times
//                      the segments around
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>

#include "daemon/base/instant.h"
#include "daemon/base/lazy_pool.h"
#include "daemon/stack/tcp/sequence.h"

namespace culvert::stack::tcp {

struct MtuSearch {
    /// [RFC8899 5.1.2] MAX_PROBES: losses have other reasons, too.
    static constexpr std::uint8_t kLosses = 3;
    /// Nearer than this is near enough; what Linux calls the probe threshold.
    static constexpr std::uint32_t kPrecision = 8;
    /// Between two probes: a search of ten steps costs a path with a real hole half a minute, and at most one loss a second.
    static constexpr Duration kInterval = std::chrono::seconds(1);
    /// [RFC4821 7.7] [RFC1191 6.3] After that long the path may have changed.
    static constexpr Duration kAgain = std::chrono::minutes(10);

    std::uint32_t low = 0;       // bytes of an IP packet: the MSS in use rests on it
    std::uint32_t high = 0;
    std::uint32_t size = 0;      // of the probe on its way; 0: none
    std::uint8_t losses = 0;     // of probes of the next size
    bool widest_tried = false;
    Position first = 0, end = 0;  // the probe's data
    Instant next{};              // no probe before

    /// The widest first: most holes are temporary, or somebody else's loss. Then halves. [RFC4821 7.3]
    std::uint32_t next_size() const { return widest_tried ? (low + high + 1) / 2 : high; }
    void sent(std::uint32_t bytes, Position from, Position to) {
        size = bytes;
        first = from;
        end = to;
    }
    void arrived(Instant now) {
        low = std::max(low, size);
        losses = 0;
        wait(now);
    }
    void lost(Instant now) {
        if (size <= high && ++losses >= kLosses) {  // else a router has told meanwhile, and no guess was refuted
            high = std::max(low, size - 1);
            widest_tried = true;
            losses = 0;
        }
        wait(now);
    }
    /// The probe was overtaken by other losses, and says nothing.
    void forget(Instant now) { wait(now); }
    /// A router says that no more than `mtu` passes: that is what is tried next.
    void told(std::uint32_t mtu) {
        if (mtu >= high) return;
        high = std::max(low, mtu);
        widest_tried = false;
        losses = 0;
    }
    /// Begins anew, when kAgain is over.
    void widen(std::uint32_t mtu) {
        high = mtu;
        widest_tried = false;
        losses = 0;
    }
    bool done() const { return high < low + kPrecision; }

private:
    void wait(Instant now) {
        size = 0;
        next = now + (done() ? kAgain : kInterval);
    }
};

class MtuSearchPool {
public:
    static constexpr std::uint32_t kNone = LazyPool::kNone;
    explicit MtuSearchPool(std::uint32_t searches) : pool_(sizeof(MtuSearch), searches) {}

    /// kNone: all places are taken.
    std::uint32_t take() {
        const std::uint32_t index = pool_.allocate();
        if (index != kNone) new (pool_.at(index)) MtuSearch();
        return index;
    }
    MtuSearch& operator[](std::uint32_t index) { return *std::launder(reinterpret_cast<MtuSearch*>(pool_.at(index))); }
    void release(std::uint32_t index) { pool_.release(index); }
    std::uint32_t used() const { return pool_.used(); }

private:
    LazyPool pool_;
};

}  // namespace culvert::stack::tcp
