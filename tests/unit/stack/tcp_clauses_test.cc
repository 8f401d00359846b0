// Clauses of RFC 9293 that no other test of TCP is about, each in its smallest transcript (tests/clauses).
#include "tests/support/stack_test.h"

namespace culvert::test {
namespace {

using stack::tcp::Options;
using stack::tcp::State;

class TcpClauses : public testing::TestWithParam<bool> {
protected:
    StackTest& over_family(StackTest& t) const { return GetParam() ? t : t.over_ipv6(); }
    Address address(const char* v4, const char* v6) const { return *Address::parse(GetParam() ? v4 : v6); }
};

INSTANTIATE_TEST_SUITE_P(Families, TcpClauses, testing::Bool(),
                         [](const auto& param) { return param.param ? "Ipv4" : "Ipv6"; });

TEST_P(TcpClauses, AWindowIsNeverNegativeAndHas32Bits) {  // [RFC9293 3.1 MUST-1, REC-1]
    StackTest t;
    over_family(t).established({}, syn_ack().mss(1000).window(0x9000));
    t.send(std::string(10000, 'x'));  // the initial window
    for (std::uint32_t i = 0; i < 10; ++i) t.expect(ack().seq(1 + i * 1000).len(1000));
    EXPECT_EQ(t.connection->info().send_window, 0x9000u);

    StackTest u;
    over_family(u).established({}, syn_ack().mss(1000).wscale(14));
    u.inject(ack().seq(1).ack(1).window(0xffff));
    EXPECT_EQ(u.connection->info().send_window, 0xffffu << 14);
    u.send("data").expect(ack().seq(1).data("data"));
}

TEST_P(TcpClauses, OptionsMayStandInAnySegment) {  // [RFC9293 3.1 MUST-5]
    StackTest t;
    over_family(t).established({}, syn_ack().mss(1000).ts(1, 0));
    const std::uint32_t mss = t.connection->info().mss;
    t.inject(ack().seq(1).ack(1).data("data").mss(600).wscale(5).ts(2, t.last.options.timestamps->value));
    EXPECT_EQ(t.app.received, "data");
    t.after(50ms).expect(ack().ack(5).ts_echo(2));
    EXPECT_EQ(t.connection->info().mss, mss) << "what may only stand in a SYN means nothing elsewhere";
}

TEST_P(TcpClauses, SynReceivedKnowsWhereItCameFrom) {  // [RFC9293 3.10.7.4 MUST-11]
    StackTest passive;
    over_family(passive).listen();
    passive.inject(syn().seq(0).mss(1000));
    passive.expect(syn_ack().seq(0).ack(1));
    passive.inject(rst().seq(1)).expect_nothing();
    EXPECT_EQ(passive.host.tcp.usage().half_open, 0u);
    EXPECT_EQ(passive.accepted, 0);
    passive.iss_known = false;
    passive.inject(syn().seq(0).mss(1000)).expect(syn_ack().seq(0).ack(1));  // it listens as before
    passive.inject(ack().seq(1).ack(1));
    EXPECT_EQ(passive.accepted, 1);

    StackTest active;
    over_family(active).connect();
    active.expect(syn().seq(0));
    active.inject(syn().seq(0).mss(1000)).expect(syn_ack().seq(0).ack(1));
    EXPECT_EQ(active.state(), State::kSynReceived);
    active.inject(rst().seq(1));
    EXPECT_TRUE(active.app.closed);
    EXPECT_EQ(active.app.error, ECONNREFUSED);
}

TEST_P(TcpClauses, MssIsSentAlsoWhereItIsTheDefault) {  // [RFC9293 3.7.1 SHLD-5, MAY-3, MUST-67]
    const bool v4 = GetParam();
    StackTest t(StackTest::with_defaults({.mtu = v4 ? 576u : 1280u}));
    over_family(t).connect();
    t.expect(syn().seq(0).mss(v4 ? 536 : 1220));

    StackTest u(StackTest::with_defaults({.mtu = 9000}));
    over_family(u).listen();
    u.inject(syn().seq(0).mss(1000)).expect(syn_ack().mss(v4 ? 8960 : 8940));
}

TEST_P(TcpClauses, ListenersAndConnectionsDoNotDisturbEachOther) {  // [RFC9293 3.9.1.1 MUST-41, MUST-42]
    StackTest t;
    over_family(t);
    stack::tcp::Listener& first = t.listen();
    t.inject(syn().seq(0).mss(1000)).expect(syn_ack().seq(0).ack(1));
    t.inject(ack().seq(1).ack(1));
    ASSERT_EQ(t.accepted, 1);
    stack::tcp::Connection& old = *t.connection;
    t.host.tcp.close(first);
    t.listen();  // while a connection on the port is open
    t.inject(ack().seq(1).ack(1).data("still here"));
    EXPECT_EQ(t.app.received, "still here");
    t.after(50ms).expect(ack().seq(1).ack(11));
    t.remote.port = 50001;
    t.iss_known = false;
    t.inject(syn().seq(0).mss(1000)).expect(syn_ack().seq(0).ack(1));
    t.inject(ack().seq(1).ack(1));
    EXPECT_EQ(t.accepted, 2);
    EXPECT_NE(t.connection, &old);
    EXPECT_EQ(old.state(), State::kEstablished);
}

TEST_P(TcpClauses, TheLocalAddressIsGivenAndStays) {  // [RFC9293 3.9.1.1 MUST-43, MUST-45]
    StackTest t;
    over_family(t);
    const Address first = t.local.address, second = address("10.0.0.9", "fd00::9");
    const std::uint32_t prefix = GetParam() ? 24 : 64;
    const auto have = [&](std::vector<stack::InterfaceAddress> addresses) {
        t.host.eth0.addresses = std::move(addresses);
        stack::Interface* all[] = {&t.host.eth0};
        t.host.output.set_interfaces(all);
        t.host.routes.touch();
    };
    have({{first, prefix}, {second, prefix}});
    t.local.address = second;
    t.established();
    EXPECT_EQ(t.last.from.address, second);
    have({{second, prefix}, {first, prefix}});
    t.send("data").expect(ack().seq(1).data("data"));
    EXPECT_EQ(t.last.from.address, second);
    EXPECT_EQ(t.connection->local().address, second);
}

TEST_P(TcpClauses, NoConnectionHasManyPeers) {  // [RFC9293 3.9.1.1 MUST-46]
    StackTest t;
    over_family(t);
    std::vector<Address> many = {address("224.0.0.1", "ff02::1"), address("239.1.2.3", "ff05::2")};
    if (GetParam()) many.insert(many.end(), {Address::v4(255, 255, 255, 255), Address::v4(10, 0, 0, 255)});
    for (const Address& to : many) {
        const auto opened = t.host.tcp.connect(t.local, {to, 80}, {}, t.app, t.now);
        ASSERT_FALSE(opened) << to.to_string();
        EXPECT_EQ(opened.error().code, ENETUNREACH) << to.to_string();
    }
    t.expect_nothing();
    EXPECT_EQ(t.host.tcp.usage().flows, 0u);
    EXPECT_TRUE(t.host.ports.held.empty());
}

TEST_P(TcpClauses, ASoftErrorIsTheReasonOfALaterEnd) {  // [RFC9293 3.9.1.8 MUST-47] [RFC9293 3.9.2.2 SHLD-25]
    StackTest t;
    over_family(t).established({.user_timeout = 5s});
    t.send("data").expect(ack().seq(1).data("data"));
    t.icmp_error(t.our_iss + 1, EHOSTUNREACH);
    EXPECT_FALSE(t.app.closed);
    t.after(10s).skip_output();
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.app.error, EHOSTUNREACH);

    StackTest u;  // it has passed
    over_family(u).established({.user_timeout = 5s});
    u.send("data").expect(ack().seq(1).data("data"));
    u.icmp_error(u.our_iss + 1, EHOSTUNREACH);
    u.inject(ack().seq(1).ack(5));
    u.send("more").expect(ack().seq(5).data("more"));
    u.after(10s).skip_output();
    EXPECT_EQ(u.app.error, ETIMEDOUT);
}

TEST_P(TcpClauses, TheOwnerHearsOfASoftErrorAndOfItsEnd) {  // [RFC9293 3.9.1.8 SHLD-20] [RFC9293 3.9.2.2 MUST-56]
    StackTest t;
    over_family(t).established();
    t.icmp_error(t.our_iss + 1, ENETUNREACH);  // of an ACK, say: nothing is in flight
    t.send("data").expect(ack().seq(1).data("data"));
    t.icmp_error(t.our_iss + 6, ECONNREFUSED);  // nothing that was sent
    t.icmp_error(t.our_iss + 1, EHOSTUNREACH);
    EXPECT_EQ(t.app.soft_errors, (std::vector<int>{ENETUNREACH, EHOSTUNREACH}));
    t.inject(ack().seq(1).ack(5));
    t.send("more").expect(ack().seq(5).data("more"));
    t.inject(ack().seq(1).ack(9));
    EXPECT_EQ(t.app.soft_errors, (std::vector<int>{ENETUNREACH, EHOSTUNREACH, 0}));
    EXPECT_FALSE(t.app.closed);
}

TEST_P(TcpClauses, DiffservAndTtlAreTheApplications) {  // [RFC9293 3.9.1 MUST-48, MUST-49, SHLD-21, SHLD-22]
    StackTest t;
    over_family(t).established({.tos = 0xb8, .ttl = 9});
    EXPECT_EQ(t.last.tos, 0xb8);
    EXPECT_EQ(t.last.ttl, 9);
    t.send("data").expect(ack().seq(1).data("data"));
    EXPECT_EQ(t.last.tos, 0xb8);
    EXPECT_EQ(t.last.ttl, 9);
    t.connection->set_options({.tos = 0x28, .ttl = 200});
    t.inject(ack().seq(1).ack(5));
    t.send("more").expect(ack().seq(5).data("more"));
    EXPECT_EQ(t.last.tos, 0x28);
    EXPECT_EQ(t.last.ttl, 200);
    t.connection->set_options({});
    t.inject(ack().seq(1).ack(9));
    t.send("last").expect(ack().seq(9).data("last"));
    EXPECT_EQ(t.last.tos, 0);
    EXPECT_EQ(t.last.ttl, 64);
}

TEST_P(TcpClauses, AResetCountsWithAClosedWindow) {  // [RFC9293 3.10.7.4 MUST-66]
    StackTest t;
    over_family(t);
    t.app.reads = false;
    t.accepted_connection({.receive_buffer = 4096});
    t.inject(ack().seq(1).ack(1).len(4096));
    t.expect(ack().ack(4097).window(0));
    t.inject(rst().seq(4097));
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.app.error, ECONNRESET);
}

TEST_P(TcpClauses, AShrunkWindowHoldsNewDataAndRepeatsTheOld) {  // [RFC9293 3.8.6 MUST-34, SHLD-15, SHLD-16, SHLD-17, MAY-7]
    StackTest t;
    over_family(t).established({}, syn_ack().mss(1000).window(3000));
    t.send(std::string(4000, 'x'));
    for (std::uint32_t i = 0; i < 3; ++i) t.expect(ack().seq(1 + i * 1000).len(1000));
    t.inject(ack().seq(1).ack(1).window(1000));  // it was 3000
    t.expect_nothing();
    t.after(300ms).expect(ack().seq(1).len(1000));  // within the window
    t.inject(ack().seq(1).ack(1001).window(0));     // all that is left lies beyond
    for (int i = 0; i < 40; ++i) {
        t.after(125s).skip_output();
        ASSERT_FALSE(t.app.closed) << "the peer answers: " << i << t.transcript();
        t.inject(ack().seq(1).ack(1001).window(0));
    }
    t.skip_output();
    t.inject(ack().seq(1).ack(3001).window(3000));  // it had them
    t.expect(ack().seq(3001).len(1000));
}

}  // namespace
}  // namespace culvert::test
