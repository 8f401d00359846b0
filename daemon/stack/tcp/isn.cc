#include "daemon/stack/tcp/isn.h"

namespace culvert::stack::tcp {

std::uint32_t IsnGenerator::generate(const Endpoint& local, const Endpoint& remote, Instant now) const {
    std::array<std::byte, 36> flow;
    put_flow(local, remote, flow);
    const auto timer = static_cast<std::uint64_t>(now.time_since_epoch().count()) / 4000;  // [RFC9293 3.4.1] 4 us
    return static_cast<std::uint32_t>(timer + sip_hash(key_, flow));
}

}  // namespace culvert::stack::tcp
