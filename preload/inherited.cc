#include "preload/inherited.h"

#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/syscall.h>

#include "preload/fd_table.h"
#include "preload/libc.h"
#include "preload/listener_mode.h"
#include "preload/socket.h"

namespace culvert::preload {

constinit std::atomic<int> inherited_left{0};

namespace {

constexpr int kMost = 64;  // servers that are given more listeners than this keep the rest in the kernel
constinit std::atomic<int> listeners[kMost];  // descriptor + 1; 0: none, or met

int option(int fd, int name) noexcept {
    int value = 0;
    socklen_t length = sizeof value;
    return libc::getsockopt(fd, SOL_SOCKET, name, &value, &length) == 0 ? value : -1;
}

bool is_tcp_listener(int fd) noexcept {
    if (option(fd, SO_ACCEPTCONN) != 1 || option(fd, SO_PROTOCOL) != IPPROTO_TCP) return false;
    const int domain = option(fd, SO_DOMAIN);
    return domain == AF_INET || domain == AF_INET6;
}

void remember(int fd) noexcept {
    for (std::atomic<int>& place : listeners) {
        int nobody = 0;
        if (!place.compare_exchange_strong(nobody, fd + 1, std::memory_order_relaxed)) continue;
        inherited_left.fetch_add(1, std::memory_order_relaxed);
        return;
    }
}

/// The number that `name` is; -1: none ("." and "..").
int number(const char* name) noexcept {
    int value = 0;
    for (; *name != '\0'; ++name) {
        if (*name < '0' || *name > '9') return -1;
        value = value * 10 + (*name - '0');
    }
    return value;
}

}  // namespace

void find_inherited() noexcept {
    const KeepErrno keep;
    const auto folder = static_cast<int>(::syscall(SYS_openat, AT_FDCWD, "/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (folder < 0) return;  // no /proc here: what was inherited stays the kernel's
    alignas(dirent64) char entries[4096];
    for (long size; (size = ::syscall(SYS_getdents64, folder, entries, sizeof entries)) > 0;) {
        for (long at = 0; at < size;) {
            const auto* const entry = reinterpret_cast<const dirent64*>(entries + at);
            at += entry->d_reclen;
            const int fd = number(entry->d_name);
            if (fd >= 0 && fd != folder && is_tcp_listener(fd)) remember(fd);
        }
    }
    raw::close(folder);
}

void take_listener(int fd) noexcept {
    if (is_tcp_listener(fd)) Socket::inherit(fd);
}

void meet_inherited(int fd) noexcept {
    for (std::atomic<int>& place : listeners) {
        int expected = fd + 1;
        if (place.load(std::memory_order_relaxed) != expected) continue;
        if (in_borrowed_memory() || !place.compare_exchange_strong(expected, 0, std::memory_order_relaxed)) return;
        inherited_left.fetch_sub(1, std::memory_order_relaxed);
        const KeepErrno keep;
        // Closed since, and the number is another's; or replaced by a socket that we have seen.
        if (!FdTable::instance().contains(fd) && is_tcp_listener(fd)) Socket::inherit(fd);
        return;
    }
}

void Socket::inherit(int fd) noexcept {
    Client::attached();
    Socket* const socket = make(option(fd, SO_DOMAIN), SOCK_STREAM, wants_nonblocking(fd));
    if (socket == nullptr) return;
    socket->keep_kernel_options(fd);
    socket->note_passed_on(fd);
    tcp_info info{};
    socklen_t length = sizeof info;
    // Of a listener the kernel says its backlog there (tcp_get_info).
    const bool known = libc::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 && info.tcpi_sacked != 0;
    FdTable::instance().insert(fd, *socket);
    socket->start_listening(fd, known ? static_cast<int>(info.tcpi_sacked) : SOMAXCONN);
}

}  // namespace culvert::preload
