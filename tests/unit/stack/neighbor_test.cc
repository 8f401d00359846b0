#include "daemon/stack/neighbor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "tests/unit/stack/ip_world.h"

namespace culvert::stack {
namespace {

using testing::ElementsAre;

class NeighborTest : public testing::Test, public IpWorld {
protected:
    /// A finished frame whose last byte is `mark`; its destination MAC is still to be filled in.
    TxPacket frame(std::uint8_t mark) {
        TxPacket packet;
        EXPECT_TRUE(tx.reserve(60, packet));
        std::ranges::fill(packet.fragments[0], std::byte{0});
        packet.fragments[0].back() = std::byte{mark};
        return packet;
    }
    void enqueue(std::uint8_t mark) { neighbors.enqueue(7, peer4, frame(mark), tx, now); }
    std::vector<int> marks_sent(const MacAddress& mac) {
        std::vector<int> marks;
        for (const Bytes& bytes : take_frames(tx)) {
            EXPECT_EQ(wire::load_mac(bytes.data()), mac);
            marks.push_back(std::to_integer<int>(bytes.back()));
        }
        return marks;
    }
};

TEST_F(NeighborTest, PacketsWaitForTheAnswerAndLeaveInOrder) {
    EXPECT_EQ(neighbors.lookup(7, peer4, now), nullptr);
    enqueue(1);
    enqueue(2);
    EXPECT_THAT(resolver.asked, ElementsAre(peer4));
    EXPECT_TRUE(tx.pending().empty());

    neighbors.update(7, peer4, kPeerMac, NeighborState::kReachable, tx);
    EXPECT_THAT(marks_sent(kPeerMac), ElementsAre(1, 2));
    ASSERT_NE(neighbors.lookup(7, peer4, now), nullptr);
    EXPECT_EQ(*neighbors.lookup(7, peer4, now), kPeerMac);
    EXPECT_EQ(pool.available(), pool.count());
}

TEST_F(NeighborTest, TheKernelIsAskedAtMostOnceASecond) {  // [RFC1122 2.3.2.1 arp-flood]
    enqueue(1);
    now += 999ms;
    enqueue(2);
    EXPECT_EQ(resolver.asked.size(), 1u);
    now += 1ms;
    enqueue(3);
    EXPECT_EQ(resolver.asked.size(), 2u);
}

TEST_F(NeighborTest, TheOldestPacketMakesRoom) {  // [RFC1122 2.3.2.2 arp-queue]
    for (std::uint8_t i = 0; i < NeighborTable::kMaxPending + 2; ++i) enqueue(i);
    EXPECT_EQ(counters.dropped(Drop::kNeighborQueueFull), 2u);
    know(peer4, kPeerMac);
    const std::vector<int> sent = marks_sent(kPeerMac);
    ASSERT_EQ(sent.size(), NeighborTable::kMaxPending);
    EXPECT_EQ(sent.front(), 2);
    EXPECT_TRUE(std::ranges::is_sorted(sent));
    EXPECT_EQ(pool.available(), pool.count());
}

TEST_F(NeighborTest, FailedNeighbourDropsWhatWaitedAndIsAskedForAgainLater) {
    enqueue(1);
    neighbors.update(7, peer4, {}, NeighborState::kFailed, tx);
    EXPECT_EQ(counters.dropped(Drop::kNeighborUnresolved), 1u);
    EXPECT_EQ(pool.available(), pool.count());
    EXPECT_EQ(neighbors.lookup(7, peer4, now), nullptr);

    now += 1s;
    enqueue(2);
    EXPECT_EQ(resolver.asked.size(), 2u);
    know(peer4, kPeerMac);
    EXPECT_THAT(marks_sent(kPeerMac), ElementsAre(2));
}

TEST_F(NeighborTest, WhatNobodyAnswersExpires) {
    EXPECT_EQ(neighbors.next_deadline(), kNever);
    enqueue(1);
    const Instant deadline = now + NeighborTable::kPendingTimeout;
    EXPECT_EQ(neighbors.next_deadline(), deadline);
    neighbors.advance(deadline - 1ns);
    EXPECT_EQ(counters.dropped(Drop::kNeighborUnresolved), 0u);
    neighbors.advance(deadline);
    EXPECT_EQ(counters.dropped(Drop::kNeighborUnresolved), 1u);
    EXPECT_EQ(neighbors.next_deadline(), kNever);
    EXPECT_EQ(pool.available(), pool.count());
}

TEST_F(NeighborTest, RemovedNeighbourDropsWhatWaited) {  // [RFC1122 2.3.2.1 arp-flush]
    enqueue(1);
    neighbors.remove(7, peer4, tx);
    EXPECT_EQ(counters.dropped(Drop::kNeighborUnresolved), 1u);
    EXPECT_EQ(pool.available(), pool.count());
    EXPECT_EQ(neighbors.size(), 0u);
}

TEST_F(NeighborTest, StaleEntriesAreUsedAndConfirmedEveryTenSeconds) {
    neighbors.update(7, peer4, kPeerMac, NeighborState::kStale, tx);
    EXPECT_NE(neighbors.lookup(7, peer4, now), nullptr);
    EXPECT_NE(neighbors.lookup(7, peer4, now), nullptr);
    EXPECT_EQ(resolver.asked.size(), 1u);
    now += 10s;
    EXPECT_NE(neighbors.lookup(7, peer4, now), nullptr);
    EXPECT_EQ(resolver.asked.size(), 2u);
}

TEST_F(NeighborTest, GenerationChangesWhenCachedMacsAreWorthLess) {
    auto changes = [&, last = neighbors.generation()]() mutable {
        return std::exchange(last, neighbors.generation()) != neighbors.generation();
    };
    know(peer4, kPeerMac);
    EXPECT_TRUE(changes()) << "there is one now";
    know(peer4, kPeerMac);
    EXPECT_FALSE(changes()) << "nothing new";
    know(peer4, kRouterMac);
    EXPECT_TRUE(changes()) << "another MAC";
    neighbors.update(7, peer4, kRouterMac, NeighborState::kStale, tx);
    EXPECT_TRUE(changes()) << "stale: users must look once, so that it gets confirmed";
    know(peer4, kRouterMac);
    EXPECT_FALSE(changes()) << "confirmed";
    neighbors.update(7, peer4, {}, NeighborState::kFailed, tx);
    EXPECT_TRUE(changes()) << "gone";
}

TEST_F(NeighborTest, TheTableIsBounded) {
    for (std::size_t i = 0; i < NeighborTable::kMaxEntries; ++i)
        neighbors.update(7, Address::v4(10, 1, static_cast<std::uint8_t>(i >> 8), static_cast<std::uint8_t>(i)),
                         kPeerMac, NeighborState::kReachable, tx);
    enqueue(1);
    EXPECT_EQ(neighbors.size(), NeighborTable::kMaxEntries);
    EXPECT_EQ(counters.dropped(Drop::kNeighborQueueFull), 1u);
    EXPECT_EQ(pool.available(), pool.count());
}

/// Sends again from within the notice, as a connection that retries would.
class Retrier final : public UnresolvedObserver {
public:
    explicit Retrier(std::function<void()> retry) : retry_(std::move(retry)) {}
    void on_unresolved(std::span<const std::byte> packet) override {
        lengths.push_back(packet.size());
        retry_();
    }
    std::vector<std::size_t> lengths;

private:
    std::function<void()> retry_;
};

TEST_F(NeighborTest, TheObserverHearsOfEachPacketAndMaySendFromTheNotice) {
    Retrier retrier([&] { enqueue(9); });
    neighbors.set_observer(&retrier);
    enqueue(1);
    enqueue(2);
    now += NeighborTable::kPendingTimeout;
    neighbors.advance(now);
    EXPECT_THAT(retrier.lengths, ElementsAre(46u, 46u));  // without the Ethernet header
    EXPECT_EQ(neighbors.next_deadline(), now + NeighborTable::kPendingTimeout);
    know(peer4, kPeerMac);
    EXPECT_THAT(marks_sent(kPeerMac), ElementsAre(9, 9));
}

}  // namespace
}  // namespace culvert::stack
