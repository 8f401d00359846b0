// How connections begin: active, passive, simultaneous; what the options of the SYNs agree on.
#include "tests/support/stack_test.h"

namespace culvert::test {
namespace {

using stack::tcp::Options;
using stack::tcp::State;

TEST(TcpOpen, ActiveOpenOffersEverything) {  // [RFC9293 3.7.1 MUST-14] [RFC7323 2, 3] [RFC2018 2]
    StackTest t;
    t.connect();
    t.expect(syn().seq(0).mss(1460).sack_ok().wscale(7).window(65535));
    EXPECT_TRUE(t.last.options.timestamps.has_value());
    t.inject(syn_ack().seq(0).ack(1).mss(1400).sack_ok().wscale(3).ts(77, t.last.options.timestamps->value));
    t.expect(ack().seq(1).ack(1).ts_echo(77));
    EXPECT_TRUE(t.app.established);
    EXPECT_EQ(t.state(), State::kEstablished);
    const auto info = t.connection->info();
    EXPECT_EQ(info.mss, 1400u - 12);
    EXPECT_TRUE(info.timestamps && info.sack && info.window_scaling);
    EXPECT_EQ(info.send_scale, 3);
    EXPECT_EQ(t.host.counters.tcp_established, 1u);
}

TEST(TcpOpen, ActiveOpenOverIpv6) {
    StackTest t;
    t.over_ipv6().connect();
    t.expect(syn().seq(0).mss(1440));
    t.inject(syn_ack().seq(0).ack(1).mss(1440));
    t.expect(ack().seq(1).ack(1));
    EXPECT_EQ(t.connection->info().mss, 1440u);
}

TEST(TcpOpen, MssWithoutTheOptionIsTheDefault) {  // [RFC9293 3.7.1 MUST-15]
    StackTest t;
    t.established({}, syn_ack());
    EXPECT_EQ(t.connection->info().mss, 536u);
}

TEST(TcpOpen, WhatThePeerDoesNotOfferIsNotUsed) {
    StackTest t;
    t.connect();
    t.expect(syn().seq(0));
    t.inject(syn_ack().seq(0).ack(1).mss(1460).window(1000));
    t.expect(ack().seq(1).ack(1).no_ts().window(65535));
    const auto info = t.connection->info();
    EXPECT_FALSE(info.timestamps || info.sack || info.window_scaling);
    EXPECT_EQ(info.send_window, 1000u);
}

TEST(TcpOpen, SynBacksOffExponentiallyAndGivesUp) {  // [RFC6298 5.5] [RFC9293 3.8.3 MUST-22]
    StackTest t;
    t.connect();
    t.expect(syn().seq(0));
    for (int i = 0; i < 6; ++i) {
        t.after(1s * (1 << i) - (i == 0 ? 2ms : 4ms)).expect_nothing();
        t.after(4ms).expect(syn().seq(0));
    }
    t.after(63s).expect_nothing();
    EXPECT_FALSE(t.app.closed);
    t.after(2s).expect_nothing();
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.app.error, ETIMEDOUT);
    EXPECT_EQ(t.host.tcp.usage().flows, 0u);
}

TEST(TcpOpen, ResetAnswersSyn) {  // [RFC9293 3.10.7.3]
    StackTest t;
    t.connect();
    t.expect(syn().seq(0));
    t.inject(rst().seq(0));  // no ACK: anybody could have sent it
    EXPECT_FALSE(t.app.closed);
    EXPECT_EQ(t.dropped(Drop::kTcpStrayReset), 1u);
    t.inject(rst().seq(0).ack(1));
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.app.error, ECONNREFUSED);
    t.expect_nothing();
    EXPECT_EQ(t.host.tcp.usage().connections, 0u);
    EXPECT_TRUE(t.host.ports.held.empty());
}

TEST(TcpOpen, AckOfSomethingElseIsReset) {  // [RFC9293 3.10.7.3 first] half-open recovery of figure 9
    StackTest t;
    t.connect();
    t.expect(syn().seq(0));
    t.inject(ack().seq(100).ack(900));
    t.expect(rst().seq(900));
    EXPECT_EQ(t.state(), State::kSynSent);
    t.inject(syn_ack().seq(0).ack(1).mss(1460));
    t.expect(ack().seq(1).ack(1));
}

TEST(TcpOpen, OldDuplicateSynDoesNoHarm) {  // [RFC9293 3.5 figure 8]
    for (const bool v6 : {false, true}) {
        StackTest t;
        if (v6) t.over_ipv6();
        t.listen();
        t.inject(syn().seq(90).mss(1460));  // of a connection long gone
        t.expect(syn_ack().seq(0).ack(91));
        t.inject(rst().seq(91));  // the peer: I have not said that
        t.expect_nothing();
        EXPECT_EQ(t.host.tcp.usage().half_open, 0u);  // back in LISTEN [RFC9293 3.10.7.4 second]
        t.iss_known = false;
        t.inject(syn().seq(100).mss(1460));
        t.expect(syn_ack().seq(0).ack(101));
        t.inject(ack().seq(101).ack(1));
        EXPECT_EQ(t.state(), State::kEstablished);
    }
}

TEST(TcpOpen, OldDuplicateSynBeforeTheTrueOne) {  // [RFC9293 3.5 figure 8] the SYNs cross: [RFC5961 4.2]
    StackTest t;
    t.listen();
    t.inject(syn().seq(90).mss(1460));
    t.expect(syn_ack().seq(0).ack(91));
    t.inject(syn().seq(100).mss(1460));
    t.expect(ack().seq(1).ack(91));  // whoever sent the second tells us of the first
    t.inject(rst().seq(91));
    EXPECT_EQ(t.host.tcp.usage().half_open, 0u);
    t.expect_nothing();
}

TEST(TcpOpen, PeerThatHasForgottenUsSaysSo) {  // [RFC9293 3.5.1 figure 10]
    for (const bool v6 : {false, true}) {
        StackTest t;
        if (v6) t.over_ipv6();
        t.accepted_connection();
        t.send("are you there?").expect(ack().seq(1).ack(1).data("are you there?"));
        t.inject(rst().seq(1));  // SEQ = our ACK
        EXPECT_EQ(t.app.error, ECONNRESET);
        EXPECT_EQ(t.app.chunks_out(), 0u);
        EXPECT_EQ(t.host.tcp.usage().flows, 0u);
    }
}

TEST(TcpOpen, SynAckToAListenerIsReset) {  // [RFC9293 3.5.1 figure 11, 3.10.7.2]
    for (const bool v6 : {false, true}) {
        StackTest t;
        if (v6) t.over_ipv6();
        t.listen();
        t.inject(syn_ack().seq(5).ack(77));  // of an old SYN "of ours"
        t.expect(rst().seq(77));
        EXPECT_EQ(t.host.tcp.usage().half_open, 0u);
        t.inject(syn().seq(0).mss(1460));
        t.expect(syn_ack().seq(0).ack(1));
    }
}

TEST(TcpOpen, DataOfASynComesAgain) {  // [RFC9293 3.10.7.2] not queued, so not acknowledged
    StackTest t;
    t.listen();
    t.inject(syn().seq(0).mss(1460).data("early"));
    t.expect(syn_ack().seq(0).ack(1));
    EXPECT_EQ(t.dropped(Drop::kTcpSynData), 1u);
    t.inject(ack().seq(1).ack(1).data("early"));
    EXPECT_EQ(t.app.received, "early");
    t.skip_output();
}

TEST(TcpOpen, SimultaneousOpen) {  // [RFC9293 3.5 MUST-10, figure 7]
    StackTest t;
    t.connect();
    t.expect(syn().seq(0));
    t.inject(syn().seq(0).mss(1000));
    EXPECT_EQ(t.state(), State::kSynReceived);
    t.expect(syn_ack().seq(0).ack(1).sack_ok(false).no_ts());
    t.inject(syn_ack().seq(0).ack(1).mss(1000));
    EXPECT_EQ(t.state(), State::kEstablished);
    EXPECT_TRUE(t.app.established);
    EXPECT_EQ(t.connection->info().mss, 1000u);
    t.expect(ack().seq(1).ack(1));
    t.inject(ack().seq(1).ack(1).data("hello"));
    EXPECT_EQ(t.app.received, "hello");
    t.after(50ms).expect(ack().ack(6));
}

TEST(TcpOpen, TextOfASimultaneousOpensAnswerBeginsBehindItsSyn) {  // [RFC9293 3.4] SYN has a sequence number of its own
    for (const bool ipv6 : {false, true}) {
        StackTest t;
        if (ipv6) t.over_ipv6();
        t.connect();
        t.expect(syn().seq(0));
        t.inject(syn().seq(0));
        t.expect(syn_ack().seq(0).ack(1));
        t.inject(syn_ack().seq(0).ack(1).data("hello"));
        EXPECT_EQ(t.app.received, "hello");
        t.expect(ack().seq(1).ack(6));
        t.inject(ack().seq(6).ack(1).data(" world"));
        EXPECT_EQ(t.app.received, "hello world");
    }
}

TEST(TcpOpen, ConnectToItself) {
    // The two ends are one: every segment comes back. [RFC9293 3.5 MUST-10]
    StackTest t;
    t.remote = t.local;
    t.connect();
    t.flush();
    for (int turn = 0; turn < 4; ++turn) {
        auto& local = t.host.output.local_packets();
        const auto packets = std::vector(local.begin(), local.end());
        local.clear();
        for (auto entry : packets) {
            std::vector<std::byte> frame(entry.packet.fragments[0].begin(), entry.packet.fragments[0].end());
            entry.interface->tx->abandon(entry.packet);
            const auto at_tcp = std::span<const std::byte>(frame);
            const RxPacket packet{.head = at_tcp, .rest = {}, .length = static_cast<std::uint32_t>(frame.size()),
                                  .checksum = ChecksumState::kVerified};
            stack::IpInput input(t.host.output.local_addresses());
            const auto ip = input.accept(t.host.eth0, packet, true);
            ASSERT_TRUE(ip.has_value());
            t.host.tcp.input(*ip, t.now);
        }
        t.host.tcp.flush(t.now);
    }
    EXPECT_EQ(t.state(), State::kEstablished);
    for (auto& entry : t.host.output.local_packets()) entry.interface->tx->abandon(entry.packet);
    t.host.output.local_packets().clear();
}

TEST(TcpOpen, PassiveOpen) {  // [RFC9293 3.10.7.2, 3.10.7.4]
    StackTest t;
    t.listen();
    EXPECT_EQ(t.host.ports.held.size(), 1u);
    t.inject(syn().seq(0).mss(1460).sack_ok().wscale(2).ts(10, 0));
    EXPECT_EQ(t.connection, nullptr);
    EXPECT_EQ(t.host.tcp.usage().half_open, 1u);
    EXPECT_EQ(t.host.tcp.usage().connections, 0u);
    t.expect(syn_ack().seq(0).ack(1).mss(1460).sack_ok().wscale(7).ts_echo(10));
    const std::uint32_t stamp = t.last.options.timestamps->value;
    t.inject(ack().seq(1).ack(1).window(100).ts(11, stamp));
    ASSERT_NE(t.connection, nullptr);
    EXPECT_EQ(t.state(), State::kEstablished);
    EXPECT_EQ(t.connection->info().send_window, 400u);
    EXPECT_EQ(t.host.tcp.usage().half_open, 0u);
    EXPECT_EQ(t.host.counters.tcp_passive_opens, 1u);
    EXPECT_EQ(t.connection->local(), t.local);
    EXPECT_EQ(t.connection->remote(), t.remote);
    t.inject(ack().seq(1).ack(1).data("GET").ts(12, stamp));
    EXPECT_EQ(t.app.received, "GET");
    t.after(50ms).expect(ack().seq(1).ack(4).ts_echo(12));
}

TEST(TcpOpen, SynAckOffersOnlyWhatTheSynDid) {  // [RFC7323 2.2, 3.2] [RFC2018 2]
    StackTest t;
    t.listen();
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1).sack_ok(false).wscale(255).no_ts());
}

TEST(TcpOpen, DataCompletesTheHandshakeWhenTheAckIsLost) {
    StackTest t;
    t.listen();
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
    t.inject(ack().seq(1).ack(1).data("request"));
    ASSERT_NE(t.connection, nullptr);
    EXPECT_EQ(t.app.received, "request");
    t.send("reply").expect(ack().seq(1).ack(8).data("reply"));
}

TEST(TcpOpen, SynAckIsRepeatedFiveTimes) {
    StackTest t;
    t.listen();
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
    for (int i = 0; i < 5; ++i) t.after(1s * (1 << i) + 2ms).expect(syn_ack().seq(0).ack(1));
    EXPECT_EQ(t.host.tcp.usage().half_open, 1u);
    t.after(33s).expect_nothing();
    EXPECT_EQ(t.host.tcp.usage().half_open, 0u);
    EXPECT_EQ(t.host.tcp.usage().flows, 0u);
}

TEST(TcpOpen, RepeatedSynIsAnsweredAgain) {
    StackTest t;
    t.listen();
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
    EXPECT_EQ(t.host.tcp.usage().half_open, 1u);
}

TEST(TcpOpen, FullAcceptQueueLosesNothing) {
    StackTest t;
    t.room_to_accept = false;
    t.listen();
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
    t.inject(ack().seq(1).ack(1));
    EXPECT_EQ(t.connection, nullptr);
    EXPECT_EQ(t.dropped(Drop::kTcpAcceptQueueFull), 1u);
    t.room_to_accept = true;
    t.after(1s + 1ms).expect(syn_ack().seq(0).ack(1));  // the timer asks the client again
    t.inject(ack().seq(1).ack(1));
    ASSERT_NE(t.connection, nullptr);
    EXPECT_EQ(t.state(), State::kEstablished);
}

TEST(TcpOpen, RefusedByTheOwnerIsReset) {
    StackTest t;
    t.refuse = true;
    t.listen();
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
    t.inject(ack().seq(1).ack(1));
    t.expect(rst().ack(1).seq(1));
    EXPECT_EQ(t.host.tcp.usage().connections, 0u);
}

TEST(TcpOpen, FullSynQueueDropsTheOldestWithoutCookies) {  // [RFC4987 3.4]
    HostConfig config{.stack = small_stack_config()};
    config.stack.syn_cookies = stack::tcp::SynCookiePolicy::kOff;
    StackTest t(config);
    t.listen();
    for (Port port = 1; port <= 65; ++port) {
        t.remote.port = port;
        t.inject(syn().seq(0).mss(1460));
    }
    EXPECT_EQ(t.host.tcp.usage().half_open, 64u);
    EXPECT_EQ(t.dropped(Drop::kTcpSynQueueFull), 1u);
    t.skip_output();
    t.remote.port = 1;
    t.inject(ack().seq(1).ack(1));  // forgotten
    t.expect(rst());
    t.remote.port = 2;
    t.inject(syn().seq(0).mss(1460));
    t.iss_known = false;
    t.expect(syn_ack().ack(1));
    t.inject(ack().seq(1).ack(1));
    EXPECT_EQ(t.accepted, 1);
    t.skip_output();
}

TEST(TcpOpen, HalfOpenIsResetOnlyAtItsSequence) {  // [RFC5961 3.2]
    StackTest t;
    t.listen();
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
    t.inject(rst().seq(100));
    t.expect(ack().seq(1).ack(1));
    t.inject(rst().seq(1));
    t.expect_nothing();
    EXPECT_EQ(t.host.tcp.usage().half_open, 0u);
}

TEST(TcpOpen, HalfOpenRefusesWrongAck) {  // [RFC9293 3.10.7.4 fifth]
    StackTest t;
    t.listen();
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
    t.inject(ack().seq(1).ack(500));
    t.expect(rst().seq(500));
    EXPECT_EQ(t.connection, nullptr);
}

TEST(TcpOpen, NobodyListens) {  // [RFC9293 3.10.7.1]
    StackTest t;
    t.inject(syn().seq(0));
    t.expect(rst().ack(1));
    EXPECT_EQ(t.last.seq, 0u);
    t.inject(ack().seq(7).ack(1234));
    t.expect(rst().seq(1234));
    t.inject(rst().seq(7));
    t.expect_nothing();
    EXPECT_EQ(t.dropped(Drop::kTcpNoListener), 2u);
}

TEST(TcpOpen, ListenerOnEveryAddressAndBothFamilies) {
    StackTest t;
    ASSERT_TRUE(t.host.tcp.listen({Address::any(Family::kIpv6), 80}, true, {}, t).has_value());
    EXPECT_TRUE(t.host.tcp.is_listening({Address::v4(10, 0, 0, 1), 80}));
    EXPECT_TRUE(t.host.tcp.is_listening({*Address::parse("fd00::1"), 80}));
    EXPECT_FALSE(t.host.tcp.is_listening({Address::v4(10, 0, 0, 1), 81}));
    t.local.port = 80;
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
    EXPECT_EQ(t.host.ports.held.size(), 2u);  // of both families
}

TEST(TcpOpen, ClosingTheListenerForgetsHalfOpenAndKeepsThePortForConnections) {
    StackTest t;
    auto& listener = t.listen();
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
    t.inject(ack().seq(1).ack(1));
    t.remote.port = 50001;
    t.inject(syn().seq(0).mss(1460));
    t.skip_output();
    t.host.tcp.close(listener);
    EXPECT_EQ(t.host.tcp.usage().half_open, 0u);
    EXPECT_EQ(t.host.ports.held.size(), 1u);  // the connection's
    t.remote.port = 50000;
    t.inject(ack().seq(1).ack(1).data("x"));
    EXPECT_EQ(t.app.received, "x");
    t.inject(rst().seq(2));
    EXPECT_EQ(t.app.error, ECONNRESET);
    EXPECT_TRUE(t.host.ports.held.empty());
    t.skip_output();
}

TEST(TcpOpen, SharedListenersSplitTheFlows) {  // SO_REUSEPORT
    StackTest t;
    struct Counting final : stack::tcp::ListenerOwner {
        bool can_accept() override { return true; }
        stack::tcp::ConnectionOwner* on_accept(stack::tcp::Connection&) override {
            ++count;
            return &apps.emplace_back();
        }
        std::deque<App> apps;
        int count = 0;
    } first, second;
    ASSERT_TRUE(t.host.tcp.listen({t.local.address, 80}, false, {}, first).has_value());
    ASSERT_TRUE(t.host.tcp.listen({t.local.address, 80}, false, {}, second).has_value());
    t.local.port = 80;
    for (Port port = 1; port <= 60; ++port) {
        t.remote.port = port;
        t.iss_known = false;
        t.inject(syn().seq(0).mss(1460));
        t.expect(syn_ack().seq(0).ack(1));
        t.inject(ack().seq(1).ack(1));
    }
    EXPECT_EQ(first.count + second.count, 60);
    EXPECT_GT(first.count, 10);
    EXPECT_GT(second.count, 10);
}

TEST(TcpOpen, RepeatedSynsMeetTheSameListener) {  // SO_REUSEPORT: by flow hash
    StackTest t;
    struct Full final : stack::tcp::ListenerOwner {
        bool can_accept() override { return ++asked, false; }
        stack::tcp::ConnectionOwner* on_accept(stack::tcp::Connection&) override { return nullptr; }
        int asked = 0;
    } owners[4];
    for (Full& owner : owners) ASSERT_TRUE(t.host.tcp.listen({t.local.address, 80}, false, {}, owner).has_value());
    t.local.port = 80;
    for (Port port = 1; port <= 40; ++port) {
        t.remote.port = port;
        const int before[] = {owners[0].asked, owners[1].asked, owners[2].asked, owners[3].asked};
        for (int attempt = 0; attempt < 3; ++attempt) {
            t.iss_known = false;
            t.inject(syn().seq(0).mss(1460));
            t.expect(syn_ack().seq(0).ack(1));
            t.inject(ack().seq(1).ack(1));
            t.inject(rst().seq(1));  // forgets the half-open connection: the next SYN looks for a listener again
        }
        int one = 0;
        for (int i = 0; i < 4; ++i) one += owners[i].asked == before[i] + 3 ? 1 : 0;
        EXPECT_EQ(one, 1) << "port " << port;
    }
}

TEST(TcpOpen, AHandshakeGoesOnWithWhoeverElseListens) {  // as with the kernel's socket, held by two programs
    for (const bool heir : {true, false}) {
        StackTest t;
        struct Counting final : stack::tcp::ListenerOwner {
            bool can_accept() override { return true; }
            stack::tcp::ConnectionOwner* on_accept(stack::tcp::Connection&) override { return ++count, &app; }
            App app;
            int count = 0;
        } first, second;
        const auto closing = t.host.tcp.listen({t.local.address, 80}, false, {}, first);
        ASSERT_TRUE(closing.has_value());
        t.local.port = 80;
        t.inject(syn().seq(0).mss(1460));
        t.expect(syn_ack().seq(0).ack(1));
        if (heir) {
            ASSERT_TRUE(t.host.tcp.listen({t.local.address, 80}, false, {}, second).has_value());
        }
        EXPECT_EQ(t.host.tcp.heir_of(**closing), heir ? &second : nullptr);
        t.host.tcp.close(**closing);
        t.inject(ack().seq(1).ack(1));
        EXPECT_EQ(first.count, 0);
        EXPECT_EQ(second.count, heir ? 1 : 0);
        if (heir) continue;
        t.expect(rst().seq(1));
    }
}

TEST(TcpOpen, FlowInUse) {
    StackTest t;
    t.connect();
    t.expect(syn().seq(0));
    App other;
    const auto again = t.host.tcp.connect(t.local, t.remote, {}, other, t.now);
    ASSERT_FALSE(again.has_value());
    EXPECT_EQ(again.error().code, EADDRINUSE);
}

TEST(TcpOpen, NoRoute) {
    StackTest t;
    t.remote.address = Address::v4(192, 0, 2, 1);
    const auto none = t.host.tcp.connect(t.local, t.remote, {}, t.app, t.now);
    ASSERT_FALSE(none.has_value());
    EXPECT_EQ(none.error().code, ENETUNREACH);
    EXPECT_EQ(t.host.tcp.usage().flows, 0u);
}

TEST(TcpOpen, JumboMtuAnnouncesJumboMss) {
    StackTest t(StackTest::with_defaults({.mtu = 65535}));
    t.connect();
    t.expect(syn().seq(0).mss(65495));
}

TEST(TcpOpen, IcmpErrorEndsOnlyAnAttempt) {  // [RFC9293 3.9.2.2 MUST-54, MUST-56] [RFC1122 3.2.2.1 hint] [RFC5461]
    StackTest t;
    t.connect();
    t.expect(syn().seq(0));
    t.icmp_error(t.our_iss + 5000, EHOSTUNREACH);
    EXPECT_EQ(t.dropped(Drop::kIcmpSequence), 1u);
    EXPECT_FALSE(t.app.closed);
    t.icmp_error(t.our_iss, EHOSTUNREACH);
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.app.error, EHOSTUNREACH);
    t.flush();

    StackTest u;
    u.established().send("data").expect(ack().seq(1).data("data"));
    u.icmp_error(u.our_iss + 1, EHOSTUNREACH);
    EXPECT_FALSE(u.app.closed);
}

}  // namespace
}  // namespace culvert::test
