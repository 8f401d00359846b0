// Options of datagram sockets. The kernel's socket has accepted each of them before it comes here; what is kept is what
// Culvert's half needs to behave alike. An option that only the kernel can obey leaves the socket to the kernel.

#include <net/if.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/ioctl.h>

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

// Numbers that some C libraries do not know yet.
constexpr int kUdpSegment = 103, kUdpGro = 104, kMulticastAll6 = 29, kOriginalDestination6 = 74;
constexpr int kTimestampNew = 63, kTimestampNsNew = 64;

struct Want {
    int level;
    int name;
    std::uint32_t bit;
};
constexpr Want kWants[] = {
    {IPPROTO_IP, IP_PKTINFO, kWantPacketInfo4},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO, kWantPacketInfo6},
    {IPPROTO_IP, IP_RECVTTL, kWantTtl},
    {IPPROTO_IP, IP_RECVTOS, kWantTos},
    {IPPROTO_IPV6, IPV6_RECVHOPLIMIT, kWantHopLimit},
    {IPPROTO_IPV6, IPV6_RECVTCLASS, kWantTrafficClass},
    {IPPROTO_IP, IP_RECVORIGDSTADDR, kWantOriginalDestination4},
    {IPPROTO_IPV6, kOriginalDestination6, kWantOriginalDestination6},
    {SOL_SOCKET, SO_RXQ_OVFL, kWantOverflow},
    {IPPROTO_UDP, kUdpGro, kWantMerged},
};
constexpr std::uint32_t kTimestamps = kWantTimestamp | kWantTimestampNew | kWantTimestampNs | kWantTimestampNsNew;

std::uint32_t timestamp_bit(int name) noexcept {
    switch (name) {
        case SO_TIMESTAMP: return kWantTimestamp;
        case SO_TIMESTAMPNS: return kWantTimestampNs;
        case kTimestampNew: return kWantTimestampNew;
        case kTimestampNsNew: return kWantTimestampNsNew;
        default: return 0;
    }
}

/// Options that change nothing for Culvert's half, or that it obeys by what is kept elsewhere.
bool is_understood(int level, int name) noexcept {
    if (level == SOL_SOCKET) switch (name) {
            case SO_RCVBUF:
            case SO_RCVBUFFORCE:
            case SO_SNDBUF:
            case SO_SNDBUFFORCE:
            case SO_RCVTIMEO:
            case SO_SNDTIMEO:
            case SO_REUSEADDR:
            case SO_REUSEPORT:
            case SO_KEEPALIVE:
            case SO_LINGER:
            case SO_PRIORITY:
            case SO_ZEROCOPY:
            case SO_BUSY_POLL:
            case SO_RCVLOWAT:
            case SO_OOBINLINE:
            case SO_INCOMING_CPU:
            case SO_DEBUG: return true;
            default: return false;
        }
    if (level == IPPROTO_IP) return name == IP_FREEBIND || name == IP_BIND_ADDRESS_NO_PORT || name == IP_MTU;
    if (level == IPPROTO_IPV6) return name == IPV6_V6ONLY || name == IPV6_ADDRFORM || name == IPV6_AUTOFLOWLABEL;
    return false;
}

shm::PathRule rule_of(int discover) noexcept {
    switch (discover) {
        case IP_PMTUDISC_DO: return shm::PathRule::kObey;
        case IP_PMTUDISC_PROBE: return shm::PathRule::kProbe;
        case IP_PMTUDISC_INTERFACE: return shm::PathRule::kLink;
        default: return shm::PathRule::kCut;
    }
}

void set_flag(std::uint32_t& flags, std::uint32_t flag, bool on) noexcept { flags = on ? flags | flag : flags & ~flag; }

/// The interface that IP_MULTICAST_IF or a membership names by an address of it; 0: none that the kernel knows.
std::uint32_t index_of_v4(int fd, const in_addr& address) noexcept {
    if (address.s_addr == 0) return 0;
    ifconf list{};
    char buffer[64 * sizeof(ifreq)];
    list.ifc_len = sizeof buffer;
    list.ifc_buf = buffer;
    if (libc::ioctl(fd, SIOCGIFCONF, &list) != 0) return 0;
    for (int at = 0; at + static_cast<int>(sizeof(ifreq)) <= list.ifc_len; at += static_cast<int>(sizeof(ifreq))) {
        ifreq entry{};
        std::memcpy(&entry, buffer + at, sizeof entry);
        sockaddr_in in{};
        std::memcpy(&in, &entry.ifr_addr, sizeof in);
        if (in.sin_addr.s_addr != address.s_addr) continue;
        if (libc::ioctl(fd, SIOCGIFINDEX, &entry) != 0) return 0;
        return static_cast<std::uint32_t>(entry.ifr_ifindex);
    }
    return 0;
}

shm::WireEndpoint wire_v4(const in_addr& address, int family) noexcept {
    shm::WireEndpoint wire{};
    wire.family = family == AF_INET6 ? 6 : 4;
    wire.address[10] = wire.address[11] = 0xff;
    std::memcpy(wire.address + 12, &address, 4);
    return wire;
}

template <class Value>
bool read_value(const void* value, socklen_t length, Value& out) noexcept {
    if (length < sizeof out) return false;
    std::memcpy(&out, value, sizeof out);
    return true;
}

struct GroupName {
    int level;
    int name;
    shm::Operation operation;
};
constexpr GroupName kGroupNames[] = {
    {IPPROTO_IP, IP_ADD_MEMBERSHIP, shm::Operation::kJoinGroup},
    {IPPROTO_IP, IP_DROP_MEMBERSHIP, shm::Operation::kLeaveGroup},
    {IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, shm::Operation::kJoinGroup},
    {IPPROTO_IPV6, IPV6_DROP_MEMBERSHIP, shm::Operation::kLeaveGroup},
    {IPPROTO_IP, MCAST_JOIN_GROUP, shm::Operation::kJoinGroup},
    {IPPROTO_IP, MCAST_LEAVE_GROUP, shm::Operation::kLeaveGroup},
    {IPPROTO_IPV6, MCAST_JOIN_GROUP, shm::Operation::kJoinGroup},
    {IPPROTO_IPV6, MCAST_LEAVE_GROUP, shm::Operation::kLeaveGroup},
    {IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, shm::Operation::kJoinSource},
    {IPPROTO_IP, IP_DROP_SOURCE_MEMBERSHIP, shm::Operation::kLeaveSource},
    {IPPROTO_IP, IP_BLOCK_SOURCE, shm::Operation::kBlockSource},
    {IPPROTO_IP, IP_UNBLOCK_SOURCE, shm::Operation::kUnblockSource},
    {IPPROTO_IP, MCAST_JOIN_SOURCE_GROUP, shm::Operation::kJoinSource},
    {IPPROTO_IP, MCAST_LEAVE_SOURCE_GROUP, shm::Operation::kLeaveSource},
    {IPPROTO_IP, MCAST_BLOCK_SOURCE, shm::Operation::kBlockSource},
    {IPPROTO_IP, MCAST_UNBLOCK_SOURCE, shm::Operation::kUnblockSource},
    {IPPROTO_IPV6, MCAST_JOIN_SOURCE_GROUP, shm::Operation::kJoinSource},
    {IPPROTO_IPV6, MCAST_LEAVE_SOURCE_GROUP, shm::Operation::kLeaveSource},
    {IPPROTO_IPV6, MCAST_BLOCK_SOURCE, shm::Operation::kBlockSource},
    {IPPROTO_IPV6, MCAST_UNBLOCK_SOURCE, shm::Operation::kUnblockSource},
};

/// The classic forms of IPv4, where an interface has an address rather than a number.
bool read_v4_membership(int fd, int family, int name, const void* value, socklen_t length, GroupRequest& request) noexcept {
    if (name == IP_ADD_MEMBERSHIP || name == IP_DROP_MEMBERSHIP) {
        ip_mreqn full{};
        if (!read_value(value, length, full)) {
            ip_mreq brief{};
            if (!read_value(value, length, brief)) return false;
            full.imr_multiaddr = brief.imr_multiaddr;
            full.imr_address = brief.imr_interface;
        }
        request.group = wire_v4(full.imr_multiaddr, family);
        request.interface = full.imr_ifindex > 0 ? static_cast<std::uint32_t>(full.imr_ifindex)
                                                 : index_of_v4(fd, full.imr_address);
        std::memcpy(&request.group.interface, &full.imr_address, sizeof request.group.interface);
        return true;
    }
    ip_mreq_source with{};
    if (!read_value(value, length, with)) return false;
    request.group = wire_v4(with.imr_multiaddr, family);
    request.source = wire_v4(with.imr_sourceaddr, family);
    request.interface = index_of_v4(fd, with.imr_interface);
    std::memcpy(&request.group.interface, &with.imr_interface, sizeof request.group.interface);
    return true;
}

/// The protocol-independent forms (RFC 3678 5).
bool read_general_membership(int family, bool with_source, const void* value, socklen_t length,
                             GroupRequest& request) noexcept {
    const auto endpoint = [family](const sockaddr_storage& address, shm::WireEndpoint& out) {
        const auto wire = to_wire(reinterpret_cast<const sockaddr*>(&address), sizeof address, family);
        if (wire) out = *wire;
        out.port = 0;
        out.interface = 0;
        return wire.has_value();
    };
    if (with_source) {
        group_source_req all{};
        if (!read_value(value, length, all)) return false;
        request.interface = all.gsr_interface;
        return endpoint(all.gsr_group, request.group) && endpoint(all.gsr_source, request.source);
    }
    group_req plain{};
    if (!read_value(value, length, plain)) return false;
    request.interface = plain.gr_interface;
    return endpoint(plain.gr_group, request.group);
}

bool read_membership(int fd, int family, const GroupName& what, const void* value, socklen_t length,
                     GroupRequest& request) noexcept {
    request.operation = what.operation;
    const bool with_source = what.operation != shm::Operation::kJoinGroup && what.operation != shm::Operation::kLeaveGroup;
    if (what.name >= MCAST_JOIN_GROUP && what.name <= MCAST_LEAVE_SOURCE_GROUP)
        return read_general_membership(family, with_source, value, length, request);
    if (what.level == IPPROTO_IP) return read_v4_membership(fd, family, what.name, value, length, request);
    ipv6_mreq six{};
    if (!read_value(value, length, six)) return false;
    request.group.family = 6;
    std::memcpy(request.group.address, &six.ipv6mr_multiaddr, sizeof request.group.address);
    request.interface = six.ipv6mr_interface;
    return true;
}

}  // namespace

/// Memberships: joined in the kernel and, where Culvert runs the link, in the daemon. True if that is what the option is;
/// `result` is then setsockopt's.
bool Socket::set_group_option(int fd, int level, int name, const void* value, socklen_t length, int& result) noexcept {
    const auto* const what = std::find_if(std::begin(kGroupNames), std::end(kGroupNames), [&](const GroupName& each) {
        return each.level == level && each.name == name;
    });
    if (what == std::end(kGroupNames)) return false;
    result = libc::setsockopt(fd, level, name, value, length);
    const int kernel_error = result == 0 ? 0 : errno;
    GroupRequest request;
    if (value == nullptr || !read_membership(fd, family_, *what, value, length, request)) return true;
    if (path() != Path::kDatagram || wants_daemon()) {
        if (kernel_error == 0) remember_group(fd, request);
        return true;
    }
    const int ours = tell_group(request);
    if (ours == 0 || kernel_error == 0) remember_group(fd, request);
    // The kernel does not know an interface whose addresses are all Culvert's, or it knows nothing of the group there.
    if (ours == 0) {
        result = 0;
    } else if (kernel_error != 0 && ours != EOPNOTSUPP && ours != ENETUNREACH) {
        result = fail(ours);
    } else if (kernel_error != 0) {
        result = fail(kernel_error);
    }
    return true;
}

/// Kept for the daemon that takes the socket over, the first or a later one. What ends a membership takes it out again.
void Socket::remember_group(int fd, const GroupRequest& request) noexcept {
    using shm::Operation;
    GroupRequest* const begin = datagram_->groups;
    GroupRequest* const end = begin + datagram_->group_count;
    const auto same = [](const shm::WireEndpoint& a, const shm::WireEndpoint& b) { return std::memcmp(a.address, b.address, sizeof a.address) == 0; };
    const Operation ends = request.operation == Operation::kLeaveSource     ? Operation::kJoinSource
                           : request.operation == Operation::kUnblockSource ? Operation::kBlockSource
                                                                            : Operation::kNone;
    const auto is_over = [&](const GroupRequest& each) {
        if (each.interface != request.interface || !same(each.group, request.group)) return false;
        return request.operation == Operation::kLeaveGroup || (each.operation == ends && same(each.source, request.source));
    };
    if (ends != Operation::kNone || request.operation == Operation::kLeaveGroup) {
        datagram_->group_count = static_cast<std::uint32_t>(std::remove_if(begin, end, is_over) - begin);
    } else if (datagram_->group_count < DatagramState::kMaxGroups) {
        datagram_->groups[datagram_->group_count++] = request;
    } else if (path() == Path::kDatagram && !wants_daemon()) {
        datagram_->groups_lost = true;  // this daemon knows them all; the next one would not
    } else {
        leave_to_kernel(fd);
    }
}

/// Where a group is the kernel's (EOPNOTSUPP) its socket has it already.
void Socket::tell_groups() noexcept {
    for (std::uint32_t i = 0; i < datagram_->group_count; ++i) tell_group(datagram_->groups[i]);
}

int Socket::tell_group(const GroupRequest& request) noexcept {
    return operate(*client_, record(), request.operation, request.interface, request.source, request.group);
}

bool Socket::keep_send_option(int level, int name, int number) noexcept {
    SendDefaults& defaults = datagram_->defaults;
    const auto byte = static_cast<std::uint8_t>(std::clamp(number, 0, 255));
    if (level == IPPROTO_IP) switch (name) {
            case IP_TTL: defaults.ttl[0] = byte; return true;
            case IP_TOS: defaults.tos[0] = byte; return true;
            case IP_MULTICAST_TTL: defaults.group_ttl[0] = number < 0 ? std::uint8_t{1} : byte; return true;
            case IP_MULTICAST_LOOP: defaults.loop[0] = number != 0; return true;
            case IP_MTU_DISCOVER: defaults.rule[0] = rule_of(number); return true;
            default: return false;
        }
    if (level == IPPROTO_IPV6) switch (name) {
            case IPV6_UNICAST_HOPS: defaults.ttl[1] = byte; return true;
            case IPV6_TCLASS: defaults.tos[1] = byte; return true;
            case IPV6_MULTICAST_HOPS: defaults.group_ttl[1] = number < 0 ? std::uint8_t{1} : byte; return true;
            case IPV6_MULTICAST_LOOP: defaults.loop[1] = number != 0; return true;
            case IPV6_MULTICAST_IF: defaults.group_interface[1] = static_cast<std::uint32_t>(std::max(number, 0)); return true;
            case IPV6_MTU_DISCOVER: defaults.rule[1] = rule_of(number); return true;
            case IPV6_MTU: datagram_->fragment_size6 = static_cast<std::uint32_t>(std::max(number, 0)); return true;
            case IPV6_DONTFRAG:
                if (number != 0) defaults.rule[1] = shm::PathRule::kObey;
                return true;
            default: return false;
        }
    if (level == IPPROTO_UDP && name == kUdpSegment) {
        defaults.segment_size = static_cast<std::uint16_t>(std::clamp(number, 0, 0xffff));
        return true;
    }
    if (level == SOL_SOCKET && name == SO_BROADCAST) {
        defaults.broadcast = number != 0;
        forget_routes();  // some may have been refused for want of it
        return true;
    }
    return false;
}

/// What the daemon has to know.
bool Socket::keep_daemon_option(int level, int name, int number) noexcept {
    const auto set = [&](std::uint32_t flag, bool on) {
        change_options([&](shm::SocketOptions& options) { set_flag(options.flags, flag, on); });
        return true;
    };
    const auto set_rule = [&](std::uint32_t shift) {
        change_options([&](shm::SocketOptions& options) {
            options.flags = (options.flags & ~(3u << shift)) | static_cast<std::uint32_t>(rule_of(number)) << shift;
        });
    };
    if (level == IPPROTO_IP && name == IP_MTU_DISCOVER) set_rule(shm::kOptionPathRule4Shift);
    if (level == IPPROTO_IPV6 && name == IPV6_MTU_DISCOVER) set_rule(shm::kOptionPathRule6Shift);
    if (level == IPPROTO_IP && name == IP_RECVERR) return set(shm::kOptionErrors4, number != 0);
    if (level == IPPROTO_IPV6 && name == IPV6_RECVERR) return set(shm::kOptionErrors6, number != 0);
    if (level == IPPROTO_IP && name == IP_MULTICAST_ALL) return set(shm::kOptionOnlyOwnGroups, number == 0);
    if (level == IPPROTO_IPV6 && name == kMulticastAll6) return set(shm::kOptionOnlyOwnGroups6, number == 0);
    if (level == IPPROTO_UDP && name == kUdpGro) set(shm::kOptionMerged, number != 0);
    return false;
}

void Socket::keep_datagram_option(int fd, int level, int name, const void* value, socklen_t length) noexcept {
    if (is_raw() && keep_raw_option(level, name, value, length)) return;
    int number = 0;
    if (length >= sizeof number)
        std::memcpy(&number, value, sizeof number);
    else if (length != 0)
        number = *static_cast<const std::uint8_t*>(value);
    if (level == IPPROTO_IP && name == IP_MULTICAST_IF) {
        ip_mreqn by_index{};
        in_addr by_address{};
        if (read_value(value, length, by_index) && by_index.imr_ifindex != 0)
            datagram_->defaults.group_interface[0] = static_cast<std::uint32_t>(by_index.imr_ifindex);
        else if (read_value(value, length, by_address))
            datagram_->defaults.group_interface[0] =
                index_of_v4(fd, length >= sizeof(ip_mreq) ? by_index.imr_address : by_address);
        return;
    }
    if (level == IPPROTO_UDP && name == UDP_CORK) {
        datagram_->cork_option = number != 0;
        if (number != 0) return;
        datagram_->corked = false;  // the kernel has sent what it had
        if (path() == Path::kDatagram) uncork();
        return;
    }
    const bool asks_errors = (level == IPPROTO_IP && name == IP_RECVERR) || (level == IPPROTO_IPV6 && name == IPV6_RECVERR);
    if (asks_errors && number == 0)  // what is in the queue goes
        datagram_->errors_told.store(datagram_->errors_made.load(std::memory_order_relaxed), std::memory_order_release);
    bool known = keep_send_option(level, name, number);
    known = keep_daemon_option(level, name, number) || known;
    for (const Want& want : kWants) {
        if (want.level != level || want.name != name) continue;
        std::uint32_t wants = datagram_->wants.load(std::memory_order_relaxed);
        set_flag(wants, want.bit, number != 0);
        datagram_->wants.store(wants, std::memory_order_relaxed);
        known = true;
    }
    if (const std::uint32_t bit = level == SOL_SOCKET ? timestamp_bit(name) : 0; bit != 0) {
        const std::uint32_t wants = datagram_->wants.load(std::memory_order_relaxed) & ~kTimestamps;
        datagram_->wants.store(number != 0 ? wants | bit : wants, std::memory_order_relaxed);
        known = true;
    }
    // Switching something off that nobody has switched on is no reason to leave.
    if (!known && number != 0 && !is_understood(level, name)) leave_to_kernel(fd);
}

}  // namespace culvert::preload
