// Sleep and wake-up without a lost signal: both directions, one protocol (Dekker).
//
//   sleeper                              poster
//   1 announce: asleep = 1               1 publish the work (seq_cst store or RMW)
//   2 look at the work once more         2 look at asleep
//   3 nothing: wait for the eventfd      3 asleep: take it to 0, write the eventfd
//     something: asleep = 0, go on
//
// Whichever of the two first steps comes first in the total order of seq_cst operations, the other side's second step
// sees it: either the sleeper finds the work, or the poster finds the sleeper. Several posters: exchange lets one write.
#pragma once

#include <atomic>
#include <cstdint>

namespace culvert::shm {

/// Sleeper, step 1. Step 2 must follow before waiting.
inline void announce_sleep(std::atomic<std::uint32_t>& asleep) { asleep.store(1, std::memory_order_seq_cst); }

/// Sleeper, after waking or when step 2 found something.
inline void cancel_sleep(std::atomic<std::uint32_t>& asleep) { asleep.store(0, std::memory_order_relaxed); }

/// Poster, steps 2 and 3: true if the caller must signal the eventfd now.
inline bool must_wake(std::atomic<std::uint32_t>& asleep) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (asleep.load(std::memory_order_seq_cst) == 0) return false;
    return asleep.exchange(0, std::memory_order_seq_cst) != 0;
}

/// Adds 1 to an eventfd by a raw system call (never through libc, which the shim interposes). Keeps errno.
void signal_eventfd(int fd) noexcept;

/// Waits while *word == expected, across processes (std::atomic::wait is process-private). timeout_ns < 0: forever.
/// Returns 0 (woken or changed), EINTR or ETIMEDOUT.
int futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t expected, std::int64_t timeout_ns) noexcept;
void futex_wake_all(std::atomic<std::uint32_t>& word) noexcept;

}  // namespace culvert::shm
