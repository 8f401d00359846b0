#include "daemon/stack/route_table.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <iterator>
#include <map>
#include <tuple>
#include <utility>

#include "shm/base/check.h"

namespace culvert::stack {
namespace {

/// The network part: all bits behind the prefix cleared. An IPv4 prefix counts from bit 96 of the mapped form.
/// [RFC1122 3.2.1.3 subnets]
Address network_of(const Address& address, unsigned prefix_length) {
    const unsigned bits = prefix_length + (address.is_v4() ? 96u : 0u);
    std::array<std::byte, 16> bytes;
    for (unsigned i = 0; i < 16; ++i) {
        const unsigned kept = std::clamp(static_cast<int>(bits) - static_cast<int>(i * 8), 0, 8);
        bytes[i] = static_cast<std::byte>(address.bytes()[i] & (0xff00u >> kept));
    }
    return Address::from_v6(bytes);
}

using HopKey = std::tuple<std::uint32_t, std::optional<Address>, Route::Type, std::uint32_t>;
HopKey key_of(const Route& route) { return {route.interface, route.gateway, route.type, route.mtu}; }

}  // namespace

void RouteTable::replace(std::vector<Route> routes) {
    std::ranges::copy_if(routes_, std::back_inserter(routes), &Route::learned);
    build(std::move(routes));
}

void RouteTable::replace_learned(std::vector<Route> routes) {
    std::vector<Route> all, old;
    for (const Route& route : routes_) (route.learned ? old : all).push_back(route);
    for (Route& route : routes) {
        route.learned = true;
        route.destination = network_of(route.destination, route.prefix_length);
    }
    if (std::ranges::is_permutation(old, routes)) return;  // both are short
    all.insert(all.end(), routes.begin(), routes.end());
    build(std::move(all));
}

void RouteTable::build(std::vector<Route> routes) {
    for (Route& route : routes) {
        CHECK(route.prefix_length <= (route.destination.is_v4() ? 32u : 128u));
        route.destination = network_of(route.destination, route.prefix_length);
    }
    // Stable: of two equal routes the first one given wins, as the kernel lists the preferred one first.
    std::stable_sort(routes.begin(), routes.end(), [](const Route& a, const Route& b) {
        return std::tie(a.destination, a.prefix_length, a.metric) < std::tie(b.destination, b.prefix_length, b.metric);
    });
    routes_ = std::move(routes);
    hops_.clear();

    // Sorted by bytes, IPv4 lies in one block inside IPv6 as its mapped form does; each family has an index of its own.
    std::map<HopKey, std::uint32_t> numbers;
    std::vector<RangeIndex<std::uint32_t>::Prefix> v4;
    std::vector<RangeIndex<Wide>::Prefix> v6;
    for (std::uint32_t i = 0; i < routes_.size(); ++i) {
        const Route& route = routes_[i];
        const auto [found, is_new] = numbers.emplace(key_of(route), static_cast<std::uint32_t>(hops_.size()));
        if (is_new) hops_.push_back({route.interface, route.gateway, route.type, route.mtu});
        const bool is_best = i == 0 || routes_[i - 1].destination != route.destination ||
                             routes_[i - 1].prefix_length != route.prefix_length;
        if (!is_best) continue;  // another way to the same network, with a higher metric
        if (route.destination.is_v4()) {
            v4.push_back({key_v4(route.destination), route.prefix_length, i, found->second});
        } else {
            v6.push_back({key_v6(route.destination), route.prefix_length, i, found->second});
        }
    }
    ranges_v4_.build(v4);
    ranges_v6_.build(v6);
    is_large_ = routes_.size() >= kLarge;
    ++generation_;
}

}  // namespace culvert::stack
