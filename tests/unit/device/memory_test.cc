#include "daemon/device/memory.h"

#include <gtest/gtest.h>

#include "tests/unit/device/packets.h"

namespace culvert::device {
namespace {

TEST(MemoryDevice, ReceivesWhatIsInjectedInOrder) {
    FramePool pool(16);
    MemoryDevice device(pool);
    EXPECT_FALSE(device.has_input());
    ASSERT_TRUE(device.inject(pattern(60, 1)));
    ASSERT_TRUE(device.inject(pattern(1514, 2)));
    EXPECT_TRUE(device.has_input());
    EXPECT_EQ(drain(device), (std::vector<Bytes>{pattern(60, 1), pattern(1514, 2)}));
    EXPECT_FALSE(device.has_input());
}

TEST(MemoryDevice, ShowsNoMoreThanTheBurstTakes) {
    FramePool pool(16);
    MemoryDevice device(pool);
    for (unsigned i = 0; i < 5; ++i) device.inject(pattern(100, i));
    RxPacket burst[3];
    ASSERT_EQ(device.receive(burst), 3u);
    EXPECT_EQ(bytes_of(burst[2]), pattern(100, 2));
    EXPECT_TRUE(device.has_input());
    ASSERT_EQ(device.receive(burst), 2u);
    EXPECT_EQ(bytes_of(burst[1]), pattern(100, 4));
    EXPECT_EQ(device.receive(burst), 0u);
}

TEST(MemoryDevice, CutsReceivedPacketsIntoFragments) {
    FramePool pool(16);
    MemoryDevice device(pool, {.rx_fragment_size = 1000});
    device.inject(pattern(3500, 1));
    device.inject(pattern(1000, 2));
    device.inject(pattern(2000, 3));
    RxPacket burst[4];
    ASSERT_EQ(device.receive(burst), 3u);
    EXPECT_EQ(burst[0].head.size(), 1000u);
    ASSERT_EQ(burst[0].rest.size(), 3u);
    EXPECT_EQ(burst[0].rest[2].size(), 500u);
    EXPECT_EQ(burst[0].length, 3500u);
    EXPECT_EQ(burst[1].rest.size(), 0u);
    EXPECT_EQ(burst[2].rest.size(), 1u);
    for (unsigned i = 0; i < 3; ++i) EXPECT_EQ(bytes_of(burst[i]), pattern(burst[i].length, i + 1));
}

TEST(MemoryDevice, DropsAndCountsWhenTheInboxIsFull) {
    FramePool pool(16);
    MemoryDevice device(pool, {.inbox_packets = 2});
    EXPECT_TRUE(device.inject(pattern(60, 1)));
    EXPECT_TRUE(device.inject(pattern(60, 2)));
    EXPECT_FALSE(device.inject(pattern(60, 3)));
    EXPECT_EQ(statistic(device, "memory_inbox_full"), 1u);
    EXPECT_EQ(drain(device).size(), 2u);
    EXPECT_TRUE(device.inject(pattern(60, 4)));
}

TEST(MemoryDevice, SendsWholePacketsAndGivesTheChunksBack) {
    FramePool pool(32);
    MemoryDevice device(pool);
    ASSERT_TRUE(queue(device.tx(), pattern(60, 1)));
    ASSERT_TRUE(queue(device.tx(), pattern(65549, 2)));
    EXPECT_TRUE(device.take_sent().empty()) << "nothing goes before flush()";
    EXPECT_LT(pool.available(), 32u);
    EXPECT_FALSE(device.flush());
    EXPECT_EQ(device.take_sent(), (std::vector<Bytes>{pattern(60, 1), pattern(65549, 2)}));
    EXPECT_TRUE(device.take_sent().empty());
    EXPECT_EQ(pool.available(), 32u);
}

TEST(MemoryDevice, PairDeliversToTheOther) {
    FramePool pool_a(32);
    FramePool pool_b(32);
    MemoryDevice a(pool_a);
    MemoryDevice b(pool_b, {.checksum = ChecksumState::kVerified});
    MemoryDevice::connect(a, b);
    ASSERT_TRUE(queue(a.tx(), pattern(9014, 1)));
    ASSERT_TRUE(queue(b.tx(), pattern(60, 2)));
    a.flush();
    b.flush();
    RxPacket burst[2];
    ASSERT_EQ(b.receive(burst), 1u);
    EXPECT_EQ(bytes_of(burst[0]), pattern(9014, 1));
    EXPECT_EQ(burst[0].checksum, ChecksumState::kVerified);
    EXPECT_EQ(drain(a), std::vector<Bytes>{pattern(60, 2)});
    EXPECT_EQ(pool_a.available(), 32u);
    EXPECT_EQ(pool_b.available(), 32u);
}

TEST(MemoryDevice, BuffersAreUsedAgainForever) {
    FramePool pool(8);
    MemoryDevice a(pool, {.inbox_packets = 3});
    MemoryDevice b(pool, {.inbox_packets = 3});
    MemoryDevice::connect(a, b);
    for (unsigned i = 0; i < 100; ++i) {
        ASSERT_TRUE(queue(a.tx(), pattern(60 + i, i)));
        a.flush();
        ASSERT_EQ(drain(b), std::vector<Bytes>{pattern(60 + i, i)});
    }
    EXPECT_EQ(pool.available(), 8u);
}

}  // namespace
}  // namespace culvert::device
