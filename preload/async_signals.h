// Whether the kernel's file of a socket is to raise signals (async_signals.cc).
#pragma once

#include <fcntl.h>

#include "preload/libc.h"

namespace culvert::preload {

/// Somebody is to be told: of urgent data (SIGURG), and with O_ASYNC of everything.
inline bool has_owner(int fd) noexcept {
    f_owner_ex owner{};
    return raw::fcntl(fd, F_GETOWN_EX, reinterpret_cast<long>(&owner)) == 0 && owner.pid != 0;
}

/// Somebody is to be told of everything (SIGIO).
inline bool signals_input(int fd) noexcept {
    const int flags = raw::fcntl(fd, F_GETFL, 0);
    return flags >= 0 && (flags & O_ASYNC) != 0 && has_owner(fd);
}

}  // namespace culvert::preload
