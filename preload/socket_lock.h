// The lock of one side of a socket, shared between threads and forked processes.
//
//   word    0: free     process slot + 1: held by a thread of that process
//
// Held for the time of some copies, never while waiting. The daemon takes it from a process that has died. There is no
// room for a waiter's mark in the word (the daemon compares it with the slot), so a waiter that has yielded in vain naps
// on the futex for a millisecond at a time.
#pragma once

#include <atomic>
#include <cstdint>

#include "preload/client.h"
#include "preload/confined.h"
#include "shm/wakeup.h"

namespace culvert::preload {

class SocketLock {
public:
    SocketLock(Client& client, std::atomic<std::uint32_t>& word) noexcept : word_(word) {
        const std::uint32_t mine = client.process_slot() + 1;
        std::uint32_t held = 0;
        if (word_.compare_exchange_strong(held, mine, std::memory_order_acquire, std::memory_order_relaxed)) return;
        wait(client, mine);
    }
    ~SocketLock() { word_.store(0, std::memory_order_release); }
    SocketLock(const SocketLock&) = delete;
    SocketLock& operator=(const SocketLock&) = delete;

private:
    void wait(Client& client, std::uint32_t mine) noexcept {
        constexpr int kYields = 64;
        constexpr int kNapsForTheDead = 100;
        for (int round = 0;; ++round) {
            std::uint32_t held = 0;
            if (word_.compare_exchange_weak(held, mine, std::memory_order_acquire, std::memory_order_relaxed)) return;
            if (round < kYields)
                yield_core();
            else
                shm::futex_wait(word_, held, 1'000'000);
            // Nobody is left who would free a dead process's lock.
            if (round > kYields + kNapsForTheDead && client.daemon_gone()) {
                word_.store(mine, std::memory_order_relaxed);
                return;
            }
        }
    }

    std::atomic<std::uint32_t>& word_;
};

}  // namespace culvert::preload
