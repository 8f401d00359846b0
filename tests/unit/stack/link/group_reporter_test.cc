// Group membership on the wire: IGMP (RFC 2236, 3376) and MLD (RFC 2710, 3810), both families through the same tests.
#include "daemon/stack/link/group_reporter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/stack/link/link_host.h"

namespace culvert::stack {
namespace {

using testing::ElementsAre;

/// How the two families write the same things.
struct Names {
    const char* group;
    const char* other;
    const char* full;    // where reports of the newest version go
    const char* own;     // who reports
    const char* prefix;  // of lines
};
constexpr Names kIgmp{"239.1.1.1", "239.2.2.2", "224.0.0.22", "10.0.0.1", "igmp"};
constexpr Names kMld{"ff05::1:1", "ff05::2:2", "ff02::16", "fe80::1", "mld"};

class GroupReporterTest : public testing::TestWithParam<bool> {
protected:
    GroupReporterTest() {
        host.with(v4() ? std::vector<InterfaceAddress>{{ip("10.0.0.1"), 24}}
                       : std::vector<InterfaceAddress>{{ip("fe80::1"), 64}});
        host.after(60s).forget();
    }
    ~GroupReporterTest() override {
        for (MulticastMember& member : members) host.stack.groups().leave_all(member);
    }
    bool v4() const { return GetParam(); }
    const Names& names() const { return v4() ? kIgmp : kMld; }
    Address group() const { return ip(names().group); }
    Address source(unsigned n) const {
        return v4() ? Address::v4(10, 9, 0, static_cast<std::uint8_t>(n)) : ip(("fd09::" + std::to_string(n)).c_str());
    }
    void join(int n = 0) { ASSERT_TRUE(host.stack.groups().join(members[n], 7, group())); }
    void leave(int n = 0) { ASSERT_TRUE(host.stack.groups().leave(members[n], 7, group())); }
    std::string report(const std::string& records) const {
        return std::string(names().prefix) + " " + names().own + " -> " + names().full + records;
    }
    std::string record(const char* type, const std::string& sources = "") const {
        return std::string(" ") + type + " " + names().group + " {" + sources + "}";
    }
    std::string text(unsigned n) const { return source(n).to_string(); }
    /// What is sent about other groups than the solicited-node ones.
    std::vector<std::string> lines() {
        std::vector<std::string> all = host.all_sent();
        std::erase_if(all, [](const std::string& line) { return line.find("ff02::1:ff") != std::string::npos; });
        return all;
    }

    /// A query as a router sends it. Version: 3 and 2 are full (IGMPv3, MLDv2), below are the old ones.
    Bytes query(unsigned version, const Address& about, std::chrono::milliseconds response,
                std::vector<Address> sources = {}, std::uint8_t ttl = 1) const {
        const bool general = about.is_unspecified();
        if (v4()) {
            Bytes message(version == 3 ? 12 + 4 * sources.size() : 8);
            wire::emit(wire::IgmpHeader{.type = wire::IgmpType::kQuery,
                                        .max_response_code = static_cast<std::uint8_t>(version == 1 ? 0 : response.count() / 100),
                                        .group = general ? Address::any(Family::kIpv4) : about},
                       message);
            if (version == 3) {
                message[8] = std::byte{2};
                message[9] = std::byte{125};
                wire::store_be16(message, 10, static_cast<std::uint16_t>(sources.size()));
                for (std::size_t i = 0; i < sources.size(); ++i)
                    std::memcpy(message.data() + 12 + i * 4, sources[i].wire_bytes().data(), 4);
            }
            wire::finish_igmp_checksum(message);
            const Address to = general ? ip("224.0.0.1") : about;
            Bytes frame(34 + message.size());
            wire::emit(wire::EthernetHeader{wire::multicast_mac(to), kRouterMac, wire::EtherType::kIpv4}, frame);
            wire::emit(wire::Ipv4Header{.source = ip("10.0.0.254"), .destination = to, .protocol = wire::IpProtocol::kIgmp, .hop_limit = ttl},
                       message.size(), std::span(frame).subspan(14));
            std::ranges::copy(message, frame.begin() + 34);
            return frame;
        }
        Bytes message(version == 3 ? 28 + 16 * sources.size() : 24);
        wire::emit(wire::MldHeader{.type = wire::MldType::kQuery,
                                   .max_response_code = static_cast<std::uint16_t>(response.count()),
                                   .group = general ? Address() : about},
                   message);
        if (version == 3) {
            message[24] = std::byte{2};
            message[25] = std::byte{125};
            wire::store_be16(message, 26, static_cast<std::uint16_t>(sources.size()));
            for (std::size_t i = 0; i < sources.size(); ++i)
                std::memcpy(message.data() + 28 + i * 16, sources[i].bytes().data(), 16);
        }
        const Address to = general ? ip("ff02::1") : about;
        return ipv6_control(ip("fe80::fe"), to, message, ttl, wire::multicast_mac(to), true);
    }
    Address all() const { return v4() ? Address::any(Family::kIpv4) : Address(); }

    LinkHost host;
    MulticastMember members[3];
};
INSTANTIATE_TEST_SUITE_P(Families, GroupReporterTest, testing::Bool(),
                         [](const auto& param) { return param.param ? "Igmp" : "Mld"; });

// [RFC3376 5.1] [RFC3810 6.1] at once, and once more within a second
TEST_P(GroupReporterTest, JoinAndLeaveAreReportedTwice) {  // [RFC1122 3.3.7 igmp]
    join();
    host.after(1ms);
    EXPECT_THAT(lines(), ElementsAre(report(record("to_ex"))));
    host.after(1010ms);
    EXPECT_THAT(lines(), ElementsAre(report(record("to_ex"))));
    host.after(100s);
    EXPECT_THAT(lines(), ElementsAre());
    join(1);
    leave(0);
    host.after(5s);
    EXPECT_THAT(lines(), ElementsAre()) << "nothing has changed for routers";
    leave(1);
    host.after(2s);
    EXPECT_THAT(lines(), ElementsAre(report(record("to_in")), report(record("to_in"))));
    EXPECT_EQ(host.stack.groups().find(7, group()), nullptr) << "forgotten when it has been said";
}

TEST_P(GroupReporterTest, SourcesAreAllowedAndBlocked) {
    ASSERT_TRUE(host.stack.groups().join_source(members[0], 7, group(), source(1)));
    host.after(2s);
    EXPECT_THAT(lines(), ElementsAre(report(record("allow", text(1))), report(record("allow", text(1)))));
    ASSERT_TRUE(host.stack.groups().join_source(members[0], 7, group(), source(2)));
    ASSERT_TRUE(host.stack.groups().leave_source(members[0], 7, group(), source(1)));
    host.after(2s);
    const std::string both = report(record("allow", text(2)) + record("block", text(1)));
    EXPECT_THAT(lines(), ElementsAre(both, both));
    join(1);
    host.after(2s);
    EXPECT_THAT(lines(), ElementsAre(report(record("to_ex")), report(record("to_ex"))));
    ASSERT_TRUE(host.stack.groups().block_source(members[1], 7, group(), source(3)));
    host.after(2s);
    EXPECT_THAT(lines(), ElementsAre(report(record("block", text(3))), report(record("block", text(3)))));
    leave(1);
    host.after(2s);
    EXPECT_THAT(lines(), ElementsAre(report(record("to_in", text(2))), report(record("to_in", text(2)))));
}

// [RFC3376 5.2] [RFC3810 6.2]
TEST_P(GroupReporterTest, AGeneralQueryIsAnsweredAfterARandomDelay) {  // [RFC1122 3.3.7 all-hosts] it comes to that group
    join();
    ASSERT_TRUE(host.stack.groups().join_source(members[1], 7, ip(names().other), source(1)));
    host.after(10s).forget();
    host.receive(query(3, all(), 10s)).after(10s);
    const auto sent = host.all_sent();
    ASSERT_EQ(sent.size(), 1u) << "everything in one report";
    EXPECT_THAT(sent[0], testing::HasSubstr(record("is_ex")));
    EXPECT_THAT(sent[0], testing::HasSubstr(std::string(" is_in ") + names().other + " {" + text(1) + "}"));
}

TEST_P(GroupReporterTest, AQueryAboutAGroupOrItsSources) {
    ASSERT_TRUE(host.stack.groups().join_source(members[0], 7, group(), source(1)));
    ASSERT_TRUE(host.stack.groups().join_source(members[0], 7, group(), source(2)));
    host.after(5s).forget();
    host.receive(query(3, group(), 1s)).after(1010ms);
    EXPECT_THAT(lines(), ElementsAre(report(record("is_in", text(1) + " " + text(2)))));
    host.receive(query(3, group(), 1s, {source(2), source(9)})).after(1010ms);
    EXPECT_THAT(lines(), ElementsAre(report(record("is_in", text(2)))));
    host.receive(query(3, group(), 1s, {source(9)})).after(1010ms);
    EXPECT_THAT(lines(), ElementsAre()) << "none of them is wanted";
    // [RFC3376 5.2 4, 5] what is asked while an answer waits goes into that answer
    host.receive(query(3, group(), 1s, {source(1)})).receive(query(3, group(), 1s, {source(2)})).after(1010ms);
    EXPECT_THAT(lines(), ElementsAre(report(record("is_in", text(1) + " " + text(2)))));
    EXPECT_EQ(host.dropped(Drop::kGroupMessageInvalid), 0u);
}

// [RFC3376 7.2.1] [RFC2236 3] [RFC3810 8.2.1] [RFC2710 4]
TEST_P(GroupReporterTest, SpeaksLikeAnOldQuerier) {
    join();
    host.after(5s).forget();
    host.receive(query(2, all(), 1s)).after(1010ms);
    const std::string old = v4() ? "igmp 10.0.0.1 -> 239.1.1.1 v2 report 239.1.1.1" : "mld fe80::1 -> ff05::1:1 v1 report ff05::1:1";
    EXPECT_THAT(lines(), ElementsAre(old));
    leave();
    host.after(2s);
    EXPECT_THAT(lines(), ElementsAre(v4() ? "igmp 10.0.0.1 -> 224.0.0.2 leave 239.1.1.1" : "mld fe80::1 -> ff02::2 done ff05::1:1"));
    join();
    host.after(11s);
    EXPECT_THAT(lines(), ElementsAre(old, old));
    // [RFC3376 8.12] 2 * 125 s + 10 s later that querier is forgotten
    host.after(260s);
    leave();
    host.after(2s);
    EXPECT_THAT(lines(), ElementsAre(report(record("to_in")), report(record("to_in"))));
}

TEST_P(GroupReporterTest, AnotherMembersReportSuppressesOurs) {  // [RFC2236 3] [RFC2710 4]
    join();
    host.after(5s).forget();
    host.receive(query(2, all(), 10s));
    Bytes report;
    if (v4()) {
        report = query(2, group(), 0s);
        report[34] = std::byte{0x16};
        wire::finish_igmp_checksum(std::span(report).subspan(34));
    } else {
        Bytes message(24);
        wire::emit(wire::MldHeader{.type = wire::MldType::kV1Report, .group = group()}, message);
        report = ipv6_control(ip("fe80::2"), group(), message, 1, wire::multicast_mac(group()), true);
    }
    host.receive(report).after(12s);
    EXPECT_THAT(lines(), ElementsAre());
    leave();
    host.after(2s);
    EXPECT_THAT(lines(), ElementsAre()) << "not the last who reported: no leave";
}

TEST_P(GroupReporterTest, QueriesThatNoRouterSendsAreRefused) {
    join();
    host.after(5s).forget();
    host.receive(query(3, all(), 1s, {}, 2));
    EXPECT_EQ(host.dropped(Drop::kGroupMessageInvalid), 1u) << "TTL 2";
    Bytes cut = query(3, all(), 1s);
    if (v4()) {
        Bytes bad = cut;
        bad[35] ^= std::byte{1};
        host.receive(bad);
        EXPECT_EQ(host.dropped(Drop::kGroupMessageChecksum), 1u);
    } else {
        Bytes message(28);
        wire::emit(wire::MldHeader{.type = wire::MldType::kQuery, .max_response_code = 1000, .group = {}}, message);
        host.receive(ipv6_control(ip("fe80::fe"), ip("ff02::1"), message, 1, wire::multicast_mac(ip("ff02::1")), false));
        EXPECT_EQ(host.dropped(Drop::kGroupMessageInvalid), 2u) << "no router alert";
        host.receive(ipv6_control(ip("fd00::fe"), ip("ff02::1"), message, 1, wire::multicast_mac(ip("ff02::1")), true));
        EXPECT_EQ(host.dropped(Drop::kGroupMessageInvalid), 3u) << "not from the link";
    }
    host.after(5s);
    EXPECT_THAT(lines(), ElementsAre());
}

TEST_P(GroupReporterTest, NothingIsSaidAboutGroupsOfEverybodyOrOfNarrowScope) {
    for (const char* one : {"224.0.0.1", "ff02::1", "ff01::5"}) {
        MulticastMember member;
        ASSERT_TRUE(host.stack.groups().join(member, 7, ip(one)));
        host.after(2s);
        EXPECT_THAT(lines(), ElementsAre()) << one;
        host.stack.groups().leave_all(member);
    }
}

TEST_P(GroupReporterTest, ReportsComeAgainWhenTheLinkDoes) {
    join();
    host.after(5s).forget();
    host.stack.set_interface_state(7, false, 1500);
    host.stack.set_interface_state(7, true, 1500);
    host.after(2s);
    const auto sent = lines();
    EXPECT_EQ(std::ranges::count(sent, report(record("to_ex"))), 2);
}

}  // namespace
}  // namespace culvert::stack
