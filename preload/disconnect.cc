// Socket: the end of a connection that is not the end of the socket: connect() to AF_UNSPEC, shutdown() of one that is being made,
// and what bind() finds afterwards.
//
// From then on the kernel's half is the socket, so it must look as Linux's own socket would: ECONNRESET pending, and a port
// that nobody had named free again. Both come from Linux itself when a connection that it is making is taken back. So the half begins one
// that sends nothing (Fast Open without a cookie waits for data with its SYN) and takes it back at once. Where the half cannot
// (net.ipv4.tcp_fastopen without its bit 1, no loopback interface, an address that is Culvert's alone) nothing is pending and the port stays.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include <cerrno>
#include <cstring>

#include "preload/confined.h"
#include "preload/fail.h"
#include "preload/kernel_probe.h"
#include "preload/libc.h"
#include "preload/option_table.h"
#include "preload/socket.h"
#include "preload/socket_inline.h"

namespace culvert::preload {

namespace {

/// Where an attempt goes that never leaves: port 9 of this host, of the family that the half has been bound in.
socklen_t nowhere(int fd, int family, sockaddr_storage& name) noexcept {
    if (family == AF_INET) {
        auto& v4 = reinterpret_cast<sockaddr_in&>(name = {});
        v4.sin_family = AF_INET;
        v4.sin_port = htons(9);
        v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return sizeof v4;
    }
    socklen_t length = sizeof name;
    name = {};
    auto& v6 = reinterpret_cast<sockaddr_in6&>(name);
    const bool mapped = libc::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length) == 0 && IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr);
    v6 = {};
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(9);
    ::inet_pton(AF_INET6, mapped ? "::ffff:127.0.0.1" : "::1", &v6.sin6_addr);
    return sizeof v6;
}

bool set_int(int fd, int name, int value) noexcept {
    return libc::setsockopt(fd, IPPROTO_TCP, name, &value, socklen_t{sizeof value}) == 0;
}

}  // namespace

/// Would Linux have ECONNRESET pending after it has taken this connection back?
bool Socket::leaves_reset() const noexcept {
    if (record_lost()) return !error_reported_.load(std::memory_order_relaxed);
    const shm::SocketRecord& record = shared();
    const std::uint32_t status = record.daemon.status.load(std::memory_order_acquire);
    if (const int pending = record.daemon.error.load(std::memory_order_relaxed)) return pending == ECONNRESET;
    if ((status & shm::kStatusDead) != 0) return false;
    const bool no_more_output = (status & shm::kStatusWriteClosed) != 0 ||
                                (record.app.flags.load(std::memory_order_relaxed) & shm::kAppShutWrite) != 0;
    return (status & shm::kStatusPeerClosed) == 0 || !no_more_output;  // both: it waits for the last ACK, or for nothing
}

/// The kernel's half has ECONNRESET pending and no port of the kernel's choice any more. False: as it was.
bool Socket::reset_own_half(int fd) noexcept {
    const KeepErrno keep;
    if (has_placeholder() || is_confined()) return false;
    const int status = libc::fcntl(fd, F_GETFL);
    const bool waits = status >= 0 && (status & O_NONBLOCK) == 0;  // a SYN that goes out after all is not waited for
    if (waits) libc::fcntl(fd, F_SETFL, status | O_NONBLOCK);
    bool done = false;
    if (set_int(fd, kTcpFastOpenNoCookie, 1)) {
        sockaddr_storage name{};
        const socklen_t length = nowhere(fd, family_, name);
        done = set_int(fd, TCP_FASTOPEN_CONNECT, 1) && libc::connect(fd, reinterpret_cast<const sockaddr*>(&name), length) == 0;
        const sockaddr nobody{AF_UNSPEC, {}};
        libc::connect(fd, &nobody, socklen_t{sizeof nobody});
        set_int(fd, TCP_FASTOPEN_CONNECT, (early_options_.flags & shm::kOptionFastOpen) != 0 ? 1 : 0);
        set_int(fd, kTcpFastOpenNoCookie, 0);
    }
    if (waits) libc::fcntl(fd, F_SETFL, status);
    return done;
}

/// The same, and nothing is pending.
void Socket::free_own_port(int fd) noexcept {
    const KeepErrno keep;
    if (!reset_own_half(fd)) return;
    int error = 0;
    socklen_t size = sizeof error;
    libc::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
}

/// Aborts, as tcp_disconnect does; the half is the socket from here on.
void Socket::end_connection(int fd) noexcept {
    const bool reset = leaves_reset();
    if (has_placeholder()) own_kernel_half();
    if (reset)
        reset_own_half(fd);
    else
        free_own_port(fd);
    change_options([](shm::SocketOptions& options) {
        options.flags |= shm::kOptionLinger;
        options.linger_s = 0;
    });
    if (!has_placeholder()) accepted_ = false;
    abandon();
    connecting_.store(Connecting::kNo, std::memory_order_relaxed);
}

int Socket::disconnect(int fd, const sockaddr* address, socklen_t length) noexcept {
    if (path() == Path::kListener) stop_listening(fd);
    if (path() == Path::kConnection) {
        end_connection(fd);
        return 0;
    }
    connecting_.store(Connecting::kNo, std::memory_order_relaxed);
    return libc::connect(fd, address, length);
}

/// bind() of a connection that has ended, and has no port any more unless the program has named it.
int Socket::bind_ended(int fd, const sockaddr* address, socklen_t length) noexcept {
    if (has_placeholder()) {
        if (!own_kernel_half()) return refuse_bind(address, length);
    } else if (!bound_anew_) {
        free_own_port(fd);
    }
    if (bind_kernel(fd, address, length) != 0) return -1;
    bound_anew_ = true;
    accepted_ = false;  // it has the name that it was given
    return 0;
}

/// bind() of an accepted connection. The placeholder is the file of others, too, so a socket of the moment is asked what is
/// wrong with the address; if nothing is, it is that the connection has one.
int Socket::refuse_bind(const sockaddr* address, socklen_t length) const noexcept {
    sockaddr_storage name{};
    if (address == nullptr || length > sizeof name) return fail(address == nullptr && length != 0 ? EFAULT : EINVAL);
    std::memcpy(&name, address, length);
    if (family_ == AF_INET6) return fail(length >= 24 && name.ss_family != AF_INET6 ? EAFNOSUPPORT : EINVAL);  // state first
    reinterpret_cast<sockaddr_in&>(name).sin_port = 0;
    const KernelProbe probe(family_);
    const bool wrong = probe && libc::bind(probe.fd(), reinterpret_cast<const sockaddr*>(&name), length) != 0;
    return fail(wrong ? errno : EINVAL);
}

}  // namespace culvert::preload
