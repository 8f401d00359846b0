// The ring cursors against an oracle: a std::deque that holds what is in the ring.
#include "daemon/device/af_xdp/rings.h"

#include <gtest/gtest.h>

#include <deque>

#include "daemon/base/rng.h"

namespace culvert::device {
namespace {

struct SharedRing {  // starts near the wrap of the 32-bit indices
    std::uint32_t producer = UINT32_MAX - 20;
    std::uint32_t consumer = UINT32_MAX - 20;
    std::uint32_t flags = 0;
    std::uint64_t entries[16] = {};
};

TEST(Rings, AgreeWithAQueue) {
    SharedRing shared;
    ProducerRing<std::uint64_t> producer(&shared.producer, &shared.consumer, shared.entries, 16, &shared.flags);
    ConsumerRing<std::uint64_t> consumer(&shared.producer, &shared.consumer, shared.entries, 16);
    std::deque<std::uint64_t> oracle;
    Rng rng(1);
    std::uint64_t next = 0;
    for (int step = 0; step < 10000; ++step) {
        const auto wanted = static_cast<std::uint32_t>(rng.below(20));
        if (rng.happens(0.5)) {
            const std::uint32_t room = producer.free(wanted);
            ASSERT_EQ(room, std::min<std::size_t>(wanted, 16 - oracle.size()));
            const auto count = static_cast<std::uint32_t>(rng.below(std::uint64_t{room} + 1));
            for (std::uint32_t i = 0; i < count; ++i) {
                producer.at(i) = next;
                oracle.push_back(next++);
            }
            producer.submit(count);
        } else {
            const std::uint32_t available = consumer.available(wanted);
            ASSERT_EQ(available, std::min<std::size_t>(wanted, oracle.size()));
            const auto count = static_cast<std::uint32_t>(rng.below(std::uint64_t{available} + 1));
            for (std::uint32_t i = 0; i < available; ++i) ASSERT_EQ(consumer.peek(i), oracle[i]);
            consumer.release(count);
            oracle.erase(oracle.begin(), oracle.begin() + count);
        }
        ASSERT_EQ(consumer.empty(), oracle.empty());
        ASSERT_EQ(producer.unread(), oracle.size());
    }
    EXPECT_GT(next, 10000u);
}

TEST(Rings, SeeEntriesThatComeWhileSomeAreLeftUnread) {
    SharedRing shared;
    ProducerRing<std::uint64_t> producer(&shared.producer, &shared.consumer, shared.entries, 16, &shared.flags);
    ConsumerRing<std::uint64_t> consumer(&shared.producer, &shared.consumer, shared.entries, 16);
    producer.at(0) = 1;
    producer.submit(1);
    EXPECT_EQ(consumer.available(16), 1u);  // half a packet: left there
    producer.at(0) = 2;
    producer.submit(1);
    EXPECT_EQ(consumer.available(16), 2u);
}

TEST(Rings, TellWhenTheKernelSleeps) {
    SharedRing shared;
    const ProducerRing<std::uint64_t> producer(&shared.producer, &shared.consumer, shared.entries, 16, &shared.flags);
    EXPECT_FALSE(producer.needs_wakeup());
    shared.flags = XDP_RING_NEED_WAKEUP;
    EXPECT_TRUE(producer.needs_wakeup());
}

}  // namespace
}  // namespace culvert::device
