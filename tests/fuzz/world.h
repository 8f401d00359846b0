// What the worlds of all targets have in common: a stack that soon meets its limits, a kernel that does nothing, and the
// question whether everything was given back.
#pragma once

#include <set>
#include <tuple>

#include "daemon/base/frame_pool.h"
#include "daemon/stack/neighbor.h"
#include "daemon/stack/stack.h"
#include "daemon/stack/usage.h"
#include "shm/base/check.h"
#include "tests/fuzz/target.h"

namespace culvert::fuzz {

inline constexpr MacAddress kOurs{{2, 0, 0, 0, 0, 1}};
inline constexpr MacAddress kPeers{{2, 0, 0, 0, 0, 2}};

/// Asked to resolve, it is silent. Ports are taken once and released once.
class NoWorld final : public stack::NeighborResolver, public stack::PortOwner {
public:
    void resolve(std::uint32_t, const Address&) override {}
    void take_port(Protocol protocol, const Address& address, Port port) override {
        CHECK(held_.emplace(protocol, address, port).second);
    }
    void release_port(Protocol protocol, const Address& address, Port port) override {
        CHECK(held_.erase({protocol, address, port}) == 1);
    }
    bool holds_nothing() const { return held_.empty(); }

private:
    std::set<std::tuple<Protocol, Address, Port>> held_;
};

/// Tables of `places`, so that chance fills them.
inline stack::StackConfig small_stack(std::uint32_t places) {
    stack::StackConfig config;
    config.max_connections = config.max_half_open = config.max_time_wait = config.max_listeners = places;
    config.max_udp_sockets = config.max_bbr = 4;
    config.reassembly_chunks = 32;
    config.max_ip_reassemblies = 4;
    config.ip_reassembly_chunks = 20;
    return config;
}

inline std::uint64_t drops(const Counters& counters) {
    std::uint64_t sum = 0;
    for (const std::uint64_t each : counters.drops) sum += each;
    return sum;
}

/// When all sockets are closed and no timer is left.
inline void check_nothing_held(const stack::Stack& stack, const stack::StackConfig& config, const Counters& counters,
                               const FramePool& pool, const NoWorld& outside) {
    const stack::StackUsage use = stack.usage();
    CHECK(use.tcp.connections == 0 && use.tcp.half_open == 0 && use.tcp.time_wait == 0 && use.tcp.flows == 0);
    CHECK(use.tcp.reassembly_pieces == 0 && use.tcp.sack_boards == 0 && use.tcp.bbr_models == 0);
    CHECK(use.tcp.flight_pieces == 0 && use.tcp.senders == 0 && use.tcp.ports == 0);
    CHECK(use.udp_sockets == 0 && use.local_packets == 0);
    CHECK(use.ip_reassemblies == 0 && use.ip_reassembly_free == config.ip_reassembly_chunks);
    CHECK(counters.tcp_established == 0 && counters.tcp_time_wait == 0);
    CHECK(pool.available() == pool.count());
    CHECK(outside.holds_nothing());
    CHECK(stack.next_deadline() == kNever);
}

/// `time` passes, slept through as an engine does: a turn when something is due, `most` of them.
template <class Turn>
void sleep_through(stack::Stack& stack, Instant& now, Duration time, int most, Turn&& turn) {
    const Instant target = now + time;
    for (int turns = 0; turns < most; ++turns) {
        const Instant next = stack.next_deadline();
        if (next > target) break;
        now = std::max(now + std::chrono::milliseconds(1), next);
        turn();
    }
    now = std::max(now, target);
    turn();
}

/// The life of one input.
template <class World>
int run(const std::uint8_t* data, std::size_t size, int most_steps) {
    Input in(data, size);
    World world;
    for (int steps = 0; steps < most_steps && !in.done(); ++steps) world.step(in);
    world.end();
    return 0;
}

}  // namespace culvert::fuzz
