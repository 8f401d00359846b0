#include <gtest/gtest.h>

#include <cmath>

#include "daemon/stack/tcp/congestion/bbr.h"
#include "daemon/stack/tcp/congestion/controller.h"
#include "daemon/stack/tcp/congestion/cubic.h"
#include "daemon/stack/tcp/congestion/dctcp.h"
#include "daemon/stack/tcp/congestion/hystart.h"

namespace culvert::stack::tcp {
namespace {

using namespace std::chrono_literals;

constexpr std::uint32_t kMss = 1000;

/// A sender that always fills its window, one round trip at a time.
struct Path {
    explicit Path(Algorithm algorithm, Duration round_trip = 100ms) : cc(algorithm, kMss), rtt(round_trip) {}

    /// Sends a window, and has every second segment acknowledged.
    void round() {
        now += rtt;
        const std::uint64_t window = cc->cwnd();
        const Position end = una + window;
        for (std::uint64_t sent = 0; sent < window; sent += 2 * kMss) {
            const std::uint64_t n = std::min<std::uint64_t>(2 * kMss, window - sent);
            una += n;
            cc->on_ack({.acked_bytes = n, .rtt = rtt, .now = now, .in_flight = window, .app_limited = false,
                        .snd_una = una, .snd_nxt = end + 1});
        }
    }
    double segments() const { return static_cast<double>(cc->cwnd()) / kMss; }

    CongestionState cc;
    Duration rtt;
    Instant now = Instant{} + 1s;
    Position una = initial_position(0);
};

class EveryController : public testing::TestWithParam<Algorithm> {};
INSTANTIATE_TEST_SUITE_P(Congestion, EveryController, testing::Values(Algorithm::kNewReno, Algorithm::kCubic),
                         [](const auto& p) { return std::string(algorithm_name(p.param)); });

TEST_P(EveryController, StartsWithTenSegments) {  // [RFC6928 2]
    EXPECT_EQ(Path(GetParam()).cc->cwnd(), 10'000u);
    EXPECT_EQ(CongestionController::initial_window(1460), 14'600u);
    EXPECT_EQ(CongestionController::initial_window(9000), 18'000u);
    EXPECT_EQ(CongestionController::initial_window(536), 5360u);
    CongestionState cc(GetParam(), 536);
    cc->set_mss(1460);
    EXPECT_EQ(cc->cwnd(), 14'600u);
}

TEST_P(EveryController, SlowStartDoubles) {  // [RFC5681 3.1]
    Path path(GetParam());
    path.round();
    EXPECT_NEAR(path.segments(), 20, 1);
    path.round();
    EXPECT_NEAR(path.segments(), 40, 1);
    EXPECT_TRUE(path.cc->in_slow_start());
}

TEST_P(EveryController, TheWindowDoesNotGrowUnused) {  // [RFC7661]
    Path path(GetParam());
    for (int i = 0; i < 1000; ++i)
        path.cc->on_ack({.acked_bytes = kMss, .rtt = 1ms, .now = path.now += 1ms, .in_flight = kMss, .app_limited = true,
                         .snd_una = path.una += kMss, .snd_nxt = path.una + kMss});
    EXPECT_EQ(path.cc->cwnd(), 10'000u);
}

TEST_P(EveryController, LossShrinksAndTimeoutStartsAgain) {
    Path path(GetParam());
    for (int i = 0; i < 3; ++i) path.round();
    const std::uint32_t before = path.cc->cwnd();
    const double beta = GetParam() == Algorithm::kCubic ? 0.7 : 0.5;
    path.cc->on_enter_recovery(path.now, before + 3 * kMss);  // limited transmit does not count
    EXPECT_NEAR(path.cc->ssthresh(), beta * before, 1);
    EXPECT_EQ(path.cc->cwnd(), path.cc->ssthresh());
    path.cc->on_exit_recovery(path.now);

    const std::uint32_t second = path.cc->cwnd();
    path.cc->on_rto(path.now, second, true);
    EXPECT_EQ(path.cc->cwnd(), kMss);
    const std::uint32_t ssthresh = path.cc->ssthresh();
    EXPECT_NEAR(ssthresh, beta * second, 1);
    path.cc->on_rto(path.now, second, false);  // the same segment again: held [RFC5681 3.1]
    EXPECT_EQ(path.cc->ssthresh(), ssthresh);
    for (int i = 0; i < 30 && path.cc->in_slow_start(); ++i) path.round();
    EXPECT_FALSE(path.cc->in_slow_start());
    EXPECT_NEAR(path.cc->cwnd(), ssthresh, 3 * kMss);  // slow start did not overshoot
}

TEST_P(EveryController, NeverBelowTwoSegments) {
    Path path(GetParam());
    for (int i = 0; i < 20; ++i) path.cc->on_enter_recovery(path.now, path.cc->cwnd());
    EXPECT_EQ(path.cc->ssthresh(), 2 * kMss);
    EXPECT_EQ(path.cc->cwnd(), 2 * kMss);
}

TEST_P(EveryController, UndoRestores) {  // [RFC4015]
    Path path(GetParam());
    path.round();
    const std::uint32_t cwnd = path.cc->cwnd();
    const std::uint32_t ssthresh = path.cc->ssthresh();
    path.cc->on_rto(path.now, cwnd, true);
    path.cc->undo();
    EXPECT_EQ(path.cc->cwnd(), cwnd);
    EXPECT_EQ(path.cc->ssthresh(), ssthresh);
    path.cc->on_enter_recovery(path.now, cwnd);
    path.cc->undo();
    EXPECT_EQ(path.cc->cwnd(), cwnd);
    path.cc->undo();  // once only
    EXPECT_EQ(path.cc->cwnd(), cwnd);
}

TEST_P(EveryController, IdleStartsFromTheInitialWindow) {  // [RFC5681 4.1]
    Path path(GetParam());
    for (int i = 0; i < 4; ++i) path.round();
    path.cc->on_idle_restart();
    EXPECT_EQ(path.cc->cwnd(), 10'000u);
    EXPECT_GT(path.cc->ssthresh(), 100'000u);
}

TEST(NewReno, GrowsByASegmentARoundTrip) {  // [RFC5681 3.1]
    Path path(Algorithm::kNewReno);
    path.cc->adopt(20'000, 20'000);
    for (int i = 0; i < 10; ++i) path.round();
    EXPECT_NEAR(path.segments(), 30, 1);
}

TEST(Cubic, FollowsTheCurve) {  // [RFC9438 4.2]
    // At a long round trip the cubic part rules: after a loss at W_max = 1000 segments the window is back after K.
    Path path(Algorithm::kCubic, 200ms);
    path.cc->adopt(1'000'000, 1'000'000);
    path.cc->on_enter_recovery(path.now, 1'000'000);
    path.cc->on_exit_recovery(path.now);
    EXPECT_NEAR(path.segments(), 700, 1);
    const double k = std::cbrt(300 / 0.4);  // 9.09 s
    const Instant start = path.now + 200ms;
    double last = 0;
    while (path.now < start + 12s) {
        path.round();
        const double t = std::chrono::duration<double>(path.now - start).count();
        const auto curve = [&](double at) { return 0.4 * std::pow(at - k, 3) + 1000; };
        EXPECT_GE(path.segments(), curve(t) - 1) << "t = " << t;
        EXPECT_LE(path.segments(), curve(t + 0.2) + 1) << "t = " << t;  // the target lies a round trip ahead
        EXPECT_GE(path.segments(), last);
        last = path.segments();
    }
    EXPECT_GT(last, 1000);
}

TEST(Cubic, IsNoSlowerThanRenoOnAShortPath) {  // [RFC9438 4.3]
    // In a small fast network CUBIC must keep up with AIMD(1, 1/2)'s average; measured between equal losses.
    Path cubic(Algorithm::kCubic, 1ms);
    cubic.cc->adopt(40'000, 40'000);
    cubic.cc->on_enter_recovery(cubic.now, 40'000);
    cubic.cc->on_exit_recovery(cubic.now);
    int rounds = 0;
    while (cubic.segments() < 40 && rounds < 1000) {
        cubic.round();
        ++rounds;
    }
    // w_est grows by 3 (1 - 0.7) / (1 + 0.7) = 0.53 segments a round: 12 segments in about 23 rounds.
    EXPECT_NEAR(rounds, 23, 4);
}

TEST(Cubic, FastConvergenceGivesWay) {  // [RFC9438 4.7]
    Path path(Algorithm::kCubic, 200ms);
    path.cc->adopt(1'000'000, 1'000'000);
    path.cc->on_enter_recovery(path.now, 1'000'000);
    path.cc->on_enter_recovery(path.now, 700'000);  // lost again below W_max
    path.cc->on_exit_recovery(path.now);
    // W_max is 700 * 1.7 / 2 = 595 now: after K = (595 - 490 / 0.4)^(1/3) = 6.4 s the plateau lies there, not at 700.
    const Instant end = path.now + 6400ms;
    while (path.now < end) path.round();
    EXPECT_NEAR(path.segments(), 595, 8);
}

TEST(Cubic, TimeWithoutDataDoesNotAdvanceTheCurve) {  // [RFC9438 5.8]
    Path path(Algorithm::kCubic, 200ms);
    path.cc->adopt(1'000'000, 1'000'000);
    path.cc->on_enter_recovery(path.now, 1'000'000);
    path.cc->on_exit_recovery(path.now);
    for (int i = 0; i < 5; ++i) path.round();
    const double before = path.segments();
    for (int i = 0; i < 300; ++i)
        path.cc->on_ack({.acked_bytes = kMss, .rtt = 200ms, .now = path.now += 200ms, .in_flight = kMss,
                         .app_limited = true, .snd_una = path.una += kMss, .snd_nxt = path.una + kMss});
    EXPECT_EQ(path.segments(), before);
    path.round();
    EXPECT_LT(path.segments(), before + 60) << "a minute of silence was taken for a minute of probing";
}

TEST(Hystart, LeavesSlowStartWhenTheQueueBuilds) {  // [RFC9406 4.2]
    Hystart hystart;
    Position una = 1000;
    const auto round = [&](Duration rtt) {
        const Position end = una + 20;
        Hystart::Phase phase{};
        while (una < end) phase = hystart.on_ack(rtt, ++una, end);
        return phase;
    };
    for (int i = 0; i < 5; ++i) EXPECT_EQ(round(40ms), Hystart::Phase::kSlowStart);
    EXPECT_EQ(round(43ms), Hystart::Phase::kSlowStart);   // less than 1/8
    EXPECT_EQ(round(60ms), Hystart::Phase::kConservative);
    EXPECT_EQ(round(40ms), Hystart::Phase::kSlowStart);   // it was noise
    EXPECT_EQ(round(60ms), Hystart::Phase::kConservative);
    int rounds = 1;
    while (round(60ms) == Hystart::Phase::kConservative && rounds < 20) ++rounds;
    EXPECT_EQ(hystart.phase(), Hystart::Phase::kDone);
    EXPECT_NEAR(rounds, 5, 1);
}

TEST(Hystart, EndsTheSlowStartOfCubic) {
    Path path(Algorithm::kCubic, 40ms);
    for (int i = 0; i < 3; ++i) path.round();
    for (int i = 0; i < 20 && path.cc->in_slow_start(); ++i) {
        path.rtt = 80ms;  // the queue is full
        path.round();
    }
    EXPECT_FALSE(path.cc->in_slow_start());
    EXPECT_LT(path.segments(), 1000);
}

TEST(CongestionState, ChangesAlgorithmWithTheSameWindow) {
    Path path(Algorithm::kNewReno);
    path.round();
    path.cc->on_enter_recovery(path.now, path.cc->cwnd());
    const std::uint32_t cwnd = path.cc->cwnd();
    path.cc.change(Algorithm::kCubic);
    EXPECT_EQ(path.cc->algorithm(), Algorithm::kCubic);
    EXPECT_EQ(path.cc->cwnd(), cwnd);
    EXPECT_EQ(path.cc->ssthresh(), cwnd);
    EXPECT_EQ(parse_algorithm("cubic"), Algorithm::kCubic);
    EXPECT_EQ(parse_algorithm("reno"), Algorithm::kNewReno);
    EXPECT_EQ(parse_algorithm("newreno"), Algorithm::kNewReno);
    EXPECT_EQ(parse_algorithm("bbr"), Algorithm::kBbr);
    EXPECT_EQ(parse_algorithm("dctcp"), Algorithm::kDctcp);
    EXPECT_EQ(parse_algorithm("vegas"), std::nullopt);
}

TEST(CongestionState, BbrWithoutMemoryIsCubic) {
    Rng rng(1);
    BbrPool models(1, rng);
    CongestionState first(Algorithm::kBbr, kMss, &models);
    EXPECT_EQ(first->algorithm(), Algorithm::kBbr);
    EXPECT_EQ(models.used(), 1u);
    CongestionState second(Algorithm::kBbr, kMss, &models);
    EXPECT_EQ(second->algorithm(), Algorithm::kCubic);
    EXPECT_TRUE(first.change(Algorithm::kDctcp, &models));
    EXPECT_EQ(models.used(), 0u);
    EXPECT_TRUE(second.change(Algorithm::kBbr, &models));
    EXPECT_FALSE(first.change(Algorithm::kBbr, &models));
    second.release(models);
    EXPECT_EQ(models.used(), 0u);
}

TEST(Dctcp, AlphaFollowsTheMarkedFraction) {  // [RFC8257 3.3]
    Dctcp cc(kMss);
    EXPECT_TRUE(cc.wants_exact_echo());
    EXPECT_FLOAT_EQ(cc.alpha(), 1.0f);
    Position una = initial_position(0);
    const auto window = [&](unsigned marked) {  // of eight segments
        const Position end = una + 8 * kMss;
        for (unsigned i = 0; i < 8; ++i) {
            una += kMss;
            cc.on_delivery({.now = {}, .snd_una = una, .snd_nxt = std::max(end, una) + kMss, .newly_delivered = kMss,
                            .echo = i < marked});
        }
    };
    cc.on_delivery({.now = {}, .snd_una = una += kMss, .snd_nxt = una + 8 * kMss, .newly_delivered = kMss});
    EXPECT_FLOAT_EQ(cc.alpha(), 15.0f / 16);  // nothing marked: 1 * (1 - 1/16)
    for (int i = 0; i < 200; ++i) window(0);
    EXPECT_LT(cc.alpha(), 0.001f);
    for (int i = 0; i < 200; ++i) window(8);
    EXPECT_NEAR(cc.alpha(), 1.0f, 0.001f);
    cc.on_congestion_echo(Instant{} + 1s, 10'000);
    EXPECT_NEAR(cc.cwnd(), 5'000u, 10);  // 10 segments * (1 - alpha / 2)
    EXPECT_EQ(cc.cwnd(), cc.ssthresh());
    cc.adopt(10'000, 10'000);
    cc.on_enter_recovery(Instant{} + 1s, 10'000);
    EXPECT_EQ(cc.cwnd(), 5'000u);  // [RFC8257 3.4] loss: as NewReno
}

TEST(Ecn, AMarkShrinksLessThanALoss) {  // [RFC8511 3.1]
    for (const auto& [algorithm, kept] : {std::pair{Algorithm::kNewReno, 8'000u}, std::pair{Algorithm::kCubic, 8'500u}}) {
        CongestionState cc(algorithm, kMss);
        cc->on_congestion_echo(Instant{} + 1s, 10'000);
        EXPECT_EQ(cc->cwnd(), kept);
        EXPECT_EQ(cc->ssthresh(), kept);
        cc->undo();  // a mark is never spurious
        EXPECT_EQ(cc->cwnd(), kept);
    }
}

}  // namespace
}  // namespace culvert::stack::tcp
