// Urgent data, both ways: RFC 9293 3.8.5, RFC 6093.
#include "daemon/stack/tcp/urgent_table.h"
#include "tests/support/stack_test.h"

namespace culvert::test {
namespace {

class TcpUrgent : public ::testing::TestWithParam<bool> {
protected:
    TcpUrgent() {
        if (GetParam()) t.over_ipv6();
    }
    /// send(..., MSG_OOB)
    void send_urgent(std::string_view text) {
        t.send(text);
        t.connection->mark_urgent(0);
    }
    StackTest t;
};
INSTANTIATE_TEST_SUITE_P(Families, TcpUrgent, ::testing::Values(false, true),
                         [](const auto& family) { return family.param ? "IPv6" : "IPv4"; });

TEST_P(TcpUrgent, ThePointerNamesTheOctetAfterTheUrgentOne) {  // [RFC9293 3.8.5 MUST-62] [RFC6093 4]
    t.established();
    send_urgent("abc!");
    t.expect(ack().seq(1).data("abc!").urg(4));
    t.inject(ack().seq(1).ack(5));
    t.send("more").expect(ack().seq(5).data("more"));
}

TEST_P(TcpUrgent, EverySegmentBeforeItPointsThere) {  // [RFC9293 3.8.5 MUST-31]
    t.established({}, syn_ack().mss(1000).sack_ok());
    send_urgent(std::string(2080, 'x'));
    t.expect(ack().seq(1).len(1000).urg(2080));
    t.expect(ack().seq(1001).len(1000).urg(1080));
    t.expect(ack().seq(2001).len(80).urg(80));
    t.send("behind").expect(ack().seq(2081).data("behind"));  // and no segment behind it
    t.inject(ack().seq(1).ack(2087));
}

TEST_P(TcpUrgent, OrdinaryDataThatWasWrittenBehindItIsNotUrgent) {
    t.established();
    t.send("now!");
    t.send("later");
    t.connection->mark_urgent(5);
    t.expect(ack().seq(1).data("now!later").urg(4));
}

TEST_P(TcpUrgent, TheLaterOneTakesThePlaceOfTheFirst) {
    t.established();
    send_urgent("a");
    t.expect(ack().seq(1).data("a").urg(1));
    send_urgent("b");
    t.expect(ack().seq(2).data("b").urg(1));
    t.inject(ack().seq(1).ack(2));
    t.after(1s);
    t.expect(ack().seq(2).data("b").urg(1));  // sent again, urgent still
    t.skip_output();
}

TEST_P(TcpUrgent, AClosedWindowLetsThePointerThrough) {  // [RFC9293 3.8.5]
    t.established({}, syn_ack().mss(1460).sack_ok().window(4));
    t.send("1234").expect(ack().seq(1).data("1234"));
    t.inject(ack().seq(1).ack(5).window(0));
    send_urgent("stop");
    t.expect(ack().seq(5).urg(4));  // nothing but the news
    t.after(1200ms);
    t.expect(ack().seq(4).urg(5));  // the window probe, which stands outside the peer's window; so the news again
    t.expect(ack().seq(5).urg(4));
    t.skip_output();
    t.inject(ack().seq(1).ack(5).window(100));
    t.expect(ack().seq(5).data("stop").urg(4));
}

TEST_P(TcpUrgent, FurtherAwayThan16BitsCanSayIsSaidAsFarAsTheyCan) {
    t.established({}, syn_ack().mss(1000).sack_ok().window(1000));
    send_urgent(std::string(67000, 'x'));
    t.expect(ack().seq(1).len(1000).urg(0xffff));
    t.inject(ack().seq(1).ack(1001).window(3000));
    t.expect(ack().seq(1001).len(1000).urg(0xffff));
    t.expect(ack().seq(2001).len(1000).urg(65000));
    t.expect(ack().seq(3001).len(1000).urg(64000));
}

TEST_P(TcpUrgent, NeitherNagleNorACorkHoldsIt) {
    t.established({.cork = true});
    t.send("a").expect_nothing();
    send_urgent("!");
    t.expect(ack().seq(1).data("a!").urg(2));
}

TEST_P(TcpUrgent, WithoutAPlaceItIsOrdinaryData) {
    t.established();
    t.connection->mark_urgent(0);  // nothing that could be urgent
    EXPECT_EQ(t.host.counters.tcp_urgent_refused, 1u);
    t.send("x").expect(ack().seq(1).data("x"));
}

TEST_P(TcpUrgent, TheOwnerHearsWhereItIs) {  // [RFC9293 3.8.5 MUST-30, MUST-32, MUST-33] [RFC6093 4]
    t.established();
    t.inject(ack().seq(1).ack(1).data("ab!cd").urg(3));
    EXPECT_EQ(t.app.urgent_at, (std::vector<std::uint64_t>{2}));
    EXPECT_EQ(t.app.received, "ab!cd");
    t.inject(ack().seq(6).ack(1).urg(100));  // far ahead of what has come
    EXPECT_EQ(t.app.urgent_at, (std::vector<std::uint64_t>{2, 104}));
    EXPECT_EQ(t.host.counters.tcp_urgent_in, 2u);
    t.skip_output();
}

TEST_P(TcpUrgent, OfASegmentThatCameTooEarlyToo) {
    t.established();
    t.inject(ack().seq(5).ack(1).data("!rest").urg(1));
    EXPECT_EQ(t.app.urgent_at, (std::vector<std::uint64_t>{4}));
    t.inject(ack().seq(1).ack(1).data("1234"));
    EXPECT_EQ(t.app.received, "1234!rest");
    t.skip_output();
}

TEST_P(TcpUrgent, TheWindowIsShutAndThePointerIsHeard) {  // [RFC9293 3.8.6 MUST-66]
    t.app.reads = false;
    t.established({.receive_buffer = 2048});
    t.inject(ack().seq(1).ack(1).len(2048));
    t.skip_output();
    t.inject(ack().seq(2049).ack(1).urg(1));
    EXPECT_EQ(t.app.urgent_at, (std::vector<std::uint64_t>{2048}));
    t.inject(ack().seq(2049).ack(1).data("!!").urg(2));  // no room for it
    EXPECT_EQ(t.app.urgent_at, (std::vector<std::uint64_t>{2048, 2049}));
    EXPECT_EQ(t.app.received.size(), 2048u);
    t.skip_output();
}

TEST_P(TcpUrgent, WhatIsDeliveredOrCannotComeIsNotUrgent) {
    t.established();
    t.inject(ack().seq(1).ack(1).data("abc"));
    t.inject(ack().seq(1).ack(1).data("abcd").urg(3));  // points at c
    EXPECT_TRUE(t.app.urgent_at.empty());
    t.inject(ack().seq(5).ack(1).urg(0));  // no octet comes before it
    EXPECT_TRUE(t.app.urgent_at.empty());
    t.inject(fin().seq(5).ack(1).data("e"));
    t.inject(ack().seq(7).ack(1).urg(9));
    EXPECT_TRUE(t.app.urgent_at.empty());
    t.skip_output();
}

TEST(UrgentTable, HoldsFourOfASetAndSaysWhenThereAreMore) {
    stack::tcp::UrgentTable table;
    for (std::uint32_t way = 0; way < 4; ++way) EXPECT_TRUE(table.set(5 + way * 64, 100 + way));
    EXPECT_FALSE(table.set(5 + 4 * 64, 1));
    EXPECT_TRUE(table.set(6, 7)) << "the next set has room";
    EXPECT_TRUE(table.set(5, 200)) << "its own place";
    EXPECT_EQ(table.find(5), 200u);
    EXPECT_EQ(table.find(5 + 64), 101u);
    EXPECT_EQ(table.find(5 + 4 * 64), 0u);
    table.erase(5);
    EXPECT_EQ(table.find(5), 0u);
    EXPECT_TRUE(table.set(5 + 4 * 64, 1));
}

}  // namespace
}  // namespace culvert::test
