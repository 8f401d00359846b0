// Where a destination goes: longest-prefix match over a mirror of the kernel's routes.
//
// Written by commands of the control thread (on the engine's thread). Connections read it once and keep the answer; a
// generation number tells them that it is old. Forwarding asks for every packet: range_index.h makes that a few steps.
//
//   replace(routes) --> routes_ (sorted)  --> ranges --> lookup(): Route
//                                                   \--> next_hop_index(): number of its NextHop, few for many routes
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "daemon/stack/range_index.h"
#include "daemon/wire/address.h"

namespace culvert::stack {

struct Route {
    Address destination;         // network
    unsigned prefix_length = 0;  // 0-32 or 0-128
    std::optional<Address> gateway = std::nullopt;
    std::uint32_t interface = 0;  // ifindex; may be one that Culvert does not serve
    std::uint32_t metric = 0;
    std::optional<Address> source = std::nullopt;  // preferred source
    bool learned = false;  // by the stack itself, from routers
    enum class Type : std::uint8_t { kUnicast, kLocal, kUnreachable } type = Type::kUnicast;
    std::uint32_t mtu = 0;  // of packets that go this way (RTAX_MTU); 0: the interface's

    friend bool operator==(const Route&, const Route&) = default;
};

/// What routes to the same neighbour have in common.
struct NextHop {
    std::uint32_t interface = 0;
    std::optional<Address> gateway;  // none: the destination is on the link
    Route::Type type = Route::Type::kUnicast;
    std::uint32_t mtu = 0;

    friend bool operator==(const NextHop&, const NextHop&) = default;
};

class RouteTable {
public:
    static constexpr std::uint32_t kNoHop = UINT32_MAX;

    /// Replaces everything but the learned routes. Cold: O(n log n).
    void replace(std::vector<Route> routes);
    /// Replaces the learned routes: what routers say on links that configure themselves (link/router_discovery.h). Of two
    /// equal routes a learned one is the last choice. The generation changes only if the routes do.
    void replace_learned(std::vector<Route> routes);
    /// The best route: longest prefix, then lowest metric. Null when there is none.
    const Route* lookup(const Address& destination) const {
        const std::uint32_t index = find(destination);
        return index != kNoHop ? &routes_[index] : nullptr;
    }
    /// The same route's next hop, 0 .. next_hops() - 1; kNoHop when there is none.
    std::uint32_t next_hop_index(const Address& destination) const {
        return destination.is_v4() ? ranges_v4_.find_note(key_v4(destination)) : ranges_v6_.find_note(key_v6(destination));
    }
    /// Announces the memory that lookups of `destinations` (at most kAhead) will read to the caches, all of them at a time:
    /// one wait instead of one for each. Changes nothing.
    static constexpr std::size_t kAhead = 16;
    template <class Destinations>
    void expect(const Destinations& destinations) const {
        using V4 = RangeIndex<std::uint32_t>::Cursor;
        using V6 = RangeIndex<Wide>::Cursor;
        V4 v4[kAhead];
        V6 v6[kAhead];
        std::size_t v4_count = 0, v6_count = 0;
        for (const Address& destination : destinations) {
            if (destination.is_v4()) {
                v4[v4_count++] = ranges_v4_.begin(key_v4(destination));
            } else {
                v6[v6_count++] = ranges_v6_.begin(key_v6(destination));
            }
        }
        for (int step = 0; step < kStepsAhead; ++step) {
            for (std::size_t i = 0; i < v4_count; ++i) ranges_v4_.step(v4[i]);
            for (std::size_t i = 0; i < v6_count; ++i) ranges_v6_.step(v6[i]);
        }
    }
    /// Lookups wait for memory often enough that expect() pays.
    bool is_large() const { return is_large_; }
    const NextHop& next_hop(std::uint32_t index) const { return hops_[index]; }
    std::size_t next_hops() const { return hops_.size(); }
    /// Changes with every replace() and touch().
    std::uint32_t generation() const { return generation_; }
    /// An interface or its addresses have changed: what was found here must be looked up again.
    void touch() { ++generation_; }
    std::span<const Route> routes() const { return routes_; }
    /// Memory of what lookups read.
    std::size_t index_bytes() const { return ranges_v4_.bytes() + ranges_v6_.bytes(); }

private:
    static constexpr int kStepsAhead = 2;        // a slot, then a finer one or the ranges
    static constexpr std::size_t kLarge = 4096;  // routes: from here on the index outgrows the first cache
    void build(std::vector<Route> routes);
    __extension__ using Wide = unsigned __int128;

    static std::uint32_t key_v4(const Address& address) {
        std::uint32_t number;
        std::memcpy(&number, address.bytes().data() + 12, sizeof number);
        return std::endian::native == std::endian::little ? std::byteswap(number) : number;
    }
    static Wide key_v6(const Address& address) {
        std::uint64_t half[2];
        std::memcpy(half, address.bytes().data(), sizeof half);
        if constexpr (std::endian::native == std::endian::little)
            for (std::uint64_t& each : half) each = std::byteswap(each);
        return static_cast<Wide>(half[0]) << 64 | half[1];
    }
    std::uint32_t find(const Address& destination) const {
        return destination.is_v4() ? ranges_v4_.find(key_v4(destination)) : ranges_v6_.find(key_v6(destination));
    }

    std::vector<Route> routes_;          // sorted by network, then shortest prefix, then metric
    std::vector<NextHop> hops_;
    bool is_large_ = false;
    RangeIndex<std::uint32_t> ranges_v4_;
    RangeIndex<Wide> ranges_v6_;
    std::uint32_t generation_ = 1;
};

}  // namespace culvert::stack
