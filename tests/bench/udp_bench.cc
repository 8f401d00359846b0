// Datagrams in memory: 64 bytes from a frame to the owner of a socket (Stack*) or to an application (Tenant*), and back.
#include <benchmark/benchmark.h>

#include <memory>
#include <vector>

#include "daemon/wire/ethernet.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/udp.h"
#include "tests/bench/bench_app.h"
#include "tests/bench/bench_host.h"
#include "tests/bench/bench_peer.h"

namespace culvert::bench {
namespace {

/// 64 bytes from the client's port 9000, as they come from the wire.
std::vector<std::byte> datagram(const World& world) {
    constexpr std::size_t kIp = wire::kEthernetHeaderLength;
    constexpr std::size_t kUdp = kIp + wire::kIpv4HeaderLength;
    std::vector<std::byte> frame(kUdp + wire::kUdpHeaderLength + kSize);
    const std::span<std::byte> out(frame);
    wire::emit(wire::EthernetHeader{.destination = world.server.interface->mac,
                                    .source = world.client.interface->mac,
                                    .ether_type = wire::EtherType::kIpv4},
               out);
    wire::emit(wire::Ipv4Header{.source = world.client.address,
                                .destination = world.server.address,
                                .protocol = wire::IpProtocol::kUdp},
               wire::kUdpHeaderLength + kSize, out.subspan(kIp));
    wire::emit(wire::UdpHeader{.source = 9000, .destination = kPort}, kSize, out.subspan(kUdp));
    wire::finish_udp_checksum(out.subspan(kUdp, wire::kUdpHeaderLength), wire::sum_bytes(out.subspan(kUdp + 8)),
                              world.client.address, world.server.address);
    return frame;
}

struct DatagramCounter final : stack::udp::SocketOwner {
    bool on_datagram(stack::udp::Socket&, const stack::udp::DatagramInfo&, stack::Payload, std::uint32_t) override {
        ++received;
        return true;
    }
    void on_error(stack::udp::Socket&, const stack::udp::DatagramError&) override {}
    std::uint64_t received = 0;
};

/// Sends every datagram back.
struct DatagramEcho final : stack::udp::SocketOwner {
    explicit DatagramEcho(World& world_) : world(world_) {}
    bool on_datagram(stack::udp::Socket& socket, const stack::udp::DatagramInfo& info, stack::Payload payload,
                     std::uint32_t length) override {
        sent += world.server.stack.send_datagram(socket, info.remote, payload, length, {}, world.now).has_value();
        return true;
    }
    void on_error(stack::udp::Socket&, const stack::udp::DatagramError&) override {}
    World& world;
    std::uint64_t sent = 0;
};

void StackUdpReceive(benchmark::State& state) {
    auto world = std::make_unique<World>(1500);
    DatagramCounter owner;
    CHECK(world->server.stack.bind_udp({world->server.address, kPort}, false, owner).has_value());
    const auto frame = datagram(*world);
    const RxPacket packet{.head = frame, .rest = {}, .length = static_cast<std::uint32_t>(frame.size())};
    const std::vector<RxPacket> burst(64, packet);
    for (auto _ : state) world->server.input(burst, world->now);
    expect_clean(state, world->server);
    state.SetItemsProcessed(static_cast<std::int64_t>(owner.received));
}
BENCHMARK(StackUdpReceive);

void StackUdpEcho(benchmark::State& state) {
    auto world = std::make_unique<World>(1500);
    DatagramEcho owner(*world);
    CHECK(world->server.stack.bind_udp({world->server.address, kPort}, false, owner).has_value());
    const auto frame = datagram(*world);
    const RxPacket packet{.head = frame, .rest = {}, .length = static_cast<std::uint32_t>(frame.size())};
    const std::vector<RxPacket> burst(64, packet);
    std::uint64_t left = 0;
    for (auto _ : state) {
        world->server.input(burst, world->now);
        world->server.turn(world->now);
        left += world->server.discard_output();
    }
    expect_clean(state, world->server);
    CHECK(left == owner.sent);
    state.SetItemsProcessed(static_cast<std::int64_t>(owner.sent));
}
BENCHMARK(StackUdpEcho);

void TenantUdpReceive(benchmark::State& state) {
    auto world = std::make_unique<World>(1500);
    App app(world->server);
    const std::uint32_t socket = app.submit(shm::Operation::kBindDatagram, endpoint(world->server.address, kPort), 0);
    app.watch(socket);
    world->server_turn();
    const auto frame = datagram(*world);
    const RxPacket packet{.head = frame, .rest = {}, .length = static_cast<std::uint32_t>(frame.size())};
    const std::vector<RxPacket> burst(64, packet);
    std::uint64_t bytes = 0;
    Stopwatch daemon;
    for (auto _ : state) {
        daemon.start();
        world->server.input(burst, world->now);
        world->server.turn(world->now);
        daemon.stop();
        app.wait([&](std::uint32_t ready) { bytes += app.receive(ready); });
    }
    expect_clean(state, world->server);
    report(state, bytes / (kSize + sizeof(shm::DatagramHeader)), daemon);
}
BENCHMARK(TenantUdpReceive);

}  // namespace
}  // namespace culvert::bench
