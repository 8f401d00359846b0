// Loss found by time and by probes, false timeouts, departures: RFC 8985, RFC 5682, pacing, RFC 5482.
#include "tests/support/stack_test.h"

namespace culvert::test {
namespace {

/// A round trip of 40 ms, measured by the handshake; over both families.
class TcpRack : public ::testing::TestWithParam<bool> {
protected:
    TcpRack() {
        if (GetParam()) t.over_ipv6();
        t.round_trip = 40ms;
    }
    void open(stack::tcp::Options options = {}, bool sack = true) {
        t.established(options, sack ? syn_ack().mss(mss_offer()).sack_ok() : syn_ack().mss(mss_offer()));
        ASSERT_EQ(t.connection->info().mss, mss());
    }
    std::uint16_t mss_offer() const { return 1440; }
    static constexpr std::uint32_t mss() { return 1440; }
    static std::uint32_t at(std::uint32_t segment) { return 1 + segment * mss(); }
    void send(std::uint32_t segments) { t.send(std::string(std::size_t{segments} * mss(), 'x')); }
    /// Segments [first, end) leave now, and no other.
    void expect(std::uint32_t first, std::uint32_t end) {
        for (; first < end; ++first) t.expect(ack().seq(at(first)).len(mss()));
        t.expect_nothing();
    }
    void ack_to(std::uint32_t segment) { t.inject(ack().seq(1).ack(at(segment))); }
    void sack(std::uint32_t acked, std::uint32_t first, std::uint32_t end) {
        t.inject(ack().seq(1).ack(at(acked)).sack(at(first), at(end)));
    }
    StackTest t;
};

TEST_P(TcpRack, OneSegmentSackedAboveAHoleIsEnoughAfterAQuarterOfTheRoundTrip) {  // [RFC8985 6.2 step 4, step 5]
    open();
    send(2);
    expect(0, 2);
    t.after(40ms);
    sack(0, 1, 2);
    t.expect_nothing();
    t.after(9ms).expect_nothing();
    t.after(2ms);  // min_RTT / 4 = 10 ms
    expect(0, 1);
    EXPECT_EQ(t.host.counters.tcp_fast_retransmits, 1u);
    ack_to(2);
    t.after(5s).expect_nothing();
    EXPECT_EQ(t.host.counters.tcp_timeouts, 0u);
    EXPECT_EQ(t.host.tcp.usage().flight_pieces, 0u);
}

TEST_P(TcpRack, ThreeSegmentsAboveAHoleAreEnoughAtOnceWhileNoReorderingWasSeen) {  // [RFC8985 6.2 step 4]
    open();
    send(5);
    expect(0, 5);
    t.after(40ms);
    sack(0, 1, 2);
    t.expect_nothing();
    sack(0, 1, 4);
    expect(0, 1);
    ack_to(5);
}

TEST_P(TcpRack, AReorderingPathIsGivenTime) {  // [RFC8985 6.2 step 3, step 4]
    open();
    send(5);
    expect(0, 5);
    t.after(40ms);
    sack(0, 1, 2);
    ack_to(3);  // segment 0 was only late: never sent again, below what had arrived
    t.expect_nothing();
    ack_to(5);
    send(6);
    expect(5, 11);
    t.after(40ms);
    sack(5, 6, 10);  // by the old rule this would be a loss
    t.expect_nothing();
    t.after(8ms).expect_nothing();
    ack_to(11);  // late again
    t.after(5s).expect_nothing();
    EXPECT_EQ(t.connection->info().total_retransmits, 0u);
}

TEST_P(TcpRack, ALostRetransmissionIsFoundByTime) {  // [RFC8985 6.2 step 5]
    open();
    send(10);
    expect(0, 10);
    t.after(40ms);
    sack(0, 1, 4);
    t.expect(ack().seq(at(0)).len(mss()));
    t.skip_output();
    send(4);
    t.after(1ms);
    sack(0, 1, 10);
    t.skip_output();  // new data, sent after the retransmission
    t.after(45ms);
    sack(0, 1, 11);
    t.expect(ack().seq(at(0)).len(mss()));  // what was sent later has arrived: lost again
    t.skip_output();
    EXPECT_EQ(t.host.counters.tcp_timeouts, 0u);
    ack_to(14);
    t.after(5s).expect_nothing();
}

TEST_P(TcpRack, ALostTailIsProbed) {  // [RFC8985 7.2, 7.3, 7.4 case 2]
    open();
    send(4);
    expect(0, 4);
    t.after(40ms);
    ack_to(3);
    t.after(100ms).expect_nothing();
    t.after(150ms);  // one segment in flight: 2 * SRTT + 200 ms, but no later than the retransmission timer
    expect(3, 4);
    EXPECT_EQ(t.host.counters.tcp_loss_probes, 1u);
    EXPECT_EQ(t.host.counters.tcp_timeouts, 0u);
    const std::uint32_t cwnd = t.connection->info().cwnd_bytes;
    t.after(40ms);
    ack_to(4);
    EXPECT_EQ(t.connection->info().cwnd_bytes, cwnd) << "still open: a D-SACK may come";
    send(1);
    expect(4, 5);
    t.after(40ms);
    ack_to(5);
    EXPECT_EQ(t.host.counters.tcp_loss_probe_repairs, 1u);
    EXPECT_LT(t.connection->info().cwnd_bytes, cwnd);
}

TEST_P(TcpRack, SeveralInFlightAreProbedAfterTwoRoundTrips) {  // [RFC8985 7.2]
    open();
    send(3);
    expect(0, 3);
    t.after(79ms).expect_nothing();
    t.after(2ms);
    expect(2, 3);  // the highest
    t.after(40ms);
    sack(0, 2, 3);  // the probe finds out that all was lost
    t.after(11ms);
    expect(0, 1);  // PRR: nothing has arrived since
    ack_to(1);
    expect(1, 2);
    EXPECT_EQ(t.host.counters.tcp_timeouts, 0u);
    ack_to(3);
}

TEST_P(TcpRack, ANeedlessProbeCostsNothingThoughItsDsackComesWhenAllIsAcknowledged) {  // [RFC8985 7.4 case 1]
    open();
    send(3);
    expect(0, 3);
    t.after(81ms);
    expect(2, 3);
    const std::uint32_t ssthresh = t.connection->info().ssthresh_bytes;
    ack_to(3);
    t.after(40ms);
    sack(3, 2, 3);
    send(1);
    expect(3, 4);
    t.after(40ms);
    ack_to(4);
    EXPECT_EQ(t.connection->info().ssthresh_bytes, ssthresh);
    EXPECT_EQ(t.host.counters.tcp_loss_probe_repairs, 0u);
}

TEST_P(TcpRack, TheFirstFlightOfAnAcceptedConnectionIsProbed) {  // [RFC8985 7.3] the handshake has measured a round trip
    t.listen();
    t.inject(syn().seq(0).mss(mss_offer()).sack_ok());
    t.expect(syn_ack().seq(0).ack(1));
    t.after(40ms);
    t.inject(ack().seq(1).ack(1));
    ASSERT_NE(t.connection, nullptr);
    send(3);
    expect(0, 3);
    t.after(79ms).expect_nothing();
    t.after(2ms);
    expect(2, 3);
    EXPECT_EQ(t.host.counters.tcp_loss_probes, 1u);
}

TEST_P(TcpRack, ANeedlessProbeCostsNothing) {  // [RFC8985 7.4 case 1]
    open();
    send(3);
    expect(0, 3);
    t.after(81ms);
    expect(2, 3);
    const std::uint32_t cwnd = t.connection->info().cwnd_bytes;
    ack_to(3);
    t.inject(ack().seq(1).ack(at(3)).sack(at(2), at(3)));  // D-SACK; nothing is in flight any more
    send(1);
    expect(3, 4);
    t.after(40ms);
    ack_to(4);
    EXPECT_EQ(t.host.counters.tcp_loss_probe_repairs, 0u);
    EXPECT_GE(t.connection->info().cwnd_bytes, cwnd);
}

TEST_P(TcpRack, ANeedlessProbeCostsNothingWithoutDSackEither) {  // [RFC8985 7.4 case 3]
    open();
    send(3);
    expect(0, 3);
    t.after(81ms);
    expect(2, 3);
    ack_to(3);
    ack_to(3);  // of the probe; nothing is in flight any more
    send(1);
    expect(3, 4);
    t.after(40ms);
    ack_to(4);
    EXPECT_EQ(t.host.counters.tcp_loss_probe_repairs, 0u);
}

TEST_P(TcpRack, ARecoveryIsUndoneByADSackThatComesWhenAllIsAcknowledged) {  // [RFC3708]
    open();
    send(5);
    expect(0, 5);
    t.after(40ms);
    const std::uint32_t cwnd = t.connection->info().cwnd_bytes;
    sack(0, 1, 4);
    expect(0, 1);
    ack_to(5);  // the original, only late
    EXPECT_LT(t.connection->info().cwnd_bytes, cwnd);
    t.inject(ack().seq(1).ack(at(5)).sack(at(0), at(1)));
    EXPECT_EQ(t.host.counters.tcp_spurious_recoveries, 1u);
    EXPECT_GE(t.connection->info().cwnd_bytes, cwnd);
    t.inject(ack().seq(1).ack(at(5)).sack(at(0), at(1)));  // the network's own copy proves nothing more
    EXPECT_EQ(t.host.counters.tcp_spurious_recoveries, 1u);
}

/// With timestamps, so 12 bytes less in a segment. The peer echoes what last came in order, as RFC 7323 4.3 wants it.
class TcpRackStamped : public TcpRack {
protected:
    static constexpr std::uint32_t kMss = 1428;
    static std::uint32_t at(std::uint32_t segment) { return 1 + segment * kMss; }
    void send_stamped(std::uint32_t segments) {
        t.established({}, syn_ack().mss(mss_offer()).sack_ok().ts(1, 0));
        ASSERT_EQ(t.connection->info().mss, kMss);
        t.send(std::string(std::size_t{segments} * kMss, 'x'));
        expect(0, segments);
        echo_ = t.last.options.timestamps->value;
    }
    void expect(std::uint32_t first, std::uint32_t end) {
        for (; first < end; ++first) t.expect(ack().seq(at(first)).len(kMss));
        t.expect_nothing();
    }
    Seg stamped(std::uint32_t acked) { return ack().seq(1).ack(at(acked)).ts(2, echo_); }
    std::uint32_t echo_ = 0;
};

TEST_P(TcpRackStamped, ASackTellsOfARetransmissionThoughTheEchoStandsStill) {  // [RFC8985 6.2 step 2] simulation, seed 1518
    send_stamped(10);
    t.after(40ms);
    t.inject(stamped(0).sack(at(3), at(10)));
    expect(0, 3);
    t.after(40ms);
    t.inject(stamped(0).sack(at(1), at(10)));  // two of the three arrived, the first is lost again
    expect(0, 1);
    EXPECT_EQ(t.host.counters.tcp_timeouts, 0u);
    t.inject(stamped(10));
}

TEST_P(TcpRackStamped, AnAckOfACopyIsNoSample) {  // [RFC7323 5.3] simulation, seed 1518
    send_stamped(1);
    const Duration rto = t.connection->info().rto;
    t.after(3s).skip_output();  // the probe and some repetitions; the original had arrived, its ACK was lost
    ASSERT_GE(t.host.counters.tcp_timeouts, 1u);
    t.inject(stamped(1).sack(at(0), at(1)));
    EXPECT_EQ(t.connection->info().rto, rto) << "three seconds are no round trip";
    t.after(5s).expect_nothing();
}

TEST_P(TcpRack, AProbeIsNewDataIfThereIsSome) {  // [RFC8985 7.3]
    open();
    send(11);
    expect(0, 10);  // cwnd
    t.after(81ms);
    expect(10, 11);
    EXPECT_EQ(t.connection->info().total_retransmits, 0u);
    ack_to(11);
    EXPECT_EQ(t.host.counters.tcp_loss_probe_repairs, 0u);
}

TEST_P(TcpRack, OneProbeOnlyThenTheTimeout) {  // [RFC8985 7.3]
    open();
    send(2);
    expect(0, 2);
    t.after(81ms);
    expect(1, 2);
    t.after(200ms).expect_nothing();
    t.after(100ms);
    expect(0, 1);
    EXPECT_EQ(t.host.counters.tcp_loss_probes, 1u);
    EXPECT_EQ(t.host.counters.tcp_timeouts, 1u);
    ack_to(2);
}

TEST_P(TcpRack, WithoutSackThereAreNoProbes) {  // [RFC8985 4 requirement 1]
    open({}, false);
    send(2);
    expect(0, 2);
    t.after(230ms).expect_nothing();
    t.after(200ms);
    expect(0, 1);
    EXPECT_EQ(t.host.counters.tcp_loss_probes, 0u);
    ack_to(2);
}

/// A timeout with eight segments in flight; the probe has gone before. Leaves after the retransmission of the first.
class TcpFRto : public TcpRack {
protected:
    void time_out(bool sack) {
        open({}, sack);
        send(8);
        expect(0, 8);
        t.after(sack ? 90ms : 10ms).skip_output();
        t.after(400ms).expect(ack().seq(at(0)).len(mss()));
        t.expect_nothing();
        ASSERT_EQ(t.host.counters.tcp_timeouts, 1u);
        send(4);
        t.expect_nothing();
        cwnd_ = t.connection->info().cwnd_bytes;
        ASSERT_EQ(cwnd_, mss());
    }
    std::uint32_t cwnd_ = 0;
};

TEST_P(TcpFRto, AFalseTimeoutIsRefutedByWhatWasNeverSentAgain) {  // [RFC5682 3.1 step 2b, step 3b]
    time_out(true);
    ack_to(1);
    expect(8, 10);  // two new segments, nothing again
    ack_to(2);      // the original
    EXPECT_EQ(t.host.counters.tcp_spurious_recoveries, 1u);
    EXPECT_GE(t.connection->info().cwnd_bytes, 8 * mss());
    expect(10, 12);
    EXPECT_EQ(t.connection->info().total_retransmits, 2u);  // the probe and the first
    ack_to(12);
}

TEST_P(TcpFRto, ATrueTimeoutIsNot) {  // [RFC5682 3.1 step 3a]
    time_out(true);
    ack_to(1);
    expect(8, 10);
    sack(1, 8, 9);  // only the new one came through
    EXPECT_EQ(t.host.counters.tcp_spurious_recoveries, 0u);
    EXPECT_LE(t.connection->info().cwnd_bytes, 3 * mss());
    t.expect(ack().seq(at(1)).len(mss()));
    t.skip_output();
    ack_to(10);
    t.skip_output();
    ack_to(12);
}

TEST_P(TcpFRto, ADuplicateFirstMeansALoss) {  // [RFC5682 2.1 step 2a]
    time_out(false);
    t.inject(ack().seq(1).ack(at(0)));
    t.expect_nothing();
    ack_to(1);
    expect(1, 3);  // conventional: what is lost
    ack_to(8);
    t.skip_output();
    ack_to(12);
    EXPECT_EQ(t.host.counters.tcp_spurious_recoveries, 0u);
}

TEST_P(TcpFRto, WithoutSackTwoAdvancesRefuteIt) {  // [RFC5682 2.1 step 3b]
    time_out(false);
    ack_to(1);
    expect(8, 10);
    ack_to(2);
    EXPECT_EQ(t.host.counters.tcp_spurious_recoveries, 1u);
    EXPECT_GE(t.connection->info().cwnd_bytes, 8 * mss());
    t.skip_output();
    ack_to(12);
}

TEST_P(TcpRack, AReceiverThatTakesSacksBackIsSentEverything) {  // [RFC2018 8] [RFC6675 5.1]
    open();
    send(4);
    expect(0, 4);
    t.after(40ms);
    sack(0, 1, 4);
    expect(0, 1);
    ack_to(1);  // SND.UNA is SACKed, and yet it stops here
    t.after(300ms);
    expect(1, 2);  // a timeout, and nothing of what was SACKed is believed any more
    ack_to(2);
    t.expect(ack().seq(at(2)).len(mss()));
    t.skip_output();
    ack_to(4);
    t.after(5s).expect_nothing();
}

TEST_P(TcpRack, ASegmentDepartsWhenItsTimeHasCome) {
    open({.max_pacing_rate = std::uint64_t{mss()} * 1000});  // one segment a millisecond
    send(8);
    expect(0, 2);  // two at least leave together
    t.after(1700us).expect_nothing();
    t.after(600us);
    expect(2, 4);
    t.after(2ms);
    expect(4, 6);
    t.after(2ms);
    expect(6, 8);
    ack_to(8);
    t.after(100ms).expect_nothing();
    EXPECT_EQ(t.host.tcp.usage().flight_pieces, 0u);
}

TEST_P(TcpRack, TheRateHoldsThoughEachFlightIsAcknowledgedAtOnce) {
    open({.no_delay = true, .max_pacing_rate = std::uint64_t{mss()} * 100});  // one in 10 ms
    send(1);
    expect(0, 1);
    ack_to(1);
    send(5);
    t.expect_nothing();
    std::uint32_t sent = 1;
    for (int i = 0; i < 60 && sent < 6; ++i) {
        t.after(1ms);
        for (std::size_t n = t.segments_waiting(); n > 0; --n) t.expect(ack().seq(at(sent++)).len(mss()));
        ack_to(sent);
    }
    EXPECT_EQ(sent, 6u);
    EXPECT_GE(t.now - t.start, 40ms + 40ms);  // the handshake, then 5 segments after the first two
    t.after(1s).expect_nothing();
    EXPECT_EQ(t.host.tcp.usage().flight_pieces, 0u);
}

TEST_P(TcpRack, WithoutARateEverythingLeavesAtOnce) {
    open();
    send(10);
    expect(0, 10);
    ack_to(10);
}

TEST_P(TcpRack, TheUserTimeoutCountsFromWhenTheOldestByteLeft) {  // [RFC5482 1] [RFC9293 3.9.1 MUST-21]
    open({.user_timeout = 2s});
    t.after(1min);  // idleness is no failure
    send(1);
    expect(0, 1);
    t.after(1800ms).skip_output();
    EXPECT_FALSE(t.app.closed);
    t.after(3s).skip_output();
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.app.error, ETIMEDOUT);
}

TEST_P(TcpRack, TheUserTimeoutOfAClosedWindowCountsFromWhenItStoppedTheSender) {  // [RFC5482 1]
    open({.user_timeout = 2s});
    send(1);
    expect(0, 1);
    t.inject(ack().seq(1).ack(at(1)).window(0));
    t.after(1min);
    send(1);
    t.after(1500ms).skip_output();
    EXPECT_FALSE(t.app.closed) << "the wait for the window began a second and a half ago, not a minute";
    t.after(4s).skip_output();
    EXPECT_TRUE(t.app.closed);
}

INSTANTIATE_TEST_SUITE_P(BothFamilies, TcpRack, ::testing::Bool(),
                         [](const auto& family) { return family.param ? "IPv6" : "IPv4"; });
INSTANTIATE_TEST_SUITE_P(BothFamilies, TcpRackStamped, ::testing::Bool(),
                         [](const auto& family) { return family.param ? "IPv6" : "IPv4"; });
INSTANTIATE_TEST_SUITE_P(BothFamilies, TcpFRto, ::testing::Bool(),
                         [](const auto& family) { return family.param ? "IPv6" : "IPv4"; });

}  // namespace
}  // namespace culvert::test
