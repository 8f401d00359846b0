#include "daemon/stack/source_address.h"

#include <gtest/gtest.h>

#include "tests/unit/stack/ip_world.h"

namespace culvert::stack {
namespace {

TEST(SourceAddress, SameFamilyThenSameScopeThenLongestPrefix) {  // [RFC6724 5]
    Interface interface;
    interface.addresses = {{ip("fe80::1"), 64},      {ip("169.254.1.1"), 16}, {ip("10.0.0.1"), 24},
                           {ip("10.9.0.1"), 24},     {ip("2001:db8::1"), 64}, {ip("fd00::1"), 64}};
    const struct {
        const char* destination;
        const char* source;
    } cases[] = {{"10.0.0.7", "10.0.0.1"},       {"10.9.1.1", "10.9.0.1"},     {"192.0.2.1", "10.0.0.1"},
                 {"169.254.9.9", "169.254.1.1"}, {"fe80::9", "fe80::1"},       {"2001:db8::9", "2001:db8::1"},
                 {"fd00:1::1", "fd00::1"},       {"ff02::1", "fe80::1"}};
    for (const auto& c : cases)
        EXPECT_EQ(choose_source(interface, ip(c.destination)), ip(c.source)) << c.destination;
}

TEST(SourceAddress, NoneOfTheFamily) {
    Interface interface;
    interface.addresses = {{ip("fe80::1"), 64}};
    EXPECT_EQ(choose_source(interface, ip("10.0.0.7")), std::nullopt);
    // The wrong scope is better than nothing.
    EXPECT_EQ(choose_source(interface, ip("2001:db8::9")), ip("fe80::1"));
}

}  // namespace
}  // namespace culvert::stack
