#include "daemon/stack/tcp/syn_cookie.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace culvert::stack::tcp {
namespace {

using namespace std::chrono_literals;

SipKey key(std::uint8_t first) {
    SipKey k{};
    k[0] = std::byte{first};
    return k;
}
const Endpoint kLocal{Address::v4(10, 0, 0, 2), 80};
const Endpoint kRemote{Address::v4(10, 0, 0, 1), 40000};
const Endpoint kLocal6{*Address::parse("fd00::2"), 80};
const Endpoint kRemote6{*Address::parse("fd00::1"), 40000};
const Instant kNow = Instant{} + 1h;

TEST(SynCookie, MssIsTheLargestKnownThatIsNotLarger) {  // [RFC4987 3.6]
    const struct {
        std::uint32_t announced, kept;
    } table[] = {{1, 48},       {48, 48},     {255, 48},     {536, 536},    {1219, 536},   {1220, 1220},   {1400, 1360},
                 {1440, 1440},  {1459, 1440}, {1460, 1460},  {1461, 1460},  {8939, 1460},  {8960, 8940},   {65535, 8940}};
    const SynCookies cookies(key(1));
    for (const auto& [local, remote] : {std::pair{kLocal, kRemote}, std::pair{kLocal6, kRemote6}})
        for (const auto& row : table) {
            const std::uint32_t iss = cookies.make(local, remote, 7, row.announced, kNow);
            const auto verdict = cookies.check(local, remote, 7, iss, kNow);
            EXPECT_EQ(verdict.drop, Drop::kNone) << row.announced;
            EXPECT_EQ(verdict.mss, row.kept) << row.announced;
        }
}

TEST(SynCookie, GoodForOneToTwoMinutes) {
    const SynCookies cookies(key(1));
    const Instant minute = Instant{} + 100min;
    const std::uint32_t iss = cookies.make(kLocal, kRemote, 7, 1460, minute + 20s);
    for (const auto later : {20s, 59s, 60s, 119s})
        EXPECT_EQ(cookies.check(kLocal, kRemote, 7, iss, minute + later).drop, Drop::kNone) << later.count();
    for (const auto later : {120s, 600s, 1900s, 1919s})  // after 32 minutes the minute comes round again
        EXPECT_EQ(cookies.check(kLocal, kRemote, 7, iss, minute + later).drop, Drop::kTcpSynCookieExpired);
    for (const auto later : {1920s, 2000s, 86400s})  // the minute is in the MAC in full
        EXPECT_EQ(cookies.check(kLocal, kRemote, 7, iss, minute + later).drop, Drop::kTcpSynCookieInvalid);
}

TEST(SynCookie, GoodForItsFlowAndSynOnly) {
    const SynCookies cookies(key(1));
    const std::uint32_t iss = cookies.make(kLocal, kRemote, 7, 1460, kNow);
    const auto drop = [&](const SynCookies& with, Endpoint local, Endpoint remote, std::uint32_t irs, std::uint32_t of) {
        return with.check(local, remote, irs, of, kNow).drop;
    };
    EXPECT_EQ(drop(cookies, kLocal, kRemote, 7, iss), Drop::kNone);
    EXPECT_EQ(drop(SynCookies(key(2)), kLocal, kRemote, 7, iss), Drop::kTcpSynCookieInvalid);
    EXPECT_EQ(drop(cookies, {kLocal.address, 81}, kRemote, 7, iss), Drop::kTcpSynCookieInvalid);
    EXPECT_EQ(drop(cookies, kLocal, {kRemote.address, 40001}, 7, iss), Drop::kTcpSynCookieInvalid);
    EXPECT_EQ(drop(cookies, kLocal, {Address::v4(10, 0, 0, 3), 40000}, 7, iss), Drop::kTcpSynCookieInvalid);
    EXPECT_EQ(drop(cookies, kLocal, kRemote, 8, iss), Drop::kTcpSynCookieInvalid);
    for (int bit = 0; bit < 32; ++bit)
        EXPECT_EQ(drop(cookies, kLocal, kRemote, 7, iss ^ (1u << bit)), Drop::kTcpSynCookieInvalid) << bit;
}

TEST(SynCookie, GuessesFail) {
    const SynCookies cookies(key(1));
    std::mt19937 engine(1);
    const auto random = [&] { return static_cast<std::uint32_t>(engine()); };
    int good = 0;
    for (int i = 0; i < 200'000; ++i)
        good += cookies.check(kLocal, kRemote, random(), random(), kNow).drop == Drop::kNone ? 1 : 0;
    EXPECT_LE(good, 1);  // 2^-23 each
}

TEST(SynCookie, GrowsFromMinuteToMinute) {  // [RFC6528 1] a new incarnation begins beyond the old one
    const SynCookies cookies(key(1));
    std::uint32_t before = cookies.make(kLocal, kRemote, 7, 1460, kNow);
    for (int minute = 1; minute < 12; ++minute) {
        const std::uint32_t iss = cookies.make(kLocal, kRemote, 7, 1460, kNow + minute * 1min);
        EXPECT_GT(static_cast<std::int32_t>(iss - before), 0);
        before = iss;
    }
}

TEST(SynCookie, OptionsRideInTheTimestamp) {  // [RFC7323 3.2]
    std::vector<StampedOptions> all;
    for (int scale = -1; scale <= 14; ++scale)
        for (const bool sack : {false, true})
            for (const bool ecn : {false, true}) {
                StampedOptions options{.window_scale = {}, .sack = sack, .ecn = ecn};
                if (scale >= 0) options.window_scale = static_cast<std::uint8_t>(scale);
                all.push_back(options);
            }
    for (const StampedOptions& options : all)
        for (const std::uint32_t clock : {0u, 1u, 63u, 64u, 1000u, 0x7fffffffu, 0xffffffffu}) {
            const std::uint32_t stamp = options.stamp(clock);
            EXPECT_EQ(StampedOptions::from(stamp), options);
            EXPECT_LT(clock - stamp, 64u) << "never after the clock, at most 63 before it";
        }
}

}  // namespace
}  // namespace culvert::stack::tcp
