// What was sent when, while it is in flight: the per-segment state of RFC 8985 (5.1) and of the rate sample
// (draft-ietf-ccwg-bbr 4.1.2.2), in the order of transmission.
//
//   front: the oldest                                                back: the newest
//   [run][run][run][run]  ->  [piece: run x 7]  ->  [piece: run x 7] ...
//    inside the Flight         from the FlightPool
//
// A run is what left in one flush: contiguous, one instant, one round of retransmission or new data. A segment sent again
// gets a new run at the back; the old one has left by then, for it was judged lost at the front. Runs leave at the front
// alone, when all of them has arrived or was judged lost, so the log is a queue, and one step per run is all that loss
// detection costs. What arrived out of order stays until it comes to the front.
//
// Bounds: kMaxRuns. A log that is half full becomes coarser: what leaves within a sixty-fourth of the round trip shares a
// run, which then bears the later instant (it is judged lost a little later, never earlier).
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#include "daemon/base/instant.h"
#include "daemon/base/lazy_pool.h"
#include "daemon/stack/tcp/sequence.h"

namespace culvert::stack::tcp {

struct SentRun {
    Range range;              // not yet known to have arrived, as far as it can be told at its ends
    Instant sent_at;          // P.send_time, Segment.xmit_ts
    Instant first_sent_at;    // P.first_send_time
    Instant delivered_at;     // P.delivered_time
    std::uint64_t delivered;  // P.delivered
    std::uint32_t lost;       // P.lost, low bits
    std::uint32_t flight;     // P.tx_in_flight: the pipe when its last segment left, itself included
    bool again;               // Segment.retransmitted
    bool app_limited;         // P.is_app_limited
};
static_assert(sizeof(SentRun) == 64);

/// The memory of everything in flight on one engine: equal pieces of kPieceBytes.
class FlightPool {
public:
    static constexpr std::size_t kPieceBytes = 512;

    explicit FlightPool(std::uint32_t pieces) : pool_(kPieceBytes, pieces) {}
    /// Uninitialised; nullptr when all are in use.
    void* allocate() {
        const std::uint32_t index = pool_.allocate();
        return index == LazyPool::kNone ? nullptr : pool_.at(index);
    }
    void release(void* piece) { pool_.release(pool_.index_of(piece)); }
    std::uint32_t used() const { return pool_.used(); }

private:
    LazyPool pool_;
};

class SentLog {
public:
    static constexpr std::uint32_t kInline = 3;
    static constexpr std::uint32_t kMaxRuns = 256;
    static constexpr std::uint32_t kCoarseFrom = kMaxRuns / 4;

    SentLog() = default;
    SentLog(const SentLog&) = delete;
    SentLog& operator=(const SentLog&) = delete;

    bool empty() const { return count_ == 0; }
    std::uint32_t count() const { return count_; }
    /// How many runs are of segments that were sent again.
    std::uint32_t again() const { return again_; }

    SentRun* front() { return count_ == 0 ? nullptr : &head_runs()[head_at_]; }
    SentRun* back() { return count_ == 0 ? nullptr : &tail_runs()[tail_end_ - 1]; }
    /// At the back. False: full, or the pool is spent.
    bool append(const SentRun& run, FlightPool& pool);
    void pop_front(FlightPool& pool);
    /// Gives all pieces back.
    void clear(FlightPool& pool);
    /// `visit(SentRun&) -> bool` from the oldest to the newest; false stops.
    template <typename Visit>
    void for_each(Visit&& visit) {
        std::uint32_t at = head_at_;
        Piece* piece = head_;
        for (std::uint32_t left = count_; left > 0; --left, ++at) {
            if (at == capacity(piece)) {
                piece = piece == nullptr ? first_ : piece->next;
                at = 0;
            }
            if (!visit((piece == nullptr ? inline_runs() : piece->runs())[at])) return;
        }
    }

private:
    static constexpr std::uint32_t kPerPiece = 7;
    // Runs are written when they are appended, so their memory is not cleared before.
    struct Piece {
        Piece* next = nullptr;
        SentRun* runs() { return std::launder(reinterpret_cast<SentRun*>(memory)); }
        alignas(8) std::byte memory[kPerPiece * sizeof(SentRun)];
    };
    static_assert(sizeof(Piece) <= FlightPool::kPieceBytes);

    static std::uint32_t capacity(const Piece* piece) {
        return piece == nullptr ? kInline : kPerPiece;
    }
    SentRun* inline_runs() { return std::launder(reinterpret_cast<SentRun*>(inline_)); }
    SentRun* head_runs() { return head_ == nullptr ? inline_runs() : head_->runs(); }
    SentRun* tail_runs() { return tail_ == nullptr ? inline_runs() : tail_->runs(); }

    // nullptr stands for the runs inside.
    Piece* head_ = nullptr;
    Piece* tail_ = nullptr;
    Piece* first_ = nullptr;  // follows the runs inside
    std::uint16_t head_at_ = 0;
    std::uint16_t tail_end_ = 0;
    std::uint16_t count_ = 0;
    std::uint16_t again_ = 0;
    alignas(8) std::byte inline_[kInline * sizeof(SentRun)];
};

}  // namespace culvert::stack::tcp
