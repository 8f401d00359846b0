#include "daemon/base/lazy_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

namespace culvert {
namespace {

TEST(LazyPool, GivesEveryPieceOnceAndTakesItBack) {
    LazyPool pool(100, 5);
    std::set<std::uint32_t> pieces;
    for (int i = 0; i < 5; ++i) pieces.insert(pool.allocate());
    EXPECT_EQ(pieces.size(), 5u);
    EXPECT_FALSE(pieces.contains(LazyPool::kNone));
    EXPECT_EQ(pool.allocate(), LazyPool::kNone);
    EXPECT_EQ(pool.used(), 5u);
    pool.release(2);
    pool.release(4);
    EXPECT_EQ(pool.allocate(), 4u);  // the warmest first
    EXPECT_EQ(pool.allocate(), 2u);
    EXPECT_EQ(pool.allocate(), LazyPool::kNone);
}

TEST(LazyPool, PiecesAreAlignedAndDoNotOverlap) {
    LazyPool pool(100, 3);
    for (int i = 0; i < 3; ++i) {
        const std::uint32_t index = pool.allocate();
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(pool.at(index)) % 16, 0u);
        std::memset(pool.at(index), static_cast<int>(index) + 1, 100);
    }
    for (std::uint32_t i = 0; i < 3; ++i) {
        EXPECT_EQ(pool.at(i)[0], std::byte(i + 1));
        EXPECT_EQ(pool.at(i)[99], std::byte(i + 1));
        EXPECT_EQ(pool.index_of(pool.at(i)), i);
    }
}

TEST(LazyPool, HoldsNothingWhenEmpty) {
    LazyPool pool(64, 0);
    EXPECT_EQ(pool.allocate(), LazyPool::kNone);
}

}  // namespace
}  // namespace culvert
