#include "shm/ready_bitmap.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

namespace culvert::shm {
namespace {

struct Bitmap {
    explicit Bitmap(std::uint32_t bits) : memory(ReadyBitmap::bytes(bits) / sizeof(Word)), bitmap(memory.data(), bits) {}
    std::vector<Word> memory;
    ReadyBitmap bitmap;
};

std::vector<std::uint32_t> collect(ReadyBitmap& bitmap) {
    std::vector<std::uint32_t> found;
    bitmap.collect([&](std::uint32_t index) { found.push_back(index); });
    return found;
}

TEST(ReadyBitmap, EachIndexOnceHoweverOftenPosted) {
    Bitmap b(8192);
    for (int i = 0; i < 3; ++i)
        for (std::uint32_t index : {0u, 63u, 64u, 4095u, 4096u, 8191u}) b.bitmap.post(index);
    EXPECT_TRUE(b.bitmap.any());
    EXPECT_EQ(collect(b.bitmap), (std::vector<std::uint32_t>{0, 63, 64, 4095, 4096, 8191}));
    EXPECT_FALSE(b.bitmap.any());
    EXPECT_TRUE(collect(b.bitmap).empty());
}

TEST(ReadyBitmap, MatchesASetUnderRandomUse) {
    constexpr std::uint32_t kBits = 70016;  // 1094 words, 18 summary words
    Bitmap b(kBits);
    std::set<std::uint32_t> oracle;
    std::minstd_rand engine(7);
    const auto rng = [&] { return static_cast<std::uint32_t>(engine()); };
    for (int round = 0; round < 2000; ++round) {
        for (std::uint32_t i = rng() % 20; i > 0; --i) {
            const std::uint32_t index = rng() % kBits;
            b.bitmap.post(index);
            oracle.insert(index);
        }
        EXPECT_EQ(b.bitmap.any(), !oracle.empty());
        if (rng() % 4 == 0) {
            EXPECT_EQ(collect(b.bitmap), std::vector<std::uint32_t>(oracle.begin(), oracle.end()));
            oracle.clear();
        }
    }
}

TEST(ReadyBitmap, SomeAtATimeGoRoundAndLoseNone) {
    Bitmap b(10000);
    std::mt19937 random(5);
    std::set<std::uint32_t> waiting;
    std::uint32_t next = 0;
    for (int round = 0; round < 400; ++round) {
        if (round < 200) {
            for (int i = 0; i < 200; ++i) {
                const auto index = static_cast<std::uint32_t>(random() % 10000);
                b.bitmap.post(index);
                waiting.insert(index);
            }
        }
        const std::size_t before = waiting.size();
        const std::uint32_t found = b.bitmap.collect_some(100, next, [&](std::uint32_t index) { EXPECT_EQ(waiting.erase(index), 1u); });
        EXPECT_LE(found, 163u);
        EXPECT_GE(found, std::min<std::size_t>(before, 100));
        EXPECT_EQ(b.bitmap.any(), !waiting.empty());
    }
    EXPECT_TRUE(waiting.empty());
    // One that is posted again each time does not keep the others waiting.
    for (std::uint32_t index = 0; index < 10000; index += 64) b.bitmap.post(index);
    bool last = false;
    for (int round = 0; round < 20; ++round) {
        for (std::uint32_t index = 0; index < 640; index += 64) b.bitmap.post(index);
        b.bitmap.collect_some(10, next, [&](std::uint32_t index) { last |= index == 9984; });
    }
    EXPECT_TRUE(last);
}

TEST(ReadyBitmap, AWriterThatDiesBetweenItsStepsLosesNobodyElsesBit) {
    Bitmap b(4096);
    b.memory[1].fetch_or(1);  // word 0 set, summary bit not: the writer of index 0 was killed half-way
    b.bitmap.post(5);         // same word
    EXPECT_EQ(collect(b.bitmap), (std::vector<std::uint32_t>{0, 5}));
}

TEST(ReadyBitmap, BitsBeyondTheEndAreDropped) {
    Bitmap b(64);
    for (Word& word : b.memory) word.store(~std::uint64_t{0});  // a hostile writer
    EXPECT_EQ(collect(b.bitmap).size(), 64u);
    EXPECT_FALSE(b.bitmap.any()) << "or the engine would never sleep";
}

TEST(SocketBitmap, ClearTellsOneCallerOnly) {
    std::vector<Word> words(4);
    SocketBitmap bitmap(words.data(), 256);
    EXPECT_FALSE(bitmap.set(200));
    EXPECT_TRUE(bitmap.set(200));
    EXPECT_TRUE(bitmap.test(200));
    EXPECT_TRUE(bitmap.clear(200));
    EXPECT_FALSE(bitmap.clear(200));
    bitmap.set(3);
    bitmap.set(255);
    std::vector<std::uint32_t> seen;
    bitmap.for_each([&](std::uint32_t index) { seen.push_back(index); });
    EXPECT_EQ(seen, (std::vector<std::uint32_t>{3, 255}));
}

}  // namespace
}  // namespace culvert::shm
