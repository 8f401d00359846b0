#include "preload/waiting.h"

#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>

#include "preload/confined.h"
#include "shm/wakeup.h"

namespace culvert::preload {

int sleep_on(std::atomic<std::uint32_t>& word, std::uint32_t expected, std::int64_t wake_at_ns,
             bool restartable) noexcept {
    if (restartable && !is_confined()) {
        // FUTEX_WAIT with a timeout fails with EINTR after any handler. futex_waitv takes an absolute time, so the kernel
        // restarts it as it restarts recv(): exactly when the handler has SA_RESTART. Linux 5.16.
        static constinit std::atomic<bool> missing{false};
        if (!missing.load(std::memory_order_relaxed)) {
            const KeepErrno keep;
            futex_waitv waiter{};
            waiter.val = expected;
            waiter.uaddr = reinterpret_cast<std::uintptr_t>(&word);
            waiter.flags = FUTEX_32;
            const timespec until{static_cast<time_t>(wake_at_ns / 1'000'000'000),
                                 static_cast<long>(wake_at_ns % 1'000'000'000)};
            if (::syscall(SYS_futex_waitv, &waiter, 1, 0, &until, CLOCK_MONOTONIC) >= 0 || errno == EAGAIN) return 0;
            if (errno == ETIMEDOUT || errno == EINTR) return errno;
            missing.store(true, std::memory_order_relaxed);  // ENOSYS, or EPERM from a seccomp filter
        }
    }
    const std::int64_t left = wake_at_ns - now_ns();
    if (left <= 0) return ETIMEDOUT;
    return shm::futex_wait(word, expected, left);
}

bool handlers_restart() noexcept {
    if (is_confined()) return false;
    const KeepErrno keep;
    bool any = false;
    for (int signal = 1; signal < NSIG; ++signal) {
        struct sigaction action{};
        if (::sigaction(signal, nullptr, &action) != 0) continue;
        const bool handled =
            (action.sa_flags & SA_SIGINFO) != 0 || (action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN);
        if (!handled) continue;
        if ((action.sa_flags & SA_RESTART) == 0) return false;
        any = true;
    }
    return any;
}

}  // namespace culvert::preload
