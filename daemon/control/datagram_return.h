// Gives datagrams that Culvert has taken from the wire to the kernel after all: their socket is passed on to a program that can read
// the kernel's half only (preload/leave.cc).
//
//   unread in the segment --> a raw socket, with the sender's address --> the kernel's local route --> the kernel's UDP socket
//
// A packet that the host sends to itself keeps the way that it has been given, so nobody asks where its sender is to be found (rp_filter).
//
// What the datagrams say comes from the program, so they must not reach anybody else in another's name: they go only to a port that a
// socket holds which the program has shown, which lives in our network namespace, which would take them, and whose owner
// has all the kernel's other sockets on that port, too; and only to addresses of this host, so that nothing ever leaves it.
#pragma once

#include <cstdint>
#include <span>

#include "daemon/tenant/tenant.h"
#include "shm/base/unique_fd.h"

namespace culvert::control {

class DatagramReturn {
public:
    struct Statistics {
        std::uint64_t given = 0;
        std::uint64_t refused = 0;  // not to be given to that socket
        std::uint64_t lost = 0;     // the kernel did not take them
    };

    /// Control thread. `half`: the program's kernel socket, a stranger's descriptor. How many the kernel took. Never blocks; what finds
    /// no room in the socket's queue is lost there, as ever.
    std::uint32_t give(std::span<const tenant::UnreadDatagram> datagrams, int half);
    const Statistics& statistics() const { return statistics_; }

private:
    bool give_one(const tenant::UnreadDatagram& datagram, std::span<const std::byte> payload);
    int socket_for(bool v4);

    UniqueFd raw4_, raw6_;  // made when needed
    Statistics statistics_;
};

}  // namespace culvert::control
