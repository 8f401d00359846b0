// What the source files of EpollSet share.
#pragma once

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "preload/epoll_set.h"
#include "preload/libc.h"
#include "preload/shared_set.h"

namespace culvert::preload {

/// Sets that somebody polls, or has in a set of his own.
inline constinit std::atomic<int> pollable_sets{0};

inline constexpr std::uint32_t kAlways = EPOLLERR | EPOLLHUP;
inline constexpr std::uint32_t kFlags = EPOLLET | EPOLLONESHOT | EPOLLEXCLUSIVE | EPOLLWAKEUP;
// What Linux allows together with EPOLLEXCLUSIVE.
inline constexpr std::uint32_t kWithExclusive =
    EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE;
// A set that got no event queue (the daemon's table is full) looks for itself this often.
inline constexpr std::int64_t kWithoutQueueNs = 1'000'000;

/// Private event data: addresses inside a range that nobody can have a pointer into. The first two are the queue's
/// eventfd and the control connection; the others number the entries that are in the kernel's instance too.
inline constexpr std::uint64_t kPrivateRange = 1u << 21;
inline constexpr std::uint64_t kQueueOffset = 0;
inline constexpr std::uint64_t kControlOffset = 1;
inline constexpr std::uint64_t kEntryOffset = 2;

inline std::uint64_t private_base() noexcept {
    static std::atomic<std::uint64_t> base{0};
    std::uint64_t known = base.load(std::memory_order_acquire);
    if (known != 0) return known;
    void* range = ::mmap(nullptr, kPrivateRange, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) return 0;
    const auto fresh = reinterpret_cast<std::uint64_t>(range);
    if (base.compare_exchange_strong(known, fresh, std::memory_order_acq_rel)) return fresh;
    ::munmap(range, kPrivateRange);
    return known;
}

inline int fail_with(int error) noexcept {
    errno = error;
    return -1;
}

inline std::int64_t to_ns(const timespec& time) { return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec; }

/// For a rare case that must know what a wait has taken: for a few nanoseconds, a tick late at most.
inline std::int64_t coarse_ns() noexcept {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return to_ns(now);
}

/// epoll_pwait2 through libc (a cancellation point), or with milliseconds where kernel or libc lack it.
inline int kernel_wait(int epoll_fd, epoll_event* events, int max_events, std::int64_t timeout_ns, const sigset_t* mask) {
    static std::atomic<bool> lacks_pwait2{false};
    if (timeout_ns > 0 && timeout_ns % 1'000'000 != 0 && libc::epoll_pwait2.get() != nullptr &&
        !lacks_pwait2.load(std::memory_order_relaxed)) {
        const timespec timeout{timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
        const int count = libc::epoll_pwait2.get()(epoll_fd, events, max_events, &timeout, mask);
        if (count >= 0 || (errno != ENOSYS && errno != EPERM)) return count;
        lacks_pwait2.store(true, std::memory_order_relaxed);
    }
    const std::int64_t ms = timeout_ns < 0 ? -1 : std::min<std::int64_t>((timeout_ns + 999'999) / 1'000'000, INT32_MAX);
    if (mask == nullptr) return libc::epoll_wait.get()(epoll_fd, events, max_events, static_cast<int>(ms));
    return libc::epoll_pwait.get()(epoll_fd, events, max_events, static_cast<int>(ms), mask);
}

/// IN implies RDNORM, OUT implies WRNORM, for those who ask for the long names.
inline std::uint32_t with_aliases(std::uint32_t mask) {
    if ((mask & EPOLLIN) != 0) mask |= EPOLLRDNORM;
    if ((mask & EPOLLOUT) != 0) mask |= EPOLLWRNORM;
    return mask;
}

/// What the kernel's half of a Culvert socket is asked for: room to send is known on our side alone.
inline std::uint32_t kernel_half(std::uint32_t events) { return events & ~std::uint32_t{EPOLLOUT | EPOLLWRNORM}; }

/// Knows who holds it: a signal handler that interrupts the holder must not wait for it (is_mine(): it leaves word instead,
/// defer()). Told by a list of the thread's own, written before the mutex is asked for, so there is no moment in between.
class EpollSet::Lock {
public:
    explicit Lock(EpollSet& set) : set_(set), outer_(innermost) {
        innermost = this;
        ::pthread_mutex_lock(&set_.mutex_);
        family_ = set_.family_;
        if (family_ != nullptr) [[unlikely]]
            family_->lock();
    }
    ~Lock() {
        if (set_.deferred_.load(std::memory_order_relaxed)) [[unlikely]]
            set_.do_deferred();
        if (family_ != nullptr) [[unlikely]]
            family_->unlock();
        ::pthread_mutex_unlock(&set_.mutex_);
        innermost = outer_;
    }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;

    static bool is_mine(const EpollSet& set) noexcept {
        for (const Lock* lock = innermost; lock != nullptr; lock = lock->outer_)
            if (&lock->set_ == &set) return true;
        return false;
    }
    /// In the child of a fork, where the calls that a handler has interrupted are never gone on with.
    static void forget_all() noexcept { innermost = nullptr; }

private:
    [[gnu::tls_model("initial-exec")]] static inline thread_local constinit Lock* innermost = nullptr;

    EpollSet& set_;
    Lock* const outer_;
    SharedSet* family_ = nullptr;  // as it was: the set may leave it
};

/// All sets ever made: for fork, and to find the entries of a description.
struct EpollSets {
    static std::atomic<EpollSet*>& first() {
        static std::atomic<EpollSet*> head{nullptr};
        return head;
    }
    template <class Visit>
    static void for_each(Visit&& visit) {
        for (EpollSet* set = first().load(std::memory_order_acquire); set != nullptr; set = set->next_set_) visit(*set);
    }
};

/// Takes the private events out of what the kernel has reported, and returns how many events are left. Those of entries are put into
/// the application's terms by tell(index, place, event); false: it hears nothing of this one.
template <class Tell>
int EpollSet::sift(epoll_event* events, int count, Seen& seen, Tell&& tell) noexcept {
    const std::uint64_t base = private_base();
    int kept = 0;
    for (int i = 0; i < count; ++i) {
        epoll_event event = events[i];
        const std::uint64_t offset = event.data.u64 - base;
        if (offset < kEntryOffset) {
            seen.private_event = true;
            if (offset == kControlOffset && client_ != nullptr) client_->check_daemon();
            continue;
        }
        if (offset >= kPrivateRange || tell(static_cast<std::uint32_t>(offset - kEntryOffset), kept, event)) events[kept++] = event;
    }
    return kept;
}

}  // namespace culvert::preload
