#include "daemon/stack/raw.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "daemon/stack/ip_input.h"
#include "daemon/wire/icmp.h"
#include "tests/unit/stack/ip_world.h"

namespace culvert::stack::raw {
namespace {

using testing::IsEmpty;

class Inbox final : public SocketOwner {
public:
    bool on_packet(Socket&, const PacketInfo& info, Payload payload, std::uint32_t length) override {
        if (full) return false;
        Bytes bytes;
        for (const auto piece : payload) bytes.insert(bytes.end(), piece.begin(), piece.end());
        EXPECT_EQ(bytes.size(), length);
        packets.push_back(std::move(bytes));
        last = info;
        return true;
    }
    std::vector<Bytes> packets;
    PacketInfo last;
    bool full = false;
};

class RawTest : public testing::TestWithParam<bool>, public IpWorld {
protected:
    RawTest() {
        know(peer4, kPeerMac);
        know(peer6, kPeerMac);
    }
    bool v4() const { return GetParam(); }
    Family family() const { return v4() ? Family::kIpv4 : Family::kIpv6; }
    Address ours() const { return v4() ? our4 : our6; }
    Address peer() const { return v4() ? peer4 : peer6; }
    wire::IpProtocol icmp() const { return v4() ? wire::IpProtocol::kIcmp : wire::IpProtocol::kIcmpv6; }
    std::uint8_t number(wire::IpProtocol protocol) const { return static_cast<std::uint8_t>(protocol); }
    std::uint8_t request() const { return v4() ? wire::icmp_v4::kEchoRequest : wire::icmp_v6::kEchoRequest; }
    std::uint8_t reply() const { return v4() ? wire::icmp_v4::kEchoReply : wire::icmp_v6::kEchoReply; }
    std::size_t ip_header() const { return v4() ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength; }

    Socket& open(Kind kind, std::uint8_t protocol, Inbox& inbox) { return **raw.open(kind, family(), protocol, inbox); }
    Bytes echo(std::uint8_t type, std::uint16_t identifier, const Address& from, const Address& to) const {
        Bytes message(wire::kIcmpHeaderLength + 5);
        wire::emit(wire::IcmpHeader{.type = type, .rest = std::uint32_t{identifier} << 16 | 1}, pattern(5), from, to, message);
        return message;
    }
    /// As the stack's way in does.
    bool arrive(const Bytes& frame, bool is_reply = false) {
        const auto packet = received(frame);
        const auto accepted = ip_input.accept(eth0, packet, false);
        EXPECT_TRUE(accepted) << drop_name(accepted.error());
        if (raw.wants(accepted->protocol)) raw.input(*accepted, now);
        return is_reply && raw.echo_reply(*accepted, now);
    }
    int send(Socket& socket, const Bytes& message, SendOptions options = {}) {
        const std::span<const std::byte> piece(message);
        const auto sent = raw.send(socket, peer(), {&piece, 1}, static_cast<std::uint32_t>(message.size()), options, now);
        return sent ? 0 : sent.error().code;
    }
    Bytes transport(const Bytes& frame) const {
        return {frame.begin() + static_cast<std::ptrdiff_t>(wire::kEthernetHeaderLength + ip_header()), frame.end()};
    }

    Rng rng{5};
    Raw raw{output, counters, rng};
    IpInput ip_input{output.local_addresses()};
};

INSTANTIATE_TEST_SUITE_P(Families, RawTest, testing::Bool(),
                         [](const auto& each) { return each.param ? "IPv4" : "IPv6"; });

TEST_P(RawTest, EverySocketOfTheProtocolGetsACopyWithItsHeaderOverIpv4) {
    Inbox one, two, other, elsewhere;
    open(Kind::kRaw, 89, one);
    Socket& second = open(Kind::kRaw, 89, two);
    open(Kind::kRaw, 47, other);
    Socket& bound = open(Kind::kRaw, 89, elsewhere);
    const Address stranger = v4() ? router4 : router6;
    raw.connect(bound, &stranger);
    const Bytes frame = ip_frame(peer(), ours(), static_cast<wire::IpProtocol>(89), pattern(40));
    arrive(frame);
    ASSERT_EQ(one.packets.size(), 1u);
    const auto from = frame.begin() + static_cast<std::ptrdiff_t>(wire::kEthernetHeaderLength + (v4() ? 0 : ip_header()));
    EXPECT_EQ(one.packets[0], Bytes(from, frame.end()));
    EXPECT_EQ(one.last.remote, peer());
    EXPECT_EQ(two.packets.size(), 1u);
    EXPECT_THAT(other.packets, IsEmpty());
    EXPECT_THAT(elsewhere.packets, IsEmpty()) << "connected to another";
    two.full = true;
    arrive(frame);
    EXPECT_EQ(counters.dropped(Drop::kRawQueueFull), 1u);
    raw.close(second);
    arrive(frame);
    EXPECT_EQ(one.packets.size(), 3u);
    EXPECT_TRUE(raw.wants(89));
}

TEST_P(RawTest, NobodyIsAskedForAProtocolThatNobodyWants) {
    Inbox inbox;
    Socket& socket = open(Kind::kRaw, 89, inbox);
    EXPECT_TRUE(raw.wants(89));
    raw.close(socket);
    EXPECT_FALSE(raw.wants(89));
    open(Kind::kRaw, Raw::kAnyProtocol, inbox);
    EXPECT_FALSE(raw.wants(255)) << "IPPROTO_RAW only sends";
    EXPECT_EQ(raw.open(Kind::kRaw, family(), 0, inbox).error().code, EPROTONOSUPPORT);
}

TEST_P(RawTest, BlockedTypesAreNotHeard) {
    Inbox inbox;
    Socket& socket = open(Kind::kRaw, number(icmp()), inbox);
    SocketOptions options;
    options.blocked_types[reply() / 32] |= 1u << (reply() % 32);
    raw.set_options(socket, options);
    arrive(ip_frame(peer(), ours(), icmp(), echo(reply(), 7, peer(), ours())));
    EXPECT_THAT(inbox.packets, IsEmpty());
    arrive(ip_frame(peer(), ours(), icmp(), echo(request(), 7, peer(), ours())));
    EXPECT_EQ(inbox.packets.size(), 1u);
}

TEST_P(RawTest, APingSocketHearsTheRepliesWithItsIdentifier) {
    Inbox one, two;
    Socket& first = open(Kind::kPing, 0, one);
    Socket& second = open(Kind::kPing, 0, two);
    ASSERT_TRUE(raw.bind(first, Address::any(family()), 77));
    EXPECT_EQ(raw.bind(second, Address::any(family()), 77).error().code, EADDRINUSE);
    const Bytes theirs = echo(request(), 1234, ours(), peer());  // the program's identifier does not count
    ASSERT_EQ(send(first, theirs), 0);
    ASSERT_EQ(send(second, theirs), 0) << "bound by its first send";
    EXPECT_NE(second.identifier(), 0);
    EXPECT_NE(second.identifier(), 77);
    const auto frames = take_frames(tx);
    ASSERT_EQ(frames.size(), 2u);
    EXPECT_EQ(transport(frames[0]), echo(request(), 77, ours(), peer())) << "identifier and checksum are the socket's";
    EXPECT_TRUE(arrive(ip_frame(peer(), ours(), icmp(), echo(reply(), 77, peer(), ours())), true));
    ASSERT_EQ(one.packets.size(), 1u);
    EXPECT_EQ(one.packets[0], echo(reply(), 77, peer(), ours())) << "without the IP header";
    EXPECT_THAT(two.packets, IsEmpty());
    EXPECT_FALSE(arrive(ip_frame(peer(), ours(), icmp(), echo(reply(), 78, peer(), ours())), true)) << "nobody's";
    EXPECT_EQ(send(first, echo(reply(), 77, ours(), peer())), EINVAL) << "requests only";
    EXPECT_EQ(send(first, pattern(7)), EINVAL);
}

TEST_P(RawTest, SendsItsProtocolWholeOrInFragments) {
    Inbox inbox;
    Socket& socket = open(Kind::kRaw, 89, inbox);
    ASSERT_EQ(send(socket, pattern(100), {.ttl = 3, .tos = 0x10}), 0);
    auto frames = take_frames(tx);
    ASSERT_EQ(frames.size(), 1u);
    EXPECT_EQ(frames[0].size(), 14 + ip_header() + 100);
    EXPECT_EQ(transport(frames[0]), pattern(100));
    ASSERT_EQ(send(socket, {}), 0);
    EXPECT_EQ(transport(take_frames(tx).at(0)), Bytes());
    ASSERT_EQ(send(socket, pattern(4000)), 0);
    frames = take_frames(tx);
    ASSERT_EQ(frames.size(), 3u);
    Bytes together;
    for (const Bytes& frame : frames) {
        const Bytes part = transport(frame);
        together.insert(together.end(), part.begin() + (v4() ? 0 : 8), part.end());
    }
    EXPECT_EQ(together, pattern(4000));
    EXPECT_EQ(send(socket, pattern(10), {.source = peer()}), EADDRNOTAVAIL);
    EXPECT_EQ(send(socket, Bytes(65536)), EMSGSIZE);
    EXPECT_EQ(counters.raw_out, 3u);
    EXPECT_EQ(pool.available(), pool.count());
}

TEST_P(RawTest, TheChecksumOfIpv6IsPutWhereTheSocketSays) {  // [RFC3542 3.1]
    if (v4()) GTEST_SKIP() << "IPV6_CHECKSUM";
    Inbox inbox;
    Socket& icmp6 = open(Kind::kRaw, number(icmp()), inbox);
    Bytes message = echo(request(), 9, ours(), peer());
    wire::store_be16(message.data() + 2, 0);
    ASSERT_EQ(send(icmp6, message), 0);
    EXPECT_EQ(transport(take_frames(tx).at(0)), echo(request(), 9, ours(), peer()));
    Socket& ospf = open(Kind::kRaw, 89, inbox);
    SocketOptions options;
    options.checksum_offset = 12;
    raw.set_options(ospf, options);
    EXPECT_EQ(send(ospf, pattern(13)), EINVAL) << "no room for it";
    ASSERT_EQ(send(ospf, pattern(24)), 0);
    const Bytes sent = transport(take_frames(tx).at(0));
    wire::PartialSum sum = wire::sum_bytes(sent);
    sum += wire::pseudo_header_sum(ours(), peer(), static_cast<wire::IpProtocol>(89), 24);
    EXPECT_EQ(wire::fold(sum), 0xffff);
}

TEST_P(RawTest, AHeaderOfItsOwnIsKeptAsFarAsItMay) {  // raw(7)
    if (!v4()) GTEST_SKIP() << "IP_HDRINCL";
    Inbox inbox;
    Socket& socket = open(Kind::kRaw, Raw::kAnyProtocol, inbox);
    const auto packet = [&](std::size_t length) {
        Bytes bytes(20 + length);
        wire::emit(wire::Ipv4Header{.source = ip("0.0.0.0"), .destination = peer4,
                                    .protocol = static_cast<wire::IpProtocol>(47), .hop_limit = 9, .traffic_class = 4},
                   length, bytes);
        wire::store_be16(bytes.data() + 2, 1);   // what it says of its length and checksum does not count
        wire::store_be16(bytes.data() + 10, 1);
        return bytes;
    };
    ASSERT_EQ(send(socket, packet(64)), 0);
    const Bytes frame = take_frames(tx).at(0);
    const auto view = wire::Ipv4View::parse(std::span(frame).subspan(14));
    ASSERT_TRUE(view) << "length and checksum are right";
    EXPECT_EQ(view->source(), our4);
    EXPECT_EQ(view->hop_limit(), 9);
    EXPECT_EQ(view->traffic_class(), 4);
    EXPECT_EQ(static_cast<int>(view->protocol()), 47);
    EXPECT_EQ(send(socket, packet(1481)), EMSGSIZE) << "never cut";
    EXPECT_EQ(send(socket, Bytes(19)), EINVAL);
    Bytes options = packet(64);
    options[0] = std::byte{0x46};
    EXPECT_EQ(send(socket, options), EOPNOTSUPP);
    Bytes foreign = packet(64);
    std::ranges::copy(std::as_bytes(peer4.wire_bytes()), foreign.begin() + 12);
    EXPECT_EQ(send(socket, foreign), EADDRNOTAVAIL) << "in nobody else's name";
}

TEST_P(RawTest, AWrongChecksumIsNotHeardWhereWeCheckIt) {  // [RFC3542 3.1]
    Inbox icmp_inbox, ospf_inbox;
    open(Kind::kRaw, number(icmp()), icmp_inbox);
    Socket& ospf = open(Kind::kRaw, 89, ospf_inbox);
    SocketOptions options;
    options.checksum_offset = 12;
    raw.set_options(ospf, options);
    Bytes message = echo(reply(), 9, peer(), ours());
    message.back() ^= std::byte{1};
    arrive(ip_frame(peer(), ours(), icmp(), message));
    arrive(ip_frame(peer(), ours(), static_cast<wire::IpProtocol>(89), pattern(24)));
    // Over IPv4 there is no such option, and a raw socket sees an ICMP message as it is (raw(7)).
    EXPECT_EQ(icmp_inbox.packets.size(), v4() ? 1u : 0u);
    EXPECT_EQ(ospf_inbox.packets.size(), v4() ? 1u : 0u);
    EXPECT_EQ(counters.dropped(Drop::kRawChecksum), v4() ? 0u : 2u);
}

TEST_P(RawTest, PacketsOfAnyLengthAndInPiecesAreCopiedWhole) {
    Inbox inbox;
    Socket& socket = open(Kind::kRaw, number(icmp()), inbox);
    SocketOptions options;
    options.blocked_types.fill(0xffffffff);
    raw.set_options(socket, options);
    if (v4()) {  // an ICMP message of no bytes has no type to be filtered by; nor has it a checksum, so not over IPv6
        arrive(ip_frame(peer(), ours(), icmp(), {}));
        EXPECT_EQ(inbox.packets.size(), 1u);
    }
    arrive(ip_frame(peer(), ours(), icmp(), pattern(1)));
    EXPECT_EQ(inbox.packets.size(), v4() ? 1u : 0u) << "filtered";
    Inbox pieces;
    open(Kind::kRaw, 89, pieces);
    const Bytes frame = ip_frame(peer(), ours(), static_cast<wire::IpProtocol>(89), pattern(1000));
    const std::array<std::span<const std::byte>, 2> rest{std::span(frame).subspan(100, 300), std::span(frame).subspan(400)};
    const RxPacket packet{.head = std::span(frame).first(100), .rest = rest, .length = static_cast<std::uint32_t>(frame.size())};
    const auto accepted = ip_input.accept(eth0, packet, false);
    ASSERT_TRUE(accepted);
    raw.input(*accepted, now);
    ASSERT_EQ(pieces.packets.size(), 1u);
    EXPECT_EQ(pieces.packets[0].size(), 1000 + (v4() ? ip_header() : 0));
    EXPECT_EQ(Bytes(pieces.packets[0].end() - 1000, pieces.packets[0].end()), pattern(1000));
    // An echo reply that is cut off behind its type is nobody's.
    Inbox ping;
    ASSERT_TRUE(raw.bind(open(Kind::kPing, 0, ping), Address::any(family()), 7));
    EXPECT_FALSE(arrive(ip_frame(peer(), ours(), icmp(), pattern(7)), true));
    EXPECT_THAT(ping.packets, IsEmpty());
}

TEST_P(RawTest, BroadcastsAreForThoseWhoMeanThem) {  // [RFC1122 3.2.1.3]
    if (!v4()) GTEST_SKIP() << "IPv6 has none";
    Inbox inbox;
    Socket& socket = open(Kind::kRaw, 89, inbox);
    const Bytes message = pattern(20);
    const std::span<const std::byte> piece(message);
    const auto to_all = [&](SendOptions options) {
        const auto sent = raw.send(socket, ip("10.0.0.255"), {&piece, 1}, 20, options, now);
        return sent ? 0 : sent.error().code;
    };
    EXPECT_EQ(to_all({}), EACCES);
    EXPECT_EQ(to_all({.broadcast = true}), 0);
    EXPECT_EQ(take_frames(tx).size(), 1u);
}

TEST_P(RawTest, SocketsAreBounded) {
    Inbox inbox;
    std::vector<Socket*> all;
    for (std::uint32_t i = 0; i < Raw::kMaxSockets; ++i) all.push_back(&open(i % 2 != 0 ? Kind::kRaw : Kind::kPing, 89, inbox));
    EXPECT_EQ(raw.open(Kind::kRaw, family(), 89, inbox).error().code, ENOBUFS);
    for (Socket* socket : all)
        if (socket->kind() == Kind::kPing) {
            ASSERT_TRUE(raw.bind(*socket, Address::any(family()), 0));
        }
    for (Socket* socket : all) raw.close(*socket);
    EXPECT_EQ(raw.sockets(), 0u);
    EXPECT_FALSE(raw.wants(89));
}

}  // namespace
}  // namespace culvert::stack::raw
