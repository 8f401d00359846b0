#include "daemon/engine/fleet.h"

#include <cstring>

#include "shm/base/check.h"

namespace culvert::engine {

Fleet::Fleet(const std::vector<EngineConfig>& configs, stack::NeighborResolver& resolver, stack::PortOwner& ports) {
    CHECK(!configs.empty() && configs.size() <= kMaxEngines);
    const stack::StackConfig& stack = configs[0].stack;
    const auto count = static_cast<std::uint32_t>(configs.size());
    if (count > 1)
        exchange_ = std::make_unique<Exchange>(
            count, std::uint64_t{stack.max_connections} + stack.max_half_open + stack.max_time_wait + stack.max_udp_sockets);
    for (std::uint32_t i = 0; i < count; ++i) {
        // The directory is keyed by hash: all must hash alike.
        CHECK(std::memcmp(configs[i].stack.secret, stack.secret, sizeof stack.secret) == 0);
        engines_.push_back(std::make_unique<Engine>(configs[i], resolver, ports, exchange_.get(), i));
    }
}

}  // namespace culvert::engine
