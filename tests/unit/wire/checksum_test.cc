// The fast sums against RFC 1071 written down word by word.
#include "daemon/wire/checksum.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/unit/wire/bytes_of.h"

namespace culvert::wire {
namespace {

const Address kSource4 = Address::v4(10, 0, 0, 1);
const Address kDestination4 = Address::v4(192, 168, 255, 254);
const Address kSource6 = Address::parse("2001:db8::1").value();
const Address kDestination6 = Address::parse("fe80::ffff:ffff").value();

TEST(Checksum, TheExampleOfTheRfc) {  // RFC 1071 3
    EXPECT_EQ(fold(sum_bytes(from_hex("0001 f203 f4f5 f6f7"))), 0xddf2);
    EXPECT_EQ(checksum(sum_bytes(from_hex("0001 f203 f4f5 f6f7"))), 0x220d);
}

TEST(Checksum, ZeroAndAllOnes) {
    EXPECT_EQ(fold(PartialSum()), 0);
    EXPECT_EQ(fold(sum_bytes(Bytes(100))), 0);
    EXPECT_EQ(fold(sum_bytes(Bytes(2, std::byte{0xff}))), 0xffff);
    EXPECT_EQ(fold(sum_bytes(Bytes(65536, std::byte{0xff}))), 0xffff);  // every carry there is
    EXPECT_EQ(fold(PartialSum(UINT64_MAX) + PartialSum(UINT64_MAX)), 0xffff);
}

TEST(Checksum, EveryLengthAndAlignment) {
    Rng rng(1);
    const Bytes data = random_bytes(rng, 400);
    for (std::size_t offset = 0; offset < 17; ++offset)
        for (std::size_t length = 0; length + offset <= 300; ++length) {
            const Bytes exact = Bytes(offset) + Bytes(data.begin(), data.begin() + static_cast<std::ptrdiff_t>(length));
            const auto bytes = std::span(exact).subspan(offset);
            ASSERT_EQ(fold(sum_bytes(bytes)), naive_sum(bytes)) << "offset " << offset << " length " << length;
        }
}

TEST(Checksum, FixedLengths) {
    Rng rng(7);
    const Bytes data = random_bytes(rng, 40);
    EXPECT_EQ(fold(sum_fixed<4>(data.data() + 1)), naive_sum(std::span(data).subspan(1, 4)));
    EXPECT_EQ(fold(sum_fixed<8>(data.data() + 1)), naive_sum(std::span(data).subspan(1, 8)));
    EXPECT_EQ(fold(sum_fixed<20>(data.data())), naive_sum(std::span(data).first(20)));
    EXPECT_EQ(fold(sum_fixed<40>(data.data())), naive_sum(data));
}

TEST(Checksum, CopyAndChecksumEveryLengthAndAlignment) {
    Rng rng(2);
    const Bytes data = random_bytes(rng, 512);
    constexpr std::byte kCanary{0xa5};
    const auto untouched = [](std::span<const std::byte> bytes) {
        return std::ranges::all_of(bytes, [](std::byte byte) { return byte == kCanary; });
    };
    for (std::size_t from = 0; from < 17; ++from)
        for (std::size_t to : {0u, 1u, 2u, 3u, 7u, 8u, 15u})
            for (std::size_t length = 0; length < 200; ++length) {
                const auto source = std::span(data).subspan(from, length);
                Bytes copy(to + length + 8, kCanary);
                const PartialSum sum = copy_and_checksum(std::span(copy).subspan(to, length), source);
                ASSERT_EQ(fold(sum), naive_sum(source)) << from << " " << to << " " << length;
                ASSERT_TRUE(std::equal(source.begin(), source.end(), copy.begin() + static_cast<std::ptrdiff_t>(to)));
                ASSERT_TRUE(untouched(std::span(copy).first(to)) && untouched(std::span(copy).last(8)))
                    << from << " " << to << " " << length;
            }
}

TEST(Checksum, LongRandomBuffers) {
    Rng rng(3);
    for (int round = 0; round < 50; ++round) {
        const Bytes data = random_bytes(rng, rng.below(70000));
        Bytes copy(data.size());
        ASSERT_EQ(fold(sum_bytes(data)), naive_sum(data)) << "round " << round;
        ASSERT_EQ(fold(copy_and_checksum(copy, data)), naive_sum(data)) << "round " << round;
        ASSERT_EQ(copy, data);
    }
}

TEST(Checksum, AccumulatorTakesPiecesOfAnyLength) {
    Rng rng(4);
    for (int round = 0; round < 2000; ++round) {
        const Bytes data = random_bytes(rng, rng.below(600));
        ChecksumAccumulator accumulator;
        std::span<const std::byte> left = data;
        while (!left.empty()) {
            const std::size_t piece = 1 + rng.below(std::min<std::size_t>(left.size(), 70));
            if (rng.happens(0.5))
                accumulator.add(left.first(piece));
            else
                accumulator.add(sum_bytes(left.first(piece)), piece);
            left = left.subspan(piece);
        }
        ASSERT_EQ(fold(accumulator.sum()), naive_sum(data)) << "round " << round;
    }
}

/// The pseudo-header as bytes, from RFC 9293 3.1 and RFC 8200 8.1.
Bytes pseudo_header(const Address& source, const Address& destination, IpProtocol protocol, std::size_t length) {
    Bytes bytes;
    for (const Address* address : {&source, &destination})
        for (const std::uint8_t byte : address->wire_bytes()) bytes.push_back(std::byte{byte});
    const auto push = [&bytes](std::size_t value, int width) {
        for (int shift = 8 * (width - 1); shift >= 0; shift -= 8)
            bytes.push_back(static_cast<std::byte>(value >> shift));
    };
    if (source.is_v4()) {
        push(static_cast<unsigned>(protocol), 2);
        push(length, 2);
    } else {
        push(length, 4);
        push(static_cast<unsigned>(protocol), 4);
    }
    return bytes;
}

TEST(Checksum, PseudoHeader) {
    Rng rng(5);
    for (int round = 0; round < 2000; ++round) {
        const bool four = rng.happens(0.5);
        const Bytes raw = random_bytes(rng, 32);
        const auto address = [four](std::span<const std::byte> bytes) {
            return four ? Address::from_v4(bytes.first<4>()) : Address::from_v6(bytes.first<16>());
        };
        const Address source = address(raw), destination = address(std::span(raw).subspan(16));
        const IpProtocol protocol = rng.happens(0.5) ? IpProtocol::kTcp : IpProtocol::kUdp;
        const std::size_t length = rng.below(65536);
        ASSERT_EQ(fold(pseudo_header_sum(source, destination, protocol, static_cast<std::uint32_t>(length))),
                  naive_sum(pseudo_header(source, destination, protocol, length)))
            << "round " << round;
    }
}

/// A packet cut into fragments at given places. The first fragment holds at least `head_at_least` bytes.
class Fragmented {
public:
    Fragmented(const Bytes& packet, Rng& rng, std::size_t head_at_least, ChecksumState state) {
        std::size_t at = std::min(packet.size(), head_at_least + rng.below(40));
        pieces_.push_back(truncated(packet, at));
        while (at < packet.size()) {
            const std::size_t length = 1 + rng.below(std::min<std::size_t>(packet.size() - at, 100));
            pieces_.push_back(truncated(std::span(packet).subspan(at), length));
            at += length;
        }
        for (std::size_t i = 1; i < pieces_.size(); ++i) rest_.emplace_back(pieces_[i]);
        packet_ = {pieces_[0], rest_, static_cast<std::uint32_t>(packet.size()), state};
    }
    const RxPacket& packet() const { return packet_; }

private:
    std::vector<Bytes> pieces_;
    std::vector<std::span<const std::byte>> rest_;
    RxPacket packet_;
};

struct Upper {
    const char* name;
    IpProtocol protocol;
    std::size_t field;
    bool six;
};

constexpr Upper kUppers[] = {{"tcp4", IpProtocol::kTcp, 16, false},   {"tcp6", IpProtocol::kTcp, 16, true},
                             {"udp4", IpProtocol::kUdp, 6, false},    {"udp6", IpProtocol::kUdp, 6, true},
                             {"icmp6", IpProtocol::kIcmpv6, 2, true}, {"icmp", IpProtocol::kIcmp, 2, false}};

class VerifyTransport : public testing::TestWithParam<Upper> {
protected:
    static constexpr std::size_t kOffset = 34;  // odd and even fragments move it about anyway

    bool six() const { return GetParam().six; }
    Address source() const { return six() ? kSource6 : kSource4; }
    Address destination() const { return six() ? kDestination6 : kDestination4; }
    std::uint16_t pseudo_sum(std::size_t length) const {
        if (GetParam().protocol == IpProtocol::kIcmp) return 0;
        return naive_sum(pseudo_header(source(), destination(), GetParam().protocol, length));
    }
    /// kOffset bytes of headers, the message with its field set, padding of the link.
    Bytes packet_with(const Bytes& message, std::uint16_t field, std::size_t padding) {
        Bytes packet = random_bytes(rng_, kOffset) + message + random_bytes(rng_, padding);
        store_be16(packet, kOffset + GetParam().field, field);
        return packet;
    }
    std::uint16_t right_checksum(Bytes message) {
        store_be16(message, GetParam().field, 0);
        std::uint32_t sum = std::uint32_t{naive_sum(message)} + pseudo_sum(message.size());
        sum = (sum & 0xffff) + (sum >> 16);
        const auto value = static_cast<std::uint16_t>(~sum);
        return value == 0 && GetParam().protocol == IpProtocol::kUdp ? std::uint16_t{0xffff} : value;
    }
    bool verify(const Bytes& packet, std::size_t length, ChecksumState state) {
        const Fragmented fragmented(packet, rng_, kOffset + GetParam().field + 2, state);
        return verify_transport_checksum(fragmented.packet(), kOffset, length, source(), destination(),
                                         GetParam().protocol);
    }

    Rng rng_{6};
};

TEST_P(VerifyTransport, AcceptsTheRightOneAndNothingElse) {
    for (int round = 0; round < 300; ++round) {
        const Bytes message = random_bytes(rng_, 20 + rng_.below(400));
        const std::uint16_t right = right_checksum(message);
        const std::size_t padding = rng_.below(10);
        for (const ChecksumState state : {ChecksumState::kUnverified, ChecksumState::kMaybePartial}) {
            EXPECT_TRUE(verify(packet_with(message, right, padding), message.size(), state)) << "round " << round;
            const auto wrong = static_cast<std::uint16_t>(right ^ (1u << rng_.below(16)));
            const bool none_made = GetParam().protocol == IpProtocol::kUdp && !six() && wrong == 0;
            if (wrong == pseudo_sum(message.size()) || none_made) continue;
            EXPECT_FALSE(verify(packet_with(message, wrong, padding), message.size(), state)) << "round " << round;
        }
        EXPECT_TRUE(verify(packet_with(message, 0x1234, padding), message.size(), ChecksumState::kVerified));
    }
}

TEST_P(VerifyTransport, AcceptsThePseudoHeaderSumFromVirtualDevicesOnly) {
    if (GetParam().protocol == IpProtocol::kIcmp) {  // no pseudo-header, so nothing partial: zero is just wrong
        EXPECT_FALSE(verify(packet_with(Bytes(20, std::byte{1}), 0, 0), 20, ChecksumState::kMaybePartial));
        return;
    }
    for (int round = 0; round < 300; ++round) {
        const Bytes message = random_bytes(rng_, 20 + rng_.below(400));
        const std::uint16_t partial = pseudo_sum(message.size());
        EXPECT_TRUE(verify(packet_with(message, partial, 0), message.size(), ChecksumState::kMaybePartial));
        if (right_checksum(message) == partial) continue;
        EXPECT_FALSE(verify(packet_with(message, partial, 0), message.size(), ChecksumState::kUnverified));
        // complemented, as a finished checksum would be, it is not the mark of CHECKSUM_PARTIAL
        const auto complemented = static_cast<std::uint16_t>(~partial);
        if (right_checksum(message) == complemented) continue;
        EXPECT_FALSE(verify(packet_with(message, complemented, 0), message.size(), ChecksumState::kMaybePartial));
    }
}

TEST_P(VerifyTransport, ZeroMeansNoneForUdpOverIpv4Only) {  // RFC 768, RFC 8200 8.1
    const Bytes message = from_hex("0001 0002 0003 0004 0005 0006 0007 0008 0009 000a");
    ASSERT_NE(right_checksum(message), 0);
    const bool udp4 = GetParam().protocol == IpProtocol::kUdp && !six();
    EXPECT_EQ(verify(packet_with(message, 0, 0), message.size(), ChecksumState::kUnverified), udp4);
}

TEST_P(VerifyTransport, RefusesAMessageThatIsNotAllThere) {
    const Bytes message = random_bytes(rng_, 60);
    const Bytes packet = packet_with(message, right_checksum(message), 0);
    EXPECT_TRUE(verify(packet, 60, ChecksumState::kUnverified));
    EXPECT_FALSE(verify(packet, 61, ChecksumState::kUnverified));
    EXPECT_FALSE(verify(packet, GetParam().field + 1, ChecksumState::kUnverified));
}

INSTANTIATE_TEST_SUITE_P(Protocols, VerifyTransport, testing::ValuesIn(kUppers),
                         [](const auto& param) { return std::string(param.param.name); });

// What Linux leaves on a veth: captured layout, th->check = ~tcp_v4_check(len, saddr, daddr, 0), that is the folded sum
// of the pseudo-header 10.0.0.1, 10.0.0.2, 0, 6, 20: 0a00 + 0001 + 0a00 + 0002 + 0006 + 0014 = 141d.
TEST(VerifyTransport, LinuxPartialChecksumByHand) {
    Bytes segment = from_hex("9c40 0050 00000064 00000000 5002 ffff 141d 0000");
    RxPacket packet{segment, {}, 20, ChecksumState::kMaybePartial};
    const Address from = Address::v4(10, 0, 0, 1), to = Address::v4(10, 0, 0, 2);
    EXPECT_TRUE(verify_transport_checksum(packet, 0, 20, from, to, IpProtocol::kTcp));
    packet.checksum = ChecksumState::kUnverified;
    EXPECT_FALSE(verify_transport_checksum(packet, 0, 20, from, to, IpProtocol::kTcp));
}

}  // namespace
}  // namespace culvert::wire
