// The facade: what is joined to what. Packets to ourselves, sources, errors that find their sockets.
#include "daemon/stack/stack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/udp.h"
#include "daemon/wire/icmp.h"
#include "daemon/wire/tcp.h"
#include "tests/unit/stack/ip_world.h"

namespace culvert::stack {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class NoPorts final : public PortOwner {
public:
    void take_port(Protocol, const Address&, Port) override {}
    void release_port(Protocol, const Address&, Port) override {}
};

/// Answers every datagram with the same bytes.
class Echo final : public udp::SocketOwner {
public:
    explicit Echo(Stack& stack) : stack_(stack) {}
    bool on_datagram(udp::Socket& socket, const udp::DatagramInfo& info, Payload payload, std::uint32_t length) override {
        ++datagrams;
        return stack_.send_datagram(socket, info.remote, payload, length, {.source = info.local}, Instant(2h)).has_value();
    }
    void on_error(udp::Socket&, const udp::DatagramError& e) override { errors.push_back(e.error); }
    int datagrams = 0;
    std::vector<int> errors;

private:
    Stack& stack_;
};

class Inbox final : public udp::SocketOwner {
public:
    bool on_datagram(udp::Socket&, const udp::DatagramInfo&, Payload payload, std::uint32_t) override {
        received.emplace_back();
        for (const auto piece : payload) received.back().insert(received.back().end(), piece.begin(), piece.end());
        return true;
    }
    void on_error(udp::Socket&, const udp::DatagramError& e) override { errors.push_back(e.error); }
    std::vector<Bytes> received;
    std::vector<int> errors;
};

/// One side of a TCP connection; notes what happens.
class Side final : public tcp::ConnectionOwner, public tcp::ListenerOwner {
public:
    void on_established(tcp::Connection&) override { established = true; }
    std::uint32_t on_data(tcp::Connection& c, Payload payload, std::uint32_t length) override {
        for (const auto piece : payload) received.insert(received.end(), piece.begin(), piece.end());
        c.consumed(length);
        return length;
    }
    void on_end_of_stream(tcp::Connection&) override { ended = true; }
    void on_released(tcp::Connection&, SendChunk* first) override {
        for (; first != nullptr; first = first->next) ++released;
    }
    void on_acknowledged(tcp::Connection&, std::uint32_t bytes) override { acknowledged += bytes; }
    void on_closed(tcp::Connection&, int error) override { closed = error; }
    bool can_accept() override { return true; }
    tcp::ConnectionOwner* on_accept(tcp::Connection& c) override {
        connection = &c;
        return this;
    }
    tcp::Connection* connection = nullptr;
    bool established = false;
    bool ended = false;
    int released = 0;
    std::uint32_t acknowledged = 0;
    std::optional<int> closed;
    Bytes received;
};

class StackTest : public testing::Test {
protected:
    FramePool pool{2048};
    TxQueue tx{pool};
    Counters counters;
    RecordingResolver resolver;
    NoPorts ports;
    Rng rng{1};
    Stack stack{small(), resolver, ports, counters, rng};
    Interface* eth0 = nullptr;
    Instant now{2h};

    const Address our4 = ip("10.0.0.1");
    const Address our6 = ip("fd00::1");
    const Address peer4 = ip("10.0.0.2");

    static StackConfig small() {
        StackConfig config;
        config.max_connections = 64;
        config.max_half_open = 16;
        config.max_time_wait = 16;
        config.max_udp_sockets = 16;
        config.reassembly_chunks = 64;
        return config;
    }
    StackTest() {
        Interface interface;
        interface.index = 7;
        interface.mac = kOurMac;
        interface.up = true;
        interface.tx = &tx;
        interface.addresses = {{our4, 24}, {our6, 64}};
        eth0 = &stack.add_interface(std::move(interface));
        stack.routes().replace({{.destination = ip("10.0.0.0"), .prefix_length = 24, .interface = 7},
                                {.destination = ip("fd00::"), .prefix_length = 64, .interface = 7},
                                {.destination = ip("10.9.0.0"), .prefix_length = 16, .interface = 7,
                                 .source = our4},
                                {.destination = ip("10.8.0.0"), .prefix_length = 16, .interface = 3}});
    }
    void turn() {
        stack.advance(now);
        stack.flush(now);
    }
    int error_for(const char* address, Port port) const {
        const auto source = stack.source_for({ip(address), port});
        return source ? 0 : source.error().code;
    }
};

TEST_F(StackTest, DatagramsToOurselvesArriveInOrderWithoutTouchingTheDevice) {
    Inbox inbox, sender;
    udp::Socket& from = **stack.bind_udp({our4, 1000}, false, sender);
    ASSERT_TRUE(stack.bind_udp({our6, 53}, false, inbox));
    ASSERT_TRUE(stack.bind_udp({our4, 53}, false, inbox));
    EXPECT_GT(stack.next_deadline(), now);
    for (std::size_t length : {1u, 2u, 9000u, 65507u}) {
        const Bytes payload = pattern(length);
        const std::span<const std::byte> piece(payload);
        ASSERT_TRUE(stack.send_datagram(from, {our4, 53}, {&piece, 1}, static_cast<std::uint32_t>(length), {}, now));
    }
    EXPECT_EQ(stack.next_deadline(), Instant::min()) << "packets wait for delivery";
    turn();
    EXPECT_THAT(inbox.received, ElementsAre(pattern(1), pattern(2), pattern(9000), pattern(65507)));
    EXPECT_TRUE(tx.pending().empty());
    EXPECT_EQ(pool.available(), pool.count());
    EXPECT_EQ(counters.local_frames, 4u);
    EXPECT_GT(stack.next_deadline(), now);
}

TEST_F(StackTest, TwoSocketsThatTalkWithoutEndDoNotHoldTheTurn) {
    Echo one(stack), two(stack);
    udp::Socket& a = **stack.bind_udp({our4, 1}, false, one);
    ASSERT_TRUE(stack.bind_udp({our4, 2}, false, two));
    const Bytes ball = pattern(10);
    const std::span<const std::byte> piece(ball);
    ASSERT_TRUE(stack.send_datagram(a, {our4, 2}, {&piece, 1}, 10, {}, now));
    turn();
    const int after_one_turn = one.datagrams + two.datagrams;
    EXPECT_GE(after_one_turn, 2);
    EXPECT_LE(after_one_turn, 8);
    EXPECT_EQ(stack.next_deadline(), Instant::min());
    turn();
    EXPECT_GT(one.datagrams + two.datagrams, after_one_turn);
    EXPECT_EQ(pool.available() + 1, pool.count()) << "one ball is in the air";
}

TEST_F(StackTest, TwoProgramsMeetOverTcpOnOurOwnAddress) {
    for (const Address& own : {our4, our6}) {
        SCOPED_TRACE(own.to_string());
        Side server, client;
        tcp::Listener* const listener = *stack.listen({own, 80}, false, {}, server);
        const Address source = stack.source_for({own, 80}).value();
        EXPECT_EQ(source, own);
        tcp::Connection& connection = **stack.connect({source, 40000}, {own, 80}, {}, client, now);
        turn();
        turn();
        ASSERT_TRUE(client.established);
        ASSERT_NE(server.connection, nullptr);

        const Bytes text = pattern(100000);
        SendChunk chunk{.data = text.data(), .length = static_cast<std::uint32_t>(text.size())};
        connection.send(&chunk, &chunk);
        connection.shutdown_write();
        for (int i = 0; i < 200 && client.released == 0; ++i, now += 1ms) turn();
        EXPECT_EQ(server.received, text);
        EXPECT_TRUE(server.ended);
        EXPECT_EQ(client.released, 1);
        EXPECT_EQ(client.acknowledged, text.size());
        server.connection->shutdown_write();
        for (int i = 0; i < 200 && !server.closed; ++i, now += 1ms) turn();
        EXPECT_EQ(server.closed, 0);
        EXPECT_EQ(client.closed, 0);
        EXPECT_EQ(pool.available(), pool.count());
        EXPECT_TRUE(tx.pending().empty());
        stack.close(*listener);
    }
}

TEST_F(StackTest, SourceForSaysWhatIsThroughUs) {  // [RFC9293 3.9.1.1 MUST-44]
    EXPECT_EQ(stack.source_for({peer4, 80}).value(), our4);
    EXPECT_EQ(stack.source_for({ip("fd00::2"), 80}).value(), our6);
    EXPECT_EQ(stack.source_for({ip("10.9.1.1"), 80}).value(), our4) << "the route's preferred source";
    EXPECT_EQ(error_for("10.8.0.1", 80), ENETUNREACH) << "an interface that Culvert does not serve";
    EXPECT_EQ(error_for("192.0.2.1", 80), ENETUNREACH);
    EXPECT_EQ(error_for("127.0.0.1", 80), EHOSTUNREACH);
    EXPECT_EQ(error_for("::1", 80), EHOSTUNREACH);
    EXPECT_EQ(error_for("10.0.0.1", 80), EHOSTUNREACH) << "our address, but the port may be the kernel's";
    Side server;
    ASSERT_TRUE(stack.listen({ip("0.0.0.0"), 80}, false, {}, server));
    EXPECT_EQ(error_for("10.0.0.1", 80), 0);
    EXPECT_EQ(error_for("10.0.0.1", 81), EHOSTUNREACH);
    EXPECT_EQ(error_for("fd00::1", 80), EHOSTUNREACH) << "the listener is IPv4's";
}

TEST_F(StackTest, AnAddressThatGoesIsNoLongerOurs) {
    EXPECT_TRUE(stack.is_local(our4));
    stack.set_addresses(7, {{our6, 64}});
    EXPECT_FALSE(stack.is_local(our4));
    EXPECT_TRUE(stack.is_local(our6));
    EXPECT_EQ(error_for("10.0.0.2", 80), ENETUNREACH) << "no IPv4 source is left";
}

TEST_F(StackTest, AnInterfaceThatIsDownIsNoWay) {
    stack.set_interface_state(7, false, 1500);
    EXPECT_EQ(error_for("10.0.0.2", 80), ENETUNREACH);
    stack.set_interface_state(7, true, 9000);
    EXPECT_EQ(error_for("10.0.0.2", 80), 0);
}

TEST_F(StackTest, ConnectToADeadNeighbourFailsAsOnLinux) {
    Side client;
    ASSERT_TRUE(stack.connect({our4, 40000}, {peer4, 80}, {}, client, now));
    turn();
    EXPECT_THAT(resolver.asked, ElementsAre(peer4));
    EXPECT_FALSE(client.closed);
    stack.neighbors().update(7, peer4, {}, NeighborState::kFailed, tx);
    turn();
    EXPECT_EQ(client.closed, EHOSTUNREACH);
    EXPECT_EQ(counters.dropped(Drop::kNeighborUnresolved), 1u);
    EXPECT_EQ(pool.available(), pool.count());
}

TEST_F(StackTest, AnIcmpErrorEndsAConnectThatItIsAbout) {  // [RFC1122 3.2.2 demultiplex] [RFC1122 3.2.2.1 pass]
    stack.neighbors().update(7, peer4, kPeerMac, NeighborState::kReachable, tx);
    Side client;
    ASSERT_TRUE(stack.connect({our4, 40000}, {peer4, 80}, {}, client, now));
    turn();
    const auto frames = take_frames(tx);
    ASSERT_EQ(frames.size(), 1u);
    const auto syn = std::span(frames[0]).subspan(wire::kEthernetHeaderLength);

    const auto refuse = [&](std::span<const std::byte> embedded) {
        Bytes message(wire::kIcmpHeaderLength + embedded.size());
        wire::emit(wire::IcmpHeader{3, 3, 0}, embedded, peer4, our4, message);
        const Bytes frame = ip_frame(peer4, our4, wire::IpProtocol::kIcmp, message);
        stack.input(*eth0, received(frame), now);
        turn();
    };
    // [RFC5927 4.1] a guess that misses the sequence number changes nothing
    Bytes forged(syn.begin(), syn.begin() + 28);
    forged[24] ^= std::byte{0x40};
    refuse(forged);
    EXPECT_FALSE(client.closed);
    EXPECT_EQ(counters.dropped(Drop::kIcmpSequence), 1u);

    refuse(syn.first(28));
    EXPECT_EQ(client.closed, ECONNREFUSED);
    EXPECT_EQ(counters.icmp_in, 1u);
}

TEST_F(StackTest, AnIcmpErrorReachesTheConnectedUdpSocket) {  // [RFC1122 4.1.3.3 icmp] [RFC1122 3.2.2 demultiplex]
    stack.neighbors().update(7, peer4, kPeerMac, NeighborState::kReachable, tx);
    Inbox inbox;
    udp::Socket& socket = **stack.bind_udp({ip("0.0.0.0"), 1000}, false, inbox);
    const Endpoint remote{peer4, 53};
    stack.connect_udp(socket, &remote);
    const Bytes payload = pattern(4);
    const std::span<const std::byte> piece(payload);
    ASSERT_TRUE(stack.send_datagram(socket, remote, {&piece, 1}, 4, {}, now));
    const auto frames = take_frames(tx);
    ASSERT_EQ(frames.size(), 1u);
    const auto datagram = std::span(frames[0]).subspan(wire::kEthernetHeaderLength);
    Bytes message(wire::kIcmpHeaderLength + datagram.size());
    wire::emit(wire::IcmpHeader{3, 3, 0}, datagram, peer4, our4, message);
    stack.input(*eth0, received(ip_frame(peer4, our4, wire::IpProtocol::kIcmp, message)), now);
    EXPECT_THAT(inbox.errors, ElementsAre(ECONNREFUSED));
}

TEST_F(StackTest, CountsWhatItCannotUse) {  // [RFC1122 3.1 counters]
    const auto input = [&](const Bytes& frame) { stack.input(*eth0, received(frame), now); };
    input(Bytes(10));
    EXPECT_EQ(counters.dropped(Drop::kEthernetTruncated), 1u);
    input(ip_frame(peer4, our4, static_cast<wire::IpProtocol>(132), pattern(20)));  // SCTP
    EXPECT_EQ(counters.dropped(Drop::kIpProtocolUnknown), 1u);
    input(udp_frame({peer4, 1}, {our4, 2}, pattern(4)));
    EXPECT_EQ(counters.dropped(Drop::kUdpNoSocket), 1u);
    input(ip_frame(peer4, our4, wire::IpProtocol::kTcp, pattern(19)));
    EXPECT_EQ(counters.dropped(Drop::kTcpTruncated), 1u);
    turn();
    EXPECT_TRUE(tx.pending().empty()) << "nothing is answered";
}

}  // namespace
}  // namespace culvert::stack
