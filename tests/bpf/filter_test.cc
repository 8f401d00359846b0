// Filter rules in the real programs: the tables by hand, then a thousand random packets against a list that is simply walked.
#include <netinet/in.h>

#include <algorithm>

#include "daemon/base/rng.h"
#include "tests/bpf/steer_fixture.h"

namespace culvert::bpf_test {
namespace {

class Filter : public Steer {
protected:
    void set(std::initializer_list<FilterRule> rules, FilterAction otherwise = FilterAction::kAllow) {
        const auto changed = program_->set_filter(std::vector<FilterRule>(rules), otherwise);
        ASSERT_TRUE(changed) << changed.error().message();
    }
};

FilterRule rule(FilterAction action, const std::string& source, const std::string& destination, int protocol,
                const std::string& ports) {
    return {.action = action,
            .source = *Prefix::parse(source),
            .destination = *Prefix::parse(destination),
            .protocol = protocol,
            .source_ports = {},
            .ports = *PortInterval::parse(ports)};
}

Bytes tcp(const Address& from, const Address& to, unsigned from_port, unsigned to_port) {
    return to.is_v4() ? ethernet(kIp4, ipv4(from, to, kTcp, l4(from_port, to_port)))
                      : ethernet(kIp6, ipv6(from, to, kTcp, l4(from_port, to_port)));
}

TEST_F(Filter, TheFirstRuleThatFitsDecidesAndCounts) {
    set({rule(FilterAction::kAllow, "10.0.0.9", "any", IPPROTO_TCP, "80"), rule(FilterAction::kDeny, "10.0.0.0/24", "any", -1, "any"),
         rule(FilterAction::kDeny, "any", "any", IPPROTO_UDP, "any")});
    EXPECT_EQ(judge(tcp(Address::v4(10, 0, 0, 9), kOurs4, 1, 80)), "redirected");
    EXPECT_EQ(judge(tcp(Address::v4(10, 0, 0, 8), kOurs4, 1, 80)), "filtered");
    EXPECT_EQ(judge(tcp(Address::v4(10, 0, 1, 8), kOurs4, 1, 80)), "redirected") << "the default";
    EXPECT_EQ(judge(tcp(kPeer6, kOurs6, 1, 80)), "redirected") << "10.0.0.0/24 says nothing of IPv6";
    EXPECT_EQ(judge(ethernet(kIp6, ipv6(kPeer6, kOurs6, kUdp, l4(1, 53, 8)))), "filtered");
    // judge() asks three programs, the two of the packet socket once each: the one at tc does not ask the rules.
    EXPECT_EQ(program_->filter_counts(), (std::vector<std::uint64_t>{2, 2, 2, 4}));
}

TEST_F(Filter, TheKernelsPacketsMeetNoRule) {
    set({}, FilterAction::kDeny);
    EXPECT_EQ(judge(tcp(kPeer4, kOurs4, 1, 80)), "filtered");
    EXPECT_EQ(judge(tcp(kPeer4, kOurs4, 1, 22)), "passed_port") << "ssh is the kernel's, and cannot be locked out";
}

TEST_F(Filter, RulesChangeWhilePacketsComeAndKeepTheirCounts) {
    const FilterRule deny = rule(FilterAction::kDeny, "10.0.0.9", "any", -1, "any");
    set({deny});
    EXPECT_EQ(judge(tcp(kPeer4, kOurs4, 1, 80)), "filtered");
    set({rule(FilterAction::kAllow, "any", "any", IPPROTO_UDP, "any"), deny});
    EXPECT_EQ(program_->filter_counts(), (std::vector<std::uint64_t>{0, 2, 0}));
    EXPECT_EQ(judge(tcp(kPeer4, kOurs4, 1, 80)), "filtered");
    EXPECT_EQ(program_->filter_counts(), (std::vector<std::uint64_t>{0, 4, 0}));
    set({});
    EXPECT_EQ(judge(tcp(kPeer4, kOurs4, 1, 80)), "redirected");
    EXPECT_TRUE(program_->filter_counts().empty());
}

TEST_F(Filter, PacketsWithoutPortsFitNoPortRule) {
    ASSERT_TRUE(program_->set_dedicated(kOurs4, true));
    set({rule(FilterAction::kAllow, "any", "any", -1, "1-65535"), rule(FilterAction::kDeny, "any", "any", IPPROTO_ICMP, "any")});
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, kIcmp, icmp(8, Bytes())))), "filtered");
    EXPECT_EQ(judge(tcp(kPeer4, kOurs4, 1, 99)), "redirected");
    EXPECT_EQ(program_->filter_counts(), (std::vector<std::uint64_t>{2, 2, 0}));
}

TEST_F(Filter, TooManyRulesAreRefusedAndTheOldOnesStay) {
    set({}, FilterAction::kDeny);
    const auto changed = program_->set_filter(std::vector<FilterRule>(STEER_MAX_RULES), FilterAction::kAllow);
    ASSERT_FALSE(changed);
    EXPECT_EQ(changed.error().code, E2BIG);
    EXPECT_EQ(judge(tcp(kPeer4, kOurs4, 1, 80)), "filtered");
}

// --- against a list ---------------------------------------------------------------------------------------------------

struct Packet {
    Address from, to;
    int protocol;
    Port from_port, to_port;
};

bool fits(const Prefix& prefix, const Address& address) {
    return prefix.everything() || (prefix.address.is_v4() == address.is_v4() && address.in(prefix.address, prefix.length));
}
bool fits(const FilterRule& rule, const Packet& packet) {
    return fits(rule.source, packet.from) && fits(rule.destination, packet.to) &&
           (rule.protocol == -1 || rule.protocol == packet.protocol) && rule.source_ports.first <= packet.from_port &&
           packet.from_port <= rule.source_ports.last && rule.ports.first <= packet.to_port && packet.to_port <= rule.ports.last;
}

TEST_F(Filter, AgreesWithAListThatIsWalked) {
    Rng rng(20261121);
    const auto some_v4 = [&] { return Address::v4(10, 0, static_cast<std::uint8_t>(rng.below(4)), static_cast<std::uint8_t>(rng.below(4))); };
    const auto some_v6 = [&] { return v6(static_cast<unsigned>(rng.below(8))); };
    const auto some_port = [&] { return static_cast<Port>(1 + rng.below(12)); };
    const auto some_prefix = [&]() -> Prefix {
        if (rng.happens(0.3)) return {};
        const bool v4 = rng.happens(0.6);
        Prefix prefix{v4 ? some_v4() : some_v6(), static_cast<unsigned>(v4 ? 20 + rng.below(13) : 120 + rng.below(9))};
        std::byte raw[16];
        std::memcpy(raw, prefix.address.bytes().data(), 16);
        for (unsigned bit = prefix.mapped_length(); bit < 128; ++bit) raw[bit / 8] &= ~(std::byte{0x80} >> (bit % 8));
        prefix.address = Address::from_v6(raw);
        return prefix;
    };
    const auto some_range = [&]() -> PortInterval {
        if (rng.happens(0.4)) return {};
        const Port first = some_port();
        return {first, static_cast<Port>(first + rng.below(4))};
    };
    for (const Address& address : {kOurs4, kOurs6}) ASSERT_TRUE(program_->set_dedicated(address, true));
    for (int round = 0; round < 12; ++round) {
        std::vector<FilterRule> rules;
        const std::size_t count = 1 + rng.below(round % 3 == 0 ? 255 : 20);
        while (rules.size() < count)
            rules.push_back({.action = rng.happens(0.5) ? FilterAction::kAllow : FilterAction::kDeny,
                             .source = some_prefix(),
                             .destination = some_prefix(),
                             .protocol = rng.happens(0.4) ? -1 : rng.happens(0.5) ? IPPROTO_TCP : IPPROTO_UDP,
                             .source_ports = some_range(),
                             .ports = some_range()});
        const FilterAction otherwise = rng.happens(0.5) ? FilterAction::kAllow : FilterAction::kDeny;
        ASSERT_TRUE(program_->set_filter(rules, otherwise));
        for (int i = 0; i < 100; ++i) {
            const bool v4 = rng.happens(0.5);
            const Packet packet{v4 ? some_v4() : some_v6(), v4 ? kOurs4 : kOurs6, rng.happens(0.5) ? IPPROTO_TCP : IPPROTO_UDP,
                                some_port(), some_port()};
            const auto found = std::ranges::find_if(rules, [&](const FilterRule& each) { return fits(each, packet); });
            const FilterAction expected = found == rules.end() ? otherwise : found->action;
            const Bytes payload = l4(packet.from_port, packet.to_port);
            const auto protocol = static_cast<unsigned>(packet.protocol);
            const Bytes frame = v4 ? ethernet(kIp4, ipv4(packet.from, packet.to, protocol, payload))
                                   : ethernet(kIp6, ipv6(packet.from, packet.to, protocol, payload));
            ASSERT_EQ(judge(frame), expected == FilterAction::kAllow ? "redirected" : "filtered")
                << "round " << round << ": " << packet.from.to_string() << " " << packet.from_port << " -> " << packet.to_port
                << (found == rules.end() ? " by the default" : " by " + found->to_string());
        }
    }
}

// --- dedicated addresses ------------------------------------------------------------------------------------------------

class Dedicated : public Steer {
protected:
    void SetUp() override {
        Steer::SetUp();
        if (IsSkipped()) return;
        ASSERT_TRUE(program_->set_dedicated(kAlone4, true));
        ASSERT_TRUE(program_->set_dedicated(kAlone6, true));
    }
    const Address kAlone4 = Address::v4(10, 0, 0, 77);
    const Address kAlone6 = v6(77);
};

Bytes arp(unsigned operation, const Address& sender, const Address& target) {
    return ethernet(0x0806, Bytes().u16(1).u16(0x0800).u8(6).u8(4).u16(operation).zeros(6).address(sender).zeros(6).address(target));
}
Bytes neighbor(unsigned type, const Address& to, const Address& target) {
    return ethernet(kIp6, ipv6(kPeer6, to, kIcmpv6, Bytes().u8(type).u8(0).u16(0).u32(0).address(target)));
}

TEST_F(Dedicated, EverythingForItIsOurs) {
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kAlone4, kTcp, l4(1, 22)))), "redirected") << "no port needs to be taken";
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kAlone4, kIcmp, icmp(8, Bytes())))), "redirected");
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kAlone4, kUdp, Bytes().zeros(64), kMoreFragments | 8))), "redirected");
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kAlone4, 47, Bytes().zeros(64)))), "redirected") << "any protocol";
    EXPECT_EQ(judge(ethernet(kIp6, ipv6(kPeer6, kAlone6, kIcmpv6, icmp(128, Bytes())))), "redirected");
    EXPECT_EQ(judge(ethernet(kIp6, ipv6(kPeer6, kAlone6, kFragment, fragment6(kUdp, 8 | 1, Bytes().zeros(64))))), "redirected");
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, kIcmp, icmp(8, Bytes())))), "passed_protocol") << "shared: as ever";
}

TEST_F(Dedicated, QuestionsAboutItAreOurs) {
    EXPECT_EQ(judge(arp(1, kPeer4, kAlone4)), "redirected") << "who has it?";
    EXPECT_EQ(judge(arp(2, kPeer4, kAlone4)), "redirected") << "an answer to us";
    EXPECT_EQ(judge(arp(1, kAlone4, kPeer4)), "redirected") << "somebody claims it";
    EXPECT_EQ(judge(arp(1, kPeer4, kOurs4)), "passed_ethertype") << "the kernel answers for a shared address";
    EXPECT_EQ(judge(neighbor(135, *Address::parse("ff02::1:ff00:4d"), kAlone6)), "redirected");
    EXPECT_EQ(judge(neighbor(136, *Address::parse("ff02::1"), kAlone6)), "redirected") << "somebody claims it";
    EXPECT_EQ(judge(neighbor(135, *Address::parse("ff02::1:ff00:1"), kOurs6)), "passed_address");
    EXPECT_EQ(judge(neighbor(136, kAlone6, kPeer6)), "redirected") << "an answer to us";
    const Bytes whole = arp(1, kPeer4, kAlone4);
    for (std::size_t size = 14; size < whole.size(); ++size) EXPECT_EQ(judge(whole.first(size)), "passed_malformed") << size;
}

TEST_F(Dedicated, SharedAddressesComeAndGoBesideIt) {
    ASSERT_TRUE(program_->set_addresses({}));
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kAlone4, kTcp, l4(1, 22)))), "redirected");
    ASSERT_TRUE(program_->set_dedicated(kAlone4, false));
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kAlone4, kTcp, l4(1, 22)))), "passed_address");
}

}  // namespace
}  // namespace culvert::bpf_test
