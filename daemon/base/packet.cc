#include "daemon/base/packet.h"

#include <algorithm>

#include "shm/base/check.h"

namespace culvert {

TxQueue::TxQueue(FramePool& pool, std::uint32_t reserve_chunks) : pool_(pool), reserve_chunks_(reserve_chunks) {
    pending_.reserve(std::size_t{2} * pool.count());  // never grows: at most count() descriptors are pending
}

bool TxQueue::reserve(std::uint32_t length, TxPacket& packet) {
    const std::uint32_t count = (length + FramePool::kChunkSize - 1) / FramePool::kChunkSize;
    if (count == 0 || count > kMaxFragments || pool_.available() < count + reserve_chunks_) return false;
    std::uint32_t left = length;
    for (std::uint32_t i = 0; i < count; ++i) {
        const std::uint32_t size = std::min(left, FramePool::kChunkSize);
        packet.chunks[i] = pool_.allocate();
        packet.fragments[i] = {pool_.data(packet.chunks[i]), size};
        left -= size;
    }
    packet.count = count;
    packet.length = length;
    packet.segment_size = 0;
    packet.transport_offset = 0;
    return true;
}

void TxQueue::commit(TxPacket& packet) {
    DCHECK(packet.count > 0);
    for (std::uint32_t i = 0; i < packet.count; ++i)
        pending_.push_back({packet.chunks[i], static_cast<std::uint32_t>(packet.fragments[i].size()), packet.segment_size,
                            packet.transport_offset, i + 1 < packet.count});
    packet.count = 0;
    packet.length = 0;
}

void TxQueue::abandon(TxPacket& packet) {
    for (std::uint32_t i = 0; i < packet.count; ++i) pool_.release(packet.chunks[i]);
    packet.count = 0;
    packet.length = 0;
}

void TxQueue::consume(std::size_t descriptors) {
    head_ += descriptors;
    DCHECK(head_ <= pending_.size());
    if (head_ == pending_.size()) {
        pending_.clear();
        head_ = 0;
    } else if (head_ > pending_.capacity() / 2) {
        pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(head_));
        head_ = 0;
    }
}

}  // namespace culvert
