#include "preload/fd_table.h"

namespace culvert::preload {

namespace {

/// One bit a descriptor: ours, the application must not close it. In .bss, so untouched pages cost nothing.
constinit std::atomic<std::uint64_t> protected_bits[(1u << 20) / 64] = {};

void drop_reference(Description& description) noexcept {
    if (description.references.fetch_sub(1, std::memory_order_acq_rel) == 1) description.dispose();
}

/// Counts one reference in, unless the description has none any more (it lies in its pool, or is being made again).
bool add_reference(Description& description) noexcept {
    std::uint32_t count = description.references.load(std::memory_order_relaxed);
    while (count != 0)
        if (description.references.compare_exchange_weak(count, count + 1, std::memory_order_acquire,
                                                         std::memory_order_relaxed))
            return true;
    return false;
}

void drop_descriptor(Description& description) noexcept {
    if (description.descriptors.fetch_sub(1, std::memory_order_acq_rel) == 1) description.on_last_close();
    drop_reference(description);
}

}  // namespace

DescriptionRef::~DescriptionRef() {
    if (description_ != nullptr) drop_reference(*description_);
}

FdTable& FdTable::instance() noexcept {
    static constinit FdTable table;
    return table;
}

DescriptionRef FdTable::find(int fd) noexcept {
    if (static_cast<unsigned>(fd) >= kMaxDescriptors) return {};
    for (;;) {
        Description* description = slots_[fd].load(std::memory_order_acquire);
        if (description == nullptr) return {};
        if (!add_reference(*description)) continue;  // just closed: the slot changes in a moment
        if (slots_[fd].load(std::memory_order_acquire) == description) return DescriptionRef(description);
        drop_reference(*description);
    }
}

void FdTable::insert(int fd, Description& description) noexcept {
    if (static_cast<unsigned>(fd) >= kMaxDescriptors) return;
    description.references.fetch_add(1, std::memory_order_relaxed);
    description.descriptors.fetch_add(1, std::memory_order_relaxed);
    std::uint32_t used = used_.load(std::memory_order_relaxed);
    const auto needed = static_cast<std::uint32_t>(fd) + 1;
    while (used < needed && !used_.compare_exchange_weak(used, needed, std::memory_order_relaxed)) {
    }
    if (Description* old = slots_[fd].exchange(&description, std::memory_order_acq_rel)) drop_descriptor(*old);
}

void FdTable::remove(int fd) noexcept {
    if (!contains(fd)) return;
    if (Description* old = slots_[fd].exchange(nullptr, std::memory_order_acq_rel)) drop_descriptor(*old);
}

bool FdTable::is_protected(int fd) const noexcept {
    if (static_cast<unsigned>(fd) >= kMaxDescriptors) return false;
    return ((protected_bits[fd / 64].load(std::memory_order_relaxed) >> (fd % 64)) & 1) != 0;
}

void FdTable::protect(int fd) noexcept {
    if (static_cast<unsigned>(fd) < kMaxDescriptors)
        protected_bits[fd / 64].fetch_or(std::uint64_t{1} << (fd % 64), std::memory_order_relaxed);
}

void FdTable::unprotect(int fd) noexcept {
    if (static_cast<unsigned>(fd) < kMaxDescriptors)
        protected_bits[fd / 64].fetch_and(~(std::uint64_t{1} << (fd % 64)), std::memory_order_relaxed);
}

}  // namespace culvert::preload
