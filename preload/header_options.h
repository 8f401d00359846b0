// Options that put something of an application's own into the IP header of every packet: IPv4 options, IPv6 extension headers.
//
// Linux carries them in each segment of a connection and takes them off the MSS. Culvert's segments have none, so a socket
// that has some is left to the kernel before it connects or listens, and once it is a connection of Culvert's it gets none.
// What an IPv4 listener has does not matter: an accepted connection of Linux has the options of its SYN instead, and Culvert's
// answer to a SYN has none. Those of an IPv6 listener are inherited.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include "preload/libc.h"

namespace culvert::preload {

inline bool is_header_option(int level, int name) noexcept {
    if (level == IPPROTO_IP) return name == IP_OPTIONS;
    return level == IPPROTO_IPV6 &&
           (name == IPV6_HOPOPTS || name == IPV6_RTHDR || name == IPV6_RTHDRDSTOPTS || name == IPV6_DSTOPTS);
}

/// The kernel's socket knows what was set: with nothing there the option has no length.
inline bool has_header_option(int fd, int level, int name) noexcept {
    char first = 0;
    socklen_t length = sizeof first;
    return libc::getsockopt(fd, level, name, &first, &length) == 0 && length != 0;
}

inline bool has_extension_headers(int fd, int family) noexcept {
    if (family != AF_INET6) return false;
    for (const int name : {IPV6_HOPOPTS, IPV6_RTHDR, IPV6_RTHDRDSTOPTS, IPV6_DSTOPTS})
        if (has_header_option(fd, IPPROTO_IPV6, name)) return true;
    return false;
}

/// An IPv6 socket that speaks IPv4 has both.
inline bool has_header_options(int fd, int family) noexcept {
    return has_header_option(fd, IPPROTO_IP, IP_OPTIONS) || has_extension_headers(fd, family);
}

}  // namespace culvert::preload
