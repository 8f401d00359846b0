#include "daemon/engine/spin_policy.h"

#include <gtest/gtest.h>

namespace culvert::engine {
namespace {

using namespace std::chrono_literals;

TEST(SpinPolicy, LooksWhileLookingPays) {
    SpinPolicy policy(100us);
    for (int i = 0; i < 1000; ++i) {
        EXPECT_EQ(policy.limit(), 100us);
        policy.found();
    }
}

TEST(SpinPolicy, StopsAfterLookingInVain) {
    SpinPolicy policy(100us);
    for (std::uint32_t i = 0; i < SpinPolicy::kGiveUpAfter; ++i) {
        EXPECT_EQ(policy.limit(), 100us) << i;
        policy.slept();
    }
    EXPECT_EQ(policy.limit(), Duration::zero());
}

TEST(SpinPolicy, TriesAgainNowAndThenForEver) {
    SpinPolicy policy(100us);
    int looked = 0;
    for (int i = 0; i < 16000; ++i) {
        looked += policy.limit() != Duration::zero() ? 1 : 0;
        policy.slept();
    }
    EXPECT_GT(looked, 900);
    EXPECT_LT(looked, 1100);
}

TEST(SpinPolicy, OneLuckyLookMakesItEagerAgain) {
    SpinPolicy policy(100us);
    for (int i = 0; i < 100; ++i) policy.slept();
    policy.found();
    EXPECT_EQ(policy.limit(), 100us);
}

TEST(SpinPolicy, ZeroNeverLooks) {
    SpinPolicy policy(0us);
    EXPECT_EQ(policy.limit(), Duration::zero());
}

}  // namespace
}  // namespace culvert::engine
