#include "shm/wakeup.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <climits>

namespace culvert::shm {

void signal_eventfd(int fd) noexcept {
    const int saved = errno;
    const std::uint64_t one = 1;
    ::syscall(SYS_write, fd, &one, sizeof one);
    errno = saved;
}

int futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t expected, std::int64_t timeout_ns) noexcept {
    const int saved = errno;
    timespec timeout{};
    if (timeout_ns >= 0) {
        timeout.tv_sec = timeout_ns / 1'000'000'000;
        timeout.tv_nsec = timeout_ns % 1'000'000'000;
    }
    int result = 0;
    if (::syscall(SYS_futex, &word, FUTEX_WAIT, expected, timeout_ns >= 0 ? &timeout : nullptr, nullptr, 0) != 0)
        result = errno == EAGAIN ? 0 : errno;
    errno = saved;
    return result;
}

void futex_wake_all(std::atomic<std::uint32_t>& word) noexcept {
    const int saved = errno;
    ::syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
    errno = saved;
}

}  // namespace culvert::shm
