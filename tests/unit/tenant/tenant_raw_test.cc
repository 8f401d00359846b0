// Raw and ping sockets of a tenant, on a host with an address that is Culvert's alone and one that it shares: who may have
// one, what goes out and comes in, and tenants that lie.
#include <gtest/gtest.h>
#include <netinet/in.h>

#include "daemon/stack/raw.h"
#include "daemon/wire/icmp.h"
#include "tests/unit/tenant/one_tenant.h"

namespace culvert::tenant {
namespace {

using stack::Bytes;
using stack::ip;
using stack::pattern;

class TenantRawTest : public testing::TestWithParam<bool>, public OneTenant {
protected:
    TenantRawTest() : OneTenant(kGeometry) {
        interfaces.push_back(&add_interface(7, {{ip("10.0.0.1"), 24, true}, {ip("fd00::1"), 64, true}}));
        interfaces.push_back(&add_interface(8, {{ip("10.8.0.1"), 24, false}, {ip("fd08::1"), 64, false}}));
        stack.routes().replace({{.destination = ip("10.0.0.0"), .prefix_length = 24, .interface = 7},
                                {.destination = ip("fd00::"), .prefix_length = 64, .interface = 7},
                                {.destination = ip("10.8.0.0"), .prefix_length = 24, .interface = 8},
                                {.destination = ip("fd08::"), .prefix_length = 64, .interface = 8}});
        know({"10.0.0.2", "fd00::2"});
    }

    bool v4() const { return GetParam(); }
    Address any() const { return Address::any(v4() ? Family::kIpv4 : Family::kIpv6); }
    Address ours() const { return ip(v4() ? "10.0.0.1" : "fd00::1"); }
    Address shared() const { return ip(v4() ? "10.8.0.1" : "fd08::1"); }
    Address peer() const { return ip(v4() ? "10.0.0.2" : "fd00::2"); }
    std::uint8_t icmp() const { return v4() ? int{IPPROTO_ICMP} : int{IPPROTO_ICMPV6}; }
    std::uint8_t request() const { return v4() ? wire::icmp_v4::kEchoRequest : wire::icmp_v6::kEchoRequest; }
    std::uint8_t reply() const { return v4() ? wire::icmp_v4::kEchoReply : wire::icmp_v6::kEchoReply; }
    std::uint32_t ping() const { return shm::raw_kind(true, !v4(), icmp()); }
    std::uint32_t raw(std::uint8_t protocol) const { return shm::raw_kind(false, !v4(), protocol); }
    Bytes echo(std::uint8_t type, std::uint16_t identifier, const Address& from, const Address& to) const {
        Bytes message(wire::kIcmpHeaderLength + 5);
        wire::emit(wire::IcmpHeader{.type = type, .rest = std::uint32_t{identifier} << 16 | 1}, pattern(5), from, to, message);
        return message;
    }
    std::uint32_t fresh(std::uint32_t receive_buffer = 0) {
        const std::uint32_t socket = app.socket();
        app.segment.socket(socket).protocol.store(IPPROTO_RAW);
        app.segment.socket(socket).options.receive_buffer = receive_buffer;
        return socket;
    }
    int bind(std::uint32_t socket, std::uint32_t kind, const Address& local, Port identifier = 0) {
        return operate(socket, shm::Operation::kBindRaw, wire(local, identifier), {}, kind);
    }
    std::uint32_t open(std::uint32_t kind, Port identifier = 0, std::uint32_t receive_buffer = 0) {
        const std::uint32_t socket = fresh(receive_buffer);
        EXPECT_TRUE(tenant->grant_raw(kind));
        EXPECT_EQ(bind(socket, kind, any(), identifier), 0);
        return socket;
    }
    void arrive(const Address& to, std::uint8_t protocol, const Bytes& message) {
        stack.input(*interfaces[to == shared() ? 1 : 0],
                    stack::received(stack::ip_frame(peer(), to, static_cast<wire::IpProtocol>(protocol), message)), now);
        turn();
    }
    void send_bytes(std::uint32_t socket, const shm::DatagramHeader& header, const Bytes& payload) {
        std::string bytes(reinterpret_cast<const char*>(&header), sizeof header);
        bytes.append(reinterpret_cast<const char*>(payload.data()), payload.size());
        app.send(socket, bytes);
        turn();
    }
    void send(std::uint32_t socket, const Address& to, const Bytes& payload, const Address& from = {}) {
        shm::DatagramHeader header{};
        header.remote = wire(to);
        std::memcpy(header.local_address, from.bytes().data(), 16);
        header.length = static_cast<std::uint32_t>(payload.size());
        send_bytes(socket, header, payload);
    }
    int take_error(std::uint32_t socket) { return app.segment.socket(socket).daemon.error.exchange(0); }
    static std::string text(const Bytes& bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }
    Bytes transport(const Bytes& frame) const {
        return {frame.begin() + static_cast<std::ptrdiff_t>(14 + (v4() ? 20 : 40)), frame.end()};
    }

    static constexpr shm::Geometry kGeometry{.sockets = 256, .app_sockets = 128, .tx_blocks = 64, .rx_blocks = 64,
                                             .queues = 4, .processes = 4, .accept_queues = 2};
    std::vector<stack::Interface*> interfaces;
};

INSTANTIATE_TEST_SUITE_P(Families, TenantRawTest, testing::Bool(),
                         [](const auto& each) { return each.param ? "IPv4" : "IPv6"; });

TEST_P(TenantRawTest, WithoutAGrantNobodyGetsOne) {
    const std::uint32_t socket = fresh();
    EXPECT_EQ(bind(socket, raw(89), any()), EPERM);
    EXPECT_EQ(counters.dropped(Drop::kTenantNoGrant), 1u);
    // Each grant is for one socket of its kind and family.
    ASSERT_TRUE(tenant->grant_raw(ping()));
    ASSERT_TRUE(tenant->grant_raw(shm::raw_kind(false, v4(), 89)));
    EXPECT_EQ(bind(socket, raw(89), any()), EPERM);
    EXPECT_EQ(bind(socket, raw(icmp()), any()), EPERM) << "ping is not raw";
    EXPECT_EQ(bind(socket, ping(), any()), 0);
    EXPECT_EQ(bind(fresh(), ping(), any()), EPERM) << "consumed";
    EXPECT_EQ(bind(socket, raw(89), any()), EINVAL) << "bound again as something else";
    EXPECT_EQ(counters.dropped(Drop::kTenantNoGrant), 4u);
    // What was refused hears nothing and sends nothing.
    const std::uint32_t refused = fresh();
    EXPECT_EQ(bind(refused, raw(89), any()), EPERM);
    arrive(ours(), 89, pattern(20));
    send(refused, peer(), pattern(20));
    EXPECT_TRUE(receive(refused).empty());
    EXPECT_EQ(operate(refused, shm::Operation::kFilterTypes, {}, {}), EINVAL);
    EXPECT_EQ(operate(refused, shm::Operation::kChecksumOffset, {}, {}, 2), EINVAL);
}

TEST_P(TenantRawTest, GrantsAndSocketsAreBounded) {
    std::vector<std::uint32_t> sockets;
    for (std::uint32_t i = 0; i < Tenant::kMaxRawSockets / 2; ++i) sockets.push_back(open(raw(89)));
    for (std::uint32_t i = 0; i < Tenant::kMaxRawSockets / 2; ++i) ASSERT_TRUE(tenant->grant_raw(raw(89)));
    EXPECT_EQ(tenant->grant_raw(raw(89)).error().code, ENOBUFS);
    EXPECT_EQ(counters.dropped(Drop::kTenantNoSocket), 1u);
    app.close(sockets[0]);
    turn();
    EXPECT_TRUE(tenant->grant_raw(raw(89))) << "one was closed";
}

TEST_P(TenantRawTest, OnlyDedicatedAddressesAreCulverts) {
    const std::uint32_t socket = fresh();
    ASSERT_TRUE(tenant->grant_raw(raw(89)));
    EXPECT_EQ(bind(socket, raw(89), shared()), EADDRNOTAVAIL);
    EXPECT_EQ(bind(socket, raw(89), ours()), EPERM) << "the grant went with the attempt";
    ASSERT_TRUE(tenant->grant_raw(raw(89)));
    EXPECT_EQ(bind(socket, raw(89), ours()), 0);
    const Address on_shared = ip(v4() ? "10.8.0.2" : "fd08::2");
    EXPECT_EQ(operate(socket, shm::Operation::kRoute, {}, wire(peer())), 0);
    EXPECT_EQ(app.segment.socket(socket).info.path_mtu, 1500u);
    EXPECT_EQ(operate(socket, shm::Operation::kRoute, {}, wire(on_shared)), EHOSTUNREACH);
    EXPECT_EQ(operate(socket, shm::Operation::kRoute, wire(shared()), wire(peer())), EADDRNOTAVAIL);
    // Who sends all the same, or from an address that is the kernel's, is not obeyed.
    send(socket, on_shared, pattern(20));
    EXPECT_EQ(take_error(socket), EHOSTUNREACH);
    send(socket, peer(), pattern(20), shared());
    EXPECT_EQ(take_error(socket), EADDRNOTAVAIL);
    EXPECT_EQ(counters.dropped(Drop::kTenantBadAddress), 2u);
    EXPECT_TRUE(stack::take_frames(tx).empty());
    stack.set_addresses(7, {{ip("10.0.0.1"), 24, false}, {ip("fd00::1"), 64, false}});
    ASSERT_TRUE(tenant->grant_raw(raw(89)));
    EXPECT_EQ(bind(fresh(), raw(89), any()), EADDRNOTAVAIL) << "a host without any";
}

TEST_P(TenantRawTest, PingsAndIsPinged) {
    const std::uint32_t socket = open(ping(), 77);
    send(socket, peer(), echo(request(), 1, ours(), peer()));
    auto frames = stack::take_frames(tx);
    ASSERT_EQ(frames.size(), 1u);
    EXPECT_EQ(transport(frames[0]), echo(request(), 77, ours(), peer()));
    arrive(ours(), icmp(), echo(reply(), 77, peer(), ours()));
    const auto got = receive(socket);
    ASSERT_EQ(got.size(), 1u);
    EXPECT_EQ(got[0].payload, text(echo(reply(), 77, peer(), ours())));
    EXPECT_EQ(0, std::memcmp(got[0].header.remote.address, peer().bytes().data(), 16));
    EXPECT_EQ(got[0].header.remote.port, 0);
    EXPECT_EQ(0, std::memcmp(got[0].header.local_address, ours().bytes().data(), 16));
    EXPECT_EQ(got[0].header.ttl, 64);
    arrive(ours(), icmp(), echo(request(), 9, peer(), ours()));
    frames = stack::take_frames(tx);
    ASSERT_EQ(frames.size(), 1u) << "the stack answers for the address";
    EXPECT_EQ(transport(frames[0]), echo(reply(), 9, ours(), peer()));
    EXPECT_TRUE(receive(socket).empty());
    EXPECT_EQ(counters.raw_in, 1u);
    EXPECT_EQ(counters.raw_out, 1u);
    // Another's identifier, and a message that is no echo request.
    ASSERT_TRUE(tenant->grant_raw(ping()));
    EXPECT_EQ(bind(fresh(), ping(), any(), 77), EADDRINUSE);
    send(socket, peer(), pattern(20));
    EXPECT_EQ(take_error(socket), EINVAL);
    send(socket, peer(), pattern(3));
    EXPECT_EQ(take_error(socket), EINVAL);
}

TEST_P(TenantRawTest, ARawSocketHearsWhatItHasNotFilteredAndTheStackGoesOn) {
    const std::uint32_t socket = open(raw(icmp()));
    arrive(ours(), icmp(), echo(request(), 9, peer(), ours()));
    EXPECT_EQ(receive(socket).size(), 1u);
    EXPECT_EQ(stack::take_frames(tx).size(), 1u) << "answered all the same";
    shm::WireEndpoint low{};
    shm::WireEndpoint high{};
    shm::WireEndpoint& half = request() < 128 ? low : high;
    half.address[request() % 128 / 8] = static_cast<std::uint8_t>(1u << (request() % 8));
    ASSERT_EQ(operate(socket, shm::Operation::kFilterTypes, low, high), 0);
    arrive(ours(), icmp(), echo(request(), 9, peer(), ours()));
    EXPECT_TRUE(receive(socket).empty());
    arrive(ours(), icmp(), echo(reply(), 9, peer(), ours()));
    EXPECT_EQ(receive(socket).size(), 1u);
    // Connected to another: silence.
    ASSERT_EQ(operate(socket, shm::Operation::kConnectDatagram, {}, wire(ip(v4() ? "10.0.0.3" : "fd00::3"))), 0);
    arrive(ours(), icmp(), echo(reply(), 9, peer(), ours()));
    EXPECT_TRUE(receive(socket).empty());
    ASSERT_EQ(operate(socket, shm::Operation::kConnectDatagram, {}, {}), 0);
    ASSERT_EQ(operate(socket, shm::Operation::kConnectDatagram, {}, wire(ip(v4() ? "fd00::3" : "10.0.0.3"))), EINVAL);
    // A protocol that nobody else speaks is not unreachable while somebody listens.
    const std::uint32_t ospf = open(raw(89));
    (void)stack::take_frames(tx);
    arrive(ours(), 89, pattern(20));
    EXPECT_EQ(receive(ospf).size(), 1u);
    EXPECT_TRUE(stack::take_frames(tx).empty());
    app.close(ospf);
    turn();
    arrive(ours(), 89, pattern(20));
    EXPECT_EQ(stack::take_frames(tx).size(), 1u) << "protocol unreachable";
}

TEST_P(TenantRawTest, TheQueueIsBounded) {
    const std::uint32_t socket = open(raw(89), 0, 768);  // two small packets, as Linux charges them
    for (int i = 0; i < 5; ++i) arrive(ours(), 89, pattern(10));
    ASSERT_EQ(receive(socket).size(), 2u);
    EXPECT_EQ(counters.dropped(Drop::kRawQueueFull), 3u);
    EXPECT_EQ(counters.raw_in, 2u);
    arrive(ours(), 89, pattern(10));
    const auto after = receive(socket);
    ASSERT_EQ(after.size(), 1u);
    EXPECT_EQ(after[0].header.overflow, 3u);
}

TEST_P(TenantRawTest, LyingLengthsAreRefused) {
    const std::uint32_t socket = open(raw(89));
    shm::DatagramHeader header{};
    header.remote = wire(peer());
    for (const std::uint32_t lie : {0u, 9u, 11u, 0xffffffffu}) {
        header.length = lie;
        send_bytes(socket, header, pattern(10));
    }
    EXPECT_EQ(counters.dropped(Drop::kTenantBadLength), 4u);
    app.send(socket, "short");
    turn();
    EXPECT_EQ(counters.dropped(Drop::kTenantBadLength), 5u);
    header.remote = {};
    header.length = 10;
    send_bytes(socket, header, pattern(10));  // to nobody, and not connected
    EXPECT_EQ(counters.dropped(Drop::kTenantBadAddress), 1u);
    EXPECT_TRUE(stack::take_frames(tx).empty());
    EXPECT_EQ(operate(socket, shm::Operation::kChecksumOffset, {}, {}, 3), EINVAL);
    EXPECT_EQ(operate(socket, shm::Operation::kChecksumOffset, {}, {}, 0x10000), EINVAL);
    send(socket, peer(), pattern(100));
    EXPECT_EQ(stack::take_frames(tx).size(), 1u) << "and the socket still works";
    EXPECT_EQ(pool.available(), pool.count());
}

}  // namespace
}  // namespace culvert::tenant
