#include "daemon/wire/filter_rule.h"

#include <gtest/gtest.h>
#include <netinet/in.h>

namespace culvert {
namespace {

TEST(FilterRule, BadNetworksPortsAndProtocolsAreRefused) {
    for (const char* text : {"", "10.0.0.0/33", "10.0.0.1/24", "fd00::/129", "10.0.0.0/", "10.0.0.0/8x", "host", "fd00::1/64"})
        EXPECT_FALSE(Prefix::parse(text)) << text;
    for (const char* text : {"", "0", "65536", "5-4", "1-", "-5", "80,90", "0-5"}) EXPECT_FALSE(PortInterval::parse(text)) << text;
    for (const char* text : {"", "tpc", "256", "-1", "6 "}) EXPECT_FALSE(parse_protocol(text)) << text;
}

TEST(FilterRule, ReadsAndWritesTheSameText) {
    const FilterRule rule{.action = FilterAction::kDeny,
                          .source = *Prefix::parse("10.0.0.0/8"),
                          .destination = *Prefix::parse("any"),
                          .protocol = *parse_protocol("tcp"),
                          .source_ports = *PortInterval::parse("1024-65535"),
                          .ports = *PortInterval::parse("22")};
    EXPECT_EQ(rule.to_string(), "deny tcp from 10.0.0.0/8 ports 1024-65535 to any ports 22");
    EXPECT_EQ(Prefix::parse("192.0.2.1")->to_string(), "192.0.2.1/32");
    EXPECT_EQ(Prefix::parse("fd00::/8")->to_string(), "fd00::/8");
    EXPECT_EQ(*parse_protocol("47"), 47);
    EXPECT_EQ(protocol_name(IPPROTO_ICMPV6), "icmpv6");
}

TEST(FilterRule, EverythingIsBothFamilies) {
    EXPECT_TRUE(Prefix::parse("any")->everything());
    EXPECT_FALSE(Prefix::parse("0.0.0.0/0")->everything()) << "all of IPv4, nothing of IPv6";
    EXPECT_EQ(Prefix::parse("0.0.0.0/0")->mapped_length(), 96u);
}

}  // namespace
}  // namespace culvert
