// Signals about a socket: SIGIO (O_ASYNC) and SIGURG.
//
// Only the kernel may send them: the shim has no thread that could at the right moment, and the daemon must signal nobody. The
// kernel does it for what happens to its own sockets, as whoever called F_SETOWN might. So a socket of which somebody is to be
// told is the kernel's:
//
//   before connect(), listen(), bind()   it stays there                            ("a socket option needs the kernel")
//   a listener, a datagram socket        given back, with the call that makes it complete: an owner and O_ASYNC
//   a connection                         goes on through a stand-in (leave.cc), with its first owner: TCP's own events on it
//                                        bring the right signal with the right si_code, si_band and si_fd, urgent octets too
//
// O_ASYNC or F_SETSIG without an owner mean nothing yet, and are kept.

#include "preload/async_signals.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>

#include "preload/confined.h"
#include "preload/fail.h"
#include "preload/kernel_probe.h"
#include "preload/listener_mode.h"
#include "preload/socket.h"
#include "preload/socket_inline.h"

namespace culvert::preload {

namespace {

/// A second at most.
void await_event(int fd, short event) noexcept {
    pollfd entry{fd, event, 0};
    const std::int64_t deadline = now_ns() + 1'000'000'000;
    for (std::int64_t left = 1; left > 0;) {
        left = deadline - now_ns();
        const timespec timeout{0, static_cast<long>(std::clamp<std::int64_t>(left, 0, 999'999'999))};
        if (raw::ppoll(&entry, 1, &timeout, nullptr) >= 0 || errno != EINTR) break;
    }
}

/// Until `bytes` lie in a kernel's socket.
void await_bytes(int fd, std::uint64_t bytes) noexcept {
    if (bytes == 0) return;
    int before = 1;
    socklen_t length = sizeof before;
    libc::getsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &before, &length);
    const auto set_low_water = [fd](int value) { ::syscall(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVLOWAT, &value, sizeof value); };
    set_low_water(static_cast<int>(std::min<std::uint64_t>(bytes, INT32_MAX)));
    await_event(fd, POLLIN);
    set_low_water(before);
}

}  // namespace

/// F_SETOWN, F_SETOWN_EX, F_SETSIG, FIOSETOWN, SIOCSPGRP: `call` does it with a kernel's socket.
int Socket::set_signals(int fd, SignalCall call, int command, long argument) noexcept {
    const KeepErrno keep;
    if (path() == Path::kConnection && has_left()) leave();  // by another process's hand
    if (path() != Path::kConnection) {
        const int result = call(fd, command, argument);
        if (result == 0 && path() == Path::kListener) note_mode(fd, nonblocking());
        if (result == 0) heed_signals(fd);
        return keep.pass(result);
    }
    {
        // What is wrong with it is said before anything moves.
        const KernelProbe probe(family_);
        if (!probe) return keep.fail(ENOMEM);
        if (call(probe.fd(), command, argument) != 0) return keep.pass(-1);
        const bool tells_somebody = has_owner(probe.fd()) && !has_ended();  // of what has ended nothing is to be told
        if (!tells_somebody) {
            if (has_placeholder() && !own_kernel_half()) return keep.fail(ENOMEM);
            return keep.pass(call(fd, command, argument));
        }
    }
    const int flags = get_status_flags(fd);
    const int signal = raw::fcntl(fd, F_GETSIG, 0);
    // What was there before is no news: it moves to the stand-in first.
    const std::uint32_t status = shared().daemon.status.load(std::memory_order_acquire);
    const Urgent urgent = this->urgent();
    const std::uint64_t unread = this->unread();
    if (!leave()) return keep.fail(is_confined() ? EPERM : ENOMEM);
    await_bytes(fd, unread - std::min<std::uint64_t>(unread, urgent.known || urgent.at_read ? 1 : 0));
    if (urgent.arrived) await_event(fd, POLLPRI);
    if ((status & shm::kStatusPeerClosed) != 0) await_event(fd, POLLRDHUP);
    if (signal > 0) raw::fcntl(fd, F_SETSIG, signal);
    const int result = call(fd, command, argument);
    if (flags >= 0 && (flags & O_ASYNC) != 0) raw::fcntl(fd, F_SETFL, flags);
    return keep.pass(result);
}

/// An owner or O_ASYNC has been set on the kernel's file: together they want signals.
void Socket::heed_signals(int fd) noexcept {
    if ((path() != Path::kListener && path() != Path::kDatagram) || !signals_input(fd)) return;
    if (path() == Path::kListener)
        give_back(fd, shm::KernelReason::kOption);
    else
        leave_to_kernel(fd);
}

}  // namespace culvert::preload
