// What an established connection costs the daemon while nothing happens on it: pools, tables and all.
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "tests/support/stack_test.h"

namespace culvert::test {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;  // shadow memory would be counted
constexpr std::uint32_t kConnections = 5'000;
#else
constexpr bool kSanitized = false;
constexpr std::uint32_t kConnections = 100'000;
#endif
constexpr std::uint32_t kPorts = 60'000;  // of each client

std::size_t resident_bytes() {
    std::ifstream statm("/proc/self/statm");
    std::size_t all = 0;
    std::size_t resident = 0;
    statm >> all >> resident;
    return resident * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

HostConfig large() {
    HostConfig config;
    config.stack = small_stack_config();
    config.stack.max_connections = kConnections + 1000;
    return config;
}

/// Answers every request with one chunk, which is back before the next request comes.
class Server final : public stack::tcp::ListenerOwner, public stack::tcp::ConnectionOwner {
public:
    bool can_accept() override { return true; }
    stack::tcp::ConnectionOwner* on_accept(stack::tcp::Connection&) override { return this; }
    void on_established(stack::tcp::Connection&) override {}
    std::uint32_t on_data(stack::tcp::Connection& connection, stack::Payload, std::uint32_t length) override {
        ++requests;
        connection.consumed(length);
        reply_.length = static_cast<std::uint32_t>(bytes_.size());
        reply_.data = bytes_.data();
        connection.send(&reply_, &reply_);
        return length;
    }
    void on_end_of_stream(stack::tcp::Connection&) override {}
    void on_released(stack::tcp::Connection&, stack::SendChunk*) override { ++replies; }
    void on_acknowledged(stack::tcp::Connection&, std::uint32_t) override {}
    void on_closed(stack::tcp::Connection&, int) override { ++closed; }

    std::uint32_t requests = 0;
    std::uint32_t replies = 0;
    std::uint32_t closed = 0;

private:
    stack::SendChunk reply_;
    Bytes bytes_ = Bytes(64, std::byte{'y'});
};

class TcpMemory : public ::testing::TestWithParam<bool> {
protected:
    TcpMemory() : t(large()) {
        if (GetParam()) t.over_ipv6();
        t.local.port = 80;
    }
    /// A handshake, a request of 64 bytes and its answer.
    void serve(std::uint32_t number) {
        t.remote.port = static_cast<Port>(1024 + number % kPorts);
        t.remote.address = GetParam() ? *Address::parse("fd00::" + std::to_string(2 + number / kPorts))
                                      : Address::v4(10, 0, 0, static_cast<std::uint8_t>(2 + number / kPorts));
        inject(syn().seq(0).mss(1400).sack_ok().wscale(7).ts(1, 0));
        const Bytes answer = sent();
        const std::size_t at = 14 + (GetParam() ? 40u : 20u) + 4;
        t.our_iss = 0;
        for (std::size_t i = 0; i < 4; ++i) t.our_iss = t.our_iss << 8 | std::to_integer<std::uint32_t>(answer.at(at + i));
        inject(ack().seq(1).ack(1).ts(1, 0));
        inject(ack().seq(1).ack(1).len(64).ts(1, 0));
        sent();
        inject(ack().seq(65).ack(65).ts(1, 0));
    }
    void inject(const Seg& in) { t.host.receive(t.frame_of(in), t.now); }
    /// The one frame that leaves.
    Bytes sent() {
        t.host.tcp.flush(t.now);
        const auto frames = t.host.take_frames();
        EXPECT_EQ(frames.size(), 1u);
        return frames.empty() ? Bytes(100) : frames.back();
    }
    Server server;
    StackTest t;
};
INSTANTIATE_TEST_SUITE_P(Family, TcpMemory, ::testing::Bool(), [](const auto& i) { return i.param ? "IPv6" : "IPv4"; });

TEST_P(TcpMemory, AnIdleConnectionTakesNoMoreThan512Bytes) {
    ASSERT_TRUE(t.host.tcp.listen({t.local.address, 80}, false, stack::tcp::ListenerOptions(), server).has_value());
    serve(0);
    const std::size_t before = resident_bytes();
    for (std::uint32_t number = 1; number <= kConnections; ++number) {
        serve(number);
        // 32,000 a second: those that sent in the last 40 ms still hold a Sending, and a pool keeps the pages of its peak.
        if (number % 32 == 0) t.host.tcp.advance(t.now += 1ms);
    }
    EXPECT_EQ(server.requests, kConnections + 1);
    EXPECT_EQ(server.replies, kConnections + 1);
    for (int tick = 0; tick < 4000; ++tick) t.host.tcp.advance(t.now += 1ms);

    const auto usage = t.host.tcp.usage();
    EXPECT_EQ(usage.connections, kConnections + 1);
    EXPECT_EQ(usage.senders, 0u);        // nothing to send: nothing is kept for it
    EXPECT_EQ(usage.flight_pieces, 0u);
    EXPECT_EQ(usage.sack_boards, 0u);
    EXPECT_EQ(usage.options, 1u);        // all have the listener's
    const double each = static_cast<double>(resident_bytes() - before) / kConnections;
    ::testing::Test::RecordProperty("resident_bytes_per_idle_connection", std::to_string(each));
    std::printf("%zu bytes a Connection, %.0f resident bytes for each of %u idle ones\n", sizeof(stack::tcp::Connection), each,
                kConnections);
    if (!kSanitized) {
        EXPECT_LE(each, 512.0);
    }
}

TEST_P(TcpMemory, WhatASenderNeedsComesBackWhenItSendsAgain) {
    ASSERT_TRUE(t.host.tcp.listen({t.local.address, 80}, false, stack::tcp::ListenerOptions(), server).has_value());
    serve(0);
    EXPECT_EQ(t.host.tcp.usage().senders, 1u);
    for (int tick = 0; tick < 1000; ++tick) t.host.tcp.advance(t.now += 1ms);
    EXPECT_EQ(t.host.tcp.usage().senders, 0u);
    inject(ack().seq(65).ack(65).len(64).ts(1, 0));
    const Bytes answer = sent();
    EXPECT_EQ(answer.size(), 14 + (GetParam() ? 40u : 20u) + 32 + 64);
    inject(ack().seq(129).ack(129).ts(1, 0));
    EXPECT_EQ(server.replies, 2u);
    inject(fin().seq(129).ack(129).ts(1, 0));
    sent();
    inject(rst().seq(130).ts(1, 0));
    t.host.tcp.flush(t.now);
    EXPECT_EQ(server.closed, 1u);
    EXPECT_EQ(t.host.tcp.usage().senders, 0u);
    EXPECT_EQ(t.host.tcp.usage().options, 0u);
}

}  // namespace
}  // namespace culvert::test
