#include "daemon/wire/ipv6.h"

#include <gtest/gtest.h>

#include "tests/unit/wire/bytes_of.h"

namespace culvert::wire {
namespace {

const Ipv6Header kHeader{.source = Address::parse("2001:db8::1").value(),
                         .destination = Address::parse("2001:db8::2").value(),
                         .protocol = IpProtocol::kTcp,
                         .hop_limit = 63,
                         .traffic_class = 0xba,
                         .flow_label = 0x12345};

/// The fixed header with `first` as next header, then `rest`.
Bytes packet_of(IpProtocol first, const Bytes& rest) {
    Ipv6Header header = kHeader;
    header.protocol = first;
    Bytes packet(kIpv6HeaderLength);
    emit(header, rest.size(), packet);
    return packet + rest;
}

Drop refusal(std::span<const std::byte> packet) {
    const auto view = Ipv6View::parse(packet);
    return view ? Drop::kNone : view.error();
}

TEST(Ipv6, EmitWritesTheBytesOfRfc8200) {
    EXPECT_EQ(
        packet_of(IpProtocol::kTcp, Bytes(4)),
        from_hex("6ba12345 0004 06 3f 20010db8000000000000000000000001 20010db8000000000000000000000002 00000000"));
}

TEST(Ipv6, RoundTrip) {
    const Bytes packet = packet_of(IpProtocol::kTcp, Bytes(33));
    const auto view = Ipv6View::parse(packet);
    ASSERT_TRUE(view);
    EXPECT_EQ((Ipv6Header{view->source(), view->destination(), view->protocol(), view->hop_limit(),
                          view->traffic_class(), view->flow_label()}),
              kHeader);
    EXPECT_EQ(view->header_length(), 40u);
    EXPECT_EQ(view->payload_length(), 33u);
    EXPECT_EQ(view->payload_in_head().size(), 33u);
    EXPECT_FALSE(view->is_fragment());
    EXPECT_EQ(view->ecn(), Ecn::kCapable0);
}

TEST(Ipv6, RefusesOtherVersions) {
    for (unsigned version = 0; version < 16; ++version) {
        Bytes packet = packet_of(IpProtocol::kTcp, Bytes(4));
        packet[0] = static_cast<std::byte>(version << 4);
        EXPECT_EQ(refusal(packet), version == 6 ? Drop::kNone : Drop::kIpv6Version) << version;
    }
}

TEST(Ipv6, RefusesMappedAddresses) {
    for (const std::size_t at : {8u, 24u}) {
        Bytes packet = packet_of(IpProtocol::kTcp, Bytes(4));
        const Bytes mapped = from_hex("00000000000000000000ffff0a000001");
        std::copy(mapped.begin(), mapped.end(), packet.begin() + static_cast<std::ptrdiff_t>(at));
        EXPECT_EQ(refusal(packet), Drop::kIpv6MappedAddress) << at;
    }
}

constexpr const char* kHopByHopAlert = "06 00 05020000 0100";  // router alert, PadN

struct ChainCase {
    const char* name;
    IpProtocol first;
    const char* chain;  // behind the fixed header; 4 bytes of payload follow
    Drop drop;
    IpProtocol protocol = IpProtocol::kTcp;
};

const ChainCase kChains[] = {
    {"nothing", IpProtocol::kTcp, "", Drop::kNone},
    {"hop-by-hop", IpProtocol::kHopByHop, kHopByHopAlert, Drop::kNone},
    {"destination options", IpProtocol::kDestinationOptions, "11 00 000000000000", Drop::kNone, IpProtocol::kUdp},
    {"long destination options", IpProtocol::kDestinationOptions, "06 01 010c 000000000000000000000000", Drop::kNone},
    {"routing, used up", IpProtocol::kRouting, "06 00 03 00 00000000", Drop::kNone},
    {"hop-by-hop, routing, destination", IpProtocol::kHopByHop,
     "2b 00 010400000000 3c 00 0300 00000000 06 00 010400000000", Drop::kNone},
    {"atomic fragment", IpProtocol::kFragment, "06 00 0000 12345678", Drop::kNone},
    {"no next header", IpProtocol::kDestinationOptions, "3b 00 010400000000", Drop::kNone, IpProtocol::kNoNextHeader},
    {"ESP is left to IP", static_cast<IpProtocol>(50), "", Drop::kNone, static_cast<IpProtocol>(50)},
    {"unknown option, skip", IpProtocol::kDestinationOptions, "06 00 3f0400000000", Drop::kNone},
    {"unknown option, discard", IpProtocol::kDestinationOptions, "06 00 4f0400000000", Drop::kIpv6ExtensionHeader},
    {"unknown option, discard and tell", IpProtocol::kDestinationOptions, "06 00 8f0400000000",
     Drop::kIpv6ExtensionHeader},
    {"jumbo payload", IpProtocol::kHopByHop, "06 00 c20400010000", Drop::kIpv6ExtensionHeader},
    {"option beyond its header", IpProtocol::kDestinationOptions, "06 00 010500000000", Drop::kIpv6ExtensionHeader},
    {"option without length", IpProtocol::kDestinationOptions, "06 00 010300000001", Drop::kIpv6ExtensionHeader},
    {"type 0 routing header", IpProtocol::kRouting, "06 00 00 01 00000000", Drop::kIpv6ExtensionHeader},
    {"hop-by-hop second", IpProtocol::kDestinationOptions, "00 00 010400000000 06 00 010400000000",
     Drop::kIpv6ExtensionHeader},
    {"hop-by-hop twice", IpProtocol::kHopByHop, "00 00 010400000000 06 00 010400000000", Drop::kIpv6ExtensionHeader},
    {"header longer than the packet", IpProtocol::kDestinationOptions, "06 05 010400000000", Drop::kIpv6Truncated},
};

TEST(Ipv6, ExtensionHeaderChains) {
    for (const ChainCase& c : kChains) {
        const Bytes chain = from_hex(c.chain);
        const Bytes packet = packet_of(c.first, chain + Bytes(4));
        EXPECT_EQ(refusal(packet), c.drop) << c.name;
        const auto view = Ipv6View::parse(packet);
        if (!view) continue;
        EXPECT_EQ(view->protocol(), c.protocol) << c.name;
        EXPECT_EQ(view->header_length(), 40 + chain.size()) << c.name;
        EXPECT_EQ(view->payload_length(), 4u) << c.name;
        EXPECT_EQ(view->payload_in_head().size(), 4u) << c.name;
        EXPECT_FALSE(view->is_fragment()) << c.name;
    }
}

TEST(Ipv6, RefusedAtEveryShorterLength) {
    for (const ChainCase& c : kChains) {
        if (c.drop != Drop::kNone) continue;
        const Bytes packet = packet_of(c.first, from_hex(c.chain) + Bytes(4));
        for (std::size_t length = 0; length < packet.size(); ++length)
            ASSERT_EQ(refusal(truncated(packet, length)), Drop::kIpv6Truncated) << c.name << " " << length;
    }
}

TEST(Ipv6, HeadersMustLieInTheHeadAndThePayloadNeedNot) {
    const Bytes chain = from_hex(kHopByHopAlert);
    const Bytes packet = packet_of(IpProtocol::kHopByHop, chain + Bytes(1000));
    for (std::size_t head = 0; head <= 60; ++head) {
        const Bytes first_fragment = truncated(packet, head);
        const auto view = Ipv6View::parse(first_fragment, packet.size());
        ASSERT_EQ(view.has_value(), head >= 48) << head;
        if (!view) continue;
        EXPECT_EQ(view->payload_length(), 1000u);
        EXPECT_EQ(view->payload_in_head().size(), head - 48);
    }
}

TEST(Ipv6, PaddingIsCutOff) {
    const auto packet = packet_of(IpProtocol::kTcp, Bytes(4)) + Bytes(9);
    const auto view = Ipv6View::parse(packet);
    ASSERT_TRUE(view);
    EXPECT_EQ(view->payload_in_head().size(), 4u);
}

TEST(Ipv6, AHeaderMayNotReachIntoThePadding) {
    Bytes packet = packet_of(IpProtocol::kDestinationOptions, from_hex("06 00 010400000000"));
    store_be16(packet, 4, 7);
    EXPECT_EQ(refusal(packet), Drop::kIpv6Truncated);
}

TEST(Ipv6, Fragments) {
    const auto first = packet_of(IpProtocol::kFragment, from_hex("11 00 0001 12345678") + Bytes(16));
    auto view = Ipv6View::parse(first);
    ASSERT_TRUE(view);
    EXPECT_TRUE(view->is_fragment());
    EXPECT_TRUE(view->more_fragments());
    EXPECT_EQ(view->fragment_offset(), 0u);
    EXPECT_EQ(view->identification(), 0x12345678u);
    EXPECT_EQ(view->protocol(), IpProtocol::kUdp);
    EXPECT_EQ(view->payload_length(), 16u);

    // the middle of a packet: its bytes are not walked, even if the first protocol is an extension header
    const auto second = packet_of(IpProtocol::kFragment, from_hex("3c 00 0598 12345678") + Bytes(16, std::byte{0xff}));
    view = Ipv6View::parse(second);
    ASSERT_TRUE(view);
    EXPECT_TRUE(view->is_fragment());
    EXPECT_FALSE(view->more_fragments());
    EXPECT_EQ(view->fragment_offset(), 0x598u);
    EXPECT_EQ(view->protocol(), IpProtocol::kDestinationOptions);
    EXPECT_EQ(view->header_length(), 48u);
}

TEST(Ipv6, TheChainIsBounded) {
    for (int count = 1; count < 12; ++count) {
        Bytes chain;
        for (int i = 0; i < count; ++i)
            chain = chain + from_hex(i + 1 < count ? "3c 00 010400000000" : "06 00 010400000000");
        EXPECT_EQ(refusal(packet_of(IpProtocol::kDestinationOptions, chain + Bytes(4))),
                  count <= 8 ? Drop::kNone : Drop::kIpv6ExtensionHeader)
            << count;
    }
}

TEST(Ipv6, RandomChainsNeverLeadOutOfBounds) {
    Rng rng(3);
    constexpr IpProtocol kSome[] = {IpProtocol::kHopByHop, IpProtocol::kRouting, IpProtocol::kFragment,
                                    IpProtocol::kDestinationOptions, IpProtocol::kTcp};
    std::size_t accepted = 0;
    for (int round = 0; round < 20000; ++round) {
        Bytes rest(rng.below(80));
        for (std::byte& byte : rest)
            byte =
                rng.happens(0.3) ? static_cast<std::byte>(kSome[rng.below(5)]) : static_cast<std::byte>(rng.below(4));
        const Bytes packet = packet_of(kSome[rng.below(4)], rest);
        const auto view = Ipv6View::parse(packet);
        if (!view) continue;
        ++accepted;
        ASSERT_EQ(view->header_length() + view->payload_length(), packet.size());
        ASSERT_EQ(view->payload_in_head().size(), view->payload_length());
    }
    EXPECT_GT(accepted, 100u);
}

}  // namespace
}  // namespace culvert::wire
