#include "daemon/stack/udp.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "daemon/stack/ip_input.h"
#include "tests/unit/stack/ip_world.h"

namespace culvert::stack::udp {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

/// Keeps what it is given.
class Inbox final : public SocketOwner {
public:
    struct Item {
        DatagramInfo info;
        Bytes payload;
    };
    bool on_datagram(Socket&, const DatagramInfo& info, Payload payload, std::uint32_t length) override {
        if (full) return false;
        Item item{info, {}};
        for (const auto piece : payload) item.payload.insert(item.payload.end(), piece.begin(), piece.end());
        EXPECT_EQ(item.payload.size(), length);
        items.push_back(std::move(item));
        return true;
    }
    void on_error(Socket&, const DatagramError& error) override {
        errors.push_back(error.error);
        last_error = error;
        last_error.payload = {};
        error_payload.assign(error.payload.begin(), error.payload.end());
    }

    std::vector<Item> items;
    std::vector<int> errors;
    DatagramError last_error;
    Bytes error_payload;
    bool full = false;
};

class RecordingPorts final : public PortOwner {
public:
    void take_port(Protocol, const Address& address, Port port) override {
        EXPECT_TRUE(held.insert(Endpoint{address, port}.to_string()).second) << "taken twice";
    }
    void release_port(Protocol, const Address& address, Port port) override {
        EXPECT_EQ(held.erase(Endpoint{address, port}.to_string()), 1u) << "released twice";
    }
    std::set<std::string> held;
};

StackConfig small_config() {
    StackConfig config;
    config.max_udp_sockets = 16;
    config.secret[0] = 11;
    config.secret[1] = 22;
    return config;
}

class UdpTest : public testing::Test, public IpWorld {
protected:
    RecordingPorts ports;
    Rng rng{5};
    Udp udp{small_config(), output, ports, counters, rng};
    IpInput ip_input{output.local_addresses()};

    Socket& bind(const Address& address, Port port, Inbox& inbox, bool dual = false) {
        return **udp.bind({address, port}, dual, inbox);
    }
    void deliver(const Bytes& frame, ChecksumState state = ChecksumState::kUnverified) {
        const auto packet = received(frame, state);
        const auto accepted = ip_input.accept(eth0, packet, false);
        ASSERT_TRUE(accepted) << drop_name(accepted.error());
        udp.input(*accepted, now);
    }
    void deliver(const Endpoint& from, const Endpoint& to) { deliver(udp_frame(from, to, pattern(3))); }
    Result<void> send(Socket& socket, const Endpoint& to, std::span<const std::byte> payload,
                      const Address& local = {}) {
        const std::span<const std::byte> halves[] = {payload.first(payload.size() / 3),
                                                     payload.subspan(payload.size() / 3)};
        return udp.send(socket, to, halves, static_cast<std::uint32_t>(payload.size()), {.source = local}, now);
    }
    Result<void> send(Socket& socket, const Endpoint& to, std::span<const std::byte> payload, SendOptions options) {
        return udp.send(socket, to, {&payload, 1}, static_cast<std::uint32_t>(payload.size()), options, now);
    }
    int error_of(const Result<void>& result) { return result ? 0 : result.error().code; }
};

// --- input -----------------------------------------------------------------------------------------------------------

TEST_F(UdpTest, ADatagramArrivesWithWhereItCameFrom) {  // [RFC1122 4.1.3.5 local-address] [RFC1122 3.4 interface]
    Inbox inbox;
    bind(our4, 53, inbox);
    Bytes frame = udp_frame({peer4, 4000}, {our4, 53}, pattern(200));
    frame.resize(frame.size() + 3);  // padding of the link
    deliver(frame);
    ASSERT_EQ(inbox.items.size(), 1u);
    EXPECT_EQ(inbox.items[0].payload, pattern(200));
    EXPECT_EQ(inbox.items[0].info.remote, (Endpoint{peer4, 4000}));
    EXPECT_EQ(inbox.items[0].info.local, our4);
    EXPECT_EQ(inbox.items[0].info.interface, 7u);
    EXPECT_EQ(inbox.items[0].info.ttl, 64);
    EXPECT_EQ(counters.udp_in, 1u);
}

TEST_F(UdpTest, APayloadInSeveralPiecesIsWhole) {
    Inbox inbox;
    bind(our4, 53, inbox);
    const Bytes frame = udp_frame({peer4, 4000}, {our4, 53}, pattern(5001));
    const std::span<const std::byte> all(frame);
    const std::span<const std::byte> rest[] = {all.subspan(61, 2000), all.subspan(2061)};
    const RxPacket packet{.head = all.first(61), .rest = rest, .length = static_cast<std::uint32_t>(frame.size())};
    udp.input(ip_input.accept(eth0, packet, false).value(), now);
    ASSERT_EQ(inbox.items.size(), 1u);
    EXPECT_EQ(inbox.items[0].payload, pattern(5001));
}

TEST_F(UdpTest, AnEmptyDatagramIsADatagram) {
    Inbox inbox;
    bind(our4, 53, inbox);
    deliver(udp_frame({peer4, 4000}, {our4, 53}, {}));
    ASSERT_EQ(inbox.items.size(), 1u);
    EXPECT_THAT(inbox.items[0].payload, IsEmpty());
}

TEST_F(UdpTest, EachRefusalHasItsReason) {  // [RFC1122 4.1.3.4 checksum, discard]
    Inbox inbox;
    bind(our4, 53, inbox);
    bind(our6, 53, inbox);
    const Endpoint from4{peer4, 4000}, to4{our4, 53}, from6{peer6, 4000}, to6{our6, 53};

    Bytes frame = udp_frame(from4, to4, pattern(10));
    frame.back() ^= std::byte{1};
    deliver(frame);
    EXPECT_EQ(counters.dropped(Drop::kUdpChecksum), 1u);

    frame = udp_frame(from4, to4, pattern(10));
    wire::store_be16(frame.data() + 34 + 4, 19);  // one more than there is
    deliver(frame);
    wire::store_be16(frame.data() + 34 + 4, 7);
    deliver(frame);
    EXPECT_EQ(counters.dropped(Drop::kUdpTruncated), 2u);

    deliver(from4, {our4, 54});
    EXPECT_EQ(counters.dropped(Drop::kUdpNoSocket), 1u);

    // [RFC8200 8.1] over IPv6 there is no "no checksum"
    frame = udp_frame(from6, to6, pattern(10));
    wire::store_be16(frame.data() + 54 + 6, 0);
    deliver(frame);
    EXPECT_EQ(counters.dropped(Drop::kUdpChecksum), 2u);
    EXPECT_THAT(inbox.items, IsEmpty());

    // [RFC768] over IPv4 there is
    frame = udp_frame(from4, to4, pattern(10));
    wire::store_be16(frame.data() + 34 + 6, 0);
    deliver(frame);
    EXPECT_EQ(inbox.items.size(), 1u);

    inbox.full = true;
    deliver(from4, to4);
    EXPECT_EQ(counters.dropped(Drop::kUdpQueueFull), 1u);
}

TEST_F(UdpTest, APartialChecksumIsGoodOnVirtualDevicesOnly) {
    Inbox inbox;
    bind(our4, 53, inbox);
    Bytes frame = udp_frame({peer4, 4000}, {our4, 53}, pattern(10));
    wire::store_be16(frame.data() + 34 + 6,
                     wire::fold(wire::pseudo_header_sum(peer4, our4, wire::IpProtocol::kUdp, 18)));
    deliver(frame, ChecksumState::kUnverified);
    EXPECT_EQ(counters.dropped(Drop::kUdpChecksum), 1u);
    deliver(frame, ChecksumState::kMaybePartial);
    EXPECT_EQ(inbox.items.size(), 1u);
}

// --- who gets it -----------------------------------------------------------------------------------------------------

TEST_F(UdpTest, ConnectedBeforeOwnAddressBeforeAnyAddressBeforeDual) {
    Inbox dual, any, own, connected;
    const Endpoint from{peer4, 4000}, to{our4, 53};
    bind(Address(), 53, dual, true);
    deliver(from, to);
    EXPECT_EQ(dual.items.size(), 1u);
    bind(ip("0.0.0.0"), 53, any);
    deliver(from, to);
    EXPECT_EQ(any.items.size(), 1u);
    bind(our4, 53, own);
    deliver(from, to);
    EXPECT_EQ(own.items.size(), 1u);
    Socket& c = bind(ip("0.0.0.0"), 53, connected);
    udp.connect(c, &from);
    deliver(from, to);
    EXPECT_EQ(connected.items.size(), 1u);
    deliver({peer4, 4001}, to);
    EXPECT_EQ(own.items.size(), 2u) << "another port of the peer is not connected";
    deliver({peer6, 4000}, {our6, 53});
    EXPECT_EQ(dual.items.size(), 2u) << "IPv6 has only the dual one";
    udp.connect(c, nullptr);
    deliver(from, to);
    EXPECT_EQ(own.items.size(), 3u) << "disconnected";
}

TEST_F(UdpTest, AnIpv6OnlySocketHearsNoIpv4) {
    Inbox inbox;
    bind(Address(), 53, inbox, false);
    deliver({peer4, 4000}, {our4, 53});
    EXPECT_EQ(counters.dropped(Drop::kUdpNoSocket), 1u);
    deliver({peer6, 4000}, {our6, 53});
    EXPECT_EQ(inbox.items.size(), 1u);
}

TEST_F(UdpTest, AConnectedSocketHearsNobodyElse) {
    Inbox inbox;
    Socket& socket = bind(our4, 4444, inbox);
    const Endpoint peer{peer4, 53};
    udp.connect(socket, &peer);
    deliver({peer4, 54}, {our4, 4444});
    deliver({router4, 53}, {our4, 4444});
    EXPECT_EQ(counters.dropped(Drop::kUdpNoSocket), 2u);
    deliver(peer, {our4, 4444});
    EXPECT_EQ(inbox.items.size(), 1u);
}

TEST_F(UdpTest, ConnectFixesTheLocalAddressUntilDisconnect) {  // [RFC1122 4.1.3.5 notified]
    Inbox inbox;
    Socket& socket = bind(ip("0.0.0.0"), 4444, inbox);
    const Endpoint peer{peer4, 53};
    udp.connect(socket, &peer);
    EXPECT_EQ(socket.local(), (Endpoint{our4, 4444}));
    EXPECT_EQ(socket.remote(), peer);
    udp.connect(socket, nullptr);
    EXPECT_EQ(socket.local(), (Endpoint{ip("0.0.0.0"), 4444}));
    EXPECT_EQ(socket.remote(), std::nullopt);
}

TEST_F(UdpTest, SocketsOnOneEndpointShareTheFlows) {
    std::vector<Inbox> inboxes(4);
    for (Inbox& inbox : inboxes) bind(our4, 53, inbox);
    for (int round = 0; round < 2; ++round)
        for (Port port = 1000; port < 1100; ++port) deliver({peer4, port}, {our4, 53});
    std::map<Port, std::set<const Inbox*>> served_by;
    for (const Inbox& inbox : inboxes) {
        EXPECT_GT(inbox.items.size(), 20u) << "of 200; the seed is fixed";
        for (const auto& item : inbox.items) served_by[item.info.remote.port].insert(&inbox);
    }
    EXPECT_EQ(served_by.size(), 100u);
    for (const auto& [port, who] : served_by) EXPECT_EQ(who.size(), 1u) << "a flow keeps its socket, port " << port;
}

// --- the life of sockets ---------------------------------------------------------------------------------------------

TEST_F(UdpTest, PortsAreTakenByTheFirstAndReleasedByTheLast) {
    Inbox inbox;
    Socket& a = bind(our4, 53, inbox);
    Socket& b = bind(our4, 53, inbox);
    Socket& any = bind(ip("0.0.0.0"), 53, inbox);
    Socket& both = bind(Address(), 53, inbox, true);
    EXPECT_THAT(ports.held, ElementsAre("0.0.0.0:53", "10.0.0.1:53", "[::]:53"));
    udp.close(a);
    EXPECT_EQ(ports.held.count("10.0.0.1:53"), 1u);
    udp.close(b);
    EXPECT_EQ(ports.held.count("10.0.0.1:53"), 0u);
    udp.close(any);
    EXPECT_EQ(ports.held.count("0.0.0.0:53"), 1u) << "the dual one still has it";
    udp.close(both);
    EXPECT_THAT(ports.held, IsEmpty());
    EXPECT_EQ(udp.sockets(), 0u);
}

TEST_F(UdpTest, SocketsAreBounded) {
    Inbox inbox;
    std::vector<Socket*> sockets;
    for (Port port = 1; port <= 16; ++port) sockets.push_back(&bind(our4, port, inbox));
    const auto refused = udp.bind({our4, 99}, false, inbox);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ENOBUFS);
    udp.close(*sockets.front());
    EXPECT_TRUE(udp.bind({our4, 99}, false, inbox));
    EXPECT_EQ(ports.held.size(), 16u);
}

TEST_F(UdpTest, AClosedConnectedSocketIsGone) {
    Inbox inbox;
    const Endpoint peer{peer4, 53};
    Socket& first = bind(our4, 4444, inbox);
    Socket& second = bind(our4, 4444, inbox);
    udp.connect(first, &peer);
    udp.connect(second, &peer);
    udp.close(first);
    deliver(peer, {our4, 4444});
    EXPECT_EQ(inbox.items.size(), 1u);
    udp.close(second);
    deliver(peer, {our4, 4444});
    EXPECT_EQ(counters.dropped(Drop::kUdpNoSocket), 1u);
}

// --- output ----------------------------------------------------------------------------------------------------------

TEST_F(UdpTest, SendsWhatAPeerAccepts) {  // [RFC1122 4.1.3.4 checksum, default]
    know(peer4, kPeerMac);
    know(peer6, kPeerMac);
    Inbox inbox;
    Socket& four = bind(ip("0.0.0.0"), 53, inbox);
    Socket& six = bind(our6, 53, inbox);
    ASSERT_TRUE(send(four, {peer4, 4000}, pattern(301)));
    ASSERT_TRUE(send(six, {peer6, 4000}, pattern(301)));
    const auto frames = take_frames(tx);
    ASSERT_EQ(frames.size(), 2u);
    for (int i = 0; i < 2; ++i) {
        const auto packet = received(frames[i]);
        const std::size_t offset = i == 0 ? 34 : 54;
        const auto view = wire::UdpView::parse(packet.head.subspan(offset)).value();
        EXPECT_EQ(view.source(), 53);
        EXPECT_EQ(view.destination(), 4000);
        EXPECT_EQ(Bytes(view.payload_in_head().begin(), view.payload_in_head().end()), pattern(301));
        EXPECT_TRUE(wire::verify_transport_checksum(packet, offset, view.length(), i == 0 ? our4 : our6,
                                                    i == 0 ? peer4 : peer6, wire::IpProtocol::kUdp));
        EXPECT_NE(view.checksum(), 0);
    }
    EXPECT_EQ(counters.udp_out, 2u);
}

// [RFC1122 3.3.4.2 choose, reply] [RFC1122 4.1.3.5 choose, wild]
TEST_F(UdpTest, AnyAddressSocketsSpeakWithTheRightOne) {
    eth0.addresses.push_back({ip("10.0.0.9"), 24});
    apply();
    know(peer4, kPeerMac);
    Inbox inbox;
    Socket& socket = bind(Address(), 53, inbox, true);
    ASSERT_TRUE(send(socket, {peer4, 4000}, pattern(5)));
    ASSERT_TRUE(send(socket, {peer4, 4000}, pattern(5), ip("10.0.0.9")));
    ASSERT_TRUE(send(socket, {peer4, 4000}, pattern(5), our4));
    std::vector<std::string> sources;
    for (const Bytes& frame : take_frames(tx))
        sources.push_back(wire::Ipv4View::parse(std::span(frame).subspan(14)).value().source().to_string());
    EXPECT_THAT(sources, ElementsAre("10.0.0.1", "10.0.0.9", "10.0.0.1"));
}

TEST_F(UdpTest, SaysWhyItCannotSend) {
    Inbox inbox;
    Socket& four = bind(our4, 53, inbox);
    Socket& six = bind(Address(), 53, inbox);
    EXPECT_EQ(error_of(send(four, {peer4, 1}, pattern(65508))), EMSGSIZE);
    EXPECT_EQ(error_of(send(six, {peer6, 1}, pattern(65528))), EMSGSIZE);
    EXPECT_EQ(error_of(send(four, {peer6, 1}, pattern(1))), ENETUNREACH) << "IPv4 socket, IPv6 peer";
    EXPECT_EQ(error_of(send(six, {peer4, 1}, pattern(1))), ENETUNREACH) << "not dual";
    // [RFC1122 3.2.1.3 own-source] [RFC1122 4.1.3.6 own-source]
    EXPECT_EQ(error_of(send(four, {peer4, 1}, pattern(1), ip("10.0.0.77"))), EADDRNOTAVAIL);
    // [RFC1122 3.3.6 source]
    for (const char* many : {"10.0.0.255", "255.255.255.255", "224.0.0.1"})
        EXPECT_EQ(error_of(send(four, {peer4, 1}, pattern(1), ip(many))), EADDRNOTAVAIL) << many;
    EXPECT_EQ(error_of(send(four, {ip("127.0.0.1"), 1}, pattern(1))), EHOSTUNREACH);
    EXPECT_EQ(error_of(send(four, {our4, 54}, pattern(1))), EHOSTUNREACH) << "nobody here: the kernel's port";
    routes.replace({});
    EXPECT_EQ(error_of(send(four, {peer4, 1}, pattern(1))), ENETUNREACH);
    std::vector<ChunkIndex> taken;
    routes.replace(default_routes());
    while (pool.available() > 0) taken.push_back(pool.allocate());
    EXPECT_EQ(error_of(send(four, {peer4, 1}, pattern(1))), ENOBUFS);
}

/// Puts the fragments of one datagram together, checking every header on the way.
Bytes reassemble(const std::vector<Bytes>& frames, std::uint32_t mtu) {
    Bytes message;
    std::set<std::uint32_t> identifications;
    for (std::size_t i = 0; i < frames.size(); ++i) {
        const auto bytes = std::span(frames[i]).subspan(wire::kEthernetHeaderLength);
        EXPECT_LE(bytes.size(), mtu);
        const bool last = i + 1 == frames.size();
        const auto add = [&](const auto& view) {
            EXPECT_TRUE(view.is_fragment());
            EXPECT_EQ(view.more_fragments(), !last);
            EXPECT_EQ(view.fragment_offset(), message.size());
            EXPECT_EQ(view.protocol(), wire::IpProtocol::kUdp);
            if (!last) {
                EXPECT_EQ(view.payload_length() % 8, 0u);
            }
            identifications.insert(view.identification());
            message.insert(message.end(), view.payload_in_head().begin(), view.payload_in_head().end());
        };
        if ((std::to_integer<unsigned>(bytes[0]) >> 4) == 4) {
            const auto view = wire::Ipv4View::parse(bytes).value();
            EXPECT_FALSE(view.dont_fragment());
            add(view);
        } else {
            add(wire::Ipv6View::parse(bytes).value());
        }
    }
    EXPECT_EQ(identifications.size(), 1u);
    return message;
}

TEST_F(UdpTest, LargeDatagramsAreCutAndFitTogetherAgain) {  // [RFC1122 3.3.3 fragment]
    know(peer4, kPeerMac);
    know(peer6, kPeerMac);
    Inbox inbox;
    Socket& socket = bind(Address(), 53, inbox, true);
    for (const std::uint32_t mtu : {1500u, 1280u, 9000u}) {
        eth0.mtu = mtu;
        apply();
        for (const bool v4 : {true, false}) {
            const std::size_t whole = mtu - (v4 ? 28 : 48);
            for (const std::size_t length : {whole + 1, whole * 2, std::size_t{v4 ? 65507u : 65527u}}) {
                SCOPED_TRACE(std::to_string(mtu) + (v4 ? " v4 " : " v6 ") + std::to_string(length));
                const Endpoint to{v4 ? peer4 : peer6, 4000};
                const Address from = v4 ? our4 : our6;
                ASSERT_TRUE(send(socket, to, pattern(length)));
                const auto frames = take_frames(tx);
                EXPECT_GT(frames.size(), 1u);
                const Bytes message = reassemble(frames, mtu);
                EXPECT_EQ(message, udp_message({from, 53}, to, pattern(length)));
            }
            ASSERT_TRUE(send(socket, {v4 ? peer4 : peer6, 4000}, pattern(whole)));
            EXPECT_EQ(take_frames(tx).size(), 1u) << "what fits is not cut";
        }
    }
    EXPECT_EQ(pool.available(), pool.count());
}

TEST_F(UdpTest, TwoDatagramsHaveTwoIdentifications) {  // [RFC6864 4.3]
    know(peer4, kPeerMac);
    Inbox inbox;
    Socket& socket = bind(our4, 53, inbox);
    ASSERT_TRUE(send(socket, {peer4, 1}, pattern(2000)));
    ASSERT_TRUE(send(socket, {peer4, 1}, pattern(2000)));
    const auto frames = take_frames(tx);
    ASSERT_EQ(frames.size(), 4u);
    const auto identification = [&](std::size_t i) {
        return wire::Ipv4View::parse(std::span(frames[i]).subspan(14)).value().identification();
    };
    EXPECT_EQ(identification(0), identification(1));
    EXPECT_NE(identification(1), identification(2));
}

TEST_F(UdpTest, ToOurselvesEvenTheLargestIsOnePacket) {
    Inbox inbox;
    Socket& sender = bind(our4, 53, inbox);
    bind(our4, 54, inbox);
    ASSERT_TRUE(send(sender, {our4, 54}, pattern(65507)));
    ASSERT_EQ(output.local_packets().size(), 1u);
    EXPECT_EQ(output.local_packets()[0].packet.length, 14u + 65535u);
}

// --- ICMP ------------------------------------------------------------------------------------------------------------

TEST_F(UdpTest, HardErrorsReachTheConnectedSocketOnly) {
    Inbox connected, bound;
    const Endpoint peer{peer4, 4000}, local{our4, 53};
    bind(our4, 53, bound);
    udp.connect(bind(our4, 53, connected), &peer);
    IcmpError error{.protocol = wire::IpProtocol::kUdp, .local = local, .remote = peer, .error = ECONNREFUSED, .hard = true};
    udp.icmp_error(error, nullptr, now);
    EXPECT_THAT(connected.errors, ElementsAre(ECONNREFUSED));
    EXPECT_EQ(counters.icmp_in, 1u);
    error.hard = false;
    udp.icmp_error(error, nullptr, now);
    EXPECT_EQ(connected.errors.size(), 1u) << "soft errors are for IP_RECVERR only";
    error.hard = true;
    error.remote.port = 4001;
    udp.icmp_error(error, nullptr, now);
    EXPECT_EQ(counters.dropped(Drop::kIcmpUnmatched), 0u) << "our own word, nobody's message";
    const RxPacket nothing{};
    const IpPacket message{.packet = nothing, .interface = eth0, .source = {}, .destination = {}};
    udp.icmp_error(error, &message, now);
    EXPECT_EQ(counters.dropped(Drop::kIcmpUnmatched), 1u);
    EXPECT_THAT(bound.errors, IsEmpty());
}

TEST_F(UdpTest, TooBigMakesTheSocketCutSmaller) {  // [RFC8201 5.2]
    know(peer6, kPeerMac);
    Inbox inbox;
    Socket& socket = bind(our6, 53, inbox);
    ASSERT_TRUE(send(socket, {peer6, 4000}, pattern(1400)));
    EXPECT_EQ(take_frames(tx).size(), 1u);
    udp.icmp_error({.protocol = wire::IpProtocol::kUdp, .local = {our6, 53}, .remote = {peer6, 4000},
                    .error = EMSGSIZE, .next_hop_mtu = 1300}, nullptr, now);
    ASSERT_TRUE(send(socket, {peer6, 4000}, pattern(1400)));
    const auto frames = take_frames(tx);
    EXPECT_EQ(frames.size(), 2u);
    EXPECT_EQ(reassemble(frames, 1300), udp_message({our6, 53}, {peer6, 4000}, pattern(1400)));
    EXPECT_THAT(inbox.errors, IsEmpty());
}

TEST_F(UdpTest, WhoWantsErrorsHearsOfAllAndSeesTheDatagram) {
    Inbox inbox;
    Socket& socket = bind(our4, 53, inbox);
    udp.set_options(socket, {.errors = true});
    const Bytes sent = pattern(20);
    const IcmpError error{.protocol = wire::IpProtocol::kUdp, .local = {our4, 53}, .remote = {peer4, 4000},
                          .error = EHOSTUNREACH, .hard = false, .by_icmp = true, .type = 11, .code = 0,
                          .offender = router4, .payload = sent};
    udp.icmp_error(error, nullptr, now);
    ASSERT_THAT(inbox.errors, ElementsAre(EHOSTUNREACH)) << "soft, and not connected";
    EXPECT_TRUE(inbox.last_error.queued);
    EXPECT_TRUE(inbox.last_error.by_icmp);
    EXPECT_EQ(inbox.last_error.type, 11);
    EXPECT_EQ(inbox.last_error.offender, router4);
    EXPECT_EQ(inbox.last_error.remote, (Endpoint{peer4, 4000}));
    EXPECT_EQ(inbox.error_payload, sent);
}

// --- may it be cut? --------------------------------------------------------------------------------------------------

bool is_df(const Bytes& frame) {
    return wire::Ipv4View::parse(std::span(frame).subspan(wire::kEthernetHeaderLength)).value().dont_fragment();
}

TEST_F(UdpTest, WhatMayNotBeCutIsRefusedOrSentWithDf) {
    know(peer4, kPeerMac);
    know(peer6, kPeerMac);
    Inbox inbox;
    Socket& socket = bind(Address(), 53, inbox, true);
    for (const PathMtu rule : {PathMtu::kObey, PathMtu::kProbe, PathMtu::kLink}) {
        for (const bool v4 : {true, false}) {
            const Endpoint to{v4 ? peer4 : peer6, 4000};
            const std::size_t whole = 1500 - (v4 ? 28 : 48);
            EXPECT_EQ(error_of(send(socket, to, pattern(whole + 1), {.path_mtu = rule})), EMSGSIZE);
            EXPECT_TRUE(take_frames(tx).empty());
            ASSERT_TRUE(send(socket, to, pattern(whole), {.path_mtu = rule}));
            const auto frames = take_frames(tx);
            ASSERT_EQ(frames.size(), 1u);
            if (v4) {
                EXPECT_EQ(is_df(frames[0]), rule != PathMtu::kLink);
            }
        }
    }
}

TEST_F(UdpTest, APathOnceNarrowIsRemembered) {  // [RFC1191 6.3] for ten minutes, whatever else is sent meanwhile
    know(peer4, kPeerMac);
    know(router4, kRouterMac);
    Inbox inbox;
    Socket& socket = bind(our4, 53, inbox);
    const Endpoint peer{peer4, 4000};
    udp.set_options(socket, {.path_mtu = PathMtu::kObey});
    udp.connect(socket, &peer);
    EXPECT_EQ(udp.path_mtu(socket, peer, 0, now), 1500u);
    const IcmpError error{.protocol = wire::IpProtocol::kUdp, .local = {our4, 53}, .remote = peer, .error = EMSGSIZE,
                          .next_hop_mtu = 1300, .by_icmp = true};
    udp.icmp_error(error, nullptr, now);
    EXPECT_THAT(inbox.errors, ElementsAre(EMSGSIZE)) << "connected";
    EXPECT_EQ(inbox.last_error.info, 1300u);
    EXPECT_EQ(udp.path_mtu(socket, peer, 0, now), 1300u);
    routes.replace(default_routes());  // its path has to be looked up again
    EXPECT_EQ(error_of(send(socket, peer, pattern(1273), {.path_mtu = PathMtu::kObey})), EMSGSIZE);
    EXPECT_TRUE(send(socket, peer, pattern(1272), {.path_mtu = PathMtu::kObey}));
    EXPECT_TRUE(send(socket, peer, pattern(1472), {.path_mtu = PathMtu::kProbe})) << "tries what our link takes";
    ASSERT_TRUE(send(socket, {ip("192.0.2.1"), 1}, pattern(1472), {.path_mtu = PathMtu::kObey})) << "another way";
    now += Udp::kPathMtuLife;
    EXPECT_TRUE(send(socket, peer, pattern(1472), {.path_mtu = PathMtu::kObey})) << "perhaps it is wider by now";
    EXPECT_EQ(take_frames(tx).size(), 4u);

    udp.set_options(socket, {.path_mtu = PathMtu::kProbe});
    udp.icmp_error(error, nullptr, now);
    EXPECT_EQ(counters.dropped(Drop::kUdpPathDisbelieved), 1u);
    EXPECT_EQ(udp.path_mtu(socket, peer, 0, now), 1500u);
}

// --- several datagrams at once ---------------------------------------------------------------------------------------

TEST_F(UdpTest, OneSendOfManySegments) {
    know(peer4, kPeerMac);
    know(peer6, kPeerMac);
    Inbox inbox;
    Socket& socket = bind(Address(), 53, inbox, true);
    for (const bool v4 : {true, false}) {
        const Endpoint to{v4 ? peer4 : peer6, 4000};
        const Endpoint from{v4 ? our4 : our6, 53};
        const Bytes all = pattern(2 * 1000 + 77);
        ASSERT_TRUE(send(socket, to, all, {.segment_size = 1000}));
        const auto frames = take_frames(tx);
        ASSERT_EQ(frames.size(), 3u);
        for (std::size_t i = 0; i < 3; ++i) {
            const auto part = std::span(all).subspan(i * 1000, i < 2 ? 1000 : 77);
            const auto message = std::span(frames[i]).subspan(v4 ? 34 : 54);
            EXPECT_EQ(Bytes(message.begin(), message.end()), udp_message(from, to, part));
        }
        ASSERT_TRUE(send(socket, to, pattern(64), {.segment_size = 1})) << "64 and no more";
        EXPECT_EQ(take_frames(tx).size(), 64u);
        EXPECT_EQ(error_of(send(socket, to, pattern(65), {.segment_size = 1})), EINVAL);
        EXPECT_EQ(error_of(send(socket, to, pattern(3000), {.segment_size = 1500})), EMSGSIZE) << "never in fragments";
        ASSERT_TRUE(send(socket, to, {}, {.segment_size = 100}));
        EXPECT_EQ(take_frames(tx).size(), 1u) << "an empty one";
    }
    EXPECT_EQ(pool.available(), pool.count());
}

TEST_F(UdpTest, AMergedPacketIsOneDatagramOnlyToThoseWhoAskForIt) {
    Inbox inbox;
    Socket& socket = bind(our4, 53, inbox);
    const Bytes all = pattern(250);
    const Bytes frame = udp_frame({peer4, 4000}, {our4, 53}, all);
    RxPacket packet = received(frame);
    packet.segment_size = 100;
    udp.input(ip_input.accept(eth0, packet, false).value(), now);
    ASSERT_EQ(inbox.items.size(), 3u);
    EXPECT_EQ(inbox.items[1].payload, Bytes(all.begin() + 100, all.begin() + 200));
    EXPECT_EQ(inbox.items[2].payload, Bytes(all.begin() + 200, all.end()));
    EXPECT_EQ(inbox.items[2].info.segment_size, 0);
    udp.set_options(socket, {.merged = true});
    udp.input(ip_input.accept(eth0, packet, false).value(), now);
    ASSERT_EQ(inbox.items.size(), 4u);
    EXPECT_EQ(inbox.items[3].payload, all);
    EXPECT_EQ(inbox.items[3].info.segment_size, 100);
    EXPECT_EQ(counters.udp_in, 4u);
}

// --- interfaces ------------------------------------------------------------------------------------------------------

TEST_F(UdpTest, ASocketOfOneInterfaceHearsAndSpeaksThroughThatOnly) {
    TxQueue other_tx{pool};
    Interface eth1 = eth0;
    eth1.index = 8;
    eth1.tx = &other_tx;
    eth1.addresses = {{ip("fe80::8"), 64}};
    Interface* both[] = {&eth0, &eth1};
    output.set_interfaces(both);
    routes.touch();
    neighbors.update(7, ip("fe80::2"), kPeerMac, NeighborState::kReachable, tx);
    neighbors.update(8, ip("fe80::2"), kPeerMac, NeighborState::kReachable, other_tx);
    Inbox scoped, other;
    Socket& socket = **udp.bind({Address(), 53}, false, scoped, 8);
    Socket& any = bind(Address(), 53, other);
    deliver(udp_frame({ip("fe80::2"), 9}, {ip("fe80::1"), 53}, pattern(1)));  // through eth0
    EXPECT_EQ(other.items.size(), 1u);
    EXPECT_THAT(scoped.items, IsEmpty());
    ASSERT_TRUE(send(socket, {ip("fe80::2"), 9}, pattern(1)));
    EXPECT_EQ(take_frames(other_tx).size(), 1u);
    ASSERT_TRUE(send(any, {ip("fe80::2"), 9}, pattern(1), {.interface = 8}));
    ASSERT_TRUE(send(any, {ip("fe80::2"), 9}, pattern(1), {.interface = 7})) << "the cached way is another's";
    EXPECT_EQ(take_frames(other_tx).size(), 1u);
    EXPECT_EQ(take_frames(tx).size(), 1u);
    EXPECT_EQ(error_of(send(any, {ip("fe80::2"), 9}, pattern(1), {.interface = 9})), ENETUNREACH);
    const Endpoint peer{ip("fe80::2"), 9};
    udp.connect(any, &peer, 8);
    ASSERT_TRUE(send(any, peer, pattern(1)));
    EXPECT_EQ(take_frames(other_tx).size(), 1u) << "the scope of the peer";
    udp.close(socket);
    udp.close(any);
}

// --- to many ---------------------------------------------------------------------------------------------------------

TEST_F(UdpTest, ABroadcastMustBeMeantAndIsHeardByAllOnThisHost) {  // EACCES without SO_BROADCAST
    Inbox one, two, connected, other_port;
    Socket& socket = bind(ip("0.0.0.0"), 53, one);
    bind(ip("0.0.0.0"), 53, two);
    bind(ip("0.0.0.0"), 54, other_port);
    const Endpoint peer{peer4, 9};
    udp.connect(bind(our4, 53, connected), &peer);
    for (const char* to : {"255.255.255.255", "10.0.0.255"}) {
        EXPECT_EQ(error_of(send(socket, {ip(to), 53}, pattern(8))), EACCES) << to;
        ASSERT_TRUE(send(socket, {ip(to), 53}, pattern(8), {.broadcast = true})) << to;
        const auto frames = take_frames(tx);
        ASSERT_EQ(frames.size(), 1u);
        EXPECT_EQ(wire::EthernetView::parse(frames[0]).value().destination(), wire::kBroadcastMac);
        ASSERT_EQ(output.local_packets().size(), 1u) << "and a copy for those here";
        tx.abandon(output.local_packets()[0].packet);
        output.local_packets().clear();
    }
    Bytes frame = udp_frame(peer, {ip("10.0.0.255"), 53}, pattern(8));
    wire::store_mac(frame.data(), wire::kBroadcastMac);
    const RxPacket packet = received(frame);
    const IpPacket broadcast{.packet = packet, .interface = eth0, .source = peer4, .destination = ip("10.0.0.255"),
                             .transport_offset = 34, .transport_length = 16, .protocol = 17, .ttl = 64,
                             .cast = Cast::kBroadcast};
    udp.input(broadcast, now);
    EXPECT_EQ(one.items.size(), 1u);
    EXPECT_EQ(two.items.size(), 1u);
    EXPECT_THAT(connected.items, IsEmpty()) << "bound to one address";
    EXPECT_THAT(other_port.items, IsEmpty());
}

}  // namespace
}  // namespace culvert::stack::udp
