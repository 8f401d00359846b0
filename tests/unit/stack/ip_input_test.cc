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
        {"broadcast MAC", true, [](Bytes& f) { std::fill_n(f.begin(), 6, std::byte{0xff}); }, Drop::kEthernetNotForUs},
        {"ARP", true, [](Bytes& f) { f[13] = std::byte{6}; }, Drop::kEtherTypeUnknown},
        {"VLAN", true, [](Bytes& f) { f[12] = std::byte{0x81}; }, Drop::kEtherTypeUnknown},
        {"no IPv4 header", true, [](Bytes& f) { f.resize(33); }, Drop::kIpv4Truncated},
        {"shorter than it says", true, [](Bytes& f) { f.resize(f.size() - 1); }, Drop::kIpv4Truncated},
        {"version 5", true, [](Bytes& f) { f[14] = std::byte{0x55}; }, Drop::kIpv4Version},
        {"checksum", true, [](Bytes& f) { f[24] ^= std::byte{1}; }, Drop::kIpv4Checksum},
        {"to the neighbour", true,
         [](Bytes& f) { f[33] = std::byte{77}; fix_ipv4_checksum(f); }, Drop::kIpNotForUs},
        {"to a group", true, [](Bytes& f) { f[30] = std::byte{224}; fix_ipv4_checksum(f); }, Drop::kIpNotForUs},
        {"from a group", true, [](Bytes& f) { f[26] = std::byte{224}; fix_ipv4_checksum(f); }, Drop::kIpSourceInvalid},
        {"from nobody", true,
         [](Bytes& f) { std::fill_n(f.begin() + 26, 4, std::byte{0}); fix_ipv4_checksum(f); }, Drop::kIpSourceInvalid},
        {"from everybody", true,
         [](Bytes& f) { std::fill_n(f.begin() + 26, 4, std::byte{255}); fix_ipv4_checksum(f); }, Drop::kIpSourceInvalid},
        {"from loopback", true, [](Bytes& f) { f[26] = std::byte{127}; fix_ipv4_checksum(f); }, Drop::kIpSourceInvalid},
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
         [](Bytes& f) { std::fill_n(f.begin() + 22, 15, std::byte{0}); f[37] = std::byte{1}; }, Drop::kIpSourceInvalid},
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

}  // namespace
}  // namespace culvert::stack
