// Whether a listener's file may block under accept().
//
// Culvert's listeners never do (listen_socket.cc), but the file may be other programs', too: one that inherits it must learn what the
// program that made it wanted. So the file itself carries a mark where O_NONBLOCK is ours: the signal number of F_SETSIG, which
// means nothing as long as nobody asks for O_ASYNC, and which goes with the file over fork, exec and SCM_RIGHTS.
#pragma once

#include <fcntl.h>

#include <csignal>

#include "preload/libc.h"

namespace culvert::preload {

inline constexpr int kModeIsOurs = SIGIO;  // with F_SETSIG; 0 is what nobody has set

/// The program wants accept() on it to return at once, by the flags of its file.
inline bool wants_nonblocking(int fd) noexcept {
    const int flags = raw::fcntl(fd, F_GETFL, 0);
    return flags >= 0 && (flags & O_NONBLOCK) != 0 && raw::fcntl(fd, F_GETSIG, 0) != kModeIsOurs;
}

/// What the program wants of a file that has O_NONBLOCK in any case.
inline void note_mode(int fd, bool nonblocking) noexcept {
    const int mark = nonblocking ? 0 : kModeIsOurs;
    if (raw::fcntl(fd, F_GETSIG, 0) == kModeIsOurs - mark) raw::fcntl(fd, F_SETSIG, mark);  // a program's own signal stays
}

/// From now on accept() returns at once.
inline void never_block(int fd) noexcept {
    const int flags = raw::fcntl(fd, F_GETFL, 0);
    if (flags < 0 || (flags & O_NONBLOCK) != 0) return;
    note_mode(fd, false);
    raw::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

/// Nobody of ours accepts from it any more, and the program wants it to block.
inline void block_again(int fd) noexcept {
    if (raw::fcntl(fd, F_GETSIG, 0) == kModeIsOurs) raw::fcntl(fd, F_SETSIG, 0);
    const int flags = raw::fcntl(fd, F_GETFL, 0);
    if (flags >= 0) raw::fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
}

}  // namespace culvert::preload
