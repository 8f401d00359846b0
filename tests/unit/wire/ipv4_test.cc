#include "daemon/wire/ipv4.h"

#include <gtest/gtest.h>

#include "tests/unit/wire/bytes_of.h"

namespace culvert::wire {
namespace {

const Ipv4Header kHeader{.source = Address::v4(10, 0, 0, 1),
                         .destination = Address::v4(10, 0, 0, 2),
                         .protocol = IpProtocol::kUdp,
                         .hop_limit = 63,
                         .traffic_class = 0xba,
                         .identification = 0x1234,
                         .dont_fragment = true};

Bytes packet_of(const Ipv4Header& header, std::size_t payload) {
    Bytes packet(kIpv4HeaderLength + payload, std::byte{0x5a});
    emit(header, payload, packet);
    return packet;
}

/// Any header with its checksum put right.
Bytes with_checksum(Bytes packet, std::size_t header_length) {
    store_be16(packet, 10, 0);
    store_be16(packet, 10, static_cast<std::uint16_t>(~naive_sum(std::span(packet).first(header_length))));
    return packet;
}

/// A header with these options and 4 bytes of payload.
Bytes with_options(const Bytes& options) {
    Bytes packet = from_hex("45 00 0000 0000 0000 40 06 0000 0a000001 0a000002") + options + Bytes(4);
    packet[0] = static_cast<std::byte>(0x40 | ((20 + options.size()) / 4));
    store_be16(packet, 2, static_cast<std::uint16_t>(packet.size()));
    return with_checksum(packet, 20 + options.size());
}

Drop refusal(std::span<const std::byte> packet) {
    const auto view = Ipv4View::parse(packet);
    return view ? Drop::kNone : view.error();
}

TEST(Ipv4, EmitWritesTheBytesOfRfc791) {
    const Bytes packet = packet_of(kHeader, 4);
    EXPECT_EQ(packet, with_checksum(from_hex("45 ba 0018 1234 4000 3f 11 0000 0a000001 0a000002 5a5a5a5a"), 20));
}

TEST(Ipv4, RoundTrip) {
    Rng rng(1);
    for (int round = 0; round < 500; ++round) {
        const Bytes raw = random_bytes(rng, 16);
        const Ipv4Header header{.source = Address::from_v4(std::span(raw).first<4>()),
                                .destination = Address::from_v4(std::span(raw).subspan<4, 4>()),
                                .protocol = static_cast<IpProtocol>(raw[8]),
                                .hop_limit = load_8(&raw[9]),
                                .traffic_class = load_8(&raw[10]),
                                .identification = load_be16(&raw[11]),
                                .dont_fragment = rng.happens(0.5),
                                .more_fragments = rng.happens(0.5),
                                .fragment_offset = static_cast<std::uint16_t>(rng.below(8192) * 8)};
        const std::size_t payload = rng.below(100);
        const Bytes packet = packet_of(header, payload);
        const auto view = Ipv4View::parse(packet);
        ASSERT_TRUE(view) << "round " << round << ": " << drop_name(view.error());
        const Ipv4Header parsed{
            view->source(),        view->destination(),    view->protocol(),
            view->hop_limit(),     view->traffic_class(),  view->identification(),
            view->dont_fragment(), view->more_fragments(), static_cast<std::uint16_t>(view->fragment_offset())};
        EXPECT_EQ(parsed, header);
        EXPECT_EQ(view->payload_length(), payload);
        EXPECT_EQ(view->payload_in_head().size(), payload);
        EXPECT_EQ(view->is_fragment(), header.more_fragments || header.fragment_offset != 0);
        EXPECT_EQ(static_cast<unsigned>(view->ecn()), header.traffic_class & 3u);
    }
}

TEST(Ipv4, RefusedAtEveryShorterLength) {
    for (const Bytes& packet : {packet_of(kHeader, 6), with_options(Bytes(40, std::byte{1}))})
        for (std::size_t length = 0; length < packet.size(); ++length)
            ASSERT_EQ(refusal(truncated(packet, length)), Drop::kIpv4Truncated) << length;
}

TEST(Ipv4, PaddingIsCutOff) {
    const Bytes packet = packet_of(kHeader, 6) + Bytes(20);
    const auto view = Ipv4View::parse(packet);
    ASSERT_TRUE(view);
    EXPECT_EQ(view->payload_length(), 6u);
    EXPECT_EQ(view->payload_in_head().size(), 6u);
}

TEST(Ipv4, PayloadMayGoBeyondTheHead) {
    const Bytes packet = packet_of(kHeader, 1000);
    for (const std::size_t head : {20u, 28u, 1019u}) {
        const Bytes first_fragment = truncated(packet, head);
        const auto view = Ipv4View::parse(first_fragment, packet.size());
        ASSERT_TRUE(view) << head;
        EXPECT_EQ(view->payload_length(), 1000u);
        EXPECT_EQ(view->payload_in_head().size(), head - 20);
    }
    EXPECT_FALSE(Ipv4View::parse(truncated(packet, 19), packet.size()));
    EXPECT_FALSE(Ipv4View::parse(truncated(packet, 28), packet.size() - 1));
}

TEST(Ipv4, RefusesOtherVersionsAndShortHeaders) {  // [RFC1122 3.2.1.1 version]
    for (const unsigned first : {0x05u, 0x35u, 0x55u, 0x65u, 0xf5u, 0x40u, 0x44u}) {
        Bytes packet = packet_of(kHeader, 4);
        packet[0] = static_cast<std::byte>(first);
        EXPECT_EQ(refusal(packet), Drop::kIpv4Version) << first;
    }
}

TEST(Ipv4, RefusesATotalLengthBelowTheHeader) {
    Bytes packet = packet_of(kHeader, 4);
    store_be16(packet, 2, 19);
    EXPECT_EQ(refusal(with_checksum(packet, 20)), Drop::kIpv4Truncated);
}

TEST(Ipv4, RefusesEveryFlippedBitOfTheHeader) {  // [RFC1122 3.2.1.2 checksum]
    const Bytes packet = packet_of(kHeader, 4);
    for (std::size_t bit = 0; bit < 160; ++bit) {
        Bytes flipped = packet;
        flipped[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
        EXPECT_NE(refusal(flipped), Drop::kNone) << "bit " << bit;
        if (bit / 8 < 4) continue;  // version and lengths are looked at first
        EXPECT_EQ(refusal(flipped), Drop::kIpv4Checksum) << "bit " << bit;
    }
}

struct OptionsCase {
    const char* name;
    const char* hex;
    Drop drop;
};

TEST(Ipv4, Options) {
    for (const OptionsCase& c : {OptionsCase{"no-operation", "01010101", Drop::kNone},
                                 {"end, then anything", "00ffffff", Drop::kNone},
                                 {"router alert", "94040000", Drop::kNone},
                                 {"record route", "07 07 04 00000000 00", Drop::kNone},
                                 {"loose source route", "83 07 04 0a000001 00", Drop::kIpv4Options},
                                 {"strict source route", "01 89 07 04 0a000001", Drop::kIpv4Options},
                                 {"length 0", "07000000", Drop::kIpv4Options},
                                 {"length 1", "07010000", Drop::kIpv4Options},
                                 {"length beyond the header", "07050000", Drop::kIpv4Options},
                                 {"no length", "01010107", Drop::kIpv4Options}}) {
        const Bytes packet = with_options(from_hex(c.hex));
        EXPECT_EQ(refusal(packet), c.drop) << c.name;
        if (c.drop != Drop::kNone) continue;
        const auto view = Ipv4View::parse(packet);
        EXPECT_EQ(view->header_length(), 20 + from_hex(c.hex).size());
        EXPECT_EQ(view->payload_length(), 4u);
    }
}

TEST(Ipv4, RandomBytesNeverLeadOutOfBounds) {
    Rng rng(2);
    std::size_t accepted = 0;
    for (int round = 0; round < 20000; ++round) {
        Bytes packet = random_bytes(rng, 20 + rng.below(60));
        packet[0] = static_cast<std::byte>(0x45 + rng.below(11));
        store_be16(packet, 2, static_cast<std::uint16_t>(rng.below(90)));
        const std::size_t header_length = (std::to_integer<std::size_t>(packet[0]) & 15) * 4;
        if (header_length <= packet.size()) packet = with_checksum(packet, header_length);
        const auto view = Ipv4View::parse(packet);
        if (!view) continue;
        ++accepted;
        ASSERT_LE(view->header_length() + view->payload_length(), packet.size());
        ASSERT_EQ(view->payload_in_head().size(), view->payload_length());
    }
    EXPECT_GT(accepted, 100u);
}

}  // namespace
}  // namespace culvert::wire
