// One tenant on a stack of its own, with the application's side of the rings played by the test: for sockets whose other end is the
// wire. Interfaces are the test's to add.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "daemon/stack/link/multicast_groups.h"
#include "daemon/tenant/tenant.h"
#include "tests/support/app_side.h"
#include "tests/unit/stack/ip_world.h"

namespace culvert::tenant {

using test::AppSide;

struct Received {
    shm::DatagramHeader header;
    std::string payload;
};

class OneTenant : public stack::NeighborResolver, public stack::PortOwner {
protected:
    explicit OneTenant(const shm::Geometry& geometry) : app(attach(geometry)) {}

    stack::Interface& add_interface(std::uint32_t index, std::vector<stack::InterfaceAddress> addresses) {
        stack::Interface interface;
        interface.index = index;
        interface.mac = stack::kOurMac;
        interface.up = true;
        interface.tx = &tx;
        stack::Interface& added = stack.add_interface(interface);
        stack.set_addresses(index, std::move(addresses));
        return added;
    }
    /// 10.0.0.1 and fd00::1 on interface 7, and routes to their networks.
    stack::Interface& add_eth0(std::initializer_list<const char*> neighbors) {
        stack::Interface& eth0 = add_interface(7, {{stack::ip("10.0.0.1"), 24}, {stack::ip("fd00::1"), 64}});
        stack.routes().replace({{.destination = stack::ip("10.0.0.0"), .prefix_length = 24, .interface = 7},
                                {.destination = stack::ip("fd00::"), .prefix_length = 64, .interface = 7}});
        know(neighbors);
        return eth0;
    }
    /// Of interface 7.
    void know(std::initializer_list<const char*> neighbors) {
        for (const char* neighbor : neighbors)
            stack.neighbors().update(7, stack::ip(neighbor), stack::kPeerMac, stack::NeighborState::kReachable, tx);
    }
    static shm::WireEndpoint wire(const Address& address, Port port = 0) {
        shm::WireEndpoint out{};
        std::memcpy(out.address, address.bytes().data(), 16);
        out.port = port;
        out.family = address.is_v4() ? 4 : 6;
        return out;
    }
    void turn() {
        now += std::chrono::microseconds(1);
        tenant->poll(now);
        if (stack.next_deadline() <= now) stack.advance(now);
        stack.flush(now);
        tenant->deliver_events();
    }
    int operate(std::uint32_t socket, shm::Operation code, const shm::WireEndpoint& local, const shm::WireEndpoint& remote,
                std::uint32_t argument = 0) {
        app.submit(socket, code, local, remote, argument);
        turn();
        EXPECT_TRUE(app.answered(socket));
        return app.answer(socket);
    }
    /// Every datagram that has arrived.
    std::vector<Received> receive(std::uint32_t socket) {
        std::string bytes = app.receive(socket);
        std::vector<Received> all;
        while (bytes.size() >= sizeof(shm::DatagramHeader)) {
            Received one{};
            std::memcpy(&one.header, bytes.data(), sizeof one.header);
            one.payload = bytes.substr(sizeof one.header, one.header.length);
            bytes.erase(0, sizeof one.header + one.header.length);
            all.push_back(one);
        }
        EXPECT_TRUE(bytes.empty());
        return all;
    }

    Counters counters;
    Rng rng{1};
    FramePool pool{512};
    TxQueue tx{pool};
    Instant now{std::chrono::hours(1)};
    stack::MulticastGroups groups;  // for a stack that is given some
    stack::Stack stack{{}, *this, *this, counters, rng};
    Commons commons;
    std::unique_ptr<Tenant> tenant;
    AppSide app;

private:
    AppSide attach(const shm::Geometry& geometry) {
        UniqueFd fd;
        auto segment = shm::Segment::create(geometry, "tenant", fd);
        auto shared = shm::Segment::open(fd.get(), geometry);
        tenant = std::make_unique<Tenant>(1, "test", std::move(*segment), stack, counters, commons);
        const std::uint32_t slot = *tenant->add_process(100);
        return {std::move(*shared), slot};
    }
    void resolve(std::uint32_t, const Address&) override {}
    void take_port(Protocol, const Address&, Port) override {}
    void release_port(Protocol, const Address&, Port) override {}
};

}  // namespace culvert::tenant
