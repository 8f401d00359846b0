// Longest-prefix match in a few steps: prefixes laid flat as ranges that do not overlap.
//
//   prefixes     0.0.0.0/0 A      10.0.0.0/8 B      10.1.0.0/16 C
//   starts_      0.0.0.0   10.0.0.0   10.1.0.0   10.2.0.0   11.0.0.0        sorted
//   values_      A         B          C          B          A
//   first_       for each value of the top bits: the first start that has it, so a search sees only its neighbours
//
// A lookup loads two numbers of first_, searches between them (for a table of the whole Internet five or six steps in two or
// three cache lines) and loads a value. n prefixes make at most 2n + 1 ranges: 8 bytes each for IPv4, and the memory is read
// in order when a burst goes to neighbouring places. Built whole, never changed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

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
    };

    /// `prefixes` sorted by first, then by length; no two alike. Cold, O(n).
    void build(const std::vector<Prefix>& prefixes) {
        starts_.clear();
        values_.clear();
        std::vector<Open> open;  // the prefixes that contain the place we are at, outermost first
        put(Key{0}, kNone);
        for (const Prefix& prefix : prefixes) {
            while (!open.empty() && open.back().last < prefix.first) close(open);
            open.push_back({last_of(prefix), prefix.value});
            put(prefix.first, prefix.value);
        }
        while (!open.empty()) close(open);
        index(prefixes.size() >= kManyPrefixes ? 16 : 8);
    }

    /// The value of the longest prefix that contains `key`; kNone if none does.
    std::uint32_t find(Key key) const {
        if (starts_.empty()) return kNone;
        const auto top = static_cast<std::size_t>(key >> shift_);
        std::size_t at = first_[top];
        std::size_t count = first_[top + 1] - at;
        const Key* const starts = starts_.data();
        while (count > 1) {  // without a branch that could be mispredicted
            const std::size_t half = count / 2;
            at += starts[at + half - 1] <= key ? half : 0;
            count -= half;
        }
        if (count == 1) at += starts[at] <= key ? 1 : 0;
        return values_[at - 1];  // the first start is 0, so one is always at or below the key
    }
    std::size_t bytes() const {
        return starts_.capacity() * sizeof(Key) + (values_.capacity() + first_.capacity()) * sizeof(std::uint32_t);
    }

private:
    static constexpr unsigned kBits = sizeof(Key) * 8;
    static constexpr std::size_t kManyPrefixes = 64;  // 256 KiB of first_ are worth it from here on

    struct Open {
        Key last;
        std::uint32_t value;
    };
    static Key last_of(const Prefix& prefix) {
        return prefix.length == 0 ? static_cast<Key>(~Key{0})
                                  : static_cast<Key>(prefix.first | (prefix.length == kBits ? Key{0} : static_cast<Key>(~Key{0}) >> prefix.length));
    }
    void put(Key start, std::uint32_t value) {
        if (!starts_.empty() && starts_.back() == start) {
            values_.back() = value;  // a longer prefix that begins at the same place
        } else {
            starts_.push_back(start);
            values_.push_back(value);
        }
    }
    void close(std::vector<Open>& open) {
        const Key last = open.back().last;
        open.pop_back();
        if (last != static_cast<Key>(~Key{0})) put(static_cast<Key>(last + 1), open.empty() ? kNone : open.back().value);
    }
    void index(unsigned bits) {
        shift_ = kBits - bits;
        first_.assign((std::size_t{1} << bits) + 1, 0);
        std::size_t at = 0;
        for (std::size_t top = 0; top + 1 < first_.size(); ++top) {
            while (at < starts_.size() && static_cast<std::size_t>(starts_[at] >> shift_) < top) ++at;
            first_[top] = static_cast<std::uint32_t>(at);
        }
        first_.back() = static_cast<std::uint32_t>(starts_.size());
    }

    std::vector<Key> starts_;
    std::vector<std::uint32_t> values_;
    std::vector<std::uint32_t> first_;
    unsigned shift_ = kBits - 8;
};

}  // namespace culvert::stack
