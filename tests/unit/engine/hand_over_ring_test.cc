// One writer, one reader, one thread: what goes in comes out, in order, whole, and never more than there is room for.
// The same with two threads is in tests/stress.
#include "daemon/engine/hand_over_ring.h"

#include <gtest/gtest.h>

#include <deque>
#include <vector>

#include "daemon/base/rng.h"

namespace culvert::engine {
namespace {

using Bytes = std::vector<std::byte>;

RxPacket packet_of(const Bytes& bytes) {
    return {.head = bytes, .rest = {}, .length = static_cast<std::uint32_t>(bytes.size())};
}
Bytes copy(std::span<const std::byte> bytes) { return {bytes.begin(), bytes.end()}; }

TEST(HandOverRing, CarriesTheNoteAndJoinsTheFragments) {
    HandOverRing ring(65536);
    EXPECT_FALSE(ring.any());
    const Bytes head(100, std::byte{1});
    const Bytes second(5000, std::byte{2});
    const std::span<const std::byte> rest[] = {second};
    const HandOverNote note{.tried = 0x8000000000000001,
                            .interface = 7,
                            .kind = HandOverNote::Kind::kOwn,
                            .checksum = ChecksumState::kVerified,
                            .segment_size = 1448};
    ASSERT_TRUE(ring.push(note, {.head = head, .rest = rest, .length = 5100}));
    EXPECT_TRUE(ring.any());
    std::array<HandedOver, 4> burst;
    ASSERT_EQ(ring.take(burst), 1u);
    EXPECT_EQ(burst[0].note.tried, note.tried);
    EXPECT_EQ(burst[0].note.interface, 7u);
    EXPECT_EQ(burst[0].note.kind, HandOverNote::Kind::kOwn);
    EXPECT_EQ(burst[0].packet.checksum, ChecksumState::kVerified);
    EXPECT_EQ(burst[0].packet.segment_size, 1448);
    EXPECT_EQ(burst[0].packet.length, 5100u);
    EXPECT_TRUE(burst[0].packet.rest.empty());
    Bytes whole = head;
    whole.insert(whole.end(), second.begin(), second.end());
    EXPECT_EQ(copy(burst[0].packet.head), whole);
    ring.done();
    EXPECT_FALSE(ring.any());
}

TEST(HandOverRing, RefusesWhatDoesNotFitUntilTheReaderIsDone) {
    HandOverRing ring(4096);
    const Bytes packet(1100, std::byte{9});
    int pushed = 0;
    while (ring.push({}, packet_of(packet))) ++pushed;
    EXPECT_EQ(pushed, 3);  // 1152 bytes each with what travels along
    std::array<HandedOver, 8> burst;
    ASSERT_EQ(ring.take(std::span(burst).first(2)), 2u);
    EXPECT_FALSE(ring.push({}, packet_of(packet)));  // shown is not given back
    ring.done();
    EXPECT_TRUE(ring.push({}, packet_of(packet)));
    EXPECT_FALSE(ring.push({}, packet_of(Bytes(5000))));  // larger than the ring
}

TEST(HandOverRing, AgreesWithAQueueForManySizes) {
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
        Rng rng(seed);
        HandOverRing ring(16384);
        std::deque<Bytes> oracle;
        std::size_t refused = 0;
        for (int step = 0; step < 5000; ++step) {
            if (rng.below(3) != 0) {
                Bytes bytes(1 + rng.below(rng.below(2) == 0 ? 100 : 4000));
                for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng.next());
                if (ring.push({}, packet_of(bytes)))
                    oracle.push_back(std::move(bytes));
                else
                    ++refused;
            } else {
                std::array<HandedOver, 8> burst;
                const std::size_t count = ring.take(std::span(burst).first(1 + rng.below(8)));
                for (std::size_t i = 0; i < count; ++i) {
                    ASSERT_FALSE(oracle.empty());
                    ASSERT_EQ(copy(burst[i].packet.head), oracle.front()) << "seed " << seed << " step " << step;
                    oracle.pop_front();
                }
                ring.done();
            }
            ASSERT_EQ(ring.any(), !oracle.empty());
        }
        EXPECT_GT(refused, 0u);
    }
}

}  // namespace
}  // namespace culvert::engine
