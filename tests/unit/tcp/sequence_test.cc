#include "daemon/stack/tcp/sequence.h"

#include <gtest/gtest.h>

#include "daemon/base/rng.h"

namespace culvert::stack::tcp {
namespace {

TEST(Sequence, WidensToTheNearestPosition) {  // [RFC9293 3.4]
    const Position reference = initial_position(0xfffffff0);
    EXPECT_EQ(widen(0xfffffff0, reference), reference);
    EXPECT_EQ(widen(0x00000010, reference), reference + 0x20);  // over the wrap
    EXPECT_EQ(widen(0xffffffe0, reference), reference - 0x10);
    EXPECT_EQ(widen(to_wire(reference + 0x7fffffff), reference), reference + 0x7fffffff);
    EXPECT_EQ(widen(to_wire(reference - 0x80000000), reference), reference - 0x80000000);
}

TEST(Sequence, AnOldDuplicateOfAYoungStreamDoesNotWrapBelowZero) {
    const Position iss = initial_position(0);
    EXPECT_LT(widen(0x80000001, iss), iss);
    EXPECT_EQ(widen(0xffffffff, iss), iss - 1);
}

TEST(Sequence, RoundTripsAlongALongStream) {
    Rng rng(1);
    Position p = initial_position(static_cast<std::uint32_t>(rng.next()));
    for (int i = 0; i < 100'000; ++i) {
        p += rng.below(1 << 20);
        const Position near = p + rng.below(1u << 30) - (1u << 29);
        ASSERT_EQ(widen(to_wire(near), p), near);
    }
    EXPECT_GT(p, Position{3} << 32);  // it did wrap
}

TEST(Sequence, ComparesWithWrap) {
    EXPECT_TRUE(before(0xffffffff, 0));
    EXPECT_TRUE(after(5, 0xfffffffb));
    EXPECT_FALSE(before(7, 7));
    EXPECT_FALSE(after(7, 7));
}

}  // namespace
}  // namespace culvert::stack::tcp
