// Waiting for news of one socket: look, spin, then sleep on the record's futex word.
//
//   waiter                                   daemon (Tenant::notify)
//   1 waiters + 1                            1 publish
//   2 read event_sequence                    2 fence
//   3 look                                   3 waiters != 0: event_sequence + 1, wake
//   4 sleep while event_sequence is as read
//
// Sleeps come in slices, after each of which the control connection is looked at, so nobody outlives the daemon asleep.
// EINTR follows signal(7): without a timeout of the application's a call restarts after a handler with SA_RESTART; with
// SO_RCVTIMEO or SO_SNDTIMEO it always fails.
#pragma once

#include <cerrno>
#include <cstdint>

#include "preload/cancel.h"
#include "preload/client.h"
#include "preload/libc.h"
#include "preload/wait.h"
#include "shm/socket_record.h"

namespace culvert::preload {

inline constexpr std::int64_t kSliceNs = 500'000'000;

/// Sleeps while `word` is `expected`, at most until `wake_at_ns` (monotonic). Returns 0, ETIMEDOUT or EINTR; restarts after
/// a handler with SA_RESTART if `restartable`.
int sleep_on(std::atomic<std::uint32_t>& word, std::uint32_t expected, std::int64_t wake_at_ns,
             bool restartable) noexcept;

/// Waits until ready() is true. Returns 0, EAGAIN (timeout_ns < 0: never), EINTR, or, if `may_cancel`, ECANCELED (cancel.h).
/// ready() must be true once the daemon is gone.
template <class Ready>
int wait_for(Client& client, shm::SocketRecord& record, SpinHistory& history, std::int64_t timeout_ns, Ready&& ready,
             bool may_cancel = false) noexcept {
    const std::int64_t deadline = timeout_ns >= 0 ? now_ns() + timeout_ns : INT64_MAX;
    SpinWait spin(history, client.spin_us());
    do {
        if (ready()) {
            spin.found();
            return 0;
        }
    } while (spin.again());

    record.app.waiters.fetch_add(1, std::memory_order_seq_cst);
    int result = 0;
    for (;;) {
        const std::uint32_t seen = record.daemon.event_sequence.load(std::memory_order_seq_cst);
        if (ready()) break;
        if (may_cancel && cancel_asked()) [[unlikely]] {
            result = ECANCELED;
            break;
        }
        const std::int64_t now = now_ns();
        if (now >= deadline) {
            result = EAGAIN;
            break;
        }
        const std::int64_t slice = now + kSliceNs < deadline ? now + kSliceNs : deadline;
        const int woken = sleep_on(record.daemon.event_sequence, seen, slice, timeout_ns < 0);
        if (woken == EINTR) {
            result = ready() ? 0 : EINTR;
            break;
        }
        if (woken == ETIMEDOUT) client.check_daemon();
    }
    record.app.waiters.fetch_sub(1, std::memory_order_seq_cst);
    return result;
}

/// After EINTR of a wait that the kernel never restarts (ppoll): true if every handler of this process asks for restarts.
bool handlers_restart() noexcept;

}  // namespace culvert::preload
