// What the shim makes of policies, its own and the daemon's, and what a --strict program is told.
#include "preload/policy.h"

#include "preload/address.h"
#include "shm/attach_protocol.h"
#include "tests/preload/socket_fixture.h"

namespace culvert::test {
namespace {

using preload::Socket;
using shm::KernelReason;
using Protocol = shm::Policy::Protocol;
using Call = shm::Policy::Call;

shm::WireEndpoint wire(const char* address, std::uint16_t port) {
    const sockaddr_in in = ipv4(address, port);
    return *preload::to_wire(as_sockaddr(in), sizeof in, AF_INET);
}

class PolicyTest : public ::testing::Test {
protected:
    ~PolicyTest() override {
        preload::set_policy_for_test(nullptr);
        preload::Client::install(nullptr);
        ::unsetenv(shm::kStrictVariable);
        ::unsetenv(shm::kSocketPathVariable);
    }
    void attach(std::optional<std::string> policy = {}) {
        daemon.emplace(FakeDaemon::Options{.policy = std::move(policy)});
        client = daemon->attach();
        ASSERT_NE(client, nullptr);
    }
    /// --strict, and no daemon is to be found from now on.
    void strict_without_daemon() {
        ::setenv(shm::kStrictVariable, "1", 1);
        ::setenv(shm::kSocketPathVariable, "/nonexistent/control.sock", 1);
    }
    KernelReason reason(const Fd& fd) {
        return static_cast<KernelReason>(
            client->segment().process(client->process_slot()).reasons[fd.number()].load(std::memory_order_relaxed));
    }
    static KernelReason connect_tcp(const char* address, std::uint16_t port = 80) {
        return preload::why_kernel(Protocol::kTcp, Call::kConnect, wire(address, port));
    }
    static Fd open(int type) { return Fd(Socket::open(AF_INET, type, 0)); }
    static int bind(const Fd& fd, const char* address, std::uint16_t port = 0) {
        const sockaddr_in to = ipv4(address, port);
        return fd->bind(fd.number(), as_sockaddr(to), sizeof to);
    }

    std::optional<FakeDaemon> daemon;
    preload::Client* client = nullptr;
};

TEST_F(PolicyTest, BothMustAllow) {
    struct Case {
        const char* own;      // null: none
        const char* daemons;  // the same
        KernelReason near, far, loopback;
    };
    constexpr KernelReason kYes = KernelReason::kUnknown;
    constexpr KernelReason kOwn = KernelReason::kPolicy;
    constexpr KernelReason kDaemons = KernelReason::kDaemonPolicy;
    constexpr KernelReason kLoopback = KernelReason::kLoopback;
    for (const Case& each : {Case{nullptr, nullptr, kYes, kYes, kLoopback}, Case{"tcp connect 10.0.0.0/8", nullptr, kYes, kOwn, kLoopback},
                             Case{nullptr, "tcp connect 10.0.0.0/8", kYes, kDaemons, kLoopback},
                             Case{"tcp connect 11.0.0.0/8", "tcp connect 10.0.0.0/8", kOwn, kDaemons, kLoopback},
                             Case{"loopback", nullptr, kYes, kYes, kYes}, Case{nullptr, "loopback", kYes, kYes, kYes},
                             Case{"all", "loopback", kYes, kYes, kLoopback}, Case{"loopback", "all", kYes, kYes, kLoopback},
                             Case{"loopback", "loopback; none", kDaemons, kDaemons, kYes}, Case{"none", "all", kOwn, kOwn, kLoopback},
                             Case{"tcp lisen", nullptr, KernelReason::kBadPolicy, KernelReason::kBadPolicy, KernelReason::kBadPolicy}}) {
        SCOPED_TRACE(std::string(each.own != nullptr ? each.own : "nothing") + " / " + (each.daemons != nullptr ? each.daemons : "nothing"));
        preload::Client::install(nullptr);
        preload::set_policy_for_test(each.own);
        attach(each.daemons != nullptr ? std::optional<std::string>(each.daemons) : std::nullopt);
        EXPECT_EQ(connect_tcp("10.0.0.1"), each.near);
        EXPECT_EQ(connect_tcp("11.0.0.1"), each.far);
        EXPECT_EQ(connect_tcp("127.0.0.1"), each.loopback);
    }
}

TEST_F(PolicyTest, ADaemonsPolicyThatIsNotUnderstoodIsNoDaemon) {
    daemon.emplace(FakeDaemon::Options{.policy = "tcp lisen 80"});
    EXPECT_EQ(daemon->attach(), nullptr);
}

TEST_F(PolicyTest, WhatIsNeverCulvertsIsNotWatched) {
    preload::set_policy_for_test("udp none; tcp listen none");
    attach();
    const int fd = Socket::open(AF_INET, SOCK_DGRAM, 0);
    ASSERT_GE(fd, 0);
    EXPECT_FALSE(preload::FdTable::instance().contains(fd));
    EXPECT_EQ(static_cast<KernelReason>(client->segment().process(client->process_slot()).reasons[fd].load()), KernelReason::kPolicy);
    preload::raw::close(fd);
    const Fd stream = open(SOCK_STREAM);
    EXPECT_TRUE(stream.known());
    EXPECT_EQ(bind(stream, "127.0.0.2"), 0);
    EXPECT_EQ(stream->listen(stream.number(), 1), 0);
    EXPECT_EQ(stream->path(), Socket::Path::kKernel);
}

TEST_F(PolicyTest, ListenersAndConnectionsAreLeftToTheKernelWithAReason) {
    preload::set_policy_for_test("tcp listen 1-1023; tcp connect 10.77.0.0/24 port 80");
    attach();
    const Fd listener = open(SOCK_STREAM);
    ASSERT_EQ(bind(listener, "0.0.0.0"), 0);
    ASSERT_EQ(listener->listen(listener.number(), 1), 0);
    EXPECT_EQ(listener->path(), Socket::Path::kKernel);
    EXPECT_EQ(reason(listener), KernelReason::kPolicy);
    const Fd through = open(SOCK_STREAM);
    EXPECT_EQ(through.connect("10.77.0.9", 80), 0);
    EXPECT_EQ(through->path(), Socket::Path::kConnection);
    EXPECT_EQ(reason(through), KernelReason::kUnknown);
    const Fd not_through = open(SOCK_STREAM);
    sockaddr_in local{};
    socklen_t length = sizeof local;
    ASSERT_EQ(listener->sockname(listener.number(), as_sockaddr(local), &length), 0);
    EXPECT_EQ(not_through.connect("127.0.0.1", ntohs(local.sin_port)), 0) << "the kernel's listener";
    EXPECT_EQ(reason(not_through), KernelReason::kLoopback);
}

TEST_F(PolicyTest, DatagramsGoByBoundPortOrByPeer) {
    preload::set_policy_for_test("udp listen 1-1023; udp connect 10.77.0.0/24 port 80");
    attach();
    const Fd bound = open(SOCK_DGRAM);
    ASSERT_EQ(bind(bound, "0.0.0.0"), 0);
    EXPECT_EQ(bound->path(), Socket::Path::kKernel);
    EXPECT_EQ(reason(bound), KernelReason::kPolicy);
    EXPECT_EQ(bound.send_to("x", ipv4("127.0.0.1", 9)), 1);
    EXPECT_EQ(bound->path(), Socket::Path::kKernel);
    const Fd unbound = open(SOCK_DGRAM);
    EXPECT_EQ(unbound.send_to("x", ipv4("127.0.0.1", 9)), 1);
    EXPECT_EQ(unbound->path(), Socket::Path::kKernel);
    EXPECT_EQ(reason(unbound), KernelReason::kLoopback);
    EXPECT_EQ(unbound.send_to("x", ipv4("10.77.0.9", 80)), 1);
    EXPECT_EQ(unbound->path(), Socket::Path::kDatagram);
    EXPECT_EQ(reason(unbound), KernelReason::kDatagramPair);
}

TEST_F(PolicyTest, WhatTheDaemonRefusesIsTheKernels) {
    attach();
    daemon->refuse_operations(EPERM);
    const Fd listener = open(SOCK_STREAM);
    ASSERT_EQ(bind(listener, "127.0.0.2"), 0);  // of the fake daemon's own interface
    preload::set_policy_for_test("loopback");
    ASSERT_EQ(listener->listen(listener.number(), 1), 0);
    EXPECT_EQ(listener->path(), Socket::Path::kKernel);
    EXPECT_EQ(reason(listener), KernelReason::kDaemonPolicy);
    const Fd datagram = open(SOCK_DGRAM);
    ASSERT_EQ(bind(datagram, "0.0.0.0"), 0);
    EXPECT_EQ(reason(datagram), KernelReason::kDaemonPolicy);
}

// --- --strict --------------------------------------------------------------------------------------------------------------

TEST_F(PolicyTest, StrictWithoutADaemonFailsWhatWouldBeCulverts) {
    strict_without_daemon();
    const Fd stream = open(SOCK_STREAM);
    ASSERT_TRUE(stream.known()) << "socket() itself works: what it will be is not known";
    EXPECT_EQ(stream.connect("10.77.0.9", 80), -1);
    EXPECT_EQ(errno, ENETDOWN);
    const Fd listener = open(SOCK_STREAM);
    ASSERT_EQ(bind(listener, "0.0.0.0"), 0);
    EXPECT_EQ(listener->listen(listener.number(), 1), -1);
    EXPECT_EQ(errno, ENETDOWN);
    int listens = 1;
    socklen_t length{sizeof listens};
    ASSERT_EQ(preload::libc::getsockopt(listener.number(), SOL_SOCKET, SO_ACCEPTCONN, &listens, &length), 0);
    EXPECT_EQ(listens, 0) << "the kernel's half does not serve in Culvert's place";
    const Fd bound = open(SOCK_DGRAM);
    EXPECT_EQ(bind(bound, "0.0.0.0"), -1);
    EXPECT_EQ(errno, ENETDOWN);
    const Fd unbound = open(SOCK_DGRAM);
    EXPECT_EQ(unbound.send_to("x", ipv4("10.77.0.9", 80)), -1);
    EXPECT_EQ(errno, ENETDOWN);
    EXPECT_EQ(unbound.connect("10.77.0.9", 80), -1);
    EXPECT_EQ(errno, ENETDOWN);
}

TEST_F(PolicyTest, StrictLeavesToTheKernelWhatIsMeantForIt) {
    preload::set_policy_for_test("tcp listen 80; tcp connect 10.0.0.0/8; udp none");
    strict_without_daemon();
    const Fd listener = open(SOCK_STREAM);
    ASSERT_EQ(bind(listener, "0.0.0.0"), 0);
    EXPECT_EQ(listener->listen(listener.number(), 1), 0) << "a port that the policy does not name";
    sockaddr_in local{};
    socklen_t length = sizeof local;
    ASSERT_EQ(listener->sockname(listener.number(), as_sockaddr(local), &length), 0);
    const Fd near = open(SOCK_STREAM);
    EXPECT_EQ(near.connect("127.0.0.1", ntohs(local.sin_port)), 0) << "loopback";
    const Fd refused = open(SOCK_STREAM);
    EXPECT_EQ(refused.connect("10.0.0.1", 80), -1);
    EXPECT_EQ(errno, ENETDOWN);
    const int datagram = Socket::open(AF_INET, SOCK_DGRAM, 0);
    EXPECT_GE(datagram, 0);
    EXPECT_FALSE(preload::FdTable::instance().contains(datagram)) << "never Culvert's";
    preload::raw::close(datagram);
}

TEST_F(PolicyTest, StrictSaysWhatTheDaemonSays) {
    attach();
    ::setenv(shm::kStrictVariable, "1", 1);
    daemon->refuse_operations(ENOBUFS);
    const Fd listener = open(SOCK_STREAM);
    ASSERT_EQ(bind(listener, "0.0.0.0"), 0);
    EXPECT_EQ(listener->listen(listener.number(), 1), -1);
    EXPECT_EQ(errno, ENOBUFS);
    const Fd datagram = open(SOCK_DGRAM);
    EXPECT_EQ(bind(datagram, "0.0.0.0"), -1);
    EXPECT_EQ(errno, ENOBUFS);
    // The daemon's policy is somebody's will, not a failure.
    daemon->refuse_operations(EPERM);
    EXPECT_EQ(listener->listen(listener.number(), 1), 0);
    EXPECT_EQ(reason(listener), KernelReason::kDaemonPolicy);
}

TEST_F(PolicyTest, StrictListenerResetsWhomTheKernelAcceptsMeanwhile) {
    attach();
    ::setenv(shm::kStrictVariable, "1", 1);
    const Fd listener = open(SOCK_STREAM | SOCK_NONBLOCK);
    ASSERT_EQ(bind(listener, "0.0.0.0"), 0);
    ASSERT_EQ(listener->listen(listener.number(), 8), 0);
    ASSERT_EQ(listener->path(), Socket::Path::kListener);
    sockaddr_in local{};
    socklen_t length = sizeof local;
    ASSERT_EQ(listener->sockname(listener.number(), as_sockaddr(local), &length), 0);
    const auto dial = [&](const char* address) {
        const int fd = preload::libc::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        const sockaddr_in to = ipv4(address, ntohs(local.sin_port));
        EXPECT_EQ(preload::libc::connect(fd, as_sockaddr(to), socklen_t{sizeof to}), 0);
        return fd;
    };
    strict_without_daemon();
    daemon->die();
    while (!client->check_daemon()) std::this_thread::yield();
    // Loopback would have been the kernel's with a daemon, too (and when it is not: listen_socket_test.cc).
    const int over_loopback = dial("127.0.0.1");
    const int accepted = listener->accept(listener.number(), nullptr, nullptr, 0);
    EXPECT_GE(accepted, 0);
    preload::raw::close(accepted);
    preload::raw::close(over_loopback);
    EXPECT_EQ(listener->accept(listener.number(), nullptr, nullptr, 0), -1);
    EXPECT_EQ(errno, EAGAIN);
}

}  // namespace
}  // namespace culvert::test
