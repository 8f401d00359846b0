// The rules of `culvert run --policy` and [[program]]: what they mean, what is refused and where, and that no text does harm.
#include "shm/policy.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <vector>

namespace culvert::shm {
namespace {

using Protocol = Policy::Protocol;
using Call = Policy::Call;

struct Bytes {
    Policy::AddressBytes value{};
};

Bytes address(const std::string& text) {
    Bytes bytes;
    if (::inet_pton(AF_INET6, text.c_str(), bytes.value) == 1) return bytes;
    bytes.value[10] = bytes.value[11] = 0xff;
    EXPECT_EQ(::inet_pton(AF_INET, text.c_str(), bytes.value + 12), 1) << text;
    return bytes;
}

/// "tcp listen 0.0.0.0 80": true if that goes through Culvert.
bool allows(const Policy& policy, const std::string& socket) {
    std::istringstream words(socket);
    std::string protocol, call, where;
    unsigned port = 0;
    words >> protocol >> call >> where >> port;
    const Protocol protocols = protocol == "tcp"    ? Protocol::kTcp
                               : protocol == "udp"  ? Protocol::kUdp
                               : protocol == "icmp" ? Protocol::kIcmp
                                                    : Protocol::kRaw;
    return policy.allows(protocols, call == "listen" ? Call::kListen : Call::kConnect, address(where).value,
                         static_cast<std::uint16_t>(port));
}

struct Meaning {
    const char* policy;
    std::vector<const char*> culvert;
    std::vector<const char*> kernel;
};

TEST(Policy, Means) {
    const std::vector<Meaning> table{
        {"",
         {"tcp listen 0.0.0.0 80", "tcp connect 10.0.0.1 80", "udp listen :: 53", "udp connect 2001:db8::1 53",
          "raw listen 0.0.0.0 0", "icmp connect 10.0.0.1 0"},
         {"tcp listen 127.0.0.1 80", "tcp connect 127.8.9.1 80", "udp connect ::1 53"}},
        // That of the README.
        {"tcp listen 80,443; tcp connect 10.0.0.0/8; udp none",
         {"tcp listen 0.0.0.0 80", "tcp listen :: 443", "tcp listen 10.1.1.1 443", "tcp connect 10.255.0.1 1", "icmp connect 8.8.8.8 0",
          "raw listen :: 0"},
         {"tcp listen 0.0.0.0 8080", "tcp connect 11.0.0.1 80", "tcp connect 2001:db8::1 80", "udp listen 0.0.0.0 53",
          "udp connect 10.0.0.1 53"}},
        {"all", {"tcp listen 0.0.0.0 80", "udp connect 10.0.0.1 53"}, {"tcp connect 127.0.0.1 80"}},
        {"none", {}, {"tcp listen 0.0.0.0 80", "udp connect 10.0.0.1 53", "raw listen 0.0.0.0 0", "icmp connect 10.0.0.1 0"}},
        {"not all", {}, {"tcp listen 0.0.0.0 80", "raw listen 0.0.0.0 0"}},
        {"tcp none", {"udp listen 0.0.0.0 80"}, {"tcp listen 0.0.0.0 80", "tcp connect 10.0.0.1 80"}},
        {"tcp,udp none", {"raw listen 0.0.0.0 0"}, {"tcp listen 0.0.0.0 80", "udp connect 10.0.0.1 80"}},
        {"listen none", {"tcp connect 10.0.0.1 80"}, {"tcp listen 0.0.0.0 80", "raw listen 0.0.0.0 0"}},
        // Exceptions alone leave the rest as it was; the first rule that fits decides.
        {"tcp listen not 22", {"tcp listen 0.0.0.0 80", "tcp connect 10.0.0.1 22"}, {"tcp listen 0.0.0.0 22"}},
        {"connect not 10.1.0.0/16; connect 10.0.0.0/8", {"tcp connect 10.2.0.1 80", "udp connect 10.0.0.1 1", "tcp listen :: 80"},
         {"tcp connect 10.1.0.1 80", "tcp connect 11.0.0.1 80", "icmp connect 10.1.0.1 0"}},
        {"connect 10.0.0.0/8; connect not 10.1.0.0/16", {"tcp connect 10.1.0.1 80"}, {"tcp connect 11.0.0.1 80"}},
        // Ports: ranges, both ends; and nothing is said of what has none.
        {"8000-8999", {"tcp listen 0.0.0.0 8000", "udp connect 10.0.0.1 8999", "raw listen 0.0.0.0 0", "icmp connect 10.0.0.1 0"},
         {"tcp listen 0.0.0.0 7999", "udp connect 10.0.0.1 9000"}},
        {"tcp connect 10.0.0.0/8,192.168.0.0/16 port 80,443",
         {"tcp connect 10.0.0.1 80", "tcp connect 192.168.255.255 443", "tcp listen 0.0.0.0 22"},
         {"tcp connect 10.0.0.1 81", "tcp connect 172.16.0.1 80"}},
        // Networks: the address bound to must lie in them; IPv4 and IPv6 are apart, however an IPv6 socket writes the former.
        {"tcp listen 10.0.0.0/8", {"tcp listen 10.0.0.1 80"}, {"tcp listen 0.0.0.0 80", "tcp listen :: 80"}},
        {"tcp listen 0.0.0.0/0", {"tcp listen 0.0.0.0 80", "tcp listen ::ffff:10.0.0.1 80"}, {"tcp listen :: 80", "tcp listen 127.0.0.1 80"}},
        {"tcp connect ::/0", {"tcp connect 2001:db8::1 80"}, {"tcp connect 10.0.0.1 80", "tcp connect ::1 80"}},
        {"tcp connect 2001:db8::/33", {"tcp connect 2001:db8:7fff::1 80"}, {"tcp connect 2001:db8:8000::1 80"}},
        {"tcp connect 192.0.2.1", {"tcp connect 192.0.2.1 80"}, {"tcp connect 192.0.2.2 80"}},
        {"tcp connect 192.0.2.128/25", {"tcp connect 192.0.2.129 80"}, {"tcp connect 192.0.2.127 80"}},
        // Loopback: only who names it has it, and naming it limits nothing else.
        {"loopback", {"tcp connect 127.0.0.1 80", "tcp connect 127.1.2.3 80", "tcp connect ::1 80", "tcp listen 127.0.0.1 80", "tcp connect 10.0.0.1 80"}, {}},
        {"tcp connect loopback", {"tcp connect ::1 80", "tcp connect 10.0.0.1 80"}, {"tcp listen 127.0.0.1 80", "udp connect 127.0.0.1 80"}},
        {"tcp none; tcp loopback", {"tcp connect 127.0.0.1 80"}, {"tcp connect 10.0.0.1 80"}},
        {"tcp connect 10.0.0.0/8,loopback port 80", {"tcp connect 10.0.0.1 80", "tcp connect 127.0.0.1 80"},
         {"tcp connect 127.0.0.1 81", "tcp connect 11.0.0.1 80"}},
        {"connect 127.0.0.1", {"tcp connect 127.0.0.1 80", "tcp connect 10.0.0.1 80"}, {"tcp connect 127.0.0.2 80", "tcp connect ::1 80"}},
        {"tcp not loopback port 80; tcp loopback", {"tcp connect 127.0.0.1 81"}, {"tcp connect 127.0.0.1 80"}},
        // Layout
        {" ;; tcp none ;\n\n# a comment; udp none\n raw none # another\n", {"udp listen 0.0.0.0 1", "icmp listen 0.0.0.0 0"},
         {"tcp listen 0.0.0.0 80", "raw connect 10.0.0.1 0"}},
        {"\ttcp , udp\tlisten 80 , 443\r\n", {"tcp listen :: 80", "udp listen :: 443"}, {"tcp listen :: 81"}},
    };
    for (const Meaning& meaning : table) {
        SCOPED_TRACE(meaning.policy);
        Policy policy;
        PolicyError error;
        ASSERT_TRUE(policy.parse(meaning.policy, error)) << error.at << ": " << error.text;
        for (const char* socket : meaning.culvert) EXPECT_TRUE(allows(policy, socket)) << socket;
        for (const char* socket : meaning.kernel) EXPECT_FALSE(allows(policy, socket)) << socket;
    }
}

TEST(Policy, SaysWhatCannotBe) {
    const auto possible = [](const char* text, Protocol protocol) {
        Policy policy;
        PolicyError error;
        EXPECT_TRUE(policy.parse(text, error)) << text;
        return policy.possible(protocol);
    };
    EXPECT_TRUE(possible("", Protocol::kUdp));
    EXPECT_FALSE(possible("udp none", Protocol::kUdp));
    EXPECT_TRUE(possible("udp none", Protocol::kTcp));
    EXPECT_TRUE(possible("udp listen none", Protocol::kUdp));
    EXPECT_FALSE(possible("udp listen none; udp connect none", Protocol::kUdp));
    EXPECT_TRUE(possible("udp none; udp connect loopback", Protocol::kUdp));
    EXPECT_FALSE(possible("none", Protocol::kRaw));
    EXPECT_TRUE(possible("tcp not 80", Protocol::kTcp));
}

TEST(Policy, RefusesWithPlaceAndSentence) {
    struct Case {
        const char* text;
        std::size_t line, column;
        const char* says;
    };
    const std::vector<Case> table{
        {"tcp", 1, 4, "says nothing of what"},
        {"tcp listen", 1, 11, "says nothing of what"},
        {"tcp listen ; udp none", 1, 12, "says nothing of what"},
        {"tpc listen 80", 1, 1, "not understood"},
        {"TCP none", 1, 1, "not understood"},
        {"tcp lisen 80", 1, 5, "not understood"},
        {"tcp,listen 80", 1, 5, "another protocol"},
        {"tcp listen 80 443", 1, 15, "should end here"},
        {"udp none\ntcp listen 80 443", 2, 15, "should end here"},
        {"tcp listen 80,", 1, 15, "here a port must stand"},
        {"tcp listen 0", 1, 12, "this is no port"},
        {"tcp listen 65536", 1, 12, "this is no port"},
        {"tcp listen 99999999999", 1, 12, "this is no port"},
        {"tcp listen 80-", 1, 12, "this is no port"},
        {"tcp listen -80", 1, 12, "this is no port"},
        {"tcp listen 90-80", 1, 12, "ends before it begins"},
        {"tcp connect 10.0.0.1/8", 1, 13, "bits beyond"},
        {"tcp connect 10.0.0.0/33", 1, 22, "0 to 32"},
        {"tcp connect 2001:db8::/129", 1, 24, "0 to 128"},
        {"tcp connect 10.0.0.0/", 1, 22, "0 to 32"},
        {"tcp connect 10.0.0.256", 1, 13, "not understood"},
        {"tcp connect 10.0.0", 1, 13, "not understood"},
        {"tcp connect ::ffff:10.0.0.0/104", 1, 13, "IPv4 network"},
        {"tcp connect 10.0.0.0/8,80", 1, 24, "one list"},
        {"tcp connect 80,10.0.0.0/8", 1, 16, "here a port must stand"},
        {"tcp connect 10.0.0.0/8 port", 1, 28, "here a port must stand"},
        {"tcp connect 10.0.0.0/8 port loopback", 1, 29, "here a port must stand"},
        {"tcp not none", 1, 9, "write all"},
        {"icmp 80", 1, 1, "no ports"},
        {"raw,icmp listen 10.0.0.1 port 80", 1, 1, "no ports"},
        {"tcp none;;\n\n  x", 3, 3, "not understood"},
        {"tcp listen 80 # all\nudp nonne", 2, 5, "not understood"},
        {"tcp list\xc3\xa9n 80", 1, 5, "not understood"},
    };
    for (const Case& bad : table) {
        SCOPED_TRACE(bad.text);
        Policy policy;
        PolicyError error;
        EXPECT_FALSE(policy.parse(bad.text, error));
        const TextPosition where = position_in(bad.text, error.at);
        EXPECT_EQ(where.line, bad.line);
        EXPECT_EQ(where.column, bad.column);
        EXPECT_NE(std::string(error.text).find(bad.says), std::string::npos) << error.text;
        EXPECT_TRUE(allows(policy, "tcp listen 0.0.0.0 80")) << "no rules are left of what was refused";
    }
    Policy policy;
    PolicyError error;
    EXPECT_FALSE(policy.parse(std::string_view("tcp none\0udp none", 17), error));
    EXPECT_EQ(error.at, 8u);
}

TEST(Policy, TablesAreBounded) {
    const auto repeated = [](const char* first, const char* more, int times) {
        std::string text = first;
        for (int i = 0; i < times; ++i) text += more;
        return text;
    };
    Policy policy;
    PolicyError error;
    EXPECT_TRUE(policy.parse(repeated("", "tcp none;", 32), error));
    EXPECT_FALSE(policy.parse(repeated("", "tcp none;", 33), error));
    EXPECT_STREQ(error.text, "there are more than 32 rules");
    EXPECT_TRUE(policy.parse(repeated("1", ",1", 63), error));
    EXPECT_FALSE(policy.parse(repeated("1", ",1", 64), error));
    EXPECT_STREQ(error.text, "there are more than 64 ports and ranges of ports");
    EXPECT_TRUE(policy.parse(repeated("::", ",::", 63), error));
    EXPECT_FALSE(policy.parse(repeated("::", ",::", 64), error));
    EXPECT_STREQ(error.text, "there are more than 64 networks");
    EXPECT_FALSE(policy.parse(repeated("::", ",::", 62) + ",loopback", error));
    EXPECT_FALSE(policy.parse(std::string(100'000, '1'), error));
    EXPECT_FALSE(policy.parse(std::string(100'000, 'f') + "::/1", error));
}

TEST(Policy, CompactsForTheEnvironment) {
    const auto compact = [](const std::string& text) {
        std::string out(kMostPolicyText + 1, 'x');
        return compact_policy(text, out.data()) ? std::string(out.c_str()) : "does not fit";
    };
    EXPECT_EQ(compact(""), "");
    EXPECT_EQ(compact("# nothing\n\n"), "");
    EXPECT_EQ(compact("# nginx\ntcp   listen\t80, 443 # web\n\n udp none \n"), "tcp listen 80, 443;udp none;");
    EXPECT_EQ(compact(std::string(kMostPolicyText, 'x')), std::string(kMostPolicyText, 'x'));
    EXPECT_EQ(compact(std::string(kMostPolicyText + 1, 'x')), "does not fit");
    EXPECT_EQ(compact(std::string(100'000, ' ') + "#" + std::string(100'000, 'x')), "");
}

/// Seeded mutations of good texts: whatever comes out is understood or refused in bounds, and means the same when compacted.
TEST(Policy, MutatedTextsDoNoHarm) {
    const std::vector<std::string> seeds{
        "tcp listen 80,443; tcp connect 10.0.0.0/8; udp none",
        "tcp,udp connect not 10.1.0.0/16,2001:db8::/32 port 80-90,443\nraw none # comment\n",
        "loopback; icmp connect fd00::/8; listen not 22",
        "all", "none", "8000-8999; not loopback port 1",
    };
    const std::string letters = "tcpudlisneorawkb0123456789.:/,;-# \n\t\r\0\xff";
    const std::vector<std::string> sockets{"tcp listen 0.0.0.0 80", "tcp connect 10.1.0.1 443", "udp connect 2001:db8::5 85",
                                           "udp listen :: 22", "icmp connect fd00::1 0", "raw listen 0.0.0.0 0", "tcp connect 127.0.0.1 80",
                                           "tcp connect ::1 8080"};
    std::mt19937 random(20261121);
    const auto below = [&](std::size_t limit) { return std::uniform_int_distribution<std::size_t>(0, limit - 1)(random); };
    int understood = 0;
    int refused = 0;
    for (int round = 0; round < 60'000; ++round) {
        std::string text = seeds[below(seeds.size())];
        for (std::size_t change = below(6); change-- > 0;) {
            const std::size_t at = below(text.size() + 1);
            switch (below(4)) {
                case 0: text.insert(at, 1, letters[below(letters.size())]); break;
                case 1: text.erase(at, below(4)); break;
                case 2: text.insert(at, seeds[below(seeds.size())].substr(0, below(20))); break;
                default: if (at < text.size()) text[at] = letters[below(letters.size())];
            }
        }
        Policy policy;
        PolicyError error;
        if (!policy.parse(text, error)) {
            ++refused;
            ASSERT_LE(error.at, text.size()) << text;
            ASSERT_NE(std::strlen(error.text), 0u) << text;
            continue;
        }
        ++understood;
        std::string compacted(kMostPolicyText + 1, '\0');
        ASSERT_TRUE(compact_policy(text, compacted.data())) << text;
        Policy again;
        ASSERT_TRUE(again.parse(compacted.c_str(), error)) << text << "\n" << compacted.c_str() << "\n" << error.text;
        for (const std::string& socket : sockets) {
            ASSERT_EQ(allows(policy, socket), allows(again, socket)) << text << "\n" << compacted.c_str() << "\n" << socket;
            const Protocol protocol = socket[0] == 't' ? Protocol::kTcp : socket[0] == 'u' ? Protocol::kUdp : socket[0] == 'i' ? Protocol::kIcmp : Protocol::kRaw;
            ASSERT_TRUE(!allows(policy, socket) || policy.possible(protocol)) << text << "\n" << socket;
        }
    }
    EXPECT_GT(understood, 5000);
    EXPECT_GT(refused, 5000);
}

}  // namespace
}  // namespace culvert::shm
