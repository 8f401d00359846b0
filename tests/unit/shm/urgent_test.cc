#include "shm/urgent.h"

#include <gtest/gtest.h>

namespace culvert::shm {
namespace {

TEST(UrgentWord, HoldsPositionAndOctet) {
    const std::uint64_t word = urgent_word(1'000'000);
    EXPECT_EQ(urgent_ahead(word, 1'000'000), 0);
    EXPECT_EQ(urgent_ahead(word, 0), 1'000'000);
    EXPECT_EQ(urgent_ahead(word, 1'000'001), -1);
    EXPECT_EQ(word & kUrgentArrived, 0u);
    const std::uint64_t arrived = with_octet(word, 0xff);
    EXPECT_EQ(urgent_octet(arrived), 0xff);
    EXPECT_NE(arrived & kUrgentArrived, 0u);
    EXPECT_EQ(urgent_ahead(arrived, 999'999), 1);
}

TEST(UrgentWord, DistancesAreRightWhereThePositionWraps) {
    const std::uint64_t top = std::uint64_t{1} << 54;
    EXPECT_EQ(urgent_ahead(urgent_word(top + 3), top - 2), 5);
    EXPECT_EQ(urgent_ahead(urgent_word(top - 2), top + 3), -5);
    EXPECT_EQ(urgent_ahead(urgent_word(top), top), 0);
}

TEST(UrgentWord, AMarkIsNeverNone) {
    EXPECT_NE(urgent_mark(0), 0u);
    EXPECT_NE(urgent_mark(std::uint64_t{1} << 31), 0u);
    EXPECT_NE(urgent_mark(6), urgent_mark(7));
}

}  // namespace
}  // namespace culvert::shm
