// The owners of connections in the benchmarks of two stacks, and what they measure with.
#pragma once

#include <benchmark/benchmark.h>
#include <time.h>

#include <memory>
#include <vector>

#include "daemon/stack/tcp/connection.h"
#include "tests/bench/bench_host.h"

namespace culvert::bench {

inline constexpr std::uint32_t kSize = 64;
inline constexpr Port kPort = 80;
inline const std::byte kBytes[65536] = {};

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

inline const stack::tcp::Options& no_delay() {
    static const stack::tcp::Options options = [] {
        stack::tcp::Options made;
        made.no_delay = true;
        return made;
    }();
    return options;
}

inline void connect(World& world, Peer& peer, Port port) {
    auto made = world.client.stack.connect({world.client.address, port}, {world.server.address, kPort}, no_delay(), peer,
                                           world.now);
    CHECK(made.has_value());
    peer.connection = *made;
}

inline std::vector<std::unique_ptr<Peer>> make_clients(World& world, std::size_t count) {
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

inline void report(benchmark::State& state, std::uint64_t requests, const Stopwatch& daemon) {
    state.SetItemsProcessed(static_cast<std::int64_t>(requests));
    if (requests != 0 && daemon.ns() > 0) state.counters["daemon_ns"] = daemon.ns() / static_cast<double>(requests);
}

/// How often the numbers that must not move have moved.
inline void expect_clean(benchmark::State& state, const Host& host) {
    std::uint64_t drops = 0;
    for (std::size_t i = 0; i < kDropCount; ++i) drops += host.counters.dropped(static_cast<Drop>(i));
    if (drops != 0) state.SkipWithError("packets were dropped");
}

}  // namespace culvert::bench
