#include "daemon/wire/udp.h"

#include <gtest/gtest.h>

#include "tests/unit/wire/bytes_of.h"

namespace culvert::wire {
namespace {

Bytes datagram_of(const UdpHeader& header, std::size_t payload) {
    Bytes datagram(kUdpHeaderLength + payload, std::byte{0x5a});
    emit(header, payload, datagram);
    return datagram;
}

Drop refusal(std::span<const std::byte> datagram) {
    const auto view = UdpView::parse(datagram);
    return view ? Drop::kNone : view.error();
}

TEST(Udp, RoundTrip) {
    const UdpHeader header{1234, 53};
    const Bytes datagram = datagram_of(header, 3);
    EXPECT_EQ(datagram, from_hex("04d2 0035 000b 0000 5a5a5a"));
    const auto view = UdpView::parse(datagram);
    ASSERT_TRUE(view);
    EXPECT_EQ((UdpHeader{view->source(), view->destination()}), header);
    EXPECT_EQ(view->length(), 11u);
    EXPECT_EQ(view->payload_length(), 3u);
    EXPECT_EQ(view->payload_in_head().size(), 3u);
}

TEST(Udp, RefusedAtEveryShorterLength) {
    const Bytes datagram = datagram_of({1, 2}, 9);
    for (std::size_t length = 0; length < datagram.size(); ++length)
        ASSERT_EQ(refusal(truncated(datagram, length)), Drop::kUdpTruncated) << length;
}

TEST(Udp, RefusesALengthBelowTheHeader) {
    for (std::uint16_t length = 0; length < 12; ++length) {
        Bytes datagram = datagram_of({1, 2}, 4);
        store_be16(datagram, 4, length);
        EXPECT_EQ(refusal(datagram), length >= 8 ? Drop::kNone : Drop::kUdpTruncated) << length;
    }
}

TEST(Udp, BytesBehindTheDatagramAreNotPayload) {
    const Bytes datagram = datagram_of({1, 2}, 4) + Bytes(5);
    const auto view = UdpView::parse(datagram);
    ASSERT_TRUE(view);
    EXPECT_EQ(view->payload_in_head().size(), 4u);
}

TEST(Udp, PayloadMayGoBeyondTheHead) {
    const Bytes datagram = datagram_of({1, 2}, 1000);
    const Bytes head = truncated(datagram, 100);
    const auto view = UdpView::parse(head, datagram.size());
    ASSERT_TRUE(view);
    EXPECT_EQ(view->payload_length(), 1000u);
    EXPECT_EQ(view->payload_in_head().size(), 92u);
    EXPECT_FALSE(UdpView::parse(truncated(datagram, 7), datagram.size()));
    EXPECT_FALSE(UdpView::parse(head, datagram.size() - 1));
}

TEST(Udp, FinishedChecksumVerifies) {
    Rng rng(1);
    for (int round = 0; round < 500; ++round) {
        const bool four = rng.happens(0.5);
        const Address source = four ? Address::v4(10, 0, 0, 1) : Address::parse("fe80::1").value();
        const Address destination = four ? Address::v4(10, 0, 0, 2) : Address::parse("fe80::2").value();
        const Bytes payload = random_bytes(rng, rng.below(300));
        Bytes datagram(kUdpHeaderLength + payload.size());
        emit({static_cast<Port>(rng.next()), static_cast<Port>(rng.next())}, payload.size(), datagram);
        const PartialSum sum = copy_and_checksum(std::span(datagram).subspan(kUdpHeaderLength), payload);
        finish_udp_checksum(datagram, sum, source, destination);
        const RxPacket packet{datagram, {}, static_cast<std::uint32_t>(datagram.size()), ChecksumState::kUnverified};
        ASSERT_NE(UdpView::parse(datagram)->checksum(), 0);
        ASSERT_TRUE(verify_transport_checksum(packet, 0, datagram.size(), source, destination, IpProtocol::kUdp))
            << round;
    }
}

TEST(Udp, AComputedZeroIsSentAsAllOnes) {  // RFC 768
    const Address source = Address::v4(10, 0, 0, 1), destination = Address::v4(10, 0, 0, 2);
    Bytes datagram(10);
    emit({1, 2}, 2, datagram);
    // a payload that makes the sum 0xffff: the complement of everything else
    const PartialSum rest = sum_bytes(datagram) + pseudo_header_sum(source, destination, IpProtocol::kUdp, 10);
    store_be16(datagram, 8, checksum(rest));
    finish_udp_checksum(datagram, sum_bytes(std::span(datagram).subspan(8)), source, destination);
    EXPECT_EQ(UdpView::parse(datagram)->checksum(), 0xffff);
}

}  // namespace
}  // namespace culvert::wire
