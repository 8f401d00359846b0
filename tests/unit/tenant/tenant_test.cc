#include "daemon/tenant/tenant.h"

#include <sys/eventfd.h>

#include <random>

#include "shm/urgent.h"
#include "tests/unit/tenant/tenant_world.h"

namespace culvert::tenant {
namespace {

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

TEST_F(TenantTest, AListenerThatWasShutRefusesAndListensAgain) {
    const std::uint32_t listener = listen(80);
    const std::uint32_t waiting = connect(40014, 80);
    std::atomic<std::uint32_t>& flags = server.segment.socket(listener).app.flags;
    flags.fetch_or(shm::kAppShutRead);
    server.segment.dirty().post(listener);
    host.turns(4);
    EXPECT_TRUE((client.status(waiting) & shm::kStatusDead) != 0) << "nobody has accepted it";
    EXPECT_EQ(server_tenant->snapshot().sockets.at(0).state, stack::tcp::State::kClosed);
    const std::uint32_t refused = connect(40015, 80);
    host.turns(4);
    EXPECT_TRUE((client.status(refused) & shm::kStatusDead) != 0);
    server.segment.socket(listener).app.options_version.fetch_add(2);  // an option meanwhile
    server.segment.dirty().post(listener);
    host.turn();

    while (server.accept(listener)) {  // as the shim does after the daemon's answer
    }
    flags.fetch_and(~shm::kAppShutRead);
    server.submit(listener, shm::Operation::kListen, endpoint(Address::v4(0, 0, 0, 0), 81), {}, 4);
    host.turn();
    EXPECT_EQ(server.answer(listener), 0);
    EXPECT_EQ(server_tenant->snapshot().sockets.at(0).state, stack::tcp::State::kListen);
    const std::uint32_t again = connect(40016, 81);
    host.turns(4);
    EXPECT_TRUE((client.status(again) & shm::kStatusReady) != 0);
    EXPECT_TRUE(server.accept(listener));

    flags.fetch_or(shm::kAppShutRead);
    server.close(listener);
    host.turns(4);
    EXPECT_EQ(host.taken[80], 0);
}

TEST_F(TenantTest, AListenerThatRestsKeepsWhatWaitsAndTakesNoMore) {
    const std::uint32_t listener = listen(80);
    const std::uint32_t early = connect(40020, 80);
    const auto ask = [&](shm::Operation operation) {
        server.submit(listener, operation, endpoint(Address::v4(0, 0, 0, 0), 80), {}, 16);
        host.turns(2);
        return server.answer(listener);
    };
    EXPECT_EQ(ask(shm::Operation::kRest), 0);
    EXPECT_NE(server.status(listener) & shm::kStatusResting, 0u);
    EXPECT_EQ(ask(shm::Operation::kRest), 0) << "twice is once";
    const std::uint32_t refused = connect(40021, 80);
    EXPECT_NE(client.status(refused) & shm::kStatusDead, 0u) << "the port is nobody's; steered, it would be the kernel's";
    EXPECT_EQ(server_tenant->snapshot().sockets[0].receive_queue, 1u);
    EXPECT_EQ(ask(shm::Operation::kListen), 0);
    EXPECT_EQ(server.status(listener) & shm::kStatusResting, 0u);
    ASSERT_TRUE(server.accept(listener)) << "the early one";
    connect(40022, 80);
    ASSERT_TRUE(server.accept(listener));
    EXPECT_EQ(client.status(early) & shm::kStatusDead, 0u);
    EXPECT_EQ(ask(shm::Operation::kRest), 0);
    server.close(listener);
    host.turns(4);
    EXPECT_EQ(server_tenant->snapshot().sockets.size(), 2u);
}

TEST_F(TenantTest, OnlyAListenerRests) {
    const std::uint32_t socket = server.socket();
    server.submit(socket, shm::Operation::kRest, {}, {}, 0);
    host.turns(2);
    EXPECT_EQ(server.answer(socket), EINVAL);
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

/// Three sets watch one listener with EPOLLEXCLUSIVE.
class ExclusiveTest : public TenantTest {
protected:
    ExclusiveTest() {
        server.segment.socket(listener).app.watch.store(shm::kWatchMany);
        server.set_flags(listener, shm::kAppExclusive);
        for (int i = 0; i < 3; ++i) {
            queues.push_back(*server_tenant->add_queue(0, UniqueFd(::eventfd(0, EFD_NONBLOCK))));
            server.segment.watched(queues.back()).set(listener);
        }
        told();
    }
    /// Which of them have news since the last call.
    std::vector<int> told() {
        std::vector<int> news;
        for (const std::uint32_t queue : queues) news.push_back(static_cast<int>(server.segment.ready(queue).collect([](std::uint32_t) {})));
        return news;
    }
    void sleep(std::initializer_list<std::size_t> who) {
        for (const std::size_t i : who) server.segment.queue(queues[i]).asleep.store(1);
    }
    std::uint32_t listener = listen(80);
    std::vector<std::uint32_t> queues;
};

TEST_F(ExclusiveTest, WhoSleepsSharesTheWork) {
    std::vector<int> events(queues.size());
    for (Port port = 42000; port < 42006; ++port) {
        sleep({0, 1, 2});
        connect(port, 80);
        const std::vector<int> news = told();
        for (std::size_t i = 0; i < queues.size(); ++i) events[i] += news[i];
    }
    EXPECT_EQ(events, (std::vector<int>{2, 2, 2}));
}

TEST_F(ExclusiveTest, WhoIsBusyIsToldUpToOneThatSleeps) {
    // As Linux does it: a busy one may never come back to wait, and would take the only word of a connection with it.
    connect(42000, 80);
    EXPECT_EQ(told(), (std::vector<int>{1, 1, 1}));
    sleep({1});
    connect(42001, 80);
    EXPECT_EQ(told(), (std::vector<int>{1, 1, 0}));
    sleep({1});
    connect(42002, 80);
    EXPECT_EQ(told(), (std::vector<int>{1, 1, 1})) << "from behind the last one that slept on";
}

TEST_F(ExclusiveTest, WhoLeavesWithTheWordPassesItOn) {
    sleep({0, 1, 2});
    connect(42000, 80);
    EXPECT_EQ(told(), (std::vector<int>{1, 0, 0}));
    const auto leave = [&] {
        server.segment.watched(queues[0]).clear(listener);
        server.set_flags(listener, shm::kAppTellAnother);
        host.turn();
    };
    leave();
    EXPECT_EQ(told(), (std::vector<int>{0, 1, 0}));
    EXPECT_EQ(server.segment.socket(listener).app.flags.load() & shm::kAppTellAnother, 0u) << "done";
    ASSERT_TRUE(server.accept(listener));
    leave();
    EXPECT_EQ(told(), (std::vector<int>{0, 0, 0})) << "nobody waits to be accepted";
}

TEST_F(ExclusiveTest, WhoEndsWithTheWordPassesItOn) {
    const std::uint32_t worker = *server_tenant->add_process(4711);
    queues.push_back(*server_tenant->add_queue(worker, UniqueFd(::eventfd(0, EFD_NONBLOCK))));
    server.segment.watched(queues[3]).set(listener);
    sleep({3});
    connect(42000, 80);
    sleep({0, 1, 2});
    (void)told();  // and has not looked yet
    server_tenant->remove_process(worker, host.now);
    host.turn();
    const std::vector<int> news = told();
    EXPECT_EQ(news[0] + news[1] + news[2], 1);
    sleep({0, 1, 2});
    server_tenant->remove_queue(queues[0]);  // its set was closed
    host.turn();
    const std::vector<int> next = told();
    EXPECT_EQ(next[1] + next[2], 1);
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
