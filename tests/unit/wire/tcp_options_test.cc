#include "daemon/wire/tcp_options.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "tests/unit/wire/bytes_of.h"

namespace culvert::wire {
namespace {

bool same_cookie(const TcpOptions& a, const TcpOptions& b) {
    if (a.fast_open_cookie.has_value() != b.fast_open_cookie.has_value()) return false;
    return !a.fast_open_cookie || std::ranges::equal(*a.fast_open_cookie, *b.fast_open_cookie);
}

void expect_same(const TcpOptions& a, const TcpOptions& b) {
    EXPECT_EQ(a.timestamps, b.timestamps);
    EXPECT_EQ(a.mss, b.mss);
    EXPECT_EQ(a.window_scale, b.window_scale);
    EXPECT_EQ(a.sack_permitted, b.sack_permitted);
    EXPECT_TRUE(std::ranges::equal(a.sack(), b.sack()));
    EXPECT_TRUE(same_cookie(a, b));
}

struct Case {
    const char* name;
    const char* hex;
    std::function<void(TcpOptions&)> fill;  // what is expected; empty: refused
};

const Bytes kCookie = from_hex("0102030405060708");
const auto kNothing = [](TcpOptions&) {};

const std::vector<Case> kCases = {
    {"nothing", "", kNothing},
    {"NOPs", "01010101", kNothing},
    {"end hides what follows", "00020405b4", kNothing},
    {"MSS", "020405b4", [](TcpOptions& o) { o.mss = 1460; }},
    {"window scale", "010303 07", [](TcpOptions& o) { o.window_scale = 7; }},
    {"window scale 14", "0303 0e00", [](TcpOptions& o) { o.window_scale = 14; }},
    {"window scale 15 counts as 14", "0303 0f00", [](TcpOptions& o) { o.window_scale = 14; }},  // [RFC7323 2.3]
    {"window scale 255 counts as 14", "0303 ff00", [](TcpOptions& o) { o.window_scale = 14; }},
    {"SACK permitted", "04020101", [](TcpOptions& o) { o.sack_permitted = true; }},
    {"timestamps, the usual layout", "0101080a 00000001 80000002",
     [](TcpOptions& o) {
         o.timestamps = TcpTimestamps{1, 0x80000002};
     }},
    {"timestamps, NOPs behind", "080a 00000001 00000002 0101",
     [](TcpOptions& o) {
         o.timestamps = TcpTimestamps{1, 2};
     }},
    {"one SACK block", "0101050a 00000001 00000002",
     [](TcpOptions& o) {
         o.sack_count = 1;
         o.sack_blocks[0] = {1, 2};
     }},
    {"four SACK blocks", "01010522 00000001 00000002 00000003 00000004 00000005 00000006 00000007 00000008",
     [](TcpOptions& o) {
         o.sack_count = 4;
         o.sack_blocks = {{{1, 2}, {3, 4}, {5, 6}, {7, 8}}};
     }},
    {"the SYN of Linux", "020405b4 0402 080a 00000009 00000000 01 030307",
     [](TcpOptions& o) {
         o.mss = 1460;
         o.sack_permitted = true;
         o.timestamps = TcpTimestamps{9, 0};
         o.window_scale = 7;
     }},
    {"Fast Open request", "22020101", [](TcpOptions& o) { o.fast_open_cookie.emplace(); }},
    {"Fast Open cookie", "220a 0102030405060708 0101", [](TcpOptions& o) { o.fast_open_cookie = kCookie; }},
    // [RFC9293 3.1 MUST-6, MUST-68]
    {"unknown kind is skipped", "fe04dead 020405b4", [](TcpOptions& o) { o.mss = 1460; }},
    // [RFC9293 3.1 MUST-64]
    {"at an odd byte", "01 020405b4 000000", [](TcpOptions& o) { o.mss = 1460; }},
    {"unknown of odd length", "fe05deadbe 020405b4 000000", [](TcpOptions& o) { o.mss = 1460; }},
    {"unknown kind of length 2", "fe02 020405b4", [](TcpOptions& o) { o.mss = 1460; }},
    // a length that the kind does not have
    {"MSS of 3", "020305 01", kNothing},
    {"window scale of 4", "03040701", kNothing},
    {"SACK permitted of 3", "04030001", kNothing},
    {"timestamps of 9", "0809 00000001 000000 01", kNothing},
    {"SACK of 2", "05020101", kNothing},
    {"SACK of 9", "0509 0000000000 000001", kNothing},
    {"Fast Open cookie of 2", "22040102", kNothing},
    {"Fast Open cookie of 5", "2207 0102030405 01", kNothing},
    // [RFC9293 3.1 MUST-7] lists that cannot be walked
    {"length 0", "02000000", {}},
    {"length 1", "02010000", {}},
    {"unknown of length 0", "fe000000", {}},
    {"length beyond the list", "020505b4", {}},
    {"no length", "01010102", {}},
    {"timestamps cut short", "0101080a 00000001", {}},
};

TEST(TcpOptions, Table) {
    for (const Case& c : kCases) {
        SCOPED_TRACE(c.name);
        const Bytes bytes = from_hex(c.hex);
        const auto parsed = TcpOptions::parse(bytes);
        ASSERT_EQ(parsed.has_value(), static_cast<bool>(c.fill));
        if (!parsed) {
            EXPECT_EQ(parsed.error(), Drop::kTcpOptionMalformed);
            continue;
        }
        TcpOptions expected;
        c.fill(expected);
        expect_same(*parsed, expected);
    }
}

TEST(TcpOptions, EveryShorterLengthIsInBounds) {
    // Cut anywhere, a list is either refused or means what its whole options mean: never more than the uncut one.
    for (const Case& c : kCases) {
        if (!c.fill) continue;
        const Bytes bytes = from_hex(c.hex);
        const auto whole = TcpOptions::parse(bytes);
        for (std::size_t length = 0; length < bytes.size(); ++length) {
            const Bytes cut = truncated(bytes, length);
            const auto parsed = TcpOptions::parse(cut);
            if (!parsed) continue;
            EXPECT_TRUE(!parsed->mss || parsed->mss == whole->mss) << c.name;
            EXPECT_TRUE(!parsed->timestamps || parsed->timestamps == whole->timestamps) << c.name;
            EXPECT_LE(parsed->sack_count, whole->sack_count) << c.name;
        }
    }
}

TcpOptions random_options(Rng& rng, const Bytes& cookie) {
    TcpOptions options;
    if (rng.happens(0.5))
        options.timestamps =
            TcpTimestamps{static_cast<std::uint32_t>(rng.next()), static_cast<std::uint32_t>(rng.next())};
    if (rng.happens(0.5)) {  // a SYN
        options.mss = static_cast<std::uint16_t>(rng.next());
        options.sack_permitted = rng.happens(0.5);
        if (rng.happens(0.5)) options.window_scale = static_cast<std::uint8_t>(rng.below(15));
        if (rng.happens(0.5))
            options.fast_open_cookie = std::span(cookie).first(rng.happens(0.3) ? 0 : 4 + 2 * rng.below(7));
    } else {
        options.sack_count = static_cast<std::uint8_t>(rng.below(max_sack_blocks(options.timestamps.has_value()) + 1));
        for (std::size_t i = 0; i < options.sack_count; ++i)
            options.sack_blocks[i] = {static_cast<std::uint32_t>(rng.next()), static_cast<std::uint32_t>(rng.next())};
    }
    return options;
}

TEST(TcpOptions, RoundTrip) {
    Rng rng(1);
    const Bytes cookie = random_bytes(rng, 16);
    for (int round = 0; round < 3000; ++round) {
        SCOPED_TRACE("round " + std::to_string(round));
        const TcpOptions options = random_options(rng, cookie);
        const std::size_t length = emitted_length(options);
        ASSERT_EQ(length % 4, 0u);  // [RFC9293 3.1 MUST-69] nothing to pad
        ASSERT_LE(length, kMaxTcpOptionsLength);
        constexpr std::byte kCanary{0xa5};
        Bytes out(length + 4, kCanary);
        emit(options, out);
        ASSERT_EQ(out[length], kCanary);
        const auto parsed = TcpOptions::parse(std::span(out).first(length));
        ASSERT_TRUE(parsed);
        expect_same(*parsed, options);
    }
}

TEST(TcpOptions, TheLargestSynFits) {  // RFC 7413 beside everything else
    TcpOptions options;
    const Bytes cookie(16);
    options.mss = 1460;
    options.sack_permitted = true;
    options.timestamps.emplace();
    options.window_scale = 7;
    options.fast_open_cookie = cookie;
    EXPECT_EQ(emitted_length(options), kMaxTcpOptionsLength);
}

TEST(TcpOptions, SackBlocksBesideTimestamps) {  // [RFC2018 3]
    TcpOptions options;
    options.sack_count = static_cast<std::uint8_t>(max_sack_blocks(false));
    EXPECT_EQ(emitted_length(options), 36u);
    options.timestamps.emplace();
    options.sack_count = static_cast<std::uint8_t>(max_sack_blocks(true));
    EXPECT_EQ(emitted_length(options), 40u);
}

TEST(TcpOptions, RandomListsNeverLeadOutOfBounds) {
    Rng rng(2);
    constexpr std::uint8_t kLikely[] = {0, 1, 2, 3, 4, 5, 8, 10, 18, 34};
    std::size_t accepted = 0;
    for (int round = 0; round < 30000; ++round) {
        Bytes bytes(rng.below(11) * 4);
        for (std::byte& byte : bytes)
            byte = rng.happens(0.9) ? std::byte{kLikely[rng.below(10)]} : static_cast<std::byte>(rng.next());
        const auto parsed = TcpOptions::parse(bytes);
        if (!parsed) continue;
        ++accepted;
        ASSERT_LE(parsed->sack_count, kMaxSackBlocks);
        ASSERT_LE(parsed->window_scale.value_or(0), kMaxWindowScale);
    }
    EXPECT_GT(accepted, 1000u);
}

}  // namespace
}  // namespace culvert::wire
