// Connections that leave their program: the server's goes through a pair of kernel sockets, of which the test is the holder.
#include "daemon/tenant/stand_in.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <functional>
#include <random>

#include "shm/urgent.h"
#include "tests/unit/tenant/tenant_world.h"

namespace culvert::tenant {
namespace {

struct Pair {
    UniqueFd ours, theirs;
};

/// As the daemon makes them (control/stand_in_maker.h), on the loopback of this host.
Pair make_pair() {
    const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof name;
    EXPECT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&name), length), 0);
    EXPECT_EQ(::listen(listener.get(), 1), 0);
    EXPECT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&name), &length), 0);
    Pair pair;
    pair.ours.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::connect(pair.ours.get(), reinterpret_cast<sockaddr*>(&name), length), 0);
    pair.theirs.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const linger reset{1, 0};
    EXPECT_EQ(::setsockopt(pair.ours.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset), 0);
    const int on = 1;
    EXPECT_EQ(::setsockopt(pair.ours.get(), SOL_SOCKET, SO_OOBINLINE, &on, sizeof on), 0);
    return pair;
}

std::uint64_t identity(int fd) {
    std::uint64_t cookie = 0;
    socklen_t length = sizeof cookie;
    EXPECT_EQ(::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length), 0);
    return cookie;
}

std::string noise(std::size_t size) {
    std::string bytes(size, ' ');
    std::minstd_rand random(7);
    for (char& c : bytes) c = static_cast<char>(random());
    return bytes;
}

class StandInTest : public TenantTest {
protected:
    StandInTest() : listener(listen(80)) {}
    ~StandInTest() override {
        stand_ins->end_all();
        host.tenants.clear();  // before the stand-ins that they hold sockets of, as in the engine
    }

    /// A connection of the client's, and the server's end of it.
    void open(Port from) {
        socket = connect(from, 80);
        const auto taken = server.accept(listener);
        ASSERT_TRUE(taken);
        accepted = *taken;
    }
    std::uint32_t generation(std::uint32_t record) { return server.segment.socket(record).daemon.generation.load(); }
    Result<UniqueFd> leave(std::uint32_t record) {
        Pair pair = make_pair();
        return server_tenant->leave(record, generation(record), *stand_ins, std::move(pair.ours), std::move(pair.theirs), host.now);
    }
    void turn(Duration later = 50us) {
        stand_ins->turn();
        host.turn(later);
    }
    /// What the holder reads now.
    std::string read(int fd) {
        char bytes[65536];
        const ssize_t got = ::recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
        return got > 0 ? std::string(bytes, static_cast<std::size_t>(got)) : std::string();
    }
    /// Turns until the condition holds. The kernel's half has timers of its own (a full window is looked at again after 200 ms).
    bool until(const std::function<bool()>& condition) {
        const auto deadline = std::chrono::steady_clock::now() + 30s;
        while (!condition()) {
            if (std::chrono::steady_clock::now() > deadline) return false;
            turn();
        }
        return true;
    }

    std::unique_ptr<StandIns> stand_ins = std::make_unique<StandIns>(host.counters, host.commons);
    std::uint32_t listener;
    std::uint32_t socket = 0;
    std::uint32_t accepted = 0;
};

TEST_F(StandInTest, CarriesBytesBothWaysAndBothEnds) {
    open(40000);
    client.send(socket, "unread ");
    host.turns(3);
    server.send(accepted, "queued ");  // not yet looked at by the daemon
    auto theirs = leave(accepted);
    ASSERT_TRUE(theirs) << theirs.error().message();
    EXPECT_NE(server.status(accepted) & shm::kStatusMoved, 0u);
    const std::string there = noise(1'500'000);
    const std::string back = noise(1'000'000);
    std::string heard, answered;
    std::size_t sent = 0, written = 0;
    const auto done = [&] { return heard.size() == there.size() + 7 && answered.size() == back.size() + 7; };
    EXPECT_TRUE(until([&] {
        if (sent < there.size()) sent += client.send(socket, std::string_view(there).substr(sent, 60000));
        if (written < back.size()) {
            const ssize_t now = ::send(theirs->get(), back.data() + written, back.size() - written, MSG_DONTWAIT);
            if (now > 0) written += static_cast<std::size_t>(now);
        }
        heard += read(theirs->get());
        answered += client.receive(socket);
        client.segment.dirty().post(socket);
        return done();
    })) << heard.size() << ' ' << answered.size() << ' ' << sent;
    EXPECT_TRUE(heard == "unread " + there);
    EXPECT_TRUE(answered == "queued " + back);
    EXPECT_EQ(host.counters.stand_ins, 1u);

    client.set_flags(socket, shm::kAppShutWrite);
    char byte;
    EXPECT_TRUE(until([&] { return ::recv(theirs->get(), &byte, 1, MSG_DONTWAIT) == 0; })) << "the peer's FIN";
    ::shutdown(theirs->get(), SHUT_WR);
    EXPECT_TRUE(until([&] { return (client.status(socket) & shm::kStatusPeerClosed) != 0; }));
    EXPECT_TRUE(until([&] { return stand_ins->size() == 0; }));
    server.close(accepted);
    client.close(socket);
    host.turns(6);
    EXPECT_TRUE(server.segment.free_sockets().test(listener) == false);
    EXPECT_EQ(server_tenant->snapshot().sockets.size(), 1u) << "the listener";
}

TEST_F(StandInTest, AReaderInTheMiddleOfABlockLeavesTheRest) {
    open(40001);
    client.send(socket, "already read, not yet read");
    host.turns(3);
    // The shim's way of reading half a block: it says so in the block, and counts what it has read.
    shm::SocketRecord& record = server.segment.socket(accepted);
    const std::uint32_t block = shm::take_all(record.daemon.rx_list) - 1;
    record.app.stash_head.store(block + 1);
    server.segment.block_meta()[block].offset.store(14);
    server.segment.block_meta()[block].length.store(12);
    record.app.rx_consumed.store(14);
    auto theirs = leave(accepted);
    ASSERT_TRUE(theirs);
    std::string heard;
    EXPECT_TRUE(until([&] { return (heard += read(theirs->get())).size() >= 12; }));
    EXPECT_EQ(heard, "not yet read");
}

TEST_F(StandInTest, WhatTheApplicationSaysOfItsBlocksIsNotBelieved) {
    open(40002);
    client.send(socket, std::string(100, 'x'));
    host.turns(3);
    shm::SocketRecord& record = server.segment.socket(accepted);
    const std::uint32_t block = record.daemon.rx_list.load() - 1;
    server.segment.block_meta()[block].length.store(2000);  // more than ever came
    auto theirs = leave(accepted);
    ASSERT_FALSE(theirs);
    EXPECT_EQ(theirs.error().code, EBUSY);
    server.segment.block_meta()[block].length.store(50);  // and less
    server.segment.block_meta()[block].offset.store(UINT32_MAX);
    EXPECT_FALSE(leave(accepted));
    EXPECT_EQ(stand_ins->size(), 0u);
    EXPECT_EQ(drops(Drop::kTenantBadRequest), 2u);
    EXPECT_EQ(server.status(accepted), shm::kStatusReady) << "it is still the program's";
}

TEST_F(StandInTest, OnlyConnectionsOfTheTenantLeave) {
    open(40003);
    EXPECT_EQ(server_tenant->leaving(9999, 0).error().code, EBADF);
    EXPECT_EQ(server_tenant->leaving(accepted, generation(accepted) + 1).error().code, EBADF);
    EXPECT_EQ(server_tenant->leaving(listener, generation(listener)).error().code, ENOTCONN);
    const std::uint32_t idle = server.socket();
    EXPECT_EQ(server_tenant->leaving(idle, generation(idle)).error().code, ENOTCONN);
    const std::uint32_t unanswered = client.socket();
    client.submit(unanswered, shm::Operation::kConnect, endpoint(Host::kAddress, 40009), endpoint(Address::v4(10, 0, 0, 77), 80));
    host.turn();
    EXPECT_EQ(client_tenant->leaving(unanswered, client.segment.socket(unanswered).daemon.generation.load()).error().code, ENOTCONN);
    const auto names = server_tenant->leaving(accepted, generation(accepted));
    ASSERT_TRUE(names);
    EXPECT_EQ(names->local.port, 80);
    EXPECT_EQ(names->remote.port, 40003);
    EXPECT_EQ(drops(Drop::kTenantBadSocket), 4u);
}

TEST_F(StandInTest, WhoeverHoldsTheRecordGetsTheSameSocket) {
    open(40004);
    const auto first = leave(accepted);
    ASSERT_TRUE(first);
    const auto second = server_tenant->leaving(accepted, generation(accepted));
    ASSERT_TRUE(second && second->made);
    EXPECT_EQ(identity(first->get()), identity(second->made.get()));
    const auto third = leave(accepted);  // two processes asked at once: the later pair is not used
    ASSERT_TRUE(third);
    EXPECT_EQ(identity(first->get()), identity(third->get()));
    EXPECT_EQ(stand_ins->size(), 1u);
    server.close(accepted);
    host.turn();
    EXPECT_TRUE(stand_ins->has_buried()) << "a stranger's socket is not closed here";
    EXPECT_EQ(stand_ins->take_buried().size(), 1u);
}

TEST_F(StandInTest, AHolderThatDoesNotReadCostsNoMoreThanItsPart) {
    stand_ins = std::make_unique<StandIns>(host.counters, host.commons, 8, 16);
    open(40005);
    auto theirs = leave(accepted);
    ASSERT_TRUE(theirs);
    const std::string sent = noise(8'000'000);
    std::size_t at = 0;
    for (int turns = 0; turns < 3000; ++turns) {
        at += client.send(socket, std::string_view(sent).substr(at, 60000));
        turn();
    }
    EXPECT_LT(at, sent.size()) << "the sender was stopped";
    std::uint32_t unread = 0;
    stand_ins->for_each([&](const StandIn& each) { unread = each.unread(); });
    EXPECT_GT(unread, 0u);
    EXPECT_LE(unread, 16 * Piece::kBytes);
    std::string heard;
    EXPECT_TRUE(until([&] {
        if (at < sent.size()) at += client.send(socket, std::string_view(sent).substr(at, 60000));
        heard += read(theirs->get());
        return heard.size() == sent.size();
    })) << heard.size();
    EXPECT_TRUE(heard == sent);
}

TEST_F(StandInTest, APeerThatTakesNothingStopsTheHolder) {
    open(40006);
    auto theirs = leave(accepted);
    ASSERT_TRUE(theirs);
    const std::string bytes = noise(1 << 20);
    std::size_t written = 0;
    for (int turns = 0; turns < 3000; ++turns) {
        const ssize_t now = ::send(theirs->get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
        if (now > 0) written += static_cast<std::size_t>(now);
        turn();
    }
    EXPECT_LT(::send(theirs->get(), bytes.data(), 1, MSG_DONTWAIT), 0);
    std::size_t heard = 0;
    EXPECT_TRUE(until([&] {
        heard += client.receive(socket).size();
        client.segment.dirty().post(socket);
        return heard == written;
    })) << heard << " of " << written;
}

TEST_F(StandInTest, AnUrgentOctetStaysUrgentBothWays) {  // [RFC9293 3.8.5 MUST-31, MUST-32]
    open(40000);
    client.send(socket, "unread!", true);
    client.send(socket, "more");
    host.turns(3);
    auto theirs = leave(accepted);
    ASSERT_TRUE(theirs);
    char octet = 0;
    const auto out_of_band = [&] { return ::recv(theirs->get(), &octet, 1, MSG_OOB | MSG_DONTWAIT) == 1; };
    EXPECT_TRUE(until(out_of_band));
    EXPECT_EQ(octet, '!');
    std::string heard;
    EXPECT_TRUE(until([&] { return (heard += read(theirs->get())).size() >= 10; }));
    EXPECT_EQ(heard, "unreadmore");

    client.send(socket, std::string(30000, 'x') + "?", true);
    client.send(socket, "y");
    client.segment.dirty().post(socket);
    EXPECT_TRUE(until(out_of_band));
    EXPECT_EQ(octet, '?');
    heard.clear();
    EXPECT_TRUE(until([&] { return (heard += read(theirs->get())).size() >= 30001; }));
    EXPECT_TRUE(heard == std::string(30000, 'x') + "y");

    EXPECT_EQ(::send(theirs->get(), "abc", 3, 0), 3);
    EXPECT_EQ(::send(theirs->get(), "$", 1, MSG_OOB), 1);
    EXPECT_EQ(::send(theirs->get(), "de", 2, 0), 2);
    const shm::SocketRecord& record = client.segment.socket(socket);
    EXPECT_TRUE(until([&] { return (record.urgent.load() & shm::kUrgentArrived) != 0; }));
    EXPECT_EQ(shm::urgent_octet(record.urgent.load()), '$');
    EXPECT_EQ(shm::urgent_ahead(record.urgent.load(), 0), 3);
    std::string answered;
    EXPECT_TRUE(until([&] { return (answered += client.receive(socket)).size() >= 6; }));
    EXPECT_EQ(answered, "abc$de") << "the octet has its place in the stream";
}

TEST_F(StandInTest, AnUrgentOctetThatWasReadIsNotReadAgain) {
    open(40000);
    client.send(socket, "abc!", true);
    client.send(socket, "de");
    host.turns(3);
    server.segment.socket(accepted).app.urgent_read.store(shm::urgent_mark(3));
    auto theirs = leave(accepted);
    ASSERT_TRUE(theirs);
    std::string heard;
    EXPECT_TRUE(until([&] { return (heard += read(theirs->get())).size() >= 5; }));
    EXPECT_EQ(heard, "abcde");
    char octet = 0;
    EXPECT_EQ(::recv(theirs->get(), &octet, 1, MSG_OOB | MSG_DONTWAIT), -1);
}

TEST_F(StandInTest, AResetOfThePeersReachesTheHolder) {
    open(40007);
    auto theirs = leave(accepted);
    ASSERT_TRUE(theirs);
    client.send(socket, "last words");
    host.turns(3);
    client.segment.socket(socket).options.flags |= shm::kOptionLinger;
    client.segment.socket(socket).app.options_version.fetch_add(2);
    client.close(socket);
    EXPECT_TRUE(until([&] { return stand_ins->size() == 0; }));
    char bytes[64];
    EXPECT_EQ(::recv(theirs->get(), bytes, sizeof bytes, 0), 10) << "what has come is read first";
    EXPECT_EQ(::recv(theirs->get(), bytes, sizeof bytes, 0), -1);
    EXPECT_EQ(errno, ECONNRESET);
}

TEST_F(StandInTest, AHolderThatClosesWithBytesUnreadResetsThePeer) {
    open(40008);
    auto theirs = leave(accepted);
    ASSERT_TRUE(theirs);
    server.close(accepted);
    host.turn();
    stand_ins->take_buried();
    client.send(socket, "nobody reads this");
    host.turns(3);
    char byte;
    ASSERT_TRUE(until([&] { return ::recv(theirs->get(), &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 1; }));
    theirs->reset();
    EXPECT_TRUE(until([&] { return (client.status(socket) & shm::kStatusDead) != 0; }));
    EXPECT_EQ(client.segment.socket(socket).daemon.error.load(), ECONNRESET);
    EXPECT_TRUE(until([&] { return stand_ins->size() == 0; }));
}

TEST_F(StandInTest, OutlivesItsProgram) {
    open(40010);
    server.send(accepted, std::string(3000, 'a'));
    auto theirs = leave(accepted);
    ASSERT_TRUE(theirs);
    server_tenant->remove_process(0, host.now);
    ASSERT_TRUE(until([&] { return server_tenant->finished(); })) << "its blocks have come back";
    std::erase_if(host.tenants, [&](const auto& tenant) { return tenant.get() == server_tenant; });
    client.send(socket, "still there?");
    std::string heard;
    EXPECT_TRUE(until([&] { return (heard += read(theirs->get())).size() == 12; }));
    ASSERT_EQ(::send(theirs->get(), "yes", 3, 0), 3);
    std::string answered;
    EXPECT_TRUE(until([&] { return (answered += client.receive(socket)).size() == 3003; }));
    EXPECT_EQ(host.commons.connections.used, 2u) << "both ends are counted";
}

TEST_F(StandInTest, SoManyAndNoMore) {
    stand_ins = std::make_unique<StandIns>(host.counters, host.commons, 3);
    std::vector<UniqueFd> held;
    for (Port port = 40020; port < 40024; ++port) {
        open(port);
        auto theirs = leave(accepted);
        if (theirs) held.push_back(std::move(*theirs));
    }
    EXPECT_EQ(held.size(), 2u) << "one program gets half of them";
    EXPECT_EQ(drops(Drop::kStandInLimit), 2u);
    EXPECT_EQ(server.status(accepted), shm::kStatusReady);
}

TEST_F(StandInTest, AnEndedConnectionHasItsRestToTell) {
    open(40030);
    client.send(socket, "rest");
    host.turns(3);
    client.segment.socket(socket).options.flags |= shm::kOptionLinger;
    client.segment.socket(socket).app.options_version.fetch_add(2);
    client.close(socket);
    host.turns(3);
    ASSERT_NE(server.status(accepted) & shm::kStatusDead, 0u);
    auto theirs = leave(accepted);
    ASSERT_TRUE(theirs);
    EXPECT_TRUE(until([&] { return stand_ins->size() == 0; }));
    char bytes[64];
    EXPECT_EQ(::recv(theirs->get(), bytes, sizeof bytes, 0), 4);
    EXPECT_EQ(::recv(theirs->get(), bytes, sizeof bytes, 0), -1);
    EXPECT_EQ(errno, ECONNRESET);
}

}  // namespace
}  // namespace culvert::tenant
