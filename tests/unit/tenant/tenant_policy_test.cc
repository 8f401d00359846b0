// The daemon's own part of a policy: whatever the shim asks for, what the configuration forbids is refused and counted.
#include <gtest/gtest.h>
#include <netinet/in.h>

#include <cstring>

#include "daemon/tenant/tenant.h"
#include "tests/support/app_side.h"
#include "tests/unit/stack/ip_world.h"

namespace culvert::tenant {
namespace {

using stack::ip;
using test::AppSide;

class TenantPolicyTest : public testing::Test, public stack::NeighborResolver, public stack::PortOwner {
protected:
    TenantPolicyTest() : app(attach()) {
        stack::Interface eth0;
        eth0.index = 7;
        eth0.mac = stack::kOurMac;
        eth0.up = true;
        eth0.tx = &tx;
        stack.add_interface(eth0);
        stack.set_addresses(7, {{ip("10.0.0.1"), 24}, {ip("fd00::1"), 64}});
        stack.routes().replace({{.destination = ip("10.0.0.0"), .prefix_length = 24, .interface = 7},
                                {.destination = ip("fd00::"), .prefix_length = 64, .interface = 7}});
        for (const char* peer : {"10.0.0.2", "10.0.0.3", "fd00::2"})
            stack.neighbors().update(7, ip(peer), stack::kPeerMac, stack::NeighborState::kReachable, tx);
    }
    AppSide attach() {
        UniqueFd fd;
        auto segment = shm::Segment::create(kGeometry, "tenant", fd);
        auto shared = shm::Segment::open(fd.get(), kGeometry);
        tenant = std::make_unique<Tenant>(1, "test", std::move(*segment), stack, counters, commons);
        const std::uint32_t slot = *tenant->add_process(100);
        return {std::move(*shared), slot};
    }
    void resolve(std::uint32_t, const Address&) override {}
    void take_port(Protocol, const Address&, Port) override {}
    void release_port(Protocol, const Address&, Port) override {}

    void permit(const char* text) {
        auto policy = std::make_shared<shm::Policy>();
        shm::PolicyError error;
        ASSERT_TRUE(policy->parse(text, error)) << error.text;
        tenant->permit({.policy = policy, .loopback = false});
    }
    static shm::WireEndpoint wire(const char* address, Port port) {
        shm::WireEndpoint out{};
        const Address parsed = ip(address);
        std::memcpy(out.address, parsed.bytes().data(), 16);
        out.port = port;
        out.family = parsed.is_v4() ? 4 : 6;
        return out;
    }
    int operate(std::uint32_t socket, shm::Operation code, const shm::WireEndpoint& local, const shm::WireEndpoint& remote,
                std::uint32_t argument = 0) {
        app.submit(socket, code, local, remote, argument);
        turn();
        EXPECT_TRUE(app.answered(socket));
        return app.answer(socket);
    }
    void turn() {
        now += std::chrono::microseconds(1);
        tenant->poll(now);
        if (stack.next_deadline() <= now) stack.advance(now);
        stack.flush(now);
        tenant->deliver_events();
    }
    std::uint32_t socket(int protocol) {
        const std::uint32_t index = app.socket();
        app.segment.socket(index).protocol.store(static_cast<std::uint32_t>(protocol));
        return index;
    }
    std::uint64_t refused() { return counters.dropped(Drop::kTenantPolicy); }

    static constexpr shm::Geometry kGeometry{.sockets = 256, .app_sockets = 128, .tx_blocks = 64, .rx_blocks = 64,
                                             .queues = 4, .processes = 4, .accept_queues = 8};
    Counters counters;
    Rng rng{1};
    FramePool pool{512};
    TxQueue tx{pool};
    Instant now{std::chrono::hours(1)};
    stack::Stack stack{{}, *this, *this, counters, rng};
    Commons commons;
    std::unique_ptr<Tenant> tenant;
    AppSide app;
};

TEST_F(TenantPolicyTest, ListenersByPort) {
    permit("tcp listen 80");
    for (const char* any : {"0.0.0.0", "::", "10.0.0.1", "fd00::1"}) {
        EXPECT_EQ(operate(socket(IPPROTO_TCP), shm::Operation::kListen, wire(any, 80), {}, 8), 0) << any;
        EXPECT_EQ(operate(socket(IPPROTO_TCP), shm::Operation::kListen, wire(any, 81), {}, 8), EPERM) << any;
    }
    EXPECT_EQ(refused(), 4u);
}

TEST_F(TenantPolicyTest, ConnectionsByNetworkWithOrWithoutAskingForARoute) {
    permit("tcp connect 10.0.0.2/32,fd00::/64");
    for (const auto& [peer, own, answer] : {std::tuple("10.0.0.2", "10.0.0.1", 0), std::tuple("10.0.0.3", "10.0.0.1", EPERM), std::tuple("fd00::2", "fd00::1", 0)}) {
        const std::uint32_t one = socket(IPPROTO_TCP);
        EXPECT_EQ(operate(one, shm::Operation::kRoute, {}, wire(peer, 80)), answer) << peer;
        EXPECT_EQ(operate(one, shm::Operation::kConnect, wire(own, 40000), wire(peer, 80)), answer) << peer;
    }
    EXPECT_EQ(refused(), 2u);
}

TEST_F(TenantPolicyTest, DatagramsByBoundPortOrByEachPeer) {
    permit("udp listen 53; udp connect 10.0.0.2/32");
    EXPECT_EQ(operate(socket(IPPROTO_UDP), shm::Operation::kBindDatagram, wire("0.0.0.0", 53), {}, shm::kBoundByProgram), 0);
    EXPECT_EQ(operate(socket(IPPROTO_UDP), shm::Operation::kBindDatagram, wire("0.0.0.0", 54), {}, shm::kBoundByProgram), EPERM);
    EXPECT_EQ(refused(), 1u);
    const std::uint32_t client = socket(IPPROTO_UDP);
    ASSERT_EQ(operate(client, shm::Operation::kBindDatagram, wire("0.0.0.0", 40000), {}, shm::kBoundBySending), 0);
    const auto send = [&](const char* to) {
        shm::DatagramHeader header{};
        header.remote = wire(to, 4000);
        header.length = 1;
        app.send(client, std::string(reinterpret_cast<const char*>(&header), sizeof header) + "x");
        turn();
    };
    send("10.0.0.2");
    EXPECT_EQ(counters.udp_out, 1u);
    send("10.0.0.3");
    EXPECT_EQ(counters.udp_out, 1u);
    EXPECT_EQ(refused(), 2u);
    EXPECT_EQ(app.segment.socket(client).daemon.error.load(), EPERM);
    permit("udp connect none");
    EXPECT_EQ(operate(socket(IPPROTO_UDP), shm::Operation::kBindDatagram, wire("0.0.0.0", 40001), {}, shm::kBoundBySending), EPERM);
}

TEST_F(TenantPolicyTest, RawSockets) {
    permit("icmp none");
    for (const std::uint32_t kind : {shm::raw_kind(true, false, IPPROTO_ICMP), shm::raw_kind(false, false, IPPROTO_ICMP)}) {
        ASSERT_TRUE(tenant->grant_raw(kind));
        EXPECT_EQ(operate(socket(IPPROTO_RAW), shm::Operation::kBindRaw, wire("0.0.0.0", 0), {}, kind), EPERM);
    }
    ASSERT_TRUE(tenant->grant_raw(shm::raw_kind(false, false, 89)));
    EXPECT_EQ(operate(socket(IPPROTO_RAW), shm::Operation::kBindRaw, wire("0.0.0.0", 0), {}, shm::raw_kind(false, false, 89)), EADDRNOTAVAIL)
        << "no dedicated address here, but the policy does not mind";
    EXPECT_EQ(refused(), 2u);
}

}  // namespace
}  // namespace culvert::tenant
