// What a datagram socket keeps in its own process beside a Socket, so that a stream pays nothing for it.
#pragma once

#include <atomic>
#include <cstdint>

#include "preload/datagram_control.h"
#include "preload/datagram_cork.h"

namespace culvert::preload {

/// A change of a group's members, as the daemon is told of it.
struct GroupRequest {
    shm::Operation operation = shm::Operation::kNone;
    std::uint32_t interface = 0;
    shm::WireEndpoint group{};   // `interface` of it: IPv4 address of the interface, if that is how it was named
    shm::WireEndpoint source{};
};

struct DatagramState {
    static constexpr std::uint32_t kMaxGroups = 20;  // Linux's igmp_max_memberships

    std::atomic<std::uint32_t> wants{0};  // ControlWants
    SendDefaults defaults;
    bool kernel_only = false;    // an option was set that only the kernel knows, or the policy says so
    bool bound = false;          // by bind(): the policy of listen counts; else that of connect for each peer
    shm::KernelReason kernel_reason = shm::KernelReason::kOption;  // with kernel_only
    bool corked = false;         // MSG_MORE, UDP_CORK: the kernel holds the beginning of a datagram
    bool cork_option = false;    // UDP_CORK
    std::atomic<CorkedDatagram*> pending{nullptr};  // what Culvert's half holds the beginning of; changed under tx_lock
    std::atomic<CorkedDatagram*> spare{nullptr};    // memory for the next one
    void drop_cork() noexcept;
    /// EMSGSIZE, for the error queue. Written under tx_lock, read under rx_lock.
    struct LocalError {
        shm::WireEndpoint to;
        std::uint32_t mtu;
    };
    static constexpr std::uint32_t kMaxLocalErrors = 8;
    LocalError local_errors[kMaxLocalErrors] = {};
    std::atomic<std::uint32_t> errors_made{0};
    std::atomic<std::uint32_t> errors_told{0};
    std::uint32_t fragment_size6 = 0;  // IPV6_MTU; 0: as the path says
    bool groups_lost = false;    // more groups than are remembered
    std::uint32_t group_count = 0;
    GroupRequest groups[kMaxGroups];  // joined, for the daemon that comes first, or next
    // Of a raw or ping socket (raw_socket.cc):
    std::uint32_t raw_kind = 0;                      // shm::raw_kind; 0: a UDP socket
    std::int64_t try_again_ns = 0;                   // not before: the daemon has just refused it
    std::uint32_t blocked_types[8] = {};             // ICMP_FILTER, ICMP6_FILTER
    std::uint32_t checksum_offset = shm::kNoIndex;   // IPV6_CHECKSUM
};

}  // namespace culvert::preload
