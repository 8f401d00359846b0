#include "preload/epoll_entries.h"

#include <cstdlib>
#include <new>

namespace culvert::preload {

EpollEntry* EpollEntries::find(int fd, const Description& target) noexcept {
    if (buckets_ == nullptr) return nullptr;
    for (std::int32_t i = buckets_[bucket(target)]; i >= 0; i = entries_[i].next_in_bucket)
        if (entries_[i].target == &target && entries_[i].fd == fd) return &entries_[i];
    return nullptr;
}

// Doubles the array and rebuilds the hash, one bucket an entry.
bool EpollEntries::grow() noexcept {
    const std::uint32_t capacity = capacity_ == 0 ? 16 : capacity_ * 2;
    auto* entries = static_cast<EpollEntry*>(std::realloc(static_cast<void*>(entries_), capacity * sizeof(EpollEntry)));
    if (entries == nullptr) return false;
    entries_ = entries;
    auto* buckets = static_cast<std::int32_t*>(std::malloc(capacity * sizeof(std::int32_t)));
    if (buckets == nullptr) return false;
    std::free(buckets_);
    buckets_ = buckets;
    bucket_count_ = capacity;
    for (std::uint32_t i = capacity_; i < capacity; ++i) new (&entries_[i]) EpollEntry();
    capacity_ = capacity;
    for (std::uint32_t i = 0; i < bucket_count_; ++i) buckets_[i] = -1;
    for (std::uint32_t i = 0; i < used_; ++i) {
        if (entries_[i].target == nullptr) continue;
        std::int32_t& head = buckets_[bucket(*entries_[i].target)];
        entries_[i].next_in_bucket = head;
        head = static_cast<std::int32_t>(i);
    }
    return true;
}

EpollEntry* EpollEntries::add(int fd, Description& target) noexcept {
    if (size_ == capacity_ && !grow()) return nullptr;
    std::int32_t index;
    if (used_ < capacity_) {
        index = static_cast<std::int32_t>(used_++);
    } else {
        index = free_first_;
        free_first_ = entries_[index].next;
        if (free_first_ < 0) free_last_ = -1;
    }
    EpollEntry& entry = entries_[index];
    entry = EpollEntry();
    entry.fd = fd;
    entry.target = &target;
    std::int32_t& head = buckets_[bucket(target)];
    entry.next_in_bucket = head;
    head = index;
    ++size_;
    return &entry;
}

void EpollEntries::remove(EpollEntry& entry) noexcept {
    const auto index = static_cast<std::int32_t>(index_of(entry));
    dismiss(entry);
    unlink_record(entry);
    for (std::int32_t* link = &buckets_[bucket(*entry.target)]; *link >= 0; link = &entries_[*link].next_in_bucket) {
        if (*link != index) continue;
        *link = entry.next_in_bucket;
        break;
    }
    entry.target = nullptr;
    entry.next = -1;
    if (free_last_ >= 0)
        entries_[free_last_].next = index;
    else
        free_first_ = index;
    free_last_ = index;
    --size_;
}

void EpollEntries::clear() noexcept {
    std::free(entries_);
    std::free(buckets_);
    std::free(by_record_);
    entries_ = nullptr;
    buckets_ = nullptr;
    by_record_ = nullptr;
    capacity_ = used_ = size_ = bucket_count_ = records_ = candidates_ = 0;
    free_first_ = free_last_ = first_ = last_ = -1;
}

bool EpollEntries::size_record_index(std::uint32_t records) noexcept {
    if (records <= records_) return true;
    auto* by_record = static_cast<std::int32_t*>(std::calloc(records, sizeof(std::int32_t)));
    if (by_record == nullptr) return false;
    for (std::uint32_t i = 0; i < records_; ++i) by_record[i] = by_record_[i];
    std::free(by_record_);
    by_record_ = by_record;
    records_ = records;
    return true;
}

void EpollEntries::link_record(EpollEntry& entry) noexcept {
    if (entry.record >= records_) return;
    entry.next_of_record = by_record_[entry.record] - 1;
    by_record_[entry.record] = static_cast<std::int32_t>(index_of(entry)) + 1;
}

void EpollEntries::unlink_record(EpollEntry& entry) noexcept {
    if (!entry.ours || entry.record >= records_) return;
    const auto index = static_cast<std::int32_t>(index_of(entry));
    std::int32_t at = by_record_[entry.record] - 1;
    if (at == index) {
        by_record_[entry.record] = entry.next_of_record + 1;
        return;
    }
    for (; at >= 0; at = entries_[at].next_of_record) {
        if (entries_[at].next_of_record != index) continue;
        entries_[at].next_of_record = entry.next_of_record;
        return;
    }
}

void EpollEntries::nominate(EpollEntry& entry) noexcept {
    if (entry.candidate) return;
    const auto index = static_cast<std::int32_t>(index_of(entry));
    entry.candidate = true;
    entry.previous = last_;
    entry.next = -1;
    if (last_ >= 0)
        entries_[last_].next = index;
    else
        first_ = index;
    last_ = index;
    ++candidates_;
}

void EpollEntries::dismiss(EpollEntry& entry) noexcept {
    if (!entry.candidate) return;
    entry.candidate = false;
    if (entry.previous >= 0)
        entries_[entry.previous].next = entry.next;
    else
        first_ = entry.next;
    if (entry.next >= 0)
        entries_[entry.next].previous = entry.previous;
    else
        last_ = entry.previous;
    --candidates_;
}

}  // namespace culvert::preload
