// Segments that are wrong, old or forged: checksums, PAWS, blind resets and SYNs, impossible ACKs.
#include <set>

#include "tests/support/stack_test.h"

namespace culvert::test {
namespace {

using stack::tcp::State;

TEST(TcpDefence, BadChecksumIsDropped) {  // [RFC9293 3.1 MUST-3]
    StackTest t;
    t.accepted_connection();
    auto frame = t.frame_of(ack().seq(1).ack(1).data("data"));
    frame.back() ^= std::byte{1};
    t.inject_raw(frame);
    EXPECT_TRUE(t.app.received.empty());
    EXPECT_EQ(t.dropped(Drop::kTcpChecksum), 1u);
    t.expect_nothing();
}

TEST(TcpDefence, BlindResetIsChallenged) {  // [RFC5961 3.2]
    StackTest t;
    t.accepted_connection();
    t.inject(rst().seq(1000));
    EXPECT_EQ(t.state(), State::kEstablished);
    t.expect(ack().seq(1).ack(1));
    EXPECT_EQ(t.dropped(Drop::kTcpResetInvalid), 1u);
    t.inject(rst().seq(1001)).inject(rst().seq(1002));  // rate-limited [RFC5961 7]
    t.expect_nothing();
    t.after(200ms).inject(rst().seq(1003));
    t.expect(ack().seq(1).ack(1));
    t.inject(rst().seq(0x70000000));  // outside the window: not a word
    t.expect_nothing();
    t.inject(rst().seq(1));
    EXPECT_EQ(t.app.error, ECONNRESET);
}

TEST(TcpDefence, SynOnALiveConnectionIsChallenged) {  // [RFC5961 4.2]
    StackTest t;
    t.accepted_connection();
    t.inject(syn().seq(1).mss(1460));
    t.expect(ack().seq(1).ack(1));
    EXPECT_EQ(t.dropped(Drop::kTcpSynInWindow), 1u);
    EXPECT_EQ(t.state(), State::kEstablished);
    t.after(200ms).inject(syn().seq(0x70000000));
    t.expect(ack().seq(1).ack(1));
}

TEST(TcpDefence, AckOfTheFutureIsDropped) {  // [RFC9293 3.10.7.4 fifth]
    StackTest t;
    t.accepted_connection();
    t.inject(ack().seq(1).ack(500).data("evil"));
    EXPECT_TRUE(t.app.received.empty());
    t.expect(ack().seq(1).ack(1));
    EXPECT_EQ(t.dropped(Drop::kTcpAckInvalid), 1u);
}

TEST(TcpDefence, AckOfThePastIsDropped) {  // [RFC9293 3.10.7.4 MAY-12] [RFC5961 5.2]
    StackTest t;
    t.accepted_connection();
    t.inject(ack().seq(1).ack(0x80000010).data("evil"));
    EXPECT_TRUE(t.app.received.empty());
    t.expect(ack().seq(1).ack(1));
}

TEST(TcpDefence, SegmentWithoutAckIsDropped) {
    StackTest t;
    t.accepted_connection();
    Seg bare{wire::kPsh};
    t.inject(bare.seq(1).data("x"));
    EXPECT_TRUE(t.app.received.empty());
    EXPECT_EQ(t.dropped(Drop::kTcpNoAck), 1u);
    t.expect_nothing();
}

TEST(TcpDefence, ImpossibleFlagsAreDropped) {
    StackTest t;
    t.listen();
    Seg both{wire::kSyn | wire::kFin};
    t.inject(both.seq(0));
    Seg other{wire::kSyn | wire::kRst};
    t.inject(other.seq(0));
    EXPECT_EQ(t.dropped(Drop::kTcpFlagsInvalid), 2u);
    t.expect_nothing();
}

TEST(TcpDefence, OutOfWindowSegmentDrawsAnAck) {  // [RFC9293 3.10.7.4 first]
    StackTest t;
    t.accepted_connection();
    t.inject(ack().seq(0x20000000).ack(1).data("far away"));
    t.expect(ack().seq(1).ack(1));
    EXPECT_EQ(t.dropped(Drop::kTcpOutOfWindow), 1u);
    EXPECT_TRUE(t.app.received.empty());
}

TEST(TcpDefence, KeepaliveProbeOfThePeerIsAnswered) {
    StackTest t;
    t.accepted_connection();
    t.inject(ack().seq(0).ack(1));
    t.expect(ack().seq(1).ack(1));
}

TEST(TcpDefence, OldTimestampIsDropped) {  // [RFC7323 5.3 R1]
    StackTest t;
    t.listen();
    t.inject(syn().seq(0).mss(1460).ts(1000, 0));
    t.expect(syn_ack().seq(0).ack(1));
    const std::uint32_t echo = t.last.options.timestamps->value;
    t.inject(ack().seq(1).ack(1).ts(1001, echo));
    t.inject(ack().seq(1).ack(1).data("old").ts(900, echo));
    EXPECT_TRUE(t.app.received.empty());
    EXPECT_EQ(t.dropped(Drop::kTcpPaws), 1u);
    t.expect(ack().seq(1).ack(1).ts_echo(1001));
    t.inject(ack().seq(1).ack(1).data("new").ts(1002, echo));
    EXPECT_EQ(t.app.received, "new");
    t.inject(rst().seq(4).ts(1, echo));  // [RFC7323 5.2] a reset is not judged by its timestamp
    EXPECT_EQ(t.app.error, ECONNRESET);
    t.skip_output();
}

TEST(TcpDefence, TimestampsWrap) {  // [RFC7323 5.3]
    StackTest t;
    t.listen();
    t.inject(syn().seq(0).mss(1460).ts(0xfffffff0, 0));
    t.expect(syn_ack().seq(0).ack(1).ts_echo(0xfffffff0));
    const std::uint32_t echo = t.last.options.timestamps->value;
    t.inject(ack().seq(1).ack(1).ts(0xfffffff8, echo));
    t.inject(ack().seq(1).ack(1).data("wrapped").ts(5, echo));
    EXPECT_EQ(t.app.received, "wrapped");
    t.after(50ms).expect(ack().ack(8).ts_echo(5));
}

TEST(TcpDefence, EchoIsOfTheSegmentThatCausedTheAck) {  // [RFC7323 4.3]
    StackTest t;
    t.listen();
    t.inject(syn().seq(0).mss(1460).sack_ok().ts(10, 0));
    t.expect(syn_ack().seq(0).ack(1));
    const std::uint32_t echo = t.last.options.timestamps->value;
    t.inject(ack().seq(1).ack(1).ts(20, echo));
    t.inject(ack().seq(5).ack(1).data("bbbb").ts(30, echo));  // above a hole: not echoed
    t.expect(ack().ack(1).ts_echo(20));
    t.inject(ack().seq(1).ack(1).data("aaaa").ts(40, echo));
    t.expect(ack().ack(9).ts_echo(40));
}

TEST(TcpDefence, WindowOfAnOldSegmentIsIgnored) {  // [RFC9293 3.10.7.4] SND.WL1, SND.WL2
    StackTest t;
    t.accepted_connection();
    t.inject(ack().seq(1).ack(1).data("aa").window(9000));
    EXPECT_EQ(t.connection->info().send_window, 9000u);
    t.inject(ack().seq(1).ack(1).data("aab").window(10));  // begins before the last that set it
    EXPECT_EQ(t.connection->info().send_window, 10u);      // same sequence, same ACK: taken
    t.inject(ack().seq(4).ack(1).data("c").window(8000));
    t.inject(ack().seq(3).ack(1).data("bc").window(7));
    EXPECT_EQ(t.connection->info().send_window, 8000u);
    t.skip_output();
}

TEST(TcpDefence, SackBlocksOfNothingAreIgnored) {
    StackTest t;
    t.established();
    t.send(std::string(1460 * 4, 'x'));
    t.skip_output();
    t.inject(ack().seq(1).ack(1).sack(100000, 200000).sack(0x80000000, 0x80000100).sack(50, 20));
    t.inject(ack().seq(1).ack(1).sack(0, 0));
    t.expect_nothing();
    t.inject(ack().seq(1).ack(5841));
    EXPECT_EQ(t.app.chunks_out(), 0u);
    EXPECT_EQ(t.host.tcp.usage().sack_boards, 0u);
}

TEST(TcpDefence, TinyMssDoesNotMakeUsCrawl) {
    StackTest t;
    t.established({}, syn_ack().mss(1));
    EXPECT_GE(t.connection->info().mss, 36u);
}

TEST(TcpDefence, OwnerMayEndTheConnectionInAnyCall) {
    StackTest t;
    struct Aborting final : stack::tcp::ConnectionOwner {
        void on_established(stack::tcp::Connection& c) override { c.abort(); }
        std::uint32_t on_data(stack::tcp::Connection& c, stack::Payload, std::uint32_t length) override {
            c.abort();
            return length;
        }
        void on_end_of_stream(stack::tcp::Connection& c) override { c.abort(); }
        void on_released(stack::tcp::Connection&, stack::SendChunk*) override {}
        void on_acknowledged(stack::tcp::Connection& c, std::uint32_t) override { c.abort(); }
        void on_closed(stack::tcp::Connection&, int) override { ++closed; }
        int closed = 0;
    } owner;
    for (int kind = 0; kind < 5; ++kind) {
        StackTest u;
        u.accepted_connection();
        u.connection->set_owner(owner);
        std::string payload = "x";
        stack::SendChunk chunk{.next = nullptr,
                               .data = reinterpret_cast<const std::byte*>(payload.data()),
                               .length = 1,
                               .tag = 0};
        if (kind == 0) u.inject(ack().seq(1).ack(1).data("data"));
        if (kind == 1) u.inject(fin().seq(1).ack(1));
        if (kind == 2) u.inject(fin().seq(1).ack(1).data("data and FIN"));
        if (kind == 3) {
            u.connection->send(&chunk, &chunk);
            u.skip_output();
            u.inject(fin().seq(1).ack(2).data("all at once"));
        }
        if (kind == 4) {  // out of reassembly
            u.inject(fin().seq(3).ack(1).data("cd"));
            u.inject(ack().seq(1).ack(1).data("ab"));
        }
        u.skip_output();
        EXPECT_EQ(owner.closed, kind + 1);
        EXPECT_EQ(u.host.tcp.usage().connections, 0u);
        EXPECT_EQ(u.host.tcp.usage().reassembly_pieces, 0u);
    }
}

// --- flows of a stack that was there before -----------------------------------------------------------------------------

int probed(StackTest& t, const Endpoint& local, const Endpoint& remote) {
    const Result<void> sent = t.host.tcp.probe_dead_flow(local, remote, t.now);
    return sent ? 0 : sent.error().code;
}

/// The answer of a peer that believes in the connection brings it the reset that it cannot doubt.
TEST(TcpDeadFlow, ThePeerIsMadeToAsk) {
    for (const bool v6 : {false, true}) {
        StackTest t;
        if (v6) t.over_ipv6();
        t.listen();
        ASSERT_EQ(probed(t, t.local, t.remote), 0);
        t.expect(ack());
        const auto first = t.last;
        t.expect(ack());
        ASSERT_TRUE(first.options.timestamps && t.last.options.timestamps);
        EXPECT_EQ(t.last.options.timestamps->value - first.options.timestamps->value, 0x80000000u) << "one of them is not old";
        EXPECT_NE(t.last.seq, first.seq);
        EXPECT_EQ(t.host.counters.tcp_dead_flow_probes, 1u);
        t.inject(ack().seq(9).ack(4711));
        t.expect(rst().seq(4711));
        t.expect_nothing();
    }
}

/// What lives is not disturbed, in whatever state it is.
TEST(TcpDeadFlow, LivingFlowsAreLeftAlone) {
    StackTest half_open;
    half_open.listen();
    half_open.inject(syn().seq(0).mss(1460));
    half_open.expect(syn_ack());
    EXPECT_EQ(probed(half_open, half_open.local, half_open.remote), EISCONN);
    half_open.expect_nothing();

    StackTest open;
    open.accepted_connection();
    EXPECT_EQ(probed(open, open.local, open.remote), EISCONN);
    open.expect_nothing();
    open.shutdown_write().expect(fin().seq(1));
    open.inject(fin().seq(1).ack(2));
    open.expect(ack().seq(2).ack(2));
    ASSERT_EQ(open.host.tcp.usage().time_wait, 1u);
    EXPECT_EQ(probed(open, open.local, open.remote), EISCONN);
    open.expect_nothing();
    EXPECT_EQ(open.host.counters.tcp_dead_flow_probes, 0u);
}

TEST(TcpDeadFlow, OnlyBetweenUsAndOthers) {
    StackTest t;
    const auto at = [](const char* address, Port port) { return Endpoint{*Address::parse(address), port}; };
    const Endpoint foreign = at("192.0.2.77", 80);
    EXPECT_EQ(probed(t, foreign, t.remote), EADDRNOTAVAIL);
    EXPECT_EQ(probed(t, t.local, {t.local.address, 5000}), EADDRNOTAVAIL);
    EXPECT_EQ(probed(t, t.local, at("127.0.0.1", 80)), EINVAL);
    EXPECT_EQ(probed(t, t.local, at("0.0.0.0", 80)), EINVAL);
    EXPECT_EQ(probed(t, t.local, {t.remote.address, 0}), EINVAL);
    EXPECT_EQ(probed(t, {t.local.address, 0}, t.remote), EINVAL);
    EXPECT_NE(probed(t, t.local, at("255.255.255.255", 80)), 0);
    EXPECT_NE(probed(t, t.local, at("224.0.0.5", 80)), 0);
    t.expect_nothing();
}

/// [RFC6056 3.3.1] No port is proposed from which connect() would fail.
TEST(TcpPortChoice, PortsOfOlderFlowsAreNotProposed) {
    auto config = StackTest::with_defaults({});
    config.stack.first_port = 40000;
    config.stack.last_port = 40001;
    StackTest t(config);
    const auto proposed = [&] {
        std::set<Port> ports;
        for (int i = 0; i < 64; ++i) ports.insert(t.host.tcp.port_for(t.local.address, t.remote, t.now));
        return ports;
    };
    EXPECT_EQ(proposed(), (std::set<Port>{40000, 40001}));
    t.connect();  // from 40000
    t.expect(syn().seq(0));
    std::set<Port> others = proposed();
    others.erase(0);  // eight unlucky guesses
    EXPECT_EQ(others, std::set<Port>{40001});
    t.inject(syn_ack().seq(0).ack(1).mss(1460).ts(10, t.last.options.timestamps->value));
    t.expect(ack().seq(1).ack(1));
    t.shutdown_write().expect(fin().seq(1));
    t.inject(fin().seq(1).ack(2).ts(11, 0));
    t.expect(ack().seq(2).ack(2));
    ASSERT_EQ(t.host.tcp.usage().time_wait, 1u);
    others = proposed();
    others.erase(0);
    EXPECT_EQ(others, std::set<Port>{40001}) << "younger than a second";
    t.after(1500ms);
    EXPECT_EQ(proposed(), (std::set<Port>{40000, 40001}));

    StackTest unknown;
    EXPECT_EQ(unknown.host.tcp.port_for(unknown.local.address, unknown.remote, unknown.now), 0) << "no range is known";
}

}  // namespace
}  // namespace culvert::test
