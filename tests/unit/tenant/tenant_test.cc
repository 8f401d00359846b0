// Two tenants on one stack, talking to each other over the interface's own address, with the application's side of the
// rings played by the test.
#include "daemon/tenant/tenant.h"

#include <gtest/gtest.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <random>

#include "shm/urgent.h"
#include "tests/support/app_side.h"

namespace culvert::tenant {
namespace {

using namespace std::chrono_literals;
using test::AppSide;

class Host : public stack::NeighborResolver, public stack::PortOwner {
public:
    Host() {
        stack::Interface interface;
        interface.index = 2;
        interface.name = "test0";
        interface.mac = {{2, 0, 0, 0, 0, 1}};
        interface.mtu = 1500;
        interface.up = true;
        interface.tx = &tx;
        stack.add_interface(interface);
        stack.set_interface_state(2, true, 1500);
        stack.set_addresses(2, {{kAddress, 24}});
        stack::Route route;
        route.destination = Address::v4(10, 0, 0, 0);
        route.prefix_length = 24;
        route.interface = 2;
        stack.routes().replace({route});
    }

    AppSide attach(Tenant*& tenant, std::uint32_t id, const shm::Geometry& geometry = kGeometry) {
        UniqueFd fd;
        auto segment = shm::Segment::create(geometry, "tenant", fd);
        auto shared = shm::Segment::open(fd.get(), geometry);
        tenants.push_back(std::make_unique<Tenant>(id, "test", std::move(*segment), stack, counters, commons, kSendLimits));
        tenant = tenants.back().get();
        const std::uint32_t slot = *tenant->add_process(100 + id);
        return {std::move(*shared), slot};
    }

    /// One turn of the engine, `later` after the last.
    void turn(Duration later = 1us) {
        now += later;
        for (auto& tenant : tenants) tenant->poll(now);
        if (stack.next_deadline() <= now) stack.advance(now);
        stack.flush(now);
        for (auto& tenant : tenants) tenant->deliver_events();
    }
    void turns(int count, Duration each = 1us) {
        for (int i = 0; i < count; ++i) turn(each);
    }

    void resolve(std::uint32_t, const Address&) override {}
    void take_port(Protocol, const Address&, Port port) override { ++taken[port]; }
    void release_port(Protocol, const Address&, Port port) override { --taken[port]; }

    static constexpr SendLimits kSendLimits{.least = 8 * 1024, .standard = 64 * 1024, .most = 400 * 1024};
    static constexpr Address kAddress = Address::v4(10, 0, 0, 1);
    static constexpr shm::Geometry kGeometry{.sockets = 192, .app_sockets = 64, .tx_blocks = 512, .rx_blocks = 512,
                                             .queues = 4, .processes = 4, .accept_queues = 2};

    Counters counters;
    Rng rng{1};
    FramePool pool{4096};
    TxQueue tx{pool};
    Instant now{1h};
    std::map<Port, int> taken;
    static stack::StackConfig config() {
        stack::StackConfig config;
        config.fast_open_server = true;
        return config;
    }
    stack::Stack stack{config(), *this, *this, counters, rng};
    Commons commons;
    std::vector<std::unique_ptr<Tenant>> tenants;
};

shm::WireEndpoint endpoint(const Address& address, Port port) {
    shm::WireEndpoint wire{};
    std::memcpy(wire.address, address.bytes().data(), 16);
    wire.port = port;
    wire.family = address.is_v4() ? 4 : 6;
    return wire;
}

class TenantTest : public testing::Test {
protected:
    TenantTest() : server(host.attach(server_tenant, 1)), client(host.attach(client_tenant, 2)) {}

    std::uint32_t listen(Port port, std::uint32_t backlog = 16) {
        const std::uint32_t listener = server.socket();
        server.submit(listener, shm::Operation::kListen, endpoint(Address::v4(0, 0, 0, 0), port), {}, backlog);
        host.turn();
        EXPECT_TRUE(server.answered(listener));
        EXPECT_EQ(server.answer(listener), 0);
        return listener;
    }
    /// A listener whose connections have that receive buffer.
    std::uint32_t listen_with(Port port, std::uint32_t receive_buffer) {
        const std::uint32_t listener = server.socket();
        server.segment.socket(listener).options.receive_buffer = receive_buffer;
        server.segment.socket(listener).app.options_version.store(2);
        server.submit(listener, shm::Operation::kListen, endpoint(Address::v4(0, 0, 0, 0), port), {}, 16);
        host.turn();
        EXPECT_EQ(server.answer(listener), 0);
        return listener;
    }
    std::uint32_t connect(Port from, Port to) {
        const std::uint32_t socket = client.socket();
        client.submit(socket, shm::Operation::kConnect, endpoint(Host::kAddress, from), endpoint(Host::kAddress, to));
        host.turns(6);
        return socket;
    }
    std::uint64_t drops(Drop reason) const { return host.counters.dropped(reason); }

    Host host;
    Tenant* server_tenant = nullptr;
    Tenant* client_tenant = nullptr;
    AppSide server;
    AppSide client;
};

TEST_F(TenantTest, TwoProgramsTalkOverTheirOwnAddress) {
    const std::uint32_t listener = listen(80);
    const std::uint32_t socket = connect(40000, 80);
    EXPECT_EQ(client.status(socket), shm::kStatusReady);
    const auto accepted = server.accept(listener);
    ASSERT_TRUE(accepted);
    EXPECT_EQ(server.segment.socket(*accepted).remote.port, 40000);
    client.send(socket, "hello");
    host.turns(3);
    EXPECT_EQ(server.receive(*accepted), "hello");
    server.send(*accepted, "world");
    server.set_flags(*accepted, shm::kAppShutWrite);
    host.turns(4);
    EXPECT_EQ(client.receive(socket), "world");
    EXPECT_TRUE((client.status(socket) & shm::kStatusPeerClosed) != 0);
    client.close(socket);
    host.turns(4);
    EXPECT_TRUE((server.status(*accepted) & shm::kStatusPeerClosed) != 0);
    server.close(*accepted);
    host.turns(4);
    EXPECT_TRUE(client.segment.free_sockets().test(socket));
}

/// A second program that listens on the same port: it holds the same socket of the kernel's.
struct Successor {
    Successor(Host& host, Port port) : app(host.attach(tenant, 3)), listener(app.socket()) {
        app.submit(listener, shm::Operation::kListen, endpoint(Address::v4(0, 0, 0, 0), port), {}, 16);
        host.turn();
        EXPECT_EQ(app.answer(listener), 0);
    }
    Tenant* tenant = nullptr;
    AppSide app;
    std::uint32_t listener;
};

TEST_F(TenantTest, WhatNobodyHasAcceptedGoesToWhoeverListensOnThePort) {
    const std::uint32_t listener = listen(80);
    const std::uint32_t socket = connect(40000, 80);  // established, and waits
    std::string sent;
    for (int i = 0; i < 5000; ++i) sent.push_back(static_cast<char>('a' + i % 23));
    client.send(socket, sent);
    host.turns(4);
    client.set_flags(socket, shm::kAppShutWrite);
    host.turns(4);
    Successor successor(host, 80);
    server.close(listener);
    host.turns(4);
    const auto accepted = successor.app.accept(successor.listener);
    ASSERT_TRUE(accepted);
    EXPECT_EQ(successor.app.receive(*accepted), sent);
    EXPECT_TRUE((successor.app.status(*accepted) & shm::kStatusPeerClosed) != 0);
    successor.app.send(*accepted, "reply");
    host.turns(4);
    EXPECT_EQ(client.receive(socket), "reply");
    EXPECT_EQ(client.status(socket) & shm::kStatusDead, 0u);
    EXPECT_EQ(host.commons.connections.used, 2u);  // both ends, each once
}

TEST_F(TenantTest, ASuccessorGetsNoStreamWithAHole) {
    const std::uint32_t listener = listen(80);
    const std::uint32_t socket = connect(40000, 80);
    client.send(socket, "hello");
    host.turns(4);
    Successor successor(host, 80);
    // The application says that its block holds nothing.
    for (std::uint32_t block = 0; block < server.segment.geometry().tx_blocks + server.segment.geometry().rx_blocks; ++block)
        server.segment.block_meta()[block].length.store(0);
    server.close(listener);
    host.turns(4);
    EXPECT_NE(client.status(socket) & shm::kStatusDead, 0u) << "it is reset";
    const auto accepted = successor.app.accept(successor.listener);
    ASSERT_TRUE(accepted) << "as a connection that was reset while it waited";
    EXPECT_NE(successor.app.status(*accepted) & shm::kStatusDead, 0u);
    EXPECT_EQ(host.commons.connections.used, 0u);
}

TEST_F(TenantTest, UrgentDataIsMarkedOnItsWayThroughBothTenants) {  // [RFC9293 3.8.5 MUST-31, MUST-32, MUST-33]
    const std::uint32_t listener = listen(80);
    const std::uint32_t socket = connect(40000, 80);
    const std::uint32_t accepted = *server.accept(listener);
    const shm::SocketRecord& record = server.segment.socket(accepted);
    const auto marked = [&] { return (server.status(accepted) & shm::kStatusUrgent) != 0; };
    client.send(socket, "ab!", true);
    client.send(socket, "cd");  // taken in the same look; it is not urgent
    host.turns(3);
    ASSERT_TRUE(marked());
    EXPECT_EQ(shm::urgent_ahead(record.urgent.load(), 0), 2);
    EXPECT_EQ(record.urgent.load() & 0x3ff, shm::kUrgentKnown | shm::kUrgentArrived | '!');
    EXPECT_EQ(server.receive(accepted), "ab!cd") << "the octet has its place in the stream";
    server.segment.dirty().post(accepted);
    host.turns(2);
    EXPECT_FALSE(marked()) << "the reader has passed it";
    client.send(socket, std::string(5000, 'x') + "?", true);
    host.turns(4);
    ASSERT_TRUE(marked());
    EXPECT_EQ(shm::urgent_ahead(record.urgent.load(), 5), 5000);
    EXPECT_EQ(shm::urgent_octet(record.urgent.load()), '?');
    client.send(socket, "$", true);  // further on: in the place of the last
    host.turns(3);
    EXPECT_EQ(shm::urgent_ahead(record.urgent.load(), 5), 5001);
    EXPECT_EQ(shm::urgent_octet(record.urgent.load()), '$');
}

TEST_F(TenantTest, RouteNamesTheSourceOnlyWhereWeListen) {
    const std::uint32_t socket = client.socket();
    client.submit(socket, shm::Operation::kRoute, {}, endpoint(Host::kAddress, 80));
    host.turn();
    EXPECT_NE(client.answer(socket), 0);  // nobody of ours listens there: the kernel's
    listen(80);
    client.submit(socket, shm::Operation::kRoute, {}, endpoint(Host::kAddress, 80));
    host.turn();
    EXPECT_EQ(client.answer(socket), 0);
    EXPECT_EQ(client.segment.socket(socket).local.address[15], 1);
    client.submit(socket, shm::Operation::kRoute, {}, endpoint(Address::v4(10, 0, 0, 9), 80));
    host.turn();
    EXPECT_EQ(client.answer(socket), 0);
    client.submit(socket, shm::Operation::kRoute, {}, endpoint(Address::v4(192, 0, 2, 1), 80));
    host.turn();
    EXPECT_NE(client.answer(socket), 0);
}

TEST_F(TenantTest, FastOpenAcceptsWithTheSyn) {  // [RFC7413 3]
    const std::uint32_t listener = server.socket();
    server.segment.socket(listener).options.fast_open_queue = 8;
    server.submit(listener, shm::Operation::kListen, endpoint(Address::v4(0, 0, 0, 0), 80), {}, 16);
    host.turn();
    const auto open = [&](Port from) {
        const std::uint32_t socket = client.socket();
        client.segment.socket(socket).options.flags |= shm::kOptionFastOpen;
        client.submit(socket, shm::Operation::kConnect, endpoint(Host::kAddress, from), endpoint(Host::kAddress, 80));
        return socket;
    };
    const std::uint32_t asks = open(40000);
    host.turns(6);
    EXPECT_EQ(client.status(asks), shm::kStatusReady);
    ASSERT_TRUE(server.accept(listener));
    EXPECT_EQ(host.counters.tcp_fast_open_cookies, 1u);

    const std::uint32_t fast = open(40001);
    host.turns(2);
    EXPECT_EQ(client.status(fast), shm::kStatusReady) << "may write, though no SYN has left";
    EXPECT_FALSE(server.accept(listener));
    client.send(fast, "early");
    host.turns(4);
    const auto accepted = server.accept(listener);
    ASSERT_TRUE(accepted);
    EXPECT_EQ(server.receive(*accepted), "early");
    EXPECT_EQ(host.counters.tcp_fast_open_passive, 1u);
    EXPECT_EQ(host.counters.tcp_fast_open_active, 1u);
    server.submit(*accepted, shm::Operation::kRefreshInfo, {}, {});
    client.submit(fast, shm::Operation::kRefreshInfo, {}, {});
    host.turn();
    EXPECT_NE(server.segment.socket(*accepted).info.options & 32u, 0u);  // TCPI_OPT_SYN_DATA
    EXPECT_NE(client.segment.socket(fast).info.options & 32u, 0u);
}

TEST_F(TenantTest, ListenerOptionsMayChangeLater) {
    const std::uint32_t listener = listen(80);
    shm::SocketRecord& record = server.segment.socket(listener);
    record.app.options_version += 1;
    record.options.defer_accept_s = 5;
    record.app.options_version += 1;
    server.submit(listener, shm::Operation::kRefreshInfo, {}, {});  // makes the daemon look
    host.turn();
    const std::uint32_t socket = connect(40000, 80);
    EXPECT_EQ(client.status(socket), shm::kStatusReady);
    EXPECT_FALSE(server.accept(listener)) << "nothing has been said yet";
    client.send(socket, "now");
    host.turns(4);
    const auto accepted = server.accept(listener);
    ASSERT_TRUE(accepted);
    EXPECT_EQ(server.receive(*accepted), "now");
}

TEST_F(TenantTest, BulkArrivesInOrderThroughASmallPool) {
    const std::uint32_t listener = listen(80);
    const std::uint32_t socket = connect(40001, 80);
    const std::uint32_t accepted = *server.accept(listener);
    std::string sent(2'000'000, ' ');
    std::minstd_rand random(3);
    for (char& c : sent) c = static_cast<char>(random());
    std::string received;
    std::size_t at = 0;
    for (int turn = 0; turn < 20000 && received.size() < sent.size(); ++turn) {
        if (at < sent.size()) at += client.send(socket, std::string_view(sent).substr(at, 60000));
        host.turn(50us);
        received += server.receive(accepted);
        server.segment.dirty().post(accepted);
    }
    EXPECT_TRUE(received == sent) << received.size() << " of " << sent.size();
}

TEST_F(TenantTest, KilledClientIsClosedAndEverythingComesBack) {
    const std::uint32_t listener = listen(80);
    const std::uint32_t socket = connect(40002, 80);
    const std::uint32_t accepted = *server.accept(listener);
    server.send(accepted, std::string(5000, 'x'));
    host.turns(3);
    EXPECT_EQ(client.segment.socket(socket).daemon.rx_delivered.load(), 5000u);
    client_tenant->remove_process(0, host.now);  // unread data: the connection is reset, as by the kernel
    host.turns(4);
    EXPECT_TRUE((server.status(accepted) & shm::kStatusDead) != 0);
    EXPECT_EQ(server.segment.socket(accepted).daemon.error.load(), ECONNRESET);
    EXPECT_TRUE(client_tenant->finished());
    EXPECT_EQ(client_tenant->snapshot().sockets.size(), 0u);
}

TEST_F(TenantTest, AConnectionTakenButNotMarkedByADeadWorkerIsClosedASecondLater) {
    const std::uint32_t listener = listen(80);
    const std::uint32_t worker = *server_tenant->add_process(777);
    connect(40003, 80);
    shm::AcceptQueueConsumer queue(server.segment.accept_queue(server.segment.socket(listener).accept_queue.load()));
    ASSERT_TRUE(queue.take());  // ... and killed before hold()
    server_tenant->remove_process(worker, host.now);
    EXPECT_EQ(server_tenant->snapshot().sockets.size(), 2u);
    EXPECT_LE(server_tenant->next_check(), host.now + 1s);
    host.turn(1100ms);
    EXPECT_EQ(server_tenant->snapshot().sockets.size(), 1u);
}

TEST_F(TenantTest, WaitingConnectionsAreResetWithTheirListener) {
    const std::uint32_t listener = listen(80);
    const std::uint32_t socket = connect(40004, 80);
    server.close(listener);
    host.turns(4);
    EXPECT_TRUE((client.status(socket) & shm::kStatusDead) != 0);
    EXPECT_EQ(server_tenant->snapshot().sockets.size(), 0u);
}

TEST_F(TenantTest, TheAcceptQueueHoldsTheBacklogAndNoMore) {
    const std::uint32_t listener = listen(80, 2);
    for (Port port = 41000; port < 41005; ++port) connect(port, 80);
    EXPECT_EQ(server_tenant->snapshot().sockets[0].receive_queue, 2u);
    EXPECT_GT(drops(Drop::kTcpAcceptQueueFull), 0u);
    ASSERT_TRUE(server.accept(listener));
    ASSERT_TRUE(server.accept(listener));
    host.turns(40, 100ms);  // the others' handshakes are completed when there is room
    EXPECT_EQ(server_tenant->snapshot().sockets[0].receive_queue, 2u);
}

TEST_F(TenantTest, EventsGoToTheQueueThatWatches) {
    const std::uint32_t listener = listen(80);
    const int fd = ::eventfd(0, EFD_NONBLOCK);
    const std::uint32_t queue = *server_tenant->add_queue(0, UniqueFd(::dup(fd)));
    server.segment.watched(queue).set(listener);
    server.segment.socket(listener).app.watch.store(queue + 1);
    server.segment.queue(queue).asleep.store(1);
    connect(40005, 80);
    std::vector<std::uint32_t> ready;
    server.segment.ready(queue).collect([&](std::uint32_t index) { ready.push_back(index); });
    EXPECT_EQ(ready, (std::vector<std::uint32_t>{listener}));
    std::uint64_t count = 0;
    EXPECT_EQ(::read(fd, &count, sizeof count), 8);
    EXPECT_EQ(server.segment.queue(queue).asleep.load(), 0u);
    ::close(fd);
}

TEST_F(TenantTest, ExclusiveWatchersShareTheWork) {
    const std::uint32_t listener = listen(80);
    std::vector<std::uint32_t> queues;
    for (int i = 0; i < 3; ++i) queues.push_back(*server_tenant->add_queue(0, UniqueFd(::eventfd(0, EFD_NONBLOCK))));
    for (const std::uint32_t queue : queues) server.segment.watched(queue).set(listener);
    server.segment.socket(listener).app.watch.store(shm::kWatchMany);
    server.set_flags(listener, shm::kAppExclusive);
    std::vector<int> events(queues.size());
    for (Port port = 42000; port < 42006; ++port) {
        connect(port, 80);
        for (std::size_t i = 0; i < queues.size(); ++i)
            events[i] += static_cast<int>(server.segment.ready(queues[i]).collect([](std::uint32_t) {}));
    }
    EXPECT_EQ(events, (std::vector<int>{2, 2, 2}));
}

TEST_F(TenantTest, NonsenseIsRefusedAndCounted) {
    const std::uint32_t socket = client.socket();
    client.submit(socket, static_cast<shm::Operation>(999), {}, {});
    host.turn();
    EXPECT_EQ(client.answer(socket), EINVAL);
    EXPECT_EQ(drops(Drop::kTenantBadRequest), 1u);
    // in the name of another host
    client.submit(socket, shm::Operation::kConnect, endpoint(Address::v4(10, 0, 0, 99), 1), endpoint(Host::kAddress, 80));
    host.turn();
    EXPECT_EQ(client.answer(socket), EADDRNOTAVAIL);
    EXPECT_EQ(drops(Drop::kTenantBadAddress), 1u);
    // reading what never came
    listen(80);
    const std::uint32_t connection = connect(40006, 80);
    client.segment.socket(connection).app.rx_consumed.store(1'000'000);
    client.segment.dirty().post(connection);
    host.turn();
    EXPECT_EQ(drops(Drop::kTenantBadRequest), 2u);
}

TEST_F(TenantTest, AProcessCannotSayItselfWhoIsAlive) {
    const std::uint32_t second = *client_tenant->add_process(555);
    listen(80);
    const std::uint32_t socket = connect(40010, 80);
    client_tenant->remove_process(second, host.now);
    // The last process calls the dead one alive, with a hold on everything, and then ends; or itself dead.
    client.segment.process(second).live.store(1);
    client.segment.holders(second).set(socket);
    client.segment.process(0).live.store(0);
    client_tenant->remove_process(0, host.now);
    EXPECT_FALSE(client_tenant->has_processes());
    EXPECT_EQ(client_tenant->snapshot().sockets.size(), 0u);
    EXPECT_FALSE(client_tenant->finished());  // its connection is still being closed
    host.turns(40, 100ms);
    server.close(*server.accept(0));
    host.turns(40, 100ms);
    EXPECT_TRUE(client_tenant->finished());
}

TEST_F(TenantTest, ShutReadIsNewsForWatchers) {
    listen(80);
    const std::uint32_t socket = connect(40011, 80);
    const std::uint32_t queue = *client_tenant->add_queue(0, UniqueFd(::eventfd(0, EFD_NONBLOCK)));
    client.segment.watched(queue).set(socket);
    client.segment.socket(socket).app.watch.store(queue + 1);
    const auto events = [&] { return client.segment.ready(queue).collect([](std::uint32_t) {}); };
    events();
    client.set_flags(socket, shm::kAppShutRead);
    host.turn();
    EXPECT_EQ(events(), 1u);
    client.segment.dirty().post(socket);
    host.turn();
    EXPECT_EQ(events(), 0u) << "said once";
}

TEST_F(TenantTest, AWaitingSenderIsNotToldWhileThereIsNoBlock) {
    listen(80);
    const std::uint32_t socket = connect(40012, 80);
    shm::TaggedStack pool(client.segment.header().tx_free, client.segment.block_meta(), Host::kGeometry.tx_blocks);
    std::vector<std::uint32_t> held;
    for (std::uint32_t block; (block = pool.pop()) != shm::kNoIndex;) held.push_back(block);
    client.set_flags(socket, shm::kAppWantWrite);
    host.turns(3);
    EXPECT_TRUE((client.segment.socket(socket).app.flags.load() & shm::kAppWantWrite) != 0);
    EXPECT_EQ(client.segment.header().tx_starved.load(), 1u);
    for (const std::uint32_t block : held) pool.push(block);
    client.segment.dirty().post(socket);
    host.turn();
    EXPECT_TRUE((client.segment.socket(socket).app.flags.load() & shm::kAppWantWrite) == 0);
}

TEST_F(TenantTest, AcceptedConnectionsInheritTheSendBuffer) {
    const std::uint32_t listener = server.socket();
    server.segment.socket(listener).options.send_buffer = 65536;
    server.segment.socket(listener).app.options_version.store(2);
    server.submit(listener, shm::Operation::kListen, endpoint(Address::v4(0, 0, 0, 0), 80), {}, 4);
    host.turn();
    connect(40013, 80);
    EXPECT_EQ(server.segment.socket(*server.accept(listener)).daemon.send_limit.load(), 65536u);
}

TEST_F(TenantTest, TheSendBufferFollowsTheCongestionWindow) {
    const std::uint32_t listener = listen(80);
    const std::uint32_t tuned = connect(40014, 80);
    const std::uint32_t reader = *server.accept(listener);
    const std::uint32_t fixed = client.socket();
    client.segment.socket(fixed).options.send_buffer = 20000;
    client.segment.socket(fixed).app.options_version.store(2);
    client.submit(fixed, shm::Operation::kConnect, endpoint(Host::kAddress, 40015), endpoint(Host::kAddress, 80));
    host.turns(6);
    const std::uint32_t fixed_reader = *server.accept(listener);
    const auto limit = [&](std::uint32_t socket) { return client.segment.socket(socket).daemon.send_limit.load(); };
    EXPECT_EQ(limit(tuned), 64u * 1024);
    EXPECT_EQ(limit(fixed), 20000u);
    const std::string chunk(16000, 'x');
    for (int turn = 0; turn < 400; ++turn) {
        client.send(tuned, chunk);
        client.send(fixed, chunk);
        host.turn(50us);
        for (const std::uint32_t socket : {reader, fixed_reader}) {
            server.receive(socket);
            server.segment.dirty().post(socket);
        }
    }
    EXPECT_GT(limit(tuned), 64u * 1024);
    EXPECT_LE(limit(tuned), 400u * 1024);
    EXPECT_EQ(limit(fixed), 20000u);
}

TEST_F(TenantTest, ScarceBlocksShrinkSendBuffersUntilTheyAreBack) {
    const std::uint32_t listener = listen_with(80, 20000);
    const std::uint32_t greedy = connect(40014, 80);
    const std::uint32_t slow_reader = *server.accept(listener);
    const std::uint32_t modest = connect(40015, 80);
    const std::uint32_t reader = *server.accept(listener);
    const auto limit = [&](std::uint32_t socket) { return client.segment.socket(socket).daemon.send_limit.load(); };
    client.send(greedy, std::string(450 * shm::kBlockSize, 'x'));  // against its limit: it is its own pool
    host.turns(20, 1ms);
    client.send(modest, "old work goes on");
    host.turns(6);
    EXPECT_EQ(server.receive(reader), "old work goes on");
    EXPECT_EQ(limit(modest), 8u * 1024);
    EXPECT_GT(host.counters.tcp_memory_pressure, 0u);
    std::size_t read = 0;
    for (int turn = 0; turn < 1000 && read < 450 * shm::kBlockSize; ++turn) {
        read += server.receive(slow_reader).size();
        server.segment.dirty().post(slow_reader);
        host.turn(100us);
    }
    EXPECT_EQ(read, 450 * shm::kBlockSize);
    client.send(modest, "more");
    host.turns(6, 20ms);  // until its ACK
    EXPECT_GE(limit(modest), 64u * 1024);
}

TEST_F(TenantTest, NotsentLowatBoundsWhatWaitsToBeSent) {
    const std::uint32_t listener = listen_with(80, 20000);
    const std::uint32_t socket = connect(40014, 80);
    const std::uint32_t reader = *server.accept(listener);
    shm::SocketRecord& record = client.segment.socket(socket);
    record.options.notsent_lowat = 10000;
    record.app.options_version.store(2);
    client.segment.dirty().post(socket);
    host.turns(2);
    const auto writable = [&] {
        const std::uint64_t queued = record.app.tx_queued.load() - record.daemon.tx_released.load();
        const std::uint32_t limit = record.daemon.send_limit.load();
        return shm::worth_writing(queued < limit ? limit - queued : 0, limit, 10000);
    };
    EXPECT_EQ(record.daemon.send_limit.load(), 10000u);  // nothing is sent
    EXPECT_TRUE(writable());
    client.send(socket, std::string(20000, 'a'));  // what the peer's window takes: nothing waits, and so there is room again
    host.turns(4, 50ms);
    EXPECT_TRUE(writable());
    client.send(socket, std::string(6000, 'b'));   // waits behind the closed window: less than the mark, more than half
    client.set_flags(socket, shm::kAppWantWrite);
    host.turns(4);
    EXPECT_FALSE(writable());
    EXPECT_TRUE((record.app.flags.load() & shm::kAppWantWrite) != 0);
    std::string received;
    for (int turn = 0; turn < 50 && received.size() < 26000; ++turn) {
        received += server.receive(reader);
        server.segment.dirty().post(reader);
        host.turn(10ms);
    }
    EXPECT_EQ(received.size(), 26000u);
    EXPECT_TRUE(writable());
    EXPECT_TRUE((record.app.flags.load() & shm::kAppWantWrite) == 0);  // and the sender was told
    record.options.notsent_lowat = 0;
    record.app.options_version.store(4);
    client.segment.dirty().post(socket);
    host.turns(2);
    EXPECT_GE(record.daemon.send_limit.load(), 64u * 1024);
}

/// A peer that sends byte after byte to a program that does not read: each turn costs a block of 2112 bytes.
TEST_F(TenantTest, SingleBytesDoNotUseUpTheBlocksOfOthers) {
    const std::uint32_t listener = listen(80);
    const std::uint32_t drip = connect(40014, 80);
    const std::uint32_t unread = *server.accept(listener);
    const std::uint32_t other = connect(40015, 80);
    const std::uint32_t reader = *server.accept(listener);
    client.segment.socket(drip).options.flags = shm::kOptionNoDelay;
    client.segment.socket(drip).app.options_version.store(2);
    std::size_t sent = 0;
    for (int i = 0; i < 480; ++i) {
        sent += client.send(drip, "x");
        host.turn();
    }
    EXPECT_GT(drops(Drop::kTenantStreamShare), 0u);
    EXPECT_EQ(drops(Drop::kTenantNoBlock), 0u);
    client.send(other, "goes on");
    host.turns(4);
    EXPECT_EQ(server.receive(reader), "goes on");
    std::string received;
    for (int turn = 0; turn < 200 && received.size() < sent; ++turn) {
        received += server.receive(unread);
        server.segment.dirty().post(unread);
        host.turn(100ms);
    }
    EXPECT_EQ(received.size(), sent);  // and it recovers
}

TEST_F(TenantTest, NoTenantTakesAllConnectionsOfTheStack) {
    host.commons.connections.limit = 16;
    const auto open = [](AppSide& app, Port from) {
        const std::uint32_t socket = app.socket();
        app.submit(socket, shm::Operation::kConnect, endpoint(Host::kAddress, from), endpoint(Address::v4(10, 0, 0, 9), 80));
        return socket;
    };
    std::vector<std::uint32_t> greedy;
    for (Port port = 42000; port < 42014; ++port) {
        greedy.push_back(open(client, port));
        host.turn();
        EXPECT_EQ(client.answer(greedy.back()), 0) << port;
    }
    const std::uint32_t refused = open(client, 42100);  // the last eighth is for others
    host.turn();
    EXPECT_EQ(client.answer(refused), ENOBUFS);
    EXPECT_EQ(drops(Drop::kTenantConnectionShare), 1u);
    for (Port port = 42200; port < 42202; ++port) {
        const std::uint32_t socket = open(server, port);
        host.turn();
        EXPECT_EQ(server.answer(socket), 0) << port;
    }
    const std::uint32_t full = open(server, 42300);
    host.turn();
    EXPECT_EQ(server.answer(full), ENOBUFS);
    EXPECT_EQ(drops(Drop::kTenantConnectionShare), 2u);
    for (int i = 0; i < 3; ++i) client.close(greedy[static_cast<std::size_t>(i)]);
    host.turns(3);
    EXPECT_EQ(host.commons.connections.used, 13u);
    const std::uint32_t again = open(client, 42400);
    host.turn();
    EXPECT_EQ(client.answer(again), 0);
    host.tenants.clear();
    EXPECT_EQ(host.commons.connections.used, 0u);
    EXPECT_EQ(host.commons.tenants, 0u);
}

TEST_F(TenantTest, ListenersAndDatagramSocketsAreSharedOutToo) {
    host.commons.listeners.limit = 1;
    host.commons.datagram_sockets.limit = 1;
    const std::uint32_t listener = listen(80);
    const auto submit = [&](AppSide& app, shm::Operation what, Port port) {
        const std::uint32_t socket = app.socket();
        app.submit(socket, what, endpoint(Address::v4(0, 0, 0, 0), port), {}, 4);
        host.turn();
        return std::pair(socket, app.answer(socket));
    };
    EXPECT_EQ(submit(client, shm::Operation::kListen, 81).second, ENOBUFS);
    EXPECT_EQ(drops(Drop::kTenantListenerShare), 1u);
    const auto [datagram, bound] = submit(client, shm::Operation::kBindDatagram, 53);
    EXPECT_EQ(bound, 0);
    EXPECT_EQ(submit(server, shm::Operation::kBindDatagram, 54).second, ENOBUFS);
    EXPECT_EQ(drops(Drop::kTenantDatagramShare), 1u);
    const std::uint32_t socket = connect(40016, 80);  // what there is works
    EXPECT_EQ(client.status(socket), shm::kStatusReady);
    server.close(listener);
    client.close(datagram);
    host.turns(2);
    EXPECT_EQ(submit(client, shm::Operation::kListen, 82).second, 0);
    EXPECT_EQ(submit(server, shm::Operation::kBindDatagram, 55).second, 0);
}

/// open, send, close, again: what is left behind to a peer that takes nothing is bounded.
TEST_F(TenantTest, OrphansAreBounded) {
    shm::Geometry small = Host::kGeometry, large = Host::kGeometry;
    small.sockets = 128;
    large.sockets = 512;
    Tenant* small_tenant = nullptr;
    Tenant* large_tenant = nullptr;
    AppSide opener = host.attach(small_tenant, 3, small);
    AppSide keeper = host.attach(large_tenant, 4, large);
    const std::uint32_t listener = keeper.socket();
    keeper.segment.socket(listener).options.receive_buffer = 4096;
    keeper.segment.socket(listener).app.options_version.store(2);
    keeper.submit(listener, shm::Operation::kListen, endpoint(Address::v4(0, 0, 0, 0), 80), {}, 16);
    host.turn();
    std::vector<std::uint32_t> accepted;
    for (Port port = 43000; port < 43130; ++port) {
        const std::uint32_t socket = opener.socket();
        ASSERT_NE(socket, shm::kNoIndex) << port;
        opener.submit(socket, shm::Operation::kConnect, endpoint(Host::kAddress, port), endpoint(Host::kAddress, 80));
        host.turns(6);
        const auto taken = keeper.accept(listener);
        ASSERT_TRUE(taken) << port;
        accepted.push_back(*taken);
        EXPECT_EQ(opener.send(socket, std::string(6000, 'o')), 6000u) << port;
        host.turns(3);
        opener.close(socket);
        host.turns(3);
    }
    EXPECT_EQ(drops(Drop::kTenantOrphans), 2u);
    EXPECT_TRUE((keeper.status(accepted.back()) & shm::kStatusDead) != 0);  // new work is refused
    std::string received;
    for (int turn = 0; turn < 100 && received.size() < 6000; ++turn) {  // old work goes on
        received += keeper.receive(accepted.front());
        keeper.segment.dirty().post(accepted.front());
        host.turn(50ms);
    }
    EXPECT_EQ(received, std::string(6000, 'o'));
}

/// O_NONBLOCK belongs to the open file, which the application shares: it fills the counter and waits for the engine to write.
TEST_F(TenantTest, AFilledEventQueueDoesNotStopTheEngine) {
    if (!EventSignal().guarded()) GTEST_SKIP() << "no asynchronous I/O in this kernel";
    const std::uint32_t listener = listen(80);
    const int fd = ::eventfd(0, EFD_NONBLOCK);
    const std::uint32_t queue = *server_tenant->add_queue(0, UniqueFd(::dup(fd)));
    ASSERT_EQ(::fcntl(fd, F_SETFL, 0), 0);
    const std::uint64_t full = UINT64_MAX - 1;
    ASSERT_EQ(::write(fd, &full, sizeof full), 8);
    server.segment.watched(queue).set(listener);
    server.segment.socket(listener).app.watch.store(queue + 1);
    for (Port port = 40020; port < 40024; ++port) {
        server.segment.queue(queue).asleep.store(1);
        connect(port, 80);  // would never return
        EXPECT_EQ(server.segment.queue(queue).asleep.load(), 0u);
    }
    std::uint64_t count = 0;
    EXPECT_EQ(::read(fd, &count, sizeof count), 8);
    EXPECT_GE(count, full);
    ::close(fd);
}

TEST(EventSignal, EverySignalCounts) {
    EventSignal signal;
    const UniqueFd event(::eventfd(0, EFD_NONBLOCK));
    for (int i = 0; i < 500; ++i) signal.signal(event.get());  // more than completions are kept
    std::uint64_t count = 0;
    EXPECT_EQ(::read(event.get(), &count, sizeof count), 8);
    EXPECT_EQ(count, 500u);
}

TEST_F(TenantTest, RandomBytesOverTheWholeSegmentHarmNobodyElse) {
    const std::uint32_t listener = listen(80);
    const std::uint32_t socket = connect(40007, 80);
    const std::uint32_t accepted = *server.accept(listener);
    client.segment.socket(socket).options.flags = shm::kOptionNoDelay;  // no Nagle: one byte a round
    client.segment.socket(socket).app.options_version.store(2);
    Tenant* hostile_tenant = nullptr;
    AppSide hostile = host.attach(hostile_tenant, 3);
    const std::uint32_t own = hostile.socket();
    hostile.submit(own, shm::Operation::kListen, endpoint(Address::v4(0, 0, 0, 0), 81), {}, 4);
    host.turn();
    std::minstd_rand random(11);
    auto* bytes = reinterpret_cast<std::uint8_t*>(&hostile.segment.header());
    const std::uint64_t size = hostile.segment.layout().blocks;  // everything but the payload
    for (int round = 0; round < 300; ++round) {
        for (int i = 0; i < 2000; ++i) bytes[(std::uint64_t{random()} * 7919 + random()) % size] = static_cast<std::uint8_t>(random());
        host.turns(2, 10us);
        client.send(socket, "x");
        host.turns(3, 10us);
        ASSERT_EQ(server.receive(accepted), "x") << "round " << round;
    }
    hostile_tenant->remove_process(0, host.now);
    host.turns(5, 10s);
    EXPECT_EQ(hostile_tenant->snapshot().sockets.size(), 0u);
}

}  // namespace
}  // namespace culvert::tenant
