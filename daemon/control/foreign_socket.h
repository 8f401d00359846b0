// What the kernel says of a descriptor that a stranger has sent.
#pragma once

#include <cstdint>
#include <optional>

namespace culvert::control {

/// Nothing: no socket, or it has no such option.
std::optional<int> socket_option(int fd, int level, int name);

/// True if the socket was made in our network namespace. Of an accepted AF_UNIX socket: if the one that connected was.
bool is_of_our_namespace(int fd);

}  // namespace culvert::control
