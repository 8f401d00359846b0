// Two whole stacks with dedicated addresses on one wire, and nobody else: they find each other, or fight over an address.
#include <gtest/gtest.h>

#include "daemon/stack/raw.h"
#include "tests/unit/stack/link/link_host.h"

namespace culvert::stack {
namespace {

class TwoHostsTest : public testing::Test {
protected:
    /// Both hosts live until `end`, each frame of one arriving at the other at once.
    void run(Duration duration) {
        const Instant end = a.now + duration;
        for (;;) {
            exchange();
            const Instant next = std::min(a.stack.next_deadline(), b.stack.next_deadline());
            if (next > end) break;
            const Instant now = std::max(a.now + TimerWheel::kTick, next);
            if (now > end) break;
            a.now = b.now = now;
            a.turn();
            b.turn();
        }
        a.now = b.now = end;
        a.turn();
        b.turn();
        exchange();
    }
    void exchange() {
        for (a.collect(), b.collect(); !a.sent.empty() || !b.sent.empty(); a.collect(), b.collect()) {
            while (!a.sent.empty()) b.receive(a.next());
            while (!b.sent.empty()) a.receive(b.next());
            a.stack.flush(a.now);
            b.stack.flush(b.now);
        }
    }
    void talk(const char* from, const char* to) {
        DatagramLog at_a, at_b;
        udp::Socket* const client = a.stack.bind_udp({ip(from), 4000}, false, at_a).value();
        udp::Socket* const server = b.stack.bind_udp({ip(to), 9}, false, at_b).value();
        const std::string text(3000, 'q');  // in fragments, so that several packets wait for the neighbour
        const std::span<const std::byte> pieces[] = {std::as_bytes(std::span(text))};
        const std::byte small[] = {std::byte{'!'}};
        const std::span<const std::byte> one[] = {small};
        EXPECT_TRUE(a.stack.send_datagram(*client, {ip(to), 9}, pieces, 3000, {}, a.now));
        EXPECT_TRUE(a.stack.send_datagram(*client, {ip(to), 9}, one, 1, {}, a.now));
        run(100ms);
        EXPECT_FALSE(at_b.received.empty()) << a.transcript();
        EXPECT_EQ(at_b.received.empty() ? "" : at_b.received.back(), "!");
        EXPECT_TRUE(b.stack.send_datagram(*server, {ip(from), 4000}, one, 1, {}, b.now));
        run(100ms);
        EXPECT_EQ(at_a.received.size(), 1u);
        a.stack.close(*client);
        b.stack.close(*server);
    }
    LinkHost a{1, kOurMac};
    LinkHost b{2, kPeerMac};
};

TEST_F(TwoHostsTest, FindEachOtherByArpAndByNd) {
    a.with({{ip("10.0.0.1"), 24}, {ip("fd00::1"), 64}});
    b.with({{ip("10.0.0.2"), 24}, {ip("fd00::2"), 64}});
    run(10s);
    ASSERT_TRUE(a.has("10.0.0.1") && a.has("fd00::1") && b.has("10.0.0.2") && b.has("fd00::2"));
    a.connected();
    b.connected();
    talk("10.0.0.1", "10.0.0.2");
    talk("fd00::1", "fd00::2");
    EXPECT_EQ(a.counters.address_conflicts + b.counters.address_conflicts, 0u);
    run(200s);
    talk("10.0.0.1", "10.0.0.2");  // after the entries went stale
    talk("fd00::1", "fd00::2");
    EXPECT_EQ(a.counters.neighbors_unreachable + b.counters.neighbors_unreachable, 0u);
    EXPECT_TRUE(a.resolver.asked.empty() && b.resolver.asked.empty()) << "the kernel has no part in this";
}

/// [RFC3376 3.2] [RFC3810 4.2] as Linux: who hears groups that others have joined hears no source that all of them block.
TEST_F(TwoHostsTest, AGroupIsHeardFromWhomItsMembersWant) {
    a.with({{ip("10.0.0.1"), 24}, {ip("fd00::1"), 64}});
    b.with({{ip("10.0.0.2"), 24}, {ip("fd00::2"), 64}});
    run(10s);
    for (const auto& [from, group] : {std::pair("10.0.0.1", "239.1.1.1"), std::pair("fd00::1", "ff05::101")}) {
        DatagramLog at_member, at_listener, unused;
        const Address any = Address::any(ip(group).family());
        udp::Socket* const member = b.stack.bind_udp({any, 9}, false, at_member).value();
        udp::Socket* const listener = b.stack.bind_udp({any, 9}, false, at_listener).value();
        udp::Socket* const sender = a.stack.bind_udp({any, 4000}, false, unused).value();
        const auto say = [&] {
            const std::byte text[] = {std::byte{'!'}};
            const std::span<const std::byte> one[] = {text};
            EXPECT_TRUE(a.stack.send_datagram(*sender, {ip(group), 9}, one, 1, {.interface = 7}, a.now));
            run(100ms);
        };
        ASSERT_TRUE(b.stack.change_group(*member, udp::GroupChange::kJoin, 7, ip(group), {}));
        say();
        EXPECT_EQ(at_member.received.size() + at_listener.received.size(), 2u) << group;
        ASSERT_TRUE(b.stack.change_group(*member, udp::GroupChange::kBlockSource, 7, ip(group), ip(from)));
        const std::uint64_t before = b.counters.dropped(Drop::kIpGroupNotJoined);
        say();
        EXPECT_EQ(at_member.received.size() + at_listener.received.size(), 2u) << group;
        EXPECT_EQ(b.counters.dropped(Drop::kIpGroupNotJoined) - before, 1u);
        for (udp::Socket* socket : {member, listener}) b.stack.close(*socket);
        a.stack.close(*sender);
    }
}

// Queries come to the group from a router that no filter names; all else that is ICMPv6 is filtered as a datagram is.
TEST_F(TwoHostsTest, AnEchoIsNoQueryAboutTheGroup) {
    struct Copies final : raw::SocketOwner {
        bool on_packet(raw::Socket&, const raw::PacketInfo&, Payload, std::uint32_t) override { return ++count, true; }
        int count = 0;
    };
    a.with({{ip("fd00::1"), 64}});
    b.with({{ip("fd00::2"), 64}});
    run(10s);
    DatagramLog unused;
    Copies none, pings;
    const Address any = Address::any(Family::kIpv6), group = ip("ff05::101");
    udp::Socket* const member = b.stack.bind_udp({any, 9}, false, unused).value();
    raw::Socket* const ping = b.stack.raw_sockets().open(raw::Kind::kPing, Family::kIpv6, 58, pings).value();
    ASSERT_TRUE(b.stack.raw_sockets().bind(*ping, any, 77));
    raw::Socket* const sender = a.stack.raw_sockets().open(raw::Kind::kRaw, Family::kIpv6, 58, none).value();
    const std::array<std::byte, 8> reply = {std::byte{129}, {}, {}, {}, {}, std::byte{77}, {}, {}};
    const auto say = [&] {
        const std::span<const std::byte> one[] = {reply};
        EXPECT_TRUE(a.stack.raw_sockets().send(*sender, group, one, reply.size(), {.interface = 7}, a.now));
        run(100ms);
    };
    ASSERT_TRUE(b.stack.change_group(*member, udp::GroupChange::kJoinSource, 7, group, ip("fd00::3")));
    run(10s);  // reports
    const std::uint64_t before = b.counters.dropped(Drop::kIpGroupNotJoined);
    say();
    EXPECT_EQ(pings.count, 0);
    EXPECT_EQ(b.counters.dropped(Drop::kIpGroupNotJoined) - before, 1u);
    ASSERT_TRUE(b.stack.change_group(*member, udp::GroupChange::kJoinSource, 7, group, ip("fd00::1")));
    say();
    EXPECT_EQ(pings.count, 1);
    b.stack.close(*member);
    b.stack.raw_sockets().close(*ping);
    a.stack.raw_sockets().close(*sender);
}

TEST_F(TwoHostsTest, TheLaterOneGetsNoAddressThatTheFirstHas) {
    a.with({{ip("10.0.0.1"), 24}, {ip("fd00::1"), 64}});
    run(10s);
    b.with({{ip("10.0.0.1"), 24}, {ip("fd00::1"), 64}});
    run(20s);
    EXPECT_TRUE(a.has("10.0.0.1") && a.has("fd00::1"));
    EXPECT_FALSE(b.has("10.0.0.1") || b.has("fd00::1"));
    EXPECT_EQ(b.counters.address_conflicts, 2u);
    a.with({});
    run(70s);
    EXPECT_TRUE(b.has("10.0.0.1") && b.has("fd00::1")) << "given up by the first, found free by the second";
}

TEST_F(TwoHostsTest, OfTwoThatProbeAtOnceAtMostOneGetsTheAddress) {
    a.with({{ip("10.0.0.1"), 24}, {ip("fd00::1"), 64}});
    b.with({{ip("10.0.0.1"), 24}, {ip("fd00::1"), 64}});
    run(20s);
    EXPECT_FALSE(a.has("10.0.0.1") && b.has("10.0.0.1"));
    EXPECT_FALSE(a.has("fd00::1") && b.has("fd00::1"));
    EXPECT_GE(a.counters.address_conflicts + b.counters.address_conflicts, 2u);
}

}  // namespace
}  // namespace culvert::stack
