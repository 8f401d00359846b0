// The path's packet size without a word from routers (RFC 4821), and with words that grow old (RFC 1191 6.3).
#include <map>

#include "tests/support/stack_test.h"

namespace culvert::test {
namespace {

using stack::tcp::MtuProbing;

HostConfig config(MtuProbing probing, std::uint32_t searches = 4096) {
    HostConfig host = StackTest::with_defaults({});
    host.stack.mtu_probing = probing;
    host.stack.max_mtu_searches = searches;
    return host;
}

/// A peer behind a hole: packets above `hole` bytes vanish, everything else is acknowledged, with SACK.
class Hole {
public:
    Hole(StackTest& test, std::uint32_t widest) : t_(test), widest_(widest) {}
    /// Lets `time` pass, answering in steps of 10 ms.
    void pass(Duration time) {
        for (Duration gone{}; gone < time; gone += 10ms) {
            t_.after(10ms);
            for (const Sent& sent : t_.take_all()) arrive(sent);
        }
    }
    std::uint32_t widest_seen = 0;   // bytes of payload
    bool tells = false;              // a router at its edge

private:
    void arrive(const Sent& sent) {
        const auto length = static_cast<std::uint32_t>(sent.data.size());
        const std::uint32_t headers = sent.to.address.is_v4() ? 40 : 60;
        if (length == 0) return;
        if (length + headers > widest_) {
            if (!tells) return;
            t_.icmp_error(sent.seq, 0, widest_);
            t_.host.output.learn_path_mtu(t_.remote.address, widest_, t_.now);
            return;
        }
        widest_seen = std::max(widest_seen, length);
        const std::uint32_t first = sent.seq - t_.our_iss;
        held_[first] = std::max(held_[first], first + length);
        while (!held_.empty() && held_.begin()->first <= next_) {
            next_ = std::max(next_, held_.begin()->second);
            held_.erase(held_.begin());
        }
        Seg answer = ack().seq(1).ack(next_);
        if (first > next_) answer.sack(first, first + length);
        t_.inject(answer);
    }
    StackTest& t_;
    std::uint32_t widest_;
    std::uint32_t next_ = 1;
    std::map<std::uint32_t, std::uint32_t> held_;
};

class TcpMtuProbing : public ::testing::TestWithParam<bool> {
protected:
    /// Enough to write for whatever the window lets out.
    static void feed(StackTest& t, Hole& hole, Duration time) {
        for (Duration gone{}; gone < time; gone += 100ms) {
            if (t.connection->unacknowledged_bytes() < 200'000) t.send(std::string(200'000, 'x'));
            hole.pass(100ms);
        }
    }
    static StackTest& begin(StackTest& t, bool v6) {
        if (v6) t.over_ipv6();
        return t.established({}, syn_ack().mss(1460).sack_ok().wscale(7).window(0xffff));
    }
    std::uint32_t full() const { return GetParam() ? 1440 : 1460; }
    std::uint32_t headers() const { return GetParam() ? 60 : 40; }
};
INSTANTIATE_TEST_SUITE_P(Families, TcpMtuProbing, ::testing::Values(false, true),
                         [](const auto& family) { return family.param ? "IPv6" : "IPv4"; });

TEST_P(TcpMtuProbing, AHoleIsCrossedInSmallerSegmentsAndItsSizeFound) {  // [RFC4821 7.7, 7.3]
    StackTest t(config(MtuProbing::kBlackHole));
    begin(t, GetParam());
    EXPECT_EQ(t.connection->info().mss, full());
    Hole hole(t, 1400);
    feed(t, hole, 2s);
    EXPECT_EQ(t.host.counters.tcp_mtu_black_holes, 1u);
    EXPECT_GT(hole.widest_seen, 1000u);
    feed(t, hole, 30s);
    const std::uint32_t mss = t.connection->info().mss;
    EXPECT_LE(mss, 1400 - headers());
    EXPECT_GT(mss + 8, 1400 - headers()) << "within eight bytes of what passes";
    EXPECT_GT(t.host.counters.tcp_mtu_probes_lost, 2u) << "each size is tried three times";
    t.connection->abort();
    t.skip_output();
}

TEST_P(TcpMtuProbing, AHoleThatWasNoneIsLeftAgain) {
    StackTest t(config(MtuProbing::kBlackHole));
    begin(t, GetParam());
    Hole shut(t, 0);
    t.send(std::string(20'000, 'x'));
    shut.pass(1500ms);  // nothing passes, large or small
    EXPECT_EQ(t.host.counters.tcp_mtu_black_holes, 1u);
    EXPECT_LT(t.connection->info().mss, full());
    Hole open(t, 1500);
    feed(t, open, 8s);
    EXPECT_EQ(t.connection->info().mss, full());
    EXPECT_EQ(t.host.counters.tcp_mtu_probes, 1u) << "the widest is tried first";
    EXPECT_EQ(t.host.counters.tcp_mtu_probes_lost, 0u);
    t.connection->abort();
    t.skip_output();
}

TEST_P(TcpMtuProbing, OverIpv4ItGoesDownTwice) {  // [RFC4821 7.2] what every host takes comes last
    StackTest t(config(MtuProbing::kBlackHole));
    begin(t, GetParam());
    Hole hole(t, GetParam() ? 1280 : 600);
    feed(t, hole, 5s);
    EXPECT_EQ(t.host.counters.tcp_mtu_black_holes, GetParam() ? 1u : 2u);
    EXPECT_EQ(hole.widest_seen, GetParam() ? 1220u : 536u);
    t.connection->abort();
    t.skip_output();
}

TEST_P(TcpMtuProbing, ALostProbeIsNoSignOfCongestion) {  // [RFC4821 7.6.2]
    StackTest t(config(MtuProbing::kBlackHole));
    begin(t, GetParam());
    Hole hole(t, 1400);
    feed(t, hole, 1500ms);
    ASSERT_EQ(t.host.counters.tcp_mtu_black_holes, 1u);
    for (unsigned lost = 1; lost <= 3; ++lost) {
        std::uint32_t before = 0;
        for (int i = 0; i < 400 && t.host.counters.tcp_mtu_probes_lost < lost; ++i) {
            before = t.connection->info().cwnd_bytes;
            if (t.connection->unacknowledged_bytes() < 200'000) t.send(std::string(200'000, 'x'));
            hole.pass(10ms);
        }
        ASSERT_EQ(t.host.counters.tcp_mtu_probes_lost, lost);
        EXPECT_GE(t.connection->info().cwnd_bytes, before);
        feed(t, hole, 300ms);
        EXPECT_GE(t.connection->info().cwnd_bytes, before) << "nor when the hole is filled";
    }
    t.connection->abort();
    t.skip_output();
}

TEST_P(TcpMtuProbing, AShrunkenWindowIsNoHole) {  // [RFC9293 3.8.6]
    StackTest t(config(MtuProbing::kBlackHole));
    begin(t, GetParam());
    t.send(std::string(20'000, 'x')).skip_output();
    t.inject(ack().seq(1).ack(1).window(4));  // of 128 bytes each
    t.after(5s).skip_output();
    EXPECT_GE(t.host.counters.tcp_timeouts, 2u);
    EXPECT_EQ(t.host.counters.tcp_mtu_black_holes, 0u);
    EXPECT_EQ(t.connection->info().mss, full());
    t.connection->abort();
    t.skip_output();
}

TEST_P(TcpMtuProbing, ARouterThatSpeaksEndsTheGuessing) {
    StackTest t(config(MtuProbing::kBlackHole));
    begin(t, GetParam());
    Hole hole(t, 1404);
    feed(t, hole, 1s);
    ASSERT_EQ(t.host.counters.tcp_mtu_black_holes, 1u);
    hole.tells = true;
    feed(t, hole, 8s);
    EXPECT_EQ(t.connection->info().mss, 1404 - headers());
    EXPECT_EQ(t.host.counters.tcp_mtu_probes, 2u) << "the widest, and what the router named";
    EXPECT_EQ(t.host.counters.tcp_mtu_probes_lost, 1u);
    t.connection->abort();
    t.skip_output();
}

TEST_P(TcpMtuProbing, AProbeIsNotCutByTheDevice) {  // [RFC4821 7.4] what follows it is, and in ordinary segments
    StackTest t(config(MtuProbing::kOn));
    begin(t, GetParam());
    const std::uint32_t mss = t.connection->info().mss;
    ASSERT_LT(mss, full());
    t.after(1s);
    t.host.eth0.segmentation_limit = 0xffff;
    t.send(std::string(100'000, 'x'));
    t.host.tcp.flush(t.now);
    const auto pending = t.host.tx.pending();
    ASSERT_GE(pending.size(), 2u);
    EXPECT_EQ(pending[0].length, 14 + 1500u);
    EXPECT_EQ(pending[0].segment_size, 0u);
    EXPECT_FALSE(pending[0].more);
    EXPECT_EQ(pending[1].segment_size, mss);
    EXPECT_EQ(t.host.counters.tcp_mtu_probes, 1u);
    t.host.take_frames();
    t.host.eth0.segmentation_limit = 0;
    t.connection->abort();
    t.skip_output();
}

TEST_P(TcpMtuProbing, APlaceIsGivenBack) {
    StackTest t(config(MtuProbing::kOn, 1));
    begin(t, GetParam());
    EXPECT_EQ(t.host.tcp.usage().mtu_searches, 1u);
    t.connection->abort();
    t.skip_output();
    EXPECT_EQ(t.host.tcp.usage().mtu_searches, 0u);
}

TEST_P(TcpMtuProbing, SmallSegmentsThatAreLostSayNothingOfSize) {
    StackTest t(config(MtuProbing::kBlackHole));
    begin(t, GetParam());
    t.send("small").after(10s);
    EXPECT_EQ(t.host.counters.tcp_mtu_black_holes, 0u);
    EXPECT_EQ(t.connection->info().mss, full());
    t.connection->abort();
    t.skip_output();
}

TEST_P(TcpMtuProbing, OffItIsOff) {
    StackTest t(config(MtuProbing::kOff));
    begin(t, GetParam());
    t.send(std::string(20'000, 'x')).after(5s);
    EXPECT_EQ(t.connection->info().mss, full());
    t.connection->abort();
    t.skip_output();
}

TEST_P(TcpMtuProbing, OnItBeginsSmallAndTriesTheWay) {
    StackTest t(config(MtuProbing::kOn));
    begin(t, GetParam());
    EXPECT_LT(t.connection->info().mss, full());
    Hole open(t, 1500);
    feed(t, open, 5s);
    EXPECT_EQ(t.connection->info().mss, full());
    t.connection->abort();
    t.skip_output();
}

TEST_P(TcpMtuProbing, WithoutAPlaceTheSizeStays) {
    StackTest t(config(MtuProbing::kBlackHole, 0));
    begin(t, GetParam());
    t.send(std::string(20'000, 'x')).after(2s);
    EXPECT_EQ(t.host.counters.tcp_no_mtu_search, 1u);
    EXPECT_EQ(t.connection->info().mss, full());
    t.connection->abort();
    t.skip_output();
}

TEST_P(TcpMtuProbing, WhatARouterSaidIsForgottenWithTheCache) {  // [RFC1191 6.3] [RFC8201 4]
    StackTest t(config(MtuProbing::kBlackHole));
    begin(t, GetParam());
    t.send("x").skip_output();
    t.icmp_error(t.our_iss + 1, 0, 1300);
    t.host.output.learn_path_mtu(t.remote.address, 1300, t.now);  // as Stack does with what is believed
    t.skip_output();
    EXPECT_EQ(t.connection->info().mss, 1300 - headers());
    t.inject(ack().seq(1).ack(2));
    t.after(10min);
    t.host.output.advance(t.now);
    t.send(std::string(1, 'y')).skip_output();
    EXPECT_EQ(t.connection->info().mss, full());
    t.connection->abort();
    t.skip_output();
}

}  // namespace
}  // namespace culvert::test
