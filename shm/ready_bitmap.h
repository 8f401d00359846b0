// A set of socket numbers that one side adds to and the other side empties: "look at socket N".
//
//   summary   [ 1 bit per word ]      words [ 1 bit per socket ]
//
// Unlike a ring it cannot overflow, needs no deduplication, is indifferent to the order of its writers, and a writer that
// is killed half-way loses at most its own bit. Used for requests (application -> daemon) and events (daemon ->
// application).
//
// Poster:    set the bit in its word, then make sure that the word's bit in the summary is set.
// Collector: take a summary word (exchange 0), then take each word that it names.
// A bit can therefore never be set in a word whose summary bit stays clear, except between the poster's two steps.
#pragma once

#include <bit>
#include <cstdint>

#include "shm/layout.h"

namespace culvert::shm {

class ReadyBitmap {
public:
    static constexpr std::uint32_t words(std::uint32_t bits) { return (bits + 63) / 64; }
    static constexpr std::uint32_t summary_words(std::uint32_t bits) { return (words(bits) + 63) / 64; }
    /// Rounded up to a cache line.
    static constexpr std::uint64_t bytes(std::uint32_t bits) {
        const std::uint64_t raw = (std::uint64_t{words(bits)} + summary_words(bits)) * sizeof(Word);
        return (raw + kCacheLine - 1) / kCacheLine * kCacheLine;
    }

    ReadyBitmap() = default;
    ReadyBitmap(Word* memory, std::uint32_t bits)
        : summary_(memory), words_(memory + summary_words(bits)), bits_(bits) {}

    /// Adds `index` (< bits). Any thread or process. seq_cst, so that a following look at a sleep flag is ordered.
    void post(std::uint32_t index) {
        const std::uint32_t word = index / 64;
        words_[word].fetch_or(std::uint64_t{1} << (index % 64), std::memory_order_seq_cst);
        const std::uint64_t bit = std::uint64_t{1} << (word % 64);
        Word& summary = summary_[word / 64];
        if ((summary.load(std::memory_order_seq_cst) & bit) == 0) summary.fetch_or(bit, std::memory_order_seq_cst);
    }

    /// False only if nothing was posted before the call.
    bool any() const {
        for (std::uint32_t i = 0; i < summary_words(bits_); ++i)
            if (summary_[i].load(std::memory_order_seq_cst) != 0) return true;
        return false;
    }

    /// Removes every index and calls visit(index) for each; returns how many. Indices beyond `bits` (a hostile writer)
    /// are dropped.
    template <class Visit>
    std::uint32_t collect(Visit&& visit) {
        std::uint32_t unused = 0;
        return collect_between(0, words(bits_), UINT32_MAX, unused, visit);
    }

    /// The same for `limit` of them, and up to 63 more; what is left stays for the next call, which begins with it if it gets the
    /// same `next` (0 at first). So none waits for ever behind others that are posted again and again.
    template <class Visit>
    std::uint32_t collect_some(std::uint32_t limit, std::uint32_t& next, Visit&& visit) {
        const std::uint32_t begin = next < words(bits_) ? next : 0;
        next = 0;
        std::uint32_t found = collect_between(begin, words(bits_), limit, next, visit);
        if (found < limit && begin != 0) found += collect_between(0, begin, limit - found, next, visit);
        return found;
    }

private:
    /// The words [first, last). Where it stops at the limit, `next` is the word to go on with.
    template <class Visit>
    std::uint32_t collect_between(std::uint32_t first, std::uint32_t last, std::uint32_t limit, std::uint32_t& next, Visit&& visit) {
        std::uint32_t found = 0;
        for (std::uint32_t i = first / 64; i * 64 < last; ++i) {
            if (summary_[i].load(std::memory_order_relaxed) == 0) continue;
            std::uint64_t mine = ~std::uint64_t{0};
            if (i == first / 64) mine <<= first % 64;
            // Bits beyond the end are a hostile writer's: taken with the last word, or any() would be true for ever.
            if (last - i * 64 < 64 && last != words(bits_)) mine &= (std::uint64_t{1} << (last - i * 64)) - 1;
            std::uint64_t summary = mine == ~std::uint64_t{0} ? summary_[i].exchange(0, std::memory_order_seq_cst)
                                                              : summary_[i].fetch_and(~mine, std::memory_order_seq_cst) & mine;
            for (; summary != 0; summary &= summary - 1) {
                const std::uint32_t word = i * 64 + static_cast<std::uint32_t>(std::countr_zero(summary));
                if (word >= words(bits_)) break;
                if (found >= limit) {
                    summary_[i].fetch_or(summary, std::memory_order_seq_cst);
                    next = word;
                    return found;
                }
                std::uint64_t ready = words_[word].exchange(0, std::memory_order_seq_cst);
                while (ready != 0) {
                    const std::uint32_t index = word * 64 + static_cast<std::uint32_t>(std::countr_zero(ready));
                    ready &= ready - 1;
                    if (index >= bits_) continue;
                    ++found;
                    visit(index);
                }
            }
        }
        return found;
    }

    Word* summary_ = nullptr;
    Word* words_ = nullptr;
    std::uint32_t bits_ = 0;
};

/// A plain set of socket numbers (holders of a process, sockets watched by a queue, free records).
class SocketBitmap {
public:
    SocketBitmap() = default;
    SocketBitmap(Word* words, std::uint32_t bits) : words_(words), bits_(bits) {}

    bool test(std::uint32_t index) const {
        return ((words_[index / 64].load(std::memory_order_seq_cst) >> (index % 64)) & 1) != 0;
    }
    /// Returns whether it was set before.
    bool set(std::uint32_t index) {
        const std::uint64_t bit = std::uint64_t{1} << (index % 64);
        return (words_[index / 64].fetch_or(bit, std::memory_order_seq_cst) & bit) != 0;
    }
    /// Returns whether it was set before: of several callers exactly one gets true.
    bool clear(std::uint32_t index) {
        const std::uint64_t bit = std::uint64_t{1} << (index % 64);
        return (words_[index / 64].fetch_and(~bit, std::memory_order_seq_cst) & bit) != 0;
    }
    /// Calls visit(index) for every set bit, without clearing.
    template <class Visit>
    void for_each(Visit&& visit) const {
        for (std::uint32_t word = 0; word < ReadyBitmap::words(bits_); ++word) {
            std::uint64_t set = words_[word].load(std::memory_order_seq_cst);
            while (set != 0) {
                const std::uint32_t index = word * 64 + static_cast<std::uint32_t>(std::countr_zero(set));
                set &= set - 1;
                if (index < bits_) visit(index);
            }
        }
    }
    std::uint32_t bits() const { return bits_; }
    Word* words() { return words_; }

private:
    Word* words_ = nullptr;
    std::uint32_t bits_ = 0;
};

}  // namespace culvert::shm
