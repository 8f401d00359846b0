// Which destinations lie behind Culvert: the daemon's answers of the last second, for all datagram sockets of the process.
//
// Asking costs a round trip, so a server that answers many clients in turn must not ask for each answer. Direct-mapped;
// an entry that somebody else is just writing counts as not there.
#pragma once

#include <cstdint>

#include "shm/socket_record.h"

namespace culvert::preload {

struct RouteAnswer {
    int error = 0;          // 0: through Culvert; EACCES: a broadcast not meant; else the kernel's
    std::uint32_t mtu = 0;  // of IP packets
};

struct RouteKey {
    shm::WireEndpoint remote{};  // `interface`: the scope, or the interface asked for
    std::uint8_t source[16] = {};
};

/// `now`: monotonic nanoseconds.
bool find_route(const RouteKey& key, std::int64_t now, RouteAnswer& answer) noexcept;
/// `any_port`: holds for every port of that address.
void keep_route(const RouteKey& key, bool any_port, const RouteAnswer& answer, std::int64_t now) noexcept;
/// Forgets everything (another daemon, other options).
void forget_routes() noexcept;

}  // namespace culvert::preload
