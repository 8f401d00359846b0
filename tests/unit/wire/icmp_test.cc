#include "daemon/wire/icmp.h"

#include <gtest/gtest.h>

#include "daemon/wire/checksum.h"
#include "tests/unit/wire/bytes_of.h"

namespace culvert::wire {
namespace {

const Address kSource4 = Address::v4(10, 0, 0, 1);
const Address kDestination4 = Address::v4(10, 0, 0, 2);
const Address kSource6 = Address::parse("2001:db8::1").value();
const Address kDestination6 = Address::parse("2001:db8::2").value();

// The first bytes of a segment 10.0.0.1:40000 > 10.0.0.2:80 seq 100, as a router returns them: the total length (1500)
// is far beyond what is there, the checksum was changed on the way.
const Bytes kEmbedded4 = from_hex("45 00 05dc 0000 4000 3f 06 dead 0a000001 0a000002 9c40 0050 00000064");
const Bytes kEmbedded6 = from_hex(
    "60000000 05b4 06 3f 20010db8000000000000000000000001 20010db8000000000000000000000002 9c40 0050 00000064");

TEST(Icmp, FragmentationNeededV4) {
    const auto message = from_hex("03 04 0000 0000 0578") + kEmbedded4;
    const auto view = IcmpView::parse(Family::kIpv4, message);
    ASSERT_TRUE(view);
    EXPECT_TRUE(view->is_error());
    EXPECT_TRUE(view->is_packet_too_big());
    EXPECT_EQ(view->mtu(), 1400u);
    const auto embedded = EmbeddedPacket::parse(Family::kIpv4, view->payload_in_head());
    ASSERT_TRUE(embedded);
    EXPECT_EQ(embedded->source, kSource4);
    EXPECT_EQ(embedded->destination, kDestination4);
    EXPECT_EQ(embedded->protocol, IpProtocol::kTcp);
    EXPECT_EQ(embedded->source_port, 40000);
    EXPECT_EQ(embedded->destination_port, 80);
    EXPECT_EQ(embedded->tcp_sequence, 100u);
    EXPECT_EQ(embedded->transport.size(), 8u);
}

TEST(Icmp, PacketTooBigV6) {
    const auto message = from_hex("02 00 0000 00010578") + kEmbedded6;
    const auto view = IcmpView::parse(Family::kIpv6, message);
    ASSERT_TRUE(view);
    EXPECT_TRUE(view->is_error());
    EXPECT_TRUE(view->is_packet_too_big());
    EXPECT_EQ(view->mtu(), 0x10578u);
    const auto embedded = EmbeddedPacket::parse(Family::kIpv6, view->payload_in_head());
    ASSERT_TRUE(embedded);
    EXPECT_EQ(embedded->source, kSource6);
    EXPECT_EQ(embedded->destination, kDestination6);
    EXPECT_EQ(embedded->source_port, 40000);
    EXPECT_EQ(embedded->tcp_sequence, 100u);
}

struct TypeCase {
    Family family;
    unsigned type, code;
    bool error, too_big;
};

TEST(Icmp, WhichTypesAreErrors) {
    for (const TypeCase& c : {TypeCase{Family::kIpv4, 0, 0, false, false},
                              {Family::kIpv4, 3, 3, true, false},
                              {Family::kIpv4, 3, 4, true, true},
                              {Family::kIpv4, 5, 1, false, false},
                              {Family::kIpv4, 8, 0, false, false},
                              {Family::kIpv4, 11, 0, true, false},
                              {Family::kIpv4, 12, 0, true, false},
                              {Family::kIpv6, 1, 4, true, false},
                              {Family::kIpv6, 2, 0, true, true},
                              {Family::kIpv6, 3, 0, true, false},
                              {Family::kIpv6, 127, 0, true, false},
                              {Family::kIpv6, 128, 0, false, false},
                              {Family::kIpv6, 135, 0, false, false}}) {
        Bytes message(8);
        message[0] = static_cast<std::byte>(c.type);
        message[1] = static_cast<std::byte>(c.code);
        const auto view = IcmpView::parse(c.family, message);
        ASSERT_TRUE(view);
        EXPECT_EQ(view->is_error(), c.error) << c.type;
        EXPECT_EQ(view->is_packet_too_big(), c.too_big) << c.type;
    }
}

TEST(Icmp, RefusedAtEveryShorterLength) {
    for (const Family family : {Family::kIpv4, Family::kIpv6}) {
        for (std::size_t length = 0; length < kIcmpHeaderLength; ++length) {
            const auto view = IcmpView::parse(family, Bytes(length));
            ASSERT_FALSE(view) << length;
            EXPECT_EQ(view.error(), Drop::kIcmpTruncated);
        }
        const Bytes packet = family == Family::kIpv4 ? kEmbedded4 : kEmbedded6;
        for (std::size_t length = 0; length < packet.size(); ++length) {
            const auto embedded = EmbeddedPacket::parse(family, truncated(packet, length));
            ASSERT_FALSE(embedded) << length;
            EXPECT_EQ(embedded.error(), Drop::kIcmpTruncated) << length;
        }
    }
}

TEST(Icmp, EmbeddedPacketWithIpv4Options) {
    const auto packet = from_hex("46 00 05dc 0000 4000 3f 11 dead 0a000001 0a000002 01010101 9c40 0050 00000064");
    const auto embedded = EmbeddedPacket::parse(Family::kIpv4, packet);
    ASSERT_TRUE(embedded);
    EXPECT_EQ(embedded->protocol, IpProtocol::kUdp);
    EXPECT_EQ(embedded->source_port, 40000);
    EXPECT_EQ(embedded->tcp_sequence, 0u);
}

TEST(Icmp, EmbeddedFragments) {
    Bytes later = kEmbedded4;
    store_be16(later, 6, 0x0001);
    EXPECT_EQ(EmbeddedPacket::parse(Family::kIpv4, later).error(), Drop::kIcmpUnmatched);

    const Bytes fixed = truncated(kEmbedded6, 40);
    const auto fragment = [&fixed](const char* header) {
        Bytes packet = fixed + from_hex(header) + from_hex("9c40 0050 00000064");
        packet[6] = std::byte{44};
        return packet;
    };
    const Bytes first = fragment("11 00 0001 12345678");
    const auto embedded = EmbeddedPacket::parse(Family::kIpv6, first);
    ASSERT_TRUE(embedded);
    EXPECT_EQ(embedded->protocol, IpProtocol::kUdp);
    EXPECT_EQ(embedded->destination_port, 80);
    EXPECT_EQ(EmbeddedPacket::parse(Family::kIpv6, fragment("11 00 0008 12345678")).error(), Drop::kIcmpUnmatched);
}

TEST(Icmp, EmbeddedPacketOfTheWrongFamilyOrMapped) {
    EXPECT_EQ(EmbeddedPacket::parse(Family::kIpv6, kEmbedded4 + Bytes(40)).error(), Drop::kIcmpUnmatched);
    EXPECT_EQ(EmbeddedPacket::parse(Family::kIpv4, kEmbedded6).error(), Drop::kIcmpUnmatched);
    Bytes mapped = kEmbedded6;
    const Bytes address = from_hex("00000000000000000000ffff0a000001");
    std::copy(address.begin(), address.end(), mapped.begin() + 8);
    EXPECT_EQ(EmbeddedPacket::parse(Family::kIpv6, mapped).error(), Drop::kIcmpUnmatched);
}

TEST(Icmp, EmittedMessageVerifies) {
    Rng rng(1);
    for (int round = 0; round < 300; ++round) {
        const bool four = rng.happens(0.5);
        const Address& source = four ? kSource4 : kSource6;
        const Address& destination = four ? kDestination4 : kDestination6;
        const Bytes payload = random_bytes(rng, rng.below(200));
        const IcmpHeader header{static_cast<std::uint8_t>(rng.next()), static_cast<std::uint8_t>(rng.next()),
                                static_cast<std::uint32_t>(rng.next())};
        Bytes message(kIcmpHeaderLength + payload.size());
        emit(header, payload, source, destination, message);
        const auto view = IcmpView::parse(source.family(), message);
        ASSERT_TRUE(view);
        EXPECT_EQ((IcmpHeader{view->type(), view->code(), std::uint32_t{view->identifier()} << 16 | view->sequence()}),
                  header);
        EXPECT_TRUE(std::ranges::equal(view->payload_in_head(), payload));
        const RxPacket packet{message, {}, static_cast<std::uint32_t>(message.size()), ChecksumState::kUnverified};
        ASSERT_TRUE(verify_transport_checksum(packet, 0, message.size(), source, destination,
                                              four ? IpProtocol::kIcmp : IpProtocol::kIcmpv6));
    }
}

}  // namespace
}  // namespace culvert::wire
