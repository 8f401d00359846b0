// What the shim knows of socket options: those that the record keeps, and those that only the kernel can do for a stream.
#pragma once

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "shm/socket_record.h"

namespace culvert::preload {

/// A field of the record's options, of whatever width.
struct Number {
    std::uint32_t (*get)(const shm::SocketOptions&) = nullptr;
    void (*set)(shm::SocketOptions&, std::uint32_t) = nullptr;
    bool operator==(std::nullptr_t) const { return get == nullptr; }
};
template <auto Member>
constexpr Number kNumber{
    [](const shm::SocketOptions& options) -> std::uint32_t { return options.*Member; },
    [](shm::SocketOptions& options, std::uint32_t value) {
        options.*Member = static_cast<std::remove_reference_t<decltype(options.*Member)>>(value);
    }};

/// An option of type int that the record keeps: as a number, or as a bit of `flags`.
struct IntOption {
    int level;
    int name;
    std::uint32_t flag;  // 0: a number
    Number number;       // null: a bit
    int least;
    int most;
    int default_value;  // Linux's, when the record holds 0
};

inline constexpr IntOption kIntOptions[] = {
    {IPPROTO_TCP, TCP_NODELAY, shm::kOptionNoDelay, {}, 0, 0, 0},
    {IPPROTO_TCP, TCP_CORK, shm::kOptionCork, {}, 0, 0, 0},
    {IPPROTO_TCP, TCP_QUICKACK, shm::kOptionQuickAck, {}, 0, 0, 0},
    {SOL_SOCKET, SO_REUSEADDR, shm::kOptionReuseAddress, {}, 0, 0, 0},
    {SOL_SOCKET, SO_DONTROUTE, shm::kOptionDontRoute, {}, 0, 0, 0},
    {SOL_SOCKET, SO_KEEPALIVE, shm::kOptionKeepAlive, {}, 0, 0, 0},
    {SOL_SOCKET, SO_REUSEPORT, shm::kOptionReusePort, {}, 0, 0, 0},
    {SOL_SOCKET, SO_BROADCAST, shm::kOptionBroadcast, {}, 0, 0, 0},
    {IPPROTO_TCP, TCP_FASTOPEN_CONNECT, shm::kOptionFastOpen, {}, 0, 0, 0},
    {SOL_SOCKET, SO_OOBINLINE, shm::kOptionUrgentInline, {}, 0, 0, 0},
    {IPPROTO_IP, IP_RECVERR, shm::kOptionErrors4, {}, 0, 0, 0},
    {IPPROTO_IPV6, IPV6_RECVERR, shm::kOptionErrors6, {}, 0, 0, 0},
    {IPPROTO_IPV6, IPV6_V6ONLY, shm::kOptionV6Only, {}, 0, 0, 0},
    {IPPROTO_TCP, TCP_KEEPIDLE, 0, kNumber<&shm::SocketOptions::keepalive_idle_s>, 1, 32767, 7200},
    {IPPROTO_TCP, TCP_KEEPINTVL, 0, kNumber<&shm::SocketOptions::keepalive_interval_s>, 1, 32767, 75},
    {IPPROTO_TCP, TCP_KEEPCNT, 0, kNumber<&shm::SocketOptions::keepalive_count>, 1, 127, 9},
    {IPPROTO_TCP, TCP_USER_TIMEOUT, 0, kNumber<&shm::SocketOptions::user_timeout_ms>, 0, INT32_MAX, 0},
    {IPPROTO_TCP, TCP_DEFER_ACCEPT, 0, kNumber<&shm::SocketOptions::defer_accept_s>, 0, INT32_MAX, 0},
    {IPPROTO_TCP, TCP_FASTOPEN, 0, kNumber<&shm::SocketOptions::fast_open_queue>, 0, INT32_MAX, 0},
    {IPPROTO_TCP, TCP_NOTSENT_LOWAT, 0, kNumber<&shm::SocketOptions::notsent_lowat>, INT32_MIN, INT32_MAX, 0},
    {IPPROTO_TCP, TCP_WINDOW_CLAMP, 0, kNumber<&shm::SocketOptions::window_clamp>, INT32_MIN, INT32_MAX, 0},
    {IPPROTO_TCP, TCP_MAXSEG, 0, kNumber<&shm::SocketOptions::max_segment>, 88, 32767, 536},
};

inline const IntOption* find_option(int level, int name) noexcept {
    for (const IntOption& option : kIntOptions)
        if (option.level == level && option.name == name) return &option;
    return nullptr;
}

/// Of linux/tcp.h and newer headers than ours.
inline constexpr int kTcpTxDelay = 37;
inline constexpr int kTcpInq = 36;
inline constexpr int kTcpFastOpenNoCookie = 34;
inline constexpr int kTcpMd5SigExt = 32;
inline constexpr int kTcpAoAddKey = 38;

/// What only the kernel does for a stream. Set before the connection (or listen) it leaves the socket to the kernel; on a
/// connection of Culvert's it is refused, for nothing would come of it. Taking it away is always right: see asks_for_something().
inline bool only_kernel_does(int level, int name) noexcept {
    if (level == SOL_SOCKET)
        return name == SO_MARK || name == SO_BINDTODEVICE || name == SO_BINDTOIFINDEX || name == SO_ATTACH_FILTER ||
               name == SO_ATTACH_BPF || name == SO_TXTIME || name == SO_TIMESTAMP || name == SO_TIMESTAMPNS ||
               name == SO_TIMESTAMPING || name == SO_TIMESTAMP_NEW || name == SO_TIMESTAMPNS_NEW || name == SO_TIMESTAMPING_NEW;
    if (level == IPPROTO_TCP)
        return name == TCP_MD5SIG || name == kTcpMd5SigExt || name == kTcpAoAddKey || name == kTcpTxDelay;
    return (level == IPPROTO_IP && name == IP_MINTTL) || (level == IPPROTO_IPV6 && name == IPV6_MINHOPCOUNT);
}

/// The same for a listener: the SYNs of its connections are not kept here, and the key of its cookies is the daemon's.
inline bool only_kernel_listens(int level, int name) noexcept {
    return level == IPPROTO_TCP && (name == TCP_SAVE_SYN || name == TCP_FASTOPEN_KEY);
}

/// What an accepted connection keeps in its record without a kernel socket of its own: what servers set on each connection.
/// All others are set on one (Socket::own_kernel_half).
inline bool is_kept_by_record(int level, int name) noexcept {
    // Read back, or of lengths that are taken, in the kernel's own way.
    if (level == IPPROTO_TCP && (name == TCP_DEFER_ACCEPT || name == TCP_MAXSEG)) return false;
    if ((level == IPPROTO_IP && name == IP_RECVERR) || (level == IPPROTO_IPV6 && name == IPV6_RECVERR)) return false;
    if (find_option(level, name) != nullptr) return true;
    if (level == SOL_SOCKET)
        return name == SO_RCVTIMEO || name == SO_SNDTIMEO || name == SO_LINGER || name == SO_RCVLOWAT || name == SO_RCVBUF ||
               name == SO_RCVBUFFORCE || name == SO_SNDBUF || name == SO_SNDBUFFORCE;
    return (level == IPPROTO_TCP && name == TCP_CONGESTION) || (level == IPPROTO_IP && (name == IP_TOS || name == IP_TTL)) ||
           (level == IPPROTO_IPV6 && name == IPV6_TCLASS);
}

/// Not the value that a fresh socket has.
inline bool asks_for_something(const void* value, socklen_t length) noexcept {
    const auto* const bytes = static_cast<const unsigned char*>(value);
    if (value == nullptr || length == 0) return false;
    return std::any_of(bytes, bytes + std::min<socklen_t>(length, sizeof(int)), [](unsigned char byte) { return byte != 0; });
}

}  // namespace culvert::preload
