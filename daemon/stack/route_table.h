// Where a destination goes: longest-prefix match over a mirror of the kernel's routes.
//
// Written by commands of the control thread (on the engine's thread), read per connection and cached there; a
// generation number tells a connection that its cached answer is old.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "daemon/wire/address.h"

namespace culvert::stack {

struct Route {
    Address destination;         // network
    unsigned prefix_length = 0;  // 0-32 or 0-128
    std::optional<Address> gateway = std::nullopt;
    std::uint32_t interface = 0;  // ifindex; may be one that Culvert does not serve
    std::uint32_t metric = 0;
    std::optional<Address> source = std::nullopt;  // preferred source
    enum class Type : std::uint8_t { kUnicast, kLocal, kUnreachable } type = Type::kUnicast;
    std::uint32_t mtu = 0;  // of packets that go this way (RTAX_MTU); 0: the interface's

    friend bool operator==(const Route&, const Route&) = default;
};

class RouteTable {
public:
    /// Replaces everything. Cold.
    void replace(std::vector<Route> routes);
    /// The best route: longest prefix, then lowest metric. Null when there is none.
    const Route* lookup(const Address& destination) const;
    /// Changes with every replace() and touch().
    std::uint32_t generation() const { return generation_; }
    /// An interface or its addresses have changed: what was found here must be looked up again.
    void touch() { ++generation_; }
    std::span<const Route> routes() const { return routes_; }

private:
    /// The routes of one prefix length: [begin, end) of routes_.
    struct Length {
        unsigned prefix_length;
        std::uint32_t begin;
        std::uint32_t end;
    };

    std::vector<Route> routes_;    // sorted: longest prefix first, then network, then metric
    std::vector<Length> lengths_;  // longest first; a lookup is one binary search for each
    std::uint32_t generation_ = 1;
};

}  // namespace culvert::stack
