#include "daemon/control/foreign_socket.h"

#include <sys/socket.h>

#include "shm/base/unique_fd.h"

namespace culvert::control {
namespace {

/// Which network namespace a socket was made in; nothing if the kernel does not say.
std::optional<std::uint64_t> namespace_of(int fd) {
    std::uint64_t cookie = 0;
    socklen_t length = sizeof cookie;
    if (::getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length) != 0) return std::nullopt;
    return cookie;
}

}  // namespace

std::optional<int> socket_option(int fd, int level, int name) {
    int value = 0;
    socklen_t length = sizeof value;
    if (::getsockopt(fd, level, name, &value, &length) != 0) return std::nullopt;
    return value;
}

bool is_of_our_namespace(int fd) {
    const UniqueFd ours(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const auto here = namespace_of(ours.get());
    return here && namespace_of(fd) == here;
}

}  // namespace culvert::control
