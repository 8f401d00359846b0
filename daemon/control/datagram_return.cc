#include "daemon/control/datagram_return.h"

#include <netinet/in.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "daemon/control/foreign_socket.h"
#include "daemon/control/kernel_flows.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"
#include "daemon/wire/udp.h"

namespace culvert::control {
namespace {

/// What the kernel says of a UDP socket.
struct Half {
    Endpoint local;
    std::optional<Endpoint> remote;
    bool v4 = false;    // AF_INET
    bool dual = false;  // AF_INET6 that takes IPv4, too

    bool takes(const tenant::UnreadDatagram& datagram) const {
        const Address& to = datagram.local.address;
        if (datagram.local.port != local.port || to.is_unspecified() || to.is_multicast() || to.is_broadcast()) return false;
        if (v4 ? !to.is_v4() : to.is_v4() && !dual) return false;
        if (!local.address.is_unspecified() && local.address != to) return false;
        return !remote || *remote == datagram.remote;
    }
};

std::optional<Endpoint> name_of(int (*ask)(int, sockaddr*, socklen_t*), int fd) {
    sockaddr_storage name{};
    socklen_t length = sizeof name;
    if (ask(fd, reinterpret_cast<sockaddr*>(&name), &length) != 0) return std::nullopt;
    if (name.ss_family == AF_INET) {
        const auto& in = reinterpret_cast<const sockaddr_in&>(name);
        return Endpoint{Address::from_v4(std::as_bytes(std::span(&in.sin_addr.s_addr, 1)).first<4>()), ntohs(in.sin_port)};
    }
    if (name.ss_family != AF_INET6) return std::nullopt;
    const auto& in6 = reinterpret_cast<const sockaddr_in6&>(name);
    return Endpoint{Address::from_v6(std::as_bytes(std::span(in6.sin6_addr.s6_addr)).first<16>()), ntohs(in6.sin6_port)};
}

/// Nothing: it proves nothing, or somebody else has a socket on the same port.
std::optional<Half> half_of(int fd) {
    const auto domain = socket_option(fd, SOL_SOCKET, SO_DOMAIN);
    const auto protocol = socket_option(fd, SOL_SOCKET, SO_PROTOCOL);
    if (!domain || !protocol || *protocol != IPPROTO_UDP || (*domain != AF_INET && *domain != AF_INET6)) return std::nullopt;
    if (!is_of_our_namespace(fd)) return std::nullopt;
    const auto local = name_of(::getsockname, fd);
    struct stat file {};
    if (!local || local->port == 0 || ::fstat(fd, &file) != 0) return std::nullopt;
    const auto alone = udp_port_is_of(local->port, file.st_uid);
    if (!alone || !*alone) return std::nullopt;
    Half half{.local = *local, .remote = name_of(::getpeername, fd), .v4 = *domain == AF_INET};
    half.dual = !half.v4 && socket_option(fd, IPPROTO_IPV6, IPV6_V6ONLY) == 0;
    return half;
}

struct SocketName {
    sockaddr_storage storage{};
    socklen_t length = 0;
    sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

SocketName name_of(const Endpoint& endpoint, std::uint32_t interface) {
    SocketName name;
    const auto bytes = endpoint.address.wire_bytes();
    if (endpoint.address.is_v4()) {
        auto& in = reinterpret_cast<sockaddr_in&>(name.storage);
        name.length = sizeof in;
        in.sin_family = AF_INET;
        in.sin_port = htons(endpoint.port);
        std::memcpy(&in.sin_addr, bytes.data(), bytes.size());
    } else {
        auto& in6 = reinterpret_cast<sockaddr_in6&>(name.storage);
        name.length = sizeof in6;
        in6.sin6_family = AF_INET6;
        in6.sin6_port = htons(endpoint.port);
        std::memcpy(&in6.sin6_addr, bytes.data(), bytes.size());
        if (endpoint.address.is_link_local()) in6.sin6_scope_id = interface;
    }
    return name;
}

/// True: what is sent there stays on this host. To an address of its own the kernel speaks from that address; a socket that is bound
/// to a foreign one (IP_FREEBIND) proves nothing.
bool is_of_this_host(const Endpoint& to, std::uint32_t interface) {
    if (to.address.is_loopback()) return true;
    const UniqueFd probe(::socket(to.address.is_v4() ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    SocketName name = name_of(to, interface);
    if (!probe || ::connect(probe.get(), name.get(), name.length) != 0) return false;
    const auto from = name_of(::getsockname, probe.get());
    return from && from->address == to.address;
}

/// Who could be answered.
bool is_sender(const Endpoint& remote) {
    const Address& from = remote.address;
    return remote.port != 0 && !from.is_unspecified() && !from.is_multicast() && !from.is_broadcast();
}

template <class Header>
std::vector<std::byte> packet_of(Header outer, std::size_t outer_length, const tenant::UnreadDatagram& datagram,
                                 std::span<const std::byte> payload) {
    outer.source = datagram.remote.address;
    outer.destination = datagram.local.address;
    outer.protocol = wire::IpProtocol::kUdp;
    if (datagram.ttl != 0) outer.hop_limit = datagram.ttl;
    outer.traffic_class = datagram.tos;
    std::vector<std::byte> packet(outer_length + wire::kUdpHeaderLength);
    const std::span<std::byte> all(packet);
    wire::emit(outer, wire::kUdpHeaderLength + payload.size(), all);
    const std::span<std::byte> udp = all.subspan(outer_length);
    wire::emit(wire::UdpHeader{.source = datagram.remote.port, .destination = datagram.local.port}, payload.size(), udp);
    wire::finish_udp_checksum(udp, wire::sum_bytes(payload), outer.source, outer.destination);
    packet.insert(packet.end(), payload.begin(), payload.end());
    return packet;
}

}  // namespace

int DatagramReturn::socket_for(bool v4) {
    UniqueFd& raw = v4 ? raw4_ : raw6_;
    if (!raw) {
        raw.reset(::socket(v4 ? AF_INET : AF_INET6, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_RAW));
        if (!raw) spdlog::warn("datagrams of a socket that was passed on are lost: raw socket: {}", std::strerror(errno));
    }
    return raw.get();
}

bool DatagramReturn::give_one(const tenant::UnreadDatagram& datagram, std::span<const std::byte> payload) {
    const bool v4 = datagram.local.address.is_v4();
    const std::size_t headers = (v4 ? wire::kIpv4HeaderLength : 0) + wire::kUdpHeaderLength;
    const int raw = socket_for(v4);
    if (raw < 0 || headers + payload.size() > 0xffff) return false;
    const std::vector<std::byte> packet = v4 ? packet_of(wire::Ipv4Header{}, wire::kIpv4HeaderLength, datagram, payload)
                                             : packet_of(wire::Ipv6Header{}, wire::kIpv6HeaderLength, datagram, payload);
    SocketName name = name_of({datagram.local.address, 0}, datagram.interface);  // a raw socket has no ports
    return ::sendto(raw, packet.data(), packet.size(), MSG_DONTWAIT, name.get(), name.length) >= 0;
}

std::uint32_t DatagramReturn::give(std::span<const tenant::UnreadDatagram> datagrams, int half_fd) {
    if (datagrams.empty()) return 0;
    const auto half = half_of(half_fd);
    std::uint32_t given = 0;
    std::optional<std::pair<Endpoint, std::uint32_t>> known;  // the last one that is of this host: mostly all have the same
    std::size_t left = tenant::Tenant::kMostUnread;  // of single ones: bursts that came as one are cut
    for (const tenant::UnreadDatagram& datagram : datagrams) {
        if (!half || !half->takes(datagram) || !is_sender(datagram.remote) ||
            datagram.remote.address.is_v4() != datagram.local.address.is_v4()) {
            ++statistics_.refused;
            continue;
        }
        const std::pair to(datagram.local, datagram.interface);
        if (known != to && !is_of_this_host(datagram.local, datagram.interface)) {
            ++statistics_.refused;
            continue;
        }
        known = to;
        std::span<const std::byte> rest(datagram.payload);
        do {
            const std::size_t size = datagram.segment_size != 0 ? std::min<std::size_t>(datagram.segment_size, rest.size()) : rest.size();
            const bool taken = left != 0 && give_one(datagram, rest.first(size));
            ++(taken ? statistics_.given : statistics_.lost);
            if (left != 0) --left;
            given += taken ? 1 : 0;
            rest = rest.subspan(size);
        } while (!rest.empty() && left != 0);
    }
    return given;
}

}  // namespace culvert::control
