// Segments of a burst that are taken as one (segment_run.h): the same two stacks get the same frames, one in bursts, the other
// one by one. Whatever leaves, whatever the application gets and whatever is counted must be the same.
#include <gtest/gtest.h>

#include <functional>

#include "daemon/stack/stack.h"
#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/tcp/segment_run.h"
#include "daemon/wire/tcp.h"
#include "tests/unit/stack/ip_world.h"

namespace culvert::stack {
namespace {

constexpr std::uint32_t kPeerIss = 0xfffff000;  // wraps in the second segment
constexpr Port kOurPort = 80, kPeerPort = 40000;

struct NoPortsAtAll final : PortOwner {
    void take_port(Protocol, const Address&, Port) override {}
    void release_port(Protocol, const Address&, Port) override {}
};

/// Reads everything at once, or nothing.
struct Reader final : tcp::ConnectionOwner, tcp::ListenerOwner {
    void on_established(tcp::Connection&) override {}
    std::uint32_t on_data(tcp::Connection& c, Payload payload, std::uint32_t length) override {
        std::uint32_t got = 0;
        for (const auto piece : payload) {
            received.insert(received.end(), piece.begin(), piece.end());
            got += static_cast<std::uint32_t>(piece.size());
        }
        EXPECT_EQ(got, length);
        ++calls;
        if (reads) c.consumed(length);
        return length;
    }
    void on_end_of_stream(tcp::Connection&) override { ended = true; }
    void on_released(tcp::Connection&, SendChunk*) override {}
    void on_acknowledged(tcp::Connection&, std::uint32_t) override {}
    void on_closed(tcp::Connection&, int) override { closed = true; }
    bool can_accept() override { return true; }
    tcp::ConnectionOwner* on_accept(tcp::Connection&) override { return this; }

    Bytes received;
    bool reads = true, ended = false, closed = false;
    int calls = 0;
};

/// What a segment is made of; a full one of the stream, unless said otherwise.
struct Data {
    std::uint32_t at = 0;       // in the peer's stream
    std::uint32_t length = 1000;
    wire::TcpFlags flags = wire::kAck;
    std::uint8_t tos = 2;       // ECT(0)
    std::uint8_t ttl = 64;
    std::uint16_t window = 500;
    std::uint32_t stamp = 7;
    std::uint16_t urgent = 0;
    Port port = kPeerPort;
    std::size_t trailer = 0;    // Ethernet padding
    bool bad_sum = false, bad_ip_sum = false;
    std::uint32_t ack = 1;
};

class Host {
public:
    explicit Host(bool v4) : our(ip(v4 ? "10.0.0.1" : "fd00::1")), peer(ip(v4 ? "10.0.0.2" : "fd00::2")) {
        Interface interface;
        interface.index = 7;
        interface.mac = kOurMac;
        interface.up = true;
        interface.tx = &tx;
        interface.addresses = {{ip("10.0.0.1"), 24}, {ip("fd00::1"), 64}};
        eth0 = &stack.add_interface(std::move(interface));
        stack.routes().replace({{.destination = ip("10.0.0.0"), .prefix_length = 24, .interface = 7},
                                {.destination = ip("fd00::"), .prefix_length = 64, .interface = 7}});
        stack.neighbors().update(7, peer, kPeerMac, NeighborState::kReachable, tx);
        EXPECT_TRUE(stack.listen({our, kOurPort}, false, {}, reader).has_value());
        input({frame(kPeerIss, 0, {}, {.flags = wire::kSyn | wire::kEce | wire::kCwr, .tos = 0})}, false);
        const Bytes answer = output().at(0);
        iss = wire::load_be32(answer.data() + (v4 ? 34 : 54) + 4);
        input({frame(kPeerIss + 1, iss + 1, {}, {.tos = 0})}, false);
        output();
    }
    Bytes make(const Data& data) const {
        Bytes text(data.length);
        for (std::uint32_t i = 0; i < data.length; ++i) text[i] = static_cast<std::byte>((data.at + i) * 31 >> 3);
        return frame(kPeerIss + 1 + data.at, iss + data.ack, text, data);
    }
    void input(const std::vector<Bytes>& frames, bool as_burst) {
        std::vector<RxPacket> packets;
        for (const Bytes& each : frames) packets.push_back(received(each));
        if (as_burst)
            stack.input(*eth0, packets, now);
        else
            for (const RxPacket& packet : packets) stack.input(*eth0, packet, now);
    }
    std::vector<Bytes> output() {
        stack.flush(now);
        return take_frames(tx);
    }
    std::vector<Bytes> output_after(Duration time) {
        now += time;
        stack.advance(now);
        return output();
    }

    const Address our, peer;
    FramePool pool{512};
    TxQueue tx{pool};
    Counters counters;
    RecordingResolver resolver;
    NoPortsAtAll ports;
    Rng rng{1};
    Stack stack{config(), resolver, ports, counters, rng};
    Interface* eth0 = nullptr;
    Reader reader;
    Instant now{2h};
    std::uint32_t iss = 0;

private:
    static StackConfig config() {
        StackConfig config;
        config.max_connections = 64;
        config.secret[0] = 3;
        config.secret[1] = 4;
        config.default_receive_buffer = 20'000;
        config.max_receive_buffer = 20'000;
        return config;
    }
    Bytes frame(std::uint32_t sequence, std::uint32_t ack, std::span<const std::byte> text, const Data& data) const {
        const bool v4 = our.is_v4();
        wire::TcpOptions options;
        if (data.flags.syn()) options.mss = 1000 + 12;
        if (data.flags.syn()) options.sack_permitted = true;
        options.timestamps = {.value = data.stamp, .echo = 0};
        const std::size_t header = wire::tcp_header_length(options);
        Bytes segment(header + text.size());
        wire::emit(wire::TcpHeader{.source = data.port, .destination = kOurPort, .sequence = sequence, .acknowledgment = ack,
                                   .flags = data.flags, .window = data.window, .urgent = data.urgent},
                   options, segment);
        std::ranges::copy(text, segment.begin() + static_cast<std::ptrdiff_t>(header));
        wire::finish_tcp_checksum(std::span(segment).first(header), wire::sum_bytes(text), text.size(), peer, our);
        if (data.bad_sum) segment.back() ^= std::byte{1};
        Bytes whole = ip_frame(peer, our, wire::IpProtocol::kTcp, segment);
        const auto at_ip = std::span(whole).subspan(14);
        if (v4)
            wire::emit(wire::Ipv4Header{.source = peer, .destination = our, .hop_limit = data.ttl, .traffic_class = data.tos},
                       segment.size(), at_ip);
        else
            wire::emit(wire::Ipv6Header{.source = peer, .destination = our, .hop_limit = data.ttl, .traffic_class = data.tos},
                       segment.size(), at_ip);
        if (data.bad_ip_sum && v4) whole[14 + 10] ^= std::byte{1};
        whole.resize(whole.size() + data.trailer);
        return whole;
    }
};

struct Case {
    const char* name;
    std::vector<Data> burst;
    std::uint64_t merged;  // segments taken together with the one before
    std::function<void(Host&)> prepare = {};
};

std::vector<Data> stream(std::size_t segments, std::uint32_t length = 1000) {
    std::vector<Data> burst(segments);
    for (std::size_t i = 0; i < segments; ++i) {
        burst[i].at = static_cast<std::uint32_t>(i) * length;
        burst[i].length = length;
    }
    return burst;
}
/// `segments` full ones, of which one is changed.
std::vector<Data> but(std::size_t segments, std::size_t which, const std::function<void(Data&)>& change) {
    std::vector<Data> burst = stream(segments);
    change(burst[which]);
    return burst;
}
std::vector<Data> operator+(std::vector<Data> a, const std::vector<Data>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

const std::vector<Case>& cases() {
    static const std::vector<Case> all = {
        {"Two", stream(2), 1},
        {"Six", stream(6), 5},
        {"SixteenAreAGroup", stream(16), 15},
        {"MoreThanAGroup", stream(19), 17},
        {"MoreThanTheWindow", stream(30), 28},
        {"PshEndsARun", but(6, 2, [](Data& d) { d.flags |= wire::kPsh; }), 4},
        {"PshOfTheLast", but(4, 3, [](Data& d) { d.flags |= wire::kPsh; }), 3},
        {"PshOfTheFirst", but(3, 0, [](Data& d) { d.flags |= wire::kPsh; }), 1},
        {"EachPushed", [] { auto each = stream(4); for (Data& d : each) d.flags |= wire::kPsh; return each; }(), 0},
        {"SmallSegments", stream(8, 10), 7},
        {"AShorterOneEndsARun", stream(3) + std::vector<Data>{{.at = 3000, .length = 10}, {.at = 3010}, {.at = 4010}}, 4},
        {"ALongerOneBeginsARun", std::vector<Data>{{.at = 0, .length = 10}, {.at = 10}, {.at = 1010}}, 1},
        {"AGap", std::vector<Data>{{.at = 0}, {.at = 1000}, {.at = 3000}, {.at = 4000}, {.at = 2000}}, 1},
        {"FromTheFarEnd", std::vector<Data>{{.at = 3000}, {.at = 2000}, {.at = 1000}, {.at = 0}}, 0},
        {"Twice", stream(3) + stream(3), 2},
        {"OverlapsWhatIsThere", stream(2) + std::vector<Data>{{.at = 500}, {.at = 1500}}, 1},
        {"CongestionMark", but(6, 3, [](Data& d) { d.tos = 3; }), 3},
        {"AllMarked", [] { auto each = stream(4); for (Data& d : each) d.tos = 3; return each; }(), 3},
        {"Ece", but(4, 1, [](Data& d) { d.flags |= wire::kEce; }), 1},
        {"Cwr", but(4, 1, [](Data& d) { d.flags |= wire::kCwr; }), 1},
        {"Fin", but(4, 3, [](Data& d) { d.flags |= wire::kFin; }), 2},
        {"FinInTheMiddle", but(4, 1, [](Data& d) { d.flags |= wire::kFin; }), 0},
        {"Reset", but(4, 3, [](Data& d) { d.flags |= wire::kRst; }), 2},
        {"Syn", but(4, 2, [](Data& d) { d.flags |= wire::kSyn; }), 1},
        {"Urgent", but(4, 2, [](Data& d) { d.flags |= wire::kUrg; d.urgent = 5; }), 1},
        {"AnotherWindow", but(4, 2, [](Data& d) { d.window = 600; }), 1},
        {"AnotherTimestamp", but(4, 2, [](Data& d) { d.stamp = 8; }), 1},
        {"AnOldTimestamp", but(4, 2, [](Data& d) { d.stamp = 1; }), 1},
        {"AnotherAcknowledgment", but(4, 2, [](Data& d) { d.ack = 0; }), 1},
        {"AnotherTtl", but(4, 2, [](Data& d) { d.ttl = 63; }), 1},
        {"AnotherFlow", but(4, 2, [](Data& d) { d.port = 40001; }), 1},
        {"NoConnection", [] { auto each = stream(4); for (Data& d : each) d.port = 40001; return each; }(), 0},
        {"ADamagedOne", but(5, 2, [](Data& d) { d.bad_sum = true; }), 1},
        {"ADamagedFirst", but(5, 0, [](Data& d) { d.bad_sum = true; }), 0},
        {"ADamagedHeader", but(5, 2, [](Data& d) { d.bad_ip_sum = true; }), UINT64_MAX},  // over IPv6 there is no such sum
        {"Padding", [] { auto each = stream(4, 100); for (Data& d : each) d.trailer = 9; return each; }(), 3},
        {"NobodyReads", stream(30), 28, [](Host& h) { h.reader.reads = false; }},
    };
    return all;
}

class TcpMerge : public testing::TestWithParam<std::tuple<std::size_t, bool>> {};
INSTANTIATE_TEST_SUITE_P(Bursts, TcpMerge, testing::Combine(testing::Range(std::size_t{0}, cases().size()), testing::Bool()),
                         [](const auto& param) {
                             return std::string(cases()[std::get<0>(param.param)].name) + (std::get<1>(param.param) ? "Ipv4" : "Ipv6");
                         });

TEST_P(TcpMerge, IsTheSameAsOneByOne) {
    const auto& [index, v4] = GetParam();
    const Case& wanted = cases()[index];
    Host merging(v4), plain(v4);
    ASSERT_EQ(merging.iss, plain.iss);
    std::vector<Bytes> frames;
    for (const Data& data : wanted.burst) frames.push_back(merging.make(data));
    for (Host* host : {&merging, &plain}) {
        if (wanted.prepare) wanted.prepare(*host);
        host->input(frames, host == &merging);
    }
    EXPECT_EQ(merging.output(), plain.output());
    EXPECT_EQ(merging.output_after(50ms), plain.output_after(50ms)) << "delayed ACKs";
    EXPECT_EQ(merging.output_after(1s), plain.output_after(1s));
    EXPECT_EQ(merging.reader.received, plain.reader.received);
    EXPECT_EQ(merging.reader.ended, plain.reader.ended);
    EXPECT_EQ(merging.reader.closed, plain.reader.closed);
    EXPECT_EQ(merging.counters.tcp_segments_in, plain.counters.tcp_segments_in);
    EXPECT_EQ(plain.counters.tcp_segments_merged, 0u);
    const std::uint64_t merged = wanted.merged != UINT64_MAX ? wanted.merged : v4 ? 1u : 4u;
    EXPECT_EQ(merging.counters.tcp_segments_merged, merged);
    EXPECT_LE(merging.reader.calls, plain.reader.calls);
}

TEST(TcpMergeGlance, RuntsAreLookedAtNoFurther) {  // whatever a device hands over
    const Bytes empty(1), runt(54), noise(60, std::byte{0x45});
    for (const Bytes& a : {empty, runt, noise})
        for (const Bytes& b : {empty, runt, noise}) EXPECT_FALSE(tcp::SegmentRun::likely(received(a), received(b)));
}

}  // namespace
}  // namespace culvert::stack
