// Moving bytes between a Culvert socket and a pipe: splice(2) where one end lives outside the kernel.
#pragma once

#include <sys/types.h>

#include <cstddef>

#include "preload/socket.h"

namespace culvert::preload {

/// splice from `socket` to the pipe `out`. Nothing is taken from the socket that the pipe has not got.
ssize_t splice_from(Socket& socket, int fd, int out, std::size_t length, unsigned flags);
/// splice from the pipe `in` to `socket`. Bytes that have left the pipe are sent even if that means waiting for room.
ssize_t splice_to(int in, Socket& socket, int fd, std::size_t length, unsigned flags);

}  // namespace culvert::preload
