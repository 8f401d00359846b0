// In-memory benchmarks of the production code, on one core: no device, no kernel, no second thread.
//
//   Stack*   client stack and server stack, both with an owner that answers at once: what TCP costs alone
//   Tenant*  the server side is a tenant with its segment, the application is played by bench_app.h: the whole daemon's
//            path of a request
//
// One operation of *Request is a request of 64 bytes and its answer of 64 bytes: four passes through a stack. One operation
// of *OpenClose is SYN, SYN-ACK, ACK, FIN, ACK, FIN, ACK and the client's TIME-WAIT until it expires.
//
// `daemon_ns` is the time per request on the server's side without the application (measured where one turn serves many
// connections, so that reading the clock costs 10 ns a request). Compare figures of CPU time only: other programs run too.
#include <benchmark/benchmark.h>

#include <memory>
#include <vector>

#include "tests/bench/bench_app.h"
#include "tests/bench/bench_host.h"
#include "tests/bench/bench_peer.h"

namespace culvert::bench {
namespace {

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

/// Many connections, 64 of which ask at a time, all in turn: each one's state has left the near caches since it was last used.
void StackRequestRoundRobin(benchmark::State& state) {
    auto world = std::make_unique<World>(1500);
    const auto count = static_cast<std::size_t>(state.range(0));
    constexpr std::size_t kBatch = 64;
    PeerListener listener;
    for (std::size_t i = 0; i < count; ++i) listener.waiting.push_back(std::make_unique<Peer>());
    CHECK(world->server.stack.listen({world->server.address, kPort}, false, no_delay(), listener).has_value());
    auto clients = make_clients(*world, count);
    for (int i = 0; i < 16; ++i) world->client_turn(), world->server_turn();
    for (const auto& client : clients) {
        CHECK(client->established);
        client->at_once = false;
    }
    Stopwatch daemon;
    std::size_t next = 0;
    std::uint64_t asked = 0;
    for (auto _ : state) {
        for (std::size_t i = 0; i < kBatch; ++i, next = (next + 1) % count) CHECK(clients[next]->send());
        asked += kBatch;
        world->client_turn();
        daemon.start();
        world->server_turn();
        daemon.stop();
        world->client_turn();
    }
    std::uint64_t requests = 0;
    for (const auto& client : clients) requests += client->answers_due;
    CHECK(requests == asked);
    expect_clean(state, world->server);
    report(state, requests, daemon);
}
BENCHMARK(StackRequestRoundRobin)->Arg(1000)->Arg(10000);

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
BENCHMARK(StackBulk)->Arg(1500)->Arg(9000)->Arg(65535);

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

}  // namespace
}  // namespace culvert::bench

BENCHMARK_MAIN();
