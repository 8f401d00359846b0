#include "preload/datagram_control.h"

#include <time.h>
//
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "preload/address.h"
#include "preload/libc.h"

namespace culvert::preload {

namespace {

constexpr int kUdpSegment = 103;         // UDP_SEGMENT and UDP_GRO, newer than some C libraries
constexpr int kUdpGro = 104;
constexpr int kOriginalDestination6 = 74;  // IPV6_ORIGDSTADDR
constexpr int kTimestampNew = 63;        // SO_TIMESTAMP_NEW
constexpr int kTimestampNsNew = 64;      // SO_TIMESTAMPNS_NEW

bool read_number(const cmsghdr& header, int& number, bool byte_too) noexcept {
    const std::size_t size = header.cmsg_len - CMSG_LEN(0);
    if (size == sizeof(int)) {
        std::memcpy(&number, CMSG_DATA(&header), sizeof number);
        return true;
    }
    if (!byte_too || size != 1) return false;
    number = *CMSG_DATA(&header);
    return true;
}

void set_source_v4(DatagramSend& send, const in_addr& address) noexcept {
    if (address.s_addr == 0) return;
    send.source[10] = send.source[11] = 0xff;
    std::memcpy(send.source + 12, &address, 4);
    send.has_source = true;
}

int read_ipv4(const cmsghdr& header, DatagramSend& send) noexcept {
    switch (header.cmsg_type) {
        case IP_PKTINFO: {
            in_pktinfo info{};
            if (header.cmsg_len != CMSG_LEN(sizeof info)) return EINVAL;
            std::memcpy(&info, CMSG_DATA(&header), sizeof info);
            if (info.ipi_ifindex != 0) send.interface = static_cast<std::uint32_t>(info.ipi_ifindex);
            set_source_v4(send, info.ipi_spec_dst);
            return 0;
        }
        case IP_TTL:
            if (!read_number(header, send.ttl, false) || send.ttl < 1 || send.ttl > 255) return EINVAL;
            return 0;
        case IP_TOS:
            if (!read_number(header, send.tos, true) || send.tos < 0 || send.tos > 255) return EINVAL;
            return 0;
        default: return -1;
    }
}

int read_ipv6(const cmsghdr& header, DatagramSend& send) noexcept {
    switch (header.cmsg_type) {
        case IPV6_PKTINFO: {
            in6_pktinfo info{};
            if (header.cmsg_len < CMSG_LEN(sizeof info)) return EINVAL;
            std::memcpy(&info, CMSG_DATA(&header), sizeof info);
            if (info.ipi6_ifindex != 0) send.interface = info.ipi6_ifindex;
            send.has_source = !IN6_IS_ADDR_UNSPECIFIED(&info.ipi6_addr);
            std::memcpy(send.source, &info.ipi6_addr, sizeof send.source);
            return 0;
        }
        case IPV6_HOPLIMIT:
            if (!read_number(header, send.ttl, false) || send.ttl < -1 || send.ttl > 255) return EINVAL;
            return 0;
        case IPV6_TCLASS:
            if (!read_number(header, send.tos, false) || send.tos < -1 || send.tos > 255) return EINVAL;
            return 0;
        default: return -1;
    }
}

timespec wall_clock_of(std::int64_t monotonic_ns) noexcept {
    timespec wall{};
    ::clock_gettime(CLOCK_REALTIME, &wall);
    const std::int64_t ns = wall.tv_sec * 1'000'000'000ll + wall.tv_nsec - std::max<std::int64_t>(now_ns() - monotonic_ns, 0);
    return {static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
}

void write_timestamps(ControlWriter& out, std::int64_t received_ns, std::uint32_t wants) noexcept {
    const timespec at = wall_clock_of(received_ns);
    if ((wants & (kWantTimestampNs | kWantTimestampNsNew)) != 0)
        return out.put(SOL_SOCKET, (wants & kWantTimestampNs) != 0 ? SO_TIMESTAMPNS : kTimestampNsNew, &at, sizeof at);
    const timeval coarse{at.tv_sec, at.tv_nsec / 1000};
    out.put(SOL_SOCKET, (wants & kWantTimestamp) != 0 ? SO_TIMESTAMP : kTimestampNew, &coarse, sizeof coarse);
}

/// IP_PKTINFO, IP_TTL and so on, also on an IPv6 socket that asked for them and hears IPv4.
void write_ipv4(ControlWriter& out, const shm::DatagramHeader& header, std::uint16_t local_port,
                std::uint32_t wants) noexcept {
    in_addr local{};
    std::memcpy(&local, header.local_address + 12, sizeof local);
    if ((wants & kWantPacketInfo4) != 0) {
        in_pktinfo info{};
        info.ipi_ifindex = static_cast<int>(header.interface);
        info.ipi_addr = info.ipi_spec_dst = local;
        out.put(IPPROTO_IP, IP_PKTINFO, &info, sizeof info);
    }
    if ((wants & kWantTtl) != 0) {
        const int ttl = header.ttl;
        out.put(IPPROTO_IP, IP_TTL, &ttl, sizeof ttl);
    }
    if ((wants & kWantTos) != 0) out.put(IPPROTO_IP, IP_TOS, &header.tos, 1);
    if ((wants & kWantOriginalDestination4) != 0) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(local_port);
        address.sin_addr = local;
        out.put(IPPROTO_IP, IP_ORIGDSTADDR, &address, sizeof address);
    }
}

void write_ipv6(ControlWriter& out, const shm::DatagramHeader& header, std::uint16_t local_port,
                std::uint32_t wants) noexcept {
    const int hop_limit = header.ttl;
    const int traffic_class = header.tos;
    if ((wants & kWantHopLimit) != 0) out.put(IPPROTO_IPV6, IPV6_HOPLIMIT, &hop_limit, sizeof hop_limit);
    if ((wants & kWantTrafficClass) != 0) out.put(IPPROTO_IPV6, IPV6_TCLASS, &traffic_class, sizeof traffic_class);
    if ((wants & kWantOriginalDestination6) != 0) {
        sockaddr_in6 address{};
        address.sin6_family = AF_INET6;
        address.sin6_port = htons(local_port);
        std::memcpy(&address.sin6_addr, header.local_address, sizeof address.sin6_addr);
        if (IN6_IS_ADDR_LINKLOCAL(&address.sin6_addr)) address.sin6_scope_id = header.interface;
        out.put(IPPROTO_IPV6, kOriginalDestination6, &address, sizeof address);
    }
}

bool is_v4(const std::uint8_t (&address)[16]) noexcept {
    return IN6_IS_ADDR_V4MAPPED(reinterpret_cast<const in6_addr*>(&address));
}

}  // namespace

int read_control(const msghdr& message, int family, DatagramSend& send) noexcept {
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(const_cast<msghdr*>(&message), header)) {
        const auto* const end = static_cast<const char*>(message.msg_control) + message.msg_controllen;
        if (header->cmsg_len < sizeof *header ||
            header->cmsg_len > static_cast<std::size_t>(end - reinterpret_cast<const char*>(header)))
            return EINVAL;
        int result = -1;
        if (header->cmsg_level == IPPROTO_IP) result = read_ipv4(*header, send);
        if (header->cmsg_level == IPPROTO_IPV6 && family == AF_INET6) result = read_ipv6(*header, send);
        if (header->cmsg_level == IPPROTO_UDP && header->cmsg_type == kUdpSegment) {
            if (header->cmsg_len != CMSG_LEN(sizeof send.segment_size)) return EINVAL;
            std::memcpy(&send.segment_size, CMSG_DATA(header), sizeof send.segment_size);
            result = 0;
        }
        if (result != 0) return result;
    }
    return 0;
}

shm::DatagramHeader make_header(const shm::WireEndpoint& to, bool to_v4, bool to_group, const DatagramSend& send,
                                const SendDefaults& defaults) noexcept {
    const int family = to_v4 ? 0 : 1;
    shm::DatagramHeader header{};
    header.remote = to;
    std::memcpy(header.local_address, send.source, sizeof header.local_address);
    header.interface = send.interface;
    if (header.interface == 0 && to_group) header.interface = defaults.group_interface[family];
    header.segment_size = send.segment_size != 0 ? send.segment_size : defaults.segment_size;
    const std::uint8_t standard = to_group ? defaults.group_ttl[family] : defaults.ttl[family];
    if (send.ttl >= 0 || to_group || standard != 0) header.flags |= shm::kDatagramTtl;
    header.ttl = send.ttl >= 0 ? static_cast<std::uint8_t>(send.ttl) : standard;
    header.tos = send.tos >= 0 ? static_cast<std::uint8_t>(send.tos) : defaults.tos[family];
    if (defaults.loop[family]) header.flags |= shm::kDatagramLoop;
    if (defaults.broadcast) header.flags |= shm::kDatagramBroadcast;
    header.flags |= static_cast<std::uint32_t>(defaults.rule[family]) << shm::kDatagramPathRuleShift;
    return header;
}

void ControlWriter::put(int level, int type, const void* data, std::size_t size) noexcept {
    if (message_.msg_control == nullptr || used_ + sizeof(cmsghdr) > room_) {
        message_.msg_flags |= MSG_CTRUNC;
        return;
    }
    std::size_t fits = std::min(CMSG_LEN(size), room_ - used_);
    if (fits < CMSG_LEN(size)) message_.msg_flags |= MSG_CTRUNC;
    cmsghdr header{};
    header.cmsg_len = fits;
    header.cmsg_level = level;
    header.cmsg_type = type;
    char* const at = static_cast<char*>(message_.msg_control) + used_;
    std::memcpy(at, &header, sizeof header);
    std::memcpy(at + CMSG_LEN(0), data, fits - CMSG_LEN(0));
    used_ += std::min(CMSG_SPACE(size), room_ - used_);
}

void write_control(msghdr& message, const shm::DatagramHeader& header, std::uint16_t local_port, int family,
                   std::uint32_t wants) noexcept {
    ControlWriter out(message);
    constexpr std::uint32_t kTimestamps = kWantTimestamp | kWantTimestampNew | kWantTimestampNs | kWantTimestampNsNew;
    if ((wants & kTimestamps) != 0) write_timestamps(out, header.received_ns, wants);
    if ((wants & kWantOverflow) != 0 && header.overflow != 0)
        out.put(SOL_SOCKET, SO_RXQ_OVFL, &header.overflow, sizeof header.overflow);
    if ((wants & kWantMerged) != 0 && header.segment_size != 0) {
        const int size = header.segment_size;
        out.put(IPPROTO_UDP, kUdpGro, &size, sizeof size);
    }
    if (family == AF_INET6 && (wants & kWantPacketInfo6) != 0) {
        in6_pktinfo info{};
        std::memcpy(&info.ipi6_addr, header.local_address, sizeof info.ipi6_addr);
        info.ipi6_ifindex = header.interface;
        out.put(IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info);
    }
    if (is_v4(header.local_address))
        write_ipv4(out, header, local_port, wants);
    else
        write_ipv6(out, header, local_port, wants);
    out.finish();
}

void write_error_control(msghdr& message, const shm::DatagramErrorHeader& header, int family) noexcept {
    ControlWriter out(message);
    struct {
        sock_extended_err error;
        union {
            sockaddr_in v4;
            sockaddr_in6 v6;
        } offender;
    } entry{};
    entry.error.ee_errno = static_cast<std::uint32_t>(header.error);
    entry.error.ee_origin = header.origin;
    entry.error.ee_type = header.type;
    entry.error.ee_code = header.code;
    entry.error.ee_info = header.info;
    const bool known = header.origin == SO_EE_ORIGIN_ICMP || header.origin == SO_EE_ORIGIN_ICMP6;
    const bool v4 = family == AF_INET;
    shm::WireEndpoint offender{};
    std::memcpy(offender.address, header.offender, sizeof offender.address);
    socklen_t length = v4 ? sizeof entry.offender.v4 : sizeof entry.offender.v6;
    if (known) from_wire(offender, family, reinterpret_cast<sockaddr*>(&entry.offender), &length);
    out.put(v4 ? IPPROTO_IP : IPPROTO_IPV6, v4 ? IP_RECVERR : IPV6_RECVERR, &entry,
            sizeof entry.error + (v4 ? sizeof entry.offender.v4 : sizeof entry.offender.v6));
    out.finish();
}

}  // namespace culvert::preload
