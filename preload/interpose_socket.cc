// Sockets: making, naming, connecting, options.
#include "preload/interpose.h"

#include <sys/ioctl.h>

#include <cstdarg>

#include "preload/inherited.h"

using namespace culvert::preload;

CULVERT_EXPORT int socket(int domain, int type, int protocol) noexcept { return Socket::open(domain, type, protocol); }

CULVERT_EXPORT int bind(int fd, const sockaddr* address, socklen_t length) noexcept {
    if (const SocketRef socket = any_socket(fd)) return socket->bind(fd, address, length);
    return libc::bind(fd, address, length);
}

CULVERT_EXPORT int listen(int fd, int backlog) noexcept {
    meet(fd);
    if (const SocketRef socket = any_socket(fd)) return socket->listen(fd, backlog);
    return libc::listen(fd, backlog);
}

namespace {

/// A connection of the kernel's: `culvert ss` says of it what it says of its listener.
int accepted_by_kernel(int listener, int fd) noexcept {
    if (fd < 0) return fd;
    if (Client* const client = Client::current(); client != nullptr && FdTable::instance().contains(listener))
        client->inherit_reason(fd, listener);
    return fd;
}

}  // namespace

CULVERT_EXPORT int accept(int fd, sockaddr* address, socklen_t* length) {
    meet(fd);
    if (const SocketRef socket = our_socket(fd)) {
        return cancellable([&] {
            const CancellationOff off;
            return socket->accept(fd, address, length, 0);
        });
    }
    return accepted_by_kernel(fd, libc::accept.get()(fd, address, length));
}

CULVERT_EXPORT int accept4(int fd, sockaddr* address, socklen_t* length, int flags) {
    meet(fd);
    if (const SocketRef socket = our_socket(fd)) {
        return cancellable([&] {
            const CancellationOff off;
            return socket->accept(fd, address, length, flags);
        });
    }
    return accepted_by_kernel(fd, libc::accept4.get()(fd, address, length, flags));
}

CULVERT_EXPORT int connect(int fd, const sockaddr* address, socklen_t length) {
    if (const SocketRef socket = any_socket(fd)) {
        return cancellable([&] {
            const CancellationOff off;
            return socket->connect(fd, address, length);
        });
    }
    return libc::connect.get()(fd, address, length);
}
CULVERT_EXPORT int __connect(int fd, const sockaddr* address, socklen_t length) { return connect(fd, address, length); }

CULVERT_EXPORT int shutdown(int fd, int how) noexcept {
    if (const SocketRef socket = our_socket(fd)) return socket->shutdown(fd, how);
    return libc::shutdown(fd, how);
}

CULVERT_EXPORT int getsockname(int fd, sockaddr* address, socklen_t* length) noexcept {
    if (const SocketRef socket = our_socket(fd)) return socket->sockname(fd, address, length);
    return libc::getsockname(fd, address, length);
}

CULVERT_EXPORT int getpeername(int fd, sockaddr* address, socklen_t* length) noexcept {
    if (const SocketRef socket = our_socket(fd)) return socket->peername(fd, address, length);
    return libc::getpeername(fd, address, length);
}

CULVERT_EXPORT int getsockopt(int fd, int level, int name, void* value, socklen_t* length) noexcept {
    if (const SocketRef socket = our_socket(fd)) return socket->get_option(fd, level, name, value, length);
    return libc::getsockopt(fd, level, name, value, length);
}

CULVERT_EXPORT int setsockopt(int fd, int level, int name, const void* value, socklen_t length) noexcept {
    if (const SocketRef socket = any_socket(fd)) return socket->set_option(fd, level, name, value, length);
    return libc::setsockopt(fd, level, name, value, length);
}

CULVERT_EXPORT int ioctl(int fd, unsigned long request, ...) noexcept {
    va_list arguments;
    va_start(arguments, request);
    void* const argument = va_arg(arguments, void*);
    va_end(arguments);
    if (const SocketRef socket = request == FIONBIO ? any_socket(fd) : our_socket(fd))
        return socket->ioctl(fd, request, argument);
    return libc::ioctl(fd, request, argument);
}

CULVERT_EXPORT int sockatmark(int fd) noexcept {
    int at_mark = 0;
    return ioctl(fd, SIOCATMARK, &at_mark) == 0 ? at_mark : -1;
}
