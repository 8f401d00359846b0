#include "daemon/device/fault_injector.h"

#include <gtest/gtest.h>

#include "daemon/device/memory.h"
#include "tests/unit/device/packets.h"

namespace culvert::device {
namespace {

using namespace std::chrono_literals;

constexpr Instant at(Duration time) { return Instant(time); }

struct BadLink {
    BadLink(const Faults& receive, const Faults& transmit, std::uint64_t seed)
        : link(memory, receive, transmit, seed) {}
    FramePool pool{64};
    MemoryDevice memory{pool, {.checksum = ChecksumState::kMaybePartial}};
    FaultInjector link;
};

TEST(FaultInjector, AGoodLinkChangesNothing) {
    BadLink t({}, {}, 1);
    t.memory.inject(pattern(60, 1));
    t.memory.inject(pattern(5000, 2));
    EXPECT_TRUE(t.link.has_input());
    EXPECT_EQ(drain(t.link), (std::vector<Bytes>{pattern(60, 1), pattern(5000, 2)}));
    ASSERT_TRUE(queue(t.link.tx(), pattern(5000, 3)));
    ASSERT_TRUE(queue(t.link.tx(), pattern(60, 4)));
    EXPECT_FALSE(t.link.flush());
    EXPECT_EQ(t.memory.take_sent(), (std::vector<Bytes>{pattern(5000, 3), pattern(60, 4)}));
    EXPECT_EQ(t.pool.available(), 64u);
    EXPECT_EQ(t.link.next_deadline(), kNever);
}

TEST(FaultInjector, KeepsTheChecksumState) {
    BadLink t({}, {}, 1);
    t.memory.inject(pattern(60, 1));
    RxPacket burst[1];
    ASSERT_EQ(t.link.receive(burst), 1u);
    EXPECT_EQ(burst[0].checksum, ChecksumState::kMaybePartial);
}

TEST(FaultInjector, KeepsWhatASuperPacketIsMadeOf) {
    struct Held final : Device {
        explicit Held(FramePool& pool) : queue(pool) {}
        std::size_t receive(std::span<RxPacket>) override { return 0; }
        TxQueue& tx() override { return queue; }
        bool flush() override { return false; }
        int readiness_fd() const override { return -1; }
        bool has_input() const override { return false; }
        std::string describe() const override { return "held"; }
        std::vector<Statistic> statistics() const override { return {}; }
        TxQueue queue;
    };
    FramePool pool(16);
    Held held(pool);
    FaultInjector link(held, {}, {}, 1);
    TxPacket out;
    ASSERT_TRUE(link.tx().reserve(9000, out));
    out.segment_size = 1400;
    out.transport_offset = 34;
    link.tx().commit(out);
    link.flush();
    ASSERT_EQ(held.queue.pending().size(), 3u);
    EXPECT_EQ(held.queue.pending()[0].segment_size, 1400u);
    EXPECT_EQ(held.queue.pending()[0].transport_offset, 34u);
    held.queue.consume(3);
}

TEST(FaultInjector, LosesTheShareAskedFor) {
    BadLink t({}, {.loss = 0.25}, 7);
    for (unsigned i = 0; i < 2000; ++i) {
        ASSERT_TRUE(queue(t.link.tx(), pattern(60, i)));
        t.link.flush();
    }
    const std::size_t arrived = t.memory.take_sent().size();
    EXPECT_EQ(arrived + t.link.transmit_counts().lost, 2000u);
    EXPECT_NEAR(static_cast<double>(arrived), 1500, 100);
    EXPECT_EQ(statistic(t.link, "fault_tx_lost"), t.link.transmit_counts().lost);
    EXPECT_EQ(t.pool.available(), 64u);
}

TEST(FaultInjector, DuplicatesAreEqual) {
    BadLink t({.duplicate = 1}, {}, 1);
    t.memory.inject(pattern(60, 1));
    EXPECT_EQ(drain(t.link), (std::vector<Bytes>{pattern(60, 1), pattern(60, 1)}));
}

TEST(FaultInjector, CorruptsOneBit) {
    BadLink t({.corrupt = 1}, {}, 3);
    t.memory.inject(pattern(60, 1));
    const std::vector<Bytes> received = drain(t.link);
    ASSERT_EQ(received.size(), 1u);
    const Bytes sent = pattern(60, 1);
    int bits = 0;
    for (std::size_t i = 0; i < sent.size(); ++i)
        bits += __builtin_popcount(std::to_integer<unsigned>(sent[i] ^ received[0][i]));
    EXPECT_EQ(bits, 1);
}

TEST(FaultInjector, DelaysByTheClockItIsGiven) {
    BadLink t({.delay_min = 10ms, .delay_max = 10ms}, {.delay_min = 20ms, .delay_max = 20ms}, 1);
    t.link.set_now(at(100ms));
    t.memory.inject(pattern(60, 1));
    queue(t.link.tx(), pattern(60, 2));
    t.link.flush();
    EXPECT_TRUE(drain(t.link).empty());
    EXPECT_EQ(t.link.next_deadline(), at(110ms));
    t.link.set_now(at(110ms) - 1ns);
    EXPECT_FALSE(t.link.has_input());
    EXPECT_TRUE(drain(t.link).empty());
    t.link.set_now(at(110ms));
    EXPECT_TRUE(t.link.has_input());
    EXPECT_EQ(drain(t.link).size(), 1u);
    EXPECT_EQ(t.link.next_deadline(), at(120ms));
    t.link.flush();
    EXPECT_TRUE(t.memory.take_sent().empty());
    t.link.set_now(at(120ms));
    t.link.flush();
    EXPECT_EQ(t.memory.take_sent().size(), 1u);
}

TEST(FaultInjector, ReorderedPacketsArriveLater) {
    BadLink t({.reorder = 1, .reorder_hold = 5ms}, {}, 1);
    t.memory.inject(pattern(60, 1));
    EXPECT_TRUE(drain(t.link).empty());
    t.link.set_faults({}, {});
    t.memory.inject(pattern(60, 2));
    EXPECT_EQ(drain(t.link), std::vector<Bytes>{pattern(60, 2)});
    t.link.set_now(at(5ms));
    EXPECT_EQ(drain(t.link), std::vector<Bytes>{pattern(60, 1)});
}

TEST(FaultInjector, TheSeedDecides) {
    const Faults bad = {.loss = 0.1, .duplicate = 0.1, .corrupt = 0.1, .reorder = 0.1, .delay_max = 1ms};
    const auto run = [&bad](std::uint64_t seed) {
        BadLink t(bad, {}, seed);
        std::vector<Bytes> result;
        for (unsigned i = 0; i < 200; ++i) {
            t.link.set_now(at(i * 100us));
            t.memory.inject(pattern(60, i));
            for (Bytes& packet : drain(t.link)) result.push_back(std::move(packet));
        }
        return result;
    };
    EXPECT_EQ(run(42), run(42));
    EXPECT_NE(run(42), run(43));
}

}  // namespace
}  // namespace culvert::device
