// Which descriptor is whose: one pointer a descriptor, null for the kernel's.
//
// Looked up by every interposed call, so a kernel descriptor costs one bounds check and one load. The array is zeroes in .bss: no
// constructor, since an allocator that is preloaded beside us opens and reads files before anybody's constructors ran, and untouched
// pages cost nothing.
#pragma once

#include <atomic>
#include <cstdint>

#include "preload/description.h"

namespace culvert::preload {

/// A counted reference to a Description during one call. Empty: not ours.
class DescriptionRef {
public:
    DescriptionRef() = default;
    explicit DescriptionRef(Description* description) : description_(description) {}
    DescriptionRef(DescriptionRef&& other) noexcept : description_(other.description_) { other.description_ = nullptr; }
    DescriptionRef& operator=(DescriptionRef&&) = delete;
    ~DescriptionRef();
    explicit operator bool() const { return description_ != nullptr; }
    Description* operator->() const { return description_; }
    Description* get() const { return description_; }

private:
    Description* description_ = nullptr;
};

class FdTable {
public:
    /// The process's one table; usable before main and before constructors.
    static FdTable& instance() noexcept;

    /// True if the descriptor is not the kernel's alone. The hot path of every interposed call.
    bool contains(int fd) const noexcept {
        return peek(fd) != nullptr;
    }
    /// What is behind `fd` at this moment, without a reference: type-stable, but perhaps closed already and another's. Or null.
    const Description* peek(int fd) const noexcept {
        return static_cast<unsigned>(fd) < kMaxDescriptors ? slots_[fd].load(std::memory_order_acquire) : nullptr;
    }
    /// True if `calls` on the descriptor are not simply libc's.
    bool concerns(int fd, Description::Passes calls) const noexcept {
        const Description* const description = peek(fd);
        return description != nullptr && !description->passes(calls);
    }
    /// The description behind `fd`, kept alive until the reference goes.
    DescriptionRef find(int fd) noexcept;
    /// Puts `description` behind `fd` (one more descriptor). What was there before is dropped as by close.
    void insert(int fd, Description& description) noexcept;
    /// Takes `fd` out; calls on_last_close when it was the last descriptor. The kernel descriptor is not touched.
    void remove(int fd) noexcept;
    /// Calls visit(fd, description) for every entry (fork, exec, close_range).
    template <class Visit>
    void for_each(Visit&& visit) noexcept {
        for (std::uint32_t fd = 0; fd < used_.load(std::memory_order_relaxed); ++fd)
            if (Description* description = slots_[fd].load(std::memory_order_acquire)) visit(static_cast<int>(fd), *description);
    }

    /// Descriptors of the shim itself (control connection, eventfds, segment): the application must not close them.
    /// close() on one says EBADF, dup2() onto one first moves it away.
    bool is_protected(int fd) const noexcept;
    void protect(int fd) noexcept;
    void unprotect(int fd) noexcept;

private:
    constexpr FdTable() noexcept = default;

    static constexpr std::uint32_t kMaxDescriptors = 1u << 20;  // the kernel's default for fs.nr_open

    std::atomic<std::uint32_t> used_{0};  // highest entry ever used + 1
    std::atomic<Description*> slots_[kMaxDescriptors] = {};
};

}  // namespace culvert::preload
