#include "daemon/wire/address.h"

#include <gtest/gtest.h>

#include <unordered_set>

namespace culvert {
namespace {

struct TextCase {
    const char* text;
    const char* canonical;  // nullptr: refused
};

class AddressText : public testing::TestWithParam<TextCase> {};

TEST_P(AddressText, ParsesAndPrints) {
    const auto address = Address::parse(GetParam().text);
    ASSERT_EQ(address.has_value(), GetParam().canonical != nullptr);
    if (!address) return;
    EXPECT_EQ(address->to_string(), GetParam().canonical);
    EXPECT_EQ(Address::parse(address->to_string()), address);
}

INSTANTIATE_TEST_SUITE_P(Table, AddressText,
                         testing::Values(TextCase{"10.0.0.1", "10.0.0.1"}, TextCase{"0.0.0.0", "0.0.0.0"},
                                         TextCase{"255.255.255.255", "255.255.255.255"}, TextCase{"::", "::"},
                                         TextCase{"::1", "::1"}, TextCase{"fe80:0:0::1", "fe80::1"},
                                         TextCase{"2001:DB8::a", "2001:db8::a"}, TextCase{"", nullptr},
                                         TextCase{"10.0.0", nullptr}, TextCase{"10.0.0.256", nullptr},
                                         TextCase{"10.0.0.1 ", nullptr}, TextCase{"fe80::1%eth0", nullptr},
                                         TextCase{"::ffff:10.0.0.1", nullptr}, TextCase{"localhost", nullptr},
                                         TextCase{"1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa:bbbb", nullptr}));

TEST(Address, ParseRefusesAnEmbeddedNul) { EXPECT_FALSE(Address::parse(std::string_view("10.0.0.1\0x", 10))); }

Address a(const char* text) { return Address::parse(text).value(); }

TEST(Address, FamilyIsToldFromTheMappedPrefix) {
    EXPECT_TRUE(a("1.2.3.4").is_v4());
    EXPECT_EQ(a("1.2.3.4").family(), Family::kIpv4);
    EXPECT_EQ(a("::1.2.3.4").family(), Family::kIpv6);
    EXPECT_EQ(a("::fffe:102:304").family(), Family::kIpv6);
    EXPECT_EQ(a("1::ffff:102:304").family(), Family::kIpv6);
    EXPECT_EQ(a("0:0:0:0:1:ffff:102:304").family(), Family::kIpv6);
    static_assert(Address::v4(1, 2, 3, 4).is_v4() && !Address().is_v4());
    // every one of the twelve bytes counts
    for (std::size_t i = 0; i < 12; ++i) {
        std::array<std::byte, 16> bytes{};
        bytes[10] = bytes[11] = std::byte{0xff};
        bytes[i] ^= std::byte{0x10};
        EXPECT_FALSE(Address::from_v6(bytes).is_v4()) << i;
    }
}

TEST(Address, Classes) {
    EXPECT_TRUE(a("0.0.0.0").is_unspecified());
    EXPECT_TRUE(a("::").is_unspecified());
    EXPECT_FALSE(a("0.0.0.1").is_unspecified());
    EXPECT_TRUE(a("127.5.0.1").is_loopback());
    EXPECT_TRUE(a("::1").is_loopback());
    EXPECT_FALSE(a("::2").is_loopback());
    EXPECT_FALSE(a("128.0.0.1").is_loopback());
    EXPECT_TRUE(a("224.0.0.1").is_multicast());
    EXPECT_TRUE(a("239.255.255.255").is_multicast());
    EXPECT_FALSE(a("240.0.0.1").is_multicast());
    EXPECT_FALSE(a("223.255.255.255").is_multicast());
    EXPECT_TRUE(a("ff02::1").is_multicast());
    EXPECT_FALSE(a("fe80::1").is_multicast());
    EXPECT_TRUE(a("169.254.1.1").is_link_local());
    EXPECT_FALSE(a("169.253.1.1").is_link_local());
    EXPECT_TRUE(a("fe80::1").is_link_local());
    EXPECT_TRUE(a("febf::1").is_link_local());
    EXPECT_FALSE(a("fec0::1").is_link_local());
    EXPECT_TRUE(a("255.255.255.255").is_broadcast());
    EXPECT_FALSE(a("10.0.0.255").is_broadcast());
}

struct PrefixCase {
    const char* address;
    const char* network;
    unsigned length;
    bool in;
};

TEST(Address, In) {
    for (const PrefixCase& c : {PrefixCase{"10.1.2.3", "10.1.2.0", 24, true},
                                {"10.1.3.3", "10.1.2.0", 24, false},
                                {"10.1.3.3", "10.1.2.0", 23, true},
                                {"10.1.2.3", "10.1.2.3", 32, true},
                                {"10.1.2.2", "10.1.2.3", 32, false},
                                {"10.1.2.2", "10.1.2.3", 31, true},
                                {"1.2.3.4", "0.0.0.0", 0, true},
                                {"fe80::1", "0.0.0.0", 0, false},
                                {"1.2.3.4", "::", 0, false},
                                {"fe80::1", "::", 0, true},
                                {"fe80::1", "fe80::", 10, true},
                                {"fec0::1", "fe80::", 10, false},
                                {"::1", "::1", 128, true},
                                {"::2", "::1", 128, false},
                                {"1.2.3.4", "1.2.3.4", 33, false},
                                {"::1", "::1", 129, false}})
        EXPECT_EQ(a(c.address).in(a(c.network), c.length), c.in) << c.address << " in " << c.network << "/" << c.length;
}

TEST(Address, WireBytesAreThoseOfTheIpHeader) {
    EXPECT_EQ(a("1.2.3.4").wire_bytes().size(), 4u);
    EXPECT_EQ(a("1.2.3.4").wire_bytes()[3], 4);
    EXPECT_EQ(a("::1").wire_bytes().size(), 16u);
}

TEST(Address, HashTellsNeighboursApart) {
    std::unordered_set<std::size_t> hashes;
    for (unsigned i = 0; i < 256; ++i)
        for (unsigned j = 0; j < 256; ++j)
            hashes.insert(
                std::hash<Address>()(Address::v4(10, 0, static_cast<std::uint8_t>(i), static_cast<std::uint8_t>(j))));
    EXPECT_EQ(hashes.size(), 65536u);
}

TEST(Endpoint, Prints) {
    EXPECT_EQ((Endpoint{a("10.0.0.1"), 80}.to_string()), "10.0.0.1:80");
    EXPECT_EQ((Endpoint{a("fe80::1"), 443}.to_string()), "[fe80::1]:443");
}

TEST(MacAddress, PrintsAndKnowsMulticast) {
    EXPECT_EQ((MacAddress{{0x02, 0, 0, 0xab, 0, 0x01}}.to_string()), "02:00:00:ab:00:01");
    EXPECT_FALSE((MacAddress{{0x02, 0, 0, 0, 0, 1}}.is_multicast()));
    EXPECT_TRUE((MacAddress{{0x33, 0x33, 0, 0, 0, 1}}.is_multicast()));
}

}  // namespace
}  // namespace culvert
