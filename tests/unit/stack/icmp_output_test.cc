// What the stack answers by ICMP for addresses that are its own alone, and what it keeps silent about. Driven through the
// facade: frames in, frames out.
#include "daemon/stack/icmp_output.h"

#include <gtest/gtest.h>

#include "daemon/stack/stack.h"
#include "tests/unit/stack/fragments.h"
#include "tests/unit/stack/link/link_host.h"

namespace culvert::stack {
namespace {

class Nobody final : public PortOwner {
public:
    void take_port(Protocol, const Address&, Port) override {}
    void release_port(Protocol, const Address&, Port) override {}
};

class IcmpOutputTest : public testing::TestWithParam<bool> {
protected:
    const bool v4 = GetParam();
    const Address our = ip(v4 ? "10.0.0.1" : "fd00::1");          // dedicated
    const Address shared = ip(v4 ? "10.0.0.7" : "fd00::7");       // the kernel's as well
    const Address peer = ip(v4 ? "10.0.0.2" : "fd00::2");
    FramePool pool{512};
    TxQueue tx{pool};
    Counters counters;
    Rng rng{5};
    RecordingResolver resolver;
    Nobody ports;
    Stack stack;
    Interface* eth0;
    Instant now{1h};

    static StackConfig config() {
        StackConfig config;
        config.max_connections = config.max_half_open = config.max_time_wait = 16;
        config.max_udp_sockets = 4;
        config.secret[0] = 3;
        config.secret[1] = 4;
        return config;
    }
    IcmpOutputTest() : stack(config(), resolver, ports, counters, rng) {
        Interface made;
        made.index = 7;
        made.mac = kOurMac;
        made.up = true;
        made.tx = &tx;
        eth0 = &stack.add_interface(made);
        stack.set_addresses(7, {{our, v4 ? 24u : 64u, true}, {shared, v4 ? 24u : 64u, false}});
        stack.routes().replace({{.destination = ip("10.0.0.0"), .prefix_length = 24, .interface = 7},
                                {.destination = ip("fd00::"), .prefix_length = 64, .interface = 7}});
        for (const char* neighbor : {"10.0.0.2", "fd00::2", "10.0.0.3", "fd00::3"})
            stack.neighbors().update(7, ip(neighbor), kPeerMac, NeighborState::kReachable, tx);
    }
    std::vector<Bytes> answers(const Bytes& frame) {
        stack.input(*eth0, received(frame), now);
        stack.flush(now);
        return take_frames(tx);
    }
    Bytes echo_request(std::size_t length, const Address& to) const {
        const Bytes data = pattern(length);
        Bytes message(8 + length);
        wire::emit(wire::IcmpHeader{v4 ? wire::icmp_v4::kEchoRequest : wire::icmp_v6::kEchoRequest, 0, 0x00070001}, data, peer,
                   to, message);
        return message;
    }
    wire::IpProtocol icmp() const { return v4 ? wire::IpProtocol::kIcmp : wire::IpProtocol::kIcmpv6; }

    struct Answer {
        Address from, to;
        int type = -1, code = -1;
        std::uint32_t rest = 0;
        Bytes payload;
        std::size_t length = 0;  // of the IP packet
    };
    /// Reads a whole ICMP message; its checksums must be right.
    Answer read(const Bytes& frame) const {
        Answer answer;
        const auto at_ip = std::span<const std::byte>(frame).subspan(14);
        std::size_t header = 20;
        if (v4) {
            const auto view = wire::Ipv4View::parse(at_ip);
            EXPECT_TRUE(view);
            answer.from = view->source();
            answer.to = view->destination();
        } else {
            const auto view = wire::Ipv6View::parse(at_ip);
            EXPECT_TRUE(view);
            answer.from = view->source();
            answer.to = view->destination();
            header = 40;
        }
        answer.length = at_ip.size();
        const auto message = at_ip.subspan(header);
        const RxPacket packet{.head = message, .rest = {}, .length = static_cast<std::uint32_t>(message.size())};
        EXPECT_TRUE(wire::verify_transport_checksum(packet, 0, message.size(), answer.from, answer.to, icmp()));
        answer.type = std::to_integer<int>(message[0]);
        answer.code = std::to_integer<int>(message[1]);
        answer.rest = wire::load_be32(message.data() + 4);
        answer.payload.assign(message.begin() + 8, message.end());
        return answer;
    }
    Bytes udp_to(const Address& to, std::size_t length = 100, Port from_port = 4000) const {
        return udp_frame({peer, from_port}, {to, 9}, pattern(length));
    }
};

INSTANTIATE_TEST_SUITE_P(Families, IcmpOutputTest, testing::Bool(),
                         [](const auto& param) { return param.param ? "Ipv4" : "Ipv6"; });

TEST_P(IcmpOutputTest, AnswersAnEcho) {  // [RFC1122 3.2.2.6 server, source] [RFC4443 4.2 MUST]
    const auto out = answers(ip_frame(peer, our, icmp(), echo_request(56, our)));
    ASSERT_EQ(out.size(), 1u);
    const Answer answer = read(out[0]);
    EXPECT_EQ(answer.from, our);
    EXPECT_EQ(answer.to, peer);
    EXPECT_EQ(answer.type, v4 ? 0 : 129);
    EXPECT_EQ(answer.rest, 0x00070001u);
    EXPECT_EQ(answer.payload, pattern(56));  // [RFC1122 3.2.2.6 data] all of the data
    EXPECT_EQ(counters.icmp_out, 1u);
}

TEST_P(IcmpOutputTest, ALargeEchoComesAndGoesInFragments) {
    const Bytes request = echo_request(8000, our);
    std::vector<Bytes> out;
    for (const Bytes& frame : cut(peer, our, icmp(), 33, request, 1400)) {
        for (Bytes& answer : answers(frame)) out.push_back(std::move(answer));
    }
    ASSERT_EQ(out.size(), 6u);
    EXPECT_EQ(counters.ip_reassembled, 1u);
    Bytes message;
    for (const Bytes& frame : out) {
        ASSERT_LE(frame.size(), 1514u);
        message.insert(message.end(), frame.begin() + (v4 ? 34 : 62), frame.end());
    }
    ASSERT_EQ(message.size(), request.size());
    const RxPacket packet{.head = message, .rest = {}, .length = static_cast<std::uint32_t>(message.size())};
    EXPECT_TRUE(wire::verify_transport_checksum(packet, 0, message.size(), our, peer, icmp()));
    EXPECT_TRUE(std::ranges::equal(std::span(message).subspan(4), std::span(request).subspan(4)));
}

TEST_P(IcmpOutputTest, TheKernelAnswersForSharedAddresses) {
    EXPECT_TRUE(answers(ip_frame(peer, shared, icmp(), echo_request(56, shared))).empty());
    EXPECT_TRUE(answers(udp_to(shared)).empty());
    EXPECT_TRUE(answers(ip_frame(peer, shared, static_cast<wire::IpProtocol>(200), pattern(40))).empty());
    EXPECT_EQ(counters.icmp_out, 0u);
}

TEST(EchoToAGroup, IsCountedAndNotAnswered) {  // [RFC1122 3.2.2.6]
    LinkHost host;
    host.with({{ip("10.0.0.1"), 24}, {ip("fd00::1"), 64}}).after(10s).forget();
    for (const auto& [from, group, type] : {std::tuple{ip("10.0.0.2"), ip("224.0.0.1"), wire::icmp_v4::kEchoRequest},
                                            std::tuple{ip("fd00::2"), ip("ff02::1"), wire::icmp_v6::kEchoRequest}}) {
        Bytes message(wire::kIcmpHeaderLength);
        wire::emit(wire::IcmpHeader{type, 0, 1}, {}, from, group, message);
        host.receive(ip_frame(from, group, group.is_v4() ? wire::IpProtocol::kIcmp : wire::IpProtocol::kIcmpv6, message));
    }
    EXPECT_EQ(host.dropped(Drop::kIcmpEchoToMany), 2u);
    host.quiet();
}

TEST_P(IcmpOutputTest, AClosedPortIsTold) {  // [RFC1122 4.1.3.1 port-unreachable] [RFC1122 3.3.8 errors] [RFC1122 3.4 icmp] [RFC4443 3.1]
    const Bytes frame = udp_to(our);
    const auto out = answers(frame);
    ASSERT_EQ(out.size(), 1u);
    const Answer answer = read(out[0]);
    EXPECT_EQ(answer.from, our);
    EXPECT_EQ(answer.type, v4 ? 3 : 1);
    EXPECT_EQ(answer.code, v4 ? 3 : 4);
    EXPECT_TRUE(std::ranges::equal(answer.payload, std::span(frame).subspan(14)));  // [RFC1122 3.2.2 quote] the header
}

TEST_P(IcmpOutputTest, QuotesNoMoreThanMayBe) {  // [RFC1812 4.3.2.3] [RFC4443 2.4 (c)]
    const auto out = answers(udp_to(our, 1400));
    ASSERT_EQ(out.size(), 1u);
    EXPECT_EQ(read(out[0]).length, v4 ? 576u : 1280u);
}

TEST_P(IcmpOutputTest, AnUnknownProtocolIsTold) {  // [RFC1122 3.2.2.1 generate] [RFC8200 4]
    const auto out = answers(ip_frame(peer, our, static_cast<wire::IpProtocol>(200), pattern(40)));
    ASSERT_EQ(out.size(), 1u);
    const Answer answer = read(out[0]);
    EXPECT_EQ(answer.type, v4 ? 3 : 4);
    EXPECT_EQ(answer.code, v4 ? 2 : 1);
    EXPECT_EQ(answer.rest, v4 ? 0u : 6u) << "IPv6 points to the next header field";
    EXPECT_EQ(counters.dropped(Drop::kIpProtocolUnknown), 1u);
    EXPECT_TRUE(answers(ip_frame(peer, our, wire::IpProtocol::kNoNextHeader, {})).empty() || v4);
}

// [RFC1122 3.2.2 about-error, about-broadcast, about-link-broadcast, about-source]
TEST_P(IcmpOutputTest, KeepsSilentAboutWhatMustNotBeAnswered) {  // [RFC4443 2.4 (e) MUST NOT]
    const auto silent = [&](const Bytes& frame, const char* what) { EXPECT_TRUE(answers(frame).empty()) << what; };
    if (v4) {
        silent(udp_frame({peer, 1}, {ip("10.0.0.255"), 9}, pattern(10)), "directed broadcast");
        Bytes broadcast = udp_frame({peer, 1}, {ip("255.255.255.255"), 9}, pattern(10));
        std::fill_n(broadcast.begin(), 6, std::byte{0xff});
        silent(broadcast, "limited broadcast");
        silent(udp_frame({ip("0.0.0.0"), 1}, {our, 9}, pattern(10)), "from nobody");
        silent(udp_frame({ip("10.0.0.255"), 1}, {our, 9}, pattern(10)), "from a broadcast address");
        Bytes error(8 + 28);
        wire::emit(wire::IcmpHeader{3, 3, 0}, pattern(28), peer, our, error);
        silent(ip_frame(peer, our, icmp(), error), "an error");
    } else {
        silent(udp_frame({Address(), 1}, {our, 9}, pattern(10)), "from nobody");
        Bytes error(8 + 48);
        wire::emit(wire::IcmpHeader{1, 4, 0}, pattern(48), peer, our, error);
        silent(ip_frame(peer, our, icmp(), error), "an error");
        Bytes unknown(8 + 8);
        wire::emit(wire::IcmpHeader{100, 0, 0}, pattern(8), peer, our, unknown);
        silent(ip_frame(peer, our, icmp(), unknown), "an error of unknown type");
    }
    Bytes link_broadcast = udp_to(our);
    std::fill_n(link_broadcast.begin(), 6, std::byte{0xff});
    silent(link_broadcast, "link broadcast");
    EXPECT_EQ(counters.icmp_out, 0u);
}

TEST_P(IcmpOutputTest, ErrorsAreLimited) {  // [RFC1122 3.2.2] [RFC4443 2.4 (f) MUST] [RFC1812 4.3.2.8]
    std::size_t sent = 0;
    for (int i = 0; i < 100; ++i) sent += answers(udp_to(our)).size();
    EXPECT_EQ(sent, IcmpOutput::kDestinationBurst);
    EXPECT_EQ(counters.icmp_limited, 100u - sent);
    now += 1s;
    EXPECT_EQ(answers(udp_to(our)).size(), 1u);
    EXPECT_EQ(answers(udp_to(our)).size(), 0u);
    for (int i = 0; i < 100; ++i) sent += answers(ip_frame(peer, our, icmp(), echo_request(8, our))).size();
    EXPECT_EQ(sent, 106u) << "echoes are as many as were asked for";
}

TEST_P(IcmpOutputTest, ATimedOutReassemblyIsTold) {  // [RFC1122 3.3.2 timeout] [RFC1122 3.2.2 about-fragment] [RFC792] [RFC4443 3.3]
    const Bytes message = udp_message({peer, 4000}, {our, 9}, pattern(3000));
    const auto frames = cut(peer, our, wire::IpProtocol::kUdp, 5, message, 1400);
    EXPECT_TRUE(answers(frames[0]).empty());
    EXPECT_TRUE(answers(cut(peer, our, wire::IpProtocol::kUdp, 6, message, 1400)[1]).empty());
    EXPECT_LE(stack.next_deadline(), now + 60s);
    now += 61s;
    stack.advance(now);
    const auto out = take_frames(tx);
    ASSERT_EQ(out.size(), 1u) << "nothing is said where the first fragment never came";
    const Answer answer = read(out[0]);
    EXPECT_EQ(answer.type, v4 ? 11 : 3);
    EXPECT_EQ(answer.code, 1);
    EXPECT_EQ(answer.to, peer);
}

TEST_P(IcmpOutputTest, BadHeadersAreTold) {
    if (v4) {
        const auto with_option = [&](std::initializer_list<int> option) {
            Bytes frame = udp_to(our);
            Bytes options(4);
            std::size_t i = 0;
            for (const int byte : option) options[i++] = static_cast<std::byte>(byte);
            frame.insert(frame.begin() + 34, options.begin(), options.end());
            frame[14] = std::byte{0x46};
            wire::store_be16(frame.data() + 16, static_cast<std::uint16_t>(frame.size() - 14));
            wire::store_be16(frame.data() + 24, 0);
            wire::store_be16(frame.data() + 24, wire::checksum(wire::sum_bytes(std::span(frame).subspan(14, 24))));
            return frame;
        };
        const auto problem = answers(with_option({1, 7, 9, 0}));  // record route beyond the header
        ASSERT_EQ(problem.size(), 1u);
        EXPECT_EQ(read(problem[0]).type, 12);  // [RFC1122 3.2.2.5 generate]
        EXPECT_EQ(read(problem[0]).rest >> 24, 21u);
        const auto routed = answers(with_option({131, 3, 4, 0}));  // [RFC1122 3.3.5 refused] [RFC7126 4.3]
        ASSERT_EQ(routed.size(), 1u);
        EXPECT_EQ(read(routed[0]).type, 3);
        EXPECT_EQ(read(routed[0]).code, 5);
        EXPECT_EQ(read(answers(with_option({148, 4, 0, 0})).at(0)).code, 3) << "router alert is skipped: closed port";
        return;
    }
    const auto with_header = [&](wire::IpProtocol kind, std::initializer_list<int> bytes) {
        Bytes frame = udp_to(our);
        Bytes header(8);
        header[0] = frame[20];
        std::size_t i = 1;
        for (const int byte : bytes) header[i++] = static_cast<std::byte>(byte);
        frame.insert(frame.begin() + 54, header.begin(), header.end());
        frame[20] = static_cast<std::byte>(kind);
        wire::store_be16(frame.data() + 18, static_cast<std::uint16_t>(frame.size() - 54));
        return frame;
    };
    const struct {
        const char* name;
        wire::IpProtocol kind;
        std::initializer_list<int> bytes;
        int code;  // of a parameter problem; -1: silence, 100: closed port
        std::uint32_t pointer;
    } cases[] = {
        {"unknown, skip", wire::IpProtocol::kDestinationOptions, {0, 0x1e, 4, 0, 0, 0, 0}, 100, 0},  // [RFC8200 4.2] 00
        {"unknown, drop", wire::IpProtocol::kDestinationOptions, {0, 0x5e, 4, 0, 0, 0, 0}, -1, 0},   // 01
        {"unknown, tell", wire::IpProtocol::kDestinationOptions, {0, 0x9e, 4, 0, 0, 0, 0}, 2, 42},   // 10
        {"unknown, tell one", wire::IpProtocol::kDestinationOptions, {0, 0, 0xde, 3, 0, 0, 0}, 2, 43},  // 11
        {"routing type 0", wire::IpProtocol::kRouting, {0, 0, 1, 0, 0, 0, 0}, 0, 42},                // [RFC5095]
        {"routing used up", wire::IpProtocol::kRouting, {0, 0, 0, 0, 0, 0, 0}, 100, 0},
        {"hop-by-hop", wire::IpProtocol::kHopByHop, {0, 5, 2, 0, 0, 1, 0}, 100, 0},                  // router alert
    };
    for (const auto& c : cases) {
        now += 10s;
        const auto out = answers(with_header(c.kind, c.bytes));
        ASSERT_EQ(out.size(), c.code < 0 ? 0u : 1u) << c.name;
        if (c.code < 0) continue;
        const Answer answer = read(out[0]);
        EXPECT_EQ(answer.type, c.code == 100 ? 1 : 4) << c.name;
        EXPECT_EQ(answer.code, c.code == 100 ? 4 : c.code) << c.name;
        EXPECT_EQ(answer.rest, c.pointer) << c.name;
    }
    // [RFC8200 4.5] impossible fragments
    now += 10s;
    const auto odd = answers(fragment_frame(peer, our, wire::IpProtocol::kUdp, 1, 0, true, pattern(101)));
    ASSERT_EQ(odd.size(), 1u);
    EXPECT_EQ(read(odd[0]).rest, 4u) << "the payload length";
    const auto beyond = answers(fragment_frame(peer, our, wire::IpProtocol::kUdp, 1, 65528, false, pattern(100)));
    EXPECT_TRUE(beyond.empty()) << "[RFC4443 2.4 (e)] not about a fragment that is not the first";
}

TEST_P(IcmpOutputTest, APathsMtuIsTheHostsKnowledgeForTenMinutes) {  // [RFC1191 6.3] [RFC8201 5.2]
    PathMtuCache cache;
    EXPECT_EQ(cache.find(peer, now), UINT32_MAX);
    EXPECT_TRUE(cache.learn(peer, 1400, now));
    EXPECT_FALSE(cache.learn(peer, 1450, now)) << "wider only after it has aged";
    EXPECT_TRUE(cache.learn(peer, 1300, now));
    EXPECT_EQ(cache.find(peer, now), 1300u);
    EXPECT_EQ(cache.find(our, now), UINT32_MAX);
    EXPECT_EQ(cache.next_deadline(), now + 10min);
    EXPECT_FALSE(cache.forget(now + 10min - 1ms));
    EXPECT_TRUE(cache.forget(now + 10min));
    EXPECT_EQ(cache.find(peer, now + 10min), UINT32_MAX);
    for (std::uint32_t i = 0; i < 100000; ++i)
        cache.learn(Address::v4(10, static_cast<std::uint8_t>(i >> 16), static_cast<std::uint8_t>(i >> 8), static_cast<std::uint8_t>(i)), 600, now);
    EXPECT_TRUE(cache.learn(peer, 1290, now));
    EXPECT_EQ(cache.find(peer, now), 1290u) << "a flood takes nobody the place";
}

}  // namespace
}  // namespace culvert::stack
