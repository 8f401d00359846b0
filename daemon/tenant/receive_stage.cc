#include "daemon/tenant/receive_stage.h"

#include <algorithm>
#include <cstring>

#include "shm/block_list.h"

namespace culvert::tenant {

void ReceiveStage::finish_block(shm::Segment& segment, std::uint32_t flags) {
    shm::BlockMeta& meta = segment.block_meta()[newest_];
    meta.length.store(used_, std::memory_order_relaxed);
    meta.offset.store(0, std::memory_order_relaxed);
    meta.flags.store(flags, std::memory_order_relaxed);
}

bool ReceiveStage::add_block(shm::Segment& segment, BlockLedger& ledger, LentList& lent) {
    const std::uint32_t block = ledger.lend(lent);
    if (block == shm::kNoIndex) return false;
    if (newest_ == shm::kNoIndex)
        oldest_ = block;
    else
        segment.block_meta()[block].next.store(newest_ + 1, std::memory_order_relaxed);
    newest_ = block;
    used_ = 0;
    return true;
}

std::uint32_t ReceiveStage::copy(shm::Segment& segment, BlockLedger& ledger, LentList& lent,
                                 std::span<const std::byte> bytes) {
    std::uint32_t copied = 0;
    while (copied < bytes.size()) {
        if (newest_ == shm::kNoIndex || used_ == shm::kBlockSize) {
            if (newest_ != shm::kNoIndex) finish_block(segment, shm::kBlockMore);
            if (!add_block(segment, ledger, lent)) break;
        }
        const auto size = static_cast<std::uint32_t>(
            std::min<std::size_t>(bytes.size() - copied, shm::kBlockSize - used_));
        std::memcpy(segment.block(newest_) + used_, bytes.data() + copied, size);
        used_ += size;
        copied += size;
    }
    return copied;
}

std::uint32_t ReceiveStage::append(shm::Segment& segment, BlockLedger& ledger, LentList& lent, stack::Payload payload,
                                   std::uint32_t length) {
    std::uint32_t taken = 0;
    for (const auto& fragment : payload) {
        const std::size_t want = std::min<std::size_t>(fragment.size(), length - taken);
        const std::uint32_t copied = copy(segment, ledger, lent, fragment.first(want));
        taken += copied;
        if (copied < want || taken == length) break;
    }
    return taken;
}

namespace {

/// True if there are `blocks` free receive blocks, after a look at what has been returned.
bool has_blocks(BlockLedger& ledger, std::size_t blocks) {
    if (ledger.free_receive_blocks() < blocks) ledger.collect_returned();
    return ledger.free_receive_blocks() >= blocks;
}

}  // namespace

bool ReceiveStage::append_datagram(shm::Segment& segment, BlockLedger& ledger, LentList& lent,
                                   std::span<const std::byte> header, stack::Payload payload, std::uint32_t length) {
    if (!has_blocks(ledger, (header.size() + length + shm::kBlockSize - 1) / shm::kBlockSize)) return false;
    if (newest_ != shm::kNoIndex) finish_block(segment, 0);
    add_block(segment, ledger, lent);
    datagram_ = newest_;
    copy(segment, ledger, lent, header);
    append(segment, ledger, lent, payload, length);
    return true;
}

bool ReceiveStage::extend_datagram(shm::Segment& segment, BlockLedger& ledger, LentList& lent, stack::Payload payload,
                                   std::uint32_t length) {
    if (!has_blocks(ledger, (used_ + length) / shm::kBlockSize)) return false;
    append(segment, ledger, lent, payload, length);
    return true;
}

void ReceiveStage::publish(shm::Segment& segment, std::atomic<std::uint32_t>& rx_list) {
    if (empty()) return;
    finish_block(segment, 0);
    shm::push_chain(rx_list, segment.block_meta(), newest_, oldest_);
    clear();
}

}  // namespace culvert::tenant
