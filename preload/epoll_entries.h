// The entries of one epoll set: found by (descriptor, description), by description, by socket record, and the list of
// candidates.
//
//   hash(description) -> entry -> entry ...     by_record[record] -> entry -> entry ...     candidates: a ring, oldest first
//
// All links are indices into one array, so that it may grow. Not locked: the set's mutex guards it. A freed index goes to
// the end of the free list, so that an event that the kernel delivered late hardly ever meets a new entry.
#pragma once

#include <cstdint>

#include "preload/description.h"

namespace culvert::preload {

struct EpollEntry {
    Description* target = nullptr;  // null: free
    std::uint64_t data = 0;         // the application's
    std::uint32_t events = 0;       // the application's, flags included
    std::int32_t fd = -1;
    std::uint32_t record = 0;
    const Client* home = nullptr;   // whose segment `record` is in
    bool ours = false;              // watched by our queue
    bool in_kernel = false;         // registered in the kernel's instance
    bool armed = true;              // false: one-shot and spent
    bool candidate = false;
    std::uint32_t round = 0;        // of the look that last reported it from the kernel, and
    std::int32_t slot = 0;          // where in the list of events
    // Indices, -1: none.
    std::int32_t next_in_bucket = -1;
    std::int32_t next_of_record = -1;
    std::int32_t previous = -1, next = -1;  // among the candidates; `next` also among the free
};

class EpollEntries {
public:
    EpollEntries() = default;
    EpollEntries(const EpollEntries&) = delete;
    EpollEntries& operator=(const EpollEntries&) = delete;
    ~EpollEntries() { clear(); }

    /// Null: no such entry.
    EpollEntry* find(int fd, const Description& target) noexcept;
    /// A new entry for a pair that has none. Null: out of memory. Invalidates pointers to entries.
    EpollEntry* add(int fd, Description& target) noexcept;
    /// Takes the entry out of everything.
    void remove(EpollEntry& entry) noexcept;
    /// Forgets everything and frees the memory.
    void clear() noexcept;

    std::uint32_t size() const { return size_; }
    std::uint32_t index_of(const EpollEntry& entry) const { return static_cast<std::uint32_t>(&entry - entries_); }
    /// Null when `index` is not in use.
    EpollEntry* at(std::uint32_t index) {
        return index < capacity_ && entries_[index].target != nullptr ? &entries_[index] : nullptr;
    }
    /// Calls visit(entry) for every entry; the visitor may remove that entry.
    template <class Visit>
    void for_each(Visit&& visit) {
        for (std::uint32_t i = 0; i < used_; ++i)
            if (entries_[i].target != nullptr) visit(entries_[i]);
    }
    /// Calls visit(entry) for every entry of `target`; the visitor may remove that entry.
    template <class Visit>
    void for_each_of(const Description& target, Visit&& visit) {
        if (buckets_ == nullptr) return;
        for (std::int32_t i = buckets_[bucket(target)]; i >= 0;) {
            EpollEntry& entry = entries_[i];
            i = entry.next_in_bucket;
            if (entry.target == &target) visit(entry);
        }
    }

    /// Makes room for `records` socket records. False: out of memory.
    bool size_record_index(std::uint32_t records) noexcept;
    /// Links a Culvert entry to its record / unlinks it.
    void link_record(EpollEntry& entry) noexcept;
    void unlink_record(EpollEntry& entry) noexcept;
    bool has_record(std::uint32_t record) const { return record < records_ && by_record_[record] != 0; }
    /// Makes all entries of `record` candidates.
    void nominate_record(std::uint32_t record) noexcept {
        if (record >= records_) return;
        for (std::int32_t i = by_record_[record] - 1; i >= 0; i = entries_[i].next_of_record) nominate(entries_[i]);
    }

    // --- candidates ---------------------------------------------------------------------------------------------------
    /// Puts the entry at the end of the list, if it is not there already.
    void nominate(EpollEntry& entry) noexcept;
    void dismiss(EpollEntry& entry) noexcept;
    EpollEntry* oldest() { return first_ >= 0 ? &entries_[first_] : nullptr; }
    std::uint32_t candidates() const { return candidates_; }

private:
    std::uint32_t bucket(const Description& target) const {
        // Descriptions are some hundred bytes apart; the multiplier spreads the bits above that.
        const auto address = reinterpret_cast<std::uintptr_t>(&target);
        return static_cast<std::uint32_t>((address * 0x9E3779B97F4A7C15u) >> 32) & (bucket_count_ - 1);
    }
    bool grow() noexcept;

    EpollEntry* entries_ = nullptr;
    std::uint32_t capacity_ = 0;
    std::uint32_t used_ = 0;  // entries ever used
    std::uint32_t size_ = 0;
    std::int32_t free_first_ = -1, free_last_ = -1;
    std::int32_t* buckets_ = nullptr;
    std::uint32_t bucket_count_ = 0;  // a power of two
    std::int32_t* by_record_ = nullptr;  // index + 1, so that zeroed memory is empty
    std::uint32_t records_ = 0;
    std::int32_t first_ = -1, last_ = -1;
    std::uint32_t candidates_ = 0;
};

}  // namespace culvert::preload
