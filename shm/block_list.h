// Lists of blocks that pass between application and daemon.
//
// A BlockStack is a Treiber stack that its consumer takes *whole* (exchange with 0), so it has no ABA problem; the taker
// reverses the chain to get first-in-first-out order. A TaggedStack is popped one by one by many threads, so its head
// carries a tag that changes with every pop.
//
// The chain runs through BlockMeta::next, which the application can write. The daemon walks a chain only through its
// block ledger (daemon/tenant/block_ledger.h), which refuses a block that is not the application's and thereby ends loops.
#pragma once

#include <atomic>
#include <cstdint>

#include "shm/layout.h"

namespace culvert::shm {

/// Pushes a chain: `newest` is its head, `oldest` its end (both indices). Any thread or process.
inline void push_chain(std::atomic<std::uint32_t>& head, BlockMeta* meta, std::uint32_t newest, std::uint32_t oldest) {
    std::uint32_t old = head.load(std::memory_order_relaxed);
    do {
        meta[oldest].next.store(old, std::memory_order_relaxed);
    } while (!head.compare_exchange_weak(old, newest + 1, std::memory_order_release, std::memory_order_relaxed));
}

inline void push_block(std::atomic<std::uint32_t>& head, BlockMeta* meta, std::uint32_t index) {
    push_chain(head, meta, index, index);
}

/// Takes everything; the result is index + 1 of the newest, or kEmptyList.
inline std::uint32_t take_all(std::atomic<std::uint32_t>& head) {
    if (head.load(std::memory_order_relaxed) == kEmptyList) return kEmptyList;
    return head.exchange(kEmptyList, std::memory_order_acquire);
}

/// The application's pool of free transmit blocks: popped and pushed by its threads, pushed by the daemon.
class TaggedStack {
public:
    TaggedStack(std::atomic<std::uint64_t>& head, BlockMeta* meta, std::uint32_t limit)
        : head_(head), meta_(meta), limit_(limit) {}

    /// Index of a block, or kNoIndex. An index out of bounds (the memory was overwritten) also gives kNoIndex.
    std::uint32_t pop() {
        std::uint64_t old = head_.load(std::memory_order_acquire);
        for (;;) {
            const std::uint32_t link = static_cast<std::uint32_t>(old);
            if (link == kEmptyList || link > limit_) return kNoIndex;
            const std::uint32_t next = meta_[link - 1].next.load(std::memory_order_relaxed);
            const std::uint64_t fresh = ((old >> 32) + 1) << 32 | next;
            if (head_.compare_exchange_weak(old, fresh, std::memory_order_acquire, std::memory_order_acquire))
                return link - 1;
        }
    }

    void push(std::uint32_t index) { push_chain(index, index); }

    /// `first` is popped first; the chain from first to last is linked already.
    void push_chain(std::uint32_t first, std::uint32_t last) {
        std::uint64_t old = head_.load(std::memory_order_relaxed);
        std::uint64_t fresh;
        do {
            meta_[last].next.store(static_cast<std::uint32_t>(old), std::memory_order_relaxed);
            fresh = (old >> 32) << 32 | (first + 1);
        } while (!head_.compare_exchange_weak(old, fresh, std::memory_order_release, std::memory_order_relaxed));
    }

    bool empty() const { return static_cast<std::uint32_t>(head_.load(std::memory_order_relaxed)) == kEmptyList; }

private:
    std::atomic<std::uint64_t>& head_;
    BlockMeta* meta_;
    std::uint32_t limit_;
};

}  // namespace culvert::shm
