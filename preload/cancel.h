// Cancelling a thread that sleeps in a call on a Culvert socket.
//
// Unwinding must not pass through the shim (its functions are noexcept, and hold references), so a sleeper is never cancelled
// where it sleeps. pthread_cancel() is interposed and counts; a thread that is about to sleep, or looks up from its sleep, returns
// ECANCELED to its shell in interpose_*.cc when the count has moved, and the shell tests for cancellation there: it is unwound from
// its outermost frame, or was not the one that was meant and makes its call again. Sleepers on a futex look up twice a second
// (waiting.h); those in ppoll hang up a bell, for their descriptor must not be let go of between two looks.
//
// The price for a program that cancels nobody: one load a call on a Culvert socket, two exchanges a sleep in ppoll.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdint>

namespace culvert::preload {

/// All pthread_cancel() of this process so far.
inline constinit std::atomic<std::uint32_t> cancel_requests{0};
/// Those of which this thread knows that they were not meant for it.
[[gnu::tls_model("initial-exec")]] inline thread_local constinit std::uint32_t cancels_seen = 0;

inline bool cancel_asked() noexcept { return cancel_requests.load(std::memory_order_seq_cst) != cancels_seen; }

/// A cancellation point. Not under CancellationOff.
inline void test_cancel() {
    const std::uint32_t now = cancel_requests.load(std::memory_order_seq_cst);
    if (now == cancels_seen) [[likely]]
        return;
    cancels_seen = now;
    ::pthread_testcancel();
}

/// The eventfd of a sleeper in ppoll, to be written to when somebody is cancelled. No lock: a handler may come between.
class CancelBell {
public:
    explicit CancelBell(int eventfd) noexcept;
    ~CancelBell();
    CancelBell(const CancelBell&) = delete;
    CancelBell& operator=(const CancelBell&) = delete;
    /// False: there was no place left, or no eventfd. Look up now and then.
    bool hangs() const noexcept { return place_ != nullptr; }

    /// After cancel_requests has moved.
    static void ring_all() noexcept;
    /// In the child of a fork: the sleepers stayed behind.
    static void forget_all() noexcept;

private:
    std::atomic<int>* place_ = nullptr;
    const int word_;
};

/// Makes a call that may sleep: returns what it returns, or is where the thread is cancelled.
template <class Call>
auto cancellable(Call&& call) {
    for (;;) {
        test_cancel();
        const auto result = call();
        if (result >= 0 || errno != ECANCELED) [[likely]]
            return result;
    }
}

/// The same for what is no cancellation point in libc (sendfile): the thread stays, and the request waits.
template <class Call>
auto not_cancelled(Call&& call) noexcept {
    for (;;) {
        const auto result = call();
        if (result >= 0 || errno != ECANCELED) [[likely]]
            return result;
        const std::uint32_t seen = cancels_seen;
        cancels_seen = cancel_requests.load(std::memory_order_seq_cst);
        const auto again = call();
        cancels_seen = seen;  // the next cancellation point is to look
        if (again >= 0 || errno != ECANCELED) return again;
    }
}

}  // namespace culvert::preload
