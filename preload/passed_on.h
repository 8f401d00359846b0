// Options of a listener that its connections get, beside those that the record has a place for.
//
// Linux clones the listener's socket; here the connection gets a kernel socket of its own, on which they are set as they are on the
// listener's (Socket::dress_as_listener). Only where somebody has set one of them, which hardly any server does.
#pragma once

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <iterator>

namespace culvert::preload {

struct PassedOn {
    int level;
    int name;
};

/// All of type int. A bit of a word each, in this order. SO_PRIORITY is not passed on, and SO_INCOMING_CPU is each connection's own.
inline constexpr PassedOn kPassedOn[] = {
    {SOL_SOCKET, SO_DEBUG},          {SOL_SOCKET, SO_RXQ_OVFL},        {SOL_SOCKET, SO_BUSY_POLL},
    {SOL_SOCKET, SO_NOFCS},          {SOL_SOCKET, SO_NO_CHECK},        {SOL_SOCKET, SO_WIFI_STATUS},
    {SOL_SOCKET, SO_SELECT_ERR_QUEUE}, {SOL_SOCKET, SO_PREFER_BUSY_POLL}, {SOL_SOCKET, SO_BUSY_POLL_BUDGET},
    {IPPROTO_IP, IP_TOS},            {IPPROTO_IP, IP_TTL},  // of an IPv6 listener: its record has the other family's
    {IPPROTO_IP, IP_PKTINFO},        {IPPROTO_IP, IP_RECVTTL},         {IPPROTO_IP, IP_RECVTOS},         {IPPROTO_IP, IP_RECVOPTS},
    {IPPROTO_IP, IP_RETOPTS},        {IPPROTO_IP, IP_RECVORIGDSTADDR}, {IPPROTO_IP, IP_MTU_DISCOVER},    {IPPROTO_IP, IP_FREEBIND},
    {IPPROTO_IP, IP_TRANSPARENT},    {IPPROTO_IP, IP_MULTICAST_TTL},   {IPPROTO_IP, IP_MULTICAST_LOOP},  {IPPROTO_IP, IP_MULTICAST_ALL},
    {IPPROTO_IP, IP_UNICAST_IF},     {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO}, {IPPROTO_IPV6, IPV6_RECVHOPLIMIT}, {IPPROTO_IPV6, IPV6_RECVTCLASS}, {IPPROTO_IPV6, IPV6_RECVRTHDR},
    {IPPROTO_IPV6, IPV6_RECVHOPOPTS}, {IPPROTO_IPV6, IPV6_RECVDSTOPTS}, {IPPROTO_IPV6, IPV6_MTU_DISCOVER}, {IPPROTO_IPV6, IPV6_DONTFRAG},
    {IPPROTO_IPV6, IPV6_MULTICAST_HOPS}, {IPPROTO_IPV6, IPV6_MULTICAST_LOOP}, {IPPROTO_IPV6, IPV6_AUTOFLOWLABEL},
    {IPPROTO_IPV6, IPV6_TRANSPARENT}, {IPPROTO_IPV6, IPV6_FREEBIND},   {IPPROTO_IPV6, IPV6_UNICAST_IF},
    {IPPROTO_TCP, TCP_SYNCNT},       {IPPROTO_TCP, TCP_LINGER2},       {IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS}, {IPPROTO_TCP, TCP_THIN_DUPACK},
};
static_assert(std::size(kPassedOn) <= 64);

/// 1 + the option's place in kPassedOn, by level and name: every setsockopt asks.
struct PassedOnIndex {
    static constexpr int kNames = 128;
    std::array<std::array<std::uint8_t, kNames>, 4> places{};

    static constexpr int row(int level) noexcept {
        switch (level) {
            case SOL_SOCKET: return 0;
            case IPPROTO_IP: return 1;
            case IPPROTO_IPV6: return 2;
            case IPPROTO_TCP: return 3;
            default: return -1;
        }
    }
    constexpr PassedOnIndex() noexcept {
        for (std::size_t i = 0; i < std::size(kPassedOn); ++i)
            places.at(static_cast<std::size_t>(row(kPassedOn[i].level))).at(static_cast<std::size_t>(kPassedOn[i].name)) =
                static_cast<std::uint8_t>(i + 1);
    }
};
inline constexpr PassedOnIndex kPassedOnIndex;

inline std::uint64_t passed_on_bit(int family, int level, int name) noexcept {
    const int row = PassedOnIndex::row(level);
    if (row < 0 || name < 0 || name >= PassedOnIndex::kNames) return 0;
    if (family == AF_INET && level == IPPROTO_IP && (name == IP_TOS || name == IP_TTL)) return 0;
    const std::uint8_t place = kPassedOnIndex.places[static_cast<std::size_t>(row)][static_cast<std::size_t>(name)];
    return place != 0 ? std::uint64_t{1} << (place - 1) : 0;
}

}  // namespace culvert::preload
