#include "tests/sim/goodput.h"

#include <algorithm>
#include <cstring>

#include "daemon/stack/tcp/connection.h"

namespace culvert::sim {
namespace {

using stack::tcp::Connection;

constexpr std::size_t kChunk = 65536;
constexpr std::size_t kChunks = 64;  // 4 MiB of send buffer

const Bytes& pattern() {
    static const Bytes bytes = [] {
        Bytes made(kChunk);
        for (std::size_t i = 0; i < made.size(); ++i) made[i] = static_cast<std::byte>(i * 0x9e3779b9u >> 24);
        return made;
    }();
    return bytes;
}

/// Always has something to send.
class Source final : public stack::tcp::ConnectionOwner {
public:
    void on_established(Connection& connection) override {
        for (stack::SendChunk& chunk : chunks_) give(connection, chunk);
    }
    std::uint32_t on_data(Connection&, stack::Payload, std::uint32_t length) override { return length; }
    void on_end_of_stream(Connection&) override {}
    void on_released(Connection& connection, stack::SendChunk* first) override {
        while (first != nullptr) {
            auto* const next = first->next;
            if (connection_ != nullptr) give(connection, *first);
            first = next;
        }
    }
    void on_acknowledged(Connection&, std::uint32_t) override {}
    void on_closed(Connection&, int) override { connection_ = nullptr; }
    void attach(Connection& connection) { connection_ = &connection; }
    void stop() { std::exchange(connection_, nullptr)->abort(); }

private:
    void give(Connection& connection, stack::SendChunk& chunk) {
        chunk = {.next = nullptr, .data = pattern().data(), .length = kChunk, .tag = 0};
        connection.send(&chunk, &chunk);
    }
    Connection* connection_ = nullptr;
    std::array<stack::SendChunk, kChunks> chunks_;
};

/// Takes everything at once, and checks it.
class Sink final : public stack::tcp::ConnectionOwner, public stack::tcp::ListenerOwner {
public:
    bool can_accept() override { return true; }
    stack::tcp::ConnectionOwner* on_accept(Connection&) override { return this; }
    void on_established(Connection&) override {}
    std::uint32_t on_data(Connection& connection, stack::Payload payload, std::uint32_t length) override {
        for (auto piece : payload)
            while (!piece.empty()) {
                const std::size_t at = received % kChunk;
                const std::size_t n = std::min(piece.size(), kChunk - at);
                right = right && std::memcmp(piece.data(), pattern().data() + at, n) == 0;
                received += n;
                piece = piece.subspan(n);
            }
        connection.consumed(length);
        return length;
    }
    void on_end_of_stream(Connection&) override {}
    void on_released(Connection&, stack::SendChunk*) override {}
    void on_acknowledged(Connection&, std::uint32_t) override {}
    void on_closed(Connection&, int) override {}
    std::uint64_t received = 0;
    bool right = true;
};

}  // namespace

Result transfer(const Course& course, stack::tcp::Congestion congestion) {
    Failures failures;
    Rng rng(20261121);
    stack::StackConfig config;
    config.max_connections = config.max_half_open = config.max_time_wait = 16;
    config.max_udp_sockets = config.max_listeners = 4;
    config.max_bbr = 16;
    config.max_receive_buffer = 16 * 1024 * 1024;
    config.congestion = congestion;
    config.ecn = course.ecn ? stack::tcp::EcnMode::kOn : stack::tcp::EcnMode::kOff;
    config.secret[0] = 1;
    config.secret[1] = 2;
    SimHost client("client", config, 16384, 3, failures), server("server", config, 16384, 4, failures);
    const Address from = Address::v4(10, 0, 0, 1), to = Address::v4(10, 0, 0, 2);
    client.add_interface(1500, {{from, 24, true}});
    server.add_interface(1500, {{to, 24, true}});
    client.set_routes({{.destination = Address::v4(10, 0, 0, 0), .prefix_length = 24, .interface = 1}});
    server.set_routes({{.destination = Address::v4(10, 0, 0, 0), .prefix_length = 24, .interface = 1}});
    client.know(1, std::span(&to, 1), server.mac(1));
    server.know(1, std::span(&from, 1), client.mac(1));
    Link there(course.weather, rng);
    Link back({.delay = course.weather.delay}, rng);

    Sink sink;
    Source source;
    Instant now{1h};
    const Instant begin = now;
    CHECK(server.stack.listen({to, 80}, false, {}, sink).has_value());
    source.attach(**client.stack.connect({from, 40000}, {to, 80}, {}, source, now));
    // A turn for every event on a slow link; on a fast one a burst a turn, as a device would have it.
    const Duration turn = course.weather.bytes_per_second > 1e8 ? Duration(10us) : Duration(1);
    while (now - begin < course.length) {
        for (Bytes frame = there.arrive(now); !frame.empty(); frame = there.arrive(now)) server.receive(1, frame, false, now);
        for (Bytes frame = back.arrive(now); !frame.empty(); frame = back.arrive(now)) client.receive(1, frame, false, now);
        for (SimHost* host : {&client, &server}) {
            host->stack.advance(now);
            host->stack.flush(now);
        }
        for (Bytes& frame : client.take_frames(1)) there.carry(std::move(frame), now);
        for (Bytes& frame : server.take_frames(1)) back.carry(std::move(frame), now);
        now = std::max(now + turn, std::min({there.next(), back.next(), client.stack.next_deadline(), server.stack.next_deadline()}));
    }
    source.stop();
    CHECK(sink.right && failures.none());

    Result result;
    const double seconds = std::chrono::duration<double>(course.length).count();
    result.goodput_mbit = static_cast<double>(sink.received) * 8 / seconds / 1e6;
    // A segment of 1448 bytes takes 1514 on the simulated wire.
    result.share = static_cast<double>(sink.received) / (course.weather.bytes_per_second * seconds * 1448 / 1514);
    const Counters& c = client.counters;
    result.again = static_cast<double>(c.tcp_retransmits) / static_cast<double>(std::max<std::uint64_t>(c.tcp_segments_out, 1));
    result.timeouts = c.tcp_timeouts;
    result.marked = there.marked;
    result.longest_queue_ms = there.longest_queue_seen / course.weather.bytes_per_second * 1e3;
    return result;
}

}  // namespace culvert::sim
