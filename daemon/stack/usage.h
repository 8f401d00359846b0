// What a stack holds at the moment, pool by pool: for tests (when all is over, nothing may be left) and `culvert stat`.
#pragma once

#include <cstdint>

#include "daemon/stack/tcp/tcp.h"

namespace culvert::stack {

struct StackUsage {
    tcp::Usage tcp;
    std::uint32_t udp_sockets = 0;
    std::uint32_t ip_reassemblies = 0;     // packets of which some fragments have come
    std::uint32_t ip_reassembly_free = 0;  // chunks that no fragment lies in
    std::uint32_t local_packets = 0;       // on their way to ourselves
};

}  // namespace culvert::stack
