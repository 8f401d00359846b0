#include "daemon/stack/route_table.h"

#include <gtest/gtest.h>

#include "daemon/base/rng.h"
#include "tests/unit/stack/ip_world.h"

namespace culvert::stack {
namespace {

Route to(const char* network, unsigned length, std::uint32_t interface, std::uint32_t metric = 0) {
    return {.destination = ip(network), .prefix_length = length, .interface = interface, .metric = metric};
}

TEST(RouteTable, EmptyTableKnowsNoWay) {
    RouteTable table;
    EXPECT_EQ(table.lookup(ip("10.0.0.1")), nullptr);
    EXPECT_EQ(table.lookup(ip("fd00::1")), nullptr);
}

TEST(RouteTable, LongestPrefixWinsThenLowestMetric) {  // [RFC1122 3.2.1.3 subnets] [RFC1122 3.3.1.2 several]
    RouteTable table;
    table.replace({to("0.0.0.0", 0, 1), to("10.0.0.0", 8, 2), to("10.1.0.0", 16, 3, 100), to("10.1.0.0", 16, 4, 50),
                   to("10.1.2.3", 32, 5), to("::", 0, 6), to("fd00::", 16, 7), to("fd00::1", 128, 8)});
    const struct {
        const char* destination;
        std::uint32_t interface;
    } cases[] = {{"192.0.2.1", 1}, {"10.255.0.1", 2}, {"10.1.9.9", 4}, {"10.1.2.3", 5}, {"10.1.2.2", 4},
                 {"2001:db8::1", 6}, {"fd00::2", 7}, {"fd00::1", 8}};
    for (const auto& c : cases) {
        const Route* const route = table.lookup(ip(c.destination));
        ASSERT_NE(route, nullptr) << c.destination;
        EXPECT_EQ(route->interface, c.interface) << c.destination;
    }
}

TEST(RouteTable, FamiliesDoNotMix) {
    RouteTable table;
    table.replace({to("::", 0, 6)});
    EXPECT_EQ(table.lookup(ip("10.0.0.1")), nullptr);
    table.replace({to("0.0.0.0", 0, 4)});
    EXPECT_EQ(table.lookup(ip("fd00::1")), nullptr);
}

TEST(RouteTable, HostBitsOfANetworkDoNotMatter) {  // [RFC1122 3.2.1.3 subnets]
    RouteTable table;
    table.replace({to("10.1.2.3", 8, 1)});
    EXPECT_NE(table.lookup(ip("10.200.0.1")), nullptr);
    EXPECT_EQ(table.lookup(ip("11.1.2.3")), nullptr);
}

TEST(RouteTable, GenerationChangesWithEveryReplaceAndTouch) {
    RouteTable table;
    const std::uint32_t first = table.generation();
    table.replace({});
    const std::uint32_t second = table.generation();
    EXPECT_NE(first, second);
    table.touch();
    EXPECT_NE(second, table.generation());
}

/// What longest-prefix match means, without an index.
const Route* oracle(std::span<const Route> routes, const Address& destination) {
    const Route* best = nullptr;
    for (const Route& route : routes) {
        if (!destination.in(route.destination, route.prefix_length)) continue;
        if (best == nullptr || route.prefix_length > best->prefix_length ||
            (route.prefix_length == best->prefix_length && route.metric < best->metric))
            best = &route;
    }
    return best;
}

Address random_address(Rng& rng) {
    if (rng.below(2) == 0)
        return Address::v4(10, static_cast<std::uint8_t>(rng.below(4)), static_cast<std::uint8_t>(rng.below(4)),
                           static_cast<std::uint8_t>(rng.below(4)));
    std::array<std::byte, 16> bytes{std::byte{0xfd}};
    for (std::size_t i = 6; i < 16; ++i) bytes[i] = static_cast<std::byte>(rng.below(2) << 6 | rng.below(2));
    return Address::from_v6(bytes);
}

TEST(RouteTable, AgreesWithAnOracleOnRandomTables) {
    for (std::uint64_t seed = 1; seed <= 40; ++seed) {
        SCOPED_TRACE("seed " + std::to_string(seed));
        Rng rng(seed);
        std::vector<Route> routes;
        for (std::uint32_t i = 0, n = static_cast<std::uint32_t>(rng.below(60)); i < n; ++i) {
            const Address network = random_address(rng);
            routes.push_back({.destination = network,
                              .prefix_length = static_cast<unsigned>(rng.below(network.is_v4() ? 33 : 129)),
                              .interface = i,
                              .metric = static_cast<std::uint32_t>(rng.below(3))});
        }
        RouteTable table;
        table.replace(routes);
        for (int i = 0; i < 200; ++i) {
            const Address destination = random_address(rng);
            const Route* const expected = oracle(routes, destination);
            const Route* const got = table.lookup(destination);
            ASSERT_EQ(got == nullptr, expected == nullptr) << destination.to_string();
            if (expected != nullptr) {
                EXPECT_EQ(got->interface, expected->interface) << destination.to_string();
            }
        }
    }
}

/// What the table is compared with: every route looked at.
const Route* naive_lookup(const std::vector<Route>& routes, const Address& destination) {
    const Route* best = nullptr;
    for (const Route& route : routes) {
        if (route.destination.is_v4() != destination.is_v4() || !destination.in(route.destination, route.prefix_length)) continue;
        if (best == nullptr || route.prefix_length > best->prefix_length ||
            (route.prefix_length == best->prefix_length && route.metric < best->metric))
            best = &route;
    }
    return best;
}

Address random_address(Rng& rng, bool v4, unsigned spread) {
    std::array<std::byte, 16> bytes{};
    for (std::size_t i = v4 ? 12 : 0; i < 16; ++i) bytes[i] = static_cast<std::byte>(rng.below(spread));
    if (v4) return Address::from_v4(std::span<const std::byte, 4>(bytes.data() + 12, 4));
    bytes[0] = std::byte{0x20};
    return Address::from_v6(bytes);
}

TEST(RouteTable, AgreesWithLookingAtEveryRoute) {
    for (std::uint64_t seed = 1; seed <= 60; ++seed) {
        Rng rng(seed);
        const unsigned spread = seed % 3 == 0 ? 256 : 4;  // crowded tables find more mistakes
        std::vector<Route> routes;
        const std::size_t count = seed % 10 == 0 ? 2000 : rng.below(150);
        for (std::size_t i = 0; i < count; ++i) {
            const bool v4 = rng.below(2) == 0;
            Route route;
            route.destination = random_address(rng, v4, spread);
            route.prefix_length = static_cast<unsigned>(rng.below(v4 ? 33 : 129));
            route.metric = static_cast<std::uint32_t>(rng.below(4));
            route.interface = static_cast<std::uint32_t>(i + 1);
            if (rng.below(2) == 0) route.gateway = random_address(rng, v4, 256);
            routes.push_back(route);
        }
        RouteTable table;
        table.replace(routes);
        for (int i = 0; i < 600; ++i) {
            Address wanted = random_address(rng, rng.below(2) == 0, spread);
            if (!routes.empty() && i % 3 == 0) wanted = routes[rng.below(routes.size())].destination;
            const Route* const expected = naive_lookup(routes, wanted);
            const Route* const got = table.lookup(wanted);
            ASSERT_EQ(got == nullptr, expected == nullptr) << "seed " << seed << " " << wanted.to_string();
            const std::uint32_t hop = table.next_hop_index(wanted);
            ASSERT_EQ(hop == RouteTable::kNoHop, expected == nullptr);
            if (expected == nullptr) continue;
            ASSERT_EQ(got->interface, expected->interface) << "seed " << seed << " " << wanted.to_string();
            ASSERT_EQ(table.next_hop(hop).interface, expected->interface);
            ASSERT_EQ(table.next_hop(hop).gateway, expected->gateway);
        }
    }
}

TEST(RouteTable, HoldsAHundredThousandRoutesOfEachFamily) {
    for (const bool v4 : {true, false}) {
        Rng rng(v4 ? 4 : 6);
        std::vector<Route> routes;
        for (std::uint32_t i = 0; i < 100000; ++i) {
            const unsigned length = static_cast<unsigned>(v4 ? 8 + rng.below(25) : 16 + rng.below(113));
            routes.push_back({.destination = random_address(rng, v4, 256), .prefix_length = length, .interface = i % 8 + 1});
        }
        RouteTable table;
        table.replace(routes);
        EXPECT_LE(table.next_hops(), 8u);
        EXPECT_LT(table.index_bytes(), 16u << 20);
        EXPECT_TRUE(table.is_large());
        // Announced first, of either family, or not: the answers are the same.
        std::vector<Address> ahead;
        for (std::size_t i = 0; i < RouteTable::kAhead; ++i) ahead.push_back(random_address(rng, rng.below(2) == 0, 256));
        table.expect(ahead);
        for (int i = 0; i < 40; ++i) {
            Address wanted = random_address(rng, v4, 256);
            if (i % 2 == 0) wanted = routes[rng.below(routes.size())].destination;
            const Route* const expected = naive_lookup(routes, wanted);
            const Route* const got = table.lookup(wanted);
            ASSERT_EQ(got == nullptr, expected == nullptr) << wanted.to_string();
            if (got == nullptr) continue;
            ASSERT_EQ(got->prefix_length, expected->prefix_length) << wanted.to_string();
        }
    }
}

/// Routes inside routes inside routes crowd the same few slots at every level.
TEST(RouteTable, DeeplyNestedRoutesDoNotMakeTheIndexLarge) {
    Rng rng(9);
    std::vector<Route> routes;
    for (std::uint32_t i = 0; i < 300; ++i) {
        const Address network = random_address(rng, false, 256);
        for (unsigned length = 16; length <= 128; length += 4)
            routes.push_back({.destination = network, .prefix_length = length, .interface = length});
    }
    RouteTable table;
    table.replace(routes);
    EXPECT_LT(table.index_bytes(), 4u << 20);
    for (int i = 0; i < 300; ++i) {
        Address wanted = routes[rng.below(routes.size())].destination;
        const Route* const expected = naive_lookup(routes, wanted);
        const Route* const got = table.lookup(wanted);
        ASSERT_NE(got, nullptr);
        ASSERT_EQ(got->prefix_length, expected->prefix_length) << wanted.to_string();
    }
}

}  // namespace
}  // namespace culvert::stack
