// Two hosts without devices: production stacks joined back to back, frames handed over as they lie in memory.
//
//   Host client [ Stack, TxQueue ] --carry()--> Host server [ Stack, TxQueue, Tenant* ]
//        ^                                          |
//        +------------------carry()-----------------+
//
// Time is virtual: every turn is a fixed step later, so nothing depends on the machine but the time it takes.
#pragma once

#include <array>
#include <memory>
#include <span>

#include "daemon/stack/stack.h"
#include "daemon/tenant/tenant.h"
#include "shm/base/check.h"

namespace culvert::bench {

inline stack::StackConfig bench_config() {
    stack::StackConfig config;
    config.max_connections = 16384;
    config.time_wait = std::chrono::milliseconds(100);  // of virtual time: ports come round again
    config.secret[0] = 0x0123456789abcdef;
    config.secret[1] = 0xfedcba9876543210;
    return config;
}

class Host final : public stack::NeighborResolver, public stack::PortOwner {
public:
    Host(int number, std::uint32_t mtu, const stack::StackConfig& config = bench_config())
        : address(Address::v4(10, 0, 0, static_cast<std::uint8_t>(number))), stack(config, *this, *this, counters, rng) {
        stack::Interface made;
        made.index = 2;
        made.name = "bench0";
        made.mac = mac_of(number);
        made.mtu = mtu;
        made.up = true;
        made.tx = &tx;
        interface = &stack.add_interface(made);
        stack.set_addresses(2, {{address, 24}});
        stack::Route route;
        route.destination = Address::v4(10, 0, 0, 0);
        route.prefix_length = 24;
        route.interface = 2;
        stack.routes().replace({route});
    }
    void know(const Host& other) {
        stack.neighbors().update(2, other.address, other.interface->mac, stack::NeighborState::kReachable, tx);
    }
    /// Frames in, as Engine::turn does it.
    void input(std::span<const RxPacket> burst, Instant now) {
        stack.input(*interface, burst, now);
    }
    /// The rest of Engine::turn.
    void turn(Instant now) {
        if (tenant) tenant->poll(now);
        if (stack.next_deadline() <= now) stack.advance(now);
        stack.flush(now);
        if (tenant) tenant->deliver_events();
    }
    /// Gives what would be sent back to the pool; returns how many chunks that were.
    std::size_t discard_output() {
        const auto pending = tx.pending();
        const std::size_t count = pending.size();
        for (const TxQueue::Descriptor& descriptor : pending) pool.release(descriptor.chunk);
        tx.consume(count);
        return count;
    }
    static MacAddress mac_of(int number) { return {{2, 0, 0, 0, 0, static_cast<std::uint8_t>(number)}}; }

    void resolve(std::uint32_t, const Address&) override {}
    void take_port(Protocol, const Address&, Port) override {}
    void release_port(Protocol, const Address&, Port) override {}

    Address address;
    Counters counters;
    Rng rng{1};
    FramePool pool{16384};
    TxQueue tx{pool};
    stack::Stack stack;
    stack::Interface* interface = nullptr;
    tenant::Commons commons;
    std::unique_ptr<tenant::Tenant> tenant;
};

/// Both hosts, the wire between them and the clock.
class World {
public:
    explicit World(std::uint32_t mtu) : client(1, mtu), server(2, mtu) {
        client.know(server);
        server.know(client);
    }
    void client_turn() {
        now += kStep;
        take(server);
        client.input(burst(), now);
        give_back(server);
        client.turn(now);
    }
    /// Two halves: what arrives is delivered before the application looks, as in the engine's turn. `application` runs
    /// between two turns of the daemon.
    template <class Application>
    void server_turn(Application&& application) {
        server_turn();
        application();
        daemon_turn();
    }
    void server_turn() {
        now += kStep;
        take(client);
        daemon_input();
        give_back(client);
        daemon_turn();
    }
    // The daemon's work on the server's side, out of line: profilers count from here (README.md).
    [[gnu::noinline]] void daemon_input() { server.input(burst(), now); }
    [[gnu::noinline]] void daemon_turn() { server.turn(now); }

    static constexpr Duration kStep = std::chrono::microseconds(20);
    Instant now{std::chrono::hours(1)};
    Host client;
    Host server;

private:
    static constexpr std::size_t kMaxBurst = 4096;

    void take(Host& from) {
        count_ = 0;
        fragment_count_ = 0;
        const auto pending = from.tx.pending();
        std::size_t at = 0;
        taken_ = 0;
        while (at < pending.size() && count_ < kMaxBurst) {
            RxPacket& packet = packets_[count_++];
            packet.checksum = ChecksumState::kUnverified;
            packet.head = {from.pool.data(pending[at].chunk), pending[at].length};
            packet.length = pending[at].length;
            const std::size_t first = fragment_count_;
            while (pending[at].more) {
                ++at;
                fragments_[fragment_count_++] = {from.pool.data(pending[at].chunk), pending[at].length};
                packet.length += pending[at].length;
            }
            packet.rest = std::span(fragments_).subspan(first, fragment_count_ - first);
            ++at;
        }
        taken_ = at;
    }
    std::span<const RxPacket> burst() const { return std::span(packets_).first(count_); }
    void give_back(Host& from) {
        const auto pending = from.tx.pending().first(taken_);
        for (const TxQueue::Descriptor& descriptor : pending) from.pool.release(descriptor.chunk);
        from.tx.consume(taken_);
    }

    std::array<RxPacket, kMaxBurst> packets_;
    std::array<std::span<const std::byte>, kMaxBurst * 4> fragments_;
    std::size_t count_ = 0;
    std::size_t fragment_count_ = 0;
    std::size_t taken_ = 0;
};

}  // namespace culvert::bench
