// Segments get lost: timeout and backoff, fast retransmit with and without SACK, limited transmit, path MTU.
#include "tests/support/stack_test.h"

namespace culvert::test {
namespace {

using stack::tcp::State;

std::string text(std::size_t length) { return std::string(length, 'x'); }

TEST(TcpLoss, TimeoutBacksOff) {  // [RFC6298 5.4 - 5.6]
    StackTest t;
    t.established({}, syn_ack().mss(1460));  // without SACK, so without loss probes
    t.after(10ms);
    t.send("data").expect(ack().seq(1).data("data"));
    t.after(195ms).expect_nothing();
    t.after(10ms).expect(ack().seq(1).data("data"));  // SRTT 0, the least RTO is 200 ms
    EXPECT_EQ(t.host.counters.tcp_timeouts, 1u);
    t.after(390ms).expect_nothing();
    t.after(15ms).expect(ack().seq(1).data("data"));
    t.after(785ms).expect_nothing();
    t.after(20ms).expect(ack().seq(1).data("data"));
    EXPECT_EQ(t.connection->info().backoffs, 3u);
    EXPECT_EQ(t.connection->info().total_retransmits, 3u);
    t.inject(ack().seq(1).ack(5));
    EXPECT_EQ(t.connection->info().backoffs, 0u);
    t.after(10s).expect_nothing();
    EXPECT_EQ(t.app.chunks_out(), 0u);
}

TEST(TcpLoss, GivesUpAfterManyTimeouts) {  // [RFC9293 3.8.3 MUST-20, SHLD-11]
    StackTest t;
    t.established();
    t.send("data").expect(ack().seq(1).data("data"));
    t.after(100s).skip_output();
    EXPECT_FALSE(t.app.closed);
    t.after(30min).skip_output();
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.app.error, ETIMEDOUT);
    EXPECT_EQ(t.host.counters.tcp_timeouts, 15u);
    EXPECT_EQ(t.host.tcp.usage().flows, 0u);
}

TEST(TcpLoss, UserTimeoutGivesUpEarlier) {  // [RFC5482] [RFC9293 3.9.1 MUST-21]
    StackTest t;
    t.established({.user_timeout = 2s});
    t.send("data").expect(ack().seq(1).data("data"));
    t.after(1900ms).skip_output();
    EXPECT_FALSE(t.app.closed);
    t.after(5s).skip_output();
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.app.error, ETIMEDOUT);
}

TEST(TcpLoss, FastRetransmitBySack) {  // [RFC6675 5]
    StackTest t;
    t.round_trip = 40ms;
    t.established();
    t.send(text(1460 * 8));
    for (std::uint32_t i = 0; i < 8; ++i) t.expect(ack().seq(1 + i * 1460).len(1460));
    t.after(40ms).inject(ack().seq(1).ack(1).sack(1461, 2921));
    t.expect_nothing();
    t.inject(ack().seq(1).ack(1).sack(1461, 4381));
    t.expect_nothing();
    t.inject(ack().seq(1).ack(1).sack(1461, 5841));  // three segments above the hole
    t.expect(ack().seq(1).len(1460));
    EXPECT_EQ(t.host.counters.tcp_fast_retransmits, 1u);
    t.expect_nothing();
    t.inject(ack().seq(1).ack(11681));
    t.after(5s).expect_nothing();
    EXPECT_EQ(t.app.chunks_out(), 0u);
    EXPECT_EQ(t.host.tcp.usage().sack_boards, 0u);
    EXPECT_EQ(t.host.counters.tcp_timeouts, 0u);
}

TEST(TcpLoss, SackRecoverySendsOnlyTheHoles) {
    StackTest t;
    t.established();
    t.send(text(1460 * 10));
    for (std::uint32_t i = 0; i < 10; ++i) t.expect(ack().seq(1 + i * 1460).len(1460));
    // 2nd and 4th are lost
    t.inject(ack().seq(1).ack(1461));
    t.inject(ack().seq(1).ack(1461).sack(2921, 4381));
    t.inject(ack().seq(1).ack(1461).sack(5841, 8761).sack(2921, 4381));
    t.inject(ack().seq(1).ack(1461).sack(5841, 14601).sack(2921, 4381));
    t.expect(ack().seq(1461).len(1460));
    t.expect(ack().seq(4381).len(1460));
    t.expect_nothing();
    t.inject(ack().seq(1).ack(14601));
    t.expect_nothing();
    EXPECT_EQ(t.app.chunks_out(), 0u);
}

TEST(TcpLoss, FastRetransmitByDuplicateAcks) {  // [RFC5681 3.2] [RFC6582]
    StackTest t;
    t.established({}, syn_ack().mss(1460));
    t.send(text(1460 * 6));
    for (std::uint32_t i = 0; i < 6; ++i) t.expect(ack().seq(1 + i * 1460).len(1460));
    t.inject(ack().seq(1).ack(1)).inject(ack().seq(1).ack(1));
    t.expect_nothing();
    t.inject(ack().seq(1).ack(1));
    t.expect(ack().seq(1).len(1460));
    t.expect_nothing();
    t.inject(ack().seq(1).ack(2921));  // partial: the next hole at once
    t.expect(ack().seq(2921).len(1460));
    t.inject(ack().seq(1).ack(8761));
    t.after(5s).expect_nothing();
}

TEST(TcpLoss, WindowUpdatesAreNoDuplicateAcks) {  // [RFC5681 2 (e)]
    StackTest t;
    t.established({}, syn_ack().mss(1460));
    t.send(text(1460 * 4));
    for (std::uint32_t i = 0; i < 4; ++i) t.expect(ack().seq(1 + i * 1460).len(1460));
    for (std::uint32_t i = 0; i < 6; ++i) t.inject(ack().seq(1).ack(1).window(40000 + i));
    t.expect_nothing();
}

TEST(TcpLoss, TimeoutResendsEverythingInSlowStart) {  // [RFC5681 3.1]
    StackTest t;
    t.established({}, syn_ack().mss(1460));
    t.send(text(1460 * 4));
    for (std::uint32_t i = 0; i < 4; ++i) t.expect(ack().seq(1 + i * 1460).len(1460));
    t.after(210ms).expect(ack().seq(1).len(1460));
    t.expect_nothing();
    t.inject(ack().seq(1).ack(1461));
    t.expect(ack().seq(1461).len(1460));
    t.expect(ack().seq(2921).len(1460));
    t.expect_nothing();
    t.inject(ack().seq(1).ack(5841));
    t.after(5s).expect_nothing();
}

TEST(TcpLoss, LostFinIsRetransmitted) {
    StackTest t;
    t.established();
    t.send("bye").shutdown_write().expect(fin().seq(1).data("bye"));
    t.after(210ms).expect(fin().seq(1).data("bye"));
    t.inject(ack().seq(1).ack(4));  // the data arrived, the FIN did not
    t.expect_nothing();
    t.after(500ms).expect(fin().seq(4));
    t.inject(ack().seq(1).ack(5));
    EXPECT_EQ(t.state(), State::kFinWait2);
}

TEST(TcpLoss, PathMtuLowersTheSegmentAndResendsAtOnce) {  // [RFC1191 6.5] [RFC5927 4.1]
    StackTest t;
    t.established();
    t.send(text(2920));
    t.expect(ack().seq(1).len(1460)).expect(ack().seq(1461).len(1460));
    t.icmp_error(t.our_iss + 1 + 50000, 0, 1000);
    EXPECT_EQ(t.dropped(Drop::kIcmpSequence), 1u);
    t.expect_nothing();
    t.icmp_error(t.our_iss + 1, 0, 1000);
    t.expect(ack().seq(1).len(960)).expect(ack().seq(961).len(960)).expect(ack().seq(1921).len(960));
    t.expect(ack().seq(2881).len(40));
    EXPECT_EQ(t.connection->info().mss, 960u);
    t.inject(ack().seq(1).ack(2921));
    t.after(5s).expect_nothing();
}

TEST(TcpLoss, APathMtuThatIsKnownIsDroppedAndNotBelieved) {
    for (const bool v6 : {false, true}) {
        StackTest t;
        if (v6) t.over_ipv6();
        t.established();
        t.send("x").expect(ack().seq(1).data("x"));
        EXPECT_FALSE(t.icmp_error(t.our_iss + 1, 0, 1500));
        EXPECT_EQ(t.dropped(Drop::kIcmpMtuKnown), 1u);
        EXPECT_EQ(t.host.counters.icmp_in, 0u);  // every message is counted once
    }
}

TEST(TcpLoss, PathMtuHasAFloor) {
    StackTest t;
    t.established();
    t.send("x").expect(ack().seq(1).data("x"));
    t.icmp_error(t.our_iss + 1, 0, 68);
    EXPECT_EQ(t.connection->info().mss, 512u);
    t.skip_output();
}

TEST(TcpLoss, RoundTripIsMeasured) {  // [RFC6298 2]
    StackTest t;
    t.connect();
    t.expect(syn().seq(0));
    t.after(30ms);
    t.inject(syn_ack().seq(0).ack(1).mss(1460));
    t.expect(ack().seq(1));
    EXPECT_EQ(t.connection->info().srtt, 30ms);
    t.send("a").expect(ack().seq(1).data("a"));
    t.after(70ms).inject(ack().seq(1).ack(2));
    EXPECT_EQ(t.connection->info().srtt, 35ms);
}

TEST(TcpLoss, RetransmittedSegmentIsNotMeasured) {  // [RFC6298 3] Karn
    StackTest t;
    t.established();
    t.after(1ms).send("a").expect(ack().seq(1).data("a"));
    t.after(220ms).expect(ack().seq(1).data("a"));
    const auto before = t.connection->info().srtt;
    t.after(50ms).inject(ack().seq(1).ack(2));
    EXPECT_EQ(t.connection->info().srtt, before);
    t.expect_nothing();
}

}  // namespace
}  // namespace culvert::test
