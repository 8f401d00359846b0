// A small lock inside one process: constant-initialised, malloc-free, held for a few instructions.
//
// It knows its owner. A signal handler may interrupt the holder and come back here in the same thread (it closes a socket, it
// forks): it would wait for itself. It gets in instead, as a nested holder, so what is done under the lock must stand an
// interruption by itself: single atomic steps on independent bits. What is not made so needs SignalsOff, or no lock.
//
// Fork takes it first (fork.cc), so a child never inherits it locked by a thread that it does not have.
#pragma once

#include <atomic>
#include <cstdint>

#include "preload/confined.h"

namespace culvert::preload {

/// The same for all calls of one thread, different for two that live at the same time. No system call.
inline std::uintptr_t this_thread() noexcept { return reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer()); }

class SpinLock {
public:
    /// False: this thread holds it already, and must not unlock it now.
    bool lock() noexcept {
        const std::uintptr_t me = this_thread();
        for (;;) {
            std::uintptr_t owner = 0;
            if (owner_.compare_exchange_weak(owner, me, std::memory_order_acquire, std::memory_order_relaxed)) return true;
            if (owner == me) return false;
            if (owner != 0) yield_core();
        }
    }
    void unlock() noexcept { owner_.store(0, std::memory_order_release); }

private:
    std::atomic<std::uintptr_t> owner_{0};
};

class SpinGuard {
public:
    explicit SpinGuard(SpinLock& lock) noexcept : lock_(lock), outermost_(lock_.lock()) {}
    ~SpinGuard() {
        if (outermost_) lock_.unlock();
    }
    SpinGuard(const SpinGuard&) = delete;
    SpinGuard& operator=(const SpinGuard&) = delete;

private:
    SpinLock& lock_;
    const bool outermost_;
};

}  // namespace culvert::preload
