#include "daemon/stack/tcp/reassembler.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <type_traits>

#include "shm/base/check.h"

namespace culvert::stack::tcp {

namespace {
constexpr std::uint64_t kBlock = ReassemblyPool::kPieceBytes;
constexpr std::uint64_t kLeafEntries = kBlock / sizeof(std::uint32_t);  // 512 blocks, 1 MiB of stream
constexpr std::uint64_t kLeaves = 64;
// The ring of leaves must not meet itself: one leaf of slack because neither end is aligned.
static_assert(Reassembler::kMaxReach <= (kLeaves - 1) * kLeafEntries * kBlock);
}  // namespace

/// The bookkeeping of one connection that has something out of order. The index is a ring of leaves, each of which is
/// a piece of the pool that holds the pieces of 512 consecutive blocks.
struct Reassembler::Store {
    struct Run {
        Range range;
        std::uint64_t stamp;  // of its newest segment
    };
    std::uint64_t stamp = 0;
    std::uint64_t bytes = 0;
    std::uint32_t count = 0;
    std::uint32_t pieces = 1;  // taken from the pool, this one included
    std::array<Run, kMaxRanges + 1> runs;  // sorted, disjoint, not adjacent
    std::array<std::uint32_t, kLeaves> leaf;
    std::array<std::uint16_t, kLeaves> leaf_used{};  // pieces in it; 0: no leaf

    Store() { leaf.fill(LazyPool::kNone); }
};

Reassembler::~Reassembler() { DCHECK(store_ == nullptr); }

namespace {
struct Slot {
    std::size_t leaf;
    std::size_t entry;
};
Slot slot_of(std::uint64_t block) {
    return {static_cast<std::size_t>(block / kLeafEntries % kLeaves), static_cast<std::size_t>(block % kLeafEntries)};
}
std::uint32_t load_entry(const std::byte* leaf, std::size_t entry) {
    std::uint32_t index = 0;
    std::memcpy(&index, leaf + entry * sizeof index, sizeof index);
    return index;
}
void store_entry(std::byte* leaf, std::size_t entry, std::uint32_t index) {
    std::memcpy(leaf + entry * sizeof index, &index, sizeof index);
}
}  // namespace

/// The piece that holds the block of `position`, taken from the pool if there is none yet; nullptr: no room.
std::byte* Reassembler::piece_for(Position position, ReassemblyPool& pool) {
    const Slot slot = slot_of(position / kBlock);
    std::uint32_t& leaf = store_->leaf[slot.leaf];
    if (leaf != LazyPool::kNone) {
        const std::uint32_t index = load_entry(pool.pool_.at(leaf), slot.entry);
        if (index != LazyPool::kNone) return pool.pool_.at(index);
    }
    const std::uint32_t needed = leaf == LazyPool::kNone ? 2 : 1;
    if (!pool.grants(store_->pieces, needed)) return nullptr;
    const std::uint32_t index = pool.pool_.allocate();
    if (index == LazyPool::kNone) return nullptr;
    if (leaf == LazyPool::kNone) {
        leaf = pool.pool_.allocate();
        if (leaf == LazyPool::kNone) {
            pool.pool_.release(index);
            return nullptr;
        }
        std::memset(pool.pool_.at(leaf), 0xff, kBlock);  // kNone everywhere
        static_assert(LazyPool::kNone == 0xffffffff);
    }
    store_->pieces += needed;
    store_entry(pool.pool_.at(leaf), slot.entry, index);
    ++store_->leaf_used[slot.leaf];
    return pool.pool_.at(index);
}

void Reassembler::release_block(std::uint64_t block, ReassemblyPool& pool) {
    const Slot slot = slot_of(block);
    std::uint32_t& leaf = store_->leaf[slot.leaf];
    if (leaf == LazyPool::kNone) return;
    std::byte* const entries = pool.pool_.at(leaf);
    const std::uint32_t index = load_entry(entries, slot.entry);
    if (index == LazyPool::kNone) return;
    pool.pool_.release(index);
    --store_->pieces;
    store_entry(entries, slot.entry, LazyPool::kNone);
    if (--store_->leaf_used[slot.leaf] == 0) {
        pool.pool_.release(leaf);
        --store_->pieces;
        leaf = LazyPool::kNone;
    }
}

Reassembler::Inserted Reassembler::insert(Position position, std::span<const std::span<const std::byte>> fragments,
                                          Position rcv_nxt, ReassemblyPool& pool) {
    static_assert(sizeof(Store) <= ReassemblyPool::kPieceBytes && std::is_trivially_destructible_v<Store>);
    DCHECK(position >= rcv_nxt);
    Inserted result;
    std::uint64_t length = 0;
    for (const auto& fragment : fragments) length += fragment.size();
    if (length == 0) return result;
    Range segment{position, position + length};
    if (segment.end > rcv_nxt + kMaxReach) {
        result.truncated = true;
        segment.end = rcv_nxt + kMaxReach;
        if (segment.empty()) return result;
    }
    if (store_ != nullptr && store_->runs[0].range.first < rcv_nxt) discard_below(rcv_nxt, pool);
    if (store_ == nullptr) {
        const std::uint32_t index = pool.grants(0, 3) ? pool.pool_.allocate() : LazyPool::kNone;
        if (index == LazyPool::kNone) {
            result.truncated = true;
            return result;
        }
        store_ = new (pool.pool_.at(index)) Store;
    }

    // Walk the segment byte range by byte range: what a run holds already is skipped, the rest is copied.
    const auto runs = std::span(store_->runs).first(store_->count);
    auto run = std::ranges::upper_bound(runs, segment.first, {}, [](const Store::Run& r) { return r.range.end; });
    std::size_t fragment = 0;
    std::size_t offset = 0;  // in the fragment
    Position at = segment.first;
    const auto contiguous = [&]() -> std::uint64_t {  // bytes to be read at once
        while (offset == fragments[fragment].size()) {
            ++fragment;
            offset = 0;
        }
        return fragments[fragment].size() - offset;
    };
    const auto skip = [&](std::uint64_t n) {
        at += n;
        while (n > 0) {
            const std::uint64_t step = std::min(n, contiguous());
            offset += step;
            n -= step;
        }
    };
    while (at < segment.end) {
        if (run != runs.end() && run->range.contains(at)) {
            const Range held{at, std::min(segment.end, run->range.end)};
            if (!result.duplicate) result.duplicate = held;
            skip(held.size());
            ++run;
            continue;
        }
        const Position gap_end = run == runs.end() ? segment.end : std::min(segment.end, run->range.first);
        std::byte* const piece = piece_for(at, pool);
        if (piece == nullptr) {
            result.truncated = true;
            segment.end = at;
            break;
        }
        std::uint64_t room = std::min(gap_end - at, kBlock - at % kBlock);
        while (room > 0) {
            const std::uint64_t n = std::min(room, contiguous());
            std::memcpy(piece + at % kBlock, fragments[fragment].data() + offset, n);
            result.stored += n;
            room -= n;
            skip(n);
        }
    }
    if (!segment.empty()) result.stored -= note(segment, pool);
    if (store_->count == 0) clear(pool);
    return result;
}

/// Makes `segment` part of the runs. Returns the bytes that had to be given up because there are too many runs.
std::uint64_t Reassembler::note(Range segment, ReassemblyPool& pool) {
    auto* const begin = store_->runs.data();
    auto* const end = begin + store_->count;
    auto* const low = std::lower_bound(begin, end, segment.first,
                                       [](const Store::Run& r, Position p) { return r.range.end < p; });
    auto* high = low;
    Store::Run merged{segment, ++store_->stamp};
    for (; high != end && high->range.first <= segment.end; ++high) {
        merged.range.first = std::min(merged.range.first, high->range.first);
        merged.range.end = std::max(merged.range.end, high->range.end);
        store_->bytes -= high->range.size();
    }
    if (low == high) {
        std::move_backward(low, end, end + 1);
        ++store_->count;
    } else {
        std::move(high, end, low + 1);
        store_->count -= static_cast<std::uint32_t>(high - low - 1);
    }
    *low = merged;
    store_->bytes += merged.range.size();
    if (store_->count <= kMaxRanges) return 0;

    // Too many holes: the run farthest ahead goes, which is needed last. (A receiver may discard what it has SACKed.
    // [RFC2018 8])
    const Range lost = store_->runs[--store_->count].range;
    store_->bytes -= lost.size();
    const Position kept_end = store_->runs[store_->count - 1].range.end;
    const std::uint64_t first_block = std::max(lost.first / kBlock, (kept_end + kBlock - 1) / kBlock);
    for (std::uint64_t block = first_block; block * kBlock < lost.end; ++block) release_block(block, pool);
    const Position given_up = std::max(lost.first, segment.first);
    const Position given_end = std::min(lost.end, segment.end);
    return given_up < given_end ? given_end - given_up : 0;
}

std::span<const std::byte> Reassembler::peek(Position rcv_nxt, ReassemblyPool& pool) const {
    if (store_ == nullptr) return {};
    for (std::uint32_t i = 0; i < store_->count; ++i) {
        const Range& run = store_->runs[i].range;
        if (run.first > rcv_nxt) break;
        if (!run.contains(rcv_nxt)) continue;
        const Slot slot = slot_of(rcv_nxt / kBlock);
        DCHECK(store_->leaf[slot.leaf] != LazyPool::kNone);
        const std::uint32_t index = load_entry(pool.pool_.at(store_->leaf[slot.leaf]), slot.entry);
        DCHECK(index != LazyPool::kNone);
        const std::uint64_t offset = rcv_nxt % kBlock;
        return {pool.pool_.at(index) + offset, std::min(run.end - rcv_nxt, kBlock - offset)};
    }
    return {};
}

void Reassembler::discard_below(Position rcv_nxt, ReassemblyPool& pool) {
    if (store_ == nullptr) return;
    std::uint32_t gone = 0;
    std::uint64_t next_block = 0;  // blocks below it were looked at
    for (std::uint32_t i = 0; i < store_->count; ++i) {
        Range& run = store_->runs[i].range;
        if (run.first >= rcv_nxt) break;
        const Position end = std::min(run.end, rcv_nxt);
        // Only blocks that lie below rcv_nxt altogether; a block that a later byte still needs is freed with that byte.
        for (std::uint64_t block = std::max(next_block, run.first / kBlock); block * kBlock < end; ++block) {
            const bool needed = (block + 1) * kBlock > rcv_nxt && holds({rcv_nxt, (block + 1) * kBlock});
            if (!needed) release_block(block, pool);
            next_block = block + 1;
        }
        store_->bytes -= end - run.first;
        run.first = end;
        if (run.empty()) gone = i + 1;
    }
    if (gone > 0) {
        std::move(store_->runs.begin() + gone, store_->runs.begin() + store_->count, store_->runs.begin());
        store_->count -= gone;
    }
    if (store_->count == 0) clear(pool);
}

/// Whether any byte of `range` is held.
bool Reassembler::holds(Range range) const {
    return std::ranges::any_of(std::span(store_->runs).first(store_->count), [&](const Store::Run& r) {
        return r.range.first < range.end && range.first < r.range.end;
    });
}

std::size_t Reassembler::sack_blocks(std::span<Range> out, std::optional<Range> dsack) const {
    std::size_t count = 0;
    if (dsack && !out.empty()) out[count++] = *dsack;
    if (store_ == nullptr) return count;
    std::uint64_t below = UINT64_MAX;  // stamps already reported
    while (count < out.size()) {
        const Store::Run* newest = nullptr;
        for (const Store::Run& run : std::span(store_->runs).first(store_->count))
            if (run.stamp < below && (newest == nullptr || run.stamp > newest->stamp)) newest = &run;
        if (newest == nullptr) break;
        out[count++] = newest->range;
        below = newest->stamp;
    }
    return count;
}

std::uint64_t Reassembler::bytes() const { return store_ == nullptr ? 0 : store_->bytes; }

void Reassembler::clear(ReassemblyPool& pool) {
    if (store_ == nullptr) return;
    for (std::size_t i = 0; i < kLeaves; ++i) {
        if (store_->leaf[i] == LazyPool::kNone) continue;
        const std::byte* const entries = pool.pool_.at(store_->leaf[i]);
        for (std::size_t entry = 0; store_->leaf_used[i] > 0; ++entry) {
            const std::uint32_t index = load_entry(entries, entry);
            if (index == LazyPool::kNone) continue;
            pool.pool_.release(index);
            --store_->leaf_used[i];
        }
        pool.pool_.release(store_->leaf[i]);
    }
    pool.pool_.release(pool.pool_.index_of(store_));
    store_ = nullptr;
}

}  // namespace culvert::stack::tcp
