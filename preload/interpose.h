// What the interposed functions share. Each of them is a shell: is the descriptor ours? Then the class that knows, else
// libc's function, called through get() so that thread cancellation may unwind through it.
//
// Before the library is initialised the descriptor table is empty, so everything goes to libc.
#pragma once

#ifdef _FORTIFY_SOURCE
#undef _FORTIFY_SOURCE  // its inline wrappers have the names that we define
#endif

#include <pthread.h>
#include <sys/uio.h>

#include <cerrno>
#include <climits>
#include <utility>

#include "preload/cancel.h"
#include "preload/fd_table.h"
#include "preload/libc.h"
#include "preload/socket.h"

// Visible to the dynamic linker; exports.map holds the same list, checked by tests/preload/export_audit.
#define CULVERT_EXPORT extern "C" __attribute__((visibility("default")))

namespace culvert::preload {

/// A socket that the shim knows, kept alive during the call. Empty: the kernel's descriptor.
class SocketRef {
public:
    SocketRef() = default;
    explicit SocketRef(DescriptionRef ref) : ref_(std::move(ref)) {}
    explicit operator bool() const { return static_cast<bool>(ref_); }
    Socket* operator->() const { return static_cast<Socket*>(ref_.get()); }
    Socket& operator*() const { return *static_cast<Socket*>(ref_.get()); }

private:
    DescriptionRef ref_;
};

/// The socket behind `fd`, on whichever path it is. For calls that may change the path.
inline SocketRef any_socket(int fd) noexcept {
    FdTable& table = FdTable::instance();
    if (!table.contains(fd)) return {};
    DescriptionRef ref = table.find(fd);
    if (!ref || ref->kind() != Description::Kind::kSocket) return {};
    if (Socket& socket = Socket::of(*ref.get()); socket.has_left()) [[unlikely]]
        socket.leave();
    return SocketRef(std::move(ref));
}

/// The socket behind `fd` if it is in Culvert now. For calls that the kernel answers otherwise.
inline SocketRef our_socket(int fd) noexcept {
    if (!FdTable::instance().concerns(fd, Description::kPassesReceives)) return {};
    SocketRef socket = any_socket(fd);
    return socket && socket->is_ours() ? std::move(socket) : SocketRef();
}

/// The socket behind `fd` if a send must pass through us: datagrams choose their path packet by packet.
inline SocketRef sending_socket(int fd) noexcept {
    if (!FdTable::instance().concerns(fd, Description::kPassesSends)) return {};
    SocketRef socket = any_socket(fd);
    return socket && (socket->is_ours() || socket->type() != SOCK_STREAM) ? std::move(socket) : SocketRef();
}

/// No thread cancellation in a scope: inside Socket the calls to libc that are cancellation points may not unwind. The
/// cancellation waits for the program's next one.
class CancellationOff {
public:
    explicit CancellationOff(bool really = true) noexcept {
        if (really) ::pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_);
    }
    ~CancellationOff() {
        if (before_ >= 0) ::pthread_setcancelstate(before_, nullptr);
    }
    CancellationOff(const CancellationOff&) = delete;
    CancellationOff& operator=(const CancellationOff&) = delete;

private:
    int before_ = -1;
};

/// Datagram sockets use the kernel's calls as well; a stream in Culvert waits without cancellation points.
inline bool uses_kernel_calls(const SocketRef& socket) noexcept { return socket->type() != SOCK_STREAM; }

/// A message of one part.
struct Message {
    Message(const void* data, std::size_t length) : part{const_cast<void*>(data), length} {
        header.msg_iov = &part;
        header.msg_iovlen = 1;
    }
    Message(const Message&) = delete;
    Message& operator=(const Message&) = delete;

    iovec part;
    msghdr header{};
};

/// A message of the application's parts.
inline msghdr message_of(const iovec* parts, int count) noexcept {
    msghdr header{};
    header.msg_iov = const_cast<iovec*>(parts);
    header.msg_iovlen = static_cast<std::size_t>(count);
    return header;
}

/// A list of parts without a single byte: readv and writev return 0 before they look at the socket, as in the kernel.
inline bool empty_parts(const iovec* parts, int count) noexcept {
    for (int i = 0; i < count; ++i)
        if (parts[i].iov_len != 0) return false;
    return true;
}

/// True, and errno, if readv and writev refuse the list as the kernel would.
inline bool bad_parts(const iovec* parts, int count) noexcept {
    std::size_t total = 0;
    bool bad = count < 0 || count > 1024;
    for (int i = 0; !bad && i < count; ++i) {
        bad = parts[i].iov_len > SSIZE_MAX - total;
        total += parts[i].iov_len;
    }
    if (bad) errno = EINVAL;
    return bad;
}

/// Before `fd` is closed or overwritten: takes it out of the epoll sets (if it is the last) and of the table.
void take_out(int fd) noexcept;
/// `copy` now refers to what `original` refers to.
void follow_duplicate(int original, int copy) noexcept;

}  // namespace culvert::preload
