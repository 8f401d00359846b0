// Data in order, both ways: delivery, ACKs and when they come, Nagle, the cork, windows, out-of-order data and SACK.
#include "tests/support/stack_test.h"

namespace culvert::test {
namespace {

using stack::tcp::Options;
using stack::tcp::State;

std::string text(std::size_t length) {
    std::string s(length, ' ');
    for (std::size_t i = 0; i < length; ++i) s[i] = static_cast<char>('a' + i % 26);
    return s;
}

TEST(TcpData, RequestAndReplyCarryTheAcks) {
    StackTest t;
    t.accepted_connection();
    t.inject(ack().seq(1).ack(1).data("request"));
    EXPECT_EQ(t.app.received, "request");
    t.send("reply").expect(ack().seq(1).ack(8).data("reply").psh());
    EXPECT_EQ(t.app.chunks_out(), 1u);
    EXPECT_EQ(t.connection->unacknowledged_bytes(), 5u);
    t.inject(ack().seq(8).ack(6).data("next"));
    EXPECT_EQ(t.app.chunks_out(), 0u);
    EXPECT_EQ(t.app.acknowledged, 5u);
    EXPECT_EQ(t.connection->unacknowledged_bytes(), 0u);
    t.send("more").expect(ack().seq(6).ack(12).data("more"));
}

TEST(TcpData, OverIpv6WithTimestamps) {
    StackTest t;
    t.over_ipv6().connect();
    t.expect(syn().seq(0));
    t.inject(syn_ack().seq(0).ack(1).mss(1440).sack_ok().wscale(7).ts(5, t.last.options.timestamps->value));
    t.expect(ack().seq(1).ack(1).ts_echo(5));
    t.send(text(3000));
    t.expect(ack().seq(1).data(text(3000).substr(0, 1428)));
    t.expect(ack().seq(1429).data(text(3000).substr(1428, 1428)));
    t.inject(ack().seq(1).ack(2857).ts(6, t.last.options.timestamps->value));
    t.expect(ack().seq(2857).data(text(3000).substr(2856)).ts_echo(5));  // 6 came with no news beyond Last.ACK.sent
}

TEST(TcpData, GathersAcrossChunks) {  // [RFC9293 3.9.1.2 SHLD-27] [RFC9293 3.7.4 SHLD-28]
    StackTest t;
    t.established();
    const std::string all = text(4000);
    t.send(all.substr(0, 1)).send(all.substr(1, 1000)).send("").send(all.substr(1001, 1999)).send(all.substr(3000));
    t.expect(ack().seq(1).data(all.substr(0, 1460)).psh(false));
    t.expect(ack().seq(1461).data(all.substr(1460, 1460)));
    t.expect(ack().seq(2921).data(all.substr(2920)).psh());  // the first small one: Minshall lets it go
    t.inject(ack().seq(1).ack(1002));
    EXPECT_EQ(t.app.chunks_out(), 2u);  // of 1, 1000 and 0 bytes: gone
    t.inject(ack().seq(1).ack(4001));
    EXPECT_EQ(t.app.chunks_out(), 0u);
    EXPECT_EQ(t.app.acknowledged, 4000u);
}

// Where the device cuts, one packet holds all that may leave now: the small segment at the end, too, unless Nagle holds it.
TEST(TcpData, ASuperPacketTakesTheSmallSegmentAtTheEndAlong) {
    for (const bool held : {false, true}) {
        StackTest t;
        t.established();
        t.host.eth0.segmentation_limit = 0xffff;
        if (held) {
            t.send("small and not acknowledged");
            t.host.tcp.flush(t.now);
            t.host.take_frames();
        }
        t.send(std::string(3 * 1460 + 100, 'x'));
        t.host.tcp.flush(t.now);
        std::uint32_t length = 0;
        const auto pending = t.host.tx.pending();
        ASSERT_FALSE(pending.empty());
        EXPECT_EQ(pending[0].segment_size, 1460u);
        for (const auto& each : pending) length += each.length;
        EXPECT_EQ(length, 14 + 20 + 20 + 3 * 1460 + (held ? 0u : 100u));
        EXPECT_EQ(t.host.counters.tcp_super_packets_out, 1u);
        t.host.take_frames();
        t.host.eth0.segmentation_limit = 0;
        t.send("the next");
        t.host.tcp.flush(t.now);
        EXPECT_TRUE(t.host.tx.pending().empty()) << "a small one is out already";
        t.connection->abort();
        t.skip_output();
    }
}

TEST(TcpData, NagleHoldsTheSecondSmallSegment) {  // [RFC9293 3.7.4]
    StackTest t;
    t.established();
    t.send("a").expect(ack().seq(1).data("a"));
    t.send("b").expect_nothing();
    t.send("c").expect_nothing();
    t.inject(ack().seq(1).ack(2));
    t.expect(ack().seq(2).data("bc"));
}

TEST(TcpData, NoDelaySendsAtOnce) {  // [RFC9293 3.7.4 MUST-17]
    StackTest t;
    t.established({.no_delay = true});
    t.send("a").expect(ack().seq(1).data("a"));
    t.send("b").expect(ack().seq(2).data("b"));
}

TEST(TcpData, SetNoDelayReleasesWhatWaits) {
    StackTest t;
    t.established();
    t.send("a").expect(ack().seq(1).data("a"));
    t.send("b").expect_nothing();
    t.connection->set_options({.no_delay = true});
    t.expect(ack().seq(2).data("b"));
}

TEST(TcpData, CorkHoldsPartialSegmentsForAWhile) {  // [RFC9293 3.9.1.2 MUST-60]
    StackTest t;
    t.established({.cork = true});
    t.send("head").expect_nothing();
    t.send(text(1460)).expect(ack().seq(1).len(1460));
    t.inject(ack().seq(1).ack(1461));
    t.expect_nothing();
    t.connection->set_options({});
    t.expect(ack().seq(1461).len(4));
    t.inject(ack().seq(1).ack(1465));
    t.connection->set_options({.cork = true});
    t.send("tail").expect_nothing();
    t.after(190ms).expect_nothing();
    t.after(15ms).expect(ack().seq(1465).data("tail"));  // a forgotten cork delays, it does not hold for ever
}

TEST(TcpData, WhatIsSentWithMoreToComeWaitsForIt) {  // send(2), MSG_MORE
    StackTest t;
    t.established({.no_delay = true});
    t.send("head", true).expect_nothing();
    t.send(" body", true).expect_nothing();
    t.send(" tail").expect(ack().seq(1).data("head body tail"));
    t.inject(ack().seq(1).ack(15));
    t.send(text(1460) + "rest", true).expect(ack().seq(15).len(1460));
    t.inject(ack().seq(1).ack(1475)).expect(ack().seq(1475).data("rest"));  // as Linux: an ACK lets it go
    t.inject(ack().seq(1).ack(1479));
    t.send("forgotten", true).expect_nothing();
    t.after(190ms).expect_nothing();
    t.after(15ms).expect(ack().seq(1479).data("forgotten"));
    t.inject(ack().seq(1).ack(1488));
    t.send("last", true).expect_nothing();
    t.shutdown_write().expect(fin().seq(1488).ack(1).data("last"));
}

TEST(TcpData, AckIsDelayedForOneSegment) {  // [RFC9293 3.8.6.3 MUST-40, SHLD-18]
    StackTest t;
    t.accepted_connection();
    t.inject(ack().seq(1).ack(1).data("small"));
    t.after(39ms).expect_nothing();
    t.after(2ms).expect(ack().seq(1).ack(6));
    EXPECT_EQ(t.host.counters.tcp_delayed_acks, 1u);
    t.after(10s).expect_nothing();
}

TEST(TcpData, OneAckForABurst) {  // [RFC9293 3.8.6.3 MUST-58] [RFC9293 3.10.7.4 MUST-59]
    StackTest t;
    t.accepted_connection();
    for (std::uint32_t i = 0; i < 10; ++i) t.inject(ack().seq(1 + i * 1460).ack(1).len(1460));
    t.expect(ack().seq(1).ack(14601));
    t.expect_nothing();
    EXPECT_EQ(t.app.received.size(), 14600u);
}

TEST(TcpData, EverySecondFullSegmentIsAcknowledged) {  // [RFC5681 4.2] [RFC9293 3.8.6.3 SHLD-19]
    StackTest t;
    t.accepted_connection();
    t.inject(ack().seq(1).ack(1).data("s"));  // interactive: no quick ACKs
    t.inject(ack().seq(2).ack(1).len(1460));
    t.expect_nothing();
    t.inject(ack().seq(1462).ack(1).len(1460));
    t.expect(ack().ack(2922));
}

TEST(TcpData, BulkAtTheStartIsAcknowledgedQuickly) {
    StackTest t;
    t.accepted_connection();
    t.inject(ack().seq(1).ack(1).len(1460));
    t.expect(ack().ack(1461));
}

TEST(TcpData, PayloadAcrossFragmentsOfThePacket) {
    StackTest t;
    t.accepted_connection();
    const auto frame = t.frame_of(ack().seq(1).ack(1).data(text(1200)));
    t.host.receive(frame, t.now, 14 + 20 + 20 + 100);
    EXPECT_EQ(t.app.received, text(1200));
    const auto second = t.frame_of(ack().seq(1201).ack(1).data("xyz"));
    t.host.receive(second, t.now, 14 + 20 + 20);  // headers only in the first buffer
    EXPECT_EQ(t.app.received, text(1200) + "xyz");
    t.skip_output();
}

TEST(TcpData, JumboSegmentsSpanManyChunks) {
    StackTest t(StackTest::with_defaults({.mtu = 65535}));
    t.established({}, syn_ack().mss(65495).window(65535));
    const std::string all = text(100000);
    t.send(all.substr(0, 70000)).send(all.substr(70000));
    t.expect(ack().seq(1).data(all.substr(0, 65495)));
    EXPECT_EQ(t.segments_waiting(), 0u);  // 40 bytes of window left: not worth a segment
    t.inject(ack().seq(1).ack(65496));
    t.expect(ack().seq(65496).data(all.substr(65495)));
}

TEST(TcpData, WindowClosesAsTheApplicationDoesNotRead) {  // [RFC9293 3.8.6.1 MAY-8]
    StackTest t;
    t.app.reads = false;
    t.accepted_connection({.receive_buffer = 8192});
    t.inject(ack().seq(1).ack(1).len(1460));
    t.expect(ack().ack(1461).window(8192 - 1460));
    for (std::uint32_t i = 1; i < 5; ++i) t.inject(ack().seq(1 + i * 1460).ack(1).len(1460));
    t.expect(ack().ack(7301).window(8192 - 7300));
    t.inject(ack().seq(7301).ack(1).len(892));
    t.after(50ms).expect(ack().ack(8193).window(0));
    t.inject(ack().seq(8193).ack(1).len(100));  // into a closed window
    t.expect(ack().ack(8193).window(0));
    EXPECT_EQ(t.dropped(Drop::kTcpZeroWindow), 1u);
    EXPECT_EQ(t.app.received.size(), 8192u);
    t.consumed(100).expect_nothing();  // [RFC9293 3.8.6.2.2 MUST-39] silly
    t.consumed(2000).expect(ack().ack(8193).window(2100));
    t.consumed(6092).expect(ack().ack(8193).window(8192));
}

TEST(TcpData, AWindowClampBoundsWhatThePeerIsTold) {
    StackTest t;
    t.accepted_connection({.window_clamp = 5000});
    t.inject(ack().seq(1).ack(1).len(1460));
    t.expect(ack().ack(1461).window(5000));
    t.inject(ack().seq(1461).ack(1).len(1460));
    t.expect(ack().ack(2921).window(5000));
    t.connection->set_options({.window_clamp = 2000});  // the edge stays until it is reached
    t.inject(ack().seq(2921).ack(1).len(1460));
    t.expect(ack().ack(4381).window(3540));
    t.inject(ack().seq(4381).ack(1).len(1460));
    t.expect(ack().ack(5841).window(2080));
    t.inject(ack().seq(5841).ack(1).len(1460));
    t.expect(ack().ack(7301).window(2000));
    t.connection->set_options({});
    t.inject(ack().seq(7301).ack(1).len(1460));
    t.expect(ack().ack(8761).window(65535));
}

TEST(TcpData, ScarceMemoryShrinksABufferThatTunesItself) {
    StackTest t;
    t.app.reads = false;
    t.accepted_connection();
    const std::uint32_t before = t.connection->receive_buffer();
    const auto read = [&](bool scarce) {
        t.after(20ms);
        t.connection->consumed(1, scarce);
        t.skip_output();
    };
    read(true);
    EXPECT_EQ(t.connection->receive_buffer(), before / 2);
    EXPECT_EQ(t.host.counters.tcp_memory_pressure, 1u);
    for (int i = 0; i < 20; ++i) read(true);
    EXPECT_EQ(t.connection->receive_buffer(), 2048u);  // StackConfig::min_receive_buffer
    read(false);
    EXPECT_EQ(t.connection->receive_buffer(), 2048u);  // grows when it is needed
    t.connection->set_options({.receive_buffer = 30000});
    read(true);
    EXPECT_EQ(t.connection->receive_buffer(), 30000u);
}

TEST(TcpData, WindowNeverShrinks) {  // [RFC9293 3.8.6 SHLD-14]
    StackTest t;
    t.app.reads = false;
    t.accepted_connection({.receive_buffer = 65535});
    t.connection->set_options({.receive_buffer = 4096});
    t.inject(ack().seq(1).ack(1).len(1000));
    t.after(50ms).expect(ack().ack(1001).window(64535));
}

TEST(TcpData, OwnerWithoutRoomGetsItAgain) {
    StackTest t;
    t.accepted_connection();
    t.app.accept_limit = 3;
    t.inject(ack().seq(1).ack(1).data("abcdef"));
    t.expect(ack().ack(4));
    EXPECT_EQ(t.dropped(Drop::kTcpReceiveBufferFull), 1u);
    t.app.accept_limit = 100;
    t.inject(ack().seq(1).ack(1).data("abcdef"));
    EXPECT_EQ(t.app.received, "abcdef");
    t.skip_output();
}

TEST(TcpData, OutOfOrderIsKeptAndReportedBySack) {  // [RFC2018 4] [RFC5681 4.2]
    StackTest t;
    t.accepted_connection();
    t.inject(ack().seq(11).ack(1).data("bbbbbbbbbb"));
    t.expect(ack().ack(1).sack(11, 21));
    t.inject(ack().seq(31).ack(1).data("dddddddddd"));
    t.expect(ack().ack(1).sack(31, 41).sack(11, 21));
    EXPECT_TRUE(t.app.received.empty());
    t.inject(ack().seq(1).ack(1).data("aaaaaaaaaa"));
    t.expect(ack().ack(21).sack(31, 41));
    t.inject(ack().seq(21).ack(1).data("cccccccccc"));
    t.expect(ack().ack(41).no_sack());
    EXPECT_EQ(t.app.received, "aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd");
    EXPECT_EQ(t.host.tcp.usage().reassembly_pieces, 0u);
}

TEST(TcpData, DuplicateIsReportedByDsack) {  // [RFC2883 4]
    StackTest t;
    t.accepted_connection();
    t.inject(ack().seq(1).ack(1).data("aaaa"));
    t.skip_output();
    t.inject(ack().seq(1).ack(1).data("aaaa"));
    t.expect(ack().ack(5).sack(1, 5));
    EXPECT_EQ(t.dropped(Drop::kTcpDuplicate), 1u);
    t.inject(ack().seq(3).ack(1).data("aabb"));  // half old, half new
    t.after(50ms).expect(ack().ack(7).sack(3, 5));
    EXPECT_EQ(t.app.received, "aaaabb");
}

TEST(TcpData, WithoutSackEveryGapSegmentDrawsADuplicateAck) {
    StackTest t;
    t.accepted_connection({}, syn().mss(1460));
    for (std::uint32_t i = 1; i <= 5; ++i) t.inject(ack().seq(1 + i * 10).ack(1).len(10));
    for (int i = 0; i < 5; ++i) t.expect(ack().seq(1).ack(1).no_sack());
    t.expect_nothing();
}

TEST(TcpData, DataBeyondTheWindowIsCutOff) {
    StackTest t;
    t.app.reads = false;
    t.accepted_connection({.receive_buffer = 4096});
    t.inject(ack().seq(1).ack(1).data(text(5000)));
    EXPECT_EQ(t.app.received, text(4096));
    t.expect(ack().ack(4097).window(0));
    EXPECT_EQ(t.dropped(Drop::kTcpOutOfWindow), 1u);
}

TEST(TcpData, SendWaitsForThePeersWindow) {
    StackTest t;
    t.established({}, syn_ack().mss(1000).window(2500));
    t.send(text(5000));
    t.expect(ack().seq(1).len(1000));
    t.expect(ack().seq(1001).len(1000));
    t.expect_nothing();  // 500 are silly: less than a segment, less than half the window [RFC9293 3.8.6.2.1 MUST-38]
    t.inject(ack().seq(1).ack(1001).window(2500));
    t.expect(ack().seq(2001).len(1000));
    t.expect_nothing();
    t.inject(ack().seq(1).ack(3001).window(2500));
    t.expect(ack().seq(3001).len(1000));
    t.expect(ack().seq(4001).len(1000));
}

TEST(TcpData, SendBeforeTheHandshakeIsDone) {
    StackTest t;
    t.connect();
    t.send("early");
    t.expect(syn().seq(0));
    t.inject(syn_ack().seq(0).ack(1).mss(1460));
    t.expect(ack().seq(1).ack(1).data("early"));
}

TEST(TcpData, SendAfterShutdownComesBackAtOnce) {
    StackTest t;
    t.established();
    t.shutdown_write().expect(fin().seq(1).ack(1));
    t.send("late");
    EXPECT_EQ(t.app.chunks_out(), 0u);
    t.expect_nothing();
}

TEST(TcpData, ReceiveBufferGrowsWithTheReader) {
    StackTest t;
    t.accepted_connection({}, syn().mss(1460).sack_ok().wscale(7));
    const std::uint32_t before = t.connection->receive_buffer();
    std::uint32_t seq = 1;
    for (int round = 0; round < 8; ++round) {
        const std::uint32_t segments = t.connection->info().receive_window / 1460;
        for (std::uint32_t i = 0; i < segments; ++i, seq += 1460) t.inject(ack().seq(seq).ack(1).len(1460));
        t.after(1ms).skip_output();
    }
    EXPECT_GT(t.connection->receive_buffer(), before);
    EXPECT_LE(t.connection->receive_buffer(), 4u * 1024 * 1024);
    EXPECT_EQ(t.app.received.size(), seq - 1);
}

TEST(TcpData, NoFrameMeansLaterNotLost) {
    StackTest t;
    t.established();
    std::vector<ChunkIndex> taken;
    for (ChunkIndex chunk = t.host.pool.allocate(); chunk != kNoChunk; chunk = t.host.pool.allocate()) taken.push_back(chunk);
    t.send("hello").expect_nothing();
    EXPECT_EQ(t.host.tcp.next_deadline(), Instant::min());
    for (const ChunkIndex chunk : taken) t.host.pool.release(chunk);
    t.expect(ack().seq(1).data("hello"));
}

}  // namespace
}  // namespace culvert::test
