#include "daemon/stack/icmp.h"

#include <gtest/gtest.h>

#include "daemon/stack/ip_input.h"
#include "tests/unit/stack/ip_world.h"

namespace culvert::stack {
namespace {

class IcmpTest : public testing::Test, public IpWorld {
protected:
    IpInput input{output.local_addresses()};

    /// The first `length` bytes of a packet that `source` sent: IP header, ports 40000 -> 80, sequence 0x01020304.
    static Bytes ours(const Address& source, const Address& destination, wire::IpProtocol protocol,
                      std::size_t length = 28) {
        Bytes transport = pattern(1000);
        wire::store_be16(transport.data(), 40000);
        wire::store_be16(transport.data() + 2, 80);
        wire::store_be32(transport.data() + 4, 0x01020304);
        Bytes packet = ip_frame(source, destination, protocol, transport);
        packet.erase(packet.begin(), packet.begin() + 14);
        packet.resize(length);
        return packet;
    }
    Bytes error_frame(const Address& to, std::uint8_t type, std::uint8_t code, std::uint32_t rest,
                      std::span<const std::byte> embedded) const {
        const Address from = to.is_v4() ? router4 : router6;
        Bytes message(wire::kIcmpHeaderLength + embedded.size());
        wire::emit(wire::IcmpHeader{type, code, rest}, embedded, from, to, message);
        return ip_frame(from, to, to.is_v4() ? wire::IpProtocol::kIcmp : wire::IpProtocol::kIcmpv6, message);
    }
    std::expected<IcmpError, Drop> read(const Bytes& frame) {
        const auto packet = received(frame);
        const auto accepted = input.accept(eth0, packet, false);
        if (!accepted) return std::unexpected(accepted.error());
        return read_icmp_error(*accepted, output.local_addresses());
    }
    Drop refusal(const Bytes& frame) {
        const auto error = read(frame);
        return error ? Drop::kNone : error.error();
    }
};

TEST_F(IcmpTest, NamesTheFlowOfAnIpv4Error) {
    const auto error = read(error_frame(our4, 3, 1, 0, ours(our4, peer4, wire::IpProtocol::kTcp)));
    ASSERT_TRUE(error);
    EXPECT_EQ(error->protocol, wire::IpProtocol::kTcp);
    EXPECT_EQ(error->local, (Endpoint{our4, 40000}));
    EXPECT_EQ(error->remote, (Endpoint{peer4, 80}));
    EXPECT_EQ(error->sequence, 0x01020304u);
    EXPECT_EQ(error->error, EHOSTUNREACH);
    EXPECT_FALSE(error->hard);
    EXPECT_EQ(error->next_hop_mtu, 0u);
}

TEST_F(IcmpTest, NamesTheFlowOfAnIpv6Error) {
    const auto error = read(error_frame(our6, 1, 4, 0, ours(our6, peer6, wire::IpProtocol::kUdp, 48)));
    ASSERT_TRUE(error);
    EXPECT_EQ(error->protocol, wire::IpProtocol::kUdp);
    EXPECT_EQ(error->local, (Endpoint{our6, 40000}));
    EXPECT_EQ(error->remote, (Endpoint{peer6, 80}));
    EXPECT_EQ(error->error, ECONNREFUSED);
    EXPECT_TRUE(error->hard);
}

TEST_F(IcmpTest, TooBigBringsTheMtu) {
    const auto v4 = read(error_frame(our4, 3, 4, 1400, ours(our4, peer4, wire::IpProtocol::kTcp)));
    ASSERT_TRUE(v4);
    EXPECT_EQ(v4->next_hop_mtu, 1400u);
    EXPECT_EQ(v4->error, EMSGSIZE);
    const auto v6 = read(error_frame(our6, 2, 0, 1300, ours(our6, peer6, wire::IpProtocol::kTcp, 48)));
    ASSERT_TRUE(v6);
    EXPECT_EQ(v6->next_hop_mtu, 1300u);
}

TEST_F(IcmpTest, AnAbsurdlySmallMtuIsRaised) {  // [RFC8201 4] never below the least link MTU
    const auto v4 = read(error_frame(our4, 3, 4, 0, ours(our4, peer4, wire::IpProtocol::kTcp)));
    ASSERT_TRUE(v4);
    EXPECT_EQ(v4->next_hop_mtu, 552u);
    const auto v6 = read(error_frame(our6, 2, 0, 68, ours(our6, peer6, wire::IpProtocol::kTcp, 48)));
    ASSERT_TRUE(v6);
    EXPECT_EQ(v6->next_hop_mtu, 1280u);
}

TEST_F(IcmpTest, EachRefusalHasItsReason) {
    const auto tcp = ours(our4, peer4, wire::IpProtocol::kTcp);
    Bytes corrupt = error_frame(our4, 3, 1, 0, tcp);
    corrupt.back() ^= std::byte{1};
    Bytes tiny = ip_frame(router4, our4, wire::IpProtocol::kIcmp, pattern(7));
    const struct {
        const char* name;
        Bytes frame;
        Drop expected;
    } cases[] = {
        {"shorter than a header", tiny, Drop::kIcmpTruncated},
        {"checksum", corrupt, Drop::kIcmpChecksum},
        {"echo request", error_frame(our4, 8, 0, 0, tcp), Drop::kIcmpIgnored},
        {"redirect", error_frame(our4, 5, 0, 0, tcp), Drop::kIcmpIgnored},
        {"source quench", error_frame(our4, 4, 0, 0, tcp), Drop::kIcmpIgnored},  // [RFC9293 3.9.2.2 MUST-55] [RFC6633]
        {"unknown code", error_frame(our4, 3, 16, 0, tcp), Drop::kIcmpIgnored},
        {"v6 echo request", error_frame(our6, 128, 0, 0, pattern(8)), Drop::kIcmpIgnored},
        {"v6 neighbour solicitation", error_frame(our6, 135, 0, 0, pattern(24)), Drop::kIcmpIgnored},
        {"embedded too short", error_frame(our4, 3, 1, 0, ours(our4, peer4, wire::IpProtocol::kTcp, 27)),
         Drop::kIcmpTruncated},
        {"nothing embedded", error_frame(our4, 3, 1, 0, {}), Drop::kIcmpTruncated},
        {"not sent by us", error_frame(our4, 3, 1, 0, ours(peer4, our4, wire::IpProtocol::kTcp)),
         Drop::kIcmpUnmatched},  // [RFC5927 4]
        {"about an ICMP of ours", error_frame(our4, 3, 1, 0, ours(our4, peer4, wire::IpProtocol::kIcmp)),
         Drop::kIcmpUnmatched},
        {"ICMPv6 in IPv4", ip_frame(router4, our4, wire::IpProtocol::kIcmpv6, pattern(40)), Drop::kIpProtocolUnknown},
    };
    for (const auto& c : cases)
        EXPECT_EQ(refusal(c.frame), c.expected) << c.name << ": " << drop_name(refusal(c.frame));
}

TEST(IcmpMeaning, IsWhatLinuxTellsAnApplication) {  // [RFC1122 3.2.2.1 act]
    const struct {
        Family family;
        std::uint8_t type, code;
        int error;
        bool hard;
    } cases[] = {
        {Family::kIpv4, 3, 0, ENETUNREACH, false},  {Family::kIpv4, 3, 1, EHOSTUNREACH, false},
        {Family::kIpv4, 3, 2, ENOPROTOOPT, true},   {Family::kIpv4, 3, 3, ECONNREFUSED, true},
        {Family::kIpv4, 3, 4, EMSGSIZE, false},     {Family::kIpv4, 3, 7, EHOSTDOWN, true},
        {Family::kIpv4, 3, 9, ENETUNREACH, true},   {Family::kIpv4, 3, 10, EHOSTUNREACH, true},
        {Family::kIpv4, 3, 13, EHOSTUNREACH, true}, {Family::kIpv4, 11, 0, EHOSTUNREACH, false},
        {Family::kIpv4, 12, 0, EPROTO, true},       {Family::kIpv4, 0, 0, 0, false},
        {Family::kIpv6, 1, 0, ENETUNREACH, false},  {Family::kIpv6, 1, 1, EACCES, true},
        {Family::kIpv6, 1, 3, EHOSTUNREACH, false}, {Family::kIpv6, 1, 4, ECONNREFUSED, true},
        {Family::kIpv6, 2, 0, EMSGSIZE, false},     {Family::kIpv6, 3, 0, EHOSTUNREACH, false},
        {Family::kIpv6, 4, 1, EPROTO, true},        {Family::kIpv6, 100, 0, 0, false},
    };
    for (const auto& c : cases) {
        const IcmpMeaning meaning = meaning_of(c.family, c.type, c.code);
        EXPECT_EQ(meaning.error, c.error) << int{c.type} << "/" << int{c.code};
        EXPECT_EQ(meaning.hard, c.hard) << int{c.type} << "/" << int{c.code};
    }
}

TEST_F(IcmpTest, AnUnresolvedNeighbourSpeaksAsARouterWould) {
    const auto error = unresolved_error(ours(our6, peer6, wire::IpProtocol::kTcp, 100));
    ASSERT_TRUE(error);
    EXPECT_EQ(error->local, (Endpoint{our6, 40000}));
    EXPECT_EQ(error->error, EHOSTUNREACH);
    EXPECT_EQ(unresolved_error({}).error(), Drop::kIcmpTruncated);
}

}  // namespace
}  // namespace culvert::stack
