// What time alone brings about: zero-window probes, keepalive, idle restart, an idle connection that costs nothing.
#include "tests/support/stack_test.h"

namespace culvert::test {
namespace {

using stack::tcp::Options;
using stack::tcp::State;

TEST(TcpTimers, ZeroWindowIsProbedAndOpens) {  // [RFC9293 3.8.6.1 MUST-36, MUST-37, SHLD-29, SHLD-30]
    StackTest t;
    t.established({}, syn_ack().mss(1460).window(0));
    t.send("waiting").expect_nothing();
    t.after(195ms).expect_nothing();
    t.after(10ms).expect(ack().seq(0));  // old and empty: must be answered
    EXPECT_EQ(t.host.counters.tcp_zero_window_probes, 1u);
    t.inject(ack().seq(1).ack(1).window(0));
    t.after(390ms).expect_nothing();
    t.after(20ms).expect(ack().seq(0));
    t.inject(ack().seq(1).ack(1).window(0));
    t.after(785ms).expect_nothing();
    t.after(30ms).expect(ack().seq(0));
    t.inject(ack().seq(1).ack(1).window(1000));
    t.expect(ack().seq(1).data("waiting"));
    t.inject(ack().seq(1).ack(8));
    t.after(1h).expect_nothing();
}

TEST(TcpTimers, AnsweredProbesNeverGiveUp) {  // [RFC9293 3.8.6.1 MUST-37]
    StackTest t;
    t.established({}, syn_ack().mss(1460).window(0));
    t.send("waiting");
    for (int i = 0; i < 40; ++i) {
        t.after(125s).skip_output();
        ASSERT_FALSE(t.app.closed) << i;
        t.inject(ack().seq(1).ack(1).window(0));
    }
}

TEST(TcpTimers, UnansweredProbesGiveUp) {
    StackTest t;
    t.established({}, syn_ack().mss(1460).window(0));
    t.send("waiting");
    t.after(40min).skip_output();
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.app.error, ETIMEDOUT);
}

TEST(TcpTimers, SillyWindowIsUsedInTheEnd) {  // [RFC9293 3.8.6.2.1] the override timeout
    StackTest t;
    t.established({}, syn_ack().mss(1460).window(1000));
    t.send(std::string(3000, 'x'));
    t.expect(ack().seq(1).len(1000));
    t.inject(ack().seq(1).ack(1001).window(100));
    t.expect_nothing();
    t.after(250ms).expect(ack().seq(1001).len(100));
    t.inject(ack().seq(1).ack(1101).window(5000));
    t.expect(ack().seq(1101).len(1460)).expect(ack().seq(2561).len(440));
}

TEST(TcpTimers, KeepaliveFindsTheDead) {  // [RFC9293 3.8.4 MUST-24 .. 27, MUST-29, SHLD-12, MAY-5]
    StackTest t;
    t.established({.keep_alive = true, .keep_alive_idle = 10s, .keep_alive_interval = 2s, .keep_alive_count = 3});
    t.after(9s).expect_nothing();
    t.after(1100ms).expect(ack().seq(0).ack(1));
    t.inject(ack().seq(1).ack(1));  // alive
    t.after(9500ms).expect_nothing();
    for (int i = 0; i < 3; ++i) t.after(i == 0 ? 600ms : 2s).expect(ack().seq(0).ack(1));
    EXPECT_FALSE(t.app.closed);
    t.after(2100ms).expect(rst().seq(1).ack(1));
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.app.error, ETIMEDOUT);
    EXPECT_EQ(t.host.counters.tcp_keepalive_probes, 4u);
}

TEST(TcpTimers, AnAnsweredKeepaliveKeepsTheConnectionHoweverLongTheInterval) {
    StackTest t;
    t.established({.keep_alive = true, .keep_alive_idle = 2s, .keep_alive_interval = 10s, .keep_alive_count = 3});
    for (int round = 0; round < 10; ++round) {
        t.after(round == 0 ? 2100ms : 10s).expect(ack().seq(0).ack(1));
        t.inject(ack().seq(1).ack(1));
    }
    EXPECT_FALSE(t.app.closed);
}

TEST(TcpTimers, NoKeepaliveUnlessAsked) {  // [RFC9293 3.8.4 MUST-25]
    StackTest t;
    t.established();
    t.after(24h).expect_nothing();
    EXPECT_EQ(t.state(), State::kEstablished);
}

TEST(TcpTimers, KeepaliveMayBeSetLater) {
    StackTest t;
    t.established();
    t.after(100s);
    t.connection->set_options({.keep_alive = true, .keep_alive_idle = 10s, .keep_alive_interval = 1s});
    t.after(1ms).expect(ack().seq(0));
    t.inject(ack().seq(1).ack(1));
    t.after(9s).expect_nothing();
    t.after(2s).expect(ack().seq(0));
}

TEST(TcpTimers, IdleConnectionHasNoTimer) {
    StackTest t;
    t.accepted_connection();
    t.inject(ack().seq(1).ack(1).data("request"));
    t.send("reply").expect(ack().seq(1).data("reply"));
    t.inject(ack().seq(8).ack(6));
    t.after(10s).expect_nothing();
    EXPECT_EQ(t.host.tcp.next_deadline(), kNever);
}

TEST(TcpTimers, CongestionWindowShrinksAfterIdle) {  // [RFC5681 4.1]
    StackTest t;
    t.established({}, syn_ack().mss(1000).window(65535));
    for (int i = 0; i < 3; ++i) {
        t.send(std::string(20000, 'x'));
        for (int round = 0; round < 4; ++round) {
            t.skip_output();
            t.inject(ack().seq(1).ack(t.last.seq == 0 ? 1 : 1 + static_cast<std::uint32_t>(t.app.acknowledged)));
            t.inject(ack().seq(1).ack(1 + static_cast<std::uint32_t>(t.app.acknowledged) +
                                      t.connection->info().in_flight_bytes));
        }
    }
    ASSERT_EQ(t.connection->unacknowledged_bytes(), 0u);
    const std::uint32_t grown = t.connection->info().cwnd_bytes;
    EXPECT_GT(grown, 10000u);
    t.after(60s).send(std::string(50000, 'x')).skip_output();
    EXPECT_LT(t.connection->info().cwnd_bytes, grown);
    EXPECT_LE(t.connection->info().in_flight_bytes, 14600u);
}

}  // namespace
}  // namespace culvert::test
