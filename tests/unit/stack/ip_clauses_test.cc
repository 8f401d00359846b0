// Clauses of RFC 1122, and those of RFC 9293 about what IP does for TCP, that no other test is about: frames in, frames out
// (tests/clauses). The address is dedicated: for shared ones the kernel answers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "daemon/stack/input_hooks.h"
#include "daemon/stack/ip_packet.h"
#include "daemon/stack/raw.h"
#include "daemon/stack/stack.h"
#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/tcp/listener.h"
#include "daemon/stack/udp.h"
#include "daemon/wire/icmp.h"
#include "daemon/wire/tcp.h"
#include "tests/unit/stack/ip_world.h"

namespace culvert::stack {
namespace {

using testing::ElementsAre;

class Nobody final : public PortOwner {
public:
    void take_port(Protocol, const Address&, Port) override {}
    void release_port(Protocol, const Address&, Port) override {}
};

class Inbox final : public udp::SocketOwner {
public:
    bool on_datagram(udp::Socket&, const udp::DatagramInfo& info, Payload, std::uint32_t) override {
        infos.push_back(info);
        return true;
    }
    void on_error(udp::Socket&, const udp::DatagramError& error) override { errors.push_back(error); }
    std::vector<udp::DatagramInfo> infos;
    std::vector<udp::DatagramError> errors;
};

class NoAccept final : public tcp::ListenerOwner {
public:
    bool can_accept() override { return true; }
    tcp::ConnectionOwner* on_accept(tcp::Connection&) override { return nullptr; }
};

class EveryGroup final : public LinkProtocols {
public:
    bool accepts_group(const Interface&, const Address&, const Address&) const override { return true; }
    bool accepts_source(const Interface&, const Address&, const Address&) const override { return true; }
    void arp(Interface&, const RxPacket&, std::uint32_t, Instant) override {}
    void igmp(const IpPacket&, Instant) override {}
    void icmpv6(const IpPacket&, std::uint8_t, Instant) override {}
};

class PingSocket final : public raw::SocketOwner {
public:
    bool on_packet(raw::Socket&, const raw::PacketInfo&, Payload, std::uint32_t) override { return ++replies > 0; }
    int replies = 0;
};

class IpClauses : public testing::TestWithParam<bool> {
protected:
    const bool v4 = GetParam();
    const Address our = ip(v4 ? "10.0.0.1" : "fd00::1");
    const Address peer = ip(v4 ? "10.0.0.2" : "fd00::2");
    const Address group = ip(v4 ? "224.0.0.251" : "ff02::fb");
    FramePool pool{512};
    TxQueue tx{pool};
    Counters counters;
    Rng rng{5};
    RecordingResolver resolver;
    Nobody ports;
    EveryGroup link;
    PingSocket ping;
    Stack stack;
    Interface* eth0;
    Instant now{1h};

    static StackConfig config() {
        StackConfig config;
        config.max_connections = config.max_half_open = config.max_time_wait = 16;
        config.max_udp_sockets = 4;
        config.secret[0] = 3;
        config.secret[1] = 4;
        return config;
    }
    IpClauses() : stack(config(), resolver, ports, counters, rng) {
        Interface made;
        made.index = 7;
        made.mac = kOurMac;
        made.up = true;
        made.tx = &tx;
        eth0 = &stack.add_interface(made);
        stack.set_addresses(7, {{our, v4 ? 24u : 64u, true}});
        stack.routes().replace({{.destination = ip("10.0.0.0"), .prefix_length = 24, .interface = 7},
                                {.destination = ip("fd00::"), .prefix_length = 64, .interface = 7},
                                {.destination = ip("192.0.2.0"), .prefix_length = 24, .gateway = ip("10.0.0.3"), .interface = 7},
                                {.destination = ip("2001:db8::"), .prefix_length = 32, .gateway = ip("fd00::3"), .interface = 7}});
        for (const char* neighbor : {"10.0.0.2", "fd00::2", "10.0.0.3", "fd00::3"})
            stack.neighbors().update(7, ip(neighbor), kPeerMac, NeighborState::kReachable, tx);
        stack.set_link_protocols(&link);
    }
    ~IpClauses() override { stack.set_link_protocols(nullptr); }
    std::vector<Bytes> answers(const Bytes& frame) {
        stack.input(*eth0, received(frame), now);
        stack.flush(now);
        return take_frames(tx);
    }
    Bytes syn(const Address& from, const Address& to) const {
        Bytes segment(20);
        wire::emit(wire::TcpHeader{.source = 50000, .destination = 80, .sequence = 1, .flags = wire::kSyn, .window = 1000}, {}, segment);
        wire::finish_tcp_checksum(segment, {}, 0, from, to);
        return ip_frame(from, to, wire::IpProtocol::kTcp, segment);
    }
    Bytes icmp(std::uint8_t type, std::uint8_t code, std::uint32_t rest, std::span<const std::byte> payload,
               const Address& to) const {
        Bytes message(wire::kIcmpHeaderLength + payload.size());
        wire::emit(wire::IcmpHeader{type, code, rest}, payload, peer, to, message);
        return ip_frame(peer, to, v4 ? wire::IpProtocol::kIcmp : wire::IpProtocol::kIcmpv6, message);
    }
    Bytes icmp(std::uint8_t type, std::uint8_t code, std::uint32_t rest, std::span<const std::byte> payload) const {
        return icmp(type, code, rest, payload, our);
    }
    void fix(Bytes& frame) const {
        if (!v4) return;
        const std::size_t length = (std::to_integer<std::size_t>(frame[14]) & 15) * 4;
        wire::store_be16(frame.data() + 24, 0);
        wire::store_be16(frame.data() + 24, wire::checksum(wire::sum_bytes(std::span(frame).subspan(14, length))));
    }
};

INSTANTIATE_TEST_SUITE_P(Families, IpClauses, testing::Bool(),
                         [](const auto& param) { return param.param ? "Ipv4" : "Ipv6"; });

TEST_P(IpClauses, ASynToManyDrawsNothing) {  // [RFC9293 3.9.2.3 MUST-57]
    NoAccept owner;
    ASSERT_TRUE(stack.listen({Address::any(our.family()), 80}, false, {}, owner));
    std::vector<Address> many = {group};
    if (v4) many.insert(many.end(), {ip("255.255.255.255"), ip("10.0.0.255")});
    for (const Address& to : many) EXPECT_TRUE(answers(syn(peer, to)).empty()) << to.to_string();
    EXPECT_EQ(counters.dropped(Drop::kTcpNotUnicast), many.size());
    EXPECT_EQ(answers(syn(peer, our)).size(), 1u) << "the listener is there";
}

TEST_P(IpClauses, ASynFromAnImpossibleAddressDrawsNothing) {  // [RFC9293 3.9.2.3 MUST-63] [RFC1122 4.1.3.6 bad-source]
    NoAccept owner;
    ASSERT_TRUE(stack.listen({our, 80}, false, {}, owner));
    std::vector<Address> impossible = {group, Address::any(our.family()), ip(v4 ? "127.0.0.1" : "::1"), our};
    if (v4) impossible.insert(impossible.end(), {ip("255.255.255.255"), ip("10.0.0.255")});
    for (const Address& from : impossible) EXPECT_TRUE(answers(syn(from, our)).empty()) << from.to_string();
    EXPECT_EQ(counters.dropped(Drop::kIpSourceInvalid), impossible.size() - 1);
    EXPECT_EQ(counters.dropped(Drop::kIpLoopback), 1u);
}

TEST_P(IpClauses, LoopbackStaysInTheHost) {  // [RFC1122 3.2.1.3 loopback]
    stack.add_interface(loopback_interface(tx));
    NoAccept owner;
    const Address inside = ip(v4 ? "127.0.0.1" : "::1");
    ASSERT_TRUE(stack.listen({Address::any(our.family()), 80}, false, {}, owner));
    EXPECT_EQ(stack.source_for({inside, 80}).value(), inside) << "the listener on every address has this one, too";
    std::vector<std::pair<Address, Address>> martians{{peer, inside}, {inside, our}, {inside, inside}, {our, inside}};
    if (v4) martians.insert(martians.end(), {{peer, ip("127.0.0.2")}, {ip("127.9.9.9"), our}});
    for (const auto& [from, to] : martians) EXPECT_TRUE(answers(syn(from, to)).empty()) << from.to_string() << " to " << to.to_string();
    EXPECT_EQ(counters.dropped(Drop::kIpLoopback), martians.size());
    EXPECT_EQ(answers(syn(peer, our)).size(), 1u) << "the listener is there";
    // Nor does it get out: as Linux, a socket bound to it reaches nobody else.
    struct : tcp::ConnectionOwner {
        void on_established(tcp::Connection&) override {}
        std::uint32_t on_data(tcp::Connection&, Payload, std::uint32_t length) override { return length; }
        void on_end_of_stream(tcp::Connection&) override {}
        void on_released(tcp::Connection&, SendChunk*) override {}
        void on_acknowledged(tcp::Connection&, std::uint32_t) override {}
        void on_closed(tcp::Connection&, int) override {}
    } nobody;
    const auto refused = stack.connect({inside, 40000}, {peer, 80}, {}, nobody, now);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, EINVAL);
    stack.flush(now);
    EXPECT_TRUE(take_frames(tx).empty());
}

TEST_P(IpClauses, OptionsThatNobodyKnowsAreIgnored) {  // [RFC9293 3.9.2.1 MUST-50] [RFC1122 3.2.1.8 unknown, stream]
    NoAccept owner;
    ASSERT_TRUE(stack.listen({our, 80}, false, {}, owner));
    if (v4) {
        for (const int kind : {30, 136}) {  // nobody's; stream identifier
            Bytes frame = syn(peer, our);
            const Bytes option = {static_cast<std::byte>(kind), std::byte{4}, std::byte{0}, std::byte{1}};
            frame.insert(frame.begin() + 34, option.begin(), option.end());
            frame[14] = std::byte{0x46};
            wire::store_be16(frame.data() + 16, static_cast<std::uint16_t>(frame.size() - 14));
            fix(frame);
            EXPECT_EQ(answers(frame).size(), 1u) << kind;
        }
    } else {
        Bytes frame = syn(peer, our);
        const Bytes header = {frame[20], std::byte{0}, std::byte{0x1e}, std::byte{4}, {}, {}, {}, {}};
        frame.insert(frame.begin() + 54, header.begin(), header.end());
        frame[20] = static_cast<std::byte>(wire::IpProtocol::kDestinationOptions);
        wire::store_be16(frame.data() + 18, static_cast<std::uint16_t>(frame.size() - 54));
        EXPECT_EQ(answers(frame).size(), 1u);
    }
}

TEST_P(IpClauses, WhatHasArrivedHasHopsEnoughAndBringsItsTos) {  // [RFC1122 3.2.1.7 accept-low] [RFC1122 3.2.1.6 receive-tos]
    Inbox inbox;
    ASSERT_TRUE(stack.bind_udp({our, 53}, false, inbox));
    for (const std::uint8_t hops : {std::uint8_t{0}, std::uint8_t{1}}) {
        Bytes frame = udp_frame({peer, 4000}, {our, 53}, pattern(10));
        frame[v4 ? 22 : 21] = std::byte{hops};
        if (v4) {
            frame[15] = std::byte{0x28};
        } else {
            wire::store_be16(frame.data() + 14, 0x6280);
        }
        fix(frame);
        answers(frame);
        ASSERT_EQ(inbox.infos.size(), hops + 1u);
        EXPECT_EQ(inbox.infos.back().ttl, hops);
        EXPECT_EQ(inbox.infos.back().tos, 0x28);
    }
}

TEST_P(IpClauses, AHostForwardsNothing) {  // [RFC1122 3.1 gateway-switch, gateway-default, gateway-auto] [RFC1122 3.2.2.2 send]
    TxQueue other(pool);
    Interface made;  // a second interface makes no router
    made.index = 8;
    made.mac = kRouterMac;
    made.up = true;
    made.tx = &other;
    stack.add_interface(made);
    const Bytes frame = udp_frame({peer, 4000}, {ip(v4 ? "192.0.2.9" : "2001:db8::9"), 53}, pattern(10));
    EXPECT_TRUE(answers(frame).empty());
    EXPECT_EQ(counters.dropped(Drop::kIpNotForUs), 1u);
    stack.set_forwarding(true, false);
    const auto out = answers(frame);
    ASSERT_EQ(out.size(), 1u) << "it goes on to the gateway, and the sender on the same link hears of no better way";
    EXPECT_TRUE(std::ranges::equal(std::span(out[0]).last(10), pattern(10)));
    stack.set_forwarding(false, false);
    EXPECT_TRUE(answers(frame).empty());
}

TEST_P(IpClauses, MessagesThatAreNotSpokenDrawNothing) {  // [RFC1122 3.2.2 unknown] [RFC1122 3.2.2.7 information]
    int count = 0;
    for (const int type : v4 ? std::vector{13, 15, 17, 42} : std::vector{139, 200, 201}) {
        EXPECT_TRUE(answers(icmp(static_cast<std::uint8_t>(type), 0, 0, pattern(20))).empty()) << type;
        EXPECT_EQ(counters.dropped(Drop::kIcmpIgnored), static_cast<std::uint64_t>(++count)) << type;
    }
}

TEST_P(IpClauses, AnErrorLeavesWithNormalService) {  // [RFC1122 3.2.2 tos]
    const auto out = answers(udp_frame({peer, 4000}, {our, 9}, pattern(10)));
    ASSERT_EQ(out.size(), 1u);
    const auto at_ip = std::span<const std::byte>(out[0]).subspan(14);
    const std::uint8_t tos = v4 ? wire::Ipv4View::parse(at_ip)->traffic_class() : wire::Ipv6View::parse(at_ip)->traffic_class();
    EXPECT_EQ(tos & 0x1f, 0) << "the precedence may be set [RFC1812 4.3.2.5], the service not";
}

TEST_P(IpClauses, TimeExceededAndParameterProblemGoUp) {  // [RFC1122 3.2.2.4 pass] [RFC1122 3.2.2.5 pass]
    Inbox inbox;
    udp::Socket& socket = **stack.bind_udp({our, 53}, false, inbox);
    stack.set_options(socket, {.errors = true});
    Bytes ours = udp_frame({our, 53}, {peer, 4000}, pattern(10));
    ours.erase(ours.begin(), ours.begin() + 14);
    answers(icmp(v4 ? 11 : 3, 0, 0, ours));
    answers(icmp(v4 ? 12 : 4, 0, 0, ours));
    ASSERT_EQ(inbox.errors.size(), 2u);
    EXPECT_EQ(inbox.errors[0].error, EHOSTUNREACH);
    EXPECT_EQ(inbox.errors[0].type, v4 ? 11 : 3);
    EXPECT_EQ(inbox.errors[1].error, EPROTO);
    EXPECT_EQ(inbox.errors[1].type, v4 ? 12 : 4);
}

TEST_P(IpClauses, AnEchoToManyIsNotAnsweredAndAReplyGoesUp) {  // [RFC1122 3.2.2.6 broadcast, pass, client]
    const std::uint8_t request = v4 ? 8 : 128, reply = v4 ? 0 : 129;
    EXPECT_EQ(answers(icmp(request, 0, 1, pattern(20))).size(), 1u);
    EXPECT_TRUE(answers(icmp(request, 0, 1, pattern(20), group)).empty());
    if (v4) {
        EXPECT_TRUE(answers(icmp(request, 0, 1, pattern(20), ip("10.0.0.255"))).empty());
    }
    raw::Socket* const socket = stack.raw_sockets().open(raw::Kind::kPing, our.family(), 0, ping).value();
    ASSERT_TRUE(stack.raw_sockets().bind(*socket, our, 7));
    EXPECT_TRUE(answers(icmp(reply, 0, 7u << 16 | 1, pattern(20))).empty());
    EXPECT_EQ(ping.replies, 1);
    stack.raw_sockets().close(*socket);
}

}  // namespace
}  // namespace culvert::stack
