// A datagram socket of a tenant between its ring and the wire: what the application says in headers, and what it is told.
#include <gtest/gtest.h>
#include <linux/errqueue.h>
#include <netinet/in.h>

#include "daemon/wire/icmp.h"
#include "tests/unit/tenant/one_tenant.h"

namespace culvert::tenant {
namespace {

using stack::Bytes;
using stack::ip;
using stack::pattern;

/// Both families, as every test runs.
class TenantDatagramTest : public testing::TestWithParam<bool>, public OneTenant {
protected:
    TenantDatagramTest() : OneTenant(kGeometry), interface(&add_eth0({"10.0.0.2", "fd00::2"})) {}

    bool v4() const { return GetParam(); }
    Address ours() const { return ip(v4() ? "10.0.0.1" : "fd00::1"); }
    Endpoint peer() const { return {ip(v4() ? "10.0.0.2" : "fd00::2"), 4000}; }
    static shm::WireEndpoint wire(const Endpoint& endpoint) { return OneTenant::wire(endpoint.address, endpoint.port); }
    std::uint32_t bind(std::uint32_t flags = 0, std::uint32_t receive_buffer = 0) {
        const std::uint32_t socket = app.socket();
        shm::SocketRecord& record = app.segment.socket(socket);
        record.protocol.store(IPPROTO_UDP);
        record.options.flags = flags;
        record.options.receive_buffer = receive_buffer;
        EXPECT_EQ(operate(socket, shm::Operation::kBindDatagram, wire({Address::any(ours().family()), 53}), {}), 0);
        return socket;
    }
    void arrive(const Bytes& frame) { stack.input(*interface, stack::received(frame), now); }
    void arrive_from_peer(std::size_t length) { arrive(stack::udp_frame(peer(), {ours(), 53}, pattern(length))); }
    void send(std::uint32_t socket, shm::DatagramHeader header, const Bytes& payload) {
        header.length = static_cast<std::uint32_t>(payload.size());
        std::string bytes(reinterpret_cast<const char*>(&header), sizeof header);
        bytes.append(reinterpret_cast<const char*>(payload.data()), payload.size());
        app.send(socket, bytes);
        turn();
    }
    static std::string text(const Bytes& bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

    static constexpr shm::Geometry kGeometry{.sockets = 128, .app_sockets = 64, .tx_blocks = 64, .rx_blocks = 64,
                                             .queues = 4, .processes = 4, .accept_queues = 2};
    stack::Interface* const interface;
};

INSTANTIATE_TEST_SUITE_P(Families, TenantDatagramTest, testing::Bool(),
                         [](const auto& each) { return each.param ? "IPv4" : "IPv6"; });

TEST_P(TenantDatagramTest, ABurstOfOneFlowIsOneDatagramForThoseWhoAsk) {
    const std::uint32_t socket = bind(shm::kOptionMerged);
    for (const std::size_t length : {100u, 100u, 50u, 100u}) arrive_from_peer(length);  // a shorter one ends a run
    arrive(stack::udp_frame({peer().address, 4001}, {ours(), 53}, pattern(100)));       // another flow
    turn();
    auto got = receive(socket);
    ASSERT_EQ(got.size(), 3u);
    EXPECT_EQ(got[0].header.segment_size, 100);
    EXPECT_EQ(got[0].payload, text(pattern(100)) + text(pattern(100)) + text(pattern(50)));
    EXPECT_EQ(got[1].header.segment_size, 0);
    EXPECT_EQ(got[2].header.remote.port, 4001);
    for (int i = 0; i < 65; ++i) arrive_from_peer(70);
    turn();
    got = receive(socket);
    ASSERT_EQ(got.size(), 2u) << "64 at most";
    EXPECT_EQ(got[0].header.length, 64u * 70);
    EXPECT_EQ(got[1].header.length, 70u);

    const std::uint32_t plain = bind();
    app.close(socket);
    turn();
    for (int i = 0; i < 3; ++i) arrive_from_peer(100);
    turn();
    EXPECT_EQ(receive(plain).size(), 3u);
}

TEST_P(TenantDatagramTest, WhatTheHeaderSaysIsDone) {  // [RFC1122 4.1.4 services] [RFC1122 3.2.1.7 send-zero]
    const std::uint32_t socket = bind();
    shm::DatagramHeader header{};
    header.remote = wire(peer());
    header.segment_size = 100;
    header.flags = shm::kDatagramTtl;
    header.ttl = 7;
    header.tos = 0x28;
    send(socket, header, pattern(250));
    const auto frames = stack::take_frames(tx);
    ASSERT_EQ(frames.size(), 3u);
    const auto at_ip = std::span(frames[2]).subspan(wire::kEthernetHeaderLength);
    if (v4()) {
        const auto view = wire::Ipv4View::parse(at_ip).value();
        EXPECT_EQ(view.hop_limit(), 7);
        EXPECT_EQ(view.traffic_class(), 0x28);
    } else {
        const auto view = wire::Ipv6View::parse(at_ip).value();
        EXPECT_EQ(view.hop_limit(), 7);
        EXPECT_EQ(view.traffic_class(), 0x28);
    }
    EXPECT_EQ(frames[2].size() - (v4() ? 42 : 62), 50u);
    header.ttl = 0;
    send(socket, header, pattern(10));
    EXPECT_TRUE(stack::take_frames(tx).empty()) << "a TTL of 0 stays on this host";
    header.segment_size = 0;
    header.flags = static_cast<std::uint32_t>(shm::PathRule::kObey) << shm::kDatagramPathRuleShift;
    send(socket, header, pattern(1500));
    EXPECT_EQ(app.segment.socket(socket).daemon.error.load(), EMSGSIZE);
}

TEST_P(TenantDatagramTest, TheReceiveBufferIsABoundAndOverflowsAreCounted) {
    const std::uint32_t socket = bind(0, 768);  // two small datagrams, as Linux charges them
    for (int i = 0; i < 5; ++i) arrive_from_peer(10);
    turn();
    const auto got = receive(socket);
    ASSERT_EQ(got.size(), 2u);
    EXPECT_EQ(got[1].header.overflow, 0u);
    EXPECT_EQ(counters.dropped(Drop::kUdpQueueFull), 3u);
    arrive_from_peer(10);
    turn();
    const auto after = receive(socket);
    ASSERT_EQ(after.size(), 1u);
    EXPECT_EQ(after[0].header.overflow, 3u);
    EXPECT_EQ(after[0].header.received_ns, (now - std::chrono::microseconds(1)).time_since_epoch().count());
    EXPECT_EQ(after[0].header.interface, 7u);
    EXPECT_EQ(after[0].header.remote.interface, 0u) << "no scope: the address is global";
}

TEST_P(TenantDatagramTest, AnIcmpErrorIsQueuedForThoseWhoWantIt) {
    const std::uint32_t socket = bind(v4() ? shm::kOptionErrors4 : shm::kOptionErrors6);
    const Bytes sent = stack::udp_frame({ours(), 53}, peer(), pattern(30));
    const auto quoted = std::span(sent).subspan(wire::kEthernetHeaderLength);
    const Address router = ip(v4() ? "10.0.0.254" : "fd00::fe");
    Bytes message(wire::kIcmpHeaderLength + quoted.size());
    wire::emit(wire::IcmpHeader{.type = v4() ? wire::icmp_v4::kTimeExceeded : wire::icmp_v6::kTimeExceeded}, quoted, router,
               ours(), message);
    const auto protocol = v4() ? wire::IpProtocol::kIcmp : wire::IpProtocol::kIcmpv6;
    for (int i = 0; i < 40; ++i) arrive(stack::ip_frame(router, ours(), protocol, message));
    turn();
    shm::SocketRecord& record = app.segment.socket(socket);
    EXPECT_EQ(record.daemon.error.load(), EHOSTUNREACH) << "a soft error, and not connected";
    std::size_t count = 0;
    for (std::uint32_t link = record.daemon.error_list.load(); link != shm::kEmptyList; ++count) {
        const shm::BlockMeta& meta = app.segment.block_meta()[link - 1];
        shm::DatagramErrorHeader header{};
        std::memcpy(&header, app.segment.block(link - 1), sizeof header);
        EXPECT_EQ(header.error, EHOSTUNREACH);
        EXPECT_EQ(header.origin, v4() ? SO_EE_ORIGIN_ICMP : SO_EE_ORIGIN_ICMP6);
        EXPECT_EQ(header.type, v4() ? 11 : 3);
        EXPECT_EQ(header.remote.port, 4000);
        EXPECT_EQ(std::memcmp(header.offender, router.bytes().data(), 16), 0);
        EXPECT_EQ(header.length, 30u);
        EXPECT_EQ(std::memcmp(app.segment.block(link - 1) + sizeof header, pattern(30).data(), 30), 0);
        link = meta.next.load();
    }
    EXPECT_EQ(count, 32u);
    EXPECT_EQ(counters.dropped(Drop::kUdpErrorQueueFull), 8u);
}

TEST_P(TenantDatagramTest, TheRouteTellsWhoseADestinationIs) {
    const std::uint32_t socket = bind();
    const auto route = [&](const Endpoint& to, const Address& from = {}) {
        return operate(socket, shm::Operation::kRoute, wire({from, 0}), wire(to));
    };
    EXPECT_EQ(route(peer()), 0);
    EXPECT_EQ(app.segment.socket(socket).info.path_mtu, 1500u);
    EXPECT_EQ(route(peer(), peer().address), EADDRNOTAVAIL) << "not our address";
    const Endpoint group{ip(v4() ? "239.1.1.1" : "ff15::1"), 5000};
    EXPECT_EQ(route(group), EHOSTUNREACH) << "on a link shared with the kernel, its";
    EXPECT_EQ(operate(socket, shm::Operation::kJoinGroup, {}, wire({group.address, 0}), 7), EOPNOTSUPP);
    interface->resolves_itself = true;
    EXPECT_EQ(route(group), 0);
    if (v4()) {
        EXPECT_EQ(route({ip("10.0.0.255"), 9}), EACCES);
        app.segment.socket(socket).options.flags |= shm::kOptionBroadcast;
        EXPECT_EQ(route({ip("10.0.0.255"), 9}), 0);
    }
}

TEST_P(TenantDatagramTest, AGroupIsHeardByItsMembersAndLeftAtTheEnd) {
    interface->resolves_itself = true;
    stack.set_groups(&groups);
    const std::uint32_t member = bind(v4() ? shm::kOptionOnlyOwnGroups : shm::kOptionOnlyOwnGroups6);
    const std::uint32_t stranger = bind(v4() ? shm::kOptionOnlyOwnGroups : shm::kOptionOnlyOwnGroups6);
    const std::uint32_t sender = bind();
    const Address group = ip(v4() ? "239.1.1.1" : "ff15::1");
    ASSERT_EQ(operate(member, shm::Operation::kJoinSource, wire({ours(), 0}), wire({group, 0}), 7), 0);
    EXPECT_EQ(operate(stranger, shm::Operation::kLeaveGroup, {}, wire({group, 0}), 7), EADDRNOTAVAIL);
    EXPECT_TRUE(groups.accepts(7, group, ours()));
    shm::DatagramHeader header{};
    header.remote = wire({group, 53});
    header.flags = shm::kDatagramTtl | shm::kDatagramLoop;
    header.ttl = 1;
    send(sender, header, pattern(20));
    EXPECT_EQ(stack::take_frames(tx).size(), 1u);
    app.close(member);
    turn();
    EXPECT_FALSE(groups.accepts(7, group, ours()));
    EXPECT_TRUE(receive(stranger).empty());
}

TEST_P(TenantDatagramTest, OneThatIsPassedOnRestsAndGivesUpWhatLiesUnread) {
    const std::uint32_t socket = bind(shm::kOptionMerged);
    const std::uint32_t generation = app.segment.socket(socket).daemon.generation.load();
    arrive_from_peer(0);
    turn();
    EXPECT_EQ(receive(socket).size(), 1u) << "read: not given up";
    arrive_from_peer(3);
    arrive_from_peer(3);
    turn();
    for (const std::size_t length : {1400u, 1300u, 0u}) arrive(stack::udp_frame({peer().address, 4001}, {ours(), 53}, pattern(length)));
    ASSERT_TRUE(tenant->yield_port(socket, generation).has_value());
    arrive(stack::udp_frame({peer().address, 4002}, {ours(), 53}, pattern(9)));  // had been steered here before
    const auto unread = tenant->rest_datagrams(socket, generation);
    ASSERT_TRUE(unread.has_value());
    ASSERT_EQ(unread->size(), 4u);
    EXPECT_EQ((*unread)[0].segment_size, 3u);
    EXPECT_EQ((*unread)[0].payload.size(), 6u);
    EXPECT_EQ((*unread)[0].remote, peer());
    EXPECT_EQ((*unread)[0].local, (Endpoint{ours(), 53}));
    EXPECT_EQ((*unread)[1].payload.size(), 2700u) << "over several blocks";
    EXPECT_EQ((*unread)[2].payload.size(), 0u);
    EXPECT_EQ((*unread)[3].remote.port, 4002);
    arrive_from_peer(5);
    EXPECT_EQ(counters.dropped(Drop::kUdpNoSocket), 1u) << "the kernel's from now on";
    shm::DaemonLine& line = app.segment.socket(socket).daemon;
    EXPECT_NE(line.status.load() & shm::kStatusResting, 0u);
    EXPECT_TRUE(tenant->rest_datagrams(socket, generation)->empty()) << "asked again";
    EXPECT_FALSE(tenant->rest_datagrams(socket, generation + 1).has_value());
    EXPECT_EQ(operate(socket, shm::Operation::kJoinGroup, {}, wire({ip(v4() ? "239.1.1.1" : "ff15::1"), 0}), 7), EINVAL);
    EXPECT_EQ(operate(socket, shm::Operation::kConnectDatagram, {}, wire(peer())), 0);
    shm::DatagramHeader header{};
    header.remote = wire(peer());
    send(socket, header, pattern(20));
    EXPECT_TRUE(stack::take_frames(tx).empty());

    shm::take_all(line.rx_list);
    EXPECT_EQ(operate(socket, shm::Operation::kBindDatagram, {}, {}), 0) << "awake";
    EXPECT_EQ(line.status.load() & shm::kStatusResting, 0u);
    arrive_from_peer(5);
    arrive(stack::udp_frame({peer().address, 4001}, {ours(), 53}, pattern(9)));  // no peer of its
    turn();
    const auto got = receive(socket);
    ASSERT_EQ(got.size(), 1u);
    EXPECT_EQ(got[0].payload, text(pattern(5)));
}

/// Whatever an application writes into its blocks: bounded, and out of its own blocks.
TEST_P(TenantDatagramTest, SpoiltBlocksSpoilTheirOwnDatagramsOnly) {
    const std::uint32_t socket = bind();
    const std::uint32_t generation = app.segment.socket(socket).daemon.generation.load();
    for (int i = 0; i < 5; ++i) arrive_from_peer(100);
    turn();
    const std::uint32_t tx_blocks = app.segment.geometry().tx_blocks;
    for (std::uint32_t block = tx_blocks; block < app.segment.geometry().blocks(); ++block) {
        shm::BlockMeta& meta = app.segment.block_meta()[block];
        meta.length.store(block % 3 == 0 ? UINT32_MAX : 7);
        meta.offset.store(block % 2 == 0 ? UINT32_MAX : 0);
        meta.flags.store(block % 5 == 0 ? shm::kBlockMore : 0);
        meta.next.store(block + 1);
    }
    const auto unread = tenant->rest_datagrams(socket, generation);
    ASSERT_TRUE(unread.has_value());
    EXPECT_LE(unread->size(), 5u);
    for (const UnreadDatagram& each : *unread) EXPECT_LE(each.payload.size(), shm::kBlockSize);
    EXPECT_GT(counters.dropped(Drop::kTenantUnreadLost), 0u);
}

}  // namespace
}  // namespace culvert::tenant
