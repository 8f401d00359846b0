#include "preload/own_fd.h"

#include <fcntl.h>
#include <sys/resource.h>

#include "preload/fd_table.h"
#include "preload/libc.h"

namespace culvert::preload {

int move_away(int fd) noexcept {
    if (fd < 0) return fd;
    const KeepErrno keep;
    rlimit limit{};
    long soft = 1024;
    if (::getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < (1u << 20)) soft = static_cast<long>(limit.rlim_cur);
    // A hundred numbers below the limit first; a process with a tiny limit gets what there is.
    for (const long lowest : {soft - 100, soft / 2}) {
        if (lowest <= fd) continue;
        const int moved = raw::fcntl(fd, F_DUPFD_CLOEXEC, lowest);
        if (moved < 0) continue;
        raw::close(fd);
        FdTable::instance().protect(moved);
        return moved;
    }
    FdTable::instance().protect(fd);
    return fd;
}

void close_own(int fd) noexcept {
    if (fd < 0) return;
    const KeepErrno keep;
    FdTable::instance().unprotect(fd);
    raw::close(fd);
}

}  // namespace culvert::preload
