#include "shm/base/unique_fd.h"

#include <sys/syscall.h>

#include <cerrno>

namespace culvert {

void UniqueFd::reset(int fd) {
    if (fd_ >= 0 && fd_ != fd) {
        const int saved = errno;
        // The raw call: inside the shim `close` is interposed and must not be asked about our own descriptors.
        ::syscall(SYS_close, fd_);
        errno = saved;
    }
    fd_ = fd;
}

}  // namespace culvert
