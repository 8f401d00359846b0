// The status flags of a socket's file: O_NONBLOCK, and what else F_SETFL sets.
//
//   kernel path                 the kernel's file has them; ours is a copy, brought up to date when it begins to count
//   Culvert's, one process      here: placeholders share a file, and a listener's kernel half is always non-blocking
//   Culvert's, after a fork     in the record: one file, one set of flags. Each process keeps the last it has seen, for when
//                               the record has gone with its daemon

#include <fcntl.h>

#include <cerrno>

#include "preload/fail.h"
#include "preload/libc.h"
#include "preload/listener_mode.h"
#include "preload/socket.h"

namespace culvert::preload {

namespace {

constexpr int kKept = O_NONBLOCK | O_APPEND | O_NOATIME | O_ASYNC;

std::uint32_t to_shared(int flags) noexcept {
    return ((flags & O_NONBLOCK) != 0 ? shm::kAppNonBlocking : 0) | ((flags & O_APPEND) != 0 ? shm::kAppAppend : 0) |
           ((flags & O_NOATIME) != 0 ? shm::kAppNoAccessTime : 0) | ((flags & O_ASYNC) != 0 ? shm::kAppAsync : 0);
}

int from_shared(std::uint32_t flags) noexcept {
    return ((flags & shm::kAppNonBlocking) != 0 ? O_NONBLOCK : 0) | ((flags & shm::kAppAppend) != 0 ? O_APPEND : 0) |
           ((flags & shm::kAppNoAccessTime) != 0 ? O_NOATIME : 0) | ((flags & shm::kAppAsync) != 0 ? O_ASYNC : 0);
}

}  // namespace

void Socket::note_shared() noexcept {
    if (is_shared()) return;
    const int flags = (nonblocking_.load(std::memory_order_relaxed) ? O_NONBLOCK : 0) | status_flags_.load(std::memory_order_relaxed);
    std::atomic<std::uint32_t>& word = shared().app.flags;
    word.fetch_and(~shm::kAppFileFlags, std::memory_order_relaxed);
    word.fetch_or(to_shared(flags), std::memory_order_relaxed);
    shared_.store(true, std::memory_order_relaxed);
}

/// What another process has set meanwhile.
void Socket::follow_file_flags() const noexcept {
    if (path() == Path::kKernel || record_lost()) return;
    const int flags = from_shared(shared().app.flags.load(std::memory_order_relaxed));
    nonblocking_.store((flags & O_NONBLOCK) != 0, std::memory_order_relaxed);
    status_flags_.store(has_placeholder() ? flags & ~O_NONBLOCK : 0, std::memory_order_relaxed);
}

/// Sets those of `flags` that are in `which`.
void Socket::set_file_flags(int flags, int which) noexcept {
    if (is_shared()) {
        follow_file_flags();
        if (path() != Path::kKernel && !record_lost()) {
            std::atomic<std::uint32_t>& word = shared().app.flags;
            word.fetch_or(to_shared(flags & which), std::memory_order_relaxed);
            word.fetch_and(~to_shared(~flags & which), std::memory_order_relaxed);
        }
    }
    if ((which & O_NONBLOCK) != 0) nonblocking_.store((flags & O_NONBLOCK) != 0, std::memory_order_relaxed);
    if (!has_placeholder()) return;
    const int kept = which & kKept & ~O_NONBLOCK;
    status_flags_.store((status_flags_.load(std::memory_order_relaxed) & ~kept) | (flags & kept), std::memory_order_relaxed);
}

/// Before the socket becomes Culvert's: while it was the kernel's, other processes may have changed its file.
void Socket::learn_file_flags(int fd) noexcept {
    if (has_placeholder() || path() != Path::kKernel) return;
    nonblocking_.store(wants_nonblocking(fd), std::memory_order_relaxed);
}

int Socket::get_status_flags(int fd) noexcept {
    const int own = libc::fcntl(fd, F_GETFL);
    if (own < 0 || (path() == Path::kKernel && !has_placeholder())) return own;
    const int flags = nonblocking() ? own | O_NONBLOCK : own & ~O_NONBLOCK;
    return flags | status_flags_.load(std::memory_order_relaxed);
}

int Socket::set_status_flags(int fd, int flags) noexcept {
    // The file of a placeholder is everybody's, and a listener's must not block under accept.
    if (!has_placeholder()) {
        const bool listens = path() == Path::kListener;
        if (libc::fcntl(fd, F_SETFL, listens ? flags | O_NONBLOCK : flags) < 0) return -1;
        if (listens) note_mode(fd, (flags & O_NONBLOCK) != 0);
    } else if ((flags & O_DIRECT) != 0) {
        return fail(EINVAL);
    }
    set_file_flags(flags, kKept);
    if ((flags & O_ASYNC) != 0) heed_signals(fd);
    return 0;
}

}  // namespace culvert::preload
