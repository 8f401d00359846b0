// Routers, prefixes, addresses from routers: RFC 4861 6.3, RFC 4862 5.5, RFC 7559, RFC 4861 8.3.
#include "daemon/stack/link/router_discovery.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/stack/link/link_host.h"

namespace culvert::stack {
namespace {

const Address kAllNodes = ip("ff02::1");

struct Said {
    std::chrono::seconds lifetime{1800};
    std::vector<wire::NdpPrefix> prefixes{};
    std::optional<std::uint32_t> mtu{};
    std::uint8_t hop_limit = 0;
    std::chrono::milliseconds reachable{0};
    std::chrono::milliseconds retransmit{0};
    const char* from = "fe80::fe";
    MacAddress mac = kRouterMac;
};

wire::NdpPrefix both(const char* prefix, std::uint32_t valid, std::uint32_t preferred) {
    return {.prefix = ip(prefix), .prefix_length = 64, .on_link = true, .autonomous = true,
            .valid_seconds = valid, .preferred_seconds = preferred};
}

class RouterTest : public testing::Test {
protected:
    RouterTest() : host(1, kOurMac, [](Interface& eth0) { eth0.autoconfigures = true; }) {}
    void say(const Said& said) {
        host.receive(ndp_frame(said.from, kAllNodes,
                               wire::RouterAdvertisement{.hop_limit = said.hop_limit,
                                                         .router_lifetime = said.lifetime,
                                                         .reachable_time = said.reachable,
                                                         .retransmit_time = said.retransmit,
                                                         .source_mac = said.mac,
                                                         .mtu = said.mtu,
                                                         .prefixes = said.prefixes}));
    }
    const Route* route_to(const char* destination) { return host.stack.routes().lookup(ip(destination)); }
    /// Our address in the /64 of `prefix`.
    const InterfaceAddress* address_in(const char* prefix) const {
        for (const InterfaceAddress& own : host.eth0->addresses)
            if (own.address.in(ip(prefix), 64)) return &own;
        return nullptr;
    }
    std::vector<Duration> solicitations() {
        std::vector<Duration> times;
        for (const LinkHost::Sent& one : host.sent)
            if (LinkHost::describe(one.frame).starts_with("rs")) times.push_back(one.at - Instant{1h});
        host.sent.clear();
        return times;
    }
    LinkHost host;
};

// [RFC4861 6.3.7] [RFC7559 2.1] first within a second, then four seconds and twice as long each time, up to an hour.
TEST_F(RouterTest, AsksLessAndLessButForever) {
    host.after(100000s);
    const std::vector<Duration> times = solicitations();
    ASSERT_GT(times.size(), 30u);
    EXPECT_LE(times[0], 1010ms);
    for (std::size_t i = 1; i < times.size(); ++i) {
        const double seconds = std::chrono::duration<double>(times[i] - times[i - 1]).count();
        if (i == 1) {
            EXPECT_NEAR(seconds, 4, 0.41);
        } else {
            const double before = std::chrono::duration<double>(times[i - 1] - times[i - 2]).count();
            if (before < 1700)
                EXPECT_NEAR(seconds / before, 2, 0.11) << i;
            else
                EXPECT_LE(seconds, 3600 * 1.101) << i;
        }
    }
}

TEST_F(RouterTest, ADefaultRouterEndsTheAsking) {
    host.after(3s).forget();
    say({.lifetime = 0s});
    host.after(10s);
    EXPECT_FALSE(solicitations().empty()) << "no default router yet";
    say({});
    host.after(1700s);
    EXPECT_TRUE(solicitations().empty());
    ASSERT_NE(route_to("2001:db8::1"), nullptr);
    EXPECT_EQ(route_to("2001:db8::1")->gateway, ip("fe80::fe"));
    host.after(110s);
    EXPECT_EQ(route_to("2001:db8::1"), nullptr) << "its lifetime is over";
    EXPECT_FALSE(solicitations().empty()) << "and we ask again";
}

TEST_F(RouterTest, LifetimeZeroEndsARouter) {
    say({});
    EXPECT_NE(route_to("2001:db8::1"), nullptr);
    say({.lifetime = 0s});
    EXPECT_EQ(route_to("2001:db8::1"), nullptr);
}

TEST_F(RouterTest, ParametersAreTakenWhereTheyAreSaid) {  // [RFC4861 6.3.4]
    say({.mtu = 1400, .hop_limit = 33, .reachable = 10s, .retransmit = 500ms});
    EXPECT_EQ(host.eth0->hop_limit6, 33);
    EXPECT_EQ(host.eth0->mtu_of(Family::kIpv6), 1400u);
    EXPECT_EQ(host.eth0->mtu_of(Family::kIpv4), 1500u);
    EXPECT_EQ(host.eth0->link->base_reachable_time, 10s);
    EXPECT_GE(host.eth0->link->reachable_time, 5s);
    EXPECT_LE(host.eth0->link->reachable_time, 15s);
    EXPECT_EQ(host.eth0->link->retransmit_time, 500ms);
    say({});
    EXPECT_EQ(host.eth0->hop_limit6, 33) << "zero says nothing: what was said before still holds";
    say({.mtu = 1279, .retransmit = 1ms});
    say({.mtu = 9000});
    EXPECT_EQ(host.eth0->mtu_of(Family::kIpv6), 1400u) << "below the least, above the link's";
    EXPECT_EQ(host.eth0->link->retransmit_time, 100ms) << "no router makes us flood";
}

TEST_F(RouterTest, APrefixGivesARouteAndAnAddress) {
    say({.prefixes = {both("2001:db8::", 7200, 3600)}});
    EXPECT_EQ(address_in("2001:db8::"), nullptr) << "tentative";
    host.after(3s);
    ASSERT_NE(address_in("2001:db8::"), nullptr) << host.transcript();
    ASSERT_NE(route_to("2001:db8::5"), nullptr);
    EXPECT_EQ(route_to("2001:db8::5")->gateway, std::nullopt);
    EXPECT_TRUE(host.link_local());
    host.after(3600s);
    ASSERT_NE(address_in("2001:db8::"), nullptr);
    EXPECT_TRUE(address_in("2001:db8::")->deprecated);
    host.after(3600s);
    EXPECT_EQ(address_in("2001:db8::"), nullptr) << "its lifetime is over";
    EXPECT_EQ(route_to("2001:db8::5"), nullptr);
}

struct BadPrefix {
    const char* name;
    wire::NdpPrefix prefix;
    bool route;
};
TEST_F(RouterTest, PrefixesThatGiveNoAddress) {  // [RFC4862 5.5.3 a-d]
    wire::NdpPrefix not_autonomous = both("2001:db8:1::", 100, 100), long_prefix = both("2001:db8:2::", 100, 100),
                    link_local = both("fe80::", 100, 100);
    not_autonomous.autonomous = false;
    long_prefix.prefix_length = 65;
    const BadPrefix table[] = {{"not autonomous", not_autonomous, true},
                               {"65 bits", long_prefix, true},
                               {"link-local", link_local, false},
                               {"preferred longer than valid", both("2001:db8:3::", 100, 101), true},
                               {"valid for no time", both("2001:db8:4::", 0, 0), false}};
    host.after(5s);
    const std::size_t before = host.eth0->addresses.size();
    for (const BadPrefix& one : table) {
        say({.lifetime = 0s, .prefixes = {one.prefix}});
        host.after(5s);
        EXPECT_EQ(host.eth0->addresses.size(), before) << one.name;
        EXPECT_EQ(host.stack.routes().lookup(one.prefix.prefix) != nullptr, one.route) << one.name;
    }
}

// [RFC4862 5.5.3 e] who has not signed cannot end an address in less than two hours.
TEST_F(RouterTest, TheTwoHourRule) {
    say({.prefixes = {both("2001:db8::", 86400, 86400)}});
    host.after(3s);
    say({.prefixes = {both("2001:db8::", 60, 60)}});
    host.after(7100s);
    EXPECT_NE(address_in("2001:db8::"), nullptr) << "cut to two hours, not to a minute";
    EXPECT_TRUE(address_in("2001:db8::")->deprecated);
    say({.prefixes = {both("2001:db8::", 60, 60)}});  // less than what is left: ignored
    host.after(99s);
    EXPECT_NE(address_in("2001:db8::"), nullptr);
    host.after(5s);
    EXPECT_EQ(address_in("2001:db8::"), nullptr);

    say({.prefixes = {both("2001:db8:1::", 600, 600)}});
    host.after(3s);
    say({.prefixes = {both("2001:db8:1::", 900, 900)}});  // longer than what is left: believed
    host.after(700s);
    EXPECT_NE(address_in("2001:db8:1::"), nullptr);
}

TEST_F(RouterTest, ALifetimeWithoutEnd) {
    say({.prefixes = {both("2001:db8::", 0xffffffff, 0xffffffff)}});
    host.after(std::chrono::hours(24 * 365));
    ASSERT_NE(address_in("2001:db8::"), nullptr);
    EXPECT_FALSE(address_in("2001:db8::")->deprecated);
}

// [RFC1122 3.3.1.5 switch] [RFC4861 6.3.6] a router that does not answer makes room for another.
TEST_F(RouterTest, ASilentRouterIsReplaced) {
    say({.prefixes = {both("2001:db8::", 7200, 7200)}});
    say({.from = "fe80::ff", .mac = kPeerMac});
    host.after(3s).forget();
    ASSERT_EQ(route_to("2001:db8:9::1")->gateway, ip("fe80::fe"));
    DatagramLog datagrams;
    udp::Socket* const socket = host.stack.bind_udp({Address(), 4000}, false, datagrams).value();
    const std::byte x[] = {std::byte{'x'}};
    const std::span<const std::byte> pieces[] = {x};
    EXPECT_TRUE(host.stack.send_datagram(*socket, {ip("2001:db8:9::1"), 9}, pieces, 1, {}, host.now));
    EXPECT_EQ(wire::load_mac(host.next().data()), kRouterMac);
    host.after(9s);  // five of delay, three probes
    EXPECT_EQ(route_to("2001:db8:9::1")->gateway, ip("fe80::ff")) << host.transcript();
    host.forget();
    EXPECT_TRUE(host.stack.send_datagram(*socket, {ip("2001:db8:9::1"), 9}, pieces, 1, {}, host.now));
    EXPECT_EQ(wire::load_mac(host.next().data()), kPeerMac);
    host.stack.close(*socket);
}

TEST_F(RouterTest, ARouterThatSaysItIsNoneIsDropped) {  // [RFC4861 7.2.5]
    say({});
    host.receive(ndp_frame("fe80::fe", kAllNodes,
                           wire::NeighborAdvertisement{.target = ip("fe80::fe"), .overrides = true, .target_mac = kRouterMac}));
    EXPECT_EQ(route_to("2001:db8::1"), nullptr);
}

TEST_F(RouterTest, ARedirectFromTheRouterInUseIsFollowed) {  // [RFC4861 8.3]
    say({.prefixes = {both("2001:db8::", 7200, 7200)}});
    host.after(3s).forget();
    const Address us = address_in("2001:db8::")->address;
    const auto redirect = [&](const char* from, const char* target, const char* destination) {
        host.receive(ndp_frame(from, us, wire::Redirect{.target = ip(target), .destination = ip(destination), .target_mac = kPeerMac}));
    };
    redirect("fe80::99", "fe80::aa", "2001:db8:9::1");
    EXPECT_EQ(host.dropped(Drop::kNdpRedirectInvalid), 1u) << "not our router";
    EXPECT_EQ(route_to("2001:db8:9::1")->gateway, ip("fe80::fe"));
    redirect("fe80::fe", "fe80::aa", "2001:db8:9::1");
    EXPECT_EQ(route_to("2001:db8:9::1")->gateway, ip("fe80::aa"));
    EXPECT_EQ(route_to("2001:db8:9::2")->gateway, ip("fe80::fe")) << "that one only";
    redirect("fe80::fe", "2001:db8:9::3", "2001:db8:9::3");
    EXPECT_EQ(route_to("2001:db8:9::3")->gateway, std::nullopt) << "a neighbour after all";
    host.after(RouterDiscovery::kRedirectLifetime + 1s);
    EXPECT_EQ(route_to("2001:db8:9::1")->gateway, ip("fe80::fe"));
}

TEST_F(RouterTest, FloodsOfRoutersPrefixesAndRedirectsAreBounded) {
    for (int i = 0; i < 100; ++i) say({.from = ("fe80::" + std::to_string(i + 1000)).c_str()});
    EXPECT_EQ(host.dropped(Drop::kNdpTooManyRouters), 100 - RouterDiscovery::kMaxRouters);
    for (int i = 0; i < 100; ++i)
        say({.prefixes = {both(("2001:db8:" + std::to_string(i) + "::").c_str(), 7200, 7200)}, .from = "fe80::1000"});
    host.after(5s);
    EXPECT_LE(host.eth0->addresses.size(), AddressConfiguration::kMaxAutoconfigured + 1);
    EXPECT_GE(host.dropped(Drop::kNdpTooManyPrefixes), 100 - RouterDiscovery::kMaxPrefixes);
    const Address us = address_in("2001:db8:0::")->address;
    const Address router = *route_to("2001:db9::1")->gateway;
    for (int i = 0; i < 200; ++i)
        host.receive(ndp_frame(router.to_string().c_str(), us,
                               wire::Redirect{.target = ip("fe80::aa"), .destination = ip(("2001:db9::" + std::to_string(i)).c_str()), .target_mac = {}}));
    EXPECT_LE(host.stack.routes().routes().size(), RouterDiscovery::kMaxRedirects + RouterDiscovery::kMaxPrefixes + 1);
}

}  // namespace
}  // namespace culvert::stack
