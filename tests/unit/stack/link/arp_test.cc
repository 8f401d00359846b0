// ARP and the state machine of neighbours over it: RFC 826, RFC 5227, RFC 1122 2.3.2.
#include "daemon/stack/link/arp.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/stack/link/link_host.h"

namespace culvert::stack {
namespace {

using testing::ElementsAre;

/// 10.0.0.1/24 in use, everything that announced it forgotten.
class ArpTest : public testing::Test {
protected:
    ArpTest() {
        host.with({{ip("10.0.0.1"), 24}}).after(10s);
        EXPECT_TRUE(host.has("10.0.0.1")) << host.transcript();
        host.connected().after(10s).forget();
        socket = host.stack.bind_udp({ip("10.0.0.1"), 4000}, false, datagrams).value();
    }
    ~ArpTest() override { host.stack.close(*socket); }
    void send(const char* to, std::string_view text = "x") {
        const auto bytes = std::as_bytes(std::span(text));
        const std::span<const std::byte> pieces[] = {bytes};
        EXPECT_TRUE(host.stack.send_datagram(*socket, {ip(to), 9}, pieces, static_cast<std::uint32_t>(bytes.size()), {},
                                             host.now));
        host.collect();
    }
    LinkHost host;
    DatagramLog datagrams;
    udp::Socket* socket = nullptr;
};

// [RFC5227 2.1.1, 2.3] three probes one to two seconds apart, the first within a second; two seconds of silence; then
// the address is used, and announced twice.
TEST(ArpProbe, ProbesThenAnnounces) {
    LinkHost host;
    host.with({{ip("10.0.0.1"), 24}});
    EXPECT_FALSE(host.has("10.0.0.1")) << "tentative";
    host.after(20s);
    Instant last{};
    for (int i = 0; i < 3; ++i) {
        EXPECT_EQ(LinkHost::describe(host.next()), "arp request 0.0.0.0 -> 10.0.0.1 broadcast");
        const Duration wait = host.sent_at - (i == 0 ? Instant{1h} : last);
        EXPECT_LE(wait, i == 0 ? 1s + 10ms : 2s + 10ms);
        EXPECT_GE(wait, i == 0 ? 0s : 1s);
        last = host.sent_at;
    }
    for (int i = 0; i < 2; ++i) {
        EXPECT_EQ(LinkHost::describe(host.next()), "arp request 10.0.0.1 -> 10.0.0.1 broadcast");
        EXPECT_GE(host.sent_at - last, 2s);
        EXPECT_LE(host.sent_at - last, 2s + 10ms);
        last = host.sent_at;
    }
    host.quiet();
    EXPECT_THAT(host.log.lines, ElementsAre("assigned 10.0.0.1/24"));
    EXPECT_TRUE(host.resolver.asked.empty());
}

// [RFC5227 2.1.1] a reply, a request, or another host's probe for the address: it is not to be used.
TEST(ArpProbe, AnybodyElseWhoHasOrWantsTheAddressEndsIt) {
    const Bytes signs[] = {arp_reply("10.0.0.1", "10.0.0.9"), arp_request("10.0.0.1", "10.0.0.9"),
                           arp_request("0.0.0.0", "10.0.0.1")};
    for (const Bytes& sign : signs) {
        LinkHost host;
        host.with({{ip("10.0.0.1"), 24}}).after(1500ms).forget().receive(sign).after(20s).quiet();
        EXPECT_FALSE(host.has("10.0.0.1"));
        EXPECT_EQ(host.dropped(Drop::kArpConflict), 1u);
        EXPECT_EQ(host.counters.address_conflicts, 1u);
        EXPECT_THAT(host.log.lines, ElementsAre("duplicate 10.0.0.1/24"));
        host.after(60s);  // [RFC5227 2.1.1] RATE_LIMIT_INTERVAL, then once more
        EXPECT_THAT(host.log.lines, ElementsAre("duplicate 10.0.0.1/24", "assigned 10.0.0.1/24"));
        EXPECT_TRUE(host.has("10.0.0.1"));
    }
}

TEST(ArpProbe, OurOwnProbeComingBackIsNoConflict) {
    LinkHost host;
    host.with({{ip("10.0.0.1"), 24}}).after(1500ms);
    const Bytes probe = host.next();
    host.receive(probe).after(20s);
    EXPECT_TRUE(host.has("10.0.0.1"));
    EXPECT_EQ(host.dropped(Drop::kArpOwn), 1u);
}

TEST(ArpProbe, ALinkThatIsDownProvesNothing) {
    LinkHost host(1, kOurMac, [](Interface& eth0) { eth0.up = false; });
    host.with({{ip("10.0.0.1"), 24}}).after(60s).quiet();
    EXPECT_FALSE(host.has("10.0.0.1"));
    host.stack.set_interface_state(7, true, 1500);
    host.after(20s);
    EXPECT_TRUE(host.has("10.0.0.1"));
}

TEST(ArpProbe, CanBeSwitchedOff) {
    LinkHost host(1, kOurMac, [](Interface& eth0) { eth0.detects_duplicates = false; });
    host.with({{ip("10.0.0.1"), 24}});
    EXPECT_TRUE(host.has("10.0.0.1"));
}

TEST_F(ArpTest, AnAddressThatIsTakenAwayIsAnsweredForNoMore) {
    host.with({});
    EXPECT_FALSE(host.has("10.0.0.1"));
    host.receive(arp_request("10.0.0.2", "10.0.0.1")).quiet();
    EXPECT_EQ(host.dropped(Drop::kArpNotForUs), 1u);
}

// [RFC5227 2.4 (c)] one announcement in ten seconds, and the address stays.
TEST_F(ArpTest, AnAddressInUseIsDefendedAtMostEveryTenSeconds) {
    host.receive(arp_request("10.0.0.1", "10.0.0.9"));
    EXPECT_EQ(LinkHost::describe(host.next()), "arp request 10.0.0.1 -> 10.0.0.1 broadcast");
    for (int i = 0; i < 100; ++i) host.receive(arp_request("10.0.0.1", "10.0.0.9"));
    host.after(9s).receive(arp_request("10.0.0.1", "10.0.0.9")).quiet();
    host.after(1s).receive(arp_request("10.0.0.1", "10.0.0.9"));
    EXPECT_EQ(LinkHost::describe(host.next()), "arp request 10.0.0.1 -> 10.0.0.1 broadcast");
    EXPECT_TRUE(host.has("10.0.0.1"));
    EXPECT_EQ(host.counters.address_conflicts, 103u);
    EXPECT_EQ(host.dropped(Drop::kArpConflict), 103u);
}

TEST_F(ArpTest, AnswersForOurAddressAndNoOther) {
    host.receive(arp_request("10.0.0.2", "10.0.0.1"));
    const Bytes reply = host.next();
    EXPECT_EQ(LinkHost::describe(reply), "arp reply 10.0.0.1 -> 10.0.0.2");
    EXPECT_EQ(wire::load_mac(reply.data()), kPeerMac);
    host.receive(arp_request("10.0.0.2", "10.0.0.3")).quiet();
    EXPECT_EQ(host.dropped(Drop::kArpNotForUs), 1u);
    // [RFC5227 2.1.1] another host's probe for our address is answered, too
    host.receive(arp_request("0.0.0.0", "10.0.0.1"));
    EXPECT_EQ(LinkHost::describe(host.next()), "arp reply 10.0.0.1 -> 0.0.0.0");
}

// [RFC1122 2.3.3 arp]
TEST_F(ArpTest, ResolvesAndSendsWhatWaited) {
    send("10.0.0.2", "one");
    send("10.0.0.2", "two");
    EXPECT_EQ(LinkHost::describe(host.next()), "arp request 10.0.0.1 -> 10.0.0.2 broadcast");
    host.quiet();
    host.receive(arp_reply("10.0.0.2", "10.0.0.1"));
    EXPECT_EQ(wire::load_mac(host.next().data()), kPeerMac);
    EXPECT_EQ(wire::load_mac(host.next().data()), kPeerMac);
    send("10.0.0.2", "three");
    EXPECT_EQ(wire::load_mac(host.next().data()), kPeerMac);
    host.quiet();
}

TEST_F(ArpTest, AFragmentedDatagramOf64KWaitsWhole) {
    send("10.0.0.2", std::string(65507, 'x'));
    EXPECT_EQ(LinkHost::describe(host.next()), "arp request 10.0.0.1 -> 10.0.0.2 broadcast");
    host.receive(arp_reply("10.0.0.2", "10.0.0.1"));
    EXPECT_EQ(host.all_sent().size(), 45u);  // 65515 / 1480
    EXPECT_EQ(host.dropped(Drop::kNeighborQueueFull), 0u);
}

// [RFC1122 2.3.2.1 arp-flood] at most one request a second; after three it is over, and the socket hears of it.
TEST_F(ArpTest, AsksThreeTimesThenGivesUpForLongerAndLonger) {
    send("10.0.0.2");
    host.after(2999ms);
    EXPECT_EQ(host.all_sent().size(), 3u);
    EXPECT_EQ(host.dropped(Drop::kNeighborUnresolved), 0u);
    host.after(10ms).quiet();
    EXPECT_EQ(host.dropped(Drop::kNeighborUnresolved), 1u);
    EXPECT_EQ(host.dropped(Drop::kIcmpUnmatched), 0u) << "nobody listens for the error, but no message came that was dropped";
    EXPECT_EQ(host.counters.neighbors_unreachable, 1u);
    send("10.0.0.2");  // refused at once while the hold lasts
    host.quiet();
    EXPECT_EQ(host.dropped(Drop::kNeighborUnresolved), 2u);
    host.after(1s);
    send("10.0.0.2");
    EXPECT_EQ(LinkHost::describe(host.next()), "arp request 10.0.0.1 -> 10.0.0.2 broadcast");
    host.after(4s).forget();
    send("10.0.0.2");
    host.after(1s);
    send("10.0.0.2");
    host.quiet() /* two seconds now */;
    host.receive(arp_reply("10.0.0.2", "10.0.0.1")).after(2s);
    EXPECT_EQ(host.dropped(Drop::kNeighborUnsolicited), 1u) << "nobody is asking just now";
}

// [RFC826] [RFC4861 7.3.3] used, not confirmed: asked directly, and replaced when it does not answer.
// [RFC1122 3.3.1.4 detect, forever, no-ping, traffic] [RFC1122 2.3.2.1 arp-flush]
TEST_F(ArpTest, AnUnusedNeighbourIsLeftAloneAndAUsedOneIsProbed) {
    send("10.0.0.2");
    host.receive(arp_reply("10.0.0.2", "10.0.0.1")).forget();
    host.after(46s).quiet();  // stale by now
    send("10.0.0.2");
    EXPECT_EQ(wire::load_mac(host.next().data()), kPeerMac) << "stale entries are used";
    host.after(4900ms).quiet();
    host.after(200ms);
    const Bytes probe = host.next();
    EXPECT_EQ(LinkHost::describe(probe), "arp request 10.0.0.1 -> 10.0.0.2");
    EXPECT_EQ(wire::load_mac(probe.data()), kPeerMac) << "unicast";
    host.receive(arp_reply("10.0.0.2", "10.0.0.1")).after(10s).quiet();

    host.after(46s);
    send("10.0.0.2");
    host.forget().after(5100ms);
    for (int i = 0; i < 2; ++i) {
        EXPECT_EQ(LinkHost::describe(host.next()), "arp request 10.0.0.1 -> 10.0.0.2");
        host.after(1s);
    }
    EXPECT_EQ(LinkHost::describe(host.next()), "arp request 10.0.0.1 -> 10.0.0.2");
    host.after(1s).quiet();
    EXPECT_EQ(host.counters.neighbors_unreachable, 1u);
    send("10.0.0.2");
    EXPECT_EQ(LinkHost::describe(host.next()), "arp request 10.0.0.1 -> 10.0.0.2 broadcast") << "from the start";
}

TEST_F(ArpTest, NothingIsLearnedFromRepliesThatNobodyAskedFor) {
    host.receive(arp_reply("10.0.0.2", "10.0.0.1"));
    EXPECT_EQ(host.dropped(Drop::kNeighborUnsolicited), 1u);
    send("10.0.0.2");
    EXPECT_EQ(LinkHost::describe(host.next()), "arp request 10.0.0.1 -> 10.0.0.2 broadcast");
}

// [RFC826] who asks us is remembered, so the answer above needs no question of ours.
TEST_F(ArpTest, WhoAsksIsKnown) {
    host.receive(arp_request("10.0.0.2", "10.0.0.1")).forget();
    send("10.0.0.2");
    EXPECT_EQ(wire::load_mac(host.next().data()), kPeerMac);
    host.receive(arp_request("192.168.0.2", "10.0.0.1", kRouterMac)).forget();
    host.stack.routes().replace({{.destination = ip("0.0.0.0"), .prefix_length = 0, .interface = 7}});
    send("192.168.0.2");
    EXPECT_EQ(LinkHost::describe(host.next()), "arp request 10.0.0.1 -> 192.168.0.2 broadcast") << "no neighbour of ours";
}

// [RFC826] the merge flag; but of two that fight, one is heard each second.
TEST_F(ArpTest, AGratuitousArpMovesAKnownNeighbour) {
    send("10.0.0.2");
    host.receive(arp_reply("10.0.0.2", "10.0.0.1")).forget().after(2s);
    host.receive(arp_request("10.0.0.2", "10.0.0.2", kRouterMac));
    send("10.0.0.2");
    EXPECT_EQ(wire::load_mac(host.next().data()), kRouterMac);
    host.receive(arp_request("10.0.0.2", "10.0.0.2", kPeerMac));
    EXPECT_EQ(host.dropped(Drop::kNeighborFlapping), 1u);
    send("10.0.0.2");
    EXPECT_EQ(wire::load_mac(host.next().data()), kRouterMac);
    host.receive(arp_request("10.0.0.77", "10.0.0.77", kRouterMac));
    EXPECT_EQ(host.dropped(Drop::kArpNotForUs), 2u) << "who is not known stays unknown";
}

TEST_F(ArpTest, ImpossibleSendersAreRefusedByName) {
    for (const char* sender : {"224.0.0.1", "255.255.255.255", "127.0.0.1"})
        host.receive(arp_request(sender, "10.0.0.1"));
    host.receive(arp_request("10.0.0.2", "10.0.0.1", wire::kBroadcastMac));
    host.receive(arp_request("10.0.0.2", "10.0.0.1", MacAddress{}));
    EXPECT_EQ(host.dropped(Drop::kArpSenderInvalid), 5u);
    Bytes cut = arp_request("10.0.0.2", "10.0.0.1");
    cut.resize(41);
    host.receive(cut).quiet();
    EXPECT_EQ(host.dropped(Drop::kArpMalformed), 1u);
}

// Hostile: a hundred thousand askers. Memory is a pool, answers are limited, and who is being talked to stays.
TEST_F(ArpTest, AFloodOfAskersPushesOutNobodyWhoIsUsed) {
    send("10.0.0.2");
    host.receive(arp_reply("10.0.0.2", "10.0.0.1")).forget();
    host.stack.set_addresses(7, {{ip("10.0.0.1"), 8}});
    host.eth0->addresses[0].prefix_length = 8;
    for (unsigned i = 0; i < 100000; ++i) {
        const Address asker = Address::v4(10, static_cast<std::uint8_t>(1 + i / 65536), static_cast<std::uint8_t>(i >> 8),
                                          static_cast<std::uint8_t>(i));
        host.stack.input(*host.eth0,
                         received(arp_frame({wire::ArpOperation::kRequest, kPeerMac, asker, {}, ip("10.0.0.1")},
                                            wire::kBroadcastMac)),
                         host.now);
        (void)take_frames(host.tx);
    }
    EXPECT_EQ(host.dropped(Drop::kLinkAnswerLimited), 100000u - 1000u);
    send("10.0.0.2");
    EXPECT_EQ(wire::load_mac(host.next().data()), kPeerMac);
    host.quiet();
}

TEST_F(ArpTest, AScanOfDeadNeighboursSendsABoundedNumberOfRequests) {
    for (int i = 2; i < 255; ++i) send(("10.0.0." + std::to_string(i)).c_str());
    EXPECT_EQ(host.all_sent().size(), 200u);
    EXPECT_EQ(host.dropped(Drop::kLinkSolicitLimited), 53u);
    host.after(4s).forget();
    EXPECT_EQ(host.counters.neighbors_unreachable, 253u);
    EXPECT_EQ(host.pool.available(), host.pool.count());
}

}  // namespace
}  // namespace culvert::stack
