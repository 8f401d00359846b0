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

TEST(RouteTable, LongestPrefixWinsThenLowestMetric) {
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

TEST(RouteTable, HostBitsOfANetworkDoNotMatter) {
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

}  // namespace
}  // namespace culvert::stack
