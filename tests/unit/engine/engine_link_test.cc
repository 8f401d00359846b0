// A link of dedicated addresses on two engines: the first runs it, the second follows. Queues are drawn by lot, a stack with
// ARP and ND of its own is the peer. Virtual time, one thread.
#include <gtest/gtest.h>

#include <string>

#include "daemon/stack/link/multicast_groups.h"
#include "daemon/wire/arp.h"
#include "daemon/wire/ethernet.h"
#include "tests/unit/engine/two_engines.h"

namespace culvert::test {
namespace {

using std::chrono::seconds;

constexpr MacAddress kOtherMac{{2, 0, 0, 0, 0, 3}};

class Node final : public StackNode {
public:
    /// `own`: the addresses it is to have; none for one that follows engine 0.
    Node(engine::Exchange* exchange, std::uint32_t self, const MacAddress& mac, std::vector<stack::InterfaceAddress> own)
        : StackNode(exchange, self, config_for(mac)) {
        stack::Interface added = interface(mac);
        added.resolves_itself = true;
        if (own.empty()) added.link_engine = 0;
        eth0 = &stack.add_interface(std::move(added));
        stack.set_addresses(kEth0, own.empty() ? std::vector<stack::InterfaceAddress>{{kV4.ours, 24}} : std::move(own));
        stack.routes().replace({{.destination = Address::v4(10, 0, 0, 0), .prefix_length = 24, .interface = kEth0},
                                {.destination = *Address::parse("fd00::"), .prefix_length = 64, .interface = kEth0},
                                {.destination = kV4.group, .prefix_length = 32, .interface = kEth0},
                                {.destination = kV6.group, .prefix_length = 128, .interface = kEth0}});
    }

private:
    /// Hosts of one secret would choose the same link-local address.
    static stack::StackConfig config_for(const MacAddress& mac) {
        stack::StackConfig config = small_stack_config();
        config.stable_secret[0] = mac.bytes[5];
        return config;
    }
};

class EngineLink : public TwoEngines {
protected:
    EngineLink() {
        engines = {&one, &two};
        other_end = &peer;
    }
    /// Probing takes some seconds.
    void come_up() {
        ASSERT_TRUE(turns_until([&] {
            return std::ranges::all_of(std::array<Node*, 3>{&one, &two, &peer}, [](const Node* node) {
                return node->stack.is_local(node->eth0->mac == kPeerMac ? kV4.peers : kV4.ours) &&
                       node->stack.is_local(node->eth0->mac == kPeerMac ? kV6.peers : kV6.ours);
            });
        }, 20000));
        for (int i = 0; i < 8000; ++i) turn();  // announcements
    }
    std::uint64_t questions(const Node& node) const { return node.counters.arp_out + node.counters.ndp_out; }

    void say(Node& from, stack::udp::Socket& socket, const Endpoint& to, const std::string& text) {
        const Bytes bytes = bytes_of(text);
        const std::span<const std::byte> pieces[] = {bytes};
        ASSERT_TRUE(from.stack.send_datagram(socket, to, pieces, static_cast<std::uint32_t>(bytes.size()), {}, now));
    }

    Node one{&exchange, 0, kOurMac, {{kV4.ours, 24}, {kV6.ours, 64}}};
    Node two{&exchange, 1, kOurMac, {}};
    Node peer{nullptr, 7, kPeerMac, {{kV4.peers, 24}, {kV6.peers, 64}}};
};

INSTANTIATE_TEST_SUITE_P(BothFamilies, EngineLink, ::testing::Values(kV4, kV6),
                         family_name);

TEST_P(EngineLink, AnAddressIsProvedOnceAndThenEverybodys) {
    EXPECT_FALSE(two.stack.is_local(GetParam().ours)) << "what the configuration wishes is not proved";
    come_up();
    EXPECT_TRUE(two.stack.is_dedicated(GetParam().ours));
    EXPECT_EQ(questions(two), 0u) << "only one engine speaks of it";
    EXPECT_EQ(one.counters.address_conflicts + peer.counters.address_conflicts, 0u) << "not to itself";
    one.stack.set_addresses(kEth0, {});
    turn();
    turn();
    EXPECT_FALSE(two.stack.is_local(GetParam().ours));
}

TEST_P(EngineLink, AFollowerReachesItsNeighboursThroughTheLeader) {
    come_up();
    auto listener = peer.stack.listen(peers_end(80), false, {}, peer);
    ASSERT_TRUE(listener);
    App app;
    auto client = two.stack.connect(ours(40000), peers_end(80), {}, app, now);
    ASSERT_TRUE(client);
    ASSERT_TRUE(turns_until([&] { return app.established && !peer.accepted.empty(); }));
    EXPECT_EQ(questions(two), 0u);
    // It lives on while the entry is confirmed again and again, and goes.
    for (int minute = 0; minute < 3; ++minute) {
        for (int i = 0; i < 600; ++i) turn(100ms);
        app.send(**client, "x");
        ASSERT_TRUE(turns_until([&] { return peer.accepted[0].app->received.size() == minute + 1u; }));
    }
    (*client)->abort();
    ASSERT_TRUE(turns_until([&] { return peer.accepted[0].app->closed; }));
    peer.stack.close(**listener);
    EXPECT_EQ(two.counters.dropped(Drop::kNeighborUnresolved), 0u);
}

TEST_P(EngineLink, ADeadNeighbourIsToldToTheFollowersSocket) {
    come_up();
    App app;
    const Address nobody = GetParam().ours.is_v4() ? Address::v4(10, 0, 0, 77) : *Address::parse("fd00::77");
    auto client = two.stack.connect(ours(40000), {nobody, 80}, {}, app, now);
    ASSERT_TRUE(client);
    ASSERT_TRUE(turns_until([&] { return app.closed; }, 10000));
    EXPECT_EQ(app.error, EHOSTUNREACH);
    EXPECT_EQ(questions(two), 0u);
}

TEST_P(EngineLink, AServerOnTheFollowerIsFoundWhateverTheQueue) {
    come_up();
    auto listener = two.stack.listen(ours(80), false, {}, two);
    ASSERT_TRUE(listener);
    for (Port port = 40000; port < 40010; ++port) {
        App app;
        auto client = peer.stack.connect(peers_end(port), ours(80), {}, app, now);
        ASSERT_TRUE(client);
        ASSERT_TRUE(turns_until([&] { return two.accepted.size() == port - 39999u; }));
        app.send(**client, std::string(100'000, 'a'));
        ASSERT_TRUE(turns_until([&] { return two.accepted.back().app->received.size() == 100'000u; }));
        (*client)->abort();
        ASSERT_TRUE(turns_until([&] { return two.accepted.back().app->closed; }));
    }
    two.stack.close(**listener);
}

TEST_P(EngineLink, FragmentsOfADatagramMeet) {
    come_up();
    auto server = two.stack.bind_udp(ours(53), false, two);
    auto client = peer.stack.bind_udp(peers_end(5000), false, peer);
    ASSERT_TRUE(server && client);
    std::vector<std::string> sent;
    for (int i = 0; i < 40; ++i) {
        sent.push_back(std::string(static_cast<std::size_t>(3000 + i * 1000), static_cast<char>('a' + i % 26)));
        say(peer, **client, ours(53), sent.back());
        for (int j = 0; j < 5; ++j) turn();
    }
    std::ranges::sort(sent);
    std::ranges::sort(two.datagrams);
    EXPECT_TRUE(two.datagrams == sent) << two.datagrams.size();
    EXPECT_GT(one.counters.ip_reassembled, 5u) << "either engine has its share";
    EXPECT_GT(two.counters.ip_reassembled, 5u);
    two.stack.close(**server);
    peer.stack.close(**client);
}

TEST_P(EngineLink, AFollowersGroupsAreReportedByTheLeader) {
    come_up();
    const std::uint64_t before = one.counters.group_reports_out;
    auto socket = two.stack.bind_udp({Address::any(GetParam().ours.family()), 53}, false, two);
    ASSERT_TRUE(socket);
    ASSERT_TRUE(two.stack.change_group(**socket, stack::udp::GroupChange::kJoin, kEth0, GetParam().group, {}));
    for (int i = 0; i < 3000; ++i) turn();
    EXPECT_GE(one.counters.group_reports_out, before + 2) << "as often as robustness wants";
    EXPECT_TRUE(one.stack.groups().joined(kEth0, GetParam().group));
    auto sender = peer.stack.bind_udp(peers_end(5000), false, peer);
    say(peer, **sender, {GetParam().group, 53}, "to the group");
    for (int i = 0; i < 5; ++i) turn();
    EXPECT_EQ(two.datagrams, std::vector<std::string>{"to the group"});
    const std::uint64_t joined = one.counters.group_reports_out;
    two.stack.close(**socket);
    for (int i = 0; i < 3000; ++i) turn();
    EXPECT_GT(one.counters.group_reports_out, joined) << "that it has left";
    EXPECT_FALSE(one.stack.groups().joined(kEth0, GetParam().group));
    EXPECT_EQ(two.counters.group_reports_out, 0u);
    peer.stack.close(**sender);
}

TEST_P(EngineLink, WhatFindsNoRoomInTheRingIsMadeGoodFor) {
    come_up();
    auto listener = peer.stack.listen(peers_end(80), false, {}, peer);
    App app;
    auto client = two.stack.connect(ours(40000), peers_end(80), {}, app, now);
    ASSERT_TRUE(listener && client);
    ASSERT_TRUE(turns_until([&] { return app.established; }));
    // The follower is not scheduled, and its ring fills up with what it cannot use.
    deaf = &two;
    const Bytes noise(60000);
    while (one.peers->transmit_by(1, kEth0, {.head = noise, .rest = {}, .length = 60000})) {}
    Bytes small(1);
    while (one.peers->transmit_by(1, kEth0, {.head = small, .rest = {}, .length = 1})) {}
    // Meanwhile the neighbour gets another MAC, and an address of ours goes.
    peer.stack.set_mac(kEth0, kOtherMac);
    one.stack.set_addresses(kEth0, {{GetParam().ours, GetParam().ours.is_v4() ? 24u : 64u}});
    for (int i = 0; i < 8000; ++i) turn();
    const Address gone = GetParam().ours.is_v4() ? kV6.ours : kV4.ours;
    EXPECT_TRUE(two.stack.is_local(gone)) << "it could not be told yet";
    two.peers->receive([](const engine::HandedOver&) {});
    while (two.peers->any_waiting()) two.peers->receive([](const engine::HandedOver&) {});
    deaf = nullptr;
    app.send(**client, "where are you now?");
    ASSERT_TRUE(turns_until([&] { return !peer.accepted.empty() && peer.accepted[0].app->received == "where are you now?"; }, 20000));
    EXPECT_FALSE(two.stack.is_local(gone));
    (*client)->abort();
    peer.stack.close(**listener);
}

TEST_P(EngineLink, AFloodOnTheFollowersQueueCostsOneCopyAFrame) {
    come_up();
    queue = [](const Bytes&) { return std::size_t{1}; };
    const std::uint64_t before = one.counters.handed_in, back = two.counters.handed_in;
    Bytes frame(wire::kEthernetHeaderLength + wire::kArpLength);
    wire::emit(wire::EthernetHeader{wire::kBroadcastMac, kOtherMac, wire::EtherType::kArp}, frame);
    for (unsigned i = 0; i < 500; ++i) {
        wire::emit(wire::ArpHeader{.operation = wire::ArpOperation::kRequest,
                                    .sender_mac = kOtherMac,
                                    .sender = Address::v4(10, 0, 1, static_cast<std::uint8_t>(i)),
                                    .target_mac = {},
                                    .target = Address::v4(10, 0, 0, 99)},
                   std::span(frame).subspan(wire::kEthernetHeaderLength));
        two.input(frame, now);
        if (i % 50 == 0) turn();
    }
    while (two.peers->any_waiting() || one.peers->any_waiting()) turn();
    EXPECT_EQ(one.counters.handed_in - before, 500u);
    EXPECT_EQ(two.counters.handed_in, back);
    EXPECT_EQ(two.counters.arp_in, 0u);
}

}  // namespace
}  // namespace culvert::test
