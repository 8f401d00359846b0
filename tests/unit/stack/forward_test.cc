// A router on a table: eth0 is 10.0.0.1/24 and fd00::1/64, eth1 is 10.1.0.1/24 and fd01::1/64 with a gateway to the rest.
#include "daemon/stack/forward.h"

#include <gtest/gtest.h>

#include <random>

#include "daemon/stack/stack.h"
#include "tests/unit/stack/fragments.h"

namespace culvert::stack {
namespace {

class NobodysPorts final : public PortOwner {
public:
    void take_port(Protocol, const Address&, Port) override {}
    void release_port(Protocol, const Address&, Port) override {}
};

constexpr MacAddress kOurSecondMac{{2, 0, 0, 0, 1, 1}};

class ForwardTest : public testing::TestWithParam<bool> {
protected:
    const bool v4 = GetParam();
    const Address from = ip(v4 ? "10.0.0.2" : "fd00::2");
    const Address to = ip(v4 ? "192.0.2.9" : "2001:db8::9");        // behind the gateway
    const Address on_link = ip(v4 ? "10.1.0.5" : "fd01::5");
    const Address our = ip(v4 ? "10.0.0.1" : "fd00::1");
    FramePool pool{512};
    TxQueue tx0{pool}, tx1{pool};
    Counters counters;
    Rng rng{5};
    RecordingResolver resolver;
    NobodysPorts ports;
    Stack stack;
    Interface* eth0;
    Interface* eth1;
    Instant now{1h};

    static StackConfig config() {
        StackConfig config;
        config.max_connections = config.max_half_open = config.max_time_wait = 16;
        config.max_udp_sockets = 4;
        return config;
    }
    ForwardTest() : stack(config(), resolver, ports, counters, rng) {
        eth0 = &add(7, kOurMac, tx0);
        eth1 = &add(8, kOurSecondMac, tx1);
        stack.set_addresses(7, {{ip("10.0.0.1"), 24}, {ip("fd00::1"), 64}});
        stack.set_addresses(8, {{ip("10.1.0.1"), 24}, {ip("fd01::1"), 64}});
        stack.routes().replace(
            {{.destination = ip("10.0.0.0"), .prefix_length = 24, .interface = 7},
             {.destination = ip("10.1.0.0"), .prefix_length = 24, .interface = 8},
             {.destination = ip("0.0.0.0"), .prefix_length = 0, .gateway = ip("10.1.0.254"), .interface = 8},
             {.destination = ip("198.51.100.0"), .prefix_length = 24, .type = Route::Type::kUnreachable},
             {.destination = ip("203.0.113.0"), .prefix_length = 24, .interface = 99},
             {.destination = ip("fd00::"), .prefix_length = 64, .interface = 7},
             {.destination = ip("fd01::"), .prefix_length = 64, .interface = 8},
             {.destination = Address(), .prefix_length = 0, .gateway = ip("fd01::fe"), .interface = 8},
             {.destination = ip("2001:db8:1::"), .prefix_length = 48, .type = Route::Type::kUnreachable},
             {.destination = ip("2001:db8:2::"), .prefix_length = 48, .interface = 99}});
        for (const char* router : {"10.1.0.254", "fd01::fe"})
            stack.neighbors().update(8, ip(router), kRouterMac, NeighborState::kReachable, tx1);
        for (const char* host : {"10.0.0.2", "fd00::2"})
            stack.neighbors().update(7, ip(host), kPeerMac, NeighborState::kReachable, tx0);
        stack.set_forwarding(true, false);
    }
    Interface& add(std::uint32_t index, const MacAddress& mac, TxQueue& tx) {
        Interface made;
        made.index = index;
        made.mac = mac;
        made.up = true;
        made.tx = &tx;
        return stack.add_interface(made);
    }
    /// What left through eth1 (eth0's is in `back`).
    std::vector<Bytes> forward(const Bytes& frame, ChecksumState checksum = ChecksumState::kUnverified) {
        stack.input(*eth0, received(frame, checksum), now);
        stack.flush(now);
        back = take_frames(tx0);
        return take_frames(tx1);
    }
    std::vector<Bytes> back;
    Bytes udp(const Address& destination, std::size_t length = 100) const {
        return udp_frame({from, 4000}, {destination, 53}, pattern(length));
    }
    static void set_hops(Bytes& frame, std::uint8_t hops, bool is_v4) {
        if (!is_v4) {
            frame[21] = std::byte{hops};
            return;
        }
        frame[22] = std::byte{hops};
        wire::store_be16(frame.data() + 24, 0);
        wire::store_be16(frame.data() + 24, wire::checksum(wire::sum_bytes(std::span(frame).subspan(14, 20))));
    }
    int icmp_type() const { return std::to_integer<int>(back.at(0).at(v4 ? 34 : 54)); }
    int icmp_code() const { return std::to_integer<int>(back.at(0).at(v4 ? 35 : 55)); }
    std::uint32_t icmp_rest() const { return wire::load_be32(back.at(0).data() + (v4 ? 38 : 58)); }
};

INSTANTIATE_TEST_SUITE_P(Families, ForwardTest, testing::Bool(),
                         [](const auto& param) { return param.param ? "Ipv4" : "Ipv6"; });

/// A burst is its packets in order, whatever is asked for ahead: good ones, ends of their way, runts and strangers, in more than
/// one group and with a table that is worth it.
TEST_P(ForwardTest, ABurstIsItsPacketsInOrder) {
    std::vector<Route> routes(stack.routes().routes().begin(), stack.routes().routes().end());
    for (std::uint32_t i = 0; i < 5000; ++i)
        routes.push_back({.destination = v4 ? Address::v4(20, static_cast<std::uint8_t>(i >> 8), static_cast<std::uint8_t>(i), 0)
                                            : ip(("2001:db8:1" + std::to_string(i % 1000) + ":" + std::to_string(i / 1000) + "::").c_str()),
                          .prefix_length = v4 ? 24u : 64u,
                          .gateway = ip(v4 ? "10.1.0.254" : "fd01::fe"),
                          .interface = 8});
    stack.routes().replace(routes);
    ASSERT_TRUE(stack.routes().is_large());
    std::vector<Bytes> frames, expected;
    for (std::size_t i = 0; i < 45; ++i) {
        Bytes frame = udp(ip(v4 ? "20.0.7.9" : "2001:db8:107::9"), 20 + i);
        if (i % 5 == 1) set_hops(frame, 1, v4);
        if (i % 5 == 2) frame.resize(15 + i % 20);
        if (i % 5 == 3) frame[0] ^= std::byte{4};  // another's MAC
        frames.push_back(frame);
    }
    for (const Bytes& frame : frames)
        for (Bytes& sent : forward(frame)) expected.push_back(std::move(sent));
    ASSERT_EQ(expected.size(), 18u);
    std::vector<RxPacket> burst;
    for (const Bytes& frame : frames) burst.push_back(received(frame, ChecksumState::kUnverified));
    stack.input(*eth0, burst, now);
    stack.flush(now);
    EXPECT_EQ(take_frames(tx1), expected);
    stack.input(*eth0, std::span<const RxPacket>(), now);
    EXPECT_TRUE(take_frames(tx1).empty());
}

TEST_P(ForwardTest, PassesAPacketOnOneHopOlder) {  // [RFC1122 3.1 gateway-rules] [RFC1812 5.3.1] [RFC8200 3]
    const Bytes frame = udp(to);
    Bytes expected = frame;
    wire::store_mac(expected.data(), kRouterMac);
    wire::store_mac(expected.data() + 6, kOurSecondMac);
    set_hops(expected, 63, v4);
    EXPECT_EQ(forward(frame), std::vector<Bytes>{expected});
    EXPECT_TRUE(back.empty());
    EXPECT_EQ(counters.ip_forwarded, 1u);
    Bytes padded = frame;
    padded.resize(frame.size() + 20);
    EXPECT_EQ(forward(padded), std::vector<Bytes>{expected}) << "the link's padding stays behind";
}

TEST_P(ForwardTest, MovesTheChunkWhereTheMemoryIsShared) {
    const Bytes frame = udp(to);
    ChunkIndex chunk = pool.allocate();
    const ChunkIndex original = chunk;
    std::ranges::copy(frame, pool.data(chunk));
    RxPacket packet = received({pool.data(chunk), frame.size()});
    packet.pool = &pool;
    packet.loan = &chunk;
    stack.input(*eth0, packet, now);
    EXPECT_EQ(chunk, kNoChunk) << "taken over";
    ASSERT_EQ(tx1.pending().size(), 1u);
    EXPECT_EQ(tx1.pending()[0].chunk, original) << "not copied";
    Bytes expected = frame;
    wire::store_mac(expected.data(), kRouterMac);
    wire::store_mac(expected.data() + 6, kOurSecondMac);
    set_hops(expected, 63, v4);
    EXPECT_EQ(take_frames(tx1), std::vector<Bytes>{expected});
}

TEST_P(ForwardTest, ResolvesADestinationOnTheLink) {
    EXPECT_TRUE(forward(udp(on_link)).empty());
    EXPECT_EQ(resolver.asked, std::vector<Address>{on_link});
    stack.neighbors().update(8, on_link, kPeerMac, NeighborState::kReachable, tx1);
    EXPECT_EQ(take_frames(tx1).size(), 1u) << "what waited";
    const auto out = forward(udp(on_link));
    ASSERT_EQ(out.size(), 1u);
    EXPECT_EQ(wire::load_mac(out[0].data()), kPeerMac);
    EXPECT_EQ(forward(udp(to)).size(), 1u);
    stack.neighbors().update(8, on_link, kRouterMac, NeighborState::kReachable, tx1);
    EXPECT_EQ(wire::load_mac(forward(udp(on_link)).at(0).data()), kRouterMac) << "a MAC that changes is followed";
}

TEST_P(ForwardTest, AnUnansweringHostIsTold) {  // [RFC1812 5.2.7.1] host unreachable
    forward(udp(on_link));
    stack.neighbors().update(8, on_link, {}, NeighborState::kFailed, tx1);
    back = take_frames(tx0);
    ASSERT_EQ(back.size(), 1u);
    EXPECT_EQ(icmp_type(), v4 ? 3 : 1);
    EXPECT_EQ(icmp_code(), v4 ? 1 : 3);
}

TEST_P(ForwardTest, TheLastHopIsTold) {  // [RFC1812 5.3.1 MUST] [RFC4443 3.3]
    for (const std::uint8_t hops : {std::uint8_t{0}, std::uint8_t{1}}) {
        Bytes frame = udp(to);
        set_hops(frame, hops, v4);
        EXPECT_TRUE(forward(frame).empty());
        ASSERT_EQ(back.size(), 1u);
        EXPECT_EQ(icmp_type(), v4 ? 11 : 3);
    }
    EXPECT_EQ(counters.dropped(Drop::kForwardHopLimit), 2u);
    Bytes frame = udp(our);
    set_hops(frame, 1, v4);
    forward(frame);
    EXPECT_EQ(counters.dropped(Drop::kUdpNoSocket), 1u) << "what is for us needs no further hop";
}

TEST_P(ForwardTest, NoWayIsTold) {
    const struct {
        const char* v4;
        const char* v6;
        Drop drop;
        int code4;
    } cases[] = {{"198.51.100.1", "2001:db8:1::1", Drop::kIpNoRoute, 1}, {"203.0.113.1", "2001:db8:2::1", Drop::kForwardNotServed, 0}};
    for (const auto& c : cases) {
        EXPECT_TRUE(forward(udp(ip(v4 ? c.v4 : c.v6))).empty());
        ASSERT_EQ(back.size(), 1u);
        EXPECT_EQ(icmp_type(), v4 ? 3 : 1);
        EXPECT_EQ(icmp_code(), v4 ? c.code4 : 0);
        EXPECT_EQ(counters.dropped(c.drop), 1u);
    }
}

TEST_P(ForwardTest, TooLargeIsToldOrCut) {  // [RFC1191 4] [RFC1812 4.2.2.7 MUST] [RFC4443 3.2 MUST]
    stack.set_interface_state(8, true, 1280);
    Bytes frame = udp(to, 1400);
    EXPECT_TRUE(forward(frame).empty());
    ASSERT_EQ(back.size(), 1u);
    EXPECT_EQ(icmp_type(), v4 ? 3 : 2);
    EXPECT_EQ(icmp_code(), v4 ? 4 : 0);
    EXPECT_EQ(icmp_rest(), 1280u);
    if (!v4) return;
    frame[20] = std::byte{0};  // it may be cut
    set_hops(frame, 64, true);
    const auto out = forward(frame);
    ASSERT_EQ(out.size(), 2u);
    Bytes data;
    for (const Bytes& piece : out) {
        const auto view = wire::Ipv4View::parse(std::span<const std::byte>(piece).subspan(14));
        ASSERT_TRUE(view);
        EXPECT_EQ(view->fragment_offset(), data.size());
        EXPECT_EQ(view->hop_limit(), 63);
        EXPECT_EQ(view->more_fragments(), &piece == &out[0]);
        EXPECT_LE(view->total_length(), 1280u);
        data.insert(data.end(), piece.begin() + 34, piece.end());
    }
    EXPECT_TRUE(std::ranges::equal(data, std::span(frame).subspan(34)));
}

TEST_P(ForwardTest, SomePacketsAreNobodysToForward) {
    const auto refused = [&](const char* source, const char* destination, Drop drop) {
        const std::uint64_t before = counters.dropped(drop);
        EXPECT_TRUE(forward(udp_frame({ip(source), 1}, {ip(destination), 2}, pattern(20))).empty()) << destination;
        EXPECT_TRUE(back.empty()) << source << " " << destination;
        EXPECT_EQ(counters.dropped(drop), before + 1) << source << " " << destination << " " << drop_name(drop);
    };
    if (v4) {
        refused("10.0.0.2", "169.254.1.1", Drop::kIpNotForUs);        // [RFC3927 7] link-local
        refused("169.254.1.1", "192.0.2.9", Drop::kIpSourceInvalid);
        refused("10.0.0.2", "127.0.0.1", Drop::kIpLoopback);          // [RFC1122 3.2.1.3 loopback]
        refused("127.0.0.1", "192.0.2.9", Drop::kIpSourceInvalid);
        refused("10.0.0.2", "10.1.0.255", Drop::kIpNotForUs);         // [RFC2644 4] directed broadcast
        refused("10.0.0.2", "224.1.2.3", Drop::kIpGroupNotJoined);
        refused("224.0.0.1", "192.0.2.9", Drop::kIpSourceInvalid);
        refused("10.1.0.1", "192.0.2.9", Drop::kIpSourceInvalid);     // one of our own
        refused("10.0.0.2", "240.0.0.1", Drop::kIpNotForUs);
    } else {
        refused("fd00::2", "fe80::9", Drop::kIpNotForUs);             // [RFC4291 2.5.6 MUST NOT]
        refused("fe80::2", "2001:db8::9", Drop::kIpSourceInvalid);
        refused("fd00::2", "::1", Drop::kIpLoopback);
        refused("fd00::2", "ff05::9", Drop::kIpGroupNotJoined);
        refused("::", "2001:db8::9", Drop::kIpSourceInvalid);
        refused("fd01::1", "2001:db8::9", Drop::kIpSourceInvalid);
    }
    Bytes broadcast = udp(to);
    std::fill_n(broadcast.begin(), 6, std::byte{0xff});
    EXPECT_TRUE(forward(broadcast).empty());  // [RFC1812 5.3.4]
    stack.set_forwarding(false, false);
    EXPECT_TRUE(forward(udp(to)).empty());
}

TEST_P(ForwardTest, TheReversePathIsCheckedIfWanted) {  // [RFC3704 2.2]
    const Address stranger = ip(v4 ? "192.0.2.77" : "2001:db8::77");  // lives behind eth1
    const Bytes frame = udp_frame({stranger, 1}, {to, 2}, pattern(20));
    EXPECT_EQ(forward(frame).size(), 1u);
    stack.set_forwarding(true, true);
    EXPECT_TRUE(forward(frame).empty());
    EXPECT_EQ(counters.dropped(Drop::kForwardReversePath), 1u);
    EXPECT_EQ(forward(udp(to)).size(), 1u);
}

TEST_P(ForwardTest, APartialChecksumOfALocalSenderIsCompleted) {
    const Bytes right = udp(to);
    Bytes partial = right;
    const std::size_t field = (v4 ? 34 : 54) + 6;
    wire::store_be16(partial.data() + field,
                     wire::fold(wire::pseudo_header_sum(from, to, wire::IpProtocol::kUdp, 108)));
    const auto out = forward(partial, ChecksumState::kMaybePartial);
    ASSERT_EQ(out.size(), 1u);
    EXPECT_EQ(wire::load_be16(out[0].data() + field), wire::load_be16(right.data() + field));
    EXPECT_EQ(wire::load_be16(forward(right, ChecksumState::kMaybePartial).at(0).data() + field),
              wire::load_be16(right.data() + field)) << "a whole one is left alone";
}

TEST_P(ForwardTest, ARoutesOwnMtuCounts) {
    stack.routes().replace({{.destination = ip("0.0.0.0"), .prefix_length = 0, .gateway = ip("10.1.0.254"), .interface = 8, .mtu = 1300},
                            {.destination = ip("10.0.0.0"), .prefix_length = 24, .interface = 7},
                            {.destination = Address(), .prefix_length = 0, .gateway = ip("fd01::fe"), .interface = 8, .mtu = 1300},
                            {.destination = ip("fd00::"), .prefix_length = 64, .interface = 7}});
    EXPECT_TRUE(forward(udp(to, 1350)).empty());
    ASSERT_EQ(back.size(), 1u);
    EXPECT_EQ(icmp_rest(), 1300u);
}

}  // namespace
}  // namespace culvert::stack
