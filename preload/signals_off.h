// No signal handler runs in this thread for a while: around locks that a handler's own calls would wait for. Handlers may
// fork, close and accept (POSIX calls these async-signal-safe, and postgres 15's postmaster does all its work in them).
//
// Two system calls, so only where there are more anyway. The locks of hot paths either are none (description_pool.h, the
// pooled queues of Client) or know their owner (spin_lock.h, EpollSet::Lock). A fault in between still ends the program: the kernel
// delivers its own signals regardless.
#pragma once

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace culvert::preload {

class SignalsOff {
public:
    SignalsOff() noexcept : before_(change(~std::uint64_t{0})) {}
    ~SignalsOff() { change(before_); }
    SignalsOff(const SignalsOff&) = delete;
    SignalsOff& operator=(const SignalsOff&) = delete;

    /// Sets the kernel's mask of this thread; what it was. For those who cannot use a block (fork handlers).
    static std::uint64_t change(std::uint64_t mask) noexcept {
        std::uint64_t before = 0;
        ::syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, &before, sizeof mask);
        return before;
    }

private:
    std::uint64_t before_;
};

}  // namespace culvert::preload
