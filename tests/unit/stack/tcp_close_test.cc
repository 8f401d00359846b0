// Every way to end: who closes first, both at once, half-close, reset, orphans, TIME-WAIT and its reuse.
#include "tests/support/stack_test.h"

namespace culvert::test {
namespace {

using stack::tcp::State;

TEST(TcpClose, WeCloseFirst) {  // [RFC9293 3.6 figure 12]
    StackTest t;
    t.established();
    t.shutdown_write().expect(fin().seq(1).ack(1));
    EXPECT_EQ(t.state(), State::kFinWait1);
    t.inject(ack().seq(1).ack(2));
    EXPECT_EQ(t.state(), State::kFinWait2);
    t.inject(fin().seq(1).ack(2));
    EXPECT_TRUE(t.app.end_of_stream);
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.app.error, 0);
    t.expect(ack().seq(2).ack(2));
    EXPECT_EQ(t.host.tcp.usage().time_wait, 1u);
    EXPECT_EQ(t.host.tcp.usage().connections, 0u);
    EXPECT_TRUE(t.host.ports.held.empty());  // a kernel server may have the port at once
    t.after(59s).expect_nothing();
    EXPECT_EQ(t.host.tcp.usage().time_wait, 1u);
    t.after(2s).expect_nothing();
    EXPECT_EQ(t.host.tcp.usage().time_wait, 0u);
    EXPECT_EQ(t.host.tcp.usage().flows, 0u);
}

TEST(TcpClose, TheLastAckIsLeftOutWhenTheWayIsLost) {
    StackTest t;
    t.established();
    t.shutdown_write().expect(fin().seq(1).ack(1));
    t.inject(ack().seq(1).ack(2));
    t.host.routes.replace({});
    t.inject(ack().seq(1).ack(2).data("late"));  // its ACK finds no way
    t.inject(fin().seq(5).ack(2));
    EXPECT_TRUE(t.app.closed);
    t.expect_nothing();
    EXPECT_EQ(t.host.tcp.usage().time_wait, 1u);
}

TEST(TcpClose, PeerClosesFirst) {
    StackTest t;
    t.accepted_connection();
    t.inject(fin().seq(1).ack(1).data("last words"));
    EXPECT_EQ(t.app.received, "last words");
    EXPECT_TRUE(t.app.end_of_stream);
    EXPECT_EQ(t.state(), State::kCloseWait);
    t.expect(ack().seq(1).ack(12));
    t.send("answer").expect(ack().seq(1).data("answer"));
    t.shutdown_write().expect(fin().seq(7).ack(12));
    EXPECT_EQ(t.state(), State::kLastAck);
    t.inject(ack().seq(12).ack(8));
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.app.error, 0);
    t.expect_nothing();
    EXPECT_EQ(t.host.tcp.usage().time_wait, 0u);
    EXPECT_EQ(t.host.tcp.usage().connections, 0u);
}

TEST(TcpClose, BothAtOnce) {  // [RFC9293 3.6 figure 13]
    StackTest t;
    t.established();
    t.shutdown_write().expect(fin().seq(1).ack(1));
    t.inject(fin().seq(1).ack(1));
    EXPECT_EQ(t.state(), State::kClosing);
    t.expect(ack().seq(2).ack(2));
    t.inject(ack().seq(2).ack(2));
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.host.tcp.usage().time_wait, 1u);
}

TEST(TcpClose, FinAndItsAckInOneSegment) {
    StackTest t;
    t.established();
    t.shutdown_write().expect(fin().seq(1).ack(1));
    t.inject(fin().seq(1).ack(2));
    t.expect(ack().seq(2).ack(2));
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.host.tcp.usage().time_wait, 1u);
}

TEST(TcpClose, HalfClosedStillReceives) {  // [RFC9293 3.6 case 1]
    StackTest t;
    t.established();
    t.shutdown_write().expect(fin().seq(1).ack(1));
    t.inject(ack().seq(1).ack(2));
    t.inject(ack().seq(1).ack(2).data("still here"));
    EXPECT_EQ(t.app.received, "still here");
    t.inject(fin().seq(11).ack(2));
    EXPECT_TRUE(t.app.closed);
    t.expect(ack().ack(12));
}

TEST(TcpClose, FinRidesOnTheLastData) {
    StackTest t;
    t.established();
    t.send("end");
    t.shutdown_write().expect(fin().seq(1).ack(1).data("end").psh());
}

TEST(TcpClose, FinWaitsForItsData) {  // out of order: FIN before the bytes that precede it
    StackTest t;
    t.accepted_connection();
    t.inject(fin().seq(6).ack(1).data("world"));
    EXPECT_FALSE(t.app.end_of_stream);
    t.expect(ack().ack(1).sack(6, 11));
    t.inject(ack().seq(1).ack(1).data("hello"));
    EXPECT_EQ(t.app.received, "helloworld");
    EXPECT_TRUE(t.app.end_of_stream);
    EXPECT_EQ(t.state(), State::kCloseWait);
    t.expect(ack().ack(12));
}

TEST(TcpClose, LoneFinAheadOfItsData) {
    StackTest t;
    t.accepted_connection();
    t.inject(fin().seq(6).ack(1));
    EXPECT_FALSE(t.app.end_of_stream);
    t.expect(ack().ack(1));
    t.inject(ack().seq(1).ack(1).data("hello"));
    EXPECT_TRUE(t.app.end_of_stream);
    t.expect(ack().ack(7));
}

TEST(TcpClose, RepeatedFinIsAcknowledgedAgain) {
    StackTest t;
    t.accepted_connection();
    t.inject(fin().seq(1).ack(1));
    t.expect(ack().ack(2));
    t.inject(fin().seq(1).ack(1));
    t.expect(ack().ack(2));
}

TEST(TcpClose, AbortSendsReset) {  // [RFC9293 3.10.5]
    StackTest t;
    t.established();
    t.send("unsent").expect(ack().seq(1).data("unsent"));
    t.connection->abort();
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.app.error, ECONNABORTED);
    t.expect(rst().seq(7).ack(1));
    EXPECT_EQ(t.host.tcp.usage().connections, 0u);
}

TEST(TcpClose, ResetByPeer) {  // [RFC9293 3.5.3]
    StackTest t;
    t.established();
    t.send("data").expect(ack().seq(1).data("data"));
    t.inject(rst().seq(1));
    EXPECT_TRUE(t.app.closed);
    EXPECT_EQ(t.app.error, ECONNRESET);
    t.after(10s).expect_nothing();
}

TEST(TcpClose, OrphanFinishesItsSending) {
    StackTest t;
    t.accepted_connection();
    t.send("reply").close();
    t.expect(fin().seq(1).data("reply"));
    t.inject(ack().seq(1).ack(7));
    EXPECT_EQ(t.state(), State::kFinWait2);
    t.inject(fin().seq(1).ack(7));
    t.expect(ack().seq(7).ack(2));
    EXPECT_TRUE(t.orphanage.closed);
    EXPECT_FALSE(t.orphanage.end_of_stream);
    EXPECT_EQ(t.orphanage.error, 0);
    EXPECT_FALSE(t.app.closed);
}

TEST(TcpClose, OrphanWithUnreadDataIsReset) {  // [RFC1122 4.2.2.13]
    StackTest t;
    t.app.reads = false;
    t.accepted_connection();
    t.inject(ack().seq(1).ack(1).data("unread"));
    t.close(true);
    t.expect(rst().seq(1).ack(7));
    EXPECT_TRUE(t.orphanage.closed);
}

TEST(TcpClose, LingerZeroResets) {
    StackTest t;
    t.established();
    t.close(false, true);
    t.expect(rst().seq(1).ack(1));
    EXPECT_TRUE(t.orphanage.closed);
}

TEST(TcpClose, DataForAnOrphanIsReset) {  // [RFC9293 3.6.1 MAY-1]
    StackTest t;
    t.established();
    t.close().expect(fin().seq(1).ack(1));
    t.inject(ack().seq(1).ack(2).data("anybody there?"));
    t.expect(rst().seq(2).ack(1));
    EXPECT_EQ(t.dropped(Drop::kTcpAfterClose), 1u);
    EXPECT_TRUE(t.orphanage.closed);
}

TEST(TcpClose, OrphanDoesNotWaitForEver) {
    StackTest t;
    t.established();
    t.close().expect(fin().seq(1).ack(1));
    t.inject(ack().seq(1).ack(2));
    t.after(59s).expect_nothing();
    EXPECT_FALSE(t.orphanage.closed);
    t.after(2s).expect_nothing();
    EXPECT_TRUE(t.orphanage.closed);
    EXPECT_EQ(t.host.tcp.usage().flows, 0u);
}

TEST(TcpClose, OrphanInSynSentIsForgotten) {
    StackTest t;
    t.connect();
    t.expect(syn().seq(0));
    t.close().expect_nothing();
    EXPECT_TRUE(t.orphanage.closed);
    EXPECT_EQ(t.host.tcp.usage().flows, 0u);
}

TEST(TcpClose, CloseInCloseWait) {
    StackTest t;
    t.accepted_connection();
    t.inject(fin().seq(1).ack(1));
    t.expect(ack().ack(2));
    t.close().expect(fin().seq(1).ack(2));
    t.inject(ack().seq(2).ack(2));
    EXPECT_TRUE(t.orphanage.closed);
    EXPECT_EQ(t.orphanage.error, 0);
}

TEST(TcpClose, FinGoesOutAlsoIntoAClosedWindow) {
    StackTest t;
    t.established({}, syn_ack().mss(1460).window(5));
    t.send("12345").shutdown_write().expect(fin().seq(1).data("12345"));
}

// --- TIME-WAIT ------------------------------------------------------------------------------------------------------

/// Runs a connection from the peer into TIME-WAIT on our side; the peer's next sequence number is 2, ours 2.
void into_time_wait(StackTest& t, bool timestamps = false) {
    auto request = syn().mss(1460);
    if (timestamps) request.ts(1000, 0);
    t.accepted_connection({}, request);
    t.shutdown_write().expect(fin().seq(1));
    auto answer = fin().seq(1).ack(2);
    if (timestamps) answer.ts(1001, 0);
    t.inject(answer);
    t.expect(ack().seq(2).ack(2));
    ASSERT_EQ(t.host.tcp.usage().time_wait, 1u);
}

TEST(TcpTimeWait, RepeatedFinIsAnsweredAndStartsAnew) {  // [RFC9293 3.10.7.4 eighth]
    StackTest t;
    into_time_wait(t);
    t.after(50s).inject(fin().seq(1).ack(2));
    t.expect(ack().seq(2).ack(2));
    t.after(50s).expect_nothing();
    EXPECT_EQ(t.host.tcp.usage().time_wait, 1u);
    t.after(11s).expect_nothing();
    EXPECT_EQ(t.host.tcp.usage().time_wait, 0u);
}

TEST(TcpTimeWait, StrayAckDrawsNothing) {
    StackTest t;
    into_time_wait(t);
    t.inject(ack().seq(2).ack(2)).inject(ack().seq(900).ack(2));
    t.expect_nothing();
}

TEST(TcpTimeWait, NewerSequenceNumberOpensAnew) {  // [RFC1122 4.2.2.13] [RFC9293 3.10.7.4 MAY-2]
    StackTest t;
    into_time_wait(t);
    const std::uint32_t old_iss = t.our_iss;
    t.inject(syn().seq(5000).mss(1460));
    t.iss_known = false;
    t.expect(syn_ack().ack(5001));
    EXPECT_GT(static_cast<std::int32_t>(t.our_iss - (old_iss + 2)), 0);  // beyond all that was used
    t.inject(ack().seq(5001).ack(1));
    EXPECT_EQ(t.accepted, 2);
    EXPECT_EQ(t.host.tcp.usage().time_wait, 0u);
}

TEST(TcpTimeWait, OlderSequenceNumberDoesNot) {
    StackTest t;
    into_time_wait(t);
    t.inject(syn().seq(0).mss(1460));
    t.expect(ack().seq(2).ack(2));
    EXPECT_EQ(t.host.tcp.usage().time_wait, 1u);
}

TEST(TcpTimeWait, NewerTimestampOpensAnewWhateverTheSequence) {  // [RFC6191 2]
    StackTest t;
    into_time_wait(t, true);
    t.inject(syn().seq(0).mss(1460).ts(900, 0));
    t.expect(ack().seq(2).ack(2).ts_echo(1001));
    t.inject(syn().seq(0).mss(1460).ts(2000, 0));
    t.iss_known = false;
    t.expect(syn_ack().ack(1).ts_echo(2000));
}

TEST(TcpTimeWait, ResetOnlyAtItsSequence) {
    StackTest t;
    into_time_wait(t);
    t.inject(rst().seq(50));
    EXPECT_EQ(t.host.tcp.usage().time_wait, 1u);
    t.inject(rst().seq(2));
    EXPECT_EQ(t.host.tcp.usage().time_wait, 0u);
    t.expect_nothing();
}

TEST(TcpTimeWait, ActiveOpenMayReuseWithTimestamps) {  // [RFC9293 3.6.1 SHLD-4] [RFC6191]
    StackTest t;
    t.connect();
    t.expect(syn().seq(0));
    t.inject(syn_ack().seq(0).ack(1).mss(1460).ts(10, t.last.options.timestamps->value));
    t.expect(ack().seq(1).ack(1));
    t.shutdown_write().expect(fin().seq(1));
    t.inject(fin().seq(1).ack(2).ts(11, 0));
    t.expect(ack().seq(2).ack(2));
    App again;
    ASSERT_FALSE(t.host.tcp.connect(t.local, t.remote, {}, again, t.now).has_value());
    t.after(1500ms);
    const std::uint32_t old_iss = t.our_iss;
    ASSERT_TRUE(t.host.tcp.connect(t.local, t.remote, {}, again, t.now).has_value());
    t.iss_known = false;
    t.expect(syn());
    EXPECT_GT(static_cast<std::int32_t>(t.our_iss - (old_iss + 2)), 0);
    EXPECT_EQ(t.host.tcp.usage().time_wait, 0u);
}

TEST(TcpTimeWait, FullTableForgetsTheOldest) {
    auto config = StackTest::with_defaults({});
    config.stack.max_time_wait = 2;
    StackTest t(config);
    t.listen();
    for (Port port = 1; port <= 3; ++port) {
        t.remote.port = port;
        t.iss_known = false;
        t.inject(syn().seq(0).mss(1460));
        t.expect(syn_ack());
        t.inject(ack().seq(1).ack(1));
        t.shutdown_write().expect(fin().seq(1));
        t.inject(fin().seq(1).ack(2));
        t.expect(ack().seq(2));
        t.app.closed = t.app.end_of_stream = false;
        t.after(1s);
    }
    EXPECT_EQ(t.host.tcp.usage().time_wait, 2u);
    EXPECT_EQ(t.host.counters.tcp_time_wait, 2u);
    t.after(60s);
    EXPECT_EQ(t.host.tcp.usage().flows, 0u);
}

/// Ends the connection as soon as it hears of progress.
class Impatient final : public stack::tcp::ConnectionOwner {
public:
    void on_established(stack::tcp::Connection&) override {}
    std::uint32_t on_data(stack::tcp::Connection&, stack::Payload, std::uint32_t length) override { return length; }
    void on_end_of_stream(stack::tcp::Connection&) override {}
    void on_released(stack::tcp::Connection&, stack::SendChunk* first) override {
        for (; first != nullptr; first = first->next) ++released;
    }
    void on_acknowledged(stack::tcp::Connection& connection, std::uint32_t) override { connection.abort(); }
    void on_closed(stack::tcp::Connection&, int) override { released_at_end = released; }
    int released = 0, released_at_end = -1;
};

// Found by simulation (seed 130).
TEST(TcpClose, AbortWhileHearingOfProgressComesAfterTheChunks) {
    StackTest t;
    t.established();
    Impatient impatient;
    stack::SendChunk chunk;
    const Bytes bytes = bytes_of("hello");
    chunk.data = bytes.data();
    chunk.length = 5;
    t.connection->set_owner(impatient);
    t.connection->send(&chunk, &chunk);
    t.expect(ack().seq(1).ack(1).data("hello"));
    t.inject(ack().seq(1).ack(6));
    t.expect(Seg(wire::kRst | wire::kAck).seq(6).ack(1));
    EXPECT_EQ(impatient.released_at_end, 1);
}

}  // namespace
}  // namespace culvert::test
