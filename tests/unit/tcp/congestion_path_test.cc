// Controllers on a path of 100 Mbit/s and 20 ms with one BDP of buffer: they fill it, alone and together.
#include <gtest/gtest.h>

#include "tests/support/bottleneck.h"

namespace culvert::test {
namespace {

using namespace std::chrono_literals;
using stack::tcp::Algorithm;
using stack::tcp::Bbr;
using stack::tcp::BbrModel;

// [RFC8257 4.2] K above a seventh of the BDP (36 kB): 40 segments.
constexpr std::uint32_t kMarkAbove = 40 * Bottleneck::kMss;

BottleneckConfig path_for(Algorithm algorithm) {
    BottleneckConfig config;
    if (algorithm == Algorithm::kDctcp) config.mark_above = kMarkAbove;
    return config;
}

class EveryControllerOnAPath : public testing::TestWithParam<Algorithm> {};
INSTANTIATE_TEST_SUITE_P(Congestion, EveryControllerOnAPath,
                         testing::Values(Algorithm::kNewReno, Algorithm::kCubic, Algorithm::kBbr, Algorithm::kDctcp),
                         [](const auto& p) { return std::string(algorithm_name(p.param)); });

TEST_P(EveryControllerOnAPath, FillsItAlone) {
    Bottleneck path(path_for(GetParam()));
    const std::size_t flow = path.add(GetParam());
    path.run_until(5s);
    path.share(flow);
    path.run_until(30s);
    EXPECT_GE(path.share(flow), 0.9);
}

TEST_P(EveryControllerOnAPath, SharesItWithItsLike) {
    Bottleneck path(path_for(GetParam()));
    const std::size_t first = path.add(GetParam());
    const std::size_t second = path.add(GetParam(), 2s);
    path.run_until(30s);
    path.share(first);
    path.share(second);
    path.run_until(90s);
    const double a = path.share(first);
    const double b = path.share(second);
    EXPECT_GE(a + b, 0.9);
    // A link that drops only when full favours whose clock happens to fit; no noise breaks the pattern here.
    EXPECT_LT(a / b, 3.0);
    EXPECT_LT(b / a, 3.0);
}

/// Between two probes the draft lowers the bounds a little in every round with a loss; so this path, on which nearly every
/// round has one, is used to 84 - 89 %, not to 98 % (README, Decisions).
TEST(BbrOnAPath, OnePercentLossCostsLittle) {  // [BBR 5.5.10.3] random loss below kLossThresh
    for (std::uint64_t seed = 1; seed <= 5; ++seed) {
        Bottleneck path({.loss = 0.01, .seed = seed});
        const std::size_t flow = path.add(Algorithm::kBbr);
        path.run_until(5s);
        path.share(flow);
        path.run_until(30s);
        EXPECT_GE(path.share(flow), 0.82) << "seed " << seed;
    }
    Bottleneck path({.loss = 0.01});
    const std::size_t cubic = path.add(Algorithm::kCubic);
    path.run_until(5s);
    path.share(cubic);
    path.run_until(30s);
    EXPECT_LT(path.share(cubic), 0.5) << "the path is kinder than it should be";
}

TEST(BbrOnAPath, MeasuresRateAndRoundTrip) {
    Bottleneck path({});
    const std::size_t flow = path.add(Algorithm::kBbr);
    path.run_until(3s);
    const auto& bbr = static_cast<const Bbr&>(path.controller(flow));
    EXPECT_NEAR(static_cast<double>(bbr.max_bw()), 12.5e6, 0.03 * 12.5e6);
    EXPECT_NEAR(std::chrono::duration<double>(bbr.model().min_rtt).count(), 0.0201, 0.001);
    EXPECT_TRUE(bbr.model().full_bw_reached);
}

TEST(BbrOnAPath, KeepsTheQueueShorterThanCubic) {
    double longest[2];
    for (const Algorithm algorithm : {Algorithm::kBbr, Algorithm::kCubic}) {
        Bottleneck path({.buffer_bdp = 4});
        path.add(algorithm);
        path.run_until(4s);
        path.take_longest_queue();
        path.run_until(20s);
        longest[algorithm == Algorithm::kCubic] = path.take_longest_queue();
    }
    EXPECT_LT(longest[0], 1.5 * BottleneckConfig{}.bdp());
    EXPECT_GT(longest[1], 3.0 * BottleneckConfig{}.bdp());
}

TEST(BbrOnAPath, ProbesTheRoundTripEveryFiveSeconds) {  // [BBR 5.3.4]
    Bottleneck path({});
    const std::size_t flow = path.add(Algorithm::kBbr);
    const auto& model = static_cast<Bbr&>(path.controller(flow)).model();
    unsigned visits = 0;
    bool inside = false;
    for (Duration t = 0s; t < 31s; t += 10ms) {
        path.run_until(t);
        const bool now_inside = model.state == BbrModel::State::kProbeRtt;
        if (now_inside && !inside) ++visits;
        inside = now_inside;
    }
    EXPECT_GE(visits, 4u);
    EXPECT_LE(visits, 6u);
}

TEST(BbrOnAPath, FindsBandwidthThatBecomesFree) {
    Bottleneck path({});
    const std::size_t flow = path.add(Algorithm::kBbr);
    path.add(Algorithm::kBbr, 0s);
    path.run_until(10s);
    EXPECT_LT(path.share(flow), 0.8);
    path.stop(1);
    path.run_until(20s);
    path.share(flow);
    path.run_until(30s);
    EXPECT_GE(path.share(flow), 0.9);
}

TEST(DctcpOnAPath, HoldsTheQueueAtTheThreshold) {  // [RFC8257 1]
    Bottleneck path(path_for(Algorithm::kDctcp));
    const std::size_t flow = path.add(Algorithm::kDctcp);
    path.run_until(10s);
    path.take_longest_queue();
    path.share(flow);
    const std::uint64_t lost = path.losses(flow);
    path.run_until(30s);
    EXPECT_LT(path.take_longest_queue(), 1.3 * kMarkAbove);
    EXPECT_GE(path.share(flow), 0.95);
    EXPECT_EQ(path.losses(flow), lost);
}

TEST(EcnOnAPath, ControllersOfRfc3168LoseNothingWhereQueuesMark) {  // [RFC3168 1]
    for (const Algorithm algorithm : {Algorithm::kNewReno, Algorithm::kCubic, Algorithm::kBbr}) {
        SCOPED_TRACE(std::string(algorithm_name(algorithm)));
        Bottleneck path({.mark_above = static_cast<std::uint32_t>(BottleneckConfig{}.bdp() / 2)});
        const std::size_t flow = path.add(algorithm);
        path.run_until(5s);
        path.share(flow);
        const std::uint64_t lost = path.losses(flow);
        path.run_until(30s);
        EXPECT_GE(path.share(flow), 0.85);
        EXPECT_EQ(path.losses(flow), lost);
    }
}

}  // namespace
}  // namespace culvert::test
