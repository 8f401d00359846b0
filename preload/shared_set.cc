#include "preload/shared_set.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <new>

namespace culvert::preload {

namespace {
std::size_t bytes_for(std::uint32_t records) noexcept {
    return sizeof(SharedSet) + SharedSet::kMostEntries * sizeof(SharedEntry) + records * sizeof(std::uint32_t);
}
}  // namespace

SharedSet* SharedSet::create(std::uint32_t records) noexcept {
    void* const memory =
        ::mmap(nullptr, bytes_for(records), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    auto* const set = ::new (memory) SharedSet();
    set->records_ = records;
    pthread_mutexattr_t attributes;
    ::pthread_mutexattr_init(&attributes);
    ::pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    ::pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    ::pthread_mutex_init(&set->mutex_, &attributes);
    ::pthread_mutexattr_destroy(&attributes);
    return set;
}

void SharedSet::destroy(SharedSet* set) noexcept {
    if (set != nullptr) ::munmap(static_cast<void*>(set), bytes_for(set->records_));
}

void SharedSet::begin(std::uint32_t slot, std::uint32_t pid, std::uint32_t its_queue, bool is_pollable) noexcept {
    for (std::uint32_t index = 0; index < end_; ++index) entries_[index].used = false;
    if (state == kActive) std::memset(heads(), 0, records_ * sizeof(std::uint32_t));
    std::memset(touched_, 0, sizeof touched_);
    for (std::atomic<std::uint64_t>& word : members_) word.store(0, std::memory_order_relaxed);
    add_member(slot);
    state = kIdle;
    end_ = free_ = 0;
    maker_slot = slot;
    maker_pid = pid;
    queue = its_queue;
    pollable = is_pollable;
    look_at_all = false;
}

void SharedSet::lock() noexcept {
    if (::pthread_mutex_lock(&mutex_) != EOWNERDEAD) return;
    ::pthread_mutex_consistent(&mutex_);
    if (state == kActive) link_all();
    look_at_all = true;
}

bool SharedSet::has_others(shm::Segment& segment, std::uint32_t slot) const noexcept {
    const std::uint32_t processes = segment.geometry().processes;
    for (std::uint32_t word = 0; word * 64 < processes; ++word)
        for (std::uint64_t bits = members_[word].load(std::memory_order_acquire); bits != 0; bits &= bits - 1) {
            const std::uint32_t member = word * 64 + static_cast<std::uint32_t>(std::countr_zero(bits));
            if (member != slot && member < processes && segment.process(member).live.load(std::memory_order_acquire) != 0) return true;
        }
    return false;
}

void SharedSet::touch(std::uint32_t index) noexcept {
    touched_[index / 64] |= std::uint64_t{1} << (index % 64);
    end_ = std::max(end_, index + 1);
}

bool SharedSet::is_touched(std::uint32_t index) const noexcept { return (touched_[index / 64] >> (index % 64) & 1) != 0; }

void SharedSet::link_all() noexcept {
    std::memset(heads(), 0, records_ * sizeof(std::uint32_t));
    free_ = 0;
    for (std::uint32_t index = std::min(end_, kMostEntries); index-- > 0;) {
        SharedEntry& entry = entries_[index];
        if (entry.used && entry.record >= records_) entry.used = false;
        std::uint32_t& head = entry.used ? heads()[entry.record] : free_;
        entry.next = head;
        head = index + 1;
    }
}

void SharedSet::activate() noexcept {
    link_all();
    state = kActive;
}

std::uint32_t SharedSet::find(std::int32_t fd, std::uint32_t record, std::uint32_t generation) noexcept {
    std::uint32_t found = shm::kNoIndex;
    for_each_of(record, [&](std::uint32_t index) {
        const SharedEntry& entry = entries_[index];
        if (entry.fd == fd && entry.generation == generation) found = index;
    });
    return found;
}

std::uint32_t SharedSet::add(std::uint32_t record) noexcept {
    if (record >= records_) return shm::kNoIndex;
    std::uint32_t index = free_ - 1;
    if (free_ != 0) {
        free_ = entries_[index].next;
    } else {
        if (end_ == kMostEntries) return shm::kNoIndex;
        index = end_++;
    }
    entries_[index] = {};
    entries_[index].record = record;
    entries_[index].next = heads()[record];
    heads()[record] = index + 1;
    entries_[index].used = true;
    return index;
}

void SharedSet::remove(std::uint32_t index) noexcept {
    SharedEntry& entry = entries_[index];
    for (std::uint32_t* link = &heads()[entry.record]; *link != 0; link = &entries_[*link - 1].next)
        if (*link == index + 1) {
            *link = entry.next;
            break;
        }
    entry.used = false;
    entry.next = free_;
    free_ = index + 1;
}

}  // namespace culvert::preload
