// The four AF_XDP rings, from our side: single producer, single consumer, shared with the kernel.
//
//            consumer                producer
//               |                       |
//   ... free ...[ entries not yet taken ]... free ...        indices run freely, masked on access
//
//   ring        entries    we are     kernel is
//   fill        chunk      producer   consumer     chunks to receive into
//   rx          xdp_desc   consumer   producer     packets received
//   tx          xdp_desc   producer   consumer     packets to send
//   completion  chunk      consumer   producer     chunks sent
//
// libxdp sets the rings up; its own accessors refresh the other side's index only when they believe the ring empty,
// which never ends when half a packet stays in the ring. These refresh when fewer entries than wanted are known.
//
// Ordering: the other side's index is read with acquire, ours written with release. Our own index is private truth.
#pragma once

#include <linux/if_xdp.h>
#include <xdp/xsk.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "shm/base/check.h"

namespace culvert::device {

template <class Entry>
class ConsumerRing {
public:
    ConsumerRing() = default;
    explicit ConsumerRing(const xsk_ring_cons& ring)
        : ConsumerRing(ring.producer, ring.consumer, static_cast<Entry*>(ring.ring), ring.size) {}
    ConsumerRing(std::uint32_t* producer, std::uint32_t* consumer, Entry* entries, std::uint32_t size)
        : producer_(producer),
          consumer_(consumer),
          entries_(entries),
          mask_(size - 1),
          taken_(*consumer),
          known_(*consumer) {}

    /// How many entries may be read, at most `wanted`.
    std::uint32_t available(std::uint32_t wanted) {
        if (known_ - taken_ < wanted) known_ = std::atomic_ref(*producer_).load(std::memory_order_acquire);
        return std::min(known_ - taken_, wanted);
    }
    bool empty() const { return std::atomic_ref(*producer_).load(std::memory_order_acquire) == taken_; }
    /// The i-th unread entry. Requires: i < available().
    const Entry& peek(std::uint32_t i) const { return entries_[(taken_ + i) & mask_]; }
    /// Gives the first `count` entries back to the producer.
    void release(std::uint32_t count) {
        taken_ += count;
        std::atomic_ref(*consumer_).store(taken_, std::memory_order_release);
    }

private:
    std::uint32_t* producer_ = nullptr;
    std::uint32_t* consumer_ = nullptr;
    Entry* entries_ = nullptr;
    std::uint32_t mask_ = 0;
    std::uint32_t taken_ = 0;  // our index
    std::uint32_t known_ = 0;  // the producer's index when last looked at
};

template <class Entry>
class ProducerRing {
public:
    ProducerRing() = default;
    explicit ProducerRing(const xsk_ring_prod& ring)
        : ProducerRing(ring.producer, ring.consumer, static_cast<Entry*>(ring.ring), ring.size, ring.flags) {}
    ProducerRing(std::uint32_t* producer, std::uint32_t* consumer, Entry* entries, std::uint32_t size,
                 std::uint32_t* flags)
        : producer_(producer),
          consumer_(consumer),
          flags_(flags),
          entries_(entries),
          size_(size),
          given_(*producer),
          known_(*consumer) {}

    /// How many entries may be written, at most `wanted`.
    std::uint32_t free(std::uint32_t wanted) {
        if (size_ - (given_ - known_) < wanted) known_ = std::atomic_ref(*consumer_).load(std::memory_order_acquire);
        return std::min(size_ - (given_ - known_), wanted);
    }
    /// The i-th entry to write. Requires: i < free().
    Entry& at(std::uint32_t i) { return entries_[(given_ + i) & (size_ - 1)]; }
    /// Hands the first `count` entries over.
    void submit(std::uint32_t count) {
        given_ += count;
        std::atomic_ref(*producer_).store(given_, std::memory_order_release);
    }
    /// Entries handed over that the consumer has not taken.
    std::uint32_t unread() const { return given_ - std::atomic_ref(*consumer_).load(std::memory_order_acquire); }
    /// The kernel sleeps and must be woken by a syscall.
    bool needs_wakeup() const {
        return (std::atomic_ref(*flags_).load(std::memory_order_relaxed) & XDP_RING_NEED_WAKEUP) != 0;
    }

private:
    std::uint32_t* producer_ = nullptr;
    std::uint32_t* consumer_ = nullptr;
    std::uint32_t* flags_ = nullptr;
    Entry* entries_ = nullptr;
    std::uint32_t size_ = 0;
    std::uint32_t given_ = 0;  // our index
    std::uint32_t known_ = 0;  // the consumer's index when last looked at
};

}  // namespace culvert::device
