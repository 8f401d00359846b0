// Small helpers of the POSIX edge.
#pragma once

#include <cerrno>

namespace culvert::preload {

/// Sets errno and returns -1.
inline int fail(int code) noexcept {
    errno = code;
    return -1;
}

}  // namespace culvert::preload
