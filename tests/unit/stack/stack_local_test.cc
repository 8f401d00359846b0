// Two sockets of one stack, on our own address: nothing goes to the device, everything is delivered inside.
#include "daemon/stack/stack.h"

#include "daemon/stack/udp.h"

#include "tests/support/tcp_host.h"

namespace culvert::test {
namespace {

class StackLocal : public ::testing::Test, public stack::tcp::ListenerOwner {
protected:
    StackLocal() {
        stack::Interface eth0;
        eth0.index = 2;
        eth0.name = "eth0";
        eth0.mac = MacAddress{{2, 0, 0, 0, 0, 1}};
        eth0.up = true;
        eth0.tx = &tx;
        eth0.addresses = {{own4, 24}, {own6, 64}};
        stack.add_interface(std::move(eth0));
        stack.add_interface(stack::loopback_interface(tx));
    }
    bool can_accept() override { return true; }
    stack::tcp::ConnectionOwner* on_accept(stack::tcp::Connection& opened) override {
        accepted = &opened;
        return &server;
    }
    void turns(int count) {
        for (int i = 0; i < count; ++i) {
            now += 1ms;
            stack.advance(now);
            stack.flush(now);
        }
    }
    void talk(const Address& address) {
        EXPECT_FALSE(stack.source_for({address, 80}).has_value());  // not ours yet: the kernel's
        auto listener = stack.listen({address, 80}, false, {}, *this);
        ASSERT_TRUE(listener.has_value());
        ASSERT_EQ(stack.source_for({address, 80}).value(), address);
        auto opened = stack.connect({address, 40000}, {address, 80}, {}, client, now);
        ASSERT_TRUE(opened.has_value());
        turns(1);
        ASSERT_NE(accepted, nullptr);
        EXPECT_TRUE(client.established);

        const std::string request(100'000, 'q');
        const std::string reply(300'000, 'r');
        client.send(**opened, request);
        for (int i = 0; i < 50 && server.received.size() < request.size(); ++i) turns(1);
        EXPECT_EQ(server.received, request);
        server.send(*accepted, reply);
        accepted->shutdown_write();
        for (int i = 0; i < 50 && !client.end_of_stream; ++i) turns(1);
        EXPECT_EQ(client.received, reply);
        EXPECT_TRUE(client.end_of_stream);
        (*opened)->shutdown_write();
        turns(2);
        EXPECT_TRUE(client.closed && server.closed);
        EXPECT_EQ(client.error, 0);
        EXPECT_EQ(server.error, 0);
        EXPECT_EQ(counters.tcp_retransmits, 0u);
        EXPECT_TRUE(tx.pending().empty());
        stack.close(**listener);
        now += 61s;
        turns(2);
        EXPECT_EQ(pool.available(), pool.count());
        EXPECT_TRUE(ports.held.empty());
        EXPECT_EQ(stack.next_deadline(), kNever);
    }

    const Address own4 = Address::v4(10, 0, 0, 1);
    const Address own6 = *Address::parse("fd00::1");
    FramePool pool{1024};
    TxQueue tx{pool};
    Counters counters;
    Rng rng{1};
    NoResolver resolver;
    RecordingPorts ports;
    stack::Stack stack{small_stack_config(), resolver, ports, counters, rng};
    App client;
    App server;
    stack::tcp::Connection* accepted = nullptr;
    Instant now{1h};
};

TEST_F(StackLocal, TalksToItselfOverIpv4) { talk(own4); }
TEST_F(StackLocal, TalksToItselfOverIpv6) { talk(own6); }
TEST_F(StackLocal, TalksToItselfOnLoopbackOverIpv4) { talk(Address::v4(127, 0, 0, 1)); }
TEST_F(StackLocal, TalksToItselfOnLoopbackOverIpv6) { talk(*Address::parse("::1")); }

TEST_F(StackLocal, OnlyOneAddressOf127IsOurs) {
    auto listener = stack.listen({Address::any(Family::kIpv4), 80}, false, {}, *this);
    ASSERT_TRUE(listener.has_value());
    EXPECT_TRUE(stack.source_for({Address::v4(127, 0, 0, 1), 80}).has_value());
    EXPECT_EQ(stack.source_for({Address::v4(127, 0, 0, 2), 80}).error().code, EHOSTUNREACH);
    EXPECT_EQ(stack.source_for({Address::v4(127, 0, 0, 1), 81}).error().code, EHOSTUNREACH) << "the kernel's port";
    EXPECT_EQ(stack.source_for({*Address::parse("::1"), 80}).error().code, EHOSTUNREACH) << "the listener is IPv4's";
    stack.close(**listener);
}

/// A datagram socket that keeps what it gets.
struct Mailbox : stack::udp::SocketOwner {
    bool on_datagram(stack::udp::Socket&, const stack::udp::DatagramInfo& info, stack::Payload, std::uint32_t length) override {
        got.push_back({info.remote, length});
        local = info.local;
        interface = info.interface;
        return true;
    }
    void on_error(stack::udp::Socket&, const stack::udp::DatagramError&) override {}
    std::vector<std::pair<Endpoint, std::uint32_t>> got;
    Address local = Address::any(Family::kIpv6);
    std::uint32_t interface = 0;
};

TEST_F(StackLocal, DatagramsOnLoopback) {
    for (const char* text : {"127.0.0.1", "::1"}) {
        SCOPED_TRACE(text);
        const Address inside = *Address::parse(text);
        Mailbox mailbox, sender;
        stack::udp::Socket* const at = *stack.bind_udp({Address::any(inside.family()), 53}, false, mailbox);
        stack::udp::Socket* const from = *stack.bind_udp({Address::any(inside.family()), 40000}, false, sender);
        EXPECT_EQ(stack.route_datagram(from, {inside, 53}, 0)->source, inside);
        EXPECT_FALSE(stack.route_datagram(from, {inside, 54}, 0)) << "the kernel's port";
        const std::byte byte{1};
        const std::span<const std::byte> part(&byte, 1);
        const stack::Payload payload(&part, 1);
        EXPECT_TRUE(stack.send_datagram(*from, {inside, 53}, payload, 1, {}, now));
        turns(1);
        ASSERT_EQ(mailbox.got.size(), 1u);
        EXPECT_EQ(mailbox.got[0].first, (Endpoint{inside, 40000}));
        EXPECT_EQ(mailbox.local, inside);
        EXPECT_EQ(mailbox.interface, stack::kLoopbackIndex);
        // A socket that is bound to it reaches nobody else.
        Mailbox bound;
        stack::udp::Socket* const on_loopback = *stack.bind_udp({inside, 40001}, false, bound);
        const Endpoint far{inside.is_v4() ? Address::v4(10, 0, 0, 9) : *Address::parse("fd00::9"), 53};
        EXPECT_FALSE(stack.route_datagram(on_loopback, far, 0));
        EXPECT_FALSE(stack.send_datagram(*on_loopback, far, payload, 1, {}, now));
        EXPECT_FALSE(stack.send_datagram(*from, far, payload, 1, {.source = inside}, now));
        EXPECT_TRUE(tx.pending().empty());
        for (stack::udp::Socket* socket : {at, from, on_loopback}) stack.close(*socket);
        turns(1);
        EXPECT_EQ(pool.available(), pool.count());
    }
}

}  // namespace
}  // namespace culvert::test
