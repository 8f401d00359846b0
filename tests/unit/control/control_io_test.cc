// The pieces of the control thread that do I/O: event loop, connection, mailbox, listening socket, policy, kernel flows.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "daemon/control/connection.h"
#include "daemon/control/event_loop.h"
#include "daemon/control/kernel_flows.h"
#include "daemon/control/listening_socket.h"
#include "daemon/control/mailbox.h"
#include "daemon/control/policy.h"

namespace culvert::control {
namespace {

std::vector<std::byte> bytes_of(std::string_view text) {
    const auto* begin = reinterpret_cast<const std::byte*>(text.data());
    return {begin, begin + text.size()};
}
std::string text_of(std::span<const std::byte> bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

class ConnectionTest : public testing::Test {
protected:
    void SetUp() override {
        Result<std::unique_ptr<EventLoop>> created = EventLoop::create();
        ASSERT_TRUE(created) << created.error().message();
        loop = std::move(*created);
        int pair[2];
        ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
        theirs.reset(pair[0]);
        connection = std::make_shared<Connection>(*loop, UniqueFd(pair[1]), Peer{});
    }
    void start() {
        connection->start(
            [this](Connection& from, Packet packet) {
                got.push_back(text_of(packet.bytes));
                fds += packet.fds.size();
                truncated |= packet.truncated;
                if (on_packet) on_packet(from);
            },
            [this](Connection&) {
                ++closed;
                loop->stop();
            });
    }
    void say(std::string_view text) { ASSERT_EQ(::send(theirs.get(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size())); }
    std::string hear() {
        char buffer[65536];
        const ssize_t length = ::recv(theirs.get(), buffer, sizeof buffer, 0);
        return length > 0 ? std::string(buffer, static_cast<std::size_t>(length)) : "";
    }

    std::unique_ptr<EventLoop> loop;
    UniqueFd theirs;
    std::shared_ptr<Connection> connection;
    std::vector<std::string> got;
    std::size_t fds = 0;
    bool truncated = false;
    int closed = 0;
    std::function<void(Connection&)> on_packet;
};

TEST_F(ConnectionTest, PacketsArriveWholeAndInOrderThenTheEnd) {
    start();
    say("one");
    say("two");
    ::shutdown(theirs.get(), SHUT_WR);
    loop->run();
    EXPECT_EQ(got, (std::vector<std::string>{"one", "two"}));
    EXPECT_EQ(closed, 1);
    EXPECT_TRUE(connection->closed());
}

TEST_F(ConnectionTest, DescriptorsTravelBothWays) {
    start();
    on_packet = [](Connection& from) {
        std::vector<UniqueFd> out;
        out.emplace_back(::dup(0));
        from.send(bytes_of("here"), std::move(out));
        from.close_after_sending();
    };
    int fd = 0;
    char data = 'x';
    iovec vector{&data, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
    msghdr message{};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
    ASSERT_EQ(::sendmsg(theirs.get(), &message, 0), 1);
    loop->run();
    EXPECT_EQ(fds, 1u);
    char reply[16];
    vector = {reply, sizeof reply};
    message.msg_controllen = sizeof control;
    ASSERT_EQ(::recvmsg(theirs.get(), &message, MSG_CMSG_CLOEXEC), 4);
    header = CMSG_FIRSTHDR(&message);
    ASSERT_NE(header, nullptr);
    std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
    EXPECT_GE(fd, 0);
    ::close(fd);
}

TEST_F(ConnectionTest, ThousandPacketsOutKeepTheirOrder) {
    start();
    for (int i = 0; i < 1000; ++i) connection->send(bytes_of(std::to_string(i) + std::string(4000, '.')));
    connection->close_after_sending();
    std::vector<int> heard;
    std::thread reader([&] {
        for (std::string text = hear(); !text.empty(); text = hear()) heard.push_back(std::stoi(text));
    });
    loop->run();
    reader.join();
    ASSERT_EQ(heard.size(), 1000u);
    EXPECT_TRUE(std::ranges::is_sorted(heard));
}

TEST_F(ConnectionTest, PausedConnectionHandsOverNothing) {
    Mailbox mailbox;
    std::size_t while_paused = 0;
    on_packet = [&](Connection& from) {
        if (got.size() != 1) return;
        from.pause();
        mailbox.post([&] {
            while_paused = got.size();
            connection->resume();
        });
    };
    loop->poll_readable(mailbox.fd(), [&](int) { mailbox.run(); });
    start();
    say("one");
    say("two");
    ::shutdown(theirs.get(), SHUT_WR);
    loop->run();
    EXPECT_EQ(while_paused, 1u);
    EXPECT_EQ(got.size(), 2u);
}

TEST_F(ConnectionTest, OversizedPacketIsSeenAsTruncated) {
    start();
    say(std::string(Connection::kMaxMessageBytes + 1, 'x'));
    ::shutdown(theirs.get(), SHUT_WR);
    loop->run();
    EXPECT_TRUE(truncated);
}

TEST_F(ConnectionTest, NonBlockingSocketIsServedToo) {
    ASSERT_EQ(::close(theirs.release()), 0);
    int pair[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    theirs.reset(pair[0]);
    connection = std::make_shared<Connection>(*loop, UniqueFd(pair[1]), Peer{});
    start();
    std::thread writer([&] {
        say("late");
        ::shutdown(theirs.get(), SHUT_WR);
    });
    loop->run();
    writer.join();
    EXPECT_EQ(got, (std::vector<std::string>{"late"}));
}

TEST_F(ConnectionTest, LoopMayGoWhileOperationsAreUnderWay) {
    start();
    const std::weak_ptr<Connection> alive = connection;
    connection.reset();
    EXPECT_FALSE(alive.expired());  // its receive keeps it
    loop.reset();
    EXPECT_TRUE(alive.expired());
}

TEST(Mailbox, TasksOfManyThreadsRunOnceEach) {
    Mailbox mailbox;
    int ran = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&] {
            for (int k = 0; k < 100; ++k) mailbox.post([&] { ++ran; });
        });
    for (std::thread& thread : threads) thread.join();
    mailbox.run();
    EXPECT_EQ(ran, 400);
    mailbox.run();
    EXPECT_EQ(ran, 400);
}

class ListeningSocketTest : public testing::Test {
protected:
    void SetUp() override {
        std::string name = testing::TempDir() + "culvert-sock-XXXXXX";
        ASSERT_NE(::mkdtemp(name.data()), nullptr);
        folder = name;
        config.path = folder / "c.sock";
    }
    void TearDown() override { std::filesystem::remove_all(folder); }

    std::filesystem::path folder;
    SocketConfig config;
};

TEST_F(ListeningSocketTest, HasTheConfiguredModeAndGoesWithItsOwner) {
    config.mode = 0660;
    {
        const Result<ListeningSocket> socket = ListeningSocket::open(config);
        ASSERT_TRUE(socket) << socket.error().message();
        struct stat status;
        ASSERT_EQ(::stat(config.path.c_str(), &status), 0);
        EXPECT_EQ(status.st_mode & 0777, 0660u);
    }
    EXPECT_FALSE(std::filesystem::exists(config.path));
}

TEST_F(ListeningSocketTest, LiveDaemonIsNotRobbed) {
    Result<ListeningSocket> first = ListeningSocket::open(config);
    ASSERT_TRUE(first);
    ASSERT_TRUE(first->listen());
    const Result<ListeningSocket> second = ListeningSocket::open(config);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().message(),
              "control socket " + config.path + " is in use by a running daemon; stop it or choose another path with --socket");
    EXPECT_TRUE(std::filesystem::exists(config.path));
}

/// Who comes while the daemon is being started is told so at once, and does without it.
TEST_F(ListeningSocketTest, NobodyWaitsForADaemonThatIsStarting) {
    Result<ListeningSocket> socket = ListeningSocket::open(config);
    ASSERT_TRUE(socket);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    config.path.copy(address.sun_path, sizeof address.sun_path - 1);
    const auto connect = [&] {
        const UniqueFd client(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
        return ::connect(client.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ? 0 : errno;
    };
    EXPECT_EQ(connect(), ECONNREFUSED);
    ASSERT_TRUE(socket->listen());
    EXPECT_EQ(connect(), 0);
}

TEST_F(ListeningSocketTest, OfTwoThatStartAtOnceOneGivesUp) {
    Result<ListeningSocket> first = ListeningSocket::open(config);
    ASSERT_TRUE(first);
    {
        Result<ListeningSocket> second = ListeningSocket::open(config);
        ASSERT_TRUE(second);
        EXPECT_TRUE(second->listen());
        const Result<void> late = first->listen();
        ASSERT_FALSE(late);
        EXPECT_EQ(late.error().message(), "control socket " + config.path + " has been taken by another daemon");
        EXPECT_FALSE(ListeningSocket::open(config));
        EXPECT_TRUE(std::filesystem::exists(config.path)) << "the other one's";
    }
}

TEST_F(ListeningSocketTest, StaleFileIsReplaced) {
    const UniqueFd dead(::socket(AF_UNIX, SOCK_SEQPACKET, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    config.path.copy(address.sun_path, sizeof address.sun_path - 1);
    ASSERT_EQ(::bind(dead.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    EXPECT_TRUE(ListeningSocket::open(config));
}

TEST_F(ListeningSocketTest, OtherFilesAreLeftAlone) {
    std::ofstream(config.path) << "precious";
    const Result<ListeningSocket> socket = ListeningSocket::open(config);
    ASSERT_FALSE(socket);
    EXPECT_EQ(socket.error().code, EEXIST);
    EXPECT_TRUE(std::filesystem::is_regular_file(config.path));
}

TEST_F(ListeningSocketTest, UnknownGroupIsNamed) {
    config.group = "no-such-group-here";
    const Result<ListeningSocket> socket = ListeningSocket::open(config);
    ASSERT_FALSE(socket);
    EXPECT_EQ(socket.error().message(), "socket.group: no group \"no-such-group-here\"");
    EXPECT_FALSE(std::filesystem::exists(config.path));
}

TEST(Policy, ListsNarrowWhoMayAttach) {
    Config whole;
    SocketConfig& config = whole.socket;
    EXPECT_TRUE(Policy::create(whole)->allows({1, 4242, 4242, {}}));
    config.allow_users = {"daemon"};
    config.allow_groups = {"bin"};
    const Result<Policy> policy = Policy::create(whole);
    ASSERT_TRUE(policy) << policy.error().message();
    EXPECT_TRUE(policy->allows({1, 0, 0, {}}));
    EXPECT_TRUE(policy->allows({1, 1, 4242, {}}));        // daemon
    EXPECT_TRUE(policy->allows({1, 4242, 2, {}}));        // bin
    EXPECT_TRUE(policy->allows({1, 4242, 4242, {7, 2}}));  // bin among the others
    EXPECT_FALSE(policy->allows({1, 4242, 4242, {7}}));
    config.allow_users = {"no-such-user-here"};
    EXPECT_EQ(Policy::create(whole).error().message(), "socket.allow_users: no user \"no-such-user-here\"");
}

TEST(Policy, FirstProgramThatFitsCounts) {
    Config config;
    config.programs = {{"nginx", "daemon", "tcp listen 80"}, {"nginx", "", "none"}, {"", "bin", "udp none"}};
    const Result<Policy> policy = Policy::create(config);
    ASSERT_TRUE(policy) << policy.error().message();
    const auto text = [&](uid_t uid, const char* name) {
        const auto found = policy->of({1, uid, uid, {}}, name);
        return found == nullptr ? "nothing" : found->text;
    };
    EXPECT_EQ(text(1, "nginx"), "tcp listen 80");
    EXPECT_EQ(text(0, "nginx"), "none");
    EXPECT_EQ(text(2, "nginx"), "none");
    EXPECT_EQ(text(2, "redis-server"), "udp none");
    EXPECT_EQ(text(1, "redis-server"), "nothing");
    EXPECT_FALSE(policy->of({1, 0, 0, {}}, "nginx")->rules.possible(shm::Policy::Protocol::kTcp));
    config.programs = {{"nginx", "no-such-user-here", "none"}};
    EXPECT_EQ(Policy::create(config).error().message(), "program.user: no user \"no-such-user-here\"");
}

TEST(Policy, PeerIsWhoTheKernelSays) {
    int pair[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
    const UniqueFd first(pair[0]);
    const UniqueFd second(pair[1]);
    const Result<Peer> peer = peer_of(first.get());
    ASSERT_TRUE(peer) << peer.error().message();
    EXPECT_EQ(peer->pid, ::getpid());
    EXPECT_EQ(peer->uid, ::getuid());
}

/// A connected pair on loopback.
struct LoopbackPair {
    explicit LoopbackPair(int family) {
        listener.reset(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
        sockaddr_storage address{};
        address.ss_family = static_cast<sa_family_t>(family);
        if (family == AF_INET) reinterpret_cast<sockaddr_in&>(address).sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t length = sizeof address;
        ok = ::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length) == 0 && ::listen(listener.get(), 1) == 0 &&
             ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0;
        port = ntohs(family == AF_INET ? reinterpret_cast<sockaddr_in&>(address).sin_port
                                       : reinterpret_cast<sockaddr_in6&>(address).sin6_port);
        sockaddr_in target{};
        target.sin_family = AF_INET;
        target.sin_port = htons(port);
        target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        client.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        ok = ok && ::connect(client.get(), reinterpret_cast<sockaddr*>(&target), sizeof target) == 0;
        server.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    }
    UniqueFd listener, client, server;
    Port port = 0;
    bool ok = false;
};

TEST(KernelFlows, FindsConnectionsByLocalPort) {
    const LoopbackPair pair(AF_INET);
    ASSERT_TRUE(pair.ok);
    const Result<std::vector<KernelSocket>> found = kernel_connections(pair.port);
    ASSERT_TRUE(found) << found.error().message();
    ASSERT_EQ(found->size(), 1u);  // the accepted one: not the listener, not the client
    EXPECT_EQ(found->front().local, (Endpoint{Address::v4(127, 0, 0, 1), pair.port}));
    EXPECT_EQ(found->front().remote.address, Address::v4(127, 0, 0, 1));
    EXPECT_EQ(found->front().state, TCP_ESTABLISHED);
}

TEST(KernelFlows, WhatIsOverIsNot) {
    LoopbackPair pair(AF_INET);
    ASSERT_TRUE(pair.ok);
    pair.server.reset();  // closes first: FIN-WAIT-2, which is still to end
    Result<std::vector<KernelSocket>> found = kernel_connections(pair.port);
    ASSERT_TRUE(found) << found.error().message();
    ASSERT_EQ(found->size(), 1u);
    EXPECT_TRUE(found->front().state == TCP_FIN_WAIT2 || found->front().state == TCP_FIN_WAIT1) << int{found->front().state};
    pair.client.reset();  // TIME-WAIT: whoever uses these ports now is somebody new
    found = kernel_connections(pair.port);
    ASSERT_TRUE(found) << found.error().message();
    EXPECT_TRUE(found->empty());
}

TEST(KernelFlows, ConnectionOfADualStackListenerIsIpv4) {
    const LoopbackPair pair(AF_INET6);
    ASSERT_TRUE(pair.ok);
    const Result<std::vector<KernelSocket>> found = kernel_connections(pair.port);
    ASSERT_TRUE(found) << found.error().message();
    ASSERT_EQ(found->size(), 1u);
    EXPECT_EQ(found->front().local, (Endpoint{Address::v4(127, 0, 0, 1), pair.port}));
}

TEST(KernelFlows, SocketsByInode) {
    const LoopbackPair pair(AF_INET);
    struct stat status;
    ASSERT_EQ(::fstat(pair.listener.get(), &status), 0);
    const auto sockets = kernel_sockets_by_inode();
    ASSERT_TRUE(sockets) << sockets.error().message();
    const auto found = sockets->find(static_cast<std::uint32_t>(status.st_ino));
    ASSERT_NE(found, sockets->end());
    EXPECT_EQ(found->second.state, TCP_LISTEN);
    EXPECT_EQ(found->second.local.port, pair.port);
    EXPECT_TRUE(found->second.is_tcp);
}

}  // namespace
}  // namespace culvert::control
