#include "daemon/stack/ip_output.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/stack/ip_world.h"

namespace culvert::stack {
namespace {

using testing::ElementsAre;

class IpOutputTest : public testing::Test, public IpWorld {
protected:
    Path path_to(const Address& destination) {
        auto path = output.find_path(destination.is_v4() ? our4 : our6, destination, now);
        EXPECT_TRUE(path) << destination.to_string() << ": " << path.error().message();
        return path.value_or(Path{});
    }
    int error_to(const Address& destination) {
        const auto path = output.find_path(destination.is_v4() ? our4 : our6, destination, now);
        return path ? 0 : path.error().code;
    }
    /// One packet with `transport` as its transport message.
    bool send(Path& path, const Address& source, const Address& destination, std::span<const std::byte> transport,
              std::uint8_t tos = 0, std::uint8_t ttl = 0) {
        TxPacket packet;
        std::uint32_t offset = 0;
        if (!output.begin(path, source, destination, 6, tos, ttl, static_cast<std::uint32_t>(transport.size()), packet,
                          offset))
            return false;
        PacketWriter writer(packet, offset);
        while (!transport.empty()) {
            const std::size_t here = std::min(writer.room().size(), transport.size());
            std::ranges::copy(transport.first(here), writer.room().begin());
            writer.advance(here);
            transport = transport.subspan(here);
        }
        EXPECT_TRUE(writer.room().empty());
        output.end(path, packet, now);
        EXPECT_EQ(packet.count, 0u);
        return true;
    }
};

TEST_F(IpOutputTest, Ipv4HeadersAreWhatTheViewsProve) {
    know(peer4, kPeerMac);
    Path path = path_to(peer4);
    EXPECT_TRUE(path.resolved);
    EXPECT_EQ(path.mtu, 1500u);  // [RFC1122 3.3.3 learn]
    ASSERT_TRUE(send(path, our4, peer4, pattern(100), 0x2e, 0));

    const auto frames = take_frames(tx);
    ASSERT_EQ(frames.size(), 1u);
    const auto ethernet = wire::EthernetView::parse(frames[0]).value();
    EXPECT_EQ(ethernet.destination(), kPeerMac);
    EXPECT_EQ(ethernet.source(), kOurMac);
    EXPECT_EQ(ethernet.ether_type(), wire::EtherType::kIpv4);  // [RFC1122 2.3.3 encapsulation, 2.3.1 trailers]
    const auto header = wire::Ipv4View::parse(ethernet.payload_in_head()).value();
    EXPECT_EQ(header.source(), our4);
    EXPECT_EQ(header.destination(), peer4);
    EXPECT_EQ(header.hop_limit(), 64);
    EXPECT_EQ(header.traffic_class(), 0x2e);  // [RFC1122 3.2.1.6 send-tos, mapping] [RFC1122 3.4 services]
    EXPECT_TRUE(header.options().empty());    // [RFC1122 3.2.1.8 send-stream]
    EXPECT_TRUE(header.dont_fragment());  // [RFC6864 4.1] so identification may be zero
    EXPECT_EQ(header.identification(), 0);  // [RFC9293 3.8.1 MAY-4] [RFC1122 3.2.1.5 identification] in every copy
    EXPECT_EQ(header.protocol(), wire::IpProtocol::kTcp);
    EXPECT_EQ(Bytes(header.payload_in_head().begin(), header.payload_in_head().end()), pattern(100));
    EXPECT_EQ(frames[0].size(), 134u);
}

TEST_F(IpOutputTest, Ipv6HeadersAreWhatTheViewsProve) {
    know(peer6, kPeerMac);
    Path path = path_to(peer6);
    ASSERT_TRUE(send(path, our6, peer6, pattern(100), 0x2e, 9));
    const auto frames = take_frames(tx);
    ASSERT_EQ(frames.size(), 1u);
    const auto ethernet = wire::EthernetView::parse(frames[0]).value();
    EXPECT_EQ(ethernet.ether_type(), wire::EtherType::kIpv6);
    const auto header = wire::Ipv6View::parse(ethernet.payload_in_head()).value();
    EXPECT_EQ(header.source(), our6);
    EXPECT_EQ(header.destination(), peer6);
    EXPECT_EQ(header.hop_limit(), 9);  // [RFC1122 3.2.1.7 set]
    EXPECT_EQ(header.traffic_class(), 0x2e);
    EXPECT_EQ(header.flow_label(), 0u);
    EXPECT_EQ(header.payload_length(), 100u);
}

/// [RFC1122 3.2.1.7 default] [RFC4861 6.3.4]
TEST_F(IpOutputTest, TheDefaultTtlCanBeChosen) {
    know(peer4, kPeerMac);
    know(peer6, kPeerMac);
    const auto hops = [&](const Address& from, const Address& to, std::uint8_t wanted) {
        Path path = path_to(to);
        EXPECT_TRUE(send(path, from, to, pattern(8), 0, wanted));
        const auto frames = take_frames(tx);
        const auto at_ip = std::span(frames.at(0)).subspan(14);
        return to.is_v4() ? wire::Ipv4View::parse(at_ip).value().hop_limit() : wire::Ipv6View::parse(at_ip).value().hop_limit();
    };
    output.set_default_ttl(200);
    EXPECT_EQ(hops(our4, peer4, 0), 200);
    EXPECT_EQ(hops(our6, peer6, 0), 200);
    EXPECT_EQ(hops(our4, peer4, 3), 3) << "a socket's word counts more";
    EXPECT_EQ(hops(our6, peer6, 3), 3);
    EXPECT_EQ(hops(our4, ip("224.0.0.1"), 0), 1) << "and groups have their own";
    EXPECT_EQ(hops(our6, ip("ff02::1"), 0), 1);
    eth0.hop_limit6 = 33;  // a router has said so
    EXPECT_EQ(hops(our6, peer6, 0), 33);
    EXPECT_EQ(hops(our4, peer4, 0), 200);
}

TEST_F(IpOutputTest, APacketMaySpanFrames) {
    eth0.mtu = 9000;
    know(peer4, kPeerMac);
    Path path = path_to(peer4);
    ASSERT_TRUE(send(path, our4, peer4, pattern(8980)));
    const auto frames = take_frames(tx);
    ASSERT_EQ(frames.size(), 1u);
    const Bytes sent(frames[0].begin() + 34, frames[0].end());
    EXPECT_EQ(sent, pattern(8980));
}

TEST_F(IpOutputTest, OnLinkGoesToTheNeighbourElseToTheGateway) {  // [RFC1122 3.3.1.1 mask] [RFC1122 3.3.1.2 default]
    const auto next_hop = [&](const Address& to) { return output.find_hop(Address::any(to.family()), to)->next_hop; };
    EXPECT_EQ(next_hop(peer4), peer4);
    EXPECT_EQ(next_hop(ip("192.0.2.1")), router4);
    EXPECT_EQ(next_hop(peer6), peer6);
    EXPECT_EQ(next_hop(ip("2001:db8::1")), router6);
    EXPECT_EQ(next_hop(ip("fe80::99")), ip("fe80::99"));
}

TEST_F(IpOutputTest, SaysWhyThereIsNoPath) {
    routes.replace({{.destination = ip("10.0.0.0"), .prefix_length = 24, .interface = 7},
                    {.destination = ip("10.1.0.0"), .prefix_length = 16, .interface = 8},
                    {.destination = ip("10.2.0.0"), .prefix_length = 16, .interface = 7,
                     .type = Route::Type::kUnreachable},
                    {.destination = ip("10.3.0.1"), .prefix_length = 32, .interface = 8,
                     .type = Route::Type::kLocal}});
    EXPECT_EQ(error_to(peer4), 0);  // [RFC1122 3.3.1.1 alone]
    EXPECT_EQ(error_to(ip("192.0.2.1")), ENETUNREACH) << "no route";
    EXPECT_EQ(error_to(ip("10.1.0.1")), ENETUNREACH) << "an interface that is not ours";
    EXPECT_EQ(error_to(ip("10.2.0.1")), EHOSTUNREACH) << "an unreachable route";
    EXPECT_EQ(error_to(ip("10.3.0.1")), EHOSTUNREACH) << "the kernel's own address";
    EXPECT_EQ(error_to(ip("127.0.0.1")), EHOSTUNREACH);
    EXPECT_EQ(error_to(ip("::1")), EHOSTUNREACH);
    EXPECT_EQ(error_to(ip("0.0.0.0")), EHOSTUNREACH);
    eth0.up = false;
    EXPECT_EQ(error_to(peer4), ENETUNREACH) << "the interface is down";
    EXPECT_EQ(error_to(ip("ff02::1")), ENETUNREACH) << "no interface is up";
}

TEST_F(IpOutputTest, GroupsAndBroadcastsNeedNoNeighbour) {  // [RFC1122 3.3.6 link-broadcast, ones, limited]
    const struct {
        const char* destination;
        MacAddress mac;
    } cases[] = {{"224.1.2.3", {{0x01, 0x00, 0x5e, 0x01, 0x02, 0x03}}},
                 {"239.129.2.3", {{0x01, 0x00, 0x5e, 0x01, 0x02, 0x03}}},  // [RFC1112 6.4] 23 bits
                 {"ff02::1:ff00:42", {{0x33, 0x33, 0xff, 0x00, 0x00, 0x42}}},  // [RFC2464 7]
                 {"255.255.255.255", wire::kBroadcastMac},
                 {"10.0.0.255", wire::kBroadcastMac}};
    for (const auto& c : cases) {
        const Path path = path_to(ip(c.destination));
        EXPECT_TRUE(path.resolved) << c.destination;
        EXPECT_EQ(path.mac, c.mac) << c.destination << " " << path.mac.to_string();
    }
    EXPECT_TRUE(resolver.asked.empty());
}

TEST_F(IpOutputTest, MulticastStaysOnTheLinkUnlessAskedOtherwise) {  // [RFC1122 3.3.7 multicast] [RFC1112 6.1]
    Path path = path_to(ip("224.1.2.3"));
    ASSERT_TRUE(send(path, our4, ip("224.1.2.3"), pattern(8)));
    const auto frames = take_frames(tx);
    EXPECT_EQ(wire::Ipv4View::parse(std::span(frames.at(0)).subspan(14)).value().hop_limit(), 1);
}

TEST_F(IpOutputTest, AnUnknownNeighbourGetsThePacketWhenItAnswers) {  // [RFC1122 2.4 unresolved]
    Path path = path_to(peer4);
    EXPECT_FALSE(path.resolved);
    ASSERT_TRUE(send(path, our4, peer4, pattern(10)));
    EXPECT_TRUE(tx.pending().empty());
    EXPECT_THAT(resolver.asked, ElementsAre(peer4));
    EXPECT_FALSE(output.stale(path));

    know(peer4, kPeerMac);
    EXPECT_TRUE(output.stale(path));
    auto frames = take_frames(tx);
    ASSERT_EQ(frames.size(), 1u);
    EXPECT_EQ(wire::load_mac(frames[0].data()), kPeerMac);

    // The path that has not been looked up again finds the neighbour too.
    ASSERT_TRUE(send(path, our4, peer4, pattern(10)));
    frames = take_frames(tx);
    ASSERT_EQ(frames.size(), 1u);
    EXPECT_EQ(wire::load_mac(frames[0].data()), kPeerMac);
    EXPECT_FALSE(output.stale(path));
}

TEST_F(IpOutputTest, APathGrowsOldWithRoutesAndNeighbours) {  // [RFC1122 3.3.1.2 cache]
    know(peer4, kPeerMac);
    Path path = path_to(peer4);
    EXPECT_FALSE(output.stale(path));
    routes.replace(default_routes());
    EXPECT_TRUE(output.stale(path));
    path = path_to(peer4);
    know(peer4, kRouterMac);
    EXPECT_TRUE(output.stale(path));
}

TEST_F(IpOutputTest, RefusesMoreThanTheMtuByName) {  // [RFC1122 3.3.3 no-larger]
    know(peer4, kPeerMac);
    Path path = path_to(peer4);
    EXPECT_TRUE(send(path, our4, peer4, pattern(1480)));
    EXPECT_FALSE(send(path, our4, peer4, pattern(1481)));
    EXPECT_EQ(counters.dropped(Drop::kPacketTooBig), 1u);
}

TEST_F(IpOutputTest, RefusesByNameWhenNoFrameIsFree) {
    know(peer4, kPeerMac);
    Path path = path_to(peer4);
    std::vector<ChunkIndex> taken;
    while (pool.available() > 0) taken.push_back(pool.allocate());
    EXPECT_FALSE(send(path, our4, peer4, pattern(10)));
    EXPECT_EQ(counters.dropped(Drop::kTxNoFrame), 1u);
    pool.release(taken.back());
    EXPECT_TRUE(send(path, our4, peer4, pattern(10)));
}

TEST_F(IpOutputTest, PacketsToOurselvesWaitForTheStackAndAreBounded) {
    FramePool large(IpOutput::kMaxLocalPackets + 8);
    TxQueue queue(large);
    eth0.tx = &queue;
    Path path = path_to(our4);
    EXPECT_TRUE(path.local);
    EXPECT_EQ(path.mtu, IpOutput::kLocalMtu);
    for (std::size_t i = 0; i <= IpOutput::kMaxLocalPackets; ++i) ASSERT_TRUE(send(path, our4, our4, pattern(10)));
    EXPECT_EQ(output.local_packets().size(), IpOutput::kMaxLocalPackets);
    EXPECT_EQ(counters.dropped(Drop::kLocalQueueFull), 1u);
    EXPECT_EQ(counters.local_frames, IpOutput::kMaxLocalPackets);
    EXPECT_EQ(large.available(), 8u) << "the refused packet gave its frame back";
    EXPECT_TRUE(queue.pending().empty());
    EXPECT_EQ(output.local_packets()[0].interface, &eth0);
}

}  // namespace
}  // namespace culvert::stack
