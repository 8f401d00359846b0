#include "daemon/stack/route_table.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <tuple>

#include "shm/base/check.h"

namespace culvert::stack {
namespace {

/// The network part: all bits behind the prefix cleared. An IPv4 prefix counts from bit 96 of the mapped form.
Address network_of(const Address& address, unsigned prefix_length) {
    const unsigned bits = prefix_length + (address.is_v4() ? 96u : 0u);
    std::array<std::byte, 16> bytes;
    for (unsigned i = 0; i < 16; ++i) {
        const unsigned kept = std::clamp(static_cast<int>(bits) - static_cast<int>(i * 8), 0, 8);
        bytes[i] = static_cast<std::byte>(address.bytes()[i] & (0xff00u >> kept));
    }
    return Address::from_v6(bytes);
}

}  // namespace

void RouteTable::replace(std::vector<Route> routes) {
    for (Route& route : routes) {
        CHECK(route.prefix_length <= (route.destination.is_v4() ? 32u : 128u));
        route.destination = network_of(route.destination, route.prefix_length);
    }
    // Stable: of two equal routes the first one given wins, as the kernel lists the preferred one first.
    std::stable_sort(routes.begin(), routes.end(), [](const Route& a, const Route& b) {
        return std::make_tuple(b.prefix_length, a.destination, a.metric) <
               std::make_tuple(a.prefix_length, b.destination, b.metric);
    });
    routes_ = std::move(routes);

    lengths_.clear();
    for (std::uint32_t i = 0; i < routes_.size(); ++i) {
        if (lengths_.empty() || lengths_.back().prefix_length != routes_[i].prefix_length)
            lengths_.push_back({routes_[i].prefix_length, i, i});
        lengths_.back().end = i + 1;
    }
    ++generation_;
}

const Route* RouteTable::lookup(const Address& destination) const {
    const bool v4 = destination.is_v4();
    for (const Length& length : lengths_) {
        if (v4 && length.prefix_length > 32) continue;
        const Address network = network_of(destination, length.prefix_length);
        const auto first = routes_.begin() + length.begin;
        const auto last = routes_.begin() + length.end;
        const auto found = std::lower_bound(first, last, network, [](const Route& route, const Address& wanted) {
            return route.destination < wanted;
        });
        // "::/0" and "0.0.0.0/0" differ as addresses, so a match is always of the right family.
        if (found != last && found->destination == network) return &*found;
    }
    return nullptr;
}

}  // namespace culvert::stack
