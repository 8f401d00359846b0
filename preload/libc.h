// The C library's own functions, behind the names that we interpose.
//
// Each is looked up with dlsym(RTLD_NEXT) when first called: no constructor has to have run, nothing is allocated.
// For our own descriptors (control connection, eventfds) raw:: goes to the kernel without passing any interposed name.
#pragma once

#include <dlfcn.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>

namespace culvert::preload {

/// One function of libc, resolved on first use.
template <class Function>
class LibcFunction {
public:
    explicit constexpr LibcFunction(const char* name) noexcept : name_(name) {}

    /// Null when this libc does not have it.
    Function* get() noexcept {
        void* found = function_.load(std::memory_order_relaxed);
        if (found == nullptr) [[unlikely]] {
            found = ::dlsym(RTLD_NEXT, name_);
            function_.store(found, std::memory_order_relaxed);
        }
        return reinterpret_cast<Function*>(found);
    }
    template <class... Arguments>
    auto operator()(Arguments... arguments) noexcept {
        return get()(arguments...);
    }

private:
    const char* name_;
    std::atomic<void*> function_{nullptr};
};

namespace libc {

#define CULVERT_LIBC(name, ...) inline constinit LibcFunction<__VA_ARGS__> name{#name}
CULVERT_LIBC(socket, int(int, int, int));
CULVERT_LIBC(bind, int(int, const sockaddr*, socklen_t));
CULVERT_LIBC(listen, int(int, int));
CULVERT_LIBC(accept, int(int, sockaddr*, socklen_t*));
CULVERT_LIBC(accept4, int(int, sockaddr*, socklen_t*, int));
CULVERT_LIBC(connect, int(int, const sockaddr*, socklen_t));
CULVERT_LIBC(shutdown, int(int, int));
CULVERT_LIBC(getsockname, int(int, sockaddr*, socklen_t*));
CULVERT_LIBC(getpeername, int(int, sockaddr*, socklen_t*));
CULVERT_LIBC(getsockopt, int(int, int, int, void*, socklen_t*));
CULVERT_LIBC(setsockopt, int(int, int, int, const void*, socklen_t));
CULVERT_LIBC(close, int(int));
CULVERT_LIBC(close_range, int(unsigned, unsigned, int));
CULVERT_LIBC(closefrom, void(int));
CULVERT_LIBC(dup, int(int));
CULVERT_LIBC(dup2, int(int, int));
CULVERT_LIBC(dup3, int(int, int, int));
CULVERT_LIBC(fcntl, int(int, int, ...));
CULVERT_LIBC(fcntl64, int(int, int, ...));
CULVERT_LIBC(ioctl, int(int, unsigned long, ...));
CULVERT_LIBC(read, ssize_t(int, void*, std::size_t));
CULVERT_LIBC(readv, ssize_t(int, const iovec*, int));
CULVERT_LIBC(write, ssize_t(int, const void*, std::size_t));
CULVERT_LIBC(writev, ssize_t(int, const iovec*, int));
CULVERT_LIBC(preadv2, ssize_t(int, const iovec*, int, off_t, int));
CULVERT_LIBC(pwritev2, ssize_t(int, const iovec*, int, off_t, int));
CULVERT_LIBC(recv, ssize_t(int, void*, std::size_t, int));
CULVERT_LIBC(recvfrom, ssize_t(int, void*, std::size_t, int, sockaddr*, socklen_t*));
CULVERT_LIBC(recvmsg, ssize_t(int, msghdr*, int));
CULVERT_LIBC(recvmmsg, int(int, mmsghdr*, unsigned, int, timespec*));
CULVERT_LIBC(send, ssize_t(int, const void*, std::size_t, int));
CULVERT_LIBC(sendto, ssize_t(int, const void*, std::size_t, int, const sockaddr*, socklen_t));
CULVERT_LIBC(sendmsg, ssize_t(int, const msghdr*, int));
CULVERT_LIBC(sendmmsg, int(int, mmsghdr*, unsigned, int));
CULVERT_LIBC(sendfile, ssize_t(int, int, off_t*, std::size_t));
CULVERT_LIBC(sendfile64, ssize_t(int, int, off64_t*, std::size_t));
CULVERT_LIBC(splice, ssize_t(int, off64_t*, int, off64_t*, std::size_t, unsigned));
CULVERT_LIBC(poll, int(pollfd*, nfds_t, int));
CULVERT_LIBC(ppoll, int(pollfd*, nfds_t, const timespec*, const sigset_t*));
CULVERT_LIBC(select, int(int, fd_set*, fd_set*, fd_set*, timeval*));
CULVERT_LIBC(pselect, int(int, fd_set*, fd_set*, fd_set*, const timespec*, const sigset_t*));
CULVERT_LIBC(epoll_create, int(int));
CULVERT_LIBC(epoll_create1, int(int));
CULVERT_LIBC(epoll_ctl, int(int, int, int, epoll_event*));
CULVERT_LIBC(epoll_wait, int(int, epoll_event*, int, int));
CULVERT_LIBC(epoll_pwait, int(int, epoll_event*, int, int, const sigset_t*));
CULVERT_LIBC(epoll_pwait2, int(int, epoll_event*, int, const timespec*, const sigset_t*));
CULVERT_LIBC(fork, pid_t());
CULVERT_LIBC(syscall, long(long, ...));
#undef CULVERT_LIBC

}  // namespace libc

/// System calls on descriptors of our own. They set errno as libc does.
namespace raw {

int close(int fd) noexcept;
int fcntl(int fd, int command, long argument) noexcept;
ssize_t read(int fd, void* buffer, std::size_t length) noexcept;
ssize_t write(int fd, const void* buffer, std::size_t length) noexcept;
/// Waits without touching the signal mask unless `mask` is given. timeout null: forever.
int ppoll(pollfd* fds, unsigned count, const timespec* timeout, const sigset_t* mask) noexcept;

}  // namespace raw

/// Monotonic clock in nanoseconds.
std::int64_t now_ns() noexcept;

/// True in the child of a vfork (or clone(CLONE_VM)): it shares our memory but not our descriptors, and must change nothing
/// here. One system call; asked by close, dup2 and the like, which are not the hot path.
bool in_borrowed_memory() noexcept;
/// Remembers this process as the owner of the memory (startup and the child of a fork).
void claim_memory() noexcept;

/// Puts errno back at the end of a scope: what succeeds leaves it alone. A failure leaves the scope through fail() or
/// pass(), which keep the new value.
class KeepErrno {
public:
    KeepErrno() noexcept : saved_(errno) {}
    ~KeepErrno() {
        if (saved_ >= 0) errno = saved_;
    }
    KeepErrno(const KeepErrno&) = delete;
    KeepErrno& operator=(const KeepErrno&) = delete;

    /// -1, with errno = code after the scope.
    int fail(int code) const noexcept {
        saved_ = code;
        return -1;
    }
    /// The result of a call: when it failed, its errno stays.
    template <class Value>
    Value pass(Value result) const noexcept {
        if (result < 0) saved_ = errno;
        return result;
    }

private:
    mutable int saved_;
};

}  // namespace culvert::preload
