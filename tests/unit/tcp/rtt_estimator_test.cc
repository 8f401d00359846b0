#include "daemon/stack/tcp/rtt_estimator.h"

#include <gtest/gtest.h>

namespace culvert::stack::tcp {
namespace {

using namespace std::chrono_literals;

TEST(RttEstimator, StartsAtOneSecond) {  // [RFC6298 2.1]
    RttEstimator rtt;
    EXPECT_EQ(rtt.rto(), 1s);
    EXPECT_FALSE(rtt.has_sample());
    rtt.on_syn_lost();
    EXPECT_EQ(rtt.rto(), 3s);  // [RFC6298 5.7]
}

TEST(RttEstimator, FirstSampleSetsBoth) {  // [RFC6298 2.2]
    RttEstimator rtt;
    rtt.sample(400ms, Instant{});
    EXPECT_EQ(rtt.srtt(), 400ms);
    EXPECT_EQ(rtt.rttvar(), 200ms);
    EXPECT_EQ(rtt.rto(), 1200ms);
}

TEST(RttEstimator, SmoothsLaterSamples) {  // [RFC6298 2.3]
    RttEstimator rtt;
    rtt.sample(400ms, Instant{});
    rtt.sample(800ms, Instant{});
    EXPECT_EQ(rtt.rttvar(), 250ms);  // 3/4 * 200 + 1/4 * 400, with the SRTT of before
    EXPECT_EQ(rtt.srtt(), 450ms);    // 7/8 * 400 + 1/8 * 800
    EXPECT_EQ(rtt.rto(), 1450ms);
    rtt.sample(50ms, Instant{});
    EXPECT_EQ(rtt.srtt(), 400ms);
}

TEST(RttEstimator, TheFloorLeavesRoomForADelayedAck) {
    RttEstimator rtt;
    for (int i = 0; i < 100; ++i) rtt.sample(100us, Instant{});
    EXPECT_EQ(rtt.rto(), 200ms + 100us);
    RttEstimator data_centre(5ms);
    for (int i = 0; i < 100; ++i) data_centre.sample(100us, Instant{});
    EXPECT_EQ(data_centre.rto(), 5ms + 100us);
}

TEST(RttEstimator, BacksOffUpToTheMaximumAndASampleEndsIt) {  // [RFC6298 5.5, 2.5]
    RttEstimator rtt;
    rtt.sample(100ms, Instant{});
    EXPECT_EQ(rtt.rto(), 300ms);
    rtt.back_off();
    EXPECT_EQ(rtt.rto(), 600ms);
    rtt.back_off();
    EXPECT_EQ(rtt.rto(), 1200ms);
    for (int i = 0; i < 100; ++i) rtt.back_off();
    EXPECT_EQ(rtt.rto(), RttEstimator::kMaxRto);
    rtt.sample(100ms, Instant{});
    EXPECT_LT(rtt.rto(), 301ms);
}

TEST(RttEstimator, AbsurdSamplesDoNotPoison) {
    RttEstimator rtt;
    rtt.sample(-5s, Instant{});
    EXPECT_GT(rtt.srtt(), 0ns);
    rtt.sample(Duration::max(), Instant{});
    EXPECT_LE(rtt.rto(), RttEstimator::kMaxRto);
    EXPECT_GT(rtt.rto(), 0ns);
}

TEST(RttEstimator, MinimumIsForgottenAfterTwoWindows) {
    RttEstimator rtt;
    EXPECT_EQ(rtt.min_rtt(), Duration::max());
    Instant now{};
    rtt.sample(10ms, now);
    rtt.sample(30ms, now += 1s);
    EXPECT_EQ(rtt.min_rtt(), 10ms);
    rtt.sample(30ms, now += 10s);
    EXPECT_EQ(rtt.min_rtt(), 10ms);  // of the window before
    rtt.sample(30ms, now += 10s);
    EXPECT_EQ(rtt.min_rtt(), 30ms);  // the route has changed
    rtt.sample(20ms, now += 60s);
    EXPECT_EQ(rtt.min_rtt(), 20ms);
}

}  // namespace
}  // namespace culvert::stack::tcp
