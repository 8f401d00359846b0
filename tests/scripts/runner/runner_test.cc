// The runner itself: a right script passes, and every kind of wrong one fails for its own reason. Played on Culvert's stack.
#include "tests/scripts/runner/runner.h"

#include <gtest/gtest.h>

#include "tests/scripts/runner/culvert_world.h"
#include "tests/scripts/runner/parse.h"

namespace culvert::script {
namespace {

constexpr std::string_view kOpen = R"(0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
+0 bind(3, ..., ...) = 0
+0 listen(3, 1) = 0
+.1 < S 0:0(0) win 32792 <mss 1000,nop,nop,sackOK>
+0 > S. 0:0(0) ack 1 <mss 1460,nop,nop,sackOK>
+.1 < . 1:1(0) ack 1 win 32792
+0 accept(3, ..., ...) = 4
)";

Verdict run(const std::string& text, bool ipv6 = false) {
    const auto script = parse(text);
    EXPECT_TRUE(script.has_value()) << (script ? "" : script.error().text);
    return play(*script, {.ipv6 = ipv6, .make_world = make_culvert_world});
}
Verdict after_open(const std::string& rest) { return run(std::string(kOpen) + rest); }

TEST(ScriptRunner, RightScriptPassesOverBothFamilies) {
    for (const bool ipv6 : {false, true}) {
        const Verdict verdict = run(std::string(kOpen) + "+.1 write(4, ..., 500) = 500\n+0 > P. 1:501(500) ack 1\n", ipv6);
        EXPECT_EQ(verdict.kind, Verdict::Kind::kPassed) << verdict.text << verdict.transcript;
    }
}

struct Wrong {
    const char* rest;
    const char* says;
};
class WrongScripts : public testing::TestWithParam<Wrong> {};

TEST_P(WrongScripts, FailForTheRightReason) {
    const Verdict verdict = after_open(GetParam().rest);
    EXPECT_EQ(verdict.kind, Verdict::Kind::kFailed);
    EXPECT_NE(verdict.text.find(GetParam().says), std::string::npos) << verdict.text;
    EXPECT_GE(verdict.place.line, 8u);
    EXPECT_NE(verdict.transcript.find("> S. 0:0(0) ack 1"), std::string::npos) << verdict.transcript;
}
INSTANTIATE_TEST_SUITE_P(
    All, WrongScripts,
    testing::Values(Wrong{"+0 > . 1:1(0) ack 1\n", "no packet has left"}, Wrong{"+0 write(4, ..., 5) = 6\n", "it returned 5"},
                    Wrong{"+0 write(4, ..., 5) = 5\n+0 > P. 1:7(6) ack 1\n", "the payload's length is 5, not 6"},
                    Wrong{"+0 write(4, ..., 5) = 5\n+0 > . 1:6(5) ack 1\n", "the flags are P., not ."},
                    Wrong{"+0 write(4, ..., 5) = 5\n+0 > P. 2:7(5) ack 1\n", "the sequence number is 1, not 2"},
                    Wrong{"+0 write(4, ..., 5) = 5\n+0 > P. 1:6(5) ack 2\n", "the acknowledgment is 1, not 2"},
                    Wrong{"+0 write(4, ..., 5) = 5\n+0 > P. 1:6(5) ack 1 win 7\n", "the window is"},
                    Wrong{"+0 write(4, ..., 5) = 5\n+0 > P. 1:6(5) ack 1 <nop,nop,sack 1:2>\n", "the options are none, not <sack 1:2>"},
                    Wrong{"+0 write(4, ..., 5) = 5\n+0 > [ce] P. 1:6(5) ack 1\n", "the IP header says"},
                    Wrong{"+0 write(4, ..., 5) = 5\n+.1 > P. 1:6(5) ack 1\n", "too early"},
                    Wrong{"+0 write(4, ..., 5) = 5\n", "a packet left that nothing expects"},
                    Wrong{"+0 read(4, ..., 5) = 5\n", "the call blocks"}, Wrong{"+0 read(9, ..., 5) = 5\n", "no call has returned this descriptor"},
                    Wrong{"0.3...0.4 read(4, ..., 5) = 5\n", "has not come back"},
                    Wrong{"0.3...0.5 read(4, ..., 9) = 5\n+.1 < P. 1:6(5) ack 1 win 99\n", "came back at 0.4"},
                    Wrong{"+0 %{ assert tcpi_snd_cwnd == 99 }%\n", "does not hold"}, Wrong{"+0 frobnicate(4) = 0\n", "no call of this dialect"},
                    Wrong{"+0 < . 1:1(0) ack 1 win 1 <mss 5,nop>\n", "pad them with nop"}));

TEST(ScriptRunner, ForeignCommandsAndSettingsAreRefused) {
    for (const char* text : {"0 `rm -rf /`\n", "0 `sysctl -q net.ipv4.no_such_thing=1`\n", "--nonsense=1\n0 < udp (1)\n"}) {
        const Verdict verdict = run(text);
        EXPECT_EQ(verdict.kind, Verdict::Kind::kUnsupported) << text;
    }
}

}  // namespace
}  // namespace culvert::script
