// Ancillary data of datagrams: what a socket wants to hear beside the bytes, and what a send may say beside them.
//
//   setsockopt(IP_RECVTTL ...)  -> ControlWants    what receive puts into msg_control
//   setsockopt(IP_TTL ...)      -> SendDefaults  --+
//   sendmsg's msg_control       -------------------+--> DatagramSend   what goes into the DatagramHeader
//
// What is not known here makes the send the kernel's: it understands every control message, and its socket has the same
// port and options.
#pragma once

#include <sys/socket.h>

#include <atomic>
#include <cstdint>

#include "shm/socket_record.h"

namespace culvert::preload {

/// Bits of the control messages that a socket has asked for.
enum ControlWants : std::uint32_t {
    kWantPacketInfo4 = 1u << 0,
    kWantPacketInfo6 = 1u << 1,
    kWantTtl = 1u << 2,
    kWantTos = 1u << 3,
    kWantHopLimit = 1u << 4,
    kWantTrafficClass = 1u << 5,
    kWantOriginalDestination4 = 1u << 6,
    kWantOriginalDestination6 = 1u << 7,
    kWantOverflow = 1u << 8,
    kWantTimestamp = 1u << 9,      // SO_TIMESTAMP ...
    kWantTimestampNew = 1u << 10,  // ... by its other number
    kWantTimestampNs = 1u << 11,
    kWantTimestampNsNew = 1u << 12,
    kWantMerged = 1u << 13,        // UDP_GRO
};

/// What setsockopt has said about every datagram to come, per family: [0] IPv4, [1] IPv6.
struct SendDefaults {
    std::uint8_t ttl[2] = {0, 0};        // 0: Linux's default
    std::uint8_t group_ttl[2] = {1, 1};  // IP_MULTICAST_TTL
    std::uint8_t tos[2] = {0, 0};
    bool loop[2] = {true, true};
    shm::PathRule rule[2] = {};
    std::uint32_t group_interface[2] = {0, 0};  // IP_MULTICAST_IF
    std::uint16_t segment_size = 0;             // UDP_SEGMENT
    bool broadcast = false;
};

/// One datagram on its way.
struct DatagramSend {
    std::uint8_t source[16] = {};  // of IP_PKTINFO; unspecified: none
    bool has_source = false;
    std::uint32_t interface = 0;
    int ttl = -1;                  // -1: the default
    int tos = -1;
    std::uint16_t segment_size = 0;
};

/// Reads msg_control. 0: all understood; an errno value: as the kernel refuses it; -1: the kernel must send it.
int read_control(const msghdr& message, int family, DatagramSend& send) noexcept;

/// Puts together the header. `to` decides which family's defaults hold.
shm::DatagramHeader make_header(const shm::WireEndpoint& to, bool to_v4, bool to_group, const DatagramSend& send,
                                const SendDefaults& defaults) noexcept;

/// Appends control messages to msg_control, within msg_controllen as the application gave it; what does not fit is cut
/// or left out, with MSG_CTRUNC, as Linux does.
class ControlWriter {
public:
    explicit ControlWriter(msghdr& message) noexcept : message_(message), room_(message.msg_controllen) {}
    void put(int level, int type, const void* data, std::size_t size) noexcept;
    /// Sets msg_controllen to what has been written.
    void finish() noexcept { message_.msg_controllen = used_; }

private:
    msghdr& message_;
    std::size_t room_;
    std::size_t used_ = 0;
};

/// The control messages for a datagram that has arrived, in Linux's order.
void write_control(msghdr& message, const shm::DatagramHeader& header, std::uint16_t local_port, int family,
                   std::uint32_t wants) noexcept;
/// The control message for an entry of the error queue.
void write_error_control(msghdr& message, const shm::DatagramErrorHeader& header, int family) noexcept;

}  // namespace culvert::preload
