// Buffers and budgets: how much a socket may keep, what a scarce pool does to its tenant, and that no tenant takes the stack's
// tables from the others.
#include "tests/unit/tenant/tenant_world.h"

namespace culvert::tenant {
namespace {

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

}  // namespace
}  // namespace culvert::tenant
