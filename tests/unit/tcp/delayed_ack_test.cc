#include "daemon/stack/tcp/delayed_ack.h"

#include <gtest/gtest.h>

namespace culvert::stack::tcp {
namespace {

using namespace std::chrono_literals;
using Urgency = DelayedAck::Urgency;

constexpr std::uint32_t kMss = 1000;
const Instant kStart = Instant{} + 1s;

DelayedAck settled() {
    DelayedAck ack;
    ack.leave_quick_mode();
    return ack;
}

TEST(DelayedAck, EverySecondFullSegmentIsAcknowledged) {  // [RFC9293 3.8.6.3 SHLD-19] [RFC5681 4.2]
    DelayedAck ack = settled();
    EXPECT_EQ(ack.on_data(kMss, kMss, true, false, kStart), Urgency::kLater);
    EXPECT_EQ(ack.deadline(), kStart + 40ms);
    EXPECT_EQ(ack.on_data(kMss, kMss, true, false, kStart + 1ms), Urgency::kNow);
    ack.on_ack_sent();
    EXPECT_FALSE(ack.pending());
    EXPECT_EQ(ack.on_data(kMss, kMss, true, false, kStart + 2ms), Urgency::kLater);
}

TEST(DelayedAck, SmallSegmentsWaitForTheFirstDeadline) {  // [RFC9293 3.8.6.3 MUST-40]
    DelayedAck ack = settled();
    ack.on_data(10, kMss, true, false, kStart);
    EXPECT_EQ(ack.on_data(10, kMss, true, false, kStart + 30ms), Urgency::kLater);
    EXPECT_EQ(ack.deadline(), kStart + 40ms);  // not put off by more data
    EXPECT_EQ(ack.on_data(10, kMss, true, false, kStart + 41ms), Urgency::kNow);
}

TEST(DelayedAck, GapsAndFinAreAcknowledgedAtOnce) {  // [RFC5681 4.2]
    DelayedAck ack = settled();
    EXPECT_EQ(ack.on_data(10, kMss, false, false, kStart), Urgency::kNow);
    ack.on_ack_sent();
    EXPECT_EQ(ack.on_data(0, kMss, true, true, kStart), Urgency::kNow);
}

TEST(DelayedAck, TheFirstSegmentsOfAConnectionAreNotDelayed) {
    DelayedAck ack;
    for (int i = 0; i < DelayedAck::kQuickAcks; ++i) {
        ASSERT_EQ(ack.on_data(10, kMss, true, false, kStart), Urgency::kNow);
        ack.on_ack_sent();
    }
    EXPECT_EQ(ack.on_data(10, kMss, true, false, kStart), Urgency::kLater);
    ack.enter_quick_mode();
    EXPECT_EQ(ack.on_data(10, kMss, true, false, kStart), Urgency::kNow);
}

TEST(DelayedAck, DataGoingBackCarriesIt) {
    DelayedAck ack = settled();
    ack.on_data(10, kMss, true, false, kStart);
    EXPECT_TRUE(ack.pending());
    ack.on_ack_sent();  // by the reply
    EXPECT_EQ(ack.deadline(), kNever);
}

}  // namespace
}  // namespace culvert::stack::tcp
