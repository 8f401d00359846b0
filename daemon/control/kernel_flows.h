// TCP connections that the kernel itself serves, asked by sock_diag(7).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <unordered_map>
#include <vector>

#include "daemon/wire/address.h"
#include "shm/base/error.h"

namespace culvert::control {

struct KernelSocket {
    Endpoint local;
    Endpoint remote;
    bool is_tcp = true;
    std::uint8_t state = 0;  // as in <netinet/tcp.h>
    std::uint32_t inode = 0;
    std::uint32_t uid = 0;
    std::uint32_t receive_queue = 0;
    std::uint32_t send_queue = 0;
};

/// Every TCP connection of this network namespace but closed and listening ones and those in TIME-WAIT; `port` 0: any, else its local port.
/// Connections on a dual-stack socket come with their IPv4 addresses.
Result<std::vector<KernelSocket>> kernel_connections(Port port);

struct TcpFlow {
    Endpoint local;
    Endpoint remote;
};
/// For each flow whether the kernel has a connection of that name, in TIME-WAIT or not yet established, too. Two system calls each.
Result<std::vector<bool>> kernel_has(std::span<const TcpFlow> flows);

/// True if all UDP sockets on that port are that user's, whatever their addresses.
Result<bool> udp_port_is_of(Port port, std::uint32_t uid);

/// TCP (listeners too) and UDP sockets by inode number.
Result<std::unordered_map<std::uint32_t, KernelSocket>> kernel_sockets_by_inode();

}  // namespace culvert::control
