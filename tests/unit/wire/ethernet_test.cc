#include "daemon/wire/ethernet.h"

#include <gtest/gtest.h>

#include "daemon/wire/arp.h"
#include "tests/unit/wire/bytes_of.h"

namespace culvert::wire {
namespace {

const MacAddress kA{{2, 0, 0, 0, 0, 0xa}};
const MacAddress kB{{2, 0, 0, 0, 0, 0xb}};

TEST(Ethernet, RoundTrip) {
    Bytes frame(16);
    emit(EthernetHeader{kA, kB, EtherType::kIpv6}, frame);
    EXPECT_EQ(frame, from_hex("02000000000a 02000000000b 86dd 0000"));
    const auto view = EthernetView::parse(frame);
    ASSERT_TRUE(view);
    EXPECT_EQ(view->destination(), kA);
    EXPECT_EQ(view->source(), kB);
    EXPECT_EQ(view->ether_type(), EtherType::kIpv6);
    EXPECT_EQ(view->payload_in_head().size(), 2u);
}

TEST(Ethernet, RefusedAtEveryShorterLength) {
    const Bytes frame(kEthernetHeaderLength);
    for (std::size_t length = 0; length < frame.size(); ++length) {
        const auto view = EthernetView::parse(truncated(frame, length));
        ASSERT_FALSE(view) << length;
        EXPECT_EQ(view.error(), Drop::kEthernetTruncated);
    }
    EXPECT_TRUE(EthernetView::parse(frame));
}

TEST(Ethernet, ATaggedFrameIsNotTakenForWhatItCarries) {
    const Bytes frame = from_hex("02000000000a 02000000000b 8100 0001 0800 45");
    const auto view = EthernetView::parse(frame);
    ASSERT_TRUE(view);
    EXPECT_EQ(view->ether_type(), EtherType::kVlan);
}

const Bytes kRequest = from_hex("0001 0800 06 04 0001 02000000000a 0a000001 000000000000 0a000002");

TEST(Arp, RoundTrip) {
    const ArpHeader header{ArpOperation::kRequest, kA, Address::v4(10, 0, 0, 1), {}, Address::v4(10, 0, 0, 2)};
    Bytes packet(kArpLength);
    emit(header, packet);
    EXPECT_EQ(packet, kRequest);
    const Bytes padded = packet + Bytes(18);  // to the 60 bytes of the shortest frame
    const auto view = ArpView::parse(padded);
    ASSERT_TRUE(view);
    EXPECT_EQ((ArpHeader{view->operation(), view->sender_mac(), view->sender(), view->target_mac(), view->target()}),
              header);
}

TEST(Arp, RefusedAtEveryShorterLength) {
    for (std::size_t length = 0; length < kRequest.size(); ++length) {
        const auto view = ArpView::parse(truncated(kRequest, length));
        ASSERT_FALSE(view) << length;
        EXPECT_EQ(view.error(), Drop::kArpMalformed);
    }
}

TEST(Arp, RefusesOtherHardwareProtocolsAndOperations) {
    for (const std::size_t at : {0u, 1u, 2u, 3u, 4u, 5u, 6u, 7u}) {
        Bytes packet = kRequest;
        packet[at] ^= std::byte{0x40};
        const auto view = ArpView::parse(packet);
        ASSERT_FALSE(view) << at;
        EXPECT_EQ(view.error(), Drop::kArpMalformed);
    }
}

}  // namespace
}  // namespace culvert::wire
