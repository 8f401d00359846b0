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
        std::uint32_t found = 0;
        for (std::uint32_t i = 0; i < summary_words(bits_); ++i) {
            if (summary_[i].load(std::memory_order_relaxed) == 0) continue;
            std::uint64_t summary = summary_[i].exchange(0, std::memory_order_seq_cst);
            while (summary != 0) {
                const std::uint32_t word = i * 64 + static_cast<std::uint32_t>(std::countr_zero(summary));
                summary &= summary - 1;
                if (word >= words(bits_)) continue;
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

private:
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
