#include "daemon/wire/describe.h"

#include <gtest/gtest.h>

#include "daemon/wire/arp.h"
#include "daemon/wire/ethernet.h"
#include "daemon/wire/icmp.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"
#include "daemon/wire/tcp.h"
#include "daemon/wire/udp.h"
#include "tests/unit/wire/bytes_of.h"

namespace culvert::wire {
namespace {

const Address kA = Address::v4(10, 0, 0, 1);
const Address kB = Address::v4(10, 0, 0, 2);

Bytes ethernet(EtherType type, const Bytes& payload) {
    Bytes header(kEthernetHeaderLength);
    emit(EthernetHeader{MacAddress{{2, 0, 0, 0, 0, 2}}, MacAddress{{2, 0, 0, 0, 0, 1}}, type}, header);
    return header + payload;
}

Bytes ipv4(IpProtocol protocol, const Bytes& payload) {
    Bytes header(kIpv4HeaderLength);
    emit(Ipv4Header{.source = kA, .destination = kB, .protocol = protocol}, payload.size(), header);
    return ethernet(EtherType::kIpv4, header + payload);
}

Bytes tcp(const TcpHeader& header, const TcpOptions& options, std::size_t payload) {
    Bytes segment(tcp_header_length(options) + payload);
    emit(header, options, segment);
    return segment;
}

TEST(Describe, Syn) {
    TcpOptions options;
    options.mss = 1460;
    options.sack_permitted = true;
    options.timestamps = TcpTimestamps{7, 0};
    options.window_scale = 7;
    const TcpHeader header{.source = 40000,
                           .destination = 80,
                           .sequence = 100,
                           .acknowledgment = 0,
                           .flags = kSyn,
                           .window = 65535,
                           .urgent = 0};
    EXPECT_EQ(describe(ipv4(IpProtocol::kTcp, tcp(header, options, 0))),
              "10.0.0.1:40000 > 10.0.0.2:80 tcp SYN seq 100 win 65535 <mss 1460, sack ok, ts 7/0, wscale 7> len 0");
}

TEST(Describe, DataOverIpv6) {
    TcpOptions options;
    options.sack_count = 1;
    options.sack_blocks[0] = {5, 9};
    const TcpHeader header{.source = 80,
                           .destination = 40000,
                           .sequence = 1,
                           .acknowledgment = 2,
                           .flags = kPsh | kAck,
                           .window = 3,
                           .urgent = 0};
    const Bytes segment = tcp(header, options, 11);
    Bytes ip(kIpv6HeaderLength);
    emit(Ipv6Header{.source = Address::parse("fe80::1").value(), .destination = Address::parse("fe80::2").value()},
         segment.size(), ip);
    EXPECT_EQ(describe(ethernet(EtherType::kIpv6, ip + segment)),
              "[fe80::1]:80 > [fe80::2]:40000 tcp PSH|ACK seq 1 ack 2 win 3 <sack 5-9> len 11");
}

TEST(Describe, Udp) {
    Bytes datagram(kUdpHeaderLength + 5);
    emit(UdpHeader{1, 53}, 5, datagram);
    EXPECT_EQ(describe(ipv4(IpProtocol::kUdp, datagram)), "10.0.0.1:1 > 10.0.0.2:53 udp len 5");
}

TEST(Describe, IcmpError) {
    Bytes message(kIcmpHeaderLength + 28);
    const Bytes embedded = from_hex("45 00 05dc 0000 4000 3f 06 dead 0a000002 0a000001 9c40 0050 00000064");
    emit(IcmpHeader{3, 4, 1400}, embedded, kA, kB, message);
    EXPECT_EQ(describe(ipv4(IpProtocol::kIcmp, message)),
              "10.0.0.1 > 10.0.0.2 icmp type 3 code 4 mtu 1400 about 10.0.0.2:40000 > 10.0.0.1:80 protocol 6");
}

TEST(Describe, Arp) {
    Bytes packet(kArpLength);
    emit(ArpHeader{ArpOperation::kRequest, MacAddress{{2, 0, 0, 0, 0, 1}}, kA, {}, kB}, packet);
    EXPECT_EQ(describe(ethernet(EtherType::kArp, packet)), "arp who has 10.0.0.2 tell 10.0.0.1");
    emit(ArpHeader{ArpOperation::kReply, MacAddress{{2, 0, 0, 0, 0, 1}}, kA, {}, kB}, packet);
    EXPECT_EQ(describe(ethernet(EtherType::kArp, packet)), "arp 10.0.0.1 is at 02:00:00:00:00:01");
}

TEST(Describe, NamesWhatItCannotRead) {
    EXPECT_EQ(describe(Bytes(3)), "ethernet (ethernet_truncated)");
    EXPECT_EQ(describe(ethernet(EtherType::kIpv4, Bytes(3))), "ipv4 (ipv4_truncated)");
    EXPECT_EQ(describe(ipv4(IpProtocol::kTcp, Bytes(3))), "10.0.0.1 > 10.0.0.2 tcp (tcp_truncated)");
    EXPECT_EQ(describe(ethernet(EtherType::kVlan, Bytes(3))), "02:00:00:00:00:01 > 02:00:00:00:00:02 type 33024");
    EXPECT_EQ(describe(ipv4(static_cast<IpProtocol>(50), Bytes(3))), "10.0.0.1 > 10.0.0.2 protocol 50 len 3");
}

TEST(Describe, TakesAnythingAtAnyLength) {
    Rng rng(1);
    TcpOptions options;
    options.timestamps.emplace();
    const Bytes frame = ipv4(IpProtocol::kTcp, tcp(TcpHeader{}, options, 4));
    for (std::size_t length = 0; length <= frame.size(); ++length)
        EXPECT_FALSE(describe(truncated(frame, length)).empty());
    for (int round = 0; round < 5000; ++round) {
        Bytes bytes = random_bytes(rng, rng.below(120));
        if (bytes.size() > 14) {
            store_be16(bytes, 12, rng.happens(0.5) ? 0x86dd : 0x0806);
            bytes[14] = std::byte{0x60};
        }
        EXPECT_FALSE(describe(bytes).empty());
    }
}

}  // namespace
}  // namespace culvert::wire
