// The daemon's own part of a policy: whatever the shim asks for, what the configuration forbids is refused and counted.
#include <gtest/gtest.h>
#include <netinet/in.h>

#include <cstring>

#include "tests/unit/tenant/one_tenant.h"

namespace culvert::tenant {
namespace {

using stack::ip;

class TenantPolicyTest : public testing::Test, public OneTenant {
protected:
    TenantPolicyTest() : OneTenant(kGeometry) { add_eth0({"10.0.0.2", "10.0.0.3", "fd00::2"}); }

    void permit(const char* text) {
        auto policy = std::make_shared<shm::Policy>();
        shm::PolicyError error;
        ASSERT_TRUE(policy->parse(text, error)) << error.text;
        tenant->permit({.policy = policy, .loopback = false});
    }
    static shm::WireEndpoint wire(const char* address, Port port) { return OneTenant::wire(ip(address), port); }
    std::uint32_t socket(int protocol) {
        const std::uint32_t index = app.socket();
        app.segment.socket(index).protocol.store(static_cast<std::uint32_t>(protocol));
        return index;
    }
    std::uint64_t refused() { return counters.dropped(Drop::kTenantPolicy); }

    static constexpr shm::Geometry kGeometry{.sockets = 256, .app_sockets = 128, .tx_blocks = 64, .rx_blocks = 64,
                                             .queues = 4, .processes = 4, .accept_queues = 8};
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
