// What a datagram says and is told beside its bytes: control messages both ways, the error queue, what is refused at once.
#include <sys/socket.h>
#include <time.h>

#include <linux/errqueue.h>

#include <map>

#include "tests/preload/socket_fixture.h"

namespace culvert::test {
namespace {

using preload::Socket;

constexpr int kUdpSegment = 103, kUdpGro = 104;

/// recvmsg with room for everything.
struct Message {
    explicit Message(std::size_t control_room = 512) : control(control_room) {
        header.msg_name = &name;
        header.msg_namelen = sizeof name;
        header.msg_iov = &part;
        header.msg_iovlen = 1;
        header.msg_control = control.data();
        header.msg_controllen = control.size();
    }
    /// Payloads by level and type.
    std::map<std::pair<int, int>, std::string> controls() {
        std::map<std::pair<int, int>, std::string> all;
        for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c))
            all[{c->cmsg_level, c->cmsg_type}] = {reinterpret_cast<const char*>(CMSG_DATA(c)), c->cmsg_len - CMSG_LEN(0)};
        return all;
    }
    template <class Value>
    Message& add(int level, int type, const Value& value) {
        if (used == 0) header.msg_controllen = 0;
        auto* c = reinterpret_cast<cmsghdr*>(control.data() + used);
        c->cmsg_level = level;
        c->cmsg_type = type;
        c->cmsg_len = CMSG_LEN(sizeof value);
        std::memcpy(CMSG_DATA(c), &value, sizeof value);
        used += CMSG_SPACE(sizeof value);
        header.msg_controllen = used;
        return *this;
    }
    sockaddr_storage name{};
    char bytes[4096] = {};
    iovec part{bytes, sizeof bytes};
    std::vector<char> control;
    std::size_t used = 0;
    msghdr header{};
};

template <class Value>
Value as(const std::string& bytes) {
    Value value{};
    EXPECT_EQ(bytes.size(), sizeof value);
    std::memcpy(&value, bytes.data(), std::min(bytes.size(), sizeof value));
    return value;
}

class DatagramControlTest : public SocketTest, public testing::WithParamInterface<bool> {
protected:
    bool v4() const { return GetParam(); }
    /// IPv6 sockets speak to IPv4 peers here (10.77/16 is what the fake daemon routes).
    Fd bound() {
        Fd fd(Socket::open(v4() ? AF_INET : AF_INET6, SOCK_DGRAM, 0));
        sockaddr_storage any{};
        any.ss_family = v4() ? AF_INET : AF_INET6;
        EXPECT_EQ(fd->bind(fd.number(), reinterpret_cast<sockaddr*>(&any), v4() ? sizeof(sockaddr_in) : sizeof(sockaddr_in6)), 0);
        EXPECT_EQ(fd->path(), Socket::Path::kDatagram);
        return fd;
    }
    void address(Message& message, const char* to) const {
        if (v4()) {
            const sockaddr_in in = ipv4(to, 53);
            std::memcpy(&message.name, &in, sizeof in);
            message.header.msg_namelen = sizeof in;
            return;
        }
        sockaddr_in6 in{};
        in.sin6_family = AF_INET6;
        in.sin6_port = htons(53);
        in.sin6_addr.s6_addr[10] = in.sin6_addr.s6_addr[11] = 0xff;
        ::inet_pton(AF_INET, to, in.sin6_addr.s6_addr + 12);
        std::memcpy(&message.name, &in, sizeof in);
        message.header.msg_namelen = sizeof in;
    }
    ssize_t send(const Fd& fd, Message& message, std::size_t length, const char* to = "10.77.0.1") {
        address(message, to);
        message.part.iov_len = length;
        if (message.used == 0) message.header.msg_controllen = 0;
        return fd->send(fd.number(), message.header, 0);
    }
    shm::DatagramHeader sent(const Fd& fd) {
        const auto want = ++sent_;
        EXPECT_TRUE(daemon.wait_datagrams(fd->record(), want));
        shm::DatagramHeader header{};
        std::memcpy(&header, daemon.datagrams(fd->record()).at(want - 1).data(), sizeof header);
        return header;
    }
    std::size_t sent_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Families, DatagramControlTest, testing::Bool(),
                         [](const auto& each) { return each.param ? "IPv4" : "IPv6"; });

TEST_P(DatagramControlTest, WhatWasAskedForIsToldInLinuxOrder) {  // [RFC1122 4.1.4 receive-tos]
    Fd fd = bound();
    for (const int name : {IP_PKTINFO, IP_RECVTTL, IP_RECVTOS, IP_RECVORIGDSTADDR})
        ASSERT_EQ(fd.set_int(IPPROTO_IP, name, 1), 0);
    ASSERT_EQ(fd.set_int(SOL_SOCKET, SO_RXQ_OVFL, 1), 0);
    ASSERT_EQ(fd.set_int(SOL_SOCKET, SO_TIMESTAMPNS, 1), 0);
    ASSERT_EQ(fd.set_int(IPPROTO_UDP, kUdpGro, 1), 0);
    if (!v4()) {
        ASSERT_EQ(fd.set_int(IPPROTO_IPV6, IPV6_RECVPKTINFO, 1), 0);
        ASSERT_EQ(fd.set_int(IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1), 0);
        ASSERT_EQ(fd.set_int(IPPROTO_IPV6, IPV6_RECVTCLASS, 1), 0);
    }
    shm::DatagramHeader header{};
    header.interface = 3;
    header.ttl = 61;
    header.tos = 0x2e;
    header.segment_size = 4;
    header.overflow = 9;
    header.received_ns = preload::now_ns() - 2'000'000'000;
    timespec wall{};
    ::clock_gettime(CLOCK_REALTIME, &wall);
    daemon.deliver_datagram(fd->record(), header, "fourfour");
    Message message;
    ASSERT_EQ(fd->receive(fd.number(), message.header, 0), 8);
    EXPECT_EQ(message.header.msg_flags, 0);
    auto got = message.controls();
    const auto info = as<in_pktinfo>(got[{IPPROTO_IP, IP_PKTINFO}]);
    EXPECT_EQ(info.ipi_ifindex, 3);
    EXPECT_EQ(info.ipi_addr.s_addr, ipv4("127.0.0.2", 0).sin_addr.s_addr);
    EXPECT_EQ(as<int>(got[{IPPROTO_IP, IP_TTL}]), 61);
    EXPECT_EQ(as<std::uint8_t>(got[{IPPROTO_IP, IP_TOS}]), 0x2e) << "one byte, as Linux";
    EXPECT_EQ(as<sockaddr_in>(got[{IPPROTO_IP, IP_ORIGDSTADDR}]).sin_addr.s_addr, info.ipi_addr.s_addr);
    EXPECT_EQ(as<std::uint32_t>(got[{SOL_SOCKET, SO_RXQ_OVFL}]), 9u);
    EXPECT_EQ(as<int>(got[{IPPROTO_UDP, kUdpGro}]), 4);
    const auto stamp = as<timespec>(got[{SOL_SOCKET, SO_TIMESTAMPNS}]);
    EXPECT_NEAR(static_cast<double>(stamp.tv_sec), static_cast<double>(wall.tv_sec - 2), 1.0);
    EXPECT_EQ(got.contains({IPPROTO_IPV6, IPV6_PKTINFO}), !v4()) << "also for IPv4, mapped";
    EXPECT_FALSE(got.contains({IPPROTO_IPV6, IPV6_HOPLIMIT})) << "of an IPv4 packet there is none";
    if (v4()) return;
    header.local_address[0] = 0xfd;
    header.local_address[15] = 1;
    daemon.deliver_datagram(fd->record(), header, "six");
    Message six;
    ASSERT_EQ(fd->receive(fd.number(), six.header, 0), 3);
    got = six.controls();
    EXPECT_EQ(as<in6_pktinfo>(got[{IPPROTO_IPV6, IPV6_PKTINFO}]).ipi6_addr.s6_addr[0], 0xfd);
    EXPECT_EQ(as<int>(got[{IPPROTO_IPV6, IPV6_HOPLIMIT}]), 61);
    EXPECT_EQ(as<int>(got[{IPPROTO_IPV6, IPV6_TCLASS}]), 0x2e);
    EXPECT_FALSE(got.contains({IPPROTO_IP, IP_TTL}));
}

TEST_P(DatagramControlTest, WhatDoesNotFitIsCutAndSaidSo) {
    Fd fd = bound();
    ASSERT_EQ(fd.set_int(IPPROTO_IP, IP_PKTINFO, 1), 0);
    ASSERT_EQ(fd.set_int(IPPROTO_IP, IP_RECVTTL, 1), 0);
    daemon.deliver_datagram(fd->record(), 1, "x");
    Message message(CMSG_SPACE(sizeof(in_pktinfo)) + 4);
    ASSERT_EQ(fd->receive(fd.number(), message.header, 0), 1);
    EXPECT_EQ(message.header.msg_flags, MSG_CTRUNC);
    EXPECT_EQ(message.controls().size(), 1u);
    daemon.deliver_datagram(fd->record(), 1, "x");
    Message none(0);
    none.header.msg_control = nullptr;
    ASSERT_EQ(fd->receive(fd.number(), none.header, 0), 1);
    EXPECT_EQ(none.header.msg_flags, MSG_CTRUNC);
    EXPECT_EQ(none.header.msg_controllen, 0u);
}

TEST_P(DatagramControlTest, OptionsAndControlMessagesAreInTheHeader) {
    Fd fd = bound();
    ASSERT_EQ(fd.set_int(IPPROTO_IP, IP_TTL, 33), 0);
    ASSERT_EQ(fd.set_int(IPPROTO_IP, IP_TOS, 0x10), 0);
    ASSERT_EQ(fd.set_int(IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE), 0);
    Message plain;
    ASSERT_EQ(send(fd, plain, 5), 5);
    shm::DatagramHeader header = sent(fd);
    EXPECT_EQ(header.ttl, 33);
    EXPECT_EQ(header.tos, 0x10);
    EXPECT_EQ(header.flags & shm::kDatagramTtl, shm::kDatagramTtl);
    EXPECT_EQ(header.flags >> shm::kDatagramPathRuleShift & 3, static_cast<std::uint32_t>(shm::PathRule::kProbe));

    Message rich;
    in_pktinfo info{};
    info.ipi_ifindex = 4;
    info.ipi_spec_dst = ipv4("127.0.0.2", 0).sin_addr;
    rich.add(IPPROTO_IP, IP_PKTINFO, info).add(IPPROTO_IP, IP_TTL, 9).add(IPPROTO_IP, IP_TOS, 0x20);
    rich.add(IPPROTO_UDP, kUdpSegment, std::uint16_t{100});
    ASSERT_EQ(send(fd, rich, 250), 250) << std::strerror(errno);
    header = sent(fd);
    EXPECT_EQ(header.ttl, 9);
    EXPECT_EQ(header.tos, 0x20);
    EXPECT_EQ(header.interface, 4u);
    EXPECT_EQ(header.segment_size, 100);
    EXPECT_EQ(header.local_address[15], 2);
}

TEST_P(DatagramControlTest, BadControlMessagesFailAsInLinux) {
    Fd fd = bound();
    Message ttl;
    ttl.add(IPPROTO_IP, IP_TTL, 256);
    EXPECT_EQ(send(fd, ttl, 1), -1);
    EXPECT_EQ(errno, EINVAL);
    Message length;
    length.add(IPPROTO_IP, IP_PKTINFO, 1);
    EXPECT_EQ(send(fd, length, 1), -1);
    EXPECT_EQ(errno, EINVAL);
    Message segments;
    segments.add(IPPROTO_UDP, kUdpSegment, std::uint16_t{10});
    EXPECT_EQ(send(fd, segments, 641), -1) << "more than 64";
    EXPECT_EQ(errno, EINVAL);
}

TEST_P(DatagramControlTest, WhatMayNotBeCutIsRefusedAtOnce) {
    daemon.set_path_mtu(1400);
    Fd fd = bound();
    Message free_to_cut;
    EXPECT_EQ(send(fd, free_to_cut, 1373, "10.77.0.5"), 1373);
    ASSERT_EQ(fd.set_int(IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO), 0);
    Message fits, too_large, segment;
    EXPECT_EQ(send(fd, fits, 1372, "10.77.0.5"), 1372);
    EXPECT_EQ(send(fd, too_large, 1373, "10.77.0.5"), -1);
    EXPECT_EQ(errno, EMSGSIZE);
    segment.add(IPPROTO_UDP, kUdpSegment, std::uint16_t{1373});
    EXPECT_EQ(send(fd, segment, 2000, "10.77.0.5"), -1) << "segments are never cut";
    EXPECT_EQ(errno, EMSGSIZE);
    if (!v4()) return;
    ASSERT_EQ(fd.connect("10.77.0.5", 53), 0);
    EXPECT_EQ(fd.get_int(IPPROTO_IP, IP_MTU), 1400);
}

TEST_P(DatagramControlTest, TheErrorQueueKeepsWhatWentWrong) {
    Fd fd = bound();
    Message empty;
    EXPECT_EQ(fd->receive(fd.number(), empty.header, MSG_ERRQUEUE), -1);
    EXPECT_EQ(errno, EAGAIN) << "never waits";
    shm::DatagramErrorHeader header{};
    header.remote.address[10] = header.remote.address[11] = 0xff;
    header.remote.address[15] = 1;
    header.remote.port = 53;
    std::memcpy(header.offender, header.remote.address, sizeof header.offender);
    header.offender[15] = 254;
    header.error = ECONNREFUSED;
    header.origin = SO_EE_ORIGIN_ICMP;
    header.type = 3;
    header.code = 3;
    daemon.deliver_error(fd->record(), header, "the payload");
    header.error = EHOSTUNREACH;
    daemon.deliver_error(fd->record(), header, "another");
    EXPECT_NE(fd->poll_now(false) & EPOLLERR, 0u);
    EXPECT_EQ(fd.get_int(SOL_SOCKET, SO_ERROR), EHOSTUNREACH) << "the latest, once";
    EXPECT_NE(fd->poll_now(false) & EPOLLERR, 0u) << "as long as the queue is not empty";
    Message message;
    ASSERT_EQ(fd->receive(fd.number(), message.header, MSG_ERRQUEUE), 11);
    EXPECT_EQ(std::string(message.bytes, 11), "the payload");
    EXPECT_EQ(message.header.msg_flags, MSG_ERRQUEUE);
    EXPECT_EQ(ntohs(reinterpret_cast<sockaddr_in*>(&message.name)->sin_port), 53) << "where it was going";
    const auto got = message.controls();
    const auto entry = got.find(v4() ? std::pair{int{IPPROTO_IP}, IP_RECVERR} : std::pair{int{IPPROTO_IPV6}, IPV6_RECVERR});
    ASSERT_NE(entry, got.end());
    sock_extended_err error{};
    std::memcpy(&error, entry->second.data(), sizeof error);
    EXPECT_EQ(error.ee_errno, static_cast<std::uint32_t>(ECONNREFUSED));
    EXPECT_EQ(error.ee_origin, SO_EE_ORIGIN_ICMP);
    EXPECT_EQ(error.ee_type, 3);
    EXPECT_EQ(entry->second.size(), sizeof error + (v4() ? sizeof(sockaddr_in) : sizeof(sockaddr_in6)));
    EXPECT_EQ(static_cast<std::uint8_t>(entry->second[sizeof error + (v4() ? 7 : 23)]), 254) << "who said so";
    Message last;
    ASSERT_EQ(fd->receive(fd.number(), last.header, MSG_ERRQUEUE), 7);
    EXPECT_EQ(fd->poll_now(false) & EPOLLERR, 0u);
}

TEST_P(DatagramControlTest, WhatOnlyTheKernelCanDoLeavesTheSocketToIt) {
    Fd fd = bound();
    EXPECT_EQ(fd.set_int(SOL_SOCKET, SO_TIMESTAMPING, 0), 0);
    EXPECT_TRUE(fd->is_ours()) << "nothing was switched on";
    EXPECT_EQ(fd.set_int(SOL_SOCKET, SO_TIMESTAMPING, 8 /* SOF_TIMESTAMPING_RX_SOFTWARE */), 0);
    EXPECT_FALSE(fd->is_ours());
    const auto& reasons = client->segment().process(client->process_slot()).reasons;
    EXPECT_EQ(reasons[fd.number()].load(), static_cast<std::uint8_t>(shm::KernelReason::kOption));
}

TEST_P(DatagramControlTest, GroupsAreToldToTheDaemonAlsoWhenJoinedBeforeBind) {
    if (!v4()) GTEST_SKIP() << "the kernel of the test knows no IPv6 multicast interface";
    Fd fd = open(SOCK_DGRAM);
    ip_mreqn request{};
    request.imr_multiaddr = ipv4("239.9.9.9", 0).sin_addr;
    request.imr_ifindex = 1;  // lo
    ASSERT_EQ(fd->set_option(fd.number(), IPPROTO_IP, IP_ADD_MEMBERSHIP, &request, sizeof request), 0) << std::strerror(errno);
    sockaddr_in any = ipv4("0.0.0.0", 0);
    ASSERT_EQ(fd->bind(fd.number(), as_sockaddr(any), sizeof any), 0);
    auto calls = daemon.group_calls();
    ASSERT_EQ(calls.size(), 1u);
    EXPECT_EQ(calls[0].operation, shm::Operation::kJoinGroup);
    EXPECT_EQ(calls[0].interface, 1u);
    EXPECT_EQ(calls[0].group.address[12], 239);
    // An interface that the kernel does not know: the daemon's word is the program's answer.
    request.imr_ifindex = 99999;
    EXPECT_EQ(fd->set_option(fd.number(), IPPROTO_IP, IP_ADD_MEMBERSHIP, &request, sizeof request), 0);
    daemon.group_answer = ENOBUFS;
    EXPECT_EQ(fd->set_option(fd.number(), IPPROTO_IP, IP_ADD_MEMBERSHIP, &request, sizeof request), -1);
    EXPECT_EQ(errno, ENOBUFS);
    daemon.group_answer = EOPNOTSUPP;  // groups are the kernel's there: so is the answer
    EXPECT_EQ(fd->set_option(fd.number(), IPPROTO_IP, IP_ADD_MEMBERSHIP, &request, sizeof request), -1);
    EXPECT_EQ(errno, ENODEV);
}

TEST_P(DatagramControlTest, ASenderWithTooFewBlocksSleepsUntilThereAreEnough) {
    FakeDaemon::Options options;
    options.geometry.tx_blocks = 8;
    FakeDaemon small(options);
    ASSERT_NE(small.attach(), nullptr);
    {
        Fd fd = bound();
        small.hold_acknowledgements(fd->record());
        Message first, second;
        ASSERT_EQ(send(fd, first, 4000), 4000);  // two of eight, held by the daemon
        std::string large(7 * shm::kBlockSize - 100, 'y');
        ssize_t sent = 0;
        std::thread sender([&] {
            second.part.iov_base = large.data();
            sent = send(fd, second, large.size());
        });
        // Six blocks are not seven: it must go to sleep, and not look again and again because the pool is not empty.
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
        const auto& waiters = small.segment().socket(fd->record()).app.waiters;
        while (waiters.load() == 0 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
        EXPECT_EQ(waiters.load(), 1u);
        small.resume(fd->record());
        sender.join();
        EXPECT_EQ(sent, static_cast<ssize_t>(large.size()));
    }
    preload::Client::install(client);
}

TEST_P(DatagramControlTest, FionreadIsTheNextDatagram) {
    Fd fd = bound();
    daemon.deliver_datagram(fd->record(), 1, "seven..");
    daemon.deliver_datagram(fd->record(), 1, "three");
    int waiting = 0;
    EXPECT_EQ(fd->ioctl(fd.number(), 0x541B /* FIONREAD */, &waiting), 0);
    EXPECT_EQ(waiting, 7);
}

}  // namespace
}  // namespace culvert::test
