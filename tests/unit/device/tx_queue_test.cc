// TxQueue as devices use it: descriptors in order, `more` between the chunks of one packet, chunks given back once.
#include <gtest/gtest.h>

#include "daemon/base/packet.h"
#include "tests/unit/device/packets.h"

namespace culvert::device {
namespace {

TEST(TxQueue, OnePacketTakesAsManyChunksAsItNeeds) {
    FramePool pool(64);
    TxQueue tx(pool);
    TxPacket packet;
    for (const auto& [length, chunks] :
         {std::pair{1u, 1u}, {4096u, 1u}, {4097u, 2u}, {65549u, 17u}, {18u * 4096u, 18u}}) {
        ASSERT_TRUE(tx.reserve(length, packet)) << length;
        EXPECT_EQ(packet.count, chunks) << length;
        EXPECT_EQ(packet.length, length);
        std::size_t sum = 0;
        for (std::uint32_t i = 0; i < packet.count; ++i) sum += packet.fragments[i].size();
        EXPECT_EQ(sum, length);
        tx.abandon(packet);
        EXPECT_EQ(pool.available(), 64u);
    }
    EXPECT_FALSE(tx.reserve(18 * 4096 + 1, packet));
    EXPECT_FALSE(tx.reserve(0, packet));
    EXPECT_EQ(pool.available(), 64u);
}

TEST(TxQueue, DescriptorsSayWherePacketsEnd) {
    FramePool pool(64);
    TxQueue tx(pool);
    ASSERT_TRUE(queue(tx, pattern(60, 1)));
    ASSERT_TRUE(queue(tx, pattern(9000, 2)));
    const auto pending = tx.pending();
    ASSERT_EQ(pending.size(), 4u);
    EXPECT_FALSE(pending[0].more);
    EXPECT_TRUE(pending[1].more);
    EXPECT_TRUE(pending[2].more);
    EXPECT_FALSE(pending[3].more);
    EXPECT_EQ(pending[3].length, 9000u - 8192u);
    tx.consume(1);
    EXPECT_EQ(tx.pending().size(), 3u);
    EXPECT_TRUE(tx.pending()[0].more);
    tx.consume(3);
    EXPECT_TRUE(tx.pending().empty());
}

TEST(TxQueue, LeavesTheReserveAlone) {
    FramePool pool(4);
    TxQueue tx(pool, 2);
    TxPacket packet;
    EXPECT_FALSE(tx.reserve(3 * 4096, packet));
    ASSERT_TRUE(tx.reserve(2 * 4096, packet));
    TxPacket another;
    EXPECT_FALSE(tx.reserve(1, another));
    tx.abandon(packet);
    EXPECT_TRUE(tx.reserve(1, another));
    tx.abandon(another);
}

}  // namespace
}  // namespace culvert::device
