// Neighbour discovery: RFC 4861, duplicate detection of RFC 4862 5.4 and RFC 7527.
#include "daemon/stack/link/ndp.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "daemon/stack/link/stable_address.h"
#include "tests/unit/stack/link/link_host.h"

namespace culvert::stack {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using wire::NeighborAdvertisement;
using wire::NeighborSolicitation;

const Address kAllNodes = ip("ff02::1");

/// What is left of the output when reports of group membership are taken out.
std::vector<std::string> without_mld(std::vector<std::string> lines) {
    std::erase_if(lines, [](const std::string& line) { return line.starts_with("mld"); });
    return lines;
}

class NdpTest : public testing::Test {
protected:
    NdpTest() {
        host.with({{ip("fd00::1"), 64}, {ip("fe80::1"), 64}}).after(10s);
        EXPECT_TRUE(host.has("fd00::1") && host.has("fe80::1")) << host.transcript();
        host.connected().after(20s).forget();
        socket = host.stack.bind_udp({ip("fd00::1"), 4000}, false, datagrams).value();
    }
    ~NdpTest() override { host.stack.close(*socket); }
    void send(const char* to) {
        const std::byte x[] = {std::byte{'x'}};
        const std::span<const std::byte> pieces[] = {x};
        EXPECT_TRUE(host.stack.send_datagram(*socket, {ip(to), 9}, pieces, 1, {}, host.now));
        host.collect();
    }
    static Bytes answer(const NeighborAdvertisement& message, const char* to = "fd00::1") {
        return ndp_frame(message.target.to_string().c_str(), ip(to), message);
    }
    /// An answer as it should be.
    static Bytes answer_from(const char* address, const MacAddress& mac = kPeerMac) {
        return answer({.target = ip(address), .solicited = true, .overrides = true, .target_mac = mac});
    }
    MacAddress sent_to() {
        const Bytes frame = host.next();
        return frame.empty() ? MacAddress{} : wire::load_mac(frame.data());
    }
    LinkHost host;
    DatagramLog datagrams;
    udp::Socket* socket = nullptr;
};

// [RFC4862 5.4.2] joins the solicited-node group, asks once from nowhere with a nonce, waits a second.
TEST(DuplicateDetection, AsksOnceThenUsesTheAddress) {
    LinkHost host;
    host.with({{ip("fd00::1"), 64}, {ip("fe80::1"), 64}});
    EXPECT_TRUE(host.eth0->addresses.empty()) << "tentative";
    host.after(1010ms);
    const auto lines = without_mld(host.all_sent());
    EXPECT_THAT(lines, testing::UnorderedElementsAre("ns :: -> ff02::1:ff00:1 fd00::1 nonce",
                                                     "ns :: -> ff02::1:ff00:1 fe80::1 nonce"));
    host.after(1010ms);
    EXPECT_TRUE(host.has("fd00::1") && host.has("fe80::1"));
    host.after(10s);
    EXPECT_THAT(without_mld(host.all_sent()), ElementsAre()) << "nothing more to say";
}

// [RFC4291 2.8] [RFC7217] a link-local address comes with the first IPv6 address, and is the same at the next start.
TEST(DuplicateDetection, ALinkLocalAddressIsMadeAndIsStable) {
    std::vector<Address> seen;
    for (const std::uint64_t seed : {1u, 1u, 2u}) {
        LinkHost host(seed);
        host.with({{ip("fd00::1"), 64}}).after(5s);
        ASSERT_TRUE(host.link_local());
        seen.push_back(*host.link_local());
    }
    EXPECT_EQ(seen[0], seen[1]);
    EXPECT_NE(seen[0], seen[2]) << "another secret, another address";
}

TEST(StableAddress, DependsOnAllOfItsInputs) {  // [RFC7217 5]
    const std::uint64_t secret[2] = {1, 2}, other[2] = {1, 3};
    const Address base = stable_address(ip("fd00::"), "eth0", 0, secret);
    EXPECT_TRUE(base.in(ip("fd00::"), 64));
    EXPECT_EQ(stable_address(ip("fd00::9"), "eth0", 0, secret), base) << "only the prefix counts";
    EXPECT_NE(stable_address(ip("fd00::"), "eth1", 0, secret), base);
    EXPECT_NE(stable_address(ip("fd00::"), "eth0", 1, secret), base);
    EXPECT_NE(stable_address(ip("fd00::"), "eth0", 0, other), base);
    EXPECT_NE(stable_address(ip("fd01::"), "eth0", 0, secret).bytes()[15], base.bytes()[15]);
    EXPECT_TRUE(is_reserved_interface_id(0));  // [RFC5453]
    EXPECT_TRUE(is_reserved_interface_id(0xfdffffffffffff80));
    EXPECT_FALSE(is_reserved_interface_id(0xfdffffffffffff7f));
}

// [RFC4862 5.4.3, 5.4.4] another host that asks for it too, or that has it.
TEST(DuplicateDetection, AnybodyElseWhoHasOrWantsTheAddressEndsIt) {
    const Bytes signs[] = {
        ndp_frame("::", wire::solicited_node_group(ip("fd00::1")), NeighborSolicitation{.target = ip("fd00::1"), .source_mac = {}, .nonce = {}}),
        ndp_frame("::", wire::solicited_node_group(ip("fd00::1")),
                  NeighborSolicitation{.target = ip("fd00::1"), .source_mac = {}, .nonce = wire::NdpNonce{1, 2, 3, 4, 5, 6}}),
        ndp_frame("fd00::1", kAllNodes, NeighborAdvertisement{.target = ip("fd00::1"), .overrides = true, .target_mac = kPeerMac})};
    for (const Bytes& sign : signs) {
        LinkHost host;
        host.with({{ip("fd00::1"), 64}, {ip("fe80::1"), 64}}).after(1100ms).receive(sign).after(10s);
        EXPECT_FALSE(host.has("fd00::1")) << host.transcript();
        EXPECT_TRUE(host.has("fe80::1"));
        EXPECT_EQ(host.dropped(Drop::kNdpDuplicate), 1u);
        EXPECT_EQ(host.counters.address_conflicts, 1u);
        host.after(62s);
        EXPECT_TRUE(host.has("fd00::1")) << "tried again after a minute";
    }
}

// [RFC7527 4.2] the nonce tells our own probe, looped back, from another host's.
TEST(DuplicateDetection, OurOwnProbeComingBackIsNoDuplicate) {
    LinkHost host;
    host.with({{ip("fd00::1"), 64}, {ip("fe80::1"), 64}}).after(1010ms);
    while (!host.sent.empty()) {
        const Bytes frame = host.next();
        if (LinkHost::describe(frame).starts_with("ns")) host.receive(frame);
    }
    host.after(3s);
    EXPECT_TRUE(host.has("fd00::1") && host.has("fe80::1"));
    EXPECT_EQ(host.dropped(Drop::kNdpLoopback), 2u);
}

// [RFC7217 6] an address of our own choice is chosen anew, three times.
TEST(DuplicateDetection, ALinkLocalAddressThatIsTakenIsReplaced) {
    LinkHost host;
    host.with({{ip("fd00::1"), 64}}).after(1010ms);
    unsigned taken = 0;
    for (int i = 0; i < 20 && taken < 3; ++i) {
        host.after(200ms);
        while (!host.sent.empty()) {
            const std::string line = LinkHost::describe(host.next());
            if (!line.starts_with("ns") || line.find(" fe80::") == std::string::npos) continue;
            const std::size_t at = line.find(" fe80::") + 1;
            const Address wanted = ip(line.substr(at, line.find(' ', at) - at).c_str());
            host.receive(ndp_frame(wanted.to_string().c_str(), kAllNodes,
                                   NeighborAdvertisement{.target = wanted, .overrides = true, .target_mac = kPeerMac}));
            ++taken;
        }
    }
    EXPECT_EQ(taken, 3u);
    host.after(5s);
    EXPECT_TRUE(host.link_local()) << host.transcript();
}

TEST(DuplicateDetection, WhoAsksForATentativeAddressHearsNothing) {  // [RFC4862 5.4.3]
    LinkHost host;
    host.with({{ip("fd00::1"), 64}, {ip("fe80::1"), 64}}).after(1010ms).forget();
    host.receive(ndp_frame("fd00::2", wire::solicited_node_group(ip("fd00::1")),
                           NeighborSolicitation{.target = ip("fd00::1"), .source_mac = kPeerMac, .nonce = {}}));
    EXPECT_EQ(host.dropped(Drop::kNdpNotForUs), 1u);
    EXPECT_THAT(without_mld(host.all_sent()), ElementsAre());
    host.after(2s);
    EXPECT_TRUE(host.has("fd00::1")) << "and it is no conflict";
}

// [RFC4861 7.2.4]
TEST_F(NdpTest, AnswersForOurAddresses) {
    host.receive(ndp_frame("fd00::2", wire::solicited_node_group(ip("fd00::1")),
                           NeighborSolicitation{.target = ip("fd00::1"), .source_mac = kPeerMac, .nonce = {}}));
    EXPECT_EQ(LinkHost::describe(host.next()), "na fd00::1 -> fd00::2 fd00::1 SO tmac");
    host.receive(ndp_frame("fd00::2", ip("fd00::1"), NeighborSolicitation{.target = ip("fd00::1"), .source_mac = {}, .nonce = {}}));
    EXPECT_EQ(LinkHost::describe(host.next()), "na fd00::1 -> fd00::2 fd00::1 SO tmac") << "unicast, without the option";
    host.receive(ndp_frame("::", wire::solicited_node_group(ip("fd00::1")), NeighborSolicitation{.target = ip("fd00::1"), .source_mac = {}, .nonce = {}}));
    EXPECT_EQ(LinkHost::describe(host.next()), "na fd00::1 -> ff02::1 fd00::1 O tmac") << "to a prober";
    host.receive(ndp_frame("fd00::2", wire::solicited_node_group(ip("fd00::1")),
                           NeighborSolicitation{.target = ip("fd00::5:1"), .source_mac = kPeerMac, .nonce = {}}));
    host.quiet();
    EXPECT_EQ(host.dropped(Drop::kNdpNotForUs), 1u);
}

// [RFC4861 7.2.4] An asker without the option is answered at the MAC of its frame, if that is one of a host.
TEST_F(NdpTest, NobodyIsAnsweredAtAMacThatNoHostHas) {
    for (const MacAddress& mac : {MacAddress{}, MacAddress{{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}, MacAddress{{0x33, 0x33, 0, 0, 0, 1}}}) {
        Bytes frame = ndp_frame("fd00::2", ip("fd00::1"), NeighborSolicitation{.target = ip("fd00::1"), .source_mac = {}, .nonce = {}});
        wire::store_mac(frame.data() + 6, mac);
        host.receive(frame);
        host.quiet();
    }
    EXPECT_EQ(host.dropped(Drop::kNdpInvalid), 3u);
}

struct Refused {
    const char* name;
    Bytes frame;
    Drop drop;
};

/// [RFC4861 6.1.2, 7.1.1, 7.1.2, 8.1] every rule by itself: else right messages with one thing wrong.
TEST_F(NdpTest, EveryRuleOfValidation) {
    const Address group = wire::solicited_node_group(ip("fd00::1"));
    const NeighborSolicitation ns{.target = ip("fd00::1"), .source_mac = kPeerMac, .nonce = {}};
    const NeighborSolicitation bare{.target = ip("fd00::1"), .source_mac = {}, .nonce = {}};
    const NeighborAdvertisement na{.target = ip("fd00::2"), .overrides = true, .target_mac = kPeerMac};
    const wire::RouterAdvertisement ra{.router_lifetime = 1800s, .source_mac = kPeerMac, .mtu = {}, .prefixes = {}};
    const wire::Redirect redirect{.target = ip("fe80::9"), .destination = ip("fd01::1"), .target_mac = kPeerMac};
    const auto with_checksum = [](Bytes frame, auto change) {
        change(frame);
        const auto view = wire::Ipv6View::parse(std::span<const std::byte>(frame).subspan(14)).value();
        wire::finish_icmpv6_checksum(std::span(frame).subspan(54), view.source(), view.destination());
        return frame;
    };
    const auto code = [](Bytes& frame) { frame[55] = std::byte{1}; };
    const auto zero_option = [](std::size_t at) { return [at](Bytes& frame) { frame[at + 1] = std::byte{0}; }; };
    const auto long_option = [](std::size_t at) { return [at](Bytes& frame) { frame[at + 1] = std::byte{2}; }; };
    const auto shorter = [](Bytes& frame) {
        frame.resize(54 + 20);
        wire::store_be16(frame, 18, 20);
    };
    const Refused table[] = {
        {"NS hop limit", ndp_frame("fd00::2", group, ns, 254), Drop::kNdpHopLimit},
        {"NS code", with_checksum(ndp_frame("fd00::2", group, ns), code), Drop::kNdpMalformed},
        {"NS too short", with_checksum(ndp_frame("fd00::2", group, bare), shorter), Drop::kNdpMalformed},
        {"NS option of length 0", with_checksum(ndp_frame("fd00::2", group, ns), zero_option(78)), Drop::kNdpMalformed},
        {"NS option beyond the end", with_checksum(ndp_frame("fd00::2", group, ns), long_option(78)), Drop::kNdpMalformed},
        {"NS multicast target", ndp_frame("fd00::2", group, NeighborSolicitation{.target = group, .source_mac = kPeerMac, .nonce = {}}), Drop::kNdpInvalid},
        {"NS from nobody, not to the solicited-node group", ndp_frame("::", kAllNodes, bare), Drop::kNdpInvalid},
        {"NS from nobody with a MAC", ndp_frame("::", group, ns), Drop::kNdpInvalid},
        {"NS to a group without a MAC", ndp_frame("fd00::2", group, bare), Drop::kNdpInvalid},
        {"NS with a group's MAC", ndp_frame("fd00::2", group, NeighborSolicitation{.target = ip("fd00::1"), .source_mac = wire::kBroadcastMac, .nonce = {}}), Drop::kNdpInvalid},
        {"NA hop limit", ndp_frame("fd00::2", ip("fd00::1"), na, 1), Drop::kNdpHopLimit},
        {"NA code", with_checksum(ndp_frame("fd00::2", ip("fd00::1"), na), code), Drop::kNdpMalformed},
        {"NA too short", with_checksum(ndp_frame("fd00::2", ip("fd00::1"), na), shorter), Drop::kNdpMalformed},
        {"NA multicast target", ndp_frame("fd00::2", ip("fd00::1"), NeighborAdvertisement{.target = kAllNodes, .target_mac = kPeerMac}), Drop::kNdpInvalid},
        {"NA solicited to a group", ndp_frame("fd00::2", kAllNodes, NeighborAdvertisement{.target = ip("fd00::2"), .solicited = true, .target_mac = kPeerMac}), Drop::kNdpInvalid},
        {"NA nobody asked for", ndp_frame("fd00::2", ip("fd00::1"), na), Drop::kNeighborUnsolicited},
        {"RA hop limit", ndp_frame("fe80::9", kAllNodes, ra, 254), Drop::kNdpHopLimit},
        {"RA not from a link-local address", ndp_frame("fd00::2", kAllNodes, ra), Drop::kNdpInvalid},
        {"RA code", with_checksum(ndp_frame("fe80::9", kAllNodes, ra), code), Drop::kNdpMalformed},
        {"RA option of length 0", with_checksum(ndp_frame("fe80::9", kAllNodes, ra), zero_option(70)), Drop::kNdpMalformed},
        {"RA where nothing configures itself", ndp_frame("fe80::9", kAllNodes, ra), Drop::kNdpRouterIgnored},
        {"redirect hop limit", ndp_frame("fe80::9", ip("fd00::1"), redirect, 64), Drop::kNdpHopLimit},
        {"redirect not from a link-local address", ndp_frame("fd00::2", ip("fd00::1"), redirect), Drop::kNdpInvalid},
        {"redirect of a group", ndp_frame("fe80::9", ip("fd00::1"), wire::Redirect{.target = ip("fe80::9"), .destination = kAllNodes, .target_mac = {}}), Drop::kNdpInvalid},
        {"redirect to somebody far away", ndp_frame("fe80::9", ip("fd00::1"), wire::Redirect{.target = ip("fd09::9"), .destination = ip("fd01::1"), .target_mac = {}}), Drop::kNdpInvalid},
        {"RS: we are no router", ndp_frame("fe80::9", kAllNodes, wire::RouterSolicitation{.source_mac = kPeerMac}), Drop::kNdpRouterSolicitation},
    };
    for (const Refused& one : table) {
        const std::uint64_t before = host.dropped(one.drop);
        host.receive(one.frame).quiet();
        EXPECT_EQ(host.dropped(one.drop), before + 1) << one.name << host.transcript();
    }
    EXPECT_EQ(host.counters.ndp_in, 0u);
    Bytes wrong = ndp_frame("fd00::2", group, ns);
    wrong[60] ^= std::byte{1};
    host.receive(wrong).quiet();
    EXPECT_EQ(host.dropped(Drop::kIcmpChecksum), 1u);
}

// [RFC4861 7.2.2, 7.2.5]
TEST_F(NdpTest, ResolvesAndSendsWhatWaited) {
    send("fd00::2");
    const Bytes asked = host.next();
    EXPECT_EQ(LinkHost::describe(asked), "ns fd00::1 -> ff02::1:ff00:2 fd00::2 smac");
    EXPECT_EQ(wire::load_mac(asked.data()), wire::multicast_mac(ip("ff02::1:ff00:2")));
    host.receive(answer_from("fd00::2"));
    EXPECT_EQ(sent_to(), kPeerMac);
    host.after(10s).quiet();
}

TEST_F(NdpTest, NobodyAnswersAndTheDatagramIsGivenUp) {
    send("fd00::2");
    host.after(3100ms);
    EXPECT_EQ(host.all_sent().size(), 3u);
    EXPECT_EQ(host.dropped(Drop::kNeighborUnresolved), 1u);
    EXPECT_EQ(host.pool.available(), host.pool.count());
}

/// [RFC4861 Appendix C] the state machine, event by event.
class NudTest : public NdpTest {
protected:
    NudTest() {
        send("fd00::2");
        host.receive(answer_from("fd00::2")).forget();
    }
    void stale() { host.after(46s).quiet(); }
    void delay() {
        stale();
        send("fd00::2");
        EXPECT_EQ(sent_to(), kPeerMac);
    }
    void probe() {
        delay();
        host.after(5010ms);
        EXPECT_EQ(LinkHost::describe(host.next()), "ns fd00::1 -> fd00::2 fd00::2 smac") << "unicast";
    }
    /// Reachable: nothing is asked for the next fourteen seconds, whatever is sent.
    void expect_reachable() {
        for (int i = 0; i < 14; ++i) {
            send("fd00::2");
            (void)sent_to();
            host.quiet();
            host.after(1s).quiet();
        }
    }
};

TEST_F(NudTest, ReachableForAWhileThenStaleAndLeftAlone) {
    expect_reachable();
    host.after(200s).quiet();
}
TEST_F(NudTest, StaleIsUsedThenDelayedThenProbed) { probe(); }
TEST_F(NudTest, AnAnswerToTheProbeMakesItReachable) {
    probe();
    host.receive(answer_from("fd00::2"));
    expect_reachable();
}
TEST_F(NudTest, ThreeProbesUnansweredAndItIsGone) {
    probe();
    host.after(1s);
    EXPECT_EQ(LinkHost::describe(host.next()), "ns fd00::1 -> fd00::2 fd00::2 smac");
    host.after(1s);
    EXPECT_EQ(LinkHost::describe(host.next()), "ns fd00::1 -> fd00::2 fd00::2 smac");
    host.after(1010ms).quiet();
    EXPECT_EQ(host.counters.neighbors_unreachable, 1u);
    send("fd00::2");
    EXPECT_EQ(LinkHost::describe(host.next()), "ns fd00::1 -> ff02::1:ff00:2 fd00::2 smac") << "from the start";
}
TEST_F(NudTest, ProgressOfTcpConfirms) {  // [RFC1122 3.3.1.4 indication, advice] [RFC4861 7.3.1]
    delay();
    EXPECT_TRUE(host.stack.neighbors().wants_confirmation());
    host.stack.neighbors().confirm(7, ip("fd00::2"), host.now);
    EXPECT_FALSE(host.stack.neighbors().wants_confirmation());
    expect_reachable();
}
TEST_F(NudTest, AnUnsolicitedAnswerOfTheSameMacChangesNothing) {
    delay();
    host.receive(answer({.target = ip("fd00::2"), .overrides = true, .target_mac = kPeerMac}));
    host.after(5010ms);
    EXPECT_EQ(LinkHost::describe(host.next()), "ns fd00::1 -> fd00::2 fd00::2 smac") << "still to be proved";
}
TEST_F(NudTest, AnotherMacWithOverrideIsTakenAndIsStale) {
    host.receive(answer({.target = ip("fd00::2"), .overrides = true, .target_mac = kRouterMac}));
    send("fd00::2");
    EXPECT_EQ(sent_to(), kRouterMac);
    host.after(5010ms);
    EXPECT_EQ(sent_to(), kRouterMac) << "the probe";
}
TEST_F(NudTest, AnotherMacWithoutOverrideOnlyCastsDoubt) {
    host.receive(answer({.target = ip("fd00::2"), .solicited = true, .target_mac = kRouterMac}));
    send("fd00::2");
    EXPECT_EQ(sent_to(), kPeerMac);
    host.after(5010ms);
    EXPECT_EQ(LinkHost::describe(host.next()), "ns fd00::1 -> fd00::2 fd00::2 smac");
}
TEST_F(NudTest, ASolicitationFromAnotherMacMovesIt) {  // [RFC4861 7.2.3]
    host.receive(ndp_frame("fd00::2", wire::solicited_node_group(ip("fd00::1")),
                           NeighborSolicitation{.target = ip("fd00::1"), .source_mac = kRouterMac, .nonce = {}}));
    host.forget();
    send("fd00::2");
    EXPECT_EQ(sent_to(), kRouterMac);
}
TEST_F(NdpTest, AnAnswerWithoutMacResolvesNothing) {
    send("fd00::2");
    host.forget().receive(answer({.target = ip("fd00::2"), .solicited = true, .overrides = true, .target_mac = {}}));
    host.quiet();
    EXPECT_EQ(host.dropped(Drop::kNdpInvalid), 1u);
}
TEST_F(NdpTest, AnUnsolicitedFirstAnswerIsUsedButNotBelieved) {  // [RFC4861 7.2.5]
    send("fd00::2");
    host.forget().receive(answer({.target = ip("fd00::2"), .overrides = true, .target_mac = kPeerMac}));
    EXPECT_EQ(sent_to(), kPeerMac);
    send("fd00::2");
    EXPECT_EQ(sent_to(), kPeerMac);
    host.after(5010ms);
    EXPECT_EQ(LinkHost::describe(host.next()), "ns fd00::1 -> fd00::2 fd00::2 smac");
}

TEST_F(NdpTest, AnotherMacOfOurOwnIsAnnounced) {  // [RFC4861 7.2.6]
    host.stack.set_mac(7, MacAddress{{2, 0, 0, 0, 0, 7}});
    host.after(10s);
    const auto lines = without_mld(host.all_sent());
    EXPECT_EQ(std::ranges::count(lines, "na fd00::1 -> ff02::1 fd00::1 O tmac"), 3);
    EXPECT_EQ(std::ranges::count(lines, "na fe80::1 -> ff02::1 fe80::1 O tmac"), 3);
}

TEST_F(NdpTest, AFloodOfAskersIsAnsweredWithinBounds) {
    for (unsigned i = 0; i < 20000; ++i) {
        const std::string asker = "fd00::" + std::to_string(i % 9000 + 100) + ":" + std::to_string(i / 9000 + 1);
        host.stack.input(*host.eth0,
                         received(ndp_frame(asker.c_str(), wire::solicited_node_group(ip("fd00::1")),
                                            NeighborSolicitation{.target = ip("fd00::1"), .source_mac = kPeerMac, .nonce = {}})),
                         host.now);
        (void)take_frames(host.tx);
    }
    EXPECT_EQ(host.dropped(Drop::kLinkAnswerLimited), 20000u - 1000u);
}

}  // namespace
}  // namespace culvert::stack
