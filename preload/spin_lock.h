// A small lock inside one process: constant-initialised, malloc-free, held for a few instructions.
// Fork takes it first (fork.cc), so a child never inherits it locked by a thread that it does not have.
#pragma once

#include <sched.h>

#include <atomic>

namespace culvert::preload {

class SpinLock {
public:
    void lock() noexcept {
        while (locked_.exchange(true, std::memory_order_acquire)) ::sched_yield();
    }
    void unlock() noexcept { locked_.store(false, std::memory_order_release); }

private:
    std::atomic<bool> locked_{false};
};

class SpinGuard {
public:
    explicit SpinGuard(SpinLock& lock) noexcept : lock_(lock) { lock_.lock(); }
    ~SpinGuard() { lock_.unlock(); }
    SpinGuard(const SpinGuard&) = delete;
    SpinGuard& operator=(const SpinGuard&) = delete;

private:
    SpinLock& lock_;
};

}  // namespace culvert::preload
