#include "daemon/stack/tcp/sack_scoreboard.h"

#include <gtest/gtest.h>

#include <vector>

#include "daemon/base/rng.h"

namespace culvert::stack::tcp {
namespace {

constexpr std::uint32_t kMss = 1000;
using Blocks = std::vector<Range>;

std::vector<Range> ranges(const SackScoreboard& board) { return {board.ranges().begin(), board.ranges().end()}; }

TEST(SackScoreboard, MergesWhatTouches) {
    SackScoreboard board;
    auto u = board.update(Blocks{{2000, 3000}, {5000, 6000}}, 1000, 10000, kMss);
    EXPECT_EQ(u.newly_sacked, 2000u);
    EXPECT_TRUE(u.new_information);
    u = board.update(Blocks{{3000, 5500}}, 1000, 10000, kMss);
    EXPECT_EQ(u.newly_sacked, 2000u);
    EXPECT_EQ(ranges(board), (Blocks{{2000, 6000}}));
    u = board.update(Blocks{{2500, 5000}}, 1000, 10000, kMss);
    EXPECT_EQ(u.newly_sacked, 0u);
    EXPECT_FALSE(u.new_information);
}

TEST(SackScoreboard, IgnoresBlocksOutsideTheWindow) {
    SackScoreboard board;
    const auto u = board.update(
        Blocks{{500, 900}, {9000, 10001}, {6000, 5000}, {4000, 4000}, {20000, 30000}, {0, UINT64_MAX}}, 1000, 10000, kMss);
    EXPECT_FALSE(u.new_information);
    EXPECT_TRUE(board.empty());
    EXPECT_EQ(board.update(Blocks{{500, 2000}}, 1000, 10000, kMss).newly_sacked, 1000u);  // of an older ACK: cut
}

TEST(SackScoreboard, LostByThreeRangesOrByBytes) {  // [RFC6675 4 IsLost]
    SackScoreboard board;
    board.update(Blocks{{2000, 2100}, {3000, 3100}}, 1000, 100000, kMss);
    EXPECT_EQ(board.loss_edge(), 0u);
    board.update(Blocks{{4000, 4100}}, 1000, 100000, kMss);
    EXPECT_EQ(board.loss_edge(), 2000u);
    EXPECT_TRUE(board.is_lost(1000));
    EXPECT_FALSE(board.is_lost(2050));
    EXPECT_FALSE(board.is_lost(2500));

    SackScoreboard bytes;
    bytes.update(Blocks{{5000, 7000}}, 1000, 100000, kMss);
    EXPECT_EQ(bytes.loss_edge(), 0u);  // exactly (DupThresh - 1) * SMSS is not more than it
    bytes.update(Blocks{{7000, 7001}}, 1000, 100000, kMss);
    EXPECT_EQ(bytes.loss_edge(), 5000u);
}

TEST(SackScoreboard, FindsHoles) {
    SackScoreboard board;
    board.update(Blocks{{2000, 3000}, {4000, 5000}}, 1000, 9000, kMss);
    EXPECT_EQ(board.next_hole({1000, 9000}), (Range{1000, 2000}));
    EXPECT_EQ(board.next_hole({2000, 9000}), (Range{3000, 4000}));
    EXPECT_EQ(board.next_hole({2500, 3500}), (Range{3000, 3500}));
    EXPECT_EQ(board.next_hole({4500, 9000}), (Range{5000, 9000}));
    EXPECT_TRUE(board.next_hole({4000, 5000}).empty());
    EXPECT_EQ(board.sacked_in({2500, 4500}), 1000u);
}

TEST(SackScoreboard, AdvanceForgetsWhatIsAcknowledged) {
    SackScoreboard board;
    board.update(Blocks{{2000, 3000}, {4000, 5000}}, 1000, 9000, kMss);
    board.advance(4500, kMss);
    EXPECT_EQ(ranges(board), (Blocks{{4500, 5000}}));
    EXPECT_EQ(board.sacked_bytes(), 500u);
    board.advance(5000, kMss);
    EXPECT_TRUE(board.empty());
}

TEST(SackScoreboard, AFullBoardForgetsTheSmallest) {
    SackScoreboard board;
    for (std::size_t i = 0; i < SackScoreboard::kMaxRanges; ++i) {
        const Position first = 10'000 + i * 100;
        board.update(Blocks{{first, first + (i == 7 ? 10 : 50)}}, 1000, 1'000'000, kMss);
    }
    EXPECT_EQ(board.ranges().size(), SackScoreboard::kMaxRanges);
    const std::uint64_t before = board.sacked_bytes();
    const auto u = board.update(Blocks{{50'000, 50'050}}, 1000, 1'000'000, kMss);
    EXPECT_EQ(board.ranges().size(), SackScoreboard::kMaxRanges);
    EXPECT_FALSE(board.is_sacked(10'700));  // the one of 10 bytes
    EXPECT_EQ(board.sacked_bytes(), before + 40);
    EXPECT_EQ(u.newly_sacked, 40u);  // never counts a byte twice
    ASSERT_EQ(u.forgotten_count, 1u);
    EXPECT_EQ(u.forgotten[0], (Range{10'700, 10'710}));
}

TEST(SackScoreboard, RecognisesDuplicateSack) {  // [RFC2883 4]
    EXPECT_EQ(find_dsack(Blocks{{500, 1000}, {2000, 3000}}, 1000, 9000), (Range{500, 1000}));
    EXPECT_EQ(find_dsack(Blocks{{2200, 2400}, {2000, 3000}}, 1000, 9000), (Range{2200, 2400}));
    EXPECT_EQ(find_dsack(Blocks{{2000, 3000}, {4000, 5000}}, 1000, 9000), std::nullopt);
    EXPECT_EQ(find_dsack(Blocks{{800, 700}}, 1000, 9000), std::nullopt);
    EXPECT_EQ(find_dsack({}, 1000, 9000), std::nullopt);
}

/// Against a bitmap of bytes, in a window small enough that nothing is ever evicted.
TEST(SackScoreboard, AgreesWithABitmap) {
    for (std::uint64_t seed = 1; seed <= 50; ++seed) {
        SCOPED_TRACE(testing::Message() << "seed " << seed);
        Rng rng(seed);
        SackScoreboard board;
        const Position base = initial_position(0);
        const Position end = base + 120;  // at most 60 ranges
        Position una = base;
        std::vector<bool> held(120);
        while (una < end) {
            if (rng.happens(0.05)) {
                una += rng.below(6);
                una = std::min(una, end);
                board.advance(una, 4);
            } else {
                Blocks blocks;
                for (std::uint64_t n = rng.below(4); n > 0; --n) {
                    const Position a = base + rng.below(130) - 5;
                    blocks.push_back({a, a + rng.below(5)});
                }
                std::uint64_t fresh = 0;
                for (const Range& b : blocks) {
                    if (b.empty() || b.end > end || b.end <= una) continue;
                    for (Position p = std::max(b.first, una); p < b.end; ++p) {
                        fresh += held[p - base] ? 0 : 1;
                        held[p - base] = true;
                    }
                }
                ASSERT_EQ(board.update(blocks, una, end, 4).newly_sacked, fresh);
            }
            std::uint64_t total = 0;
            for (Position p = una; p < end; ++p) {
                ASSERT_EQ(board.is_sacked(p), held[p - base]) << p - base;
                total += held[p - base] ? 1 : 0;
            }
            ASSERT_EQ(board.sacked_bytes(), total);
            for (Position p = base; p < una; ++p) ASSERT_FALSE(board.is_sacked(p));
        }
    }
}

TEST(SackPool, IsBounded) {
    SackPool pool(2);
    SackScoreboard* a = pool.create();
    SackScoreboard* b = pool.create();
    ASSERT_NE(a, nullptr);
    ASSERT_NE(b, nullptr);
    EXPECT_EQ(pool.create(), nullptr);
    a->update(Blocks{{2, 3}}, 1, 10, kMss);
    pool.destroy(a);
    a = pool.create();
    ASSERT_NE(a, nullptr);
    EXPECT_TRUE(a->empty());  // a used one comes back clean
    pool.destroy(a);
    pool.destroy(b);
    EXPECT_EQ(pool.used(), 0u);
}

}  // namespace
}  // namespace culvert::stack::tcp
