#include "daemon/tenant/block_ledger.h"

#include <gtest/gtest.h>

#include <vector>

#include "daemon/tenant/receive_stage.h"
#include "shm/block_list.h"

namespace culvert::tenant {
namespace {

constexpr shm::Geometry kGeometry{.sockets = 64, .app_sockets = 64, .tx_blocks = 8, .rx_blocks = 4, .queues = 1,
                                  .processes = 1, .accept_queues = 1};

/// The segment with both hands on it: the ledger, and an application that writes what it likes.
class LedgerTest : public testing::Test {
protected:
    LedgerTest() : segment(std::move(*shm::Segment::create(kGeometry, "ledger", fd))), ledger(segment, counters) {}

    shm::TaggedStack pool() { return {segment.header().tx_free, segment.block_meta(), kGeometry.tx_blocks}; }
    void fill(std::uint32_t block, std::uint32_t length, std::uint32_t offset = 0) {
        segment.block_meta()[block].length.store(length);
        segment.block_meta()[block].offset.store(offset);
        segment.block_meta()[block].flags.store(0);
    }
    void push(std::uint32_t block) { shm::push_block(list, segment.block_meta(), block); }
    std::vector<std::uint32_t> tags(const BlockLedger::Taken& taken) {
        std::vector<std::uint32_t> result;
        for (const stack::SendChunk* chunk = taken.first; chunk != nullptr; chunk = chunk->next)
            result.push_back(chunk->tag);
        return result;
    }

    UniqueFd fd;
    shm::Segment segment;
    Counters counters;
    BlockLedger ledger;
    std::atomic<std::uint32_t> list{shm::kEmptyList};
};

TEST_F(LedgerTest, ChainsComeOutInTheOrderTheyWentIn) {
    for (std::uint32_t block : {0u, 1u, 2u}) {
        ASSERT_EQ(pool().pop(), block);
        fill(block, 100 + block, block);
        push(block);
    }
    const auto taken = ledger.take_chain(shm::take_all(list));
    EXPECT_EQ(tags(taken), (std::vector<std::uint32_t>{0, 1, 2}));
    EXPECT_EQ(taken.bytes, 303u);
    EXPECT_EQ(taken.last->tag, 2u);
    EXPECT_FALSE(taken.more_to_come);
    EXPECT_EQ(taken.first->next->data, segment.block(1) + 1);
    EXPECT_EQ(ledger.transmitting(), 3u);
    EXPECT_EQ(ledger.release(taken.first), 303u);
    EXPECT_EQ(ledger.transmitting(), 0u);
    int free = 0;
    while (pool().pop() != shm::kNoIndex) ++free;
    EXPECT_EQ(free, 8);
}

TEST_F(LedgerTest, TheNewestBlockSaysWhetherMoreComes) {
    for (const bool more : {false, true}) {
        for (std::uint32_t n = 0; n < 2; ++n) {
            const std::uint32_t block = pool().pop();
            fill(block, 10);
            if ((n == 1) == more) segment.block_meta()[block].flags.store(shm::kBlockMoreToCome);
            push(block);
        }
        const auto taken = ledger.take_chain(shm::take_all(list));
        EXPECT_EQ(taken.more_to_come, more);
        ledger.release(taken.first);
    }
}

TEST_F(LedgerTest, ALoopEndsAtItsFirstBlock) {
    fill(3, 10);
    fill(4, 10);
    segment.block_meta()[3].next.store(4 + 1);
    segment.block_meta()[4].next.store(3 + 1);
    const auto taken = ledger.take_chain(3 + 1);
    EXPECT_EQ(tags(taken), (std::vector<std::uint32_t>{4, 3}));
    EXPECT_EQ(counters.dropped(Drop::kTenantBadBlock), 1u);
}

TEST_F(LedgerTest, ABlockThatTheDaemonHoldsIsRefused) {
    fill(5, 10);
    push(5);
    const auto first = ledger.take_chain(shm::take_all(list));
    push(5);
    EXPECT_EQ(ledger.take_chain(shm::take_all(list)).first, nullptr);
    EXPECT_EQ(counters.dropped(Drop::kTenantBadBlock), 1u);
    ledger.release(first.first);
    push(5);
    EXPECT_NE(ledger.take_chain(shm::take_all(list)).first, nullptr);
}

TEST_F(LedgerTest, WildIndicesAndReceiveBlocksAreRefused) {
    EXPECT_EQ(ledger.take_chain(0xffffffff).first, nullptr);
    EXPECT_EQ(ledger.take_chain(8 + 1).first, nullptr);  // a receive block
    EXPECT_EQ(ledger.take_chain(12 + 1).first, nullptr);
    EXPECT_EQ(counters.dropped(Drop::kTenantBadBlock), 3u);
}

TEST_F(LedgerTest, ImpossibleLengthsAreRefusedAndTheBlockGoesBack) {
    struct {
        std::uint32_t length, offset;
    } const cases[] = {{0, 0}, {shm::kBlockSize + 1, 0}, {shm::kBlockSize, 1}, {1, shm::kBlockSize},
                       {0xffffffff, 8}, {8, 0xffffffff}};
    std::uint64_t refused = 0;
    for (const auto& c : cases) {
        fill(0, c.length, c.offset);
        push(0);
        EXPECT_EQ(ledger.take_chain(shm::take_all(list)).first, nullptr) << c.length << " at " << c.offset;
        EXPECT_EQ(counters.dropped(Drop::kTenantBadLength), ++refused);
        EXPECT_EQ(ledger.transmitting(), 0u);
    }
    fill(0, shm::kBlockSize);
    push(0);
    EXPECT_EQ(ledger.take_chain(shm::take_all(list)).bytes, shm::kBlockSize);
}

TEST_F(LedgerTest, ARefusedBlockThatNamesItselfEndsTheWalk) {
    fill(2, 0);  // impossible length, so it is refused; the pool's head makes every release link it to itself
    segment.block_meta()[2].next.store(2 + 1);
    segment.header().tx_free.store(2 + 1);
    EXPECT_EQ(ledger.take_chain(2 + 1).first, nullptr);
    EXPECT_EQ(counters.dropped(Drop::kTenantBadLength), 1u);
    EXPECT_EQ(counters.dropped(Drop::kTenantBadBlock), 1u);
    EXPECT_EQ(ledger.transmitting(), 0u);
}

TEST_F(LedgerTest, ReceiveBlocksComeBackOnceEach) {
    LentList lent;
    std::vector<std::uint32_t> blocks;
    for (int i = 0; i < 4; ++i) blocks.push_back(ledger.lend(lent));
    EXPECT_EQ(ledger.lend(lent), shm::kNoIndex);
    EXPECT_EQ(lent.count, 4u);
    shm::push_block(segment.header().rx_returned, segment.block_meta(), blocks[2]);
    EXPECT_EQ(ledger.lend(lent), blocks[2]);
    shm::push_block(segment.header().rx_returned, segment.block_meta(), blocks[1]);
    shm::push_block(segment.header().rx_returned, segment.block_meta(), 0);  // a transmit block
    ledger.collect_returned();
    EXPECT_EQ(counters.dropped(Drop::kTenantBadBlock), 1u);
    ledger.reclaim(lent);
    EXPECT_EQ(lent.count, 0u);
    EXPECT_EQ(ledger.free_receive_blocks(), 4u);
    shm::push_block(segment.header().rx_returned, segment.block_meta(), blocks[0]);  // it is ours already
    ledger.collect_returned();
    EXPECT_EQ(ledger.free_receive_blocks(), 4u);
}

TEST_F(LedgerTest, ABlockReturnedJustBeforeTheCloseIsNotFreedTwice) {
    LentList closing;
    const std::uint32_t block = ledger.lend(closing);
    shm::push_block(segment.header().rx_returned, segment.block_meta(), block);  // read, returned ...
    ledger.reclaim(closing);                                                     // ... and closed in the same turn
    LentList other;
    std::vector<std::uint32_t> blocks;
    for (int i = 0; i < 4; ++i) blocks.push_back(ledger.lend(other));
    ledger.collect_returned();
    EXPECT_EQ(other.count, 4u) << "a block in use was taken back";
    EXPECT_EQ(counters.dropped(Drop::kTenantBadBlock), 0u);
}

TEST_F(LedgerTest, StageSharesBlocksBetweenSegmentsAndKeepsDatagramsApart) {
    LentList lent;
    ReceiveStage stage;
    const std::vector<std::byte> bytes(1500, std::byte{7});
    const std::span<const std::byte> fragments[] = {std::span(bytes).first(1000), std::span(bytes).subspan(1000)};
    EXPECT_EQ(stage.append(segment, ledger, lent, fragments, 1500), 1500u);
    EXPECT_EQ(stage.append(segment, ledger, lent, fragments, 1500), 1500u);
    std::atomic<std::uint32_t> rx{shm::kEmptyList};
    stage.publish(segment, rx);
    const std::uint32_t newest = shm::take_all(rx) - 1;
    EXPECT_EQ(segment.block_meta()[newest].length.load(), 3000 - shm::kBlockSize);
    const std::uint32_t oldest = segment.block_meta()[newest].next.load() - 1;
    EXPECT_EQ(segment.block_meta()[oldest].length.load(), shm::kBlockSize);
    EXPECT_EQ(segment.block_meta()[oldest].next.load(), shm::kEmptyList);
    ledger.reclaim(lent);

    shm::DatagramHeader header{};
    header.length = 0;
    EXPECT_TRUE(stage.append_datagram(segment, ledger, lent, std::as_bytes(std::span(&header, 1)), {}, 0));  // an empty datagram is a datagram
    header.length = 1500;
    EXPECT_TRUE(stage.append_datagram(segment, ledger, lent, std::as_bytes(std::span(&header, 1)), fragments, 1500));
    EXPECT_EQ(lent.count, 2u);
    const std::vector<std::byte> large(3 * shm::kBlockSize, std::byte{1});
    const std::span<const std::byte> one[] = {large};
    EXPECT_FALSE(stage.append_datagram(segment, ledger, lent, std::as_bytes(std::span(&header, 1)), one, 3 * shm::kBlockSize));  // all or nothing
    EXPECT_EQ(lent.count, 2u);
}

}  // namespace
}  // namespace culvert::tenant
