// Explicit Congestion Notification on a live stack: the handshake, the echo of marks, the answer to echoes.
#include "tests/support/stack_test.h"

namespace culvert::test {
namespace {

using stack::tcp::Congestion;
using stack::tcp::EcnMode;

std::string text(std::size_t length) { return std::string(length, 'x'); }

HostConfig with_ecn(EcnMode mode, Congestion congestion = Congestion::kCubic) {
    HostConfig config;
    config.stack = small_stack_config();
    config.stack.ecn = mode;
    config.stack.congestion = congestion;
    return config;
}

/// Segments of 1000 bytes, so ten of them are the first window in either family.
Seg agreement() { return syn_ack().ece().mss(1000).sack_ok(); }

/// Every test runs over IPv4 and IPv6.
class TcpEcn : public testing::TestWithParam<bool> {
protected:
    StackTest& over_family(StackTest& t) { return GetParam() ? t.over_ipv6() : t; }
    /// We asked, the peer agreed.
    StackTest& established(StackTest& t, Seg answer = agreement()) {
        over_family(t).connect();
        t.expect(syn().seq(0).ece().cwr().not_ect());
        t.inject(answer.seq(0).ack(1));
        return t.expect(ack().seq(1).ack(1).not_ect());
    }
    static std::uint32_t window(StackTest& t) { return t.connection->info().cwnd_bytes; }
};
INSTANTIATE_TEST_SUITE_P(Family, TcpEcn, testing::Bool(), [](const auto& p) { return p.param ? "IPv6" : "IPv4"; });

// [RFC3168 6.1.1] Who says yes to a SYN.
TEST_P(TcpEcn, PassiveNegotiation) {
    struct Case {
        const char* what;
        EcnMode mode;
        Congestion congestion;
        Seg request;
        bool agreed;
    };
    const Congestion cubic = Congestion::kCubic;
    const Case cases[] = {
        {"asked, passive", EcnMode::kPassive, cubic, syn().ece().cwr(), true},
        {"asked, on", EcnMode::kOn, cubic, syn().ece().cwr(), true},
        {"asked, off", EcnMode::kOff, cubic, syn().ece().cwr(), false},
        {"not asked", EcnMode::kOn, cubic, syn(), false},
        {"ECE alone", EcnMode::kOn, cubic, syn().ece(), false},
        {"CWR alone", EcnMode::kOn, cubic, syn().cwr(), false},
        {"asked by a SYN that is ECT", EcnMode::kPassive, cubic, syn().ece().cwr().ect(), false},
        {"asked by a SYN that is CE", EcnMode::kPassive, cubic, syn().ece().cwr().ce(), false},
    };
    for (const Case& c : cases) {
        SCOPED_TRACE(c.what);
        StackTest t(with_ecn(c.mode, c.congestion));
        over_family(t).listen();
        Seg request = c.request;
        t.inject(request.seq(0).mss(1000).sack_ok());
        t.expect(c.agreed ? syn_ack().seq(0).ack(1).ece().not_ect() : syn_ack().seq(0).ack(1).not_ect());
        t.inject(ack().seq(1).ack(1));
        ASSERT_NE(t.connection, nullptr);
        EXPECT_EQ(t.connection->info().ecn, c.agreed);
        EXPECT_EQ(t.host.counters.tcp_ecn_connections, c.agreed ? 1u : 0u);
        t.send("data").expect(c.agreed ? ack().seq(1).data("data").ect() : ack().seq(1).data("data").not_ect());
    }
}

// [RFC3168 6.1.1] What counts as a yes to our SYN.
TEST_P(TcpEcn, ActiveNegotiation) {
    struct Case {
        const char* what;
        EcnMode mode;
        Seg answer;
        bool agreed;
    };
    const Case cases[] = {
        {"agreed", EcnMode::kOn, syn_ack().ece(), true},
        {"refused", EcnMode::kOn, syn_ack(), false},
        {"reflected by a broken host", EcnMode::kOn, syn_ack().ece().cwr(), false},
        {"CWR alone", EcnMode::kOn, syn_ack().cwr(), false},
        {"agreed unasked, passive", EcnMode::kPassive, syn_ack().ece(), false},
        {"agreed unasked, off", EcnMode::kOff, syn_ack().ece(), false},
    };
    for (const Case& c : cases) {
        SCOPED_TRACE(c.what);
        StackTest t(with_ecn(c.mode));
        over_family(t).connect();
        t.expect(c.mode == EcnMode::kOn ? syn().seq(0).ece().cwr().not_ect() : syn().seq(0).not_ect());
        Seg answer = c.answer;
        t.inject(answer.seq(0).ack(1).mss(1000).sack_ok());
        t.expect(ack().seq(1).ack(1).not_ect());
        EXPECT_EQ(t.connection->info().ecn, c.agreed);
        t.send("data").expect(c.agreed ? ack().seq(1).data("data").ect() : ack().seq(1).data("data").not_ect());
    }
}

TEST_P(TcpEcn, SynIsRepeatedWithoutAsking) {  // [RFC3168 6.1.1.1]
    StackTest t(with_ecn(EcnMode::kOn));
    over_family(t).connect();
    t.expect(syn().seq(0).ece().cwr());
    t.after(1010ms).expect(syn().seq(0));
    EXPECT_EQ(t.host.counters.tcp_ecn_fallbacks, 1u);
    // The answer to the first SYN comes late: whoever has sent a SYN that does not ask must not use ECN.
    t.inject(syn_ack().ece().seq(0).ack(1).mss(1000));
    t.expect(ack().seq(1).ack(1));
    EXPECT_FALSE(t.connection->info().ecn);
    t.send("data").expect(ack().seq(1).data("data").not_ect());
}

TEST_P(TcpEcn, PeerThatFallsBackGetsNone) {  // [RFC3168 6.1.1.1]
    StackTest t(with_ecn(EcnMode::kPassive));
    over_family(t).listen();
    t.inject(syn().ece().cwr().seq(0).mss(1000));
    t.expect(syn_ack().ece().seq(0).ack(1));
    t.inject(syn().seq(0).mss(1000));
    t.expect(syn_ack().seq(0).ack(1));
    t.inject(ack().seq(1).ack(1));
    t.send("data").expect(ack().seq(1).data("data").not_ect());
}

TEST_P(TcpEcn, CookieRemembersTheAgreement) {  // [RFC4987 3.6] in the timestamp
    for (const bool asks : {true, false}) {
        HostConfig config = with_ecn(EcnMode::kPassive);
        config.stack.syn_cookies = stack::tcp::SynCookiePolicy::kAlways;
        StackTest t(config);
        over_family(t).listen();
        t.inject((asks ? syn().ece().cwr() : syn()).seq(0).mss(1000).sack_ok().ts(100, 0));
        t.expect(asks ? syn_ack().seq(0).ack(1).ece() : syn_ack().seq(0).ack(1));
        t.inject(ack().seq(1).ack(1).ts(101, t.last.options.timestamps->value));
        ASSERT_NE(t.connection, nullptr);
        EXPECT_EQ(t.connection->info().ecn, asks);
    }
}

TEST_P(TcpEcn, SimultaneousOpen) {  // [RFC3168 6.1.1]
    for (const bool peer_asks : {true, false}) {
        StackTest t(with_ecn(EcnMode::kOn));
        over_family(t).connect();
        t.expect(syn().seq(0).ece().cwr());
        t.inject(peer_asks ? syn().ece().cwr().seq(0).mss(1000) : syn().seq(0).mss(1000));
        t.expect(peer_asks ? syn_ack().seq(0).ack(1).ece().not_ect() : syn_ack().seq(0).ack(1));
        t.inject(peer_asks ? syn_ack().ece().seq(0).ack(1) : syn_ack().seq(0).ack(1));
        t.expect(ack().seq(1).ack(1));
        t.send("data").expect(peer_asks ? ack().seq(1).data("data").ect() : ack().seq(1).data("data").not_ect());
    }
}

TEST_P(TcpEcn, SimultaneousOpenRefusedByTheSynAck) {  // [RFC3168 6.1.1]
    StackTest t(with_ecn(EcnMode::kOn));
    over_family(t).connect();
    t.expect(syn().seq(0).ece().cwr());
    t.inject(syn().ece().cwr().seq(0).mss(1000));
    t.expect(syn_ack().seq(0).ack(1).ece());
    t.inject(syn_ack().seq(0).ack(1));
    t.expect(ack().seq(1).ack(1));
    EXPECT_FALSE(t.connection->info().ecn);
    t.send("data").expect(ack().seq(1).data("data").not_ect());
}

TEST_P(TcpEcn, MarkIsEchoedUntilCwr) {  // [RFC3168 6.1.3]
    StackTest t(with_ecn(EcnMode::kOn));
    established(t);
    t.inject(ack().seq(1).ack(1).data("a").ect());
    t.after(50ms).expect(ack().ack(2).not_ect());
    EXPECT_TRUE(t.connection->info().ecn_seen);
    t.inject(ack().seq(2).ack(1).data("b").ce());
    t.expect(ack().ack(3).ece().not_ect());  // at once
    EXPECT_EQ(t.host.counters.tcp_ce_in, 1u);
    t.inject(ack().seq(3).ack(1).data("c").ect());
    t.after(50ms).expect(ack().ack(4).ece());
    t.send("d").expect(ack().seq(1).ack(4).data("d").ece().ect());  // data echoes, too
    t.inject(ack().cwr().seq(4).ack(2).data("e").ect());
    t.expect(ack().ack(5));  // at once: the peer's window may be one segment
    t.inject(ack().seq(5).ack(2).data("f").ect());
    t.after(50ms).expect(ack().ack(6));
}

TEST_P(TcpEcn, MarkOnTheSegmentWithCwrBeginsAnew) {  // [RFC3168 6.1.3]
    StackTest t(with_ecn(EcnMode::kOn));
    established(t);
    t.inject(ack().seq(1).ack(1).data("a").ce());
    t.expect(ack().ack(2).ece());
    t.inject(ack().cwr().seq(2).ack(1).data("b").ce());
    t.expect(ack().ack(3).ece());
    EXPECT_EQ(t.host.counters.tcp_ce_in, 2u);
}

TEST_P(TcpEcn, MarkOutOfOrderCounts) {  // [RFC3168 6.1.3] any data segment in the window
    StackTest t(with_ecn(EcnMode::kOn));
    established(t);
    t.inject(ack().seq(11).ack(1).data("late").ce());
    t.expect(ack().ack(1).ece().sack(11, 15));
}

TEST_P(TcpEcn, MarksThatMeanNothing) {
    StackTest t(with_ecn(EcnMode::kOn));
    established(t);
    t.inject(ack().seq(1).ack(1).ce());  // [RFC3168 6.1.4] a pure ACK is not ECN-capable
    t.expect_nothing();
    t.inject(ack().seq(1).ack(1).data("a"));
    t.after(50ms).expect(ack().ack(2));
    t.inject(ack().seq(1).ack(1).data("a").ce());  // [RFC3168 6.1.5] out of the window
    t.expect(ack().ack(2).sack(1, 2));
    EXPECT_EQ(t.host.counters.tcp_ce_in, 0u);
}

TEST_P(TcpEcn, NothingWithoutNegotiation) {
    StackTest t(with_ecn(EcnMode::kPassive));
    over_family(t).established({}, syn_ack().mss(1000).sack_ok());
    t.inject(ack().seq(1).ack(1).data("a").ce());
    t.after(50ms).expect(ack().ack(2));
    t.send(text(4000));
    for (std::uint32_t i = 0; i < 4; ++i) t.expect(ack().seq(1 + i * 1000).len(1000).not_ect());
    t.inject(ack().ece().seq(2).ack(1001));
    EXPECT_GE(window(t), 10'000u);
    EXPECT_EQ(t.host.counters.tcp_ecn_reductions, 0u);
    t.inject(ack().seq(2).ack(4001));
}

TEST_P(TcpEcn, EchoShrinksTheWindowOnce) {  // [RFC3168 6.1.2]
    struct Case {
        Congestion congestion;
        std::uint32_t left;  // of 10 segments in flight [RFC8511 3.1]
    };
    for (const Case& c : {Case{Congestion::kNewReno, 8'000}, Case{Congestion::kCubic, 8'500}}) {
        StackTest t(with_ecn(EcnMode::kOn, c.congestion));
        established(t);
        t.send(text(30'000));
        for (std::uint32_t i = 0; i < 10; ++i) t.expect(ack().seq(1 + i * 1000).len(1000).ect());
        t.inject(ack().ece().seq(1).ack(1001));
        EXPECT_EQ(window(t), c.left);
        // Nine in flight. The next echoes speak of the same window.
        t.inject(ack().ece().seq(1).ack(2001));
        t.expect_nothing();
        t.inject(ack().ece().seq(1).ack(4001));
        EXPECT_EQ(t.host.counters.tcp_ecn_reductions, 1u);
        t.expect(ack().cwr().seq(10001).len(1000).ect());  // once
        t.expect(ack().seq(11001).len(1000).ect());
        t.skip_output();
        t.inject(ack().seq(1).ack(10001));
        t.skip_output();
        EXPECT_GE(window(t), c.left);
        // What was sent after the reduction may be marked again.
        t.inject(ack().ece().seq(1).ack(11001));
        EXPECT_EQ(t.host.counters.tcp_ecn_reductions, 2u);
        EXPECT_LT(window(t), c.left + 1000);
        t.skip_output();
    }
}

TEST_P(TcpEcn, EchoAfterALossOfTheSameWindowIsNotCounted) {  // [RFC3168 6.1.2]
    StackTest t(with_ecn(EcnMode::kOn, Congestion::kNewReno));
    established(t);
    t.send(text(30'000));
    for (std::uint32_t i = 0; i < 10; ++i) t.expect(ack().seq(1 + i * 1000).len(1000).ect());
    t.inject(ack().seq(1).ack(1).sack(1001, 5001));
    t.expect(ack().seq(1).len(1000).not_ect());  // [RFC3168 6.1.5] a retransmission
    t.skip_output();
    const std::uint32_t reduced = t.connection->info().ssthresh_bytes;
    EXPECT_EQ(reduced, 5'000u);
    t.inject(ack().ece().seq(1).ack(5001));
    t.skip_output();
    t.inject(ack().ece().seq(1).ack(9001));
    t.skip_output();
    EXPECT_EQ(t.host.counters.tcp_ecn_reductions, 0u);
    EXPECT_EQ(t.connection->info().ssthresh_bytes, reduced);
}

TEST_P(TcpEcn, CwrAfterALoss) {  // [RFC3168 6.1.2] whatever shrank the window
    StackTest t(with_ecn(EcnMode::kOn, Congestion::kNewReno));
    established(t);
    t.send(text(4'000));
    for (std::uint32_t i = 0; i < 4; ++i) t.expect(ack().seq(1 + i * 1000).len(1000).ect());
    t.inject(ack().seq(1).ack(1).sack(1001, 4001));
    t.expect(ack().seq(1).len(1000).not_ect());  // CWR goes with new data only
    t.inject(ack().seq(1).ack(4001));
    t.send("new").expect(ack().cwr().seq(4001).data("new").ect());
    t.send("newer").inject(ack().seq(1).ack(4004)).expect(ack().seq(4004).data("newer").ect());
}

TEST_P(TcpEcn, NoMarksOnRetransmissionsAndProbes) {  // [RFC3168 6.1.5, 6.1.6]
    StackTest t(with_ecn(EcnMode::kOn));
    established(t);
    t.send("data").expect(ack().seq(1).data("data").ect());
    while (t.host.counters.tcp_timeouts == 0) t.after(10ms);
    while (t.segments_waiting() > 0) t.expect(ack().seq(1).data("data").not_ect());
    t.inject(ack().seq(1).ack(5).window(0));
    t.send("more").expect_nothing();
    while (t.host.counters.tcp_zero_window_probes == 0) t.after(50ms);
    t.expect(ack().seq(4).not_ect());
    t.inject(ack().seq(1).ack(5).window(1000));
    t.expect(ack().cwr().seq(5).data("more").ect());
}

TEST_P(TcpEcn, FinAloneIsNotCapable) {
    StackTest t(with_ecn(EcnMode::kOn));
    established(t);
    t.shutdown_write();
    t.expect(fin().seq(1).not_ect());
}

TEST_P(TcpEcn, TheApplicationsEcnBitsAreNotSent) {
    StackTest t(with_ecn(EcnMode::kPassive));
    over_family(t).established({.tos = 0xbb}, syn_ack().mss(1000));
    t.send("data").expect(ack().seq(1).data("data").not_ect());
    EXPECT_EQ(t.last.tos, 0xb8);
}

}  // namespace
}  // namespace culvert::test
