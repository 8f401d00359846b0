// Two sockets of one stack, on our own address: nothing goes to the device, everything is delivered inside.
#include "daemon/stack/stack.h"

#include "tests/support/tcp_host.h"

namespace culvert::test {
namespace {

class StackLocal : public ::testing::Test, public stack::tcp::ListenerOwner {
protected:
    StackLocal() {
        stack::Interface eth0;
        eth0.index = 1;
        eth0.name = "eth0";
        eth0.mac = MacAddress{{2, 0, 0, 0, 0, 1}};
        eth0.up = true;
        eth0.tx = &tx;
        eth0.addresses = {{own4, 24}, {own6, 64}};
        stack.add_interface(std::move(eth0));
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

}  // namespace
}  // namespace culvert::test
