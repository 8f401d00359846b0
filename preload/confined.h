// A program that has locked itself up: with a seccomp filter that ends it at the first system call that is not on its list.
//
// sshd's process that talks to strangers may read, write, poll, wait on a futex, close, and little else; it knows nothing of the
// calls that we make inside its read(). So from the moment a filter is asked for, established sockets get along with those: no
// sched_yield, no eventfd, no message to the daemon. What needs more is not there any more: no new queues (poll looks each
// millisecond), no attaching, no SIGPIPE (EPIPE is returned).
#pragma once

#include <sched.h>

#include <atomic>

namespace culvert::preload {

/// True from the first filter on, for ever, in children too.
inline constinit std::atomic<bool> confined{false};

inline bool is_confined() noexcept { return confined.load(std::memory_order_relaxed); }

/// Gives the core away, where that may be asked for.
inline void yield_core() noexcept {
    if (!is_confined()) ::sched_yield();
}

}  // namespace culvert::preload
