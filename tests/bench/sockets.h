// The few socket steps that the benchmark programs share: plain blocking calls, as any program makes them.
// A failed call ends the program with one line on stderr; a benchmark has no use for half a result.
#pragma once

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>

namespace culvert::bench {

using SteadyClock = std::chrono::steady_clock;

[[noreturn]] inline void die(const std::string& what) {
    std::fprintf(stderr, "%s: %s\n", what.c_str(), std::strerror(errno));
    std::exit(1);
}

/// A listening socket on all addresses, IPv4 and IPv6.
inline int listen_on(const std::string& port) {
    const int fd = ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket");
    const int one = 1;
    if (::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0) die("SO_REUSEADDR");
    sockaddr_in6 any{};
    any.sin6_family = AF_INET6;
    any.sin6_port = htons(static_cast<std::uint16_t>(std::stoul(port)));
    if (::bind(fd, reinterpret_cast<const sockaddr*>(&any), sizeof any) != 0) die("bind");
    if (::listen(fd, 16) != 0) die("listen");
    return fd;
}

inline int accept_from(int listener) {
    const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) die("accept");
    const int one = 1;
    if (::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0) die("TCP_NODELAY");
    return fd;
}

inline int connect_to(const std::string& host, const std::string& port) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
    addrinfo* found = nullptr;
    if (::getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) die("address " + host);
    const int fd = ::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket");
    if (::connect(fd, found->ai_addr, found->ai_addrlen) != 0) die("connect");
    ::freeaddrinfo(found);
    const int one = 1;
    if (::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0) die("TCP_NODELAY");
    return fd;
}

inline void send_all(int fd, std::span<const std::byte> data) {
    while (!data.empty()) {
        const ssize_t sent = ::send(fd, data.data(), data.size(), MSG_NOSIGNAL);
        if (sent < 0) die("send");
        data = data.subspan(static_cast<std::size_t>(sent));
    }
}

/// Fills `data`; false when the stream ended before its first byte.
inline bool receive_all(int fd, std::span<std::byte> data) {
    bool first = true;
    while (!data.empty()) {
        const ssize_t received = ::recv(fd, data.data(), data.size(), 0);
        if (received < 0) die("recv");
        if (received == 0) {
            if (first) return false;
            errno = ECONNABORTED;
            die("the stream ended in the middle of a message");
        }
        first = false;
        data = data.subspan(static_cast<std::size_t>(received));
    }
    return true;
}

}  // namespace culvert::bench
