#include "shm/accept_queue.h"

#include <gtest/gtest.h>

#include <memory>

namespace culvert::shm {
namespace {

TEST(AcceptQueue, FirstInFirstOutUpToTheBacklog) {
    auto record = std::make_unique<AcceptQueueRecord>();
    AcceptQueueProducer producer(*record, 2);
    AcceptQueueConsumer consumer(*record);
    EXPECT_TRUE(consumer.empty());
    EXPECT_EQ(consumer.take(), std::nullopt);
    const std::uint32_t first = producer.add(10);
    const std::uint32_t second = producer.add(11);
    EXPECT_TRUE(producer.full());
    EXPECT_FALSE(producer.taken(first));
    EXPECT_EQ(consumer.take(), 10u);
    EXPECT_TRUE(producer.taken(first));
    EXPECT_FALSE(producer.taken(second));
    EXPECT_FALSE(producer.full());
    EXPECT_EQ(consumer.take(), 11u);
    EXPECT_EQ(consumer.take(), std::nullopt);
}

TEST(AcceptQueue, GoesRoundTheRingManyTimes) {
    auto record = std::make_unique<AcceptQueueRecord>();
    AcceptQueueProducer producer(*record, 100);
    AcceptQueueConsumer consumer(*record);
    for (std::uint32_t i = 0; i < 5 * kAcceptQueueLength; ++i) {
        producer.add(i);
        ASSERT_EQ(consumer.take(), i);
    }
}

TEST(AcceptQueue, AHostileHeadCountsAsFull) {
    auto record = std::make_unique<AcceptQueueRecord>();
    AcceptQueueProducer producer(*record, 16);
    producer.add(1);
    record->head.store(77);  // claims to have taken more than was ever added
    EXPECT_TRUE(producer.full());
}

}  // namespace
}  // namespace culvert::shm
