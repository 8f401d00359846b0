// In-memory benchmarks of the production code, on one core: no device, no kernel, no second thread.
//
//   Stack*   client stack and server stack, both with an owner that answers at once: what TCP costs alone
//   Tenant*  the server side is a tenant with its segment, the application is played by bench_app.h: the whole daemon's
//            path of a request
//
// `daemon_ns` is the time per request on the server's side without the application (measured where one turn serves many
// connections, so that reading the clock costs 10 ns a request). Compare figures of CPU time only: other programs run too.
#include <benchmark/benchmark.h>
#include <time.h>

#include <memory>
#include <vector>

#include "daemon/stack/tcp/connection.h"
#include "daemon/wire/ethernet.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/udp.h"
#include "tests/bench/bench_app.h"
#include "tests/bench/bench_host.h"

namespace culvert::bench {
namespace {

constexpr std::uint32_t kSize = 64;
constexpr Port kPort = 80;
const std::byte kBytes[65536] = {};

/// One end of a connection that sends `kSize` bytes whenever it has received as many.
struct Peer final : stack::tcp::ConnectionOwner {
    void on_established(stack::tcp::Connection&) override { established = true; }
    std::uint32_t on_data(stack::tcp::Connection& from, stack::Payload, std::uint32_t length) override {
        received += length;
        from.consumed(length);
        if (!answers) return length;
        due += length;
        if (due >= kSize) {
            due -= kSize;
            if (at_once) send();
            ++answers_due;
        }
        return length;
    }
    void on_end_of_stream(stack::tcp::Connection&) override { ended = true; }
    void on_released(stack::tcp::Connection&, stack::SendChunk* first) override {
        while (first != nullptr) {
            stack::SendChunk* const next = first->next;
            first->next = free;
            free = first;
            first = next;
        }
    }
    void on_acknowledged(stack::tcp::Connection&, std::uint32_t) override {}
    void on_closed(stack::tcp::Connection&, int) override { connection = nullptr; }

    explicit Peer(std::uint32_t chunk_bytes = kSize, std::size_t chunk_count = 2) : chunks(chunk_count) {
        for (stack::SendChunk& chunk : chunks) {
            chunk.data = kBytes;
            chunk.length = chunk_bytes;
            chunk.next = free;
            free = &chunk;
        }
    }
    bool send() {
        if (free == nullptr) return false;
        stack::SendChunk* const chunk = free;
        free = chunk->next;
        chunk->next = nullptr;
        connection->send(chunk, chunk);
        return true;
    }

    std::vector<stack::SendChunk> chunks;
    stack::SendChunk* free = nullptr;
    stack::tcp::Connection* connection = nullptr;
    std::uint64_t received = 0;
    std::uint32_t due = 0;
    std::uint32_t answers_due = 0;
    bool answers = true;
    bool at_once = true;
    bool established = false;
    bool ended = false;
};

struct PeerListener final : stack::tcp::ListenerOwner {
    bool can_accept() override { return true; }
    stack::tcp::ConnectionOwner* on_accept(stack::tcp::Connection& connection) override {
        Peer& peer = *waiting[next++ % waiting.size()];
        peer.connection = &connection;
        peer.ended = false;
        peer.established = true;
        return &peer;
    }
    std::vector<std::unique_ptr<Peer>> waiting;
    std::size_t next = 0;
};

const stack::tcp::Options& no_delay() {
    static const stack::tcp::Options options = [] {
        stack::tcp::Options made;
        made.no_delay = true;
        return made;
    }();
    return options;
}

void connect(World& world, Peer& peer, Port port) {
    auto made = world.client.stack.connect({world.client.address, port}, {world.server.address, kPort}, no_delay(), peer,
                                           world.now);
    CHECK(made.has_value());
    peer.connection = *made;
}

std::vector<std::unique_ptr<Peer>> make_clients(World& world, std::size_t count) {
    std::vector<std::unique_ptr<Peer>> clients;
    for (std::size_t i = 0; i < count; ++i) {
        clients.push_back(std::make_unique<Peer>());
        connect(world, *clients.back(), static_cast<Port>(20000 + i));
    }
    return clients;
}

/// CPU time of this thread: the machine may be busy with other things.
class Stopwatch {
public:
    void start() { began_ = now_ns(); }
    void stop() { total_ns_ += now_ns() - began_; }
    double ns() const { return total_ns_; }

private:
    static double now_ns() {
        timespec time{};
        ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
        return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
    }
    double began_ = 0;
    double total_ns_ = 0;
};

void report(benchmark::State& state, std::uint64_t requests, const Stopwatch& daemon) {
    state.SetItemsProcessed(static_cast<std::int64_t>(requests));
    if (requests != 0 && daemon.ns() > 0) state.counters["daemon_ns"] = daemon.ns() / static_cast<double>(requests);
}

/// How often the numbers that must not move have moved.
void expect_clean(benchmark::State& state, const Host& host) {
    std::uint64_t drops = 0;
    for (std::size_t i = 0; i < kDropCount; ++i) drops += host.counters.dropped(static_cast<Drop>(i));
    if (drops != 0) state.SkipWithError("packets were dropped");
}

// --- (1) two stacks ---------------------------------------------------------------------------------------------------

void StackRequest(benchmark::State& state) {
    auto world = std::make_unique<World>(1500);
    const auto count = static_cast<std::size_t>(state.range(0));
    PeerListener listener;
    for (std::size_t i = 0; i < count; ++i) listener.waiting.push_back(std::make_unique<Peer>());
    CHECK(world->server.stack.listen({world->server.address, kPort}, false, no_delay(), listener).has_value());
    auto clients = make_clients(*world, count);
    for (int i = 0; i < 4; ++i) world->client_turn(), world->server_turn();
    for (const auto& client : clients) client->send();
    Stopwatch daemon;
    for (auto _ : state) {
        world->client_turn();
        if (count > 1) daemon.start();
        world->server_turn();
        if (count > 1) daemon.stop();
    }
    std::uint64_t requests = 0;
    for (const auto& client : clients) requests += client->answers_due;
    expect_clean(state, world->server);
    report(state, requests, daemon);
}
BENCHMARK(StackRequest)->Arg(1)->Arg(64);

void StackOpenClose(benchmark::State& state) {
    auto world = std::make_unique<World>(1500);
    constexpr std::size_t kBatch = 64;
    PeerListener listener;
    for (std::size_t i = 0; i < kBatch; ++i) listener.waiting.push_back(std::make_unique<Peer>());
    CHECK(world->server.stack.listen({world->server.address, kPort}, false, no_delay(), listener).has_value());
    Peer orphan;
    std::vector<std::unique_ptr<Peer>> clients;
    for (std::size_t i = 0; i < kBatch; ++i) clients.push_back(std::make_unique<Peer>());
    Port port = 1024;
    std::uint64_t opened = 0;
    Stopwatch daemon;
    const auto server_turn = [&] {
        daemon.start();
        world->server_turn();
        daemon.stop();
    };
    for (auto _ : state) {
        for (const auto& client : clients) {
            connect(*world, *client, port);
            port = port == 65535 ? Port{1024} : static_cast<Port>(port + 1);
        }
        world->client_turn();  // SYN
        server_turn();         // SYN ACK
        world->client_turn();  // ACK
        server_turn();
        for (const auto& client : clients) client->connection->close(orphan, false, false);
        world->client_turn();  // FIN
        server_turn();         // ACK
        for (const auto& peer : listener.waiting) {
            CHECK(peer->ended);
            peer->connection->close(orphan, false, false);
        }
        world->server_turn();  // FIN
        world->client_turn();  // ACK, TIME-WAIT
        server_turn();
        opened += kBatch;
    }
    expect_clean(state, world->server);
    report(state, opened, daemon);
}
BENCHMARK(StackOpenClose);

void StackBulk(benchmark::State& state) {
    auto world = std::make_unique<World>(static_cast<std::uint32_t>(state.range(0)));
    PeerListener listener;
    listener.waiting.push_back(std::make_unique<Peer>());
    Peer& receiver = *listener.waiting.front();
    receiver.answers = false;
    CHECK(world->server.stack.listen({world->server.address, kPort}, false, {}, listener).has_value());
    Peer sender(shm::kBlockSize, 512);
    connect(*world, sender, 20000);
    for (int i = 0; i < 4; ++i) world->client_turn(), world->server_turn();
    for (auto _ : state) {
        while (sender.send()) {}
        world->client_turn();
        world->server_turn();
    }
    expect_clean(state, world->server);
    state.SetBytesProcessed(static_cast<std::int64_t>(receiver.received));
}
BENCHMARK(StackBulk)->Arg(1500)->Arg(65535);

// --- (2) a tenant on the server's side --------------------------------------------------------------------------------

/// A server that listens, and what its application does between two turns.
struct TenantServer {
    explicit TenantServer(World& world_) : world(world_), app(world.server) {
        listener = app.submit(shm::Operation::kListen, endpoint(Address::v4(0, 0, 0, 0), kPort), 1024);
        app.watch(listener);
        world.server_turn();
        CHECK(app.status(listener) == shm::kStatusReady);
    }
    /// Accepts, answers each request, closes when the peer has.
    void serve() {
        app.wait([&](std::uint32_t socket) {
            if (socket == listener) {
                while (app.accept(listener) != shm::kNoIndex) {}
                return;
            }
            const std::uint32_t bytes = app.receive(socket);
            if (bytes != 0 && app.request(socket, bytes, kSize)) app.send(socket, kSize);
            if ((app.status(socket) & shm::kStatusPeerClosed) != 0) app.close(socket);
        });
    }
    World& world;
    App app;
    std::uint32_t listener;
};

/// range(0): connections. range(1): 1 = the client acknowledges each reply in a segment of its own before it asks again.
void TenantRequest(benchmark::State& state) {
    auto world = std::make_unique<World>(1500);
    const auto count = static_cast<std::size_t>(state.range(0));
    const bool own_acks = state.range(1) != 0;
    TenantServer server(*world);
    auto clients = make_clients(*world, count);
    for (int i = 0; i < 4; ++i) world->client_turn(), world->server_turn([&] { server.serve(); });
    for (const auto& client : clients) {
        client->at_once = !own_acks;
        if (own_acks) {
            stack::tcp::Options options = no_delay();
            options.quick_ack = true;
            client->connection->set_options(options);
        }
        client->send();
    }
    Stopwatch daemon;
    const auto turn = [&] {
        if (count == 1) return world->server_turn([&] { server.serve(); });
        daemon.start();
        world->server_turn([&] {
            daemon.stop();
            server.serve();
            daemon.start();
        });
        daemon.stop();
    };
    for (auto _ : state) {
        world->client_turn();
        turn();
        if (own_acks) {
            world->client_turn();
            turn();
            for (const auto& client : clients) client->send();
        }
    }
    std::uint64_t requests = 0;
    for (const auto& client : clients) requests += client->answers_due;
    expect_clean(state, world->server);
    report(state, requests, daemon);
}
BENCHMARK(TenantRequest)->Args({1, 0})->Args({64, 0})->Args({64, 1})->Args({1000, 0});
// 128,000 requests exactly, for counting instructions.
BENCHMARK(TenantRequest)->Name("Counted")->Args({64, 0})->Iterations(2000);

/// A connection for every request: open, ask, answer, close by the client.
void TenantOpenRequestClose(benchmark::State& state) {
    auto world = std::make_unique<World>(1500);
    constexpr std::size_t kBatch = 64;
    TenantServer server(*world);
    Peer orphan;
    std::vector<std::unique_ptr<Peer>> clients;
    for (std::size_t i = 0; i < kBatch; ++i) {
        clients.push_back(std::make_unique<Peer>());
        clients.back()->at_once = false;
    }
    Port port = 1024;
    std::uint64_t served = 0;
    Stopwatch daemon;
    const auto turn = [&] {
        daemon.start();
        world->server_turn([&] {
            daemon.stop();
            server.serve();
            daemon.start();
        });
        daemon.stop();
    };
    for (auto _ : state) {
        for (const auto& client : clients) {
            connect(*world, *client, port);
            port = port == 65535 ? Port{1024} : static_cast<Port>(port + 1);
            client->answers_due = 0;
        }
        world->client_turn();
        turn();
        world->client_turn();
        turn();
        for (const auto& client : clients) client->send();
        world->client_turn();
        turn();
        world->client_turn();
        for (const auto& client : clients) {
            CHECK(client->answers_due == 1);
            client->connection->close(orphan, false, false);
        }
        world->client_turn();
        turn();
        world->client_turn();
        turn();
        served += kBatch;
    }
    expect_clean(state, world->server);
    report(state, served, daemon);
}
BENCHMARK(TenantOpenRequestClose);

/// The client's stack sends, the tenant's application receives.
void TenantBulkIn(benchmark::State& state) {
    auto world = std::make_unique<World>(static_cast<std::uint32_t>(state.range(0)));
    TenantServer server(*world);
    Peer sender(shm::kBlockSize, 512);
    connect(*world, sender, 20000);
    std::uint64_t received = 0;
    const auto serve = [&] {
        server.app.wait([&](std::uint32_t socket) {
            if (socket == server.listener)
                server.app.accept(socket);
            else
                received += server.app.receive(socket);
        });
    };
    for (int i = 0; i < 4; ++i) world->client_turn(), world->server_turn(serve);
    Stopwatch daemon;
    for (auto _ : state) {
        while (sender.send()) {}
        world->client_turn();
        daemon.start();
        world->server_turn([&] {
            daemon.stop();
            serve();
            daemon.start();
        });
        daemon.stop();
    }
    expect_clean(state, world->server);
    state.SetBytesProcessed(static_cast<std::int64_t>(received));
    state.counters["daemon_GBps"] = static_cast<double>(received) / daemon.ns();
}
BENCHMARK(TenantBulkIn)->Arg(1500)->Arg(65535);

/// The tenant's application sends, the client's stack receives.
void TenantBulkOut(benchmark::State& state) {
    auto world = std::make_unique<World>(static_cast<std::uint32_t>(state.range(0)));
    TenantServer server(*world);
    Peer receiver;
    receiver.answers = false;
    connect(*world, receiver, 20000);
    for (int i = 0; i < 4; ++i) world->client_turn(), world->server_turn();
    const std::uint32_t socket = server.app.accept(server.listener);
    CHECK(socket != shm::kNoIndex);
    Stopwatch daemon;
    for (auto _ : state) {
        daemon.start();
        world->server_turn([&] {
            daemon.stop();
            while (server.app.in_flight(socket) < 512 * 1024 && server.app.send(socket, 32 * shm::kBlockSize) != 0) {}
            daemon.start();
        });
        daemon.stop();
        world->client_turn();
    }
    expect_clean(state, world->server);
    state.SetBytesProcessed(static_cast<std::int64_t>(receiver.received));
    state.counters["daemon_GBps"] = static_cast<double>(receiver.received) / daemon.ns();
}
BENCHMARK(TenantBulkOut)->Arg(1500)->Arg(65535);

// --- (5) UDP ----------------------------------------------------------------------------------------------------------

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

BENCHMARK_MAIN();
