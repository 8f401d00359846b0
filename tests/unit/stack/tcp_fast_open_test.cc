// TCP Fast Open (RFC 7413), both ends of it, and TCP_DEFER_ACCEPT.
#include "daemon/stack/tcp/fast_open.h"

#include "tests/support/stack_test.h"

namespace culvert::test {
namespace {

using stack::tcp::FastOpenCache;
using stack::tcp::FastOpenCookies;
using stack::tcp::ListenerOptions;
using stack::tcp::Options;
using stack::tcp::State;

HostConfig with_fast_open() {
    HostConfig config;
    config.stack = small_stack_config();
    config.stack.fast_open_server = true;
    return config;
}
ListenerOptions queue_of(std::uint32_t length) {
    ListenerOptions options;
    options.fast_open_queue = length;
    return options;
}
Options wanting_fast_open() {
    Options options;
    options.fast_open = true;
    return options;
}

class FastOpen : public ::testing::TestWithParam<bool> {
protected:
    FastOpen() : t(with_fast_open()) {
        if (GetParam()) t.over_ipv6();
    }
    /// What the server gives to whoever asks. The asking connection is reset.
    std::string cookie() {
        t.inject(syn().seq(0).mss(1460).cookie(""));
        t.expect(syn_ack().seq(0).ack(1));
        EXPECT_TRUE(t.last.cookie.has_value() && t.last.cookie->size() == 8) << t.transcript();
        const std::string given = t.last.cookie.value_or("");
        t.inject(rst().seq(1));
        t.iss_known = false;
        return given;
    }
    /// A client that knows `cookie` for the peer.
    void know(const std::string& cookie, std::uint16_t mss = 1400) {
        t.connect(wanting_fast_open());
        t.expect(syn().seq(0).cookie(""));
        t.inject(syn_ack().seq(0).ack(1).mss(mss).cookie(cookie));
        t.expect(ack().seq(1).ack(1));
        t.inject(rst().seq(1));
        forget();
    }
    /// The next connection is another one.
    void forget() {
        t.app = App();
        ++t.local.port;
        t.iss_known = false;
    }
    StackTest t;
};
INSTANTIATE_TEST_SUITE_P(Family, FastOpen, ::testing::Bool(), [](const auto& i) { return i.param ? "IPv6" : "IPv4"; });

// --- the server -------------------------------------------------------------------------------------------------------

TEST_P(FastOpen, RequestIsAnsweredWithACookie) {  // [RFC7413 4.1.2, 3]
    t.listen_with(queue_of(8));
    t.inject(syn().seq(0).mss(1460).cookie("").data("not yet"));
    EXPECT_EQ(t.connection, nullptr);
    t.expect(syn_ack().seq(0).ack(1));  // the SYN alone: its data comes again
    ASSERT_TRUE(t.last.cookie);
    EXPECT_EQ(t.dropped(Drop::kTcpSynData), 1u);
    t.inject(ack().seq(1).ack(1).data("not yet"));
    EXPECT_EQ(t.app.received, "not yet");
    EXPECT_FALSE(t.connection->info().syn_data);
    EXPECT_EQ(t.host.counters.tcp_fast_open_cookies, 1u);
    t.skip_output();
}

TEST_P(FastOpen, DataIsDeliveredAndAnsweredBeforeTheHandshakeIsDone) {  // [RFC7413 4.2.2]
    t.listen_with(queue_of(8));
    const std::string known = cookie();
    t.inject(syn().seq(0).mss(1460).sack_ok().wscale(2).ts(10, 0).cookie(known).data("GET /"));
    ASSERT_NE(t.connection, nullptr);
    EXPECT_EQ(t.app.received, "GET /");
    EXPECT_EQ(t.state(), State::kSynReceived);
    EXPECT_TRUE(t.connection->info().syn_data);
    EXPECT_FALSE(t.app.established);  // that is for active opens
    t.send("answer");
    t.expect(syn_ack().seq(0).ack(6).mss(GetParam() ? 1440 : 1460).wscale(7).no_cookie().ts_echo(10));
    const std::uint32_t stamp = t.last.options.timestamps->value;
    t.expect(ack().seq(1).ack(6).data("answer"));
    t.inject(ack().seq(6).ack(7).window(100).ts(11, stamp));
    EXPECT_EQ(t.state(), State::kEstablished);
    EXPECT_EQ(t.connection->info().send_window, 400u);
    EXPECT_EQ(t.app.acknowledged, 6u);
    EXPECT_EQ(t.app.chunks_out(), 0u);
    t.expect_nothing();
    t.inject(fin().seq(6).ack(7).data("more").ts(12, stamp));
    EXPECT_EQ(t.app.received, "GET /more");
    EXPECT_TRUE(t.app.end_of_stream);
    t.expect(ack().seq(7).ack(11));
    t.shutdown_write().expect(fin().seq(7).ack(11));
    t.inject(ack().seq(11).ack(8).ts(13, stamp));
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.app.error, 0);
    EXPECT_EQ(t.host.counters.tcp_fast_open_passive, 1u);
    EXPECT_EQ(t.host.tcp.usage().flows, 0u);
}

TEST_P(FastOpen, AckOfTheSynAloneLeavesTheAnswerInFlight) {
    t.listen_with(queue_of(8));
    const std::string known = cookie();
    t.inject(syn().seq(0).mss(1460).cookie(known).data("x"));
    t.send("answer");
    t.expect(syn_ack().seq(0).ack(2)).expect(ack().seq(1).ack(2).data("answer"));
    t.inject(ack().seq(2).ack(1));
    EXPECT_EQ(t.state(), State::kEstablished);
    t.expect_nothing();
    t.after(t.connection->info().rto + 2ms).expect(ack().seq(1).data("answer"));  // and is sent again in time
    t.inject(ack().seq(2).ack(7));
    EXPECT_EQ(t.app.chunks_out(), 0u);
    t.after(10s).expect_nothing();
}

TEST_P(FastOpen, RepeatedSynAndTimerRepeatTheSynAck) {
    t.listen_with(queue_of(8));
    const std::string known = cookie();
    t.inject(syn().seq(0).mss(1460).cookie(known).data("data"));
    t.expect(syn_ack().seq(0).ack(5));
    t.inject(syn().seq(0).mss(1460));  // the client's retry: without data, without the option [RFC7413 4.1.3]
    t.expect(syn_ack().seq(0).ack(5));
    t.inject(syn().seq(0).mss(1460).cookie(known).data("data"));
    t.expect(syn_ack().seq(0).ack(5));
    EXPECT_EQ(t.app.received, "data");
    EXPECT_EQ(t.accepted, 1);
    t.after(1s + 2ms).expect(syn_ack().seq(0).ack(5));
    t.inject(ack().seq(5).ack(1));
    EXPECT_EQ(t.state(), State::kEstablished);
}

TEST_P(FastOpen, FinWaitsForTheHandshake) {  // [RFC9293 3.10.4] CLOSE in SYN-RECEIVED
    t.listen_with(queue_of(8));
    const std::string known = cookie();
    t.inject(syn().seq(0).mss(1460).cookie(known).data("x"));
    t.send("bye").shutdown_write();
    t.expect(syn_ack().seq(0).ack(2)).expect(ack().seq(1).ack(2).data("bye"));
    t.expect_nothing();
    t.inject(ack().seq(2).ack(4));
    EXPECT_EQ(t.state(), State::kFinWait1);
    t.expect(fin().seq(4).ack(2));
}

TEST_P(FastOpen, WrongCookieFallsBackAndBringsTheRightOne) {  // [RFC7413 4.1.2]
    t.listen_with(queue_of(8));
    const std::string known = cookie();
    for (const std::string& wrong : {std::string("12345678"), known.substr(0, 4), known + known}) {
        t.inject(syn().seq(0).mss(1460).cookie(wrong).data("data"));
        EXPECT_EQ(t.connection, nullptr);
        t.expect(syn_ack().seq(0).ack(1).cookie(known));
        t.inject(rst().seq(1));
        t.iss_known = false;
    }
    EXPECT_EQ(t.host.counters.tcp_fast_open_refused, 3u);
    t.remote.address = GetParam() ? *Address::parse("fd00::1:3") : Address::v4(10, 0, 0, 3);  // a stolen one
    if (!GetParam()) {
        t.inject(syn().seq(0).mss(1460).cookie(known).data("data"));
        t.expect(syn_ack().seq(0).ack(1));
        EXPECT_EQ(t.connection, nullptr);
    }
}

TEST_P(FastOpen, OldKeyIsGoodOnceMoreAndReplaced) {  // [RFC7413 4.1.2] key rotation
    t.listen_with(queue_of(8));
    const std::string old = cookie();
    t.after(12h);
    t.inject(syn().seq(0).mss(1460).cookie(old).data("data"));
    EXPECT_EQ(t.app.received, "data");
    t.expect(syn_ack().seq(0).ack(5));
    ASSERT_TRUE(t.last.cookie);
    EXPECT_NE(*t.last.cookie, old);
    t.inject(rst().seq(5));
    forget();
    --t.local.port;
    t.connection = nullptr;
    t.after(12h);
    t.inject(syn().seq(0).mss(1460).cookie(old).data("data"));
    EXPECT_EQ(t.connection, nullptr);
    t.expect(syn_ack().seq(0).ack(1));
}

TEST_P(FastOpen, PendingConnectionsAreBoundedAndResetOnesCountOn) {  // [RFC7413 5.1]
    t.listen_with(queue_of(2));
    const std::string known = cookie();
    const auto fast = [&](Port port) {
        t.remote.port = port;
        t.iss_known = false;
        const int before = t.accepted;
        t.inject(syn().seq(0).mss(1460).cookie(known).data("x"));
        const bool yes = t.accepted > before;
        t.expect(syn_ack().seq(0).ack(yes ? 2 : 1));
        return yes;
    };
    App apps[3];
    EXPECT_TRUE(fast(1));
    t.connection->set_owner(apps[0]);
    EXPECT_TRUE(fast(2));
    t.connection->set_owner(apps[1]);
    EXPECT_FALSE(fast(3));
    EXPECT_EQ(t.host.counters.tcp_fast_open_overflow, 1u);
    t.inject(ack().seq(1).ack(1).data("x"));  // by the usual handshake
    EXPECT_EQ(t.accepted, 3);
    t.connection->set_owner(apps[2]);
    t.remote.port = 2;
    t.inject(rst().seq(2));  // by the owner of a stolen address, perhaps
    EXPECT_EQ(apps[1].error, ECONNRESET);
    EXPECT_FALSE(fast(4));
    t.inject(rst().seq(1));
    t.after(121s).skip_output();  // the first has given up meanwhile, the reset is forgotten
    EXPECT_TRUE(fast(5));
    t.after(0s);
}

TEST_P(FastOpen, OffWhereItIsNotAskedFor) {
    t.listen();  // no TCP_FASTOPEN
    t.inject(syn().seq(0).mss(1460).cookie("").data("x"));
    t.expect(syn_ack().seq(0).ack(1).no_cookie());
    StackTest off;  // the server is off by default, as in Linux
    off.listen_with(queue_of(8));
    off.inject(syn().seq(0).mss(1460).cookie(""));
    off.expect(syn_ack().seq(0).ack(1).no_cookie());
}

TEST_P(FastOpen, FullAcceptQueueFallsBack) {
    t.listen_with(queue_of(8));
    const std::string known = cookie();
    t.room_to_accept = false;
    t.inject(syn().seq(0).mss(1460).cookie(known).data("x"));
    EXPECT_EQ(t.connection, nullptr);
    t.expect(syn_ack().seq(0).ack(1));
    EXPECT_EQ(t.host.tcp.usage().half_open, 1u);
}

TEST_P(FastOpen, RefusedByTheOwnerIsReset) {
    t.listen_with(queue_of(8));
    const std::string known = cookie();
    t.refuse = true;
    t.inject(syn().seq(0).mss(1460).cookie(known).data("x"));
    t.expect(rst().ack(1));
    t.flush();
    EXPECT_EQ(t.host.tcp.usage().connections, 0u);
}

TEST_P(FastOpen, ListenerMayGoFirst) {
    auto& listener = t.listen_with(queue_of(8));
    const std::string known = cookie();
    t.inject(syn().seq(0).mss(1460).cookie(known).data("x"));
    t.expect(syn_ack().seq(0).ack(2));
    t.host.tcp.close(listener);
    t.inject(ack().seq(2).ack(1).data("y"));
    EXPECT_EQ(t.app.received, "xy");
    EXPECT_EQ(t.state(), State::kEstablished);
    t.skip_output();
}

// --- the client -------------------------------------------------------------------------------------------------------

TEST_P(FastOpen, ClientAsksThenKnows) {  // [RFC7413 4.1.3, 4.2.1]
    know("cookie!!");
    t.connect(wanting_fast_open());
    EXPECT_TRUE(t.connection->awaits_first_data());
    t.expect_nothing();  // the SYN waits for what it can take along
    t.send("GET /");
    t.expect(syn().seq(0).cookie("cookie!!").data("GET /"));
    t.inject(syn_ack().seq(0).ack(6).mss(1460));
    t.expect(ack().seq(6).ack(1));
    EXPECT_TRUE(t.app.established);
    EXPECT_EQ(t.app.acknowledged, 5u);
    EXPECT_EQ(t.app.chunks_out(), 0u);
    EXPECT_TRUE(t.connection->info().syn_data);
    EXPECT_EQ(t.host.counters.tcp_fast_open_active, 1u);
    t.send("more").expect(ack().seq(6).data("more"));
    t.inject(ack().seq(1).ack(10).data("answer"));
    EXPECT_EQ(t.app.received, "answer");
    t.after(50ms).expect(ack().seq(10).ack(7));
}

TEST_P(FastOpen, ServerMayAnswerInItsSynAck) {  // [RFC7413 4.2.2] [RFC9293 3.10.7.3]
    know("cookie!!");
    t.connect(wanting_fast_open());
    t.send("q").expect(syn().seq(0).cookie("cookie!!").data("q"));
    t.inject(syn_ack().seq(0).ack(2).mss(1460).data("answer"));
    EXPECT_EQ(t.app.received, "answer");
    t.expect(ack().seq(2).ack(7));
}

TEST_P(FastOpen, SynTakesNoMoreThanTheMssItRemembers) {  // [RFC7413 4.1.3]
    know("cookie!!", 1000);
    t.connect(wanting_fast_open());
    t.send(std::string(3000, 'a'));
    // 1000 less MSS, SACK with timestamps, window scale and cookie
    t.expect(syn().seq(0).cookie("cookie!!").len(1000 - 4 - 12 - 4 - 12));
    const std::size_t taken = 968;
    t.inject(syn_ack().seq(0).ack(1 + taken).mss(1000));
    t.expect(ack().seq(1 + taken).ack(1).len(1000));
    t.expect(ack().seq(1 + taken + 1000).len(1000));
    t.expect(ack().seq(1 + taken + 2000).len(3000 - 2000 - taken));
    t.inject(ack().seq(1).ack(3001));
    EXPECT_EQ(t.app.chunks_out(), 0u);
}

TEST_P(FastOpen, DataNotTakenGoesAgain) {  // [RFC7413 4.2.1]
    know("cookie!!");
    t.connect(wanting_fast_open());
    t.send("GET /").expect(syn().seq(0).cookie("cookie!!").data("GET /"));
    t.inject(syn_ack().seq(0).ack(1).mss(1460).cookie("newer one"));  // 9 bytes: no cookie at all
    t.expect(ack().seq(1).ack(1).data("GET /"));
    EXPECT_FALSE(t.connection->info().syn_data);
    EXPECT_EQ(t.host.counters.tcp_fast_open_failed, 1u);
    t.inject(ack().seq(1).ack(6));
    EXPECT_EQ(t.app.chunks_out(), 0u);
    t.inject(rst().seq(1));
    forget();
    t.connect(wanting_fast_open());
    t.send("x").expect(syn().cookie("cookie!!").data("x"));
    t.inject(syn_ack().seq(0).ack(1).mss(1460).cookie("newer one!"));  // 10: it replaces the old
    t.skip_output();
    t.inject(rst().seq(1));
    forget();
    t.connect(wanting_fast_open());
    t.send("x").expect(syn().cookie("newer one!").data("x"));
}

TEST_P(FastOpen, PartTakenIsPartSent) {
    know("cookie!!");
    t.connect(wanting_fast_open());
    t.send("0123456789").expect(syn().seq(0).data("0123456789"));
    t.inject(syn_ack().seq(0).ack(5).mss(1460));
    t.expect(ack().seq(5).ack(1).data("456789"));
    t.inject(ack().seq(1).ack(11));
    EXPECT_EQ(t.app.acknowledged, 10u);
}

TEST_P(FastOpen, LostSynGoesAgainBareAndAfterASecondOneTheDestinationIsLeftAlone) {  // [RFC7413 4.1.3, 4.2.1]
    know("cookie!!");
    for (int i = 0; i < 2; ++i) {  // one SYN may be lost by chance
        t.connect(wanting_fast_open());
        t.send("GET /").expect(syn().seq(0).cookie("cookie!!").data("GET /"));
        t.after(1s + 2ms).expect(syn().seq(0).no_cookie());  // no data, no option
        t.inject(syn_ack().seq(0).ack(1).mss(1460));
        t.expect(ack().seq(1).ack(1).data("GET /"));
        t.inject(rst().seq(1));
        forget();
    }
    t.connect(wanting_fast_open());
    EXPECT_FALSE(t.connection->awaits_first_data());
    t.expect(syn().seq(0).no_cookie());
    t.inject(rst().seq(0).ack(1));
    forget();
    t.after(61s);
    t.connect(wanting_fast_open());
    EXPECT_TRUE(t.connection->awaits_first_data());
    t.send("y").expect(syn().cookie("cookie!!").data("y"));
}

TEST_P(FastOpen, LateAckOfTheFirstSynCounts) {
    know("cookie!!");
    t.connect(wanting_fast_open());
    t.send("data").expect(syn().seq(0).data("data"));
    t.after(1s + 2ms).expect(syn().seq(0).no_cookie());
    t.inject(syn_ack().seq(0).ack(5).mss(1460));  // it was only slow
    t.expect(ack().seq(5).ack(1));
    EXPECT_EQ(t.app.acknowledged, 4u);
    EXPECT_TRUE(t.connection->info().syn_data);
}

TEST_P(FastOpen, AckBeyondTheDataIsRefused) {  // [RFC9293 3.10.7.3 first]
    know("cookie!!");
    t.connect(wanting_fast_open());
    t.send("data").expect(syn().seq(0).data("data"));
    t.inject(syn_ack().seq(0).ack(6).mss(1460));
    t.expect(rst().seq(6));
    EXPECT_EQ(t.state(), State::kSynSent);
}

TEST_P(FastOpen, RefusalTellsTheApplicationLate) {
    know("cookie!!");
    t.connect(wanting_fast_open());
    t.send("data").expect(syn().seq(0).data("data"));
    t.inject(rst().seq(0).ack(5));
    EXPECT_EQ(t.app.error, ECONNREFUSED);
    EXPECT_EQ(t.app.chunks_out(), 0u);
}

TEST_P(FastOpen, WritingAndClosingAtOnceLosesNothing) {
    know("cookie!!");
    t.connect(wanting_fast_open());
    t.send("datagram").close();
    t.expect(syn().seq(0).data("datagram"));
    t.inject(syn_ack().seq(0).ack(9).mss(1460));
    t.expect(fin().seq(9).ack(1));
    t.inject(fin().seq(1).ack(10));
    t.expect(ack().seq(10).ack(2));
    EXPECT_TRUE(t.orphanage.closed);
    EXPECT_EQ(t.orphanage.error, 0);
}

TEST_P(FastOpen, ClosingBeforeTheFirstWriteSendsNothing) {
    know("cookie!!");
    t.connect(wanting_fast_open());
    t.close();
    t.expect_nothing();
    EXPECT_TRUE(t.orphanage.closed);
    EXPECT_EQ(t.host.tcp.usage().flows, 0u);
}

TEST_P(FastOpen, SimultaneousOpenWithData) {  // [RFC9293 3.5 MUST-10] [RFC7413 4.2.1]
    know("cookie!!");
    t.connect(wanting_fast_open());
    t.send("ours").expect(syn().seq(0).data("ours"));
    t.inject(syn().seq(0).mss(1000).data("theirs"));
    EXPECT_EQ(t.state(), State::kSynReceived);
    t.expect(syn_ack().seq(0).ack(1));  // their data is not acknowledged: it comes again
    t.inject(syn_ack().seq(0).ack(1).mss(1000));
    EXPECT_EQ(t.state(), State::kEstablished);
    t.expect(ack().seq(1).ack(1).data("ours"));
    t.inject(ack().seq(1).ack(5).data("theirs"));
    EXPECT_EQ(t.app.received, "theirs");
    EXPECT_EQ(t.app.acknowledged, 4u);
    t.skip_output();
}

TEST(FastOpenClient, OffByConfiguration) {
    HostConfig config;
    config.stack = small_stack_config();
    config.stack.fast_open_client = false;
    StackTest t(config);
    t.connect(wanting_fast_open());
    t.expect(syn().seq(0).no_cookie());
}

TEST(FastOpenCacheTest, BoundedAndTheLeastRecentlyUsedGoes) {
    FastOpenCache cache(stack::tcp::SipKey{});
    const Address local = Address::v4(10, 0, 0, 1);
    const std::array<std::byte, 8> cookie{std::byte{1}};
    const Instant start{1h};
    const auto server = [](std::uint32_t i) {
        return Address::v4(10, static_cast<std::uint8_t>(i >> 16), static_cast<std::uint8_t>(i >> 8), static_cast<std::uint8_t>(i));
    };
    constexpr std::uint32_t kMany = 20'000;
    for (std::uint32_t i = 0; i < kMany; ++i) cache.learn(local, server(i), cookie, 1460, start + i * 1ms);
    std::uint32_t known = 0;
    for (std::uint32_t i = 0; i < kMany; ++i) known += cache.find(local, server(i), start + kMany * 1ms) != nullptr ? 1 : 0;
    EXPECT_EQ(known, FastOpenCache::kSets * FastOpenCache::kWays);
    EXPECT_NE(cache.find(local, server(kMany - 1), start + kMany * 1ms), nullptr);
    EXPECT_EQ(cache.find(Address::v4(10, 0, 0, 2), server(kMany - 1), start), nullptr);  // of another address of ours
}

TEST(FastOpenCacheTest, FailuresBlockForLongerAndLonger) {  // [RFC7413 4.1.3]
    FastOpenCache cache(stack::tcp::SipKey{});
    const Address local = Address::v4(10, 0, 0, 1);
    const Address remote = Address::v4(10, 0, 0, 2);
    const std::array<std::byte, 8> cookie{};
    Instant now{1h};
    cache.learn(local, remote, cookie, 1460, now);
    using Failure = FastOpenCache::Failure;
    cache.failed(local, remote, Failure::kOption, now);
    EXPECT_FALSE(cache.blocked(local, remote, now)) << "one segment lost is the weather";
    for (int i = 0; i < 20; ++i) {
        cache.failed(local, remote, Failure::kOption, now);
        const Duration wait = 60s * (1 << std::min(i, 10));
        EXPECT_TRUE(cache.blocked(local, remote, now + wait - 1ms)) << i;
        EXPECT_EQ(cache.find(local, remote, now + wait - 1ms), nullptr);
        now += wait;
        EXPECT_NE(cache.find(local, remote, now), nullptr) << i;
    }
    cache.worked(local, remote, now);
    cache.failed(local, remote, Failure::kOption, now);
    EXPECT_FALSE(cache.blocked(local, remote, now));
    now += 2h;
    cache.failed(local, remote, Failure::kOption, now);
    EXPECT_FALSE(cache.blocked(local, remote, now)) << "two hours later is not in a row";
    cache.worked(local, remote, now);
    cache.failed(local, remote, Failure::kConnection, now);
    EXPECT_TRUE(cache.blocked(local, remote, now + 59s)) << "a connection that hung has cost enough";
    EXPECT_FALSE(cache.blocked(local, remote, now + 60s));
}

// --- TCP_DEFER_ACCEPT -------------------------------------------------------------------------------------------------

class DeferAccept : public FastOpen {
protected:
    void listen() {
        ListenerOptions options;
        options.defer_accept = 5s;
        t.listen_with(options);
        t.inject(syn().seq(0).mss(1460));
        t.expect(syn_ack().seq(0).ack(1));
    }
};
INSTANTIATE_TEST_SUITE_P(Family, DeferAccept, ::testing::Bool(), [](const auto& i) { return i.param ? "IPv6" : "IPv4"; });

TEST_P(DeferAccept, AckAloneMakesNoConnectionDataDoes) {
    listen();
    t.after(20ms).inject(ack().seq(1).ack(1));
    EXPECT_EQ(t.accepted, 0);
    EXPECT_EQ(t.dropped(Drop::kTcpDeferred), 1u);
    EXPECT_EQ(t.host.counters.tcp_deferred, 1u);
    t.after(4s).expect_nothing();  // the client is known to be there: the SYN-ACK does not go again
    t.inject(ack().seq(1).ack(1).data("request"));
    EXPECT_EQ(t.accepted, 1);
    EXPECT_EQ(t.app.received, "request");
    EXPECT_EQ(t.connection->info().srtt, Duration::zero());  // four seconds are the client's, not the path's
    t.skip_output();
}

TEST_P(DeferAccept, WhenTheTimeIsUpTheAckWillDo) {
    listen();
    t.inject(ack().seq(1).ack(1));
    t.after(5s - 2ms).expect_nothing();
    t.after(4ms).expect(syn_ack().seq(0).ack(1));
    t.inject(ack().seq(1).ack(1));
    EXPECT_EQ(t.accepted, 1);
    EXPECT_EQ(t.state(), State::kEstablished);
}

TEST_P(DeferAccept, SilentClientIsGivenUp) {
    listen();
    t.inject(ack().seq(1).ack(1));
    t.after(120s).skip_output();
    EXPECT_EQ(t.accepted, 0);
    EXPECT_EQ(t.host.tcp.usage().half_open, 0u);
}

TEST_P(DeferAccept, FinIsNewsToo) {
    listen();
    t.inject(fin().seq(1).ack(1));
    EXPECT_EQ(t.accepted, 1);
    EXPECT_TRUE(t.app.end_of_stream);
    t.skip_output();
}

}  // namespace
}  // namespace culvert::test
