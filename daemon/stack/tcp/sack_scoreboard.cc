#include "daemon/stack/tcp/sack_scoreboard.h"

#include <algorithm>
#include <new>
#include <type_traits>

#include "shm/base/check.h"

namespace culvert::stack::tcp {

std::optional<Range> find_dsack(std::span<const Range> blocks, Position ack, Position snd_nxt) {
    if (blocks.empty()) return std::nullopt;
    const Range& first = blocks[0];
    if (first.empty() || first.end > snd_nxt) return std::nullopt;
    if (first.end <= ack) return first;  // [RFC2883 4.1]
    if (blocks.size() > 1 && !blocks[1].empty() && blocks[1].first <= first.first && first.end <= blocks[1].end)
        return first;  // [RFC2883 4.2]
    return std::nullopt;
}

SackScoreboard::Update SackScoreboard::update(std::span<const Range> blocks, Position snd_una, Position snd_nxt,
                                              std::uint32_t mss) {
    Update result;
    const std::uint64_t before = sacked_bytes_;
    for (Range block : blocks.first(std::min(blocks.size(), result.forgotten.size()))) {
        if (block.empty() || block.end > snd_nxt || block.end <= snd_una) continue;
        block.first = std::max(block.first, snd_una);  // from an ACK overtaken by a later one
        if (add(block) > 0) result.new_information = true;
        if (count_ > kMaxRanges) result.forgotten[result.forgotten_count++] = evict_smallest();
    }
    // What was forgotten in between was counted before; never count it twice.
    result.newly_sacked = sacked_bytes_ > before ? sacked_bytes_ - before : 0;
    if (result.new_information) find_loss_edge(mss);
    return result;
}

void SackScoreboard::advance(Position snd_una, std::uint32_t mss) {
    std::uint32_t gone = 0;
    while (gone < count_ && ranges_[gone].end <= snd_una) sacked_bytes_ -= ranges_[gone++].size();
    std::copy(ranges_.begin() + gone, ranges_.begin() + count_, ranges_.begin());
    count_ -= gone;
    if (count_ > 0 && ranges_[0].first < snd_una) {
        sacked_bytes_ -= snd_una - ranges_[0].first;
        ranges_[0].first = snd_una;
    }
    find_loss_edge(mss);
}

std::uint64_t SackScoreboard::sacked_in(Range range) const {
    std::uint64_t bytes = 0;
    for (const Range& r : ranges()) {
        const Position first = std::max(r.first, range.first);
        const Position end = std::min(r.end, range.end);
        if (first < end) bytes += end - first;
    }
    return bytes;
}

bool SackScoreboard::is_sacked(Position position) const {
    return std::ranges::any_of(ranges(), [&](const Range& r) { return r.contains(position); });
}

Range SackScoreboard::next_hole(Range within) const {
    for (const Range& r : ranges()) {
        if (within.empty()) break;
        if (r.end <= within.first) continue;
        if (r.first > within.first) {
            within.end = std::min(within.end, r.first);
            break;
        }
        within.first = r.end;
    }
    if (within.empty()) return {within.first, within.first};
    return within;
}

std::uint64_t SackScoreboard::add(Range block) {
    auto* const begin = ranges_.data();
    auto* const end = begin + count_;
    // [low, high): the ranges that the block overlaps or touches; they become one.
    auto* const low = std::lower_bound(begin, end, block.first, [](const Range& r, Position p) { return r.end < p; });
    auto* high = low;
    std::uint64_t known = 0;
    Range merged = block;
    for (; high != end && high->first <= block.end; ++high) {
        known += high->size();
        merged.first = std::min(merged.first, high->first);
        merged.end = std::max(merged.end, high->end);
    }
    const std::uint64_t gained = merged.size() - known;
    if (gained == 0) return 0;
    if (low == high) {
        std::move_backward(low, end, end + 1);
        ++count_;
    } else {
        std::move(high, end, low + 1);
        count_ -= static_cast<std::uint32_t>(high - low - 1);
    }
    *low = merged;
    sacked_bytes_ += gained;
    return gained;
}

Range SackScoreboard::evict_smallest() {
    auto* const begin = ranges_.data();
    auto* const end = begin + count_;
    auto* const smallest = std::min_element(begin, end, [](const Range& a, const Range& b) { return a.size() < b.size(); });
    const Range gone = *smallest;
    sacked_bytes_ -= gone.size();
    std::move(smallest + 1, end, smallest);
    --count_;
    return gone;
}

void SackScoreboard::find_loss_edge(std::uint32_t mss) {
    loss_edge_ = 0;
    std::uint64_t bytes = 0;
    std::uint64_t runs = 0;
    for (std::uint32_t i = count_; i-- > 0;) {
        bytes += ranges_[i].size();
        if (++runs >= kDupThresh || bytes > (kDupThresh - 1) * mss) {
            loss_edge_ = ranges_[i].first;
            return;
        }
    }
}

SackScoreboard* SackPool::create() {
    static_assert(std::is_trivially_destructible_v<SackScoreboard>);
    const std::uint32_t index = pool_.allocate();
    return index == LazyPool::kNone ? nullptr : new (pool_.at(index)) SackScoreboard;
}

void SackPool::destroy(SackScoreboard* board) {
    DCHECK(board != nullptr);
    pool_.release(pool_.index_of(board));
}

}  // namespace culvert::stack::tcp
