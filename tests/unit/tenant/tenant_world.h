// Two tenants on one stack, talking to each other over the interface's own address, with the application's side of the
// rings played by the test.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "daemon/tenant/tenant.h"
#include "tests/support/app_side.h"

namespace culvert::tenant {

using namespace std::chrono_literals;
using test::AppSide;

class Host : public stack::NeighborResolver, public stack::PortOwner {
public:
    Host() {
        stack::Interface interface;
        interface.index = 2;
        interface.name = "test0";
        interface.mac = {{2, 0, 0, 0, 0, 1}};
        interface.mtu = 1500;
        interface.up = true;
        interface.tx = &tx;
        stack.add_interface(interface);
        stack.set_interface_state(2, true, 1500);
        stack.set_addresses(2, {{kAddress, 24}});
        stack::Route route;
        route.destination = Address::v4(10, 0, 0, 0);
        route.prefix_length = 24;
        route.interface = 2;
        stack.routes().replace({route});
    }

    AppSide attach(Tenant*& tenant, std::uint32_t id, const shm::Geometry& geometry = kGeometry) {
        UniqueFd fd;
        auto segment = shm::Segment::create(geometry, "tenant", fd);
        auto shared = shm::Segment::open(fd.get(), geometry);
        tenants.push_back(std::make_unique<Tenant>(id, "test", std::move(*segment), stack, counters, commons, kSendLimits));
        tenant = tenants.back().get();
        const std::uint32_t slot = *tenant->add_process(100 + id);
        return {std::move(*shared), slot};
    }

    /// One turn of the engine, `later` after the last.
    void turn(Duration later = 1us) {
        now += later;
        for (auto& tenant : tenants) tenant->poll(now);
        if (stack.next_deadline() <= now) stack.advance(now);
        stack.flush(now);
        for (auto& tenant : tenants) tenant->deliver_events();
    }
    void turns(int count, Duration each = 1us) {
        for (int i = 0; i < count; ++i) turn(each);
    }

    void resolve(std::uint32_t, const Address&) override {}
    void take_port(Protocol, const Address&, Port port) override { ++taken[port]; }
    void release_port(Protocol, const Address&, Port port) override { --taken[port]; }

    static constexpr SendLimits kSendLimits{.least = 8 * 1024, .standard = 64 * 1024, .most = 400 * 1024};
    static constexpr Address kAddress = Address::v4(10, 0, 0, 1);
    static constexpr shm::Geometry kGeometry{.sockets = 192, .app_sockets = 64, .tx_blocks = 512, .rx_blocks = 512,
                                             .queues = 4, .processes = 4, .accept_queues = 2};

    Counters counters;
    Rng rng{1};
    FramePool pool{4096};
    TxQueue tx{pool};
    Instant now{1h};
    std::map<Port, int> taken;
    static stack::StackConfig config() {
        stack::StackConfig config;
        config.fast_open_server = true;
        return config;
    }
    stack::Stack stack{config(), *this, *this, counters, rng};
    Commons commons;
    std::vector<std::unique_ptr<Tenant>> tenants;
};

inline shm::WireEndpoint endpoint(const Address& address, Port port) {
    shm::WireEndpoint wire{};
    std::memcpy(wire.address, address.bytes().data(), 16);
    wire.port = port;
    wire.family = address.is_v4() ? 4 : 6;
    return wire;
}

class TenantTest : public testing::Test {
protected:
    TenantTest() : server(host.attach(server_tenant, 1)), client(host.attach(client_tenant, 2)) {}

    std::uint32_t listen(Port port, std::uint32_t backlog = 16) {
        const std::uint32_t listener = server.socket();
        server.submit(listener, shm::Operation::kListen, endpoint(Address::v4(0, 0, 0, 0), port), {}, backlog);
        host.turn();
        EXPECT_TRUE(server.answered(listener));
        EXPECT_EQ(server.answer(listener), 0);
        return listener;
    }
    /// A listener whose connections have that receive buffer.
    std::uint32_t listen_with(Port port, std::uint32_t receive_buffer) {
        const std::uint32_t listener = server.socket();
        server.segment.socket(listener).options.receive_buffer = receive_buffer;
        server.segment.socket(listener).app.options_version.store(2);
        server.submit(listener, shm::Operation::kListen, endpoint(Address::v4(0, 0, 0, 0), port), {}, 16);
        host.turn();
        EXPECT_EQ(server.answer(listener), 0);
        return listener;
    }
    std::uint32_t connect(Port from, Port to) {
        const std::uint32_t socket = client.socket();
        client.submit(socket, shm::Operation::kConnect, endpoint(Host::kAddress, from), endpoint(Host::kAddress, to));
        host.turns(6);
        return socket;
    }
    std::uint64_t drops(Drop reason) const { return host.counters.dropped(reason); }

    Host host;
    Tenant* server_tenant = nullptr;
    Tenant* client_tenant = nullptr;
    AppSide server;
    AppSide client;
};

}  // namespace culvert::tenant
