// What a program tells the next daemon of the connections that the last one left behind.

#include <netinet/tcp.h>

#include <algorithm>
#include <set>

#include "preload/dead_flows.h"
#include "tests/preload/socket_fixture.h"

namespace culvert::test {
namespace {

class DeadFlowsTest : public SocketTest {
protected:
    /// The daemon is killed and there is another one, which is told.
    std::vector<FakeDaemon::Reported> restarted() {
        daemon.die();
        while (!client->check_daemon()) std::this_thread::yield();
        preload::Client* const fresh = next.attach();
        EXPECT_NE(fresh, nullptr);
        preload::report_dead_flows(*client, *fresh);
        return next.reported();
    }
    static std::set<std::uint16_t> remote_ports(const std::vector<FakeDaemon::Reported>& reported) {
        std::set<std::uint16_t> ports;
        for (const auto& each : reported) ports.insert(each.flow.remote.port);
        return ports;
    }
    FakeDaemon next;
};

TEST_F(DeadFlowsTest, AcceptedOnesAreProvedByTheListener) {
    Fd listener = listening(SOCK_NONBLOCK);
    daemon.arrive(listener->record(), 4711);
    Fd first = accept(listener);
    daemon.arrive(listener->record(), 4712);  // nobody has accepted it
    daemon.arrive(listener->record(), 4713);
    const auto reported = restarted();
    EXPECT_EQ(remote_ports(reported), (std::set<std::uint16_t>{4711, 4712, 4713}));
    EXPECT_EQ(reported.size(), 3u);
    for (const auto& each : reported) {
        EXPECT_EQ(each.flow.local.port, port);
        EXPECT_EQ(each.proven_port, port);
    }
}

TEST_F(DeadFlowsTest, AcceptedOnesWithAKernelSocketOfTheirOwnAreProvedByTheListener) {
    Fd listener = listening(SOCK_NONBLOCK);
    daemon.arrive(listener->record(), 4711);
    Fd first = accept(listener);
    ASSERT_EQ(first.set_int(SOL_SOCKET, SO_PRIORITY, 3), 0);
    const auto reported = restarted();
    ASSERT_EQ(reported.size(), 1u);
    EXPECT_EQ(reported[0].proven_port, port);
}

TEST_F(DeadFlowsTest, OpenedOnesAreProvedByTheirOwnSocket) {
    Fd a = connected();
    Fd b = connected();
    Fd refused = open(SOCK_STREAM);
    EXPECT_NE(refused.connect("10.77.0.9", FakeDaemon::kRefusingPort), 0);
    Fd silent = open(SOCK_STREAM | SOCK_NONBLOCK);
    EXPECT_NE(silent.connect("10.77.0.9", FakeDaemon::kSilentPort), 0);
    const auto reported = restarted();
    ASSERT_EQ(reported.size(), 2u) << "what was never established has no peer that waits";
    for (const auto& each : reported) EXPECT_EQ(each.flow.local.port, each.proven_port);
    EXPECT_NE(reported[0].proven_port, reported[1].proven_port);
}

TEST_F(DeadFlowsTest, EachIsReportedOnceByAFamily) {
    Fd listener = listening(SOCK_NONBLOCK);
    daemon.arrive(listener->record(), 4711);
    Fd accepted = accept(listener);
    Fd opened = connected();
    Fd twin(::dup(opened.number()));
    EXPECT_EQ(restarted().size(), 2u);
    preload::report_dead_flows(*client, *preload::Client::current());  // as another process of the family
    EXPECT_EQ(next.reported().size(), 2u);
}

TEST_F(DeadFlowsTest, WhatTheProgramHasClosedSinceIsReportedToo) {
    Fd listener = listening(SOCK_NONBLOCK);
    daemon.arrive(listener->record(), 4711);
    Fd accepted = accept(listener);
    daemon.die();
    while (!client->check_daemon()) std::this_thread::yield();
    accepted.close();
    preload::Client* const fresh = next.attach();
    preload::report_dead_flows(*client, *fresh);
    EXPECT_EQ(remote_ports(next.reported()), std::set<std::uint16_t>{4711});
}

TEST_F(DeadFlowsTest, WhatTheProgramHadClosedBeforeIsNot) {
    Fd listener = listening(SOCK_NONBLOCK);
    const auto record = daemon.arrive(listener->record(), 4711);
    accept(listener).close();
    ASSERT_TRUE(daemon.wait_closed(*record));
    EXPECT_TRUE(restarted().empty());
}

TEST_F(DeadFlowsTest, WithoutTheListenerTheKernelIsAskedForThePort) {
    Fd listener = listening(SOCK_NONBLOCK);
    daemon.arrive(listener->record(), 4711);
    Fd accepted = accept(listener);
    // The port is on this host (the fake daemon's connections have their listener's address, which is all of them).
    listener.close();
    const auto reported = restarted();
    ASSERT_EQ(reported.size(), 1u);
    EXPECT_EQ(reported[0].proven_port, port);
    Fd again = open(SOCK_STREAM);
    const sockaddr_in any = ipv4("0.0.0.0", port);
    EXPECT_EQ(again->bind(again.number(), as_sockaddr(any), sizeof any), 0) << "and given back";
}

TEST_F(DeadFlowsTest, WhatSomebodyElseListensOnIsNotReported) {
    Fd listener = listening(SOCK_NONBLOCK);
    daemon.arrive(listener->record(), 4711);
    Fd accepted = accept(listener);
    listener.close();
    const int other = preload::libc::socket(AF_INET, SOCK_STREAM, 0);  // another program has taken the port
    const sockaddr_in any = ipv4("0.0.0.0", port);
    ASSERT_EQ(preload::libc::bind(other, as_sockaddr(any), static_cast<socklen_t>(sizeof any)), 0);
    ASSERT_EQ(preload::libc::listen(other, 1), 0);
    EXPECT_TRUE(restarted().empty());
    preload::raw::close(other);
}

TEST_F(DeadFlowsTest, MoreThanAMessageHolds) {
    Fd listener = listening(SOCK_NONBLOCK);
    std::vector<Fd> accepted;
    std::uint16_t remote = 1000;
    while (daemon.arrive(listener->record(), remote)) {
        accepted.push_back(accept(listener));
        ++remote;
    }
    std::vector<Fd> opened;
    for (int i = 0; i < 20; ++i) opened.push_back(connected());
    ASSERT_GT(accepted.size() + opened.size(), std::size_t{shm::ReportDead::kMost});
    const auto reported = restarted();
    EXPECT_EQ(reported.size(), accepted.size() + opened.size());
    for (const auto& each : reported) EXPECT_EQ(each.flow.local.port, each.proven_port);
}

}  // namespace
}  // namespace culvert::test
