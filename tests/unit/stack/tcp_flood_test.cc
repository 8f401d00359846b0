// More SYNs than anybody means: cookies instead of memory, and those who mean it get through.
#include <set>

#include "tests/support/stack_test.h"

namespace culvert::test {
namespace {

using stack::tcp::State;
using stack::tcp::SynCookiePolicy;

HostConfig with_cookies(SynCookiePolicy policy, std::uint32_t half_open = 64) {
    HostConfig config;
    config.stack = small_stack_config();
    config.stack.syn_cookies = policy;
    config.stack.max_half_open = half_open;
    return config;
}

class SynCookies : public ::testing::TestWithParam<bool> {
protected:
    SynCookies() : t(with_cookies(SynCookiePolicy::kAlways)) {
        if (GetParam()) t.over_ipv6();
    }
    StackTest t;
};
INSTANTIATE_TEST_SUITE_P(Family, SynCookies, ::testing::Bool(), [](const auto& i) { return i.param ? "IPv6" : "IPv4"; });

TEST_P(SynCookies, NothingIsRememberedAndTheConnectionIsWhole) {  // [RFC4987 3.6]
    t.listen();
    t.inject(syn().seq(0).mss(1400).sack_ok().wscale(5).ts(1000, 0));
    EXPECT_EQ(t.host.tcp.usage().half_open, 0u);
    EXPECT_EQ(t.host.tcp.usage().flows, 0u);
    t.expect(syn_ack().seq(0).ack(1).sack_ok().wscale(7).ts_echo(1000));
    const std::uint32_t stamp = t.last.options.timestamps->value;
    t.after(300ms).expect_nothing();
    t.inject(ack().seq(1).ack(1).window(200).ts(1001, stamp));
    ASSERT_NE(t.connection, nullptr);
    EXPECT_EQ(t.state(), State::kEstablished);
    auto info = t.connection->info();
    EXPECT_EQ(info.mss, 1360u - 12);  // of the eight
    EXPECT_TRUE(info.timestamps && info.sack && info.window_scaling);
    EXPECT_EQ(info.send_scale, 5);
    EXPECT_EQ(info.send_window, 200u << 5);
    EXPECT_EQ(info.srtt, Duration::zero());  // nobody knows when the SYN-ACK left
    EXPECT_EQ(info.rto, 1s);
    EXPECT_EQ(t.host.counters.tcp_syn_cookies_sent, 1u);
    EXPECT_EQ(t.host.counters.tcp_syn_cookies_accepted, 1u);
    EXPECT_EQ(t.host.counters.tcp_passive_opens, 1u);

    t.inject(ack().seq(1).ack(1).data("request").ts(1002, stamp));
    EXPECT_EQ(t.app.received, "request");
    t.send("reply").expect(ack().seq(1).ack(8).data("reply").ts_echo(1002));
    EXPECT_GE(static_cast<std::int32_t>(t.last.options.timestamps->value - stamp), 0);  // PAWS at the peer
    t.inject(ack().seq(8).ack(6).ts(1003, t.last.options.timestamps->value));
    EXPECT_EQ(t.app.acknowledged, 5u);
    t.inject(ack().seq(12).ack(6).data("behind a hole").ts(1004, stamp));
    t.expect(ack().seq(6).ack(8).sack(12, 25));
    t.inject(rst().seq(8));
    EXPECT_EQ(t.host.tcp.usage().flows, 0u);
}

TEST_P(SynCookies, WithoutTimestampsScaleAndSackAreGivenUp) {
    t.listen();
    t.inject(syn().seq(0).mss(1460).sack_ok().wscale(5));
    t.expect(syn_ack().seq(0).ack(1).sack_ok(false).wscale(255).no_ts());
    t.inject(ack().seq(1).ack(1).window(200));
    ASSERT_NE(t.connection, nullptr);
    const auto info = t.connection->info();
    EXPECT_FALSE(info.sack || info.timestamps || info.window_scaling);
    EXPECT_EQ(info.send_window, 200u);
    EXPECT_EQ(info.mss, GetParam() ? 1440u : 1460u);
    t.send("x").expect(ack().seq(1).ack(1).data("x").window(65535));
    t.inject(ack().seq(1).ack(2));
}

TEST_P(SynCookies, NoMssOptionMeansTheDefault) {  // [RFC9293 3.7.1 MUST-15]
    t.listen();
    t.inject(syn().seq(0));
    t.expect(syn_ack().seq(0).ack(1));
    t.inject(ack().seq(1).ack(1));
    ASSERT_NE(t.connection, nullptr);
    EXPECT_EQ(t.connection->info().mss, GetParam() ? 1220u : 536u);
}

TEST_P(SynCookies, DataBringsTheCookieWhenTheAckIsLost) {
    t.listen();
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
    t.inject(ack().seq(1).ack(1).data("request"));
    ASSERT_NE(t.connection, nullptr);
    EXPECT_EQ(t.app.received, "request");
    t.after(50ms).expect(ack().seq(1).ack(8));
}

// Found by simulation (seed 48): what follows the first data cannot prove its cookie, and must not end the connection.
TEST_P(SynCookies, DataThatOvertakesTheFirstIsNotReset) {
    t.listen();
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
    t.inject(ack().seq(8).ack(1).data("body"));
    t.inject(fin().seq(12).ack(1));
    t.inject(ack().seq(13).ack(1));  // the answer to a SYN-ACK that came twice
    t.expect_nothing();
    EXPECT_EQ(t.dropped(Drop::kTcpSynCookieEarly), 3u);
    EXPECT_EQ(t.connection, nullptr);
    t.inject(ack().seq(1).ack(1).data("request"));
    ASSERT_NE(t.connection, nullptr);
    EXPECT_EQ(t.app.received, "request");
    t.skip_output();
    // An acknowledgement that is no cookie of these minutes is nobody's, data or not.
    t.remote.port = 50001;
    t.inject(ack().seq(1).ack(1 + (5u << 27)).data("stray"));
    t.expect(rst().seq(1 + (5u << 27)));
}

TEST_P(SynCookies, RepeatedSynGetsTheSameCookie) {
    t.listen();
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
}

// A segment of a connection that the kernel had when the port was taken is not for us to end.
TEST_P(SynCookies, StrangersThatAreTheKernelsGetSilence) {
    t.listen();
    t.host.ports.elsewhere.insert(t.remote);
    t.inject(ack().seq(1).ack(0x1234567).data("late"));
    t.expect_nothing();
    EXPECT_EQ(t.dropped(Drop::kTcpElsewhere), 1u);
    t.host.ports.elsewhere.clear();
    t.inject(ack().seq(1).ack(0x1234567).data("late"));
    t.expect(rst().seq(0x1234567));
}

TEST_P(SynCookies, ForgedAndOldOnesAreResetAndCounted) {  // [RFC9293 3.10.7.2] an ACK to LISTEN
    t.listen();
    t.inject(ack().seq(1).ack(0x1234567));  // none was given out: not even looked at
    t.expect(rst().seq(0x1234567));
    EXPECT_EQ(t.host.counters.tcp_syn_cookies_failed, 0u);
    EXPECT_EQ(t.dropped(Drop::kTcpStray), 1u);
    EXPECT_EQ(t.dropped(Drop::kTcpNoListener), 0u) << "somebody does listen";

    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
    t.inject(ack().seq(1).ack(2));  // nearly right: perhaps of a peer whose first segment is still to come
    t.inject(ack().seq(2).ack(1));  // another ISN of the peer's
    t.expect_nothing();
    EXPECT_EQ(t.dropped(Drop::kTcpSynCookieEarly), 2u);
    for (const std::uint32_t minute : {5u, 6u}) {  // no cookie of these minutes
        t.inject(ack().seq(1).ack(1 + (minute << 27)));
        t.expect(rst().seq(1 + (minute << 27)));
    }
    EXPECT_EQ(t.dropped(Drop::kTcpSynCookieInvalid), 2u);
    t.after(119s);
    t.remote.port = 50001;
    t.inject(syn().seq(0).mss(1460));  // keeps the listener looking
    t.skip_output();
    t.remote.port = 50000;
    t.after(2s).inject(ack().seq(1).ack(1));
    t.expect(rst().seq(1));
    EXPECT_EQ(t.dropped(Drop::kTcpSynCookieExpired), 1u);
    EXPECT_EQ(t.host.counters.tcp_syn_cookies_failed, 3u);
    EXPECT_EQ(t.connection, nullptr);
    EXPECT_EQ(t.host.tcp.usage().flows, 0u);
}

TEST_P(SynCookies, FullAcceptQueueWaitsForTheClientToAskAgain) {
    t.room_to_accept = false;
    t.listen();
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
    t.inject(ack().seq(1).ack(1));
    EXPECT_EQ(t.dropped(Drop::kTcpAcceptQueueFull), 1u);
    t.expect_nothing();
    t.room_to_accept = true;
    t.after(1s).inject(ack().seq(1).ack(1).data("again"));
    ASSERT_NE(t.connection, nullptr);
    EXPECT_EQ(t.app.received, "again");
    t.skip_output();
}

TEST_P(SynCookies, SynBeyondTimeWaitIsRemembered) {
    // Its ISS must lie above the old incarnation's, which a cookie cannot promise. [RFC1122 4.2.2.13]
    t.listen();
    t.inject(syn().seq(0).mss(1460));
    t.expect(syn_ack().seq(0).ack(1));
    t.inject(ack().seq(1).ack(1));
    t.shutdown_write().expect(fin().seq(1).ack(1));
    t.inject(fin().seq(1).ack(2));
    t.expect(ack().seq(2).ack(2));
    EXPECT_EQ(t.host.tcp.usage().time_wait, 1u);
    t.inject(syn().seq(100000).mss(1460));
    EXPECT_EQ(t.host.tcp.usage().half_open, 1u);
    t.expect(syn_ack().ack(100001).seq(2 + 65537));
}

TEST(SynCookiePolicy, AutoBeginsWhenTheQueueIsFullAndEndsWithTheFlood) {  // [RFC4987 3.6]
    StackTest t(with_cookies(SynCookiePolicy::kAuto));
    t.listen();
    for (Port port = 1; port <= 64; ++port) {
        t.remote.port = port;
        t.inject(syn().seq(0).mss(1460));
    }
    EXPECT_EQ(t.host.counters.tcp_syn_cookies_sent, 0u);
    for (Port port = 65; port <= 128; ++port) {
        t.remote.port = port;
        t.inject(syn().seq(0).mss(1460));
    }
    EXPECT_EQ(t.host.counters.tcp_syn_cookies_sent, 64u);
    EXPECT_EQ(t.host.tcp.usage().half_open, 64u);
    EXPECT_EQ(t.dropped(Drop::kTcpSynQueueFull), 0u);
    t.skip_output();
    t.after(70s).skip_output();  // the half-open ones give up
    t.remote.port = 200;
    t.inject(syn().seq(0).mss(1460).sack_ok());
    t.expect(syn_ack().ack(1).sack_ok());  // remembered again, with all its options
    EXPECT_EQ(t.host.tcp.usage().half_open, 1u);
    EXPECT_EQ(t.host.counters.tcp_syn_cookies_sent, 64u);
}

/// One SYN a call from an address and port nobody has heard of.
class Flood {
public:
    Flood(StackTest& test, std::uint64_t seed) : t_(test), rng_(seed) {}
    void syn() {
        const Endpoint honest = std::exchange(t_.remote, source());
        Seg segment{wire::kSyn};
        segment.seq(static_cast<std::uint32_t>(rng_.next())).mss(1460);
        if ((rng_.next() & 1) != 0) segment.sack_ok().wscale(7).ts(static_cast<std::uint32_t>(rng_.next()), 0);
        const Bytes frame = t_.frame_of(segment);
        t_.remote = honest;
        t_.host.receive(frame, t_.now);
    }

private:
    Endpoint source() {
        const std::uint64_t bits = rng_.next();
        const auto byte = [&](int i) { return static_cast<std::uint8_t>(bits >> (8 * i)); };
        const Port port = static_cast<Port>(bits >> 48 | 1);
        if (t_.local.address.is_v4()) return {Address::v4(198, static_cast<std::uint8_t>(18 | (byte(0) & 1)), byte(1), byte(2)), port};
        std::array<std::byte, 16> address{};
        address[0] = std::byte{0x20};
        address[1] = std::byte{0x01};
        for (int i = 0; i < 6; ++i) address[static_cast<std::size_t>(8 + i)] = std::byte{byte(i)};
        return {Address::from_v6(address), port};
    }
    StackTest& t_;
    Rng rng_;
};

struct EchoServer final : stack::tcp::ListenerOwner {
    bool can_accept() override { return true; }
    stack::tcp::ConnectionOwner* on_accept(stack::tcp::Connection& opened) override {
        connections.push_back(&opened);
        return &apps.emplace_back();
    }
    std::deque<App> apps;
    std::vector<stack::tcp::Connection*> connections;
};

class SynFlood : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Family, SynFlood, ::testing::Bool(), [](const auto& i) { return i.param ? "IPv6" : "IPv4"; });

// 100,000 SYNs a second for ten seconds. Who is connected goes on; who comes now is served at once; memory is bounded.
TEST_P(SynFlood, HundredThousandASecondForTenSeconds) {  // [RFC4987 3.6]
    StackTest t(with_cookies(SynCookiePolicy::kAuto, 8192));
    if (GetParam()) t.over_ipv6();
    t.host.routes.replace({{.destination = Address::v4(0, 0, 0, 0), .prefix_length = 0, .gateway = Address::v4(10, 0, 0, 3), .interface = 1},
                           {.destination = *Address::parse("::"), .prefix_length = 0, .gateway = *Address::parse("fd00::3"), .interface = 1},
                           {.destination = Address::v4(10, 0, 0, 0), .prefix_length = 24, .interface = 1},
                           {.destination = *Address::parse("fd00::"), .prefix_length = 64, .interface = 1}});
    EchoServer server;
    t.local.port = 80;
    ASSERT_TRUE(t.host.tcp.listen(t.local, false, {}, server).has_value());
    const auto settle = [&] {  // what nobody waits for goes to where it was asked for
        t.host.tcp.flush(t.now);
        t.host.take_frames();
    };
    const auto open = [&](Port port) {
        t.remote.port = port;
        t.iss_known = false;
        t.inject(syn().seq(0).mss(1460).sack_ok().wscale(7).ts(1, 0));
        t.expect(syn_ack().seq(0).ack(1).sack_ok().wscale(7));
        t.inject(ack().seq(1).ack(1).ts(2, t.last.options.timestamps->value));
    };

    open(1000);
    ASSERT_EQ(server.connections.size(), 1u);
    const std::uint32_t old_iss = t.our_iss;
    std::uint32_t old_sent = 0;
    Flood flood(t, 7);
    const int seconds = 10;
    Port next = 2000;
    for (int ms = 0; ms < seconds * 1000; ++ms) {
        for (int i = 0; i < 100; ++i) flood.syn();
        settle();
        t.now += 1ms;
        t.host.tcp.advance(t.now);
        settle();
        if (ms % 100 == 50) {  // the old connection talks
            t.remote.port = 1000;
            t.our_iss = old_iss;
            t.inject(ack().seq(1 + old_sent).ack(1).data("0123456789"));
            old_sent += 10;
            settle();
            EXPECT_EQ(server.apps.front().received.size(), old_sent);
        }
        if (ms % 100 == 99) {  // a new client: at its first try
            const std::size_t before = server.connections.size();
            open(next++);
            ASSERT_EQ(server.connections.size(), before + 1) << "at " << ms << " ms" << t.transcript();
            const auto info = server.connections.back()->info();
            EXPECT_TRUE(info.sack && info.timestamps && info.window_scaling);
            t.inject(ack().seq(1).ack(1).data("hello"));
            settle();
            EXPECT_EQ(server.apps.back().received, "hello");
        }
        const auto usage = t.host.tcp.usage();
        ASSERT_LE(usage.half_open, 8192u);
        ASSERT_LE(usage.connections, 1u + (next - 2000u));
        ASSERT_EQ(usage.flows, usage.half_open + usage.connections);
        if (HasFatalFailure()) return;
    }
    EXPECT_GT(t.host.counters.tcp_syn_cookies_sent, 900'000u);
    EXPECT_GE(t.host.counters.tcp_syn_cookies_accepted, 99u);
    EXPECT_EQ(t.host.counters.tcp_syn_cookies_failed, 0u);
    EXPECT_EQ(t.dropped(Drop::kTcpSynQueueFull), 0u);
    // Random addresses can coincide with nothing we know.
    for (const App& app : server.apps) EXPECT_FALSE(app.closed);
}

}  // namespace
}  // namespace culvert::test
