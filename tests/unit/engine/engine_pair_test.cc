// Two engines' stacks on one interface with two queues, and a peer whose packets fall on either queue by chance: whatever
// the NIC does, each connection lives on one engine and no byte is lost. Virtual time, one thread; what the rings do under
// two threads is in tests/stress.
//
//   peer (a stack of its own) --frames--> dice --> queue 0: engine 0 <--rings--> engine 1: queue 1
//        ^------------------------------- both -----------------------------------+
#include <gtest/gtest.h>

#include <string>

#include "daemon/stack/tcp/flow_table.h"
#include "daemon/wire/ethernet.h"
#include "daemon/wire/icmp.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"
#include "tests/unit/engine/two_engines.h"

namespace culvert::test {
namespace {

class Node final : public StackNode {
public:
    Node(engine::Exchange* exchange, std::uint32_t self, const MacAddress& mac, const MacAddress& peer_mac, bool is_peer)
        : StackNode(exchange, self, small_stack_config()) {
        stack::Interface added = interface(mac);
        for (const Addresses& each : {kV4, kV6})
            added.addresses.push_back({is_peer ? each.peers : each.ours, each.ours.is_v4() ? 24u : 64u});
        eth0 = &stack.add_interface(std::move(added));
        stack.routes().replace({{.destination = Address::v4(10, 0, 0, 0), .prefix_length = 24, .interface = kEth0},
                                {.destination = *Address::parse("fd00::"), .prefix_length = 64, .interface = kEth0}});
        for (const Addresses& each : {kV4, kV6})
            stack.neighbors().update(kEth0, is_peer ? each.ours : each.peers, peer_mac, stack::NeighborState::kReachable, tx);
    }
};

class EnginePair : public TwoEngines {
protected:
    EnginePair() {
        engines = {&one, &two};
        other_end = &peer;
    }

    /// `bytes` both ways over an open connection, then both close.
    void talk(stack::tcp::Connection& a, App& a_app, stack::tcp::Connection& b, App& b_app, std::size_t bytes) {
        std::string there(bytes, '\0');
        std::string back(bytes, '\0');
        for (char& c : there) c = static_cast<char>(dice.next());
        for (char& c : back) c = static_cast<char>(dice.next());
        a_app.send(a, there);
        b_app.send(b, back);
        a.shutdown_write();
        b.shutdown_write();
        ASSERT_TRUE(turns_until([&] { return a_app.closed && b_app.closed; }));
        EXPECT_TRUE(b_app.received == there);
        EXPECT_TRUE(a_app.received == back);
        EXPECT_EQ(a_app.error, 0);
        EXPECT_EQ(b_app.error, 0);
    }
    /// The engine that has accepted the last connection; asserts that it is one.
    Node::Accepted* accepted_of(std::size_t count) {
        if (!turns_until([&] { return one.accepted.size() + two.accepted.size() == count; }, 5000)) return nullptr;
        return one.accepted.size() > seen_one_ ? (seen_one_ = one.accepted.size(), &one.accepted.back()) : &two.accepted.back();
    }
    void expect_nothing_left() {
        now += 61s;
        for (int i = 0; i < 5; ++i) turn();
        EXPECT_EQ(exchange.directory().overflows(), 0u);
        for (StackNode* engine : engines) {
            EXPECT_EQ(engine->ports.held, 0);
            EXPECT_EQ(engine->pool.available(), engine->pool.count());
            EXPECT_EQ(engine->stack.next_deadline(), kNever);
            EXPECT_FALSE(engine->peers->any_waiting());
            EXPECT_EQ(engine->counters.dropped(Drop::kHandOverFull), 0u);
        }
    }
    std::uint64_t resets() const {
        return one.counters.tcp_resets_out + two.counters.tcp_resets_out + one.counters.tcp_resets_in + two.counters.tcp_resets_in;
    }

    Node one{&exchange, 0, kOurMac, kPeerMac, false};
    Node two{&exchange, 1, kOurMac, kPeerMac, false};
    Node peer{nullptr, 7, kPeerMac, kOurMac, true};

private:
    std::size_t seen_one_ = 0;
};

INSTANTIATE_TEST_SUITE_P(BothFamilies, EnginePair, ::testing::Values(kV4, kV6),
                         family_name);

TEST_P(EnginePair, AConnectionLivesOnTheListenersEngineWhereverItsPacketsFall) {
    auto listener = two.stack.listen(ours(80), false, {}, two);
    ASSERT_TRUE(listener);
    for (Port port = 40000; port < 40005; ++port) {
        App app;
        auto client = peer.stack.connect(peers_end(port), ours(80), {}, app, now);
        ASSERT_TRUE(client);
        Node::Accepted* server = accepted_of(port - 39999u);
        ASSERT_NE(server, nullptr);
        talk(**client, app, *server->connection, *server->app, 1'000'000);
    }
    EXPECT_EQ(one.accepted.size(), 0u);
    EXPECT_GT(two.counters.handed_in, 500u);
    EXPECT_EQ(one.counters.handed_over, two.counters.handed_in);
    EXPECT_EQ(two.counters.handed_over, 0u);  // what is its own it keeps
    EXPECT_EQ(resets(), 0u);
    two.stack.close(**listener);
    expect_nothing_left();
}

TEST_P(EnginePair, AnActiveOpenGetsItsAnswersFromBothQueues) {
    auto listener = peer.stack.listen(peers_end(80), false, {}, peer);
    ASSERT_TRUE(listener);
    for (std::size_t i = 0; i < 2; ++i) {
        App app;
        auto client = engines[i]->stack.connect(ours(static_cast<Port>(41000 + i)), peers_end(80), {}, app, now);
        ASSERT_TRUE(client);
        ASSERT_TRUE(turns_until([&] { return app.established && peer.accepted.size() == i + 1; }, 1000));
        talk(**client, app, *peer.accepted.back().connection, *peer.accepted.back().app, 500'000);
        EXPECT_GT(engines[i]->counters.handed_in, 50u);
    }
    EXPECT_EQ(resets(), 0u);
    peer.stack.close(**listener);
    expect_nothing_left();
}

TEST_P(EnginePair, ListenersOnBothEnginesShareAPort) {
    auto first = one.stack.listen(ours(80), false, {}, one);
    auto second = two.stack.listen(ours(80), false, {}, two);
    ASSERT_TRUE(first && second);
    std::vector<std::unique_ptr<App>> apps;
    std::vector<stack::tcp::Connection*> clients;
    for (Port port = 40000; port < 40060; ++port) {
        apps.push_back(std::make_unique<App>());
        auto client = peer.stack.connect(peers_end(port), ours(80), {}, *apps.back(), now);
        ASSERT_TRUE(client);
        clients.push_back(*client);
    }
    ASSERT_TRUE(turns_until([&] { return one.accepted.size() + two.accepted.size() == 60; }, 10000));
    EXPECT_GT(one.accepted.size(), 10u);
    EXPECT_GT(two.accepted.size(), 10u);
    for (std::size_t i = 0; i < apps.size(); ++i) {
        apps[i]->send(*clients[i], "hello " + std::to_string(i));
        clients[i]->shutdown_write();
    }
    const auto all_heard = [&] {
        for (StackNode* engine : engines)
            for (const auto& server : engine->accepted)
                if (!server.app->end_of_stream) return false;
        return true;
    };
    ASSERT_TRUE(turns_until(all_heard));
    for (StackNode* engine : engines)
        for (const auto& server : engine->accepted) {
            EXPECT_EQ(server.app->received.rfind("hello ", 0), 0u);
            server.connection->shutdown_write();
        }
    ASSERT_TRUE(turns_until([&] { return std::ranges::all_of(apps, [](const auto& app) { return app->closed; }); }));
    EXPECT_EQ(resets(), 0u);
    one.stack.close(**first);
    two.stack.close(**second);
    expect_nothing_left();
}

TEST_P(EnginePair, WhatNobodyKnowsIsResetOnce) {
    auto elsewhere = two.stack.listen(ours(81), false, {}, two);  // another port: nobody is asked in vain
    ASSERT_TRUE(elsewhere);
    for (Port port = 40000; port < 40020; ++port) {
        App app;
        auto client = peer.stack.connect(peers_end(port), ours(80), {}, app, now);
        ASSERT_TRUE(client);
        ASSERT_TRUE(turns_until([&] { return app.closed; }, 1000));
        EXPECT_EQ(app.error, ECONNREFUSED);
    }
    EXPECT_EQ(one.counters.tcp_resets_out + two.counters.tcp_resets_out, 20u);
    EXPECT_EQ(one.counters.handed_over + two.counters.handed_over, 0u);
    two.stack.close(**elsewhere);
    expect_nothing_left();
}

TEST_P(EnginePair, AStrayAckIsShownToTheListenersEngineAndEndsThere) {
    auto listener = two.stack.listen(ours(80), false, {}, two);
    ASSERT_TRUE(listener);
    queue = [](const Bytes&) { return std::size_t{0}; };
    // The peer believes in a connection that we do not know: it was accepted, then its SYN-ACK's engine forgot it.
    App app;
    auto client = peer.stack.connect(peers_end(40000), ours(80), {}, app, now);
    ASSERT_TRUE(client);
    Node::Accepted* server = accepted_of(1);
    ASSERT_NE(server, nullptr);
    server->connection->abort();
    (void)two.take_sent();  // its reset is lost
    app.send(**client, "anybody there?");
    ASSERT_TRUE(turns_until([&] { return app.closed; }, 1000));
    EXPECT_EQ(app.error, ECONNRESET);
    EXPECT_EQ(one.counters.tcp_resets_out, 0u);
    two.stack.close(**listener);
    expect_nothing_left();
}

TEST_P(EnginePair, OwnAddressJoinsSocketsOfDifferentEngines) {
    EXPECT_FALSE(one.stack.source_for(ours(80)));
    auto listener = two.stack.listen(ours(80), false, {}, two);
    ASSERT_TRUE(listener);
    ASSERT_EQ(one.stack.source_for(ours(80)).value(), GetParam().ours);
    App app;
    auto client = one.stack.connect(ours(40000), ours(80), {}, app, now);
    ASSERT_TRUE(client);
    Node::Accepted* server = accepted_of(1);
    ASSERT_NE(server, nullptr);
    EXPECT_EQ(one.accepted.size(), 0u);
    talk(**client, app, *server->connection, *server->app, 500'000);
    EXPECT_EQ(peer.counters.rx_frames, 0u);
    EXPECT_EQ(resets(), 0u);
    two.stack.close(**listener);
    EXPECT_FALSE(one.stack.source_for(ours(80)));
    expect_nothing_left();
}

TEST_P(EnginePair, ATimeWaitOnOneEngineGivesWayToAListenerOnTheOther) {
    auto first = one.stack.listen(ours(80), false, {}, one);
    ASSERT_TRUE(first);
    App app;
    auto client = peer.stack.connect(peers_end(40000), ours(80), {}, app, now);
    ASSERT_TRUE(client);
    Node::Accepted* server = accepted_of(1);
    ASSERT_NE(server, nullptr);
    server->connection->shutdown_write();  // we close first: TIME-WAIT is ours, on engine 0
    ASSERT_TRUE(turns_until([&] { return app.end_of_stream; }));
    (*client)->shutdown_write();
    ASSERT_TRUE(turns_until([&] { return app.closed && server->app->closed; }));
    EXPECT_EQ(one.counters.tcp_time_wait, 1u);
    one.stack.close(**first);
    // The server starts again, and its program is on the other engine now.
    auto second = two.stack.listen(ours(80), false, {}, two);
    ASSERT_TRUE(second);
    for (int i = 0; i < 2000; ++i) turn();
    App again;
    client = peer.stack.connect(peers_end(40000), ours(80), {}, again, now);
    ASSERT_TRUE(client);
    ASSERT_TRUE(turns_until([&] { return again.established && two.accepted.size() == 1; }, 5000));
    EXPECT_EQ(one.counters.tcp_time_wait, 0u);
    talk(**client, again, *two.accepted[0].connection, *two.accepted[0].app, 1000);
    EXPECT_EQ(resets(), 0u);
    two.stack.close(**second);
    expect_nothing_left();
}

TEST_P(EnginePair, TheSameFlowCannotBeOnTwoEngines) {
    auto listener = peer.stack.listen(peers_end(80), false, {}, peer);
    ASSERT_TRUE(listener);
    App app;
    auto client = one.stack.connect(ours(40000), peers_end(80), {}, app, now);
    ASSERT_TRUE(client);
    App other;
    auto refused = two.stack.connect(ours(40000), peers_end(80), {}, other, now);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, EADDRINUSE);
    ASSERT_TRUE(turns_until([&] { return peer.accepted.size() == 1; }, 1000));
    talk(**client, app, *peer.accepted[0].connection, *peer.accepted[0].app, 1000);
    peer.stack.close(**listener);
    expect_nothing_left();
}

// Two flows of one 32-bit hash, each on its own engine: the packets of one are shown to the other's engine, which gives
// them back.
TEST_P(EnginePair, FlowsOfOneHashDoNotDisturbEachOther) {
    const stack::tcp::FlowHash hash(small_stack_config().secret);
    const auto listener = two.stack.listen(ours(80), false, {}, two);
    ASSERT_TRUE(listener);
    // Whatever engine 0 has under the hash of the coming connection, it does not know the connection.
    const auto shared_hash = static_cast<std::uint32_t>(hash(ours(80), peers_end(40000)));
    ASSERT_TRUE(one.peers->flow_began(shared_hash, false));
    App app;
    auto client = peer.stack.connect(peers_end(40000), ours(80), {}, app, now);
    ASSERT_TRUE(client);
    Node::Accepted* server = accepted_of(1);
    ASSERT_NE(server, nullptr);
    EXPECT_EQ(one.accepted.size(), 0u);
    EXPECT_EQ(exchange.directory().owner(shared_hash), engine::EngineSet{3});
    talk(**client, app, *server->connection, *server->app, 100'000);
    EXPECT_EQ(resets(), 0u);
    EXPECT_EQ(two.counters.dropped(Drop::kTcpConnectionLimit), 0u);
    two.stack.close(**listener);
    expect_nothing_left();
    EXPECT_EQ(exchange.directory().owner(shared_hash), engine::EngineSet{1});
    one.peers->flow_ended(shared_hash);
}

TEST_P(EnginePair, ADatagramFindsItsSocketAndTheConnectedOneFirst) {
    auto bound = two.stack.bind_udp(ours(53), false, two);
    ASSERT_TRUE(bound);
    auto sender = peer.stack.bind_udp(peers_end(5000), false, peer);
    auto friend_of_one = peer.stack.bind_udp(peers_end(5001), false, peer);
    ASSERT_TRUE(sender && friend_of_one);
    const auto say = [&](stack::udp::Socket& from, const std::string& text) {
        const Bytes bytes = bytes_of(text);
        const std::span<const std::byte> pieces[] = {bytes};
        ASSERT_TRUE(peer.stack.send_datagram(from, ours(53), pieces, static_cast<std::uint32_t>(bytes.size()), {}, now));
        turn();
        turn();
        turn();
    };
    for (int i = 0; i < 40; ++i) say(**sender, "to the bound one");
    EXPECT_EQ(two.datagrams.size(), 40u);
    EXPECT_GT(two.counters.handed_in, 5u);
    // A socket of engine 0 on the same port, connected to one peer: its datagrams are for it, wherever they fall.
    auto connected = one.stack.bind_udp(ours(53), false, one);
    ASSERT_TRUE(connected);
    const Endpoint to = peers_end(5001);
    one.stack.connect_udp(**connected, &to);
    for (int i = 0; i < 40; ++i) say(**friend_of_one, "to the connected one");
    EXPECT_EQ(one.datagrams, std::vector<std::string>(40, "to the connected one"));
    EXPECT_EQ(two.datagrams.size(), 40u);
    one.stack.close(**connected);
    for (int i = 0; i < 10; ++i) say(**friend_of_one, "to the bound one");
    EXPECT_EQ(two.datagrams, std::vector<std::string>(50, "to the bound one"));
    EXPECT_EQ(one.counters.dropped(Drop::kUdpNoSocket) + two.counters.dropped(Drop::kUdpNoSocket), 0u);
    // And between the engines, on our own address.
    auto local = one.stack.bind_udp(ours(6000), false, one);
    ASSERT_TRUE(local);
    const Bytes hello = bytes_of("from next door");
    const std::span<const std::byte> pieces[] = {hello};
    ASSERT_TRUE(one.stack.send_datagram(**local, ours(53), pieces, 14, {}, now));
    turn();
    turn();
    EXPECT_EQ(two.datagrams.back(), "from next door");
    two.stack.close(**bound);
    const auto unheard = one.stack.send_datagram(**local, ours(53), pieces, 14, {}, now);
    ASSERT_FALSE(unheard);  // nobody left: the application's kernel socket may try
    EXPECT_EQ(unheard.error().code, EHOSTUNREACH);
    one.stack.close(**local);
    expect_nothing_left();
}

TEST_P(EnginePair, AnErrorReachesTheFlowItIsAbout) {
    // Engine 1's SYN is answered by "port unreachable"; the message falls on queue 0.
    App app;
    auto client = two.stack.connect(ours(40000), peers_end(80), {}, app, now);
    ASSERT_TRUE(client);
    two.stack.flush(now);
    const std::vector<Bytes> sent = two.take_sent();
    ASSERT_EQ(sent.size(), 1u);
    const bool v4 = GetParam().ours.is_v4();
    const auto syn = std::span(sent[0]).subspan(wire::kEthernetHeaderLength);
    const std::size_t headers = wire::kEthernetHeaderLength + (v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength);
    Bytes frame(headers + wire::kIcmpHeaderLength + syn.size());
    wire::emit(wire::EthernetHeader{kOurMac, kPeerMac, v4 ? wire::EtherType::kIpv4 : wire::EtherType::kIpv6}, frame);
    const auto at_ip = std::span(frame).subspan(wire::kEthernetHeaderLength);
    const auto [ours, peers, group] = GetParam();
    if (v4) {
        wire::emit(wire::Ipv4Header{.source = peers, .destination = ours, .protocol = wire::IpProtocol::kIcmp},
                   frame.size() - headers, at_ip);
        wire::emit(wire::IcmpHeader{3, 3, 0}, syn, peers, ours, std::span(frame).subspan(headers));
    } else {
        wire::emit(wire::Ipv6Header{.source = peers, .destination = ours, .protocol = wire::IpProtocol::kIcmpv6},
                   frame.size() - headers, at_ip);
        wire::emit(wire::IcmpHeader{1, 4, 0}, syn, peers, ours, std::span(frame).subspan(headers));
    }
    one.input(frame, now);
    turn();
    turn();
    EXPECT_EQ(one.counters.dropped(Drop::kIcmpUnmatched) + two.counters.dropped(Drop::kIcmpUnmatched), 0u);
    EXPECT_EQ(two.counters.icmp_in, 1u);
    EXPECT_EQ(app.error, ECONNREFUSED);
    expect_nothing_left();
}

}  // namespace
}  // namespace culvert::test
