#include "daemon/tenant/block_ledger.h"

#include "shm/base/check.h"
#include "shm/block_list.h"

namespace culvert::tenant {

BlockLedger::BlockLedger(shm::Segment& segment, Counters& counters)
    : segment_(segment),
      counters_(counters),
      tx_count_(segment.geometry().tx_blocks),
      states_(segment.geometry().blocks(), State::kApp),
      chunks_(tx_count_),
      tx_flags_(tx_count_),
      rx_(segment.geometry().rx_blocks) {
    shm::BlockMeta* meta = segment.block_meta();
    for (std::uint32_t block = 0; block < tx_count_; ++block)
        meta[block].next.store(block + 1 < tx_count_ ? block + 2 : shm::kEmptyList, std::memory_order_relaxed);
    segment.header().tx_free.store(1, std::memory_order_release);  // tag 0, block 0 on top
    rx_free_.reserve(rx_.size());
    for (std::uint32_t block = segment.geometry().blocks(); block > tx_count_; --block) {
        states_[block - 1] = State::kFree;
        rx_free_.push_back(block - 1);
    }
}

BlockLedger::Taken BlockLedger::take_chain(std::uint32_t newest) {
    Taken taken;
    // Given back after the walk, not in it: what is the daemon's ends the walk, also if the chain comes round again.
    stack::SendChunk* refused = nullptr;
    const shm::BlockMeta* meta = segment_.block_meta();
    // Newest first; linking each in front of the last one turns the order round.
    for (std::uint32_t link = newest; link != shm::kEmptyList;) {
        const std::uint32_t block = link - 1;
        if (block >= tx_count_ || states_[block] != State::kApp) {
            counters_.drop(Drop::kTenantBadBlock);
            break;
        }
        link = meta[block].next.load(std::memory_order_relaxed);
        const std::uint32_t length = meta[block].length.load(std::memory_order_relaxed);
        const std::uint32_t offset = meta[block].offset.load(std::memory_order_relaxed);
        states_[block] = State::kDaemon;
        ++transmitting_;
        stack::SendChunk& chunk = chunks_[block];
        chunk.tag = block;
        if (offset >= shm::kBlockSize || length == 0 || length > shm::kBlockSize - offset) {
            counters_.drop(Drop::kTenantBadLength);
            chunk.length = 0;
            chunk.next = refused;
            refused = &chunk;
            continue;
        }
        chunk.data = segment_.block(block) + offset;
        chunk.length = length;
        chunk.next = taken.first;
        tx_flags_[block] = meta[block].flags.load(std::memory_order_relaxed);
        if ((tx_flags_[block] & shm::kBlockUrgent) != 0 && !taken.urgent) {
            taken.urgent = true;
            taken.behind_urgent = taken.bytes;
        }
        taken.first = &chunk;
        if (taken.last == nullptr) {
            taken.last = &chunk;
            taken.more_to_come = (tx_flags_[block] & shm::kBlockMoreToCome) != 0;
        }
        taken.bytes += length;
    }
    release(refused);
    return taken;
}

std::uint64_t BlockLedger::release(stack::SendChunk* first) {
    if (first == nullptr) return 0;
    shm::BlockMeta* meta = segment_.block_meta();
    std::uint64_t bytes = 0;
    const std::uint32_t top = first->tag;
    std::uint32_t last = top;
    while (first != nullptr) {
        stack::SendChunk* next = first->next;
        DCHECK(states_[first->tag] == State::kDaemon);
        states_[first->tag] = State::kApp;
        --transmitting_;
        bytes += first->length;
        if (first->tag != top) meta[last].next.store(first->tag + 1, std::memory_order_relaxed);
        last = first->tag;
        first->next = nullptr;
        first = next;
    }
    shm::TaggedStack pool(segment_.header().tx_free, meta, tx_count_);
    pool.push_chain(top, last);
    return bytes;
}

std::uint32_t BlockLedger::lend(LentList& list) {
    if (rx_free_.empty()) collect_returned();
    if (rx_free_.empty()) return shm::kNoIndex;
    const std::uint32_t block = rx_free_.back();
    rx_free_.pop_back();
    states_[block] = State::kLent;
    ReceiveBlock& entry = rx_[rx_index(block)];
    entry.list = &list;
    entry.previous = list.tail;
    entry.next = shm::kNoIndex;
    if (list.tail == shm::kNoIndex)
        list.head = block;
    else
        rx_[rx_index(list.tail)].next = block;
    list.tail = block;
    ++list.count;
    return block;
}

void BlockLedger::unlink(std::uint32_t block) {
    ReceiveBlock& entry = rx_[rx_index(block)];
    LentList& list = *entry.list;
    if (entry.previous == shm::kNoIndex)
        list.head = entry.next;
    else
        rx_[rx_index(entry.previous)].next = entry.next;
    if (entry.next == shm::kNoIndex)
        list.tail = entry.previous;
    else
        rx_[rx_index(entry.next)].previous = entry.previous;
    --list.count;
    entry = {};
}

void BlockLedger::collect_returned() {
    const shm::BlockMeta* meta = segment_.block_meta();
    for (std::uint32_t link = shm::take_all(segment_.header().rx_returned); link != shm::kEmptyList;) {
        const std::uint32_t block = link - 1;
        if (block < tx_count_ || block >= states_.size() || states_[block] != State::kLent) {
            counters_.drop(Drop::kTenantBadBlock);
            return;
        }
        link = meta[block].next.load(std::memory_order_relaxed);
        unlink(block);
        states_[block] = State::kFree;
        rx_free_.push_back(block);
    }
}

void BlockLedger::reclaim(LentList& list) {
    // What the application has returned before it closed must not be found later, when the block is lent to another.
    collect_returned();
    while (list.head != shm::kNoIndex) {
        const std::uint32_t block = list.head;
        unlink(block);
        states_[block] = State::kFree;
        rx_free_.push_back(block);
    }
}

}  // namespace culvert::tenant
