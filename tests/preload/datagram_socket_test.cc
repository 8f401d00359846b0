// UDP: Culvert and the kernel on one port.

#include <sys/socket.h>

#include "tests/preload/socket_fixture.h"

namespace culvert::test {
namespace {

using preload::Socket;

class DatagramSocketTest : public SocketTest {
protected:
    Fd bound(int extra_type = 0) {
        Fd fd = open(SOCK_DGRAM | extra_type);
        sockaddr_in any = ipv4("0.0.0.0", 0);
        EXPECT_EQ(fd->bind(fd.number(), as_sockaddr(any), sizeof any), 0);
        EXPECT_EQ(fd->path(), Socket::Path::kDatagram);
        socklen_t length = sizeof any;
        EXPECT_EQ(fd->sockname(fd.number(), as_sockaddr(any), &length), 0);
        port = ntohs(any.sin_port);
        return fd;
    }
    shm::DatagramHeader header_of(const std::string& datagram) {
        shm::DatagramHeader header{};
        EXPECT_GE(datagram.size(), sizeof header);
        std::memcpy(&header, datagram.data(), std::min(datagram.size(), sizeof header));
        return header;
    }
};

TEST_F(DatagramSocketTest, SendsAHeaderAndThePayload) {
    Fd fd = bound();
    EXPECT_EQ(fd.send_to("query", ipv4("10.77.0.1", 53)), 5);
    ASSERT_TRUE(daemon.wait_received(fd->record(), sizeof(shm::DatagramHeader) + 5));
    const auto sent = daemon.datagrams(fd->record());
    ASSERT_EQ(sent.size(), 1u);
    const shm::DatagramHeader header = header_of(sent[0]);
    EXPECT_EQ(header.remote.port, 53);
    EXPECT_EQ(header.remote.address[15], 1);
    EXPECT_EQ(header.length, 5u);
    EXPECT_EQ(sent[0].substr(sizeof header), "query");
}

TEST_F(DatagramSocketTest, WithoutItsDaemonItIsTheKernels) {
    Fd fd = bound(SOCK_NONBLOCK);
    daemon.die();
    while (!client->check_daemon()) std::this_thread::yield();
    EXPECT_EQ(fd->poll_now(true), EPOLLOUT | EPOLLWRNORM) << "the kernel's half is not asked for room";
    EXPECT_EQ(fd->poll_now(false), 0u);
    char byte = 0;
    iovec part{&byte, 1};
    mmsghdr message{};
    message.msg_hdr.msg_iov = &part;
    message.msg_hdr.msg_iovlen = 1;
    EXPECT_EQ(fd->receive_many(fd.number(), &message, 1, 0, nullptr), -1);
    EXPECT_EQ(errno, EAGAIN) << "no reset: it is not a connection";
    EXPECT_EQ(fd.get_int(SOL_SOCKET, SO_ERROR), 0);
}

TEST_F(DatagramSocketTest, TheNextDaemonTakesItOverWithPeerAndGroups) {
    Fd fd = bound(SOCK_NONBLOCK);
    const sockaddr_in peer = ipv4("10.77.0.9", 53);
    ASSERT_EQ(fd->connect(fd.number(), as_sockaddr(peer), sizeof peer), 0);
    ip_mreqn group{};
    group.imr_multiaddr = ipv4("239.1.2.3", 0).sin_addr;
    group.imr_ifindex = 1;
    ip_mreqn left = group;
    left.imr_multiaddr = ipv4("239.1.2.4", 0).sin_addr;
    ASSERT_EQ(fd->set_option(fd.number(), IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group), 0) << std::strerror(errno);
    ASSERT_EQ(fd->set_option(fd.number(), IPPROTO_IP, IP_ADD_MEMBERSHIP, &left, sizeof left), 0);
    daemon.die();
    while (!client->check_daemon()) std::this_thread::yield();
    ASSERT_EQ(fd->set_option(fd.number(), IPPROTO_IP, IP_DROP_MEMBERSHIP, &left, sizeof left), 0);
    FakeDaemon next;
    ASSERT_NE(next.attach(), nullptr);
    EXPECT_EQ(fd.send("again"), 5);
    EXPECT_FALSE(fd->wants_daemon());
    ASSERT_TRUE(next.wait_received(fd->record(), sizeof(shm::DatagramHeader) + 5)) << "through Culvert, to its peer";
    const auto calls = next.group_calls();
    ASSERT_EQ(calls.size(), 1u);
    EXPECT_EQ(calls[0].operation, shm::Operation::kJoinGroup);
    EXPECT_EQ(calls[0].group.address[15], 3);
    fd.close();
}

TEST_F(DatagramSocketTest, WhatCanNeverBeSentIsTooLarge) {
    FakeDaemon::Options options;
    options.geometry.tx_blocks = 16;
    FakeDaemon small(options);
    ASSERT_NE(small.attach(), nullptr);
    {
        Fd fd = bound();
        EXPECT_EQ(fd.send_to(std::string(17 * shm::kBlockSize, 'x'), ipv4("10.77.0.1", 53)), -1);
        EXPECT_EQ(errno, EMSGSIZE);
    }
    preload::Client::install(client);
}

TEST_F(DatagramSocketTest, LargeDatagramsKeepTheirBytesAndTheirEdges) {
    Fd fd = bound();
    std::string large(20'000, 'x');
    for (std::size_t i = 0; i < large.size(); ++i) large[i] = static_cast<char>(i * 7 + i / 251);
    EXPECT_EQ(fd.send_to(large, ipv4("10.77.0.1", 53)), 20'000);
    EXPECT_EQ(fd.send_to("", ipv4("10.77.0.1", 53)), 0);
    EXPECT_EQ(fd.send_to("end", ipv4("10.77.0.1", 53)), 3);
    ASSERT_TRUE(daemon.wait_received(fd->record(), 3 * sizeof(shm::DatagramHeader) + 20'003));
    const auto sent = daemon.datagrams(fd->record());
    ASSERT_EQ(sent.size(), 3u);
    EXPECT_TRUE(sent[0].substr(sizeof(shm::DatagramHeader)) == large);
    EXPECT_EQ(sent[1].size(), sizeof(shm::DatagramHeader));
    EXPECT_EQ(sent[2].substr(sizeof(shm::DatagramHeader)), "end");

    daemon.deliver_datagram(fd->record(), 53, large);
    daemon.deliver_datagram(fd->record(), 53, "small");
    EXPECT_TRUE(fd.receive(30'000) == large);
    EXPECT_EQ(fd.receive(100), "small");
}

TEST_F(DatagramSocketTest, PartsAreOneDatagram) {
    Fd fd = bound(SOCK_NONBLOCK);
    const auto send = [&](const std::string& data, int flags, const sockaddr_in& to) {
        iovec part{const_cast<char*>(data.data()), data.size()};
        msghdr message{};
        message.msg_name = const_cast<sockaddr_in*>(&to);
        message.msg_namelen = sizeof to;
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        return fd->send(fd.number(), message, flags);
    };
    const sockaddr_in to = ipv4("10.77.0.1", 53);
    EXPECT_EQ(send("one ", MSG_MORE, to), 4);
    EXPECT_EQ(send("two ", MSG_MORE, to), 4);
    EXPECT_EQ(send("three", 0, ipv4("10.77.0.9", 99)), 5) << "where to was said by the first";
    int cork = 1;
    ASSERT_EQ(fd->set_option(fd.number(), IPPROTO_UDP, 1, &cork, sizeof cork), 0);  // UDP_CORK
    EXPECT_EQ(send("four ", 0, to), 5);
    EXPECT_EQ(send("five", 0, to), 4);
    cork = 0;
    ASSERT_EQ(fd->set_option(fd.number(), IPPROTO_UDP, 1, &cork, sizeof cork), 0);
    EXPECT_EQ(send(std::string(40'000, 'x'), MSG_MORE, to), 40'000);
    EXPECT_EQ(send(std::string(40'000, 'x'), MSG_MORE, to), -1) << "and what was there is lost";
    EXPECT_EQ(errno, EMSGSIZE);
    EXPECT_EQ(send("six", 0, to), 3);
    ASSERT_TRUE(daemon.wait_received(fd->record(), 3 * sizeof(shm::DatagramHeader) + 25));
    const auto sent = daemon.datagrams(fd->record());
    ASSERT_EQ(sent.size(), 3u) << "through Culvert's half, all of them";
    EXPECT_EQ(sent[0].substr(sizeof(shm::DatagramHeader)), "one two three");
    EXPECT_EQ(header_of(sent[0]).remote.port, 53);
    EXPECT_EQ(header_of(sent[0]).length, 13u);
    EXPECT_EQ(sent[1].substr(sizeof(shm::DatagramHeader)), "four five");
    EXPECT_EQ(sent[2].substr(sizeof(shm::DatagramHeader)), "six");
}

TEST_F(DatagramSocketTest, ACopyHasItsNotice) {
    Fd fd = bound(SOCK_NONBLOCK);
    const int on = 1;
    ASSERT_EQ(fd->set_option(fd.number(), SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on), 0);
    ASSERT_EQ(fd->path(), Socket::Path::kDatagram);
    char data[] = "data";
    iovec part{data, 4};
    sockaddr_in to = ipv4("10.77.0.1", 53);
    msghdr message{};
    message.msg_name = &to;
    message.msg_namelen = sizeof to;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    EXPECT_EQ(fd->send(fd.number(), message, MSG_ZEROCOPY), 4);
    EXPECT_NE(fd->poll_now(false) & EPOLLERR, 0u);
    ASSERT_TRUE(daemon.wait_received(fd->record(), sizeof(shm::DatagramHeader) + 4)) << "through Culvert's half";
    EXPECT_EQ(fd->receive(fd.number(), message, MSG_ERRQUEUE), 0);
    EXPECT_EQ(fd->poll_now(false) & EPOLLERR, 0u);
    EXPECT_EQ(fd->receive(fd.number(), message, MSG_ERRQUEUE), -1);
}

TEST_F(DatagramSocketTest, TooLargeIsEmsgsize) {
    Fd fd = bound();
    EXPECT_EQ(fd.send_to(std::string(65'508, 'x'), ipv4("10.77.0.1", 53)), -1);
    EXPECT_EQ(errno, EMSGSIZE);
}

TEST_F(DatagramSocketTest, ReportsTheSenderAndTruncation) {
    Fd fd = bound();
    daemon.deliver_datagram(fd->record(), 4711, "0123456789");
    char bytes[4];
    iovec part{bytes, sizeof bytes};
    sockaddr_in from{};
    msghdr message{};
    message.msg_name = &from;
    message.msg_namelen = sizeof from;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    EXPECT_EQ(fd->receive(fd.number(), message, MSG_PEEK | MSG_TRUNC), 10) << "MSG_TRUNC: the real length";
    message.msg_namelen = sizeof from;
    EXPECT_EQ(fd->receive(fd.number(), message, 0), 4);
    EXPECT_EQ(message.msg_flags & MSG_TRUNC, MSG_TRUNC);
    EXPECT_EQ(ntohs(from.sin_port), 4711);
    EXPECT_EQ(from.sin_addr.s_addr, ipv4("10.77.0.9", 0).sin_addr.s_addr);
    EXPECT_EQ(fd.receive(4, MSG_DONTWAIT), error_text(EAGAIN)) << "the rest is gone";
}

TEST_F(DatagramSocketTest, TakesFromTheKernelToo) {
    Fd fd = bound();
    Fd other = open(SOCK_DGRAM);
    EXPECT_EQ(other.send_to("local", ipv4("127.0.0.1", port)), 5);
    EXPECT_FALSE(other->is_ours()) << "loopback is the kernel's";
    EXPECT_EQ(fd.receive(100), "local");
    std::string got;
    std::thread receiver([&] { got = fd.receive(100); });
    while (daemon.segment().socket(fd->record()).app.watch.load() == shm::kWatchNone) std::this_thread::yield();
    daemon.deliver_datagram(fd->record(), 1, "remote");
    receiver.join();
    EXPECT_EQ(got, "remote");
}

TEST_F(DatagramSocketTest, FirstSendOfAnUnboundSocketMakesItCulverts) {
    Fd fd = open(SOCK_DGRAM);
    EXPECT_FALSE(fd->is_ours());
    EXPECT_EQ(fd.send_to("x", ipv4("10.77.0.1", 53)), 1);
    EXPECT_TRUE(fd->is_ours());
    EXPECT_NE(fd->shared_for_test().local.port, 0);
    EXPECT_TRUE(daemon.wait_received(fd->record(), sizeof(shm::DatagramHeader) + 1));
}

TEST_F(DatagramSocketTest, Connected) {
    Fd fd = open(SOCK_DGRAM);
    EXPECT_EQ(fd.send("x"), -1);
    EXPECT_EQ(errno, EDESTADDRREQ);
    ASSERT_EQ(fd.connect("10.77.0.1", 53), 0) << std::strerror(errno);
    ASSERT_TRUE(fd->is_ours());
    EXPECT_EQ(fd.send("x"), 1);
    ASSERT_TRUE(daemon.wait_received(fd->record(), sizeof(shm::DatagramHeader) + 1));
    EXPECT_EQ(header_of(daemon.datagrams(fd->record())[0]).remote.port, 0) << "the connected peer";
    sockaddr_in peer{};
    socklen_t length = sizeof peer;
    EXPECT_EQ(fd->peername(fd.number(), as_sockaddr(peer), &length), 0);
    EXPECT_EQ(ntohs(peer.sin_port), 53);
}

TEST_F(DatagramSocketTest, AnMtuOfItsOwnLeavesTheSocketToCulvert) {  // unbound and BIND set 1280
    Fd fd(Socket::open(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    const int mtu = 1280;
    ASSERT_EQ(fd->set_option(fd.number(), IPPROTO_IPV6, IPV6_MTU, &mtu, sizeof mtu), 0);
    sockaddr_in6 any{};
    any.sin6_family = AF_INET6;
    ASSERT_EQ(fd->bind(fd.number(), reinterpret_cast<sockaddr*>(&any), sizeof any), 0);
    EXPECT_EQ(fd->path(), Socket::Path::kDatagram);
    const int odd = 1;  // what nobody knows is the kernel's
    ASSERT_EQ(fd->set_option(fd.number(), SOL_SOCKET, SO_TIMESTAMPING, &odd, sizeof odd), 0);
    EXPECT_EQ(fd->path(), Socket::Path::kKernel);
}

TEST_F(DatagramSocketTest, ErrorsComeOnce) {
    Fd fd = bound();
    daemon.segment().socket(fd->record()).daemon.error = ECONNREFUSED;
    EXPECT_NE(fd->poll_now(false) & EPOLLERR, 0u);
    EXPECT_EQ(fd.receive(1, MSG_DONTWAIT), error_text(ECONNREFUSED));
    EXPECT_EQ(fd.receive(1, MSG_DONTWAIT), error_text(EAGAIN));
}

TEST_F(DatagramSocketTest, SendmmsgAndRecvmmsgCountMessages) {
    Fd fd = bound();
    sockaddr_in to = ipv4("10.77.0.1", 53);
    std::string texts[2] = {"one", "three"};
    iovec parts[2] = {{texts[0].data(), 3}, {texts[1].data(), 5}};
    mmsghdr messages[2] = {};
    for (int i = 0; i < 2; ++i) {
        messages[i].msg_hdr.msg_name = &to;
        messages[i].msg_hdr.msg_namelen = sizeof to;
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    EXPECT_EQ(fd->send_many(fd.number(), messages, 2, 0), 2);
    EXPECT_EQ(messages[1].msg_len, 5u);
    daemon.deliver_datagram(fd->record(), 1, "ab");
    EXPECT_EQ(fd->receive_many(fd.number(), messages, 2, MSG_WAITFORONE, nullptr), 1);
    EXPECT_EQ(messages[0].msg_len, 2u);
}

}  // namespace
}  // namespace culvert::test
