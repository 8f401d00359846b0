// The wire formats of the link's own protocols: ARP, neighbour discovery, IGMP, MLD.
#include <gtest/gtest.h>

#include "daemon/wire/arp.h"
#include "daemon/wire/group_report.h"
#include "daemon/wire/igmp.h"
#include "daemon/wire/mld.h"
#include "daemon/wire/ndp.h"
#include "tests/unit/wire/bytes_of.h"

namespace culvert::wire {
namespace {

Address ip(const char* text) { return Address::parse(text).value(); }
const MacAddress kMac{{2, 0, 0, 0, 0, 9}};

TEST(Arp, RoundTripAndRefusals) {  // [RFC826]
    const ArpHeader header{ArpOperation::kReply, kMac, ip("10.0.0.1"), MacAddress{{2, 0, 0, 0, 0, 1}}, ip("10.0.0.2")};
    Bytes packet(kArpLength);
    emit(header, packet);
    EXPECT_EQ(packet, from_hex("0001 0800 06 04 0002 020000000009 0a000001 020000000001 0a000002"));
    const auto view = ArpView::parse(packet);
    ASSERT_TRUE(view);
    EXPECT_EQ((ArpHeader{view->operation(), view->sender_mac(), view->sender(), view->target_mac(), view->target()}), header);
    for (std::size_t length = 0; length < packet.size(); ++length) EXPECT_FALSE(ArpView::parse(truncated(packet, length)));
    for (const std::size_t at : {1u, 2u, 4u, 5u, 6u}) {  // hardware, protocol, lengths, operation
        Bytes wrong = packet;
        wrong[at] ^= std::byte{0x40};
        EXPECT_FALSE(ArpView::parse(wrong)) << at;
    }
}

TEST(Ndp, RouterAdvertisementRoundTrip) {
    const NdpPrefix prefixes[] = {{ip("2001:db8::"), 64, true, true, 100, 50}, {ip("2001:db8:1::"), 56, false, true, NdpPrefix::kForever, 7}};
    Bytes message(256);
    message.resize(emit(RouterAdvertisement{.hop_limit = 64, .router_lifetime = std::chrono::seconds(1800), .reachable_time = std::chrono::milliseconds(30000),
                                            .retransmit_time = std::chrono::milliseconds(1000), .source_mac = kMac, .mtu = 1400, .prefixes = prefixes},
                        message));
    ASSERT_EQ(message.size(), 16u + 8 + 8 + 64);
    const auto view = NdpView::parse(message);
    ASSERT_TRUE(view);
    EXPECT_EQ(view->hop_limit(), 64);
    EXPECT_EQ(view->router_lifetime(), std::chrono::seconds(1800));
    EXPECT_EQ(view->reachable_time(), std::chrono::milliseconds(30000));
    EXPECT_EQ(view->retransmit_time(), std::chrono::milliseconds(1000));
    EXPECT_EQ(view->options().source_mac, kMac);
    EXPECT_EQ(view->options().mtu, 1400u);
    std::vector<NdpPrefix> seen;
    view->for_each_prefix([&](const NdpPrefix& one) { seen.push_back(one); });
    ASSERT_EQ(seen.size(), 2u);
    EXPECT_EQ(seen[0], prefixes[0]);
    EXPECT_EQ(seen[1], prefixes[1]);
    for (std::size_t length = 0; length < message.size(); ++length) {
        const bool whole = length == 16 || length == 24 || length == 32 || length == 64;  // between two options
        EXPECT_EQ(NdpView::parse(truncated(message, length)).has_value(), whole) << length;
    }
}

TEST(Ndp, NeighbourMessagesRoundTrip) {
    Bytes message(96);
    const std::size_t ns = emit(NeighborSolicitation{.target = ip("fd00::1"), .source_mac = kMac, .nonce = NdpNonce{1, 2, 3, 4, 5, 6}}, message);
    const Bytes solicitation = truncated(message, ns);
    auto view = NdpView::parse(solicitation);
    ASSERT_TRUE(view);
    EXPECT_EQ(view->target(), ip("fd00::1"));
    EXPECT_EQ(view->options().source_mac, kMac);
    EXPECT_EQ(view->options().nonce, (NdpNonce{1, 2, 3, 4, 5, 6}));
    const std::size_t na = emit(NeighborAdvertisement{.target = ip("fd00::1"), .router = true, .solicited = false, .overrides = true, .target_mac = kMac}, message);
    const Bytes advertisement = truncated(message, na);
    view = NdpView::parse(advertisement);
    ASSERT_TRUE(view);
    EXPECT_TRUE(view->is_router() && !view->solicited() && view->overrides());
    EXPECT_EQ(view->options().target_mac, kMac);
    const std::size_t redirect = emit(Redirect{.target = ip("fe80::1"), .destination = ip("fd01::1"), .target_mac = {}}, message);
    const Bytes redirected = truncated(message, redirect);
    view = NdpView::parse(redirected);
    ASSERT_TRUE(view);
    EXPECT_EQ(view->target(), ip("fe80::1"));
    EXPECT_EQ(view->destination(), ip("fd01::1"));
}

TEST(Ndp, GroupsAndTheirMacs) {
    EXPECT_EQ(solicited_node_group(ip("fd00::12:3456")), ip("ff02::1:ff12:3456"));  // [RFC4291 2.7.1]
    EXPECT_EQ(multicast_mac(ip("ff02::1:ff12:3456")), (MacAddress{{0x33, 0x33, 0xff, 0x12, 0x34, 0x56}}));
    EXPECT_EQ(multicast_mac(ip("239.129.2.3")), (MacAddress{{0x01, 0x00, 0x5e, 0x01, 0x02, 0x03}}));
}

TEST(GroupTimes, FloatingPointCodes) {  // [RFC3376 4.1.1] [RFC3810 5.1.3]
    EXPECT_EQ(decode_time8(127), 127u);
    EXPECT_EQ(decode_time8(0x80), 128u);
    EXPECT_EQ(decode_time8(0xff), 31744u);
    EXPECT_EQ(decode_time16(32767), 32767u);
    EXPECT_EQ(decode_time16(0x8000), 32768u);
    EXPECT_EQ(decode_time16(0xffff), 8387584u);
}

TEST(Igmp, TheVersionOfAQueryIsItsLength) {  // [RFC3376 7.1]
    const auto parse = [](std::size_t length, std::uint8_t code) {
        Bytes message(length);
        emit(IgmpHeader{.type = IgmpType::kQuery, .max_response_code = code, .group = ip("0.0.0.0")}, message);
        finish_igmp_checksum(message);
        const auto view = IgmpView::parse(message);
        return view ? view->version() : 0u;
    };
    EXPECT_EQ(parse(8, 0), 1u);
    EXPECT_EQ(parse(8, 100), 2u);
    for (const std::size_t length : {9u, 10u, 11u}) EXPECT_EQ(parse(length, 100), 0u) << length;
    EXPECT_EQ(parse(12, 100), 3u);
    Bytes many(12 + 4);
    emit(IgmpHeader{}, many);
    store_be16(many, 10, 2);  // says two sources, has one
    finish_igmp_checksum(many);
    EXPECT_FALSE(IgmpView::parse(many));
}

TEST(Mld, TheVersionOfAQueryIsItsLength) {  // [RFC3810 8.1]
    for (const auto& [length, version] : {std::pair{24u, 1u}, {25u, 0u}, {27u, 0u}, {28u, 2u}}) {
        Bytes message(length);
        emit(MldHeader{.type = MldType::kQuery, .max_response_code = 1000, .group = {}}, message);
        const auto view = MldView::parse(message);
        EXPECT_EQ(view ? view->version() : 0u, version) << length;
    }
}

TEST(GroupReport, RoundTripInBothFamilies) {
    for (const bool v4 : {true, false}) {
        const Family family = v4 ? Family::kIpv4 : Family::kIpv6;
        const Address group = ip(v4 ? "239.1.1.1" : "ff05::1"), one = ip(v4 ? "10.0.0.1" : "fd00::1"), two = ip(v4 ? "10.0.0.2" : "fd00::2");
        Bytes message(128);
        GroupReportWriter writer(family, 0x22, message);
        ASSERT_TRUE(writer.begin(GroupRecordType::kAllowNewSources, group) && writer.add(one) && writer.add(two));
        ASSERT_TRUE(writer.begin(GroupRecordType::kChangeToExclude, group));
        message.resize(writer.length());
        const auto view = GroupReportView::parse(family, message);
        ASSERT_TRUE(view);
        ASSERT_EQ(view->records(), 2);
        int seen = 0;
        view->for_each_record([&](const GroupRecord& record) {
            EXPECT_EQ(record.group, group);
            EXPECT_EQ(record.source_count(), seen == 0 ? 2u : 0u);
            if (seen++ == 0) {
                EXPECT_EQ(record.source(1), two);
            }
        });
        EXPECT_EQ(seen, 2);
        for (std::size_t length = 0; length < message.size(); ++length)
            EXPECT_FALSE(GroupReportView::parse(family, truncated(message, length))) << length;
    }
}

}  // namespace
}  // namespace culvert::wire
