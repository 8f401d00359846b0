// Listening sockets that were there before us: handed over by exec (nginx's binary upgrade), or by whoever started the program
// (systemd's socket activation, tcpserver).
//
//   at load      they are found and remembered, nothing else
//   first use    accept, listen, epoll_ctl, poll, select: now they are Culvert's, too
//
// Not earlier: a program hands its listener to every child that it executes without closing it, and a child that never
// accepts must not get connections. The kernel's socket behind the descriptor is what makes the program a server of that
// port, for us as for the kernel: whoever holds it may accept from it.
#pragma once

#include <atomic>

namespace culvert::preload {

/// Looks through the process's descriptors. Once, when the library is loaded; allocates nothing.
void find_inherited() noexcept;

/// A descriptor that was sent to this program (SCM_RIGHTS): Culvert's at once, if it is a listening TCP socket.
void take_listener(int fd) noexcept;

extern constinit std::atomic<int> inherited_left;  // remembered, and not used yet
void meet_inherited(int fd) noexcept;

inline bool any_inherited() noexcept { return inherited_left.load(std::memory_order_relaxed) != 0; }

/// Before a call that shows that the program serves `fd`. One load where nothing was inherited, or all of it is in use.
inline void meet(int fd) noexcept {
    if (any_inherited()) [[unlikely]]
        meet_inherited(fd);
}

}  // namespace culvert::preload
