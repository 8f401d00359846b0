// Socket as a raw or ping socket: the kernel's on shared addresses, Culvert's on those that are Culvert's alone.
//
// Of a shared address the kernel gets every protocol but TCP and UDP, so ICMP and the rest can only be the kernel's there.
// Of a dedicated address it gets nothing. So a socket of this kind has two halves, as a UDP socket has: receive looks at
// both, and each packet goes out through the half that owns the address it is sent from (the daemon says which). A host
// without dedicated addresses refuses the daemon's half (EADDRNOTAVAIL); the socket is then a kernel socket and no more,
// and is offered again with a later packet, a second later at the earliest.
//
//   socket()  kernel's socket (it checks the privilege)   raw: GrantRaw with it, kBindRaw
//   bind()    kernel's bind                               ping: the same now, with the kernel's identifier
//   send      kRoute: from a dedicated address?           yes: blocks; no: sendmsg
//
// The grant is what makes this safe: the daemon lets a kBindRaw through only after it has seen a raw socket that the
// kernel has made. It need not trust what this file says.

#include <linux/icmp.h>
#include <netinet/in.h>
#include <netinet/icmp6.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "preload/address.h"
#include "preload/fail.h"
#include "preload/libc.h"
#include "preload/socket.h"
#include "preload/socket_inline.h"

namespace culvert::preload {

namespace {

constexpr std::int64_t kTryAgainNs = 1'000'000'000;
constexpr std::size_t kMaxPacket = 0xffff;
constexpr int kSolRaw = 255;  // SOL_RAW, which <bits/socket.h> has only for some
/// Marks the entries of the route cache that are about such sockets: for UDP the same destination may be Culvert's.
constexpr std::uint16_t kRawRoute = 0x100;

std::uint8_t first_byte(const msghdr& message) noexcept {
    for (std::size_t i = 0; i < message.msg_iovlen; ++i)
        if (message.msg_iov[i].iov_len != 0) return *static_cast<const std::uint8_t*>(message.msg_iov[i].iov_base);
    return 0;
}

}  // namespace

void Socket::start_raw(int fd, int protocol) noexcept {
    const bool v6 = family_ == AF_INET6;
    datagram_->raw_kind = shm::raw_kind(type_ == SOCK_DGRAM, v6, static_cast<std::uint8_t>(protocol));
    if (type_ != SOCK_RAW) return;
    if (protocol == IPPROTO_RAW && v6) {  // whole IPv6 packets
        datagram_->kernel_only = true;
        if (Client* client = Client::current()) client->note_reason(fd, shm::KernelReason::kType);
        return;
    }
    if (protocol == IPPROTO_RAW) early_options_.flags |= shm::kOptionHeaderIncluded;
    try_bind_raw(fd);
}

/// Offers the socket, as the kernel has bound it, to the daemon. What cannot be Culvert's stays the kernel's.
void Socket::try_bind_raw(int fd) noexcept {
    const bool again = path() == Path::kDatagram && !client_->daemon_gone();
    Client* client = again ? client_.get() : Client::attached();
    if (client == nullptr || client->daemon_gone()) return;
    if (datagram_->kernel_only) return client->note_reason(fd, datagram_->kernel_reason);
    sockaddr_storage name{};
    socklen_t length = sizeof name;
    if (libc::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length) != 0) return;
    auto local = to_wire(reinterpret_cast<sockaddr*>(&name), length, family_);
    if (!local) return;
    if (type_ == SOCK_RAW) local->port = 0;  // the kernel says the protocol there
    else if (local->port == 0) return;       // no identifier yet
    const auto leave = [&](shm::KernelReason reason) {
        abandon();
        datagram_connected_ = false;
        datagram_->try_again_ns = now_ns() + kTryAgainNs;
        client->note_reason(fd, reason);
    };
    if (is_loopback(*local)) return leave(shm::KernelReason::kLoopback);
    if (datagram_->bound) {
        const shm::KernelReason policy = why_kernel(policy_protocol(), shm::Policy::Call::kListen, *local);
        if (policy != shm::KernelReason::kUnknown) return leave(policy);
    }
    if (again) {
        const int error = operate(*client, record(), shm::Operation::kBindRaw, datagram_->raw_kind, *local, {});
        return error == 0 ? void() : leave(shm::KernelReason::kSharedAddress);
    }
    const std::uint32_t record = prepare_record(*client);
    if (record == shm::kNoIndex) return leave(shm::KernelReason::kTableFull);
    int error = EPERM;
    if (client->grant_raw(fd))
        error = operate(*client, record, shm::Operation::kBindRaw, datagram_->raw_kind, *local, {});
    if (error != 0) {
        client->let_go(record, false);
        return leave(error == EADDRNOTAVAIL ? shm::KernelReason::kSharedAddress : shm::KernelReason::kRefused);
    }
    learn_file_flags(fd);
    adopt(*client, record, Path::kDatagram);
    client->note_reason(fd, shm::KernelReason::kDatagramPair);
    if (std::any_of(std::begin(datagram_->blocked_types), std::end(datagram_->blocked_types),
                    [](std::uint32_t word) { return word != 0; }))
        tell_filter();
    if (datagram_->checksum_offset != shm::kNoIndex)
        operate(*client_, record, shm::Operation::kChecksumOffset, datagram_->checksum_offset, {}, {});
    tell_groups();
}

/// Whether a packet to `key.remote` goes out from a dedicated address. Makes the daemon's half if that has become possible.
RouteAnswer Socket::ask_raw_route(int fd, RouteKey key) noexcept {
    constexpr RouteAnswer kKernels{EHOSTUNREACH, 0};
    if (datagram_->kernel_only || is_loopback(key.remote) || is_unspecified(key.remote)) return kKernels;
    if (why_not_to(key.remote) != shm::KernelReason::kUnknown) return kKernels;
    const std::int64_t now = now_ns();
    revive_if_due(fd);
    if (path() == Path::kKernel) {
        if (now < datagram_->try_again_ns) return kKernels;
        if (type_ == SOCK_DGRAM) {
            sockaddr_storage name{};
            socklen_t length = sizeof name;
            if (libc::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length) != 0) return kKernels;
            if (reinterpret_cast<const sockaddr_in*>(&name)->sin_port == 0) {  // of IPv6 it lies at the same place
                sockaddr_storage any{};
                any.ss_family = static_cast<sa_family_t>(family_);
                libc::bind(fd, reinterpret_cast<const sockaddr*>(&any), length);
            }
        }
        try_bind_raw(fd);
    }
    if (path() != Path::kDatagram || client_->daemon_gone()) return kKernels;
    key.remote.port = 0;
    RouteKey marked = key;
    marked.remote.family |= kRawRoute;
    RouteAnswer answer;
    if (find_route(marked, now, answer)) return answer;
    shm::WireEndpoint source{};
    std::memcpy(source.address, key.source, sizeof source.address);
    shm::SocketRecord& shared = this->shared();
    const shm::WireEndpoint local = shared.local;
    answer.error = operate(*client_, record(), shm::Operation::kRoute, 0, source, key.remote);
    answer.mtu = answer.error == 0 ? shared.info.path_mtu : 0;
    shared.local = local;  // the answer stands where the local address was
    if (answer.error != EACCES) keep_route(marked, false, answer, now);
    return answer;
}

int Socket::connect_raw(int fd, const sockaddr* address, socklen_t length) noexcept {
    const KeepErrno keep;
    if (address != nullptr && length >= sizeof(sa_family_t) && address->sa_family == AF_UNSPEC) {
        if (path() == Path::kDatagram) operate(*client_, record(), shm::Operation::kConnectDatagram, 0, {}, {});
        datagram_connected_ = connected_kernel_ = false;
        return keep.pass(libc::connect(fd, address, length));
    }
    auto remote = to_wire(address, length, family_);
    const bool through_culvert = remote && ask_raw_route(fd, {.remote = *remote}).error == 0;
    // Where the kernel has no way to the peer, only our half is connected.
    if (libc::connect(fd, address, length) != 0) {
        const bool no_way = errno == ENETUNREACH || errno == EHOSTUNREACH || errno == EADDRNOTAVAIL;
        if (!(no_way && through_culvert)) return keep.pass(-1);
    }
    datagram_connected_ = false;
    connected_kernel_ = true;
    if (!remote || path() != Path::kDatagram) return 0;
    // Our half hears that peer only, whichever half reaches it.
    remote->port = 0;
    const bool told = operate(*client_, record(), shm::Operation::kConnectDatagram, 0, {}, *remote) == 0;
    datagram_connected_ = told && through_culvert;
    connected_kernel_ = !datagram_connected_;
    return 0;
}

ssize_t Socket::send_raw(int fd, const msghdr& message, int flags) noexcept {
    const auto* address = static_cast<const sockaddr*>(message.msg_namelen != 0 ? message.msg_name : nullptr);
    constexpr int kKernelsFlags = MSG_OOB | MSG_MORE | MSG_DONTROUTE | MSG_ZEROCOPY;
    if (datagram_->kernel_only || datagram_->corked || (flags & kKernelsFlags) != 0)
        return send_by_kernel(fd, message, flags);
    DatagramSend send;
    if (message.msg_controllen != 0) {
        const int refused = read_control(message, family_, send);
        if (refused > 0) return fail(refused);
        if (refused < 0) return send_by_kernel(fd, message, flags);
    }
    std::size_t length = 0;
    for (std::size_t i = 0; i < message.msg_iovlen; ++i) length += message.msg_iov[i].iov_len;
    // What a ping socket may not send has the kernel's errno.
    const int request = family_ == AF_INET ? ICMP_ECHO : ICMP6_ECHO_REQUEST;
    if (type_ == SOCK_DGRAM && (length < sizeof(icmphdr) || first_byte(message) != request))
        return send_by_kernel(fd, message, flags);
    shm::WireEndpoint to{};
    if (address != nullptr) {
        const auto remote = to_wire(address, message.msg_namelen, family_);
        if (!remote) return send_by_kernel(fd, message, flags);  // its errno
        to = *remote;
        to.port = 0;
    } else if (!datagram_connected_ || path() != Path::kDatagram || client_->daemon_gone()) {
        return send_by_kernel(fd, message, flags);  // EDESTADDRREQ, or a peer on its side
    }
    const shm::WireEndpoint peer = address != nullptr ? to : shm::WireEndpoint(shared().remote);
    const bool v4 = family_ == AF_INET;
    shm::DatagramHeader header = make_header(to, v4, is_multicast(peer), send, datagram_->defaults);
    header.segment_size = 0;
    if (address != nullptr || send.has_source || send.interface != 0) {
        RouteKey key{.remote = peer};
        std::memcpy(key.source, header.local_address, sizeof key.source);
        if (header.interface != 0) key.remote.interface = header.interface;
        const KeepErrno keep;
        const RouteAnswer route = ask_raw_route(fd, key);
        if (route.error == EACCES) return keep.fail(EACCES);
        if (route.error != 0) return keep.pass(send_by_kernel(fd, message, flags));
    }
    if (length > kMaxPacket) return fail(EMSGSIZE);
    header.length = static_cast<std::uint32_t>(length);
    return send_datagram_blocks(message, header, flags);
}

int Socket::tell_filter() noexcept {
    shm::WireEndpoint low{};
    shm::WireEndpoint high{};
    std::memcpy(low.address, datagram_->blocked_types, sizeof low.address);
    std::memcpy(high.address, datagram_->blocked_types + 4, sizeof high.address);
    return operate(*client_, record(), shm::Operation::kFilterTypes, 0, low, high);
}

/// Options of raw sockets that our half must obey, too. False: not one of them.
bool Socket::keep_raw_option(int level, int name, const void* value, socklen_t length) noexcept {
    int number = 0;
    std::memcpy(&number, value, std::min<std::size_t>(length, sizeof number));
    if (level == IPPROTO_IP && name == IP_HDRINCL) {
        change_options([&](shm::SocketOptions& options) {
            options.flags = number != 0 ? options.flags | shm::kOptionHeaderIncluded
                                        : options.flags & ~shm::kOptionHeaderIncluded;
        });
        return true;
    }
    // Received options are given to nobody, so there are none to return.
    if (level == IPPROTO_IP && name == IP_RETOPTS) return true;
    const bool filter4 = family_ == AF_INET && level == kSolRaw && name == ICMP_FILTER;
    const bool filter6 = family_ == AF_INET6 && level == IPPROTO_ICMPV6 && name == ICMP6_FILTER;
    if (filter4 || filter6) {
        const std::size_t most = filter4 ? sizeof(std::uint32_t) : sizeof datagram_->blocked_types;
        std::memcpy(datagram_->blocked_types, value, std::min<std::size_t>(length, most));
        if (path() == Path::kDatagram) tell_filter();
        return true;
    }
    if (family_ == AF_INET6 && (level == kSolRaw || level == IPPROTO_IPV6) && name == IPV6_CHECKSUM) {
        datagram_->checksum_offset = number < 0 ? shm::kNoIndex : static_cast<std::uint32_t>(number);
        if (path() == Path::kDatagram)
            operate(*client_, record(), shm::Operation::kChecksumOffset, datagram_->checksum_offset, {}, {});
        return true;
    }
    return false;
}

}  // namespace culvert::preload
