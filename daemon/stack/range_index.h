// Longest-prefix match in a few steps: prefixes laid flat as ranges that do not overlap.
//
//   prefixes   0.0.0.0/0 A      10.0.0.0/8 B      10.1.0.0/16 C
//   ranges_    0.0.0.0 A   10.0.0.0 B   10.1.0.0 C   10.2.0.0 B   11.0.0.0 A        sorted by start
//
//   slots_     [ one for each value of the top bits ] --crowded--> [ 256 for the next 8 bits ] --> ...
//                          |                                              |
//                          +--> the few ranges that begin there <---------+
//
// A slot names the ranges that begin in its part of the address space, or, where those are many, a table of 256 slots that
// cuts the part finer. So a lookup reads one slot, or two, and then one line or two of ranges, each of which has its start and
// its answer side by side. For whoever has several addresses to find, a Cursor takes one memory access at a time: touch
// the next one's memory while waiting for the last (prefetch).
//
// n prefixes make at most 2n + 1 ranges. Fine tables are made breadth first while they are no more than kSlotsPerRange for
// each range: deeply nested routes cannot make the index large, only their own search longer. Built whole, never changed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "daemon/base/huge_allocator.h"
#include "daemon/base/prefetch.h"
#include "shm/base/check.h"

namespace culvert::stack {

template <class Key>
class RangeIndex {
public:
    static constexpr std::uint32_t kNone = UINT32_MAX;

    struct Prefix {
        Key first{};
        unsigned length = 0;
        std::uint32_t value = 0;
        std::uint32_t note = 0;
    };

    /// `prefixes` sorted by first, then by length; no two alike. Cold, O(n).
    void build(const std::vector<Prefix>& prefixes) {
        ranges_.clear();
        values_.clear();
        std::vector<Open> open;  // the prefixes that contain the place we are at, outermost first
        put(Key{0}, kNone, kNone);
        for (const Prefix& prefix : prefixes) {
            while (!open.empty() && open.back().last < prefix.first) close(open);
            open.push_back({last_of(prefix), prefix.value, prefix.note});
            put(prefix.first, prefix.value, prefix.note);
        }
        while (!open.empty()) close(open);
        index(prefixes.size() >= kManyPrefixes ? 16 : 8);
    }

    /// The value of the longest prefix that contains `key`; kNone if none does.
    std::uint32_t find(Key key) const { return slots_.empty() ? kNone : values_[range_of(key)]; }
    /// The same prefix's note: the faster answer, as it lies beside the range's start.
    std::uint32_t find_note(Key key) const { return slots_.empty() ? kNone : ranges_[range_of(key)].note; }

    /// A lookup under way, whose next memory access has been announced to the caches.
    struct Cursor {
        Key key;
        std::uint32_t slot;
        unsigned shift;
    };
    /// Requires: built.
    Cursor begin(Key key) const {
        const auto slot = static_cast<std::uint32_t>(key >> root_shift_);
        prefetch_line(&slots_[slot]);
        return {key, slot, root_shift_};
    }
    /// One access further. Once it has come to the ranges it does nothing more than announce them again.
    void step(Cursor& cursor) const {
        const Slot slot = slots_[cursor.slot];
        if (slot.count == kTable) {
            cursor.shift -= kStep;
            cursor.slot = slot.first + (static_cast<std::uint32_t>(cursor.key >> cursor.shift) & (kFan - 1));
            prefetch_line(&slots_[cursor.slot]);
        } else {
            const Range* const ranges = &ranges_[slot.first == 0 ? 0 : slot.first - 1];
            prefetch_line(ranges);
            prefetch_line(ranges + slot.count);
        }
    }

    std::size_t bytes() const {
        return ranges_.capacity() * sizeof(Range) + values_.capacity() * sizeof(std::uint32_t) + slots_.capacity() * sizeof(Slot);
    }

private:
    static constexpr unsigned kBits = sizeof(Key) * 8;
    static constexpr std::size_t kManyPrefixes = 64;  // 512 KiB of slots are worth it from here on
    static constexpr unsigned kStep = 8;
    static constexpr std::uint32_t kFan = 1u << kStep;
    static constexpr std::uint32_t kTable = UINT32_MAX;  // a slot's count: it names a table
    static constexpr std::uint32_t kCrowd = 8;           // ranges of one slot: beyond, a finer table if there may be one
    static constexpr std::size_t kSlotsPerRange = 4;

    struct Range {
        Key start;
        std::uint32_t note;
    };
    struct Slot {
        std::uint32_t first = 0;  // the first range that begins in this part, or the table's first slot
        std::uint32_t count = 0;
    };
    struct Open {
        Key last;
        std::uint32_t value;
        std::uint32_t note;
    };

    std::size_t range_of(Key key) const {
        unsigned shift = root_shift_;
        Slot slot = slots_[static_cast<std::size_t>(key >> shift)];
        while (slot.count == kTable) {
            shift -= kStep;
            slot = slots_[slot.first + (static_cast<std::uint32_t>(key >> shift) & (kFan - 1))];
        }
        std::size_t at = slot.first;
        std::size_t count = slot.count;
        const Range* const ranges = ranges_.data();
        while (count > 1) {  // without a branch that could be mispredicted
            const std::size_t half = count / 2;
            at += ranges[at + half - 1].start <= key ? half : 0;
            count -= half;
        }
        if (count == 1) at += ranges[at].start <= key ? 1 : 0;
        return at - 1;  // the first start is 0, so one is always at or below the key
    }
    static Key last_of(const Prefix& prefix) {
        return prefix.length == 0 ? static_cast<Key>(~Key{0})
                                  : static_cast<Key>(prefix.first | (prefix.length == kBits ? Key{0} : static_cast<Key>(~Key{0}) >> prefix.length));
    }
    void put(Key start, std::uint32_t value, std::uint32_t note) {
        if (!ranges_.empty() && ranges_.back().start == start) {
            ranges_.back().note = note;  // a longer prefix that begins at the same place
            values_.back() = value;
        } else {
            ranges_.push_back({start, note});
            values_.push_back(value);
        }
    }
    void close(std::vector<Open>& open) {
        const Key last = open.back().last;
        open.pop_back();
        if (last == static_cast<Key>(~Key{0})) return;
        if (open.empty()) return put(static_cast<Key>(last + 1), kNone, kNone);
        put(static_cast<Key>(last + 1), open.back().value, open.back().note);
    }

    /// Slots for each value of the `bits` of `key` at `shift` among the ranges [first, first + count).
    void cut(unsigned shift, std::uint32_t slots, std::size_t base, std::uint32_t first, std::uint32_t count) {
        std::uint32_t at = first;
        for (std::uint32_t i = 0; i < slots; ++i) {
            const std::uint32_t begin = at;
            while (at < first + count && (static_cast<std::uint32_t>(ranges_[at].start >> shift) & (slots - 1)) == i) ++at;
            slots_[base + i] = {begin, at - begin};
        }
    }
    void index(unsigned bits) {
        root_shift_ = kBits - bits;
        std::vector<std::uint32_t> crowded;  // slots that may get a table, the coarsest first
        std::vector<std::uint32_t> next;
        const auto look = [&](std::size_t base, std::uint32_t slots) {
            for (std::size_t i = base; i < base + slots; ++i)
                if (slots_[i].count > kCrowd) next.push_back(static_cast<std::uint32_t>(i));
        };
        slots_.assign(std::size_t{1} << bits, {});
        cut(root_shift_, 1u << bits, 0, 0, static_cast<std::uint32_t>(ranges_.size()));
        look(0, 1u << bits);
        const std::size_t most = slots_.size() + ranges_.size() * kSlotsPerRange;
        for (unsigned shift = root_shift_; shift >= kStep && !next.empty(); shift -= kStep) {
            crowded.swap(next);
            next.clear();
            for (const std::uint32_t slot : crowded) {
                if (slots_.size() + kFan > most) return;
                const std::size_t base = slots_.size();
                slots_.resize(base + kFan);
                cut(shift - kStep, kFan, base, slots_[slot].first, slots_[slot].count);
                slots_[slot] = {static_cast<std::uint32_t>(base), kTable};
                look(base, kFan);
            }
        }
    }

    std::vector<Range, HugeAllocator<Range>> ranges_;
    std::vector<std::uint32_t> values_;  // of the ranges
    std::vector<Slot, HugeAllocator<Slot>> slots_;
    unsigned root_shift_ = kBits - 8;
};

}  // namespace culvert::stack
