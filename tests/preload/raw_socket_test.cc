// Raw and ping sockets: the kernel's on shared addresses, Culvert's where the daemon has an address of its own.

#include <fcntl.h>
#include <linux/icmp.h>
#include <netinet/icmp6.h>
#include <sched.h>
#include <sys/socket.h>

#include "tests/preload/socket_fixture.h"

namespace culvert::test {
namespace {

using preload::Socket;

constexpr int kSolRaw = 255;

class RawSocketTest : public SocketTest {
protected:
    void SetUp() override {
        SocketTest::SetUp();
        const int probe = ::socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP);
        if (probe < 0) GTEST_SKIP() << "needs CAP_NET_RAW";
        ::close(probe);
    }
    Fd raw(int protocol, int family = AF_INET) { return Fd(Socket::open(family, SOCK_RAW | SOCK_CLOEXEC, protocol)); }
    shm::KernelReason reason(const Fd& fd) {
        return static_cast<shm::KernelReason>(
            daemon.segment().process(client->process_slot()).reasons[fd.number()].load());
    }
    shm::DatagramHeader header_of(const std::string& datagram) {
        shm::DatagramHeader header{};
        EXPECT_GE(datagram.size(), sizeof header);
        std::memcpy(&header, datagram.data(), std::min(datagram.size(), sizeof header));
        return header;
    }
};

TEST_F(RawSocketTest, ShowsTheKernelsSocketAndIsThenBound) {
    Fd fd = raw(IPPROTO_ICMP);
    EXPECT_EQ(fd->path(), Socket::Path::kDatagram);
    EXPECT_EQ(daemon.grants, 1u);
    EXPECT_EQ(daemon.granted_type, SOCK_RAW);
    const auto calls = daemon.raw_calls();
    ASSERT_EQ(calls.size(), 1u);
    EXPECT_EQ(calls[0].argument, shm::raw_kind(false, false, IPPROTO_ICMP));
    EXPECT_EQ(calls[0].local.port, 0) << "the kernel's getsockname says the protocol there";
    Fd six = raw(IPPROTO_ICMPV6, AF_INET6);
    EXPECT_EQ(daemon.raw_calls().back().argument, shm::raw_kind(false, true, IPPROTO_ICMPV6));
    EXPECT_EQ(six->path(), Socket::Path::kDatagram);
}

TEST_F(RawSocketTest, StaysTheKernelsWhereNoAddressIsCulverts) {
    daemon.bind_raw_answer = EADDRNOTAVAIL;
    Fd fd = raw(IPPROTO_ICMP);
    EXPECT_EQ(fd->path(), Socket::Path::kKernel);
    EXPECT_EQ(reason(fd), shm::KernelReason::kSharedAddress);
    // The kernel's half works as if nobody else were there: an echo to ourselves.
    std::string echo("\x08\x00\x00\x00\x12\x34\x00\x01", 8);
    std::uint32_t sum = 0x0800 + 0x1234 + 0x0001;
    echo[2] = static_cast<char>(~sum >> 8);
    echo[3] = static_cast<char>(~sum);
    ASSERT_EQ(fd.send_to(echo, ipv4("127.0.0.1", 0)), 8);
    for (;;) {  // others ping, too
        const std::string got = fd.receive(100);
        ASSERT_GE(got.size(), 28u) << got;
        if (got[20] == 0 && got.substr(24, 2) == "\x12\x34") break;
    }
    // Not asked again with each packet.
    EXPECT_EQ(daemon.grants, 1u);
    Fd refused = (daemon.grant_answer = EPERM, raw(89));
    EXPECT_EQ(refused->path(), Socket::Path::kKernel);
    EXPECT_EQ(reason(refused), shm::KernelReason::kRefused);
    EXPECT_EQ(daemon.raw_binds, 1u) << "no bind without a grant";
}

TEST_F(RawSocketTest, EachPacketGoesOutThroughTheHalfThatOwnsItsAddress) {
    Fd fd = raw(89);
    ASSERT_EQ(fd->path(), Socket::Path::kDatagram);
    EXPECT_EQ(fd.set_int(IPPROTO_IP, IP_TTL, 7), 0);
    EXPECT_EQ(fd.send_to("ours", ipv4("10.77.0.1", 0)), 4);
    ASSERT_TRUE(daemon.wait_datagrams(fd->record(), 1));
    auto sent = daemon.datagrams(fd->record());
    const shm::DatagramHeader header = header_of(sent[0]);
    EXPECT_EQ(header.remote.address[12], 10);
    EXPECT_EQ(header.remote.port, 0);
    EXPECT_EQ(header.ttl, 7);
    EXPECT_EQ(sent[0].substr(sizeof header), "ours");
    Fd kernel = raw(89);
    EXPECT_EQ(kernel.send_to("kernel", ipv4("127.0.0.1", 0)), 6);
    EXPECT_EQ(fd.receive(100).substr(20), "kernel") << "the kernel's half hears what the kernel carries";
    EXPECT_EQ(daemon.datagrams(kernel->record()).size(), 0u);
    EXPECT_EQ(fd.send_to(std::string(65536, 'x'), ipv4("10.77.0.1", 0)), -1);
    EXPECT_EQ(errno, EMSGSIZE);
}

TEST_F(RawSocketTest, HearsBothHalves) {
    Fd fd = raw(89);
    daemon.deliver_datagram(fd->record(), 0, "whole packet");
    EXPECT_EQ(fd.receive(100), "whole packet");
    EXPECT_EQ(fd.receive(100, MSG_DONTWAIT), error_text(EAGAIN));
    std::thread later([&] { daemon.deliver_datagram(fd->record(), 0, "later"); });
    EXPECT_EQ(fd.receive(100), "later");
    later.join();
    daemon.die();
    EXPECT_EQ(fd.send_to("kernel", ipv4("127.0.0.1", 0)), 6) << "the kernel's half goes on";
    EXPECT_EQ(fd.receive(100).substr(20), "kernel");
}

TEST_F(RawSocketTest, FiltersAndHeadersAreTheDaemonsToo) {
    Fd fd = raw(IPPROTO_ICMP);
    EXPECT_EQ(fd.set_int(kSolRaw, ICMP_FILTER, ~(1 << ICMP_ECHOREPLY)), 0);
    auto call = daemon.raw_calls().back();
    EXPECT_EQ(call.operation, shm::Operation::kFilterTypes);
    EXPECT_EQ(call.local.address[0], 0xfe);
    EXPECT_EQ(call.local.address[3], 0xff);
    EXPECT_EQ(call.local.address[4], 0);
    EXPECT_EQ(fd.set_int(IPPROTO_IP, IP_HDRINCL, 1), 0);
    EXPECT_NE(daemon.options(fd->record()).flags & shm::kOptionHeaderIncluded, 0u);
    Fd whole = raw(IPPROTO_RAW);
    EXPECT_NE(daemon.options(whole->record()).flags & shm::kOptionHeaderIncluded, 0u) << "as Linux has it";

    Fd six = raw(IPPROTO_ICMPV6, AF_INET6);
    icmp6_filter filter;
    ICMP6_FILTER_SETBLOCKALL(&filter);
    ICMP6_FILTER_SETPASS(ICMP6_ECHO_REPLY, &filter);
    EXPECT_EQ(six->set_option(six.number(), IPPROTO_ICMPV6, ICMP6_FILTER, &filter, sizeof filter), 0);
    call = daemon.raw_calls().back();
    EXPECT_EQ(call.local.address[0], 0xff);
    EXPECT_EQ(call.remote.address[0], 0xfd) << "129 passes";
    Fd ospf = raw(89, AF_INET6);
    EXPECT_EQ(ospf.set_int(IPPROTO_IPV6, IPV6_CHECKSUM, 12), 0);
    call = daemon.raw_calls().back();
    EXPECT_EQ(call.operation, shm::Operation::kChecksumOffset);
    EXPECT_EQ(call.argument, 12u);
    EXPECT_EQ(ospf.set_int(IPPROTO_IPV6, IPV6_CHECKSUM, -1), 0);
    EXPECT_EQ(daemon.raw_calls().back().argument, shm::kNoIndex);
    // What only the kernel can do makes it the kernel's.
    EXPECT_EQ(fd.set_int(SOL_SOCKET, SO_MARK, 7), 0);
    EXPECT_EQ(fd->path(), Socket::Path::kKernel);
    EXPECT_EQ(reason(fd), shm::KernelReason::kOption);
}

TEST_F(RawSocketTest, ConnectsBothHalvesAndDisconnects) {
    Fd fd = raw(89);
    EXPECT_EQ(fd.connect("10.77.0.9", 0), 0) << std::strerror(errno);
    EXPECT_EQ(fd.send("ours"), 4);
    ASSERT_TRUE(daemon.wait_datagrams(fd->record(), 1));
    Fd kernel = raw(89);  // not the same: the kernel would keep the source that the first connect chose
    EXPECT_EQ(kernel.connect("127.0.0.1", 0), 0);
    EXPECT_EQ(kernel.send("kernel"), 6);
    EXPECT_EQ(kernel.receive(100).substr(20), "kernel");
    sockaddr none{};
    none.sa_family = AF_UNSPEC;
    EXPECT_EQ(fd->connect(fd.number(), &none, sizeof none), 0);
    EXPECT_EQ(fd.send("nobody"), -1);
    EXPECT_EQ(errno, EDESTADDRREQ);
    EXPECT_EQ(daemon.datagrams(fd->record()).size(), 1u);
}

/// Runs `body` in a network namespace of its own, where ping sockets are for `groups`.
template <class Body>
void with_ping_groups(const char* groups, Body body) {
    bool made = false;
    std::thread([&] {
        if (::unshare(CLONE_NEWNET) != 0) return;
        const int file = ::open("/proc/sys/net/ipv4/ping_group_range", O_WRONLY | O_CLOEXEC);
        made = file >= 0 && ::write(file, groups, std::strlen(groups)) > 0;
        ::close(file);
        if (made) body();
    }).join();
    if (!made) GTEST_SKIP() << "needs CAP_SYS_ADMIN for a network namespace";
}

TEST_F(RawSocketTest, APingSocketIsBoundWithTheKernelsIdentifier) {
    with_ping_groups("0 2147483647", [&] {
        for (const bool v4 : {true, false}) {
            Fd ping(Socket::open(v4 ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, v4 ? int{IPPROTO_ICMP} : int{IPPROTO_ICMPV6}));
            ASSERT_GE(ping.number(), 0) << std::strerror(errno);
            EXPECT_EQ(ping->path(), Socket::Path::kKernel) << "no identifier yet";
            sockaddr_storage name{};
            name.ss_family = static_cast<sa_family_t>(v4 ? AF_INET : AF_INET6);
            socklen_t length = v4 ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
            ASSERT_EQ(ping->bind(ping.number(), reinterpret_cast<sockaddr*>(&name), length), 0) << std::strerror(errno);
            EXPECT_EQ(ping->path(), Socket::Path::kDatagram);
            const auto call = daemon.raw_calls().back();
            EXPECT_EQ(call.argument, shm::raw_kind(true, !v4, v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6));
            ASSERT_EQ(ping->sockname(ping.number(), reinterpret_cast<sockaddr*>(&name), &length), 0);
            EXPECT_NE(call.local.port, 0);
            EXPECT_EQ(call.local.port, ntohs(reinterpret_cast<sockaddr_in*>(&name)->sin_port));
        }
        // Unbound: the first packet binds it. What is no echo request is refused as the kernel refuses it.
        Fd ping(Socket::open(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_ICMP));
        EXPECT_EQ(ping.send_to("no echo request", ipv4("10.77.0.1", 0)), -1);
        EXPECT_EQ(errno, EINVAL);
        EXPECT_EQ(ping.send_to(std::string("\x08\x00\x00\x00\x00\x00\x00\x01hello", 13), ipv4("10.77.0.1", 0)), 13);
        ASSERT_EQ(ping->path(), Socket::Path::kDatagram);
        EXPECT_TRUE(daemon.wait_datagrams(ping->record(), 1));
    });
}

TEST_F(RawSocketTest, ThePrivilegeIsTheKernels) {
    with_ping_groups("1 0", [&] {
        EXPECT_EQ(Socket::open(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_ICMP), -1);
        EXPECT_EQ(errno, EACCES);
        EXPECT_EQ(daemon.grants, 0u) << "the daemon is not asked for what the kernel has refused";
    });
}

}  // namespace
}  // namespace culvert::test
