// A packet on its way in or out, as the stack sees it: bytes in one or more fragments.
//
// Input is *borrowed*: an RxPacket is valid until the device's next receive(); the stack copies what it keeps.
// Output is *owned*: a TxPacket holds chunks of the pool until it is committed to, or returned by, a TxQueue.
//
//   RxPacket   [ head: eth ip tcp payload.. ][ rest[0] ][ rest[1] ] ...   the first fragment holds every header
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "daemon/base/frame_pool.h"

namespace culvert {

/// 64 KiB + headers in 4 KiB chunks; the kernel allows 17 + 1 (MAX_SKB_FRAGS + 1).
inline constexpr std::size_t kMaxFragments = 18;

/// What is known about the layer-4 checksum of a received packet.
enum class ChecksumState : std::uint8_t {
    kUnverified,  // must be right
    kMaybePartial,  // from a virtual device: right, or exactly the pseudo-header sum (CHECKSUM_PARTIAL of a local sender)
    kVerified,    // the device has checked it
};

struct RxPacket {
    std::span<const std::byte> head;                             // never empty
    std::span<const std::span<const std::byte>> rest;            // further fragments, usually none
    std::uint32_t length = 0;                                    // of all fragments together
    ChecksumState checksum = ChecksumState::kUnverified;
    std::uint16_t segment_size = 0;  // a merged packet: payload bytes of the segments it was made from; 0: it is one
    /// Where the device keeps the number of the chunk of `pool` that `head` lies in, from the chunk's first byte on. Who
    /// writes kNoChunk there before the device's next receive() owns the chunk: so a packet is passed on without a copy.
    /// Null: the memory cannot be taken.
    ChunkIndex* loan = nullptr;
    FramePool* pool = nullptr;
};

/// Calls act(bytes) for each piece of `length` bytes of the packet from `offset` on; what it is short of is left out.
template <class Act>
void for_each_piece(const RxPacket& packet, std::size_t offset, std::size_t length, Act act) {
    const auto take = [&](std::span<const std::byte> fragment) {
        if (offset >= fragment.size()) {
            offset -= fragment.size();
            return;
        }
        const std::size_t here = std::min(length, fragment.size() - offset);
        if (here != 0) act(fragment.subspan(offset, here));
        offset = 0;
        length -= here;
    };
    take(packet.head);
    for (std::size_t i = 0; length != 0 && i < packet.rest.size(); ++i) take(packet.rest[i]);
}

/// An array whose items have no value until they are written: filling eighteen spans with zeros for a packet that uses one
/// would cost more than writing its headers.
template <class T, std::size_t kCount>
requires std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>
class UnsetArray {
public:
    UnsetArray() {}  // NOLINT: leaves items_ unset on purpose
    static constexpr std::size_t size() { return kCount; }
    T* data() { return items_; }
    const T* data() const { return items_; }
    T* begin() { return items_; }
    const T* begin() const { return items_; }
    T& operator[](std::size_t index) { return items_[index]; }
    const T& operator[](std::size_t index) const { return items_[index]; }

private:
    union {
        T items_[kCount];
    };
};

/// A packet being written: `reserve` gave it room for `length` bytes. Fill every fragment, then commit.
struct TxPacket {
    std::array<ChunkIndex, kMaxFragments> chunks;
    UnsetArray<std::span<std::byte>, kMaxFragments> fragments;
    std::uint32_t count = 0;
    std::uint32_t length = 0;
    /// Not 0: a TCP packet that the device cuts into segments of so many payload bytes (Interface::segmentation_limit
    /// allows it). Its TCP checksum field then holds the sum of the pseudo-header only, and `transport_offset` says
    /// where the TCP header lies.
    std::uint16_t segment_size = 0;
    std::uint16_t transport_offset = 0;
};

/// Output of one device for one turn: packets are appended by the stack and taken in a burst by the device.
/// Concrete on purpose: the stack makes no virtual call per packet.
class TxQueue {
public:
    struct Descriptor {
        ChunkIndex chunk;
        std::uint32_t length;
        std::uint16_t segment_size;      // these two as in TxPacket
        std::uint16_t transport_offset;
        bool more;  // the packet goes on in the next descriptor
    };

    explicit TxQueue(FramePool& pool, std::uint32_t reserve_chunks = 0);

    /// Room for a packet of `length` bytes (1 .. kMaxFragments * kChunkSize). False: no memory; the caller counts it.
    bool reserve(std::uint32_t length, TxPacket& packet);
    /// Hands the packet over. `packet` is empty afterwards.
    void commit(TxPacket& packet);
    /// A packet that lies whole in a chunk of this queue's pool, which is the queue's from now on.
    void commit_chunk(ChunkIndex chunk, std::uint32_t length) {
        pending_.push_back({.chunk = chunk, .length = length, .segment_size = 0, .transport_offset = 0, .more = false});
    }
    /// Gives the room back unsent.
    void abandon(TxPacket& packet);

    /// Device side: what has been committed, in order. `consume(n)` drops the first n descriptors.
    std::span<const Descriptor> pending() const { return {pending_.data() + head_, pending_.size() - head_}; }
    void consume(std::size_t descriptors);

    FramePool& pool() { return pool_; }

private:
    FramePool& pool_;
    std::uint32_t reserve_chunks_;  // left in the pool for the receive side
    std::vector<Descriptor> pending_;
    std::size_t head_ = 0;
};

}  // namespace culvert
