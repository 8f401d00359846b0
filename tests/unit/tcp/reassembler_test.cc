#include "daemon/stack/tcp/reassembler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/base/rng.h"

namespace culvert::stack::tcp {
namespace {

constexpr Position kBase = (Position{1} << 32) + 1000;

class ReassemblerTest : public testing::Test {
protected:
    ~ReassemblerTest() override {
        r.clear(pool);
        EXPECT_EQ(pool.used(), 0u) << "a piece leaked";
    }
    Reassembler::Inserted insert(Position at, std::string_view text) {
        const std::span<const std::byte> fragment = std::as_bytes(std::span(text));
        return r.insert(at, std::span(&fragment, 1), kBase, pool);
    }
    std::string take(Position from) {
        std::string out;
        r.take_in_order(
            from,
            [&](std::span<const std::byte> run) {
                out.append(reinterpret_cast<const char*>(run.data()), run.size());
                return run.size();
            },
            pool);
        return out;
    }
    std::vector<Range> blocks(std::optional<Range> dsack = std::nullopt, std::size_t n = 4) {
        std::vector<Range> out(n);
        out.resize(r.sack_blocks(out, dsack));
        return out;
    }

    ReassemblyPool pool{1000, 100};
    Reassembler r;
};

TEST_F(ReassemblerTest, HoldsUntilTheGapIsFilled) {
    EXPECT_TRUE(r.empty());
    EXPECT_EQ(insert(kBase + 5, "world").stored, 5u);
    EXPECT_EQ(r.bytes(), 5u);
    EXPECT_EQ(take(kBase), "");
    EXPECT_EQ(take(kBase + 5), "world");
    EXPECT_TRUE(r.empty());
    EXPECT_EQ(pool.used(), 0u);
}

TEST_F(ReassemblerTest, TheFirstCopyOfAByteWins) {
    insert(kBase + 2, "cd");
    const auto again = insert(kBase + 1, "BCDE");
    EXPECT_EQ(again.stored, 2u);
    EXPECT_EQ(again.duplicate, (Range{kBase + 2, kBase + 4}));
    EXPECT_EQ(take(kBase + 1), "BcdE");
}

TEST_F(ReassemblerTest, TakesFragmentedPayloadAcrossBlocks) {
    const std::string text = [] {
        std::string s;
        for (int i = 0; i < 9000; ++i) s += static_cast<char>('a' + i % 26);
        return s;
    }();
    const auto all = std::as_bytes(std::span(text));
    const std::array<std::span<const std::byte>, 5> fragments = {all.first(1), all.subspan(1, 0), all.subspan(1, 4095),
                                                                 all.subspan(4096), all.first(0)};
    EXPECT_EQ(r.insert(kBase + 10, fragments, kBase, pool).stored, 9000u);
    EXPECT_EQ(take(kBase + 10), text);
}

TEST_F(ReassemblerTest, ASinkThatIsFullKeepsTheRest) {
    insert(kBase + 1, "abcdef");
    const auto taken = r.take_in_order(kBase + 1, [](std::span<const std::byte>) { return std::size_t{2}; }, pool);
    EXPECT_EQ(taken, 2u);
    EXPECT_EQ(r.bytes(), 4u);
    EXPECT_EQ(take(kBase + 3), "cdef");
}

TEST_F(ReassemblerTest, ReportsTheNewestRangeFirst) {  // [RFC2018 4]
    insert(kBase + 10, "a");
    insert(kBase + 20, "b");
    insert(kBase + 30, "c");
    insert(kBase + 40, "d");
    insert(kBase + 50, "e");
    insert(kBase + 21, "b");  // makes the range of 20 the newest
    EXPECT_EQ(blocks(), (std::vector<Range>{{kBase + 20, kBase + 22},
                                            {kBase + 50, kBase + 51},
                                            {kBase + 40, kBase + 41},
                                            {kBase + 30, kBase + 31}}));
    EXPECT_EQ(blocks(std::nullopt, 3).size(), 3u);  // timestamps leave room for three
}

TEST_F(ReassemblerTest, ReportsADuplicateBeforeTheRangeItLiesIn) {  // [RFC2883 4.2]
    insert(kBase + 10, "abcdef");
    const auto again = insert(kBase + 12, "cd");
    ASSERT_TRUE(again.duplicate);
    EXPECT_EQ(again.stored, 0u);
    EXPECT_EQ(blocks(again.duplicate), (std::vector<Range>{{kBase + 12, kBase + 14}, {kBase + 10, kBase + 16}}));
    r.clear(pool);
    EXPECT_EQ(blocks(Range{kBase - 5, kBase}), (std::vector<Range>{{kBase - 5, kBase}}));  // with nothing held
}

TEST_F(ReassemblerTest, TinySegmentsUseNoMoreMemoryThanTheirWindow) {
    for (Position p = kBase + 1; p < kBase + 60; p += 2) insert(p, "x");
    EXPECT_LE(pool.used(), 4u);  // bookkeeping, one leaf, at most two blocks
}

TEST_F(ReassemblerTest, TooManyHolesGiveUpTheFarthest) {
    for (std::size_t i = 0; i < Reassembler::kMaxRanges; ++i) EXPECT_EQ(insert(kBase + 10 + 3000 * i, "x").stored, 1u);
    const std::uint32_t used = pool.used();
    EXPECT_EQ(insert(kBase + 10 + 3000 * Reassembler::kMaxRanges, "y").stored, 0u);
    EXPECT_EQ(pool.used(), used);  // and its block is free again
    EXPECT_EQ(insert(kBase + 5, "z").stored, 1u);  // a nearer one displaces the farthest
    EXPECT_EQ(r.bytes(), Reassembler::kMaxRanges);
    EXPECT_EQ(take(kBase + 5), "z");
}

TEST_F(ReassemblerTest, OneConnectionCannotUseUpThePool) {
    const std::string big(64 * 1024, 'x');
    bool truncated = false;
    for (int i = 0; i < 10; ++i) truncated |= insert(kBase + 1 + static_cast<Position>(i) * big.size(), big).truncated;
    EXPECT_TRUE(truncated);
    EXPECT_LE(pool.used(), 100u);
    EXPECT_EQ(take(kBase + 1).size(), 98 * 2048 - (kBase + 1) % 2048);  // all that was stored comes out
}

TEST_F(ReassemblerTest, AnEmptyPoolRefusesAndChangesNothing) {
    ReassemblyPool none(2, 100);
    Reassembler other;
    const std::string_view text = "abc";
    const std::span<const std::byte> fragment = std::as_bytes(std::span(text));
    const auto result = other.insert(kBase + 1, std::span(&fragment, 1), kBase, none);
    EXPECT_TRUE(result.truncated);
    EXPECT_EQ(result.stored, 0u);
    EXPECT_TRUE(other.empty());
    EXPECT_EQ(none.used(), 0u);
}

/// Peers that leave gaps and fill windows do not keep the next connection that loses a packet from keeping what comes behind it.
TEST(Reassembler, GreedyConnectionsLeaveRoomForTheNext) {
    struct Case {
        std::uint32_t greedy;
        std::uint64_t left;  // bytes for the next
    };
    for (const auto& [greedy, left] : {Case{0, 1020 * 2048}, Case{4, 400'000}, Case{20, 24'000}, Case{36, 24'000}}) {
        SCOPED_TRACE(greedy);
        ReassemblyPool pool(4096, 1024);
        const std::vector<std::byte> data(2048);
        const std::span<const std::byte> fragment(data);
        const auto fill = [&](Reassembler& r) {
            std::uint64_t stored = 0;
            for (Position at = kBase + 2048; at < kBase + (4u << 20); at += 2048) {
                const auto result = r.insert(at, std::span(&fragment, 1), kBase, pool);
                stored += result.stored;
                if (result.truncated) break;
            }
            return stored;
        };
        std::vector<Reassembler> hostile(greedy);
        for (int round = 0; round < 3; ++round)
            for (Reassembler& r : hostile) fill(r);
        Reassembler next;
        EXPECT_GE(fill(next), left - 2 * 2048);  // its first and its last block are partly used
        next.clear(pool);
        for (Reassembler& r : hostile) r.clear(pool);
        EXPECT_EQ(pool.used(), 0u);
    }
}

TEST_F(ReassemblerTest, RefusesWhatLiesTooFarAhead) {
    EXPECT_EQ(insert(kBase + Reassembler::kMaxReach - 2, "abcd").stored, 2u);
    EXPECT_TRUE(insert(kBase + Reassembler::kMaxReach, "abcd").truncated);
    EXPECT_EQ(insert(kBase + 1, "near").stored, 4u);  // the ring of leaves does not collide
    EXPECT_EQ(take(kBase + 1), "near");
}

TEST_F(ReassemblerTest, DataDeliveredOtherwiseIsForgotten) {
    insert(kBase + 10, "abcdef");
    insert(kBase + 5000, "far");
    r.discard_below(kBase + 13, pool);
    EXPECT_EQ(blocks(), (std::vector<Range>{{kBase + 5000, kBase + 5003}, {kBase + 13, kBase + 16}}));
    EXPECT_EQ(take(kBase + 13), "def");
    r.discard_below(kBase + 6000, pool);
    EXPECT_TRUE(r.empty());
}

/// Random segments against a plain array of bytes: what comes out is in order, complete, and the first copy of each.
TEST(Reassembler, AgreesWithAByteMap) {
    for (std::uint64_t seed = 1; seed <= 40; ++seed) {
        SCOPED_TRACE(testing::Message() << "seed " << seed);
        Rng rng(seed);
        ReassemblyPool pool(60, 40);
        Reassembler r;
        const Position base = kBase + rng.below(5000);
        std::vector<std::optional<std::byte>> oracle(400'000);  // from `base` on
        std::uint64_t count = 0;
        Position rcv_nxt = base;
        const auto forget_below = [&](Position from, Position to) {
            for (Position p = from; p < to; ++p) {
                count -= oracle[p - base] ? 1 : 0;
                oracle[p - base].reset();
            }
        };
        const std::uint64_t span_bytes = 20 + rng.below(60'000);
        for (int step = 0; step < 500 && rcv_nxt < base + 300'000; ++step) {
            const Position at = rcv_nxt + rng.below(span_bytes);
            std::vector<std::byte> data(1 + rng.below(rng.happens(0.2) ? 6000 : 40));
            for (auto& b : data) b = std::byte(rng.next());
            std::vector<std::span<const std::byte>> fragments;
            for (std::size_t o = 0; o < data.size();) {
                const std::size_t n = std::min<std::size_t>(data.size() - o, rng.below(3000));
                fragments.push_back(std::span(data).subspan(o, n));
                o += n;
            }
            std::vector<Range> before(Reassembler::kMaxRanges);
            before.resize(r.sack_blocks(before));
            const auto result = r.insert(at, fragments, rcv_nxt, pool);
            std::vector<Range> held(Reassembler::kMaxRanges);
            held.resize(r.sack_blocks(held));
            const auto in = [](const std::vector<Range>& runs, Position p) {
                return std::ranges::any_of(runs, [&](const Range& run) { return run.contains(p); });
            };

            std::uint64_t stored = 0;
            for (std::size_t i = 0; i < data.size(); ++i) {
                const bool now_held = in(held, at + i);
                auto& byte = oracle[at + i - base];
                if (!byte && now_held) {
                    byte = data[i];
                    ++stored;
                    ++count;
                }
                if (!result.truncated && held.size() < Reassembler::kMaxRanges) {
                    ASSERT_TRUE(now_held);
                }
            }
            ASSERT_EQ(result.stored, stored);
            for (const Range& run : before)  // the farthest may have been given up for a nearer one
                if (!in(held, run.first)) {
                    ASSERT_EQ(held.size(), Reassembler::kMaxRanges);
                    forget_below(run.first, run.end);
                }
            ASSERT_EQ(r.bytes(), count);
            ASSERT_LE(pool.used(), 40u);

            if (!rng.happens(0.3)) continue;
            // Data arrives in order, up to what is held or into it; then the application takes some of it.
            Position next = rcv_nxt + rng.below(100);
            if (rng.happens(0.7) && !held.empty()) next = std::ranges::min(held, {}, &Range::first).first;
            forget_below(rcv_nxt, next);
            rcv_nxt = next;
            const std::size_t room = rng.below(8000);
            std::size_t used = 0;
            const auto taken = r.take_in_order(
                rcv_nxt,
                [&](std::span<const std::byte> run) {
                    const std::size_t n = std::min(run.size(), room - used);
                    for (std::size_t i = 0; i < n; ++i) {
                        EXPECT_TRUE(oracle[rcv_nxt + used + i - base] == run[i]) << "wrong byte";
                    }
                    used += n;
                    return n;
                },
                pool);
            ASSERT_EQ(taken, used);
            forget_below(rcv_nxt, rcv_nxt + taken);
            rcv_nxt += taken;
            if (used < room) {
                ASSERT_FALSE(oracle[rcv_nxt - base]) << "stopped too early";
            }
            ASSERT_EQ(r.bytes(), count);
            ASSERT_EQ(r.empty(), count == 0);
        }
        r.clear(pool);
        ASSERT_EQ(pool.used(), 0u);
    }
}

}  // namespace
}  // namespace culvert::stack::tcp
