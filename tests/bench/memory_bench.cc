// What a connection costs the daemon in memory, and what a SYN flood costs it in time: one stack alone, its peers played by
// frames that are written here, so that nothing of a client's is counted.
//
// Memory is what the process has in RAM (/proc/self/statm) after kMany connections minus before, over kMany: the connection,
// its place in the flow table, and whatever else the stack touched for it. Each connection has answered a request first.
// Not counted: the tenant's segment, which belongs to the application.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <memory>
#include <vector>

#include "daemon/wire/ethernet.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/tcp.h"
#include "tests/bench/bench_host.h"
#include "tests/bench/bench_peer.h"

namespace culvert::bench {
namespace {

constexpr std::uint32_t kMany = 60000;
constexpr std::uint32_t kWarm = 3000;  // before anything is counted: pools that everybody shares have grown
constexpr std::uint32_t kIss = 1000;   // of our peers
constexpr std::uint32_t kTimestamp = 77;

stack::StackConfig config(std::uint32_t half_open) {
    stack::StackConfig config = bench_config();
    config.max_connections = 65536;
    config.max_time_wait = 65536;
    config.max_half_open = half_open;
    config.time_wait = std::chrono::seconds(60);
    return config;
}

/// What a peer sends, on port `port` of its own.
struct Said {
    Port port;
    wire::TcpFlags flags;
    std::uint32_t sequence;
    std::uint32_t acknowledgment;
    std::uint32_t echo;
    std::uint32_t payload;
};

class Server {
public:
    explicit Server(std::uint32_t half_open) : host(2, 1500, config(half_open)) {
        host.stack.neighbors().update(2, peer, Host::mac_of(1), stack::NeighborState::kReachable, host.tx);
        CHECK(host.stack.listen({host.address, kPort}, false, no_delay(), listener).has_value());
    }

    std::size_t write(const Said& said, std::span<std::byte> frame) const {
        constexpr std::size_t kIp = wire::kEthernetHeaderLength;
        constexpr std::size_t kTcp = kIp + wire::kIpv4HeaderLength;
        wire::TcpOptions options;
        options.timestamps = wire::TcpTimestamps{kTimestamp, said.echo};
        if (said.flags.syn()) {
            options.mss = 1460;
            options.window_scale = 7;
            options.sack_permitted = true;
        }
        const std::size_t header = wire::tcp_header_length(options);
        wire::emit(wire::EthernetHeader{host.interface->mac, Host::mac_of(1), wire::EtherType::kIpv4}, frame);
        wire::emit(wire::Ipv4Header{.source = peer, .destination = host.address, .protocol = wire::IpProtocol::kTcp},
                   header + said.payload, frame.subspan(kIp));
        wire::emit(wire::TcpHeader{.source = said.port,
                                   .destination = kPort,
                                   .sequence = said.sequence,
                                   .acknowledgment = said.acknowledgment,
                                   .flags = said.flags,
                                   .window = 64240},
                   options, frame.subspan(kTcp));
        std::fill_n(frame.begin() + static_cast<std::ptrdiff_t>(kTcp + header), said.payload, std::byte{0});
        wire::finish_tcp_checksum(frame.subspan(kTcp, header), {}, said.payload, peer, host.address);
        return kTcp + header + said.payload;
    }
    void hear(const Said& said) {
        std::array<std::byte, 256> frame;
        const std::size_t length = write(said, frame);
        const RxPacket packet{.head = std::span(frame).first(length), .rest = {}, .length = static_cast<std::uint32_t>(length)};
        host.input({&packet, 1}, now);
        host.turn(now);
        now += std::chrono::microseconds(1);
    }
    /// The last segment that has been sent; nothing waits afterwards.
    void answer(std::uint32_t& sequence, std::uint32_t& timestamp) {
        const auto pending = host.tx.pending();
        CHECK(!pending.empty());
        const std::span<const std::byte> frame(host.pool.data(pending.front().chunk), pending.front().length);
        const auto view = wire::TcpView::parse(frame.subspan(wire::kEthernetHeaderLength + wire::kIpv4HeaderLength));
        CHECK(view.has_value());
        const auto options = wire::TcpOptions::parse(view->options());
        CHECK(options && options->timestamps);
        sequence = view->sequence();
        timestamp = options->timestamps->value;
        host.discard_output();
    }
    /// Handshake, a request, its answer, and the answer's ACK.
    void open(std::uint32_t number) {
        const auto port = static_cast<Port>(kFirstPort + number);
        std::uint32_t iss, timestamp;
        hear({port, wire::kSyn, kIss, 0, 0, 0});
        answer(iss, timestamp);
        hear({port, wire::kAck, kIss + 1, iss + 1, timestamp, 0});
        hear({port, wire::kAck | wire::kPsh, kIss + 1, iss + 1, timestamp, kSize});
        answer(iss, timestamp);
        hear({port, wire::kAck, kIss + 1 + kSize, iss + kSize, timestamp, 0});
        CHECK(listener.accepted.size() == number + 1);
        next[number] = iss + kSize;
    }
    /// We close first, so TIME-WAIT is ours.
    void close(std::uint32_t number) {
        std::uint32_t sequence, timestamp;
        listener.accepted[number]->close(orphan, false, false);
        host.turn(now);
        answer(sequence, timestamp);
        hear({static_cast<Port>(kFirstPort + number), wire::kAck | wire::kFin, kIss + 1 + kSize, next[number] + 1, timestamp, 0});
        answer(sequence, timestamp);
    }

    static constexpr std::uint32_t kFirstPort = 1024;
    const Address peer = Address::v4(10, 0, 0, 1);
    /// One owner for all: a request is answered before the next one comes.
    struct Listener final : stack::tcp::ListenerOwner {
        bool can_accept() override { return true; }
        stack::tcp::ConnectionOwner* on_accept(stack::tcp::Connection& connection) override {
            accepted.push_back(&connection);
            owner.connection = &connection;
            return &owner;
        }
        Peer owner;
        std::vector<stack::tcp::Connection*> accepted;
    } listener;
    Peer orphan;
    std::vector<std::uint32_t> next = std::vector<std::uint32_t>(kMany);
    Instant now{std::chrono::hours(1)};
    Host host;
};

double resident_bytes() {
    std::FILE* const file = std::fopen("/proc/self/statm", "r");
    CHECK(file != nullptr);
    unsigned long all = 0, resident = 0;
    CHECK(std::fscanf(file, "%lu %lu", &all, &resident) == 2);
    std::fclose(file);
    return static_cast<double>(resident) * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

void StackMemory(benchmark::State& state) {
    for (auto _ : state) {
        const auto server = std::make_unique<Server>(1024);
        server->listener.accepted.resize(kMany);  // touched now, so that it is not counted
        server->listener.accepted.clear();
        for (std::uint32_t i = 0; i < kWarm; ++i) server->open(i);
        const double before = resident_bytes();
        for (std::uint32_t i = kWarm; i < kMany; ++i) server->open(i);
        const double idle = resident_bytes();
        for (std::uint32_t i = 0; i < kWarm; ++i) server->close(i);
        const double closing = resident_bytes();
        for (std::uint32_t i = kWarm; i < kMany; ++i) server->close(i);
        const double closed = resident_bytes();
        for (std::size_t i = 0; i < kDropCount; ++i) CHECK(server->host.counters.dropped(static_cast<Drop>(i)) == 0);
        state.counters["idle_bytes"] = (idle - before) / (kMany - kWarm);
        state.counters["time_wait_bytes"] = (closed - closing) / (kMany - kWarm);
    }
    state.counters["connection_struct"] = sizeof(stack::tcp::Connection);
}
BENCHMARK(StackMemory)->Iterations(1);

/// SYNs from ever new ports while the queue of half-open connections is full: each is answered with a cookie and forgotten.
void StackSynFlood(benchmark::State& state) {
    constexpr std::uint32_t kHalfOpen = 256;
    constexpr std::size_t kBurst = 64;
    constexpr std::size_t kFrames = kBurst * 64;
    const auto server = std::make_unique<Server>(kHalfOpen);
    for (std::uint32_t i = 0; i < kHalfOpen; ++i) {
        server->hear({static_cast<Port>(50000 + i), wire::kSyn, kIss, 0, 0, 0});
        server->host.discard_output();
    }
    std::vector<std::array<std::byte, 128>> frames(kFrames);
    std::vector<RxPacket> packets;
    for (std::size_t i = 0; i < kFrames; ++i) {
        const std::size_t length = server->write({static_cast<Port>(2000 + i), wire::kSyn, kIss, 0, 0, 0}, frames[i]);
        packets.push_back({.head = std::span(frames[i]).first(length), .rest = {}, .length = static_cast<std::uint32_t>(length)});
    }
    std::size_t at = 0;
    std::uint64_t sent = 0, answered = 0;
    for (auto _ : state) {
        server->host.input(std::span(packets).subspan(at, kBurst), server->now);
        server->host.turn(server->now);
        answered += server->host.discard_output();
        at = (at + kBurst) % kFrames;
        sent += kBurst;
    }
    CHECK(answered == sent && server->host.counters.tcp_syn_cookies_sent == sent);
    state.SetItemsProcessed(static_cast<std::int64_t>(sent));
}
BENCHMARK(StackSynFlood);

}  // namespace
}  // namespace culvert::bench
