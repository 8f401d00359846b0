// Packets that one engine copies for another: a bounded ring with one writer and one reader, in bytes.
//
//   writer's thread                                             reader's thread
//   push(note, packet)  -->  [ note | bytes.. | pad ][ note | bytes.. | pad ] ...  -->  take(burst) ... done()
//                            ^ head (reader)                         ^ tail (writer)
//
// Records are of variable length and never cut: one that does not fit before the end of the memory starts anew at its
// beginning, behind a mark. What take() shows stays where it is until done(), so the stack reads it in place: one copy in
// all. Nothing is allocated after the start; the memory is mapped once and touched as packets come.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "daemon/base/packet.h"
#include "shm/layout.h"

namespace culvert::engine {

/// A set of engines: bit i stands for engine i.
using EngineSet = std::uint64_t;
inline constexpr std::uint32_t kMaxEngines = 64;

/// What travels with a packet.
struct HandOverNote {
    EngineSet tried = 0;           // engines that have had the packet
    std::uint32_t interface = 0;   // the kernel's ifindex: where it came from, or where it shall go
    enum class Kind : std::uint8_t {
        kReceived,    // came from the interface
        kOwn,         // was sent by ourselves to one of our own addresses
        kToTransmit,  // leaves through the interface, of which the writer has no queue
        kLinkMessage,  // no packet: what Stack::link_message takes
    } kind = Kind::kReceived;
    ChecksumState checksum = ChecksumState::kUnverified;
    std::uint16_t segment_size = 0;  // RxPacket::segment_size
};

/// A packet that was handed over; `packet.head` lies in the ring and holds all of it.
struct HandedOver {
    HandOverNote note;
    RxPacket packet;
};

class HandOverRing {
public:
    /// `bytes` is rounded up to a power of two. Throws std::system_error (startup only).
    explicit HandOverRing(std::size_t bytes);
    ~HandOverRing();
    HandOverRing(const HandOverRing&) = delete;
    HandOverRing& operator=(const HandOverRing&) = delete;

    // --- writer ---------------------------------------------------------------------------------------------------------
    /// Copies the packet, all its fragments in one piece. False: no room.
    bool push(const HandOverNote& note, const RxPacket& packet);

    // --- reader ---------------------------------------------------------------------------------------------------------
    /// Shows up to burst.size() packets, oldest first. Requires: done() since the last call.
    std::size_t take(std::span<HandedOver> burst);
    /// What take() has shown may be overwritten.
    void done();
    /// True when take() would find something. seq_cst, for the look before sleeping.
    bool any() const { return tail_.load(std::memory_order_seq_cst) != head_.load(std::memory_order_relaxed); }

private:
    struct Header {
        HandOverNote note;
        std::uint32_t length;  // of the packet; kToTheStart: nothing but the way back to the beginning
        std::uint32_t zero;
    };
    static constexpr std::uint32_t kToTheStart = UINT32_MAX;
    static constexpr std::size_t kAlign = shm::kCacheLine;
    static_assert(sizeof(Header) <= kAlign);
    static std::size_t record_bytes(std::uint32_t length) { return (sizeof(Header) + length + kAlign - 1) & ~(kAlign - 1); }
    std::byte* at(std::uint64_t position) const { return memory_ + (position & (size_ - 1)); }

    std::byte* memory_ = nullptr;
    std::size_t size_;
    // Positions count bytes for ever; the place is position mod size.
    alignas(shm::kCacheLine) std::atomic<std::uint64_t> tail_{0};  // written by the writer
    std::uint64_t head_seen_ = 0;                                  // the writer's last look at head_
    alignas(shm::kCacheLine) std::atomic<std::uint64_t> head_{0};  // written by the reader
    std::uint64_t next_ = 0;                                       // behind what take() has shown
};

}  // namespace culvert::engine
