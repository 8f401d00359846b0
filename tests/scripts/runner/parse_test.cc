// What the parser takes, and what it says about mistakes: where, and what it expected.
#include "tests/scripts/runner/parse.h"

#include <gtest/gtest.h>

#include "tests/scripts/runner/assertion.h"

namespace culvert::script {
namespace {

using namespace std::chrono_literals;

Script must_parse(std::string_view text) {
    auto script = parse(text);
    EXPECT_TRUE(script.has_value()) << (script ? "" : script.error().text);
    return script ? *script : Script{};
}
TcpPacket tcp_of(std::string_view line) {
    const Script script = must_parse(line);
    return std::get<TcpPacket>(std::get<Packet>(script.events.at(0).what).content);
}

TEST(ScriptParse, TimesOfEveryForm) {
    const Script script = must_parse(
        "0.5 < . 1:1(0) ack 1 win 1\n+.25 < . 1:1(0) ack 1 win 1\n* > . 1:1(0) ack 1\n+0~+.05 > . 1:1(0) ack 1\n"
        "0.1...0.3 read(3, ..., 1) = 1\n");
    ASSERT_EQ(script.events.size(), 5u);
    EXPECT_EQ(script.events[0].when.earliest, 500ms);
    EXPECT_EQ(script.events[0].when.base, When::Base::kStart);
    EXPECT_EQ(script.events[1].when.earliest, 250ms);
    EXPECT_EQ(script.events[1].when.base, When::Base::kPrevious);
    EXPECT_EQ(script.events[2].when.base, When::Base::kAnyTime);
    EXPECT_EQ(script.events[3].when.latest, 50ms);
    EXPECT_EQ(script.events[4].when.ends, 300ms);
}

TEST(ScriptParse, SegmentInFull) {
    const Script script =
        must_parse("+0 < [ce,ttl 3] SEW 7:7(0) win 0xff urg 9 <mss 1000,nop,wscale 7,sackOK,TS val 1 ecr 2,FO 0a0b,kind 253 ff,eol>");
    const auto& packet = std::get<Packet>(script.events.at(0).what);
    EXPECT_TRUE(packet.inbound);
    EXPECT_EQ(packet.ip.ecn, EcnField::kCe);
    EXPECT_EQ(packet.ip.ttl, 3);
    const auto& tcp = std::get<TcpPacket>(packet.content);
    EXPECT_EQ(tcp.flags, 0x02 | 0x40 | 0x80);
    EXPECT_EQ(tcp.first, 7u);
    EXPECT_EQ(tcp.window, 255);
    EXPECT_EQ(tcp.urgent, 9);
    const std::vector<Option> options = {Mss{1000}, NoOperation{}, WindowScale{7}, SackPermitted{}, Timestamps{1, 2},
                                         FastOpen{{0x0a, 0x0b}, false}, OtherOption{253, {0xff}}, EndOfOptions{}};
    EXPECT_EQ(tcp.options, options);
}

TEST(ScriptParse, OptionsOfOutboundSegments) {
    EXPECT_TRUE(tcp_of("+0 > . 1:1(0) ack 1 <...>").any_options);
    EXPECT_TRUE(tcp_of("+0 > . 1:1(0) ack 1").options.empty());
    const auto sack = tcp_of("+0 > . 1:1(0) ack 1 <nop,nop,sack 1:2 5:9>").options.at(2);
    EXPECT_EQ(std::get<Sack>(sack).blocks.size(), 2u);
    EXPECT_EQ(std::get<Sack>(sack).blocks[1].second, 9u);
}

TEST(ScriptParse, IcmpAndUdp) {
    const Script script = must_parse("0 < icmp unreachable frag_needed mtu 1400 [1:1001(1000)]\n0 < udp (9)\n0 < icmp time_exceeded [udp (4)]");
    const auto& icmp = std::get<IcmpPacket>(std::get<Packet>(script.events[0].what).content);
    EXPECT_EQ(icmp.code, "frag_needed");
    EXPECT_EQ(icmp.mtu, 1400u);
    EXPECT_EQ(std::get<TcpPacket>(icmp.about).last, 1001u);
    EXPECT_EQ(std::get<UdpPacket>(std::get<Packet>(script.events[1].what).content).length, 9u);
    EXPECT_EQ(std::get<UdpPacket>(std::get<IcmpPacket>(std::get<Packet>(script.events[2].what).content).about).length, 4u);
}

TEST(ScriptParse, CallsMarksSettingsAndComments) {
    const Script script = must_parse(
        "// story\n// kernel: differs because it may\n--mtu=1280\n/* long\ncomment */\n"
        "0 connect(3, {sa_family = AF_INET, sin_port = htons(80)}, ...) = -1 EINPROGRESS (Operation now in progress) // note\n"
        "+0 setsockopt(3, SOL_TCP, TCP_CONGESTION, \"reno\", 4) = 0 # note\n+0 `sysctl -q a.b=1`\n+0 %{ assert 1 == 1 }%\n");
    EXPECT_EQ(script.kernel.kind, KernelMark::Kind::kDiffers);
    EXPECT_EQ(script.kernel.reason, "it may");
    EXPECT_EQ(script.settings.at("mtu"), "1280");
    const auto& connect = std::get<Syscall>(script.events.at(0).what);
    EXPECT_EQ(connect.error, "EINPROGRESS");
    EXPECT_EQ(connect.result.number, -1);
    EXPECT_EQ(connect.arguments.at(1).fields.at(1), "sin_port");
    EXPECT_EQ(script.events[0].place, (Place{6, 1}));
    EXPECT_EQ(script.events[1].source, "+0 setsockopt(3, SOL_TCP, TCP_CONGESTION, \"reno\", 4) = 0");
    EXPECT_EQ(std::get<Command>(script.events[2].what).text, "sysctl -q a.b=1");
}

struct Mistake {
    const char* text;
    Place place;
    const char* says;
};
class ScriptMistakes : public testing::TestWithParam<Mistake> {};

TEST_P(ScriptMistakes, AreNamedWithTheirPlace) {
    const auto script = parse(GetParam().text);
    ASSERT_FALSE(script.has_value());
    EXPECT_EQ(script.error().place, GetParam().place) << script.error().place.line << ":" << script.error().place.column << " " << script.error().text;
    EXPECT_NE(script.error().text.find(GetParam().says), std::string::npos) << script.error().text;
}
INSTANTIATE_TEST_SUITE_P(
    All, ScriptMistakes,
    testing::Values(Mistake{"", {1, 1}, "no event"}, Mistake{"// only a comment\n", {2, 1}, "no event"},
                    Mistake{"0 <  S 0:0(0)\n", {2, 1}, "'win NUMBER'"}, Mistake{"0 < X 0:0(0) win 1", {1, 5}, "TCP flags"},
                    Mistake{"0 < S 0:5(0) win 1", {1, 13}, "does not have 0 bytes"},
                    Mistake{"0 < . 1:1(0) win 1", {1, 14}, "'ack NUMBER'"}, Mistake{"0 > S 0:0(0) ack 1", {1, 19}, "without the flag"},
                    Mistake{"0 > SS 0:0(0)", {1, 6}, "twice"}, Mistake{"0 > S 0:0(0) <mss 70000>", {1, 19}, "too large"},
                    Mistake{"0 > S 0:0(0) <mss 1,what>", {1, 21}, "a TCP option"}, Mistake{"0 < S 0:0(0) win 1 <...>", {1, 24}, "not what to send"},
                    Mistake{"0 > S 0:0(0) <FO abc>", {1, 20}, "even number"}, Mistake{"0 bind(3, ..., ... = 0", {1, 20}, "')'"},
                    Mistake{"0 bind(3)\n", {2, 1}, "'='"}, Mistake{"later bind(3) = 0", {1, 1}, "a time"},
                    Mistake{"0.3~0.2 > S 0:0(0)", {1, 8}, "ends before it begins"},
                    Mistake{"0...1 > S 0:0(0)", {1, 1}, "only a call can last"}, Mistake{"0 `sysctl", {1, 4}, "does not end"},
                    Mistake{"0 > S 0:0(0) 0 > S 0:0(0)", {1, 14}, "the end of the line"}, Mistake{"0 > icmp unreachable [1:1(0)]", {1, 9}, "cannot be expected"},
                    Mistake{"0 < icmp nonsense [1:1(0)]", {1, 18}, "no ICMP type"}, Mistake{"/* no end", {1, 1}, "does not end"},
                    Mistake{"// kernel: maybe\n0 > S 0:0(0)", {1, 12}, "differs because"}, Mistake{"9999999 > S 0:0(0)", {1, 7}, "a time beyond"},
                    Mistake{"0 > [ect9] S 0:0(0)", {1, 6}, "an IP field"}, Mistake{"0 socket(\"open) = 3", {1, 20}, "closing"}));

TEST(ScriptParse, NestingIsBounded) {
    const std::string deep = "0 bind(" + std::string(100, '[');
    const auto script = parse(deep);
    ASSERT_FALSE(script.has_value());
    EXPECT_NE(script.error().text.find("nested too deep"), std::string::npos);
}

TEST(ScriptAssertion, HoldsOrSaysWhatItWasMadeOf) {
    const Lookup lookup = [](std::string_view name) -> std::optional<std::int64_t> {
        return name == "tcpi_snd_cwnd" ? std::optional<std::int64_t>(10) : std::nullopt;
    };
    for (const char* holds : {"assert tcpi_snd_cwnd == 10", "assert 1 < 2 <= 2", "assert not (1 > 2) and 7 % 4 == 3", "assert -3 + 5 * 2 == 7, 1",
                              "assert 6 & 3 == 2 or 0", "print 1\nassert tcpi_snd_cwnd / 3 == 3;assert 0x10 == 16"})
        EXPECT_EQ(evaluate(holds, lookup), std::nullopt) << holds;
    EXPECT_EQ(evaluate("assert tcpi_snd_cwnd > 10", lookup), "does not hold: tcpi_snd_cwnd > 10; tcpi_snd_cwnd is 10");
    for (const char* wrong : {"assert tcpi_nothing == 1", "assert 1 / 0", "assert (1", "import os", "assert", "assert 99999999999999999999"})
        EXPECT_NE(evaluate(wrong, lookup).value_or("").find("cannot be read"), std::string::npos) << wrong;
    EXPECT_NE(evaluate("assert " + std::string(500, '('), lookup).value_or("").find("nested too deep"), std::string::npos);
}

}  // namespace
}  // namespace culvert::script
