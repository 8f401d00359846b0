#include "preload/libc.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include <cerrno>

namespace culvert::preload {

namespace raw {

int close(int fd) noexcept { return static_cast<int>(::syscall(SYS_close, fd)); }

int fcntl(int fd, int command, long argument) noexcept {
    return static_cast<int>(::syscall(SYS_fcntl, fd, command, argument));
}

ssize_t read(int fd, void* buffer, std::size_t length) noexcept { return ::syscall(SYS_read, fd, buffer, length); }

ssize_t write(int fd, const void* buffer, std::size_t length) noexcept {
    return ::syscall(SYS_write, fd, buffer, length);
}

int ppoll(pollfd* fds, unsigned count, const timespec* timeout, const sigset_t* mask) noexcept {
    timespec left{};
    if (timeout != nullptr) left = *timeout;  // the kernel writes the rest back
    constexpr std::size_t kKernelSignalSetBytes = 8;
    return static_cast<int>(
        ::syscall(SYS_ppoll, fds, count, timeout != nullptr ? &left : nullptr, mask, kKernelSignalSetBytes));
}

}  // namespace raw

std::int64_t now_ns() noexcept {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

namespace {
constinit std::atomic<pid_t> memory_owner{0};
}

bool in_borrowed_memory() noexcept {
    const pid_t owner = memory_owner.load(std::memory_order_relaxed);
    return owner != 0 && owner != static_cast<pid_t>(::syscall(SYS_getpid));
}

void claim_memory() noexcept {
    memory_owner.store(static_cast<pid_t>(::syscall(SYS_getpid)), std::memory_order_relaxed);
}

}  // namespace culvert::preload
