#include "daemon/stack/ip_input.h"

#include <gtest/gtest.h>

#include <functional>

#include "tests/unit/stack/ip_world.h"

namespace culvert::stack {
namespace {

class IpInputTest : public testing::Test, public IpWorld {
protected:
    IpInput input{output.local_addresses()};

    Bytes frame4() const { return ip_frame(peer4, our4, wire::IpProtocol::kTcp, pattern(40)); }
    Bytes frame6() const { return ip_frame(peer6, our6, wire::IpProtocol::kTcp, pattern(40)); }
    Drop verdict(const Bytes& frame) {
        const auto packet = received(frame);
        const auto result = input.accept(eth0, packet, false);
        return result ? Drop::kNone : result.error();
    }
};

void fix_ipv4_checksum(Bytes& frame) {
    const auto header = std::span(frame).subspan(14, 20);
    wire::store_be16(header.data() + 10, 0);
    wire::store_be16(header.data() + 10, wire::checksum(wire::sum_bytes(header)));
}

TEST_F(IpInputTest, GivesAddressesAndThePlaceOfTheTransportHeader) {
    Bytes frame = frame4();
    frame.resize(frame.size() + 9);  // padding of the link
    const auto packet = received(frame);
    const auto result = input.accept(eth0, packet, false);
    ASSERT_TRUE(result);
    EXPECT_EQ(result->source, peer4);
    EXPECT_EQ(result->destination, our4);
    EXPECT_EQ(result->transport_offset, 34u);
    EXPECT_EQ(result->transport_length, 40u);
    EXPECT_EQ(result->protocol, 6);
    EXPECT_EQ(result->ttl, 64);
    EXPECT_EQ(&result->interface, &eth0);
}

TEST_F(IpInputTest, AcceptsIpv6) {
    const Bytes frame = frame6();
    const auto packet = received(frame);
    const auto result = input.accept(eth0, packet, false);
    ASSERT_TRUE(result);
    EXPECT_EQ(result->source, peer6);
    EXPECT_EQ(result->destination, our6);
    EXPECT_EQ(result->transport_offset, 54u);
    EXPECT_EQ(result->transport_length, 40u);
}

TEST_F(IpInputTest, AcceptsAPacketThatGoesOnInFurtherFragments) {
    const Bytes frame = ip_frame(peer4, our4, wire::IpProtocol::kTcp, pattern(1000));
    const std::span<const std::byte> all(frame);
    const std::span<const std::byte> rest[] = {all.subspan(100, 500), all.subspan(600)};
    const RxPacket packet{.head = all.first(100), .rest = rest, .length = static_cast<std::uint32_t>(frame.size())};
    const auto result = input.accept(eth0, packet, false);
    ASSERT_TRUE(result);
    EXPECT_EQ(result->transport_length, 1000u);
}

// [RFC1122 3.2.1.3 bad-destination, bad-source] [RFC1122 4.1.3.6 bad-source] [RFC9293 3.9.2.3 MUST-63]
TEST_F(IpInputTest, EachMalformedPacketGivesExactlyItsReason) {
    const struct {
        const char* name;
        bool v4;
        std::function<void(Bytes&)> breaks;
        Drop expected;
    } cases[] = {
        {"whole", true, [](Bytes&) {}, Drop::kNone},
        {"whole v6", false, [](Bytes&) {}, Drop::kNone},
        {"13 bytes", true, [](Bytes& f) { f.resize(13); }, Drop::kEthernetTruncated},
        {"other MAC", true, [](Bytes& f) { f[5] = std::byte{9}; }, Drop::kEthernetNotForUs},
        // [RFC1122 2.4 broadcast-flag] [RFC1122 3.3.6 unicast-in-broadcast]
        {"broadcast MAC", true, [](Bytes& f) { std::fill_n(f.begin(), 6, std::byte{0xff}); }, Drop::kIpUnicastInBroadcast},
        {"ARP", true, [](Bytes& f) { f[13] = std::byte{6}; }, Drop::kEtherTypeUnknown},
        {"VLAN", true, [](Bytes& f) { f[12] = std::byte{0x81}; }, Drop::kVlanForeign},
        {"no IPv4 header", true, [](Bytes& f) { f.resize(33); }, Drop::kIpv4Truncated},
        {"shorter than it says", true, [](Bytes& f) { f.resize(f.size() - 1); }, Drop::kIpv4Truncated},
        {"version 5", true, [](Bytes& f) { f[14] = std::byte{0x55}; }, Drop::kIpv4Version},
        {"checksum", true, [](Bytes& f) { f[24] ^= std::byte{1}; }, Drop::kIpv4Checksum},
        {"to the neighbour", true,
         [](Bytes& f) { f[33] = std::byte{77}; fix_ipv4_checksum(f); }, Drop::kIpNotForUs},
        {"to a group", true, [](Bytes& f) { f[30] = std::byte{224}; fix_ipv4_checksum(f); }, Drop::kIpGroupNotJoined},
        {"from a group", true, [](Bytes& f) { f[26] = std::byte{224}; fix_ipv4_checksum(f); }, Drop::kIpSourceInvalid},
        {"from nobody", true,
         [](Bytes& f) { std::fill_n(f.begin() + 26, 4, std::byte{0}); fix_ipv4_checksum(f); }, Drop::kIpSourceInvalid},
        {"from everybody", true,
         [](Bytes& f) { std::fill_n(f.begin() + 26, 4, std::byte{255}); fix_ipv4_checksum(f); }, Drop::kIpSourceInvalid},
        {"from a broadcast address", true,
         [](Bytes& f) { f[29] = std::byte{255}; fix_ipv4_checksum(f); }, Drop::kIpSourceInvalid},
        {"from loopback", true, [](Bytes& f) { f[26] = std::byte{127}; fix_ipv4_checksum(f); }, Drop::kIpLoopback},
        {"from ourselves", true, [](Bytes& f) { f[29] = std::byte{1}; fix_ipv4_checksum(f); }, Drop::kIpSourceInvalid},
        {"first fragment", true, [](Bytes& f) { f[20] = std::byte{0x20}; fix_ipv4_checksum(f); }, Drop::kIpFragment},
        {"last fragment", true, [](Bytes& f) { f[21] = std::byte{1}; fix_ipv4_checksum(f); }, Drop::kIpFragment},
        {"no IPv6 header", false, [](Bytes& f) { f.resize(53); }, Drop::kIpv6Truncated},
        {"v6 shorter than it says", false, [](Bytes& f) { f.resize(f.size() - 1); }, Drop::kIpv6Truncated},
        {"v6 version", false, [](Bytes& f) { f[14] = std::byte{0x50}; }, Drop::kIpv6Version},
        {"v6 to another", false, [](Bytes& f) { f[53] = std::byte{9}; }, Drop::kIpNotForUs},
        {"v6 from a group", false, [](Bytes& f) { f[22] = std::byte{0xff}; }, Drop::kIpSourceInvalid},
        {"v6 from nobody", false, [](Bytes& f) { std::fill_n(f.begin() + 22, 16, std::byte{0}); }, Drop::kIpSourceInvalid},
        {"v6 from loopback", false,
         [](Bytes& f) { std::fill_n(f.begin() + 22, 15, std::byte{0}); f[37] = std::byte{1}; }, Drop::kIpLoopback},
        {"v6 mapped source", false,
         [](Bytes& f) {
             std::fill_n(f.begin() + 22, 16, std::byte{0});
             f[32] = f[33] = std::byte{0xff};
         },
         Drop::kIpv6MappedAddress},
        {"v6 fragment", false,
         [](Bytes& f) {
             f[20] = std::byte{44};
             f[54] = std::byte{6};
             f[56] = std::byte{0};
             f[57] = std::byte{1};  // more to come
         },
         Drop::kIpFragment},
    };
    for (const auto& c : cases) {
        Bytes frame = c.v4 ? frame4() : frame6();
        c.breaks(frame);
        EXPECT_EQ(verdict(frame), c.expected) << c.name << ": " << drop_name(verdict(frame));
    }
}

TEST_F(IpInputTest, OnlyOurselvesMaySpeakWithOurAddress) {
    const Bytes frame = ip_frame(our4, our4, wire::IpProtocol::kTcp, pattern(20));
    const auto packet = received(frame);
    EXPECT_TRUE(input.accept(eth0, packet, true));
    EXPECT_FALSE(input.accept(eth0, packet, false));
}

TEST_F(IpInputTest, EveryOwnAddressIsFoundInAnyOrder) {
    eth0.addresses = {{ip("10.0.0.9"), 24}, {our4, 24}, {our6, 64}, {ip("10.0.0.5"), 24}};
    apply();
    for (int round = 0; round < 2; ++round)
        for (const char* own : {"10.0.0.9", "10.0.0.1", "10.0.0.5", "10.0.0.1"})
            EXPECT_EQ(verdict(ip_frame(peer4, ip(own), wire::IpProtocol::kTcp, pattern(20))), Drop::kNone) << own;
    eth0.addresses = {{our6, 64}};
    apply();
    EXPECT_EQ(verdict(frame4()), Drop::kIpNotForUs) << "the address is gone";
    EXPECT_EQ(verdict(frame6()), Drop::kNone);
}

// --- groups and broadcasts -------------------------------------------------------------------------------------------

/// Has joined 224.0.0.251 and ff02::fb.
class TwoGroups final : public LinkProtocols {
public:
    bool accepts_group(const Interface&, const Address& group, const Address&) const override {
        return group == ip("224.0.0.251") || group == ip("ff02::fb");
    }
    bool accepts_source(const Interface&, const Address&, const Address&) const override { return true; }
    void arp(Interface&, const RxPacket&, std::uint32_t, Instant) override {}
    void igmp(const IpPacket&, Instant) override {}
    void icmpv6(const IpPacket&, std::uint8_t, Instant) override {}
};

TEST_F(IpInputTest, BroadcastsAreForEverybodyOnTheLinkAndNobodyElse) {
    const struct {
        const char* source;
        const char* destination;
        Drop drop;
    } cases[] = {
        {"10.0.0.2", "255.255.255.255", Drop::kNone},
        {"10.0.0.2", "10.0.0.255", Drop::kNone},         // [RFC1122 3.3.6 recognize] directed
        {"0.0.0.0", "255.255.255.255", Drop::kNone},     // a DHCP client
        {"10.0.0.2", "10.0.1.255", Drop::kIpNotForUs},   // of another network
        {"10.0.0.2", "10.0.0.0", Drop::kIpNotForUs},     // the obsolete form
        {"10.0.0.1", "10.0.0.255", Drop::kIpSourceInvalid},
        {"224.0.0.1", "10.0.0.255", Drop::kIpSourceInvalid},
        {"255.255.255.255", "10.0.0.255", Drop::kIpSourceInvalid},
        {"10.0.0.255", "10.0.0.255", Drop::kIpSourceInvalid},
    };
    for (const auto& c : cases) {
        Bytes frame = ip_frame(ip(c.source), ip(c.destination), wire::IpProtocol::kUdp, pattern(40), wire::kBroadcastMac);
        EXPECT_EQ(verdict(frame), c.drop) << c.source << " -> " << c.destination << ": " << drop_name(verdict(frame));
    }
    const Bytes frame = ip_frame(peer4, ip("10.0.0.255"), wire::IpProtocol::kUdp, pattern(40), wire::kBroadcastMac);
    const auto packet = received(frame);
    EXPECT_EQ(input.accept(eth0, packet, false)->cast, Cast::kBroadcast);
}

TEST_F(IpInputTest, OnlyJoinedGroupsAreHeard) {
    static const TwoGroups groups;
    input.set_link_protocols(&groups);
    const MacAddress mac{{0x33, 0x33, 0, 0, 0, 0xfb}};
    const struct {
        const char* source;
        const char* destination;
        Drop drop;
    } cases[] = {
        {"10.0.0.2", "224.0.0.251", Drop::kNone},
        {"10.0.0.2", "224.0.0.252", Drop::kIpGroupNotJoined},
        {"fe80::2", "ff02::fb", Drop::kNone},
        {"fe80::2", "ff02::fc", Drop::kIpGroupNotJoined},
        {"::", "ff02::fb", Drop::kNone},  // [RFC4862 5.4.2] who has no address yet
        {"ff02::fb", "ff02::fb", Drop::kIpSourceInvalid},
        {"fd00::1", "ff02::fb", Drop::kIpSourceInvalid},
    };
    for (const auto& c : cases) {
        const Bytes frame = ip_frame(ip(c.source), ip(c.destination), wire::IpProtocol::kUdp, pattern(40), mac);
        EXPECT_EQ(verdict(frame), c.drop) << c.source << " -> " << c.destination << ": " << drop_name(verdict(frame));
    }
}

TEST_F(IpInputTest, KnowsWhichAddressesAreOursAlone) {
    eth0.addresses = {{our4, 24}, {ip("10.0.0.7"), 24, true}};
    apply();
    for (const auto& [address, dedicated] : {std::pair{our4, false}, {ip("10.0.0.7"), true}}) {
        const Bytes frame = ip_frame(peer4, address, wire::IpProtocol::kUdp, pattern(40));
        const auto packet = received(frame);
        EXPECT_EQ(input.accept(eth0, packet, false)->dedicated, dedicated);
    }
    eth0.resolves_itself = true;
    apply();
    const Bytes frame = frame4();
    const auto packet = received(frame);
    EXPECT_TRUE(input.accept(eth0, packet, false)->dedicated);
}

// --- VLANs -----------------------------------------------------------------------------------------------------------

TEST_F(IpInputTest, AnInterfaceThatIsAVlanTakesNothingElse) {
    for (const bool service : {false, true}) {
        eth0.vlan = 100;
        eth0.parent = eth0.index;
        eth0.service_tag = service;
        Interface* all[] = {&eth0};
        input.set_interfaces(all);
        const std::uint16_t ours = service ? 0x88a8 : 0x8100, other = service ? 0x8100 : 0x88a8;
        for (const Bytes& frame : {frame4(), frame6()}) {
            EXPECT_EQ(verdict(tagged(frame, ours, 100)), Drop::kNone);
            EXPECT_EQ(verdict(tagged(frame, other, 100)), Drop::kVlanForeign);
            EXPECT_EQ(verdict(tagged(frame, ours, 99)), Drop::kVlanForeign);
            EXPECT_EQ(verdict(tagged(frame, ours, 0xe000)), Drop::kVlanForeign) << "a priority only";
            EXPECT_EQ(verdict(frame), Drop::kVlanForeign);
        }
        const Bytes own = ip_frame(our4, our4, wire::IpProtocol::kUdp, pattern(40));
        EXPECT_TRUE(input.accept(eth0, received(own), true)) << "what we send to ourselves has no tag";
    }
}

TEST_F(IpInputTest, ATaggedFrameBelongsToItsVlanAlone) {
    Interface vlan = eth0;
    vlan.index = 8;
    vlan.vlan = 100;
    vlan.parent = 7;
    vlan.addresses = {{ip("10.1.0.1"), 24}};
    Interface* all[] = {&eth0, &vlan};
    output.set_interfaces(all);
    input.set_interfaces(all);
    const Bytes to_vlan = ip_frame(ip("10.1.0.2"), ip("10.1.0.1"), wire::IpProtocol::kUdp, pattern(40));
    const Bytes whole = tagged(to_vlan, 0x8100, 0xe064);  // priority 7, VLAN 100
    const auto packet = received(whole);
    const auto accepted = input.accept(eth0, packet, false);
    ASSERT_TRUE(accepted) << drop_name(accepted.error());
    EXPECT_EQ(&accepted->interface, &vlan);
    EXPECT_EQ(accepted->network_offset, 18);
    EXPECT_EQ(accepted->transport_offset, 38u);
    EXPECT_EQ(verdict(tagged(to_vlan, 0x8100, 101)), Drop::kVlanForeign);
    EXPECT_EQ(verdict(tagged(to_vlan, 0x88a8, 100)), Drop::kVlanForeign) << "another kind of tag";
    EXPECT_EQ(verdict(tagged(frame4(), 0x8100, 0xe000)), Drop::kNone) << "a priority and no VLAN";
    EXPECT_EQ(verdict(tagged(tagged(frame4(), 0x8100, 100), 0x8100, 100)), Drop::kEtherTypeUnknown) << "two tags";
    EXPECT_EQ(verdict(tagged(Bytes(14), 0x8100, 100)), Drop::kEthernetNotForUs);
    Bytes cut = tagged(frame4(), 0x8100, 100);
    cut.resize(17);
    EXPECT_EQ(verdict(cut), Drop::kEthernetTruncated);

    routes.replace({{.destination = ip("10.1.0.0"), .prefix_length = 24, .interface = 8}});
    neighbors.update(8, ip("10.1.0.2"), kPeerMac, NeighborState::kReachable, tx);
    Path path = output.find_path(ip("10.1.0.1"), ip("10.1.0.2"), now).value();
    TxPacket out;
    std::uint32_t offset = 0;
    ASSERT_TRUE(output.begin(path, ip("10.1.0.1"), ip("10.1.0.2"), 17, 0, 64, 8, out, offset));
    EXPECT_EQ(offset, 38u);
    output.end(path, out, now);
    const auto frames = take_frames(tx);
    ASSERT_EQ(frames.size(), 1u);
    EXPECT_EQ(wire::load_be32(frames[0].data() + 12), 0x81000064u);
    EXPECT_EQ(wire::load_be16(frames[0].data() + 16), 0x0800u);
    EXPECT_TRUE(wire::Ipv4View::parse(std::span<const std::byte>(frames[0]).subspan(18)));
}

}  // namespace
}  // namespace culvert::stack
