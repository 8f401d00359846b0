// What the processes of a family know together of an epoll set that was there before they forked: its Culvert sockets, in memory
// that all of them map. epoll_family.cc has the story.
//
//   header (lock, state, queue) | entries, by number | heads, by record: chains of entries | touched, a bit an entry
//
// Anybody may be killed at any moment. The lock is a robust one; whoever gets it from the dead puts the chains in order again, from the
// entries alone, and has everything looked at.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>

#include "shm/segment.h"

namespace culvert::preload {

struct SharedEntry {
    std::uint64_t data;  // the application's
    std::uint32_t record;
    std::uint32_t generation;  // of the record: another one means that the socket is gone, and so is the entry
    std::uint32_t events;      // the application's, flags included
    std::int32_t fd;           // as the one called it who added it: part of the key, as on Linux
    std::uint32_t next;        // of the same record, or free: index + 1
    std::uint32_t again;       // to be looked at again (index + 1), while one looks
    std::uint32_t round;       // of the look that has reported it from the kernel
    std::int32_t slot;         // where in the list of events
    std::int32_t low_water;    // SO_RCVLOWAT, for those who do not hold the socket
    bool used;
    bool armed;
    bool in_kernel;  // its kernel's half is in the kernel's instance
    bool plain;      // ... under the application's own data: the daemon has gone, and it is the kernel's
    std::uint8_t path;  // Socket::Path
    std::uint8_t type;  // SOCK_*
};

class SharedSet {
public:
    static constexpr std::uint32_t kMostEntries = 65536;
    enum State : std::uint32_t {
        kIdle,    // one process uses the set, with its own tables, and notes here what it changes
        kActive,  // the entries are here
    };

    /// Null: no memory. `records`: of the segment.
    static SharedSet* create(std::uint32_t records) noexcept;
    static void destroy(SharedSet* set) noexcept;

    /// Idle and empty; nobody else looks at it.
    void begin(std::uint32_t slot, std::uint32_t pid, std::uint32_t queue, bool pollable) noexcept;
    /// Robust; if its last holder has died, everything is put in order, and `look_at_all` set.
    void lock() noexcept;
    void unlock() noexcept { ::pthread_mutex_unlock(&mutex_); }

    void add_member(std::uint32_t slot) noexcept { members_[slot / 64].fetch_or(std::uint64_t{1} << (slot % 64)); }
    void remove_member(std::uint32_t slot) noexcept { members_[slot / 64].fetch_and(~(std::uint64_t{1} << (slot % 64))); }
    bool has_others(shm::Segment& segment, std::uint32_t slot) const noexcept;

    SharedEntry& entry(std::uint32_t index) noexcept { return entries_[index]; }
    std::uint32_t end() const noexcept { return end_; }
    /// While idle: the entry is what its maker says, whatever the copies of others say.
    void touch(std::uint32_t index) noexcept;
    bool is_touched(std::uint32_t index) const noexcept;

    // Once active.
    /// Links everything, and makes it active.
    void activate() noexcept;
    /// kNoIndex: none; full.
    std::uint32_t find(std::int32_t fd, std::uint32_t record, std::uint32_t generation) noexcept;
    std::uint32_t add(std::uint32_t record) noexcept;
    void remove(std::uint32_t index) noexcept;
    bool has_record(std::uint32_t record) const noexcept { return record < records_ && heads()[record] != 0; }
    /// Calls visit(index) for each entry of `record`; the visitor may remove that entry.
    template <class Visit>
    void for_each_of(std::uint32_t record, Visit&& visit) noexcept {
        if (record >= records_) return;
        for (std::uint32_t at = heads()[record]; at != 0 && at <= kMostEntries;) {
            const std::uint32_t index = at - 1;
            at = entries_[index].next;
            visit(index);
        }
    }

    State state = kIdle;
    bool pollable = false;
    bool look_at_all = false;
    std::uint32_t maker_slot = 0, maker_pid = 0;  // who the daemon thinks has the queue
    std::uint32_t queue = shm::kNoIndex;
    std::uint32_t round = 0;
    std::uint32_t cursor = 0;                  // of the queue's bits: none waits for ever

private:
    SharedSet() = default;
    std::uint32_t* heads() noexcept { return reinterpret_cast<std::uint32_t*>(entries_ + kMostEntries); }
    const std::uint32_t* heads() const noexcept { return reinterpret_cast<const std::uint32_t*>(entries_ + kMostEntries); }
    void link_all() noexcept;

    pthread_mutex_t mutex_;
    std::uint32_t records_ = 0;
    std::uint32_t end_ = 0;   // entries ever used
    std::uint32_t free_ = 0;  // index + 1
    std::atomic<std::uint64_t> members_[shm::kMaxProcesses / 64] = {};
    std::uint64_t touched_[kMostEntries / 64] = {};
    SharedEntry entries_[];
};

}  // namespace culvert::preload
