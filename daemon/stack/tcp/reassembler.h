// Data that arrived too early, kept until the gap before it is filled. The receiver's side of RFC 2018 and RFC 2883.
//
//   stream    ..|   block 7   |   block 8   |   block 9   |   block 10  |..      blocks of 2 KiB, cut at multiples
//   held         .....#########################.............###..........
//   ranges            [ 1                     )             [2 )               what of them is valid
//   index            7 -> piece   8 -> piece  9 -> piece   10 -> piece
//
// Bytes lie at a fixed place: piece of their block, offset modulo 2 KiB. So overlap is only a question of ranges (the
// first copy of a byte wins), tiny segments cannot use more memory than the window they lie in, and finding a byte
// takes two array look-ups. A connection with nothing out of order is a null pointer.
//
// Bounds: pieces per engine and per connection (fewer the fewer are free), kMaxRanges ranges, kMaxReach bytes ahead. What goes beyond is refused;
// the peer sends it again.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "daemon/base/lazy_pool.h"
#include "daemon/stack/tcp/sequence.h"

namespace culvert::stack::tcp {

/// The memory of one engine for out-of-order data.
class ReassemblyPool {
public:
    static constexpr std::size_t kPieceBytes = 2048;
    static constexpr std::uint32_t kLeastShare = 16;

    /// At most `pieces` in all, at most `pieces_per_connection` for one (bookkeeping included).
    ReassemblyPool(std::uint32_t pieces, std::uint32_t pieces_per_connection)
        : pool_(kPieceBytes, pieces), per_connection_(pieces_per_connection) {}

    std::uint32_t used() const { return pool_.used(); }
    std::uint32_t per_connection() const { return per_connection_; }
    /// May a connection that holds `held` pieces take `more`? The fewer are free, the fewer one may hold: half the pool times the
    /// square of the part that is free. Four greedy ones leave three eighths, twenty a tenth; from there on each may have
    /// kLeastShare until nothing is left, which takes forty.
    bool grants(std::uint32_t held, std::uint32_t more) const {
        const std::uint64_t free = pool_.capacity() - pool_.used();
        if (more > free) return false;
        const std::uint64_t share = (free - more) * (free - more) / (2 * std::uint64_t{pool_.capacity()});
        return held + more <= std::min<std::uint64_t>(per_connection_, std::max<std::uint64_t>(share, kLeastShare));
    }

private:
    friend class Reassembler;
    LazyPool pool_;
    std::uint32_t per_connection_;
};

class Reassembler {
public:
    static constexpr std::size_t kMaxRanges = 32;
    static constexpr std::size_t kMaxSackBlocks = 4;
    /// How far ahead of RCV.NXT data is kept.
    static constexpr std::uint64_t kMaxReach = std::uint64_t{63} << 20;

    struct Inserted {
        std::uint64_t stored = 0;          // bytes that were not held before
        bool truncated = false;            // some could not be kept for want of room: Drop::kTcpReassemblyFull
        std::optional<Range> duplicate;    // the first run that was held already: report it by D-SACK
    };

    Reassembler() = default;
    Reassembler(const Reassembler&) = delete;
    Reassembler& operator=(const Reassembler&) = delete;
    ~Reassembler();

    /// Keeps a segment's payload, given as the fragments it arrived in, which starts at `position` >= `rcv_nxt`. The
    /// caller has cut it to the receive window.
    Inserted insert(Position position, std::span<const std::span<const std::byte>> fragments, Position rcv_nxt,
                    ReassemblyPool& pool);

    /// The bytes held from exactly `rcv_nxt` on, as far as they lie in one piece; empty if there are none.
    std::span<const std::byte> peek(Position rcv_nxt, ReassemblyPool& pool) const;
    /// Everything before `rcv_nxt` was delivered (or arrived otherwise): forget it.
    void discard_below(Position rcv_nxt, ReassemblyPool& pool);
    /// Hands all contiguous bytes from `rcv_nxt` on to `sink(std::span<const std::byte>) -> std::size_t taken`, until
    /// it takes less than offered. Returns the bytes taken: the caller adds them to RCV.NXT.
    template <typename Sink>
    std::uint64_t take_in_order(Position rcv_nxt, Sink&& sink, ReassemblyPool& pool) {
        if (empty()) return 0;
        std::uint64_t taken = 0;
        for (auto run = peek(rcv_nxt, pool); !run.empty(); run = peek(rcv_nxt + taken, pool)) {
            const std::size_t n = sink(run);
            taken += n;
            if (n < run.size()) break;
        }
        discard_below(rcv_nxt + taken, pool);
        return taken;
    }

    /// Fills `out` with what an ACK should report and returns the count: `dsack` first, if there is one, then the
    /// range of the newest segment, then those before it. [RFC2018 4] [RFC2883 4]
    std::size_t sack_blocks(std::span<Range> out, std::optional<Range> dsack = std::nullopt) const;

    bool empty() const { return store_ == nullptr; }
    /// Bytes held.
    std::uint64_t bytes() const;
    /// Gives everything back. Must be called before the connection dies.
    void clear(ReassemblyPool& pool);

private:
    struct Store;
    std::byte* piece_for(Position position, ReassemblyPool& pool);
    void release_block(std::uint64_t block, ReassemblyPool& pool);
    std::uint64_t note(Range segment, ReassemblyPool& pool);
    bool holds(Range range) const;

    Store* store_ = nullptr;  // lies in a piece of the pool
};
static_assert(sizeof(Reassembler) == 8);

}  // namespace culvert::stack::tcp
