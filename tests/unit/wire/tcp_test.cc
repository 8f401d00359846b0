#include "daemon/wire/tcp.h"

#include <gtest/gtest.h>

#include "tests/unit/wire/bytes_of.h"

namespace culvert::wire {
namespace {

const TcpHeader kHeader{.source = 40000,
                        .destination = 80,
                        .sequence = 0x01020304,
                        .acknowledgment = 0xf1f2f3f4,
                        .flags = kPsh | kAck,
                        .window = 0xabcd,
                        .urgent = 0x0007};

TcpOptions with_timestamps() {
    TcpOptions options;
    options.timestamps = TcpTimestamps{1, 2};
    return options;
}

Drop refusal(std::span<const std::byte> segment) {
    const auto view = TcpView::parse(segment);
    return view ? Drop::kNone : view.error();
}

TEST(Tcp, EmitWritesTheBytesOfRfc9293) {
    Bytes out(32);
    EXPECT_EQ(emit(kHeader, with_timestamps(), out), 32u);
    EXPECT_EQ(out, from_hex("9c40 0050 01020304 f1f2f3f4 80 18 abcd 0000 0007 0101080a 00000001 00000002"));
}

TEST(Tcp, RoundTrip) {
    Rng rng(1);
    for (int round = 0; round < 500; ++round) {
        const TcpHeader header{.source = static_cast<Port>(rng.next()),
                               .destination = static_cast<Port>(rng.next()),
                               .sequence = static_cast<std::uint32_t>(rng.next()),
                               .acknowledgment = static_cast<std::uint32_t>(rng.next()),
                               .flags = {static_cast<std::uint8_t>(rng.next())},
                               .window = static_cast<std::uint16_t>(rng.next()),
                               .urgent = static_cast<std::uint16_t>(rng.next())};
        const TcpOptions options = rng.happens(0.5) ? with_timestamps() : TcpOptions{};
        const std::size_t payload = rng.below(50);
        Bytes segment(tcp_header_length(options) + payload);
        const std::size_t length = emit(header, options, segment);
        const auto view = TcpView::parse(segment);
        ASSERT_TRUE(view);
        EXPECT_EQ((TcpHeader{view->source(), view->destination(), view->sequence(), view->acknowledgment(),
                             view->flags(), view->window(), view->urgent()}),
                  header);
        EXPECT_EQ(view->header_length(), length);
        EXPECT_EQ(view->options().size(), length - kTcpHeaderLength);
        EXPECT_EQ(view->payload_length(), payload);
        EXPECT_EQ(view->payload_in_head().size(), payload);
        EXPECT_EQ(view->segment_length(), payload + header.flags.syn() + header.flags.fin());
        EXPECT_EQ(TcpOptions::parse(view->options())->timestamps, options.timestamps);
    }
}

TEST(Tcp, HeaderRefusedAtEveryShorterLength) {
    Bytes segment(32);
    emit(kHeader, with_timestamps(), segment);
    for (std::size_t length = 0; length < segment.size(); ++length)
        ASSERT_EQ(refusal(truncated(segment, length)), Drop::kTcpTruncated) << length;
    EXPECT_EQ(refusal(segment), Drop::kNone);
}

TEST(Tcp, EveryDataOffset) {
    for (unsigned offset = 0; offset < 16; ++offset) {
        Bytes segment(60);
        segment[12] = static_cast<std::byte>(offset << 4 | 0xf);  // the reserved bits are ignored
        EXPECT_EQ(refusal(segment), offset >= 5 ? Drop::kNone : Drop::kTcpTruncated) << offset;
        if (offset < 5) continue;
        EXPECT_EQ(TcpView::parse(segment)->payload_length(), 60 - 4 * offset);
    }
}

TEST(Tcp, PayloadMayGoBeyondTheHead) {
    Bytes head(40);
    emit(kHeader, with_timestamps(), head);
    const auto view = TcpView::parse(head, 1032);
    ASSERT_TRUE(view);
    EXPECT_EQ(view->payload_length(), 1000u);
    EXPECT_EQ(view->payload_in_head().size(), 8u);
    // `head` may hold padding behind the segment
    const auto padded = TcpView::parse(head, 35);
    ASSERT_TRUE(padded);
    EXPECT_EQ(padded->payload_length(), 3u);
    EXPECT_EQ(padded->payload_in_head().size(), 3u);
    // options must lie in both
    EXPECT_FALSE(TcpView::parse(head, 31));
    EXPECT_FALSE(TcpView::parse(truncated(head, 31), 1032));
}

TEST(Tcp, Flags) {
    constexpr TcpFlags flags = kSyn | kAck;
    static_assert(flags.syn() && flags.ack() && !flags.fin() && !flags.rst());
    static_assert(flags.has(kSyn | kAck) && !flags.has(kSyn | kRst) && flags.any_of(kSyn | kRst));
    static_assert(flags.without(kSyn) == kAck && (flags & kSyn) == kSyn);
    static_assert((kFin.bits | kSyn.bits | kRst.bits | kPsh.bits | kAck.bits | kUrg.bits | kEce.bits | kCwr.bits) ==
                  0xff);
    EXPECT_TRUE(kPsh.psh() && kUrg.urg() && kEce.ece() && kCwr.cwr() && kRst.rst() && kFin.fin());
}

TEST(Tcp, FinishedChecksumVerifies) {
    Rng rng(2);
    for (int round = 0; round < 500; ++round) {
        const bool four = rng.happens(0.5);
        const Address source = four ? Address::v4(10, 0, 0, 1) : Address::parse("fe80::1").value();
        const Address destination = four ? Address::v4(10, 0, 0, 2) : Address::parse("fe80::2").value();
        const TcpOptions options = rng.happens(0.5) ? with_timestamps() : TcpOptions{};
        const Bytes payload = random_bytes(rng, rng.below(300));
        Bytes segment(tcp_header_length(options) + payload.size());
        const std::size_t length = emit(kHeader, options, segment);
        const PartialSum sum = copy_and_checksum(std::span(segment).subspan(length), payload);
        finish_tcp_checksum(std::span(segment).first(length), sum, payload.size(), source, destination);
        RxPacket packet{segment, {}, static_cast<std::uint32_t>(segment.size()), ChecksumState::kUnverified};
        ASSERT_TRUE(verify_transport_checksum(packet, 0, segment.size(), source, destination, IpProtocol::kTcp))
            << round;
        segment[rng.below(segment.size())] ^= std::byte{0x20};
        ASSERT_FALSE(verify_transport_checksum(packet, 0, segment.size(), source, destination, IpProtocol::kTcp))
            << round;
    }
}

}  // namespace
}  // namespace culvert::wire
