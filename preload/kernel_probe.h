// A stream socket of the kernel's for a moment, to hear what it says to an option or an address: an accepted connection has
// only the placeholder, which is the file of others, too.
#pragma once

#include <sys/socket.h>

#include "preload/libc.h"

namespace culvert::preload {

class KernelProbe {
public:
    explicit KernelProbe(int family) noexcept : fd_(libc::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)) {}
    ~KernelProbe() {
        if (fd_ >= 0) raw::close(fd_);  // no cancellation point, and errno stays
    }
    KernelProbe(const KernelProbe&) = delete;
    KernelProbe& operator=(const KernelProbe&) = delete;

    /// False: there was no descriptor left.
    explicit operator bool() const noexcept { return fd_ >= 0; }
    int fd() const noexcept { return fd_; }

private:
    const int fd_;
};

}  // namespace culvert::preload
