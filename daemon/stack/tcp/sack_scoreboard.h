// What the receiver holds above SND.UNA, as its SACK blocks tell: the sender's side of RFC 2018 and RFC 6675.
//
//   snd_una                                   snd_nxt
//     |..hole..[SACKed]..hole..[SACKed][ not known ]|
//                      ^ loss_edge: below it every hole is lost, because enough was SACKed above
//
// A scoreboard exists only while there is something on it: connections take it from a SackPool and give it back. Its
// size is fixed; when too many ranges are reported, the smallest is forgotten, which costs a needless retransmission
// at worst. Blocks come from the network: whatever is not inside [snd_una, snd_nxt] is ignored.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "daemon/base/lazy_pool.h"
#include "daemon/stack/tcp/sequence.h"
#include "daemon/wire/tcp_options.h"

namespace culvert::stack::tcp {

/// The D-SACK in the blocks of one ACK, if its first block is one: it lies below the cumulative ACK, or inside the
/// second block. [RFC2883 4]
std::optional<Range> find_dsack(std::span<const Range> blocks, Position ack, Position snd_nxt);

class SackScoreboard {
public:
    static constexpr std::size_t kMaxRanges = 64;
    static constexpr std::uint64_t kDupThresh = 3;  // [RFC6675 2]

    struct Update {
        std::uint64_t newly_sacked = 0;  // bytes
        bool new_information = false;    // some byte was SACKed that was not before
        std::uint32_t forgotten_count = 0;
        std::array<Range, wire::kMaxSackBlocks> forgotten;  // for want of room: they count as not SACKed from here on
    };

    /// Takes in the blocks of an ACK (four at most), D-SACK excluded by position. `mss`: for the loss edge.
    Update update(std::span<const Range> blocks, Position snd_una, Position snd_nxt, std::uint32_t mss);
    /// SND.UNA has moved: forgets what lies below.
    void advance(Position snd_una, std::uint32_t mss);

    bool empty() const { return count_ == 0; }
    std::span<const Range> ranges() const { return {ranges_.data(), count_}; }
    /// Bytes SACKed in all.
    std::uint64_t sacked_bytes() const { return sacked_bytes_; }
    /// Bytes SACKed within `range`.
    std::uint64_t sacked_in(Range range) const;
    bool is_sacked(Position position) const;
    /// The end of the highest range; 0 if empty.
    Position highest() const { return count_ == 0 ? 0 : ranges_[count_ - 1].end; }

    /// Every position below it that is not SACKed is lost: kDupThresh ranges, or more than (kDupThresh - 1) * SMSS
    /// bytes, were SACKed above. 0: nothing is lost. [RFC6675 4 IsLost]
    Position loss_edge() const { return loss_edge_; }
    bool is_lost(Position position) const { return position < loss_edge_ && !is_sacked(position); }

    /// The first run of bytes in `within` that are not SACKed; empty if there is none.
    Range next_hole(Range within) const;

private:
    std::uint64_t add(Range block);
    Range evict_smallest();
    void find_loss_edge(std::uint32_t mss);

    std::uint64_t sacked_bytes_ = 0;
    Position loss_edge_ = 0;
    std::uint32_t count_ = 0;
    std::array<Range, kMaxRanges + 1> ranges_;  // sorted, disjoint, not adjacent; one more while adding
};

/// The scoreboards of one engine.
class SackPool {
public:
    explicit SackPool(std::uint32_t count) : pool_(sizeof(SackScoreboard), count) {}

    /// nullptr when all are in use: the connection then recovers as if it had no SACK.
    SackScoreboard* create();
    void destroy(SackScoreboard* board);
    std::uint32_t used() const { return pool_.used(); }

private:
    LazyPool pool_;
};

}  // namespace culvert::stack::tcp
