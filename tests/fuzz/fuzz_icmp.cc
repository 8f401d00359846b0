// ICMP and ICMPv6 errors of every type about living connections, true, forged and bent.
//
// The world: one connection of each congestion control over each family to an honest peer, and connected UDP sockets. The
// input is a list of steps (see step()): an error that quotes a flow, data, time.
//
// What must hold: no error ends an established connection [RFC5927] [RFC9293 MUST-54 .. 56]; one that quotes what is not
// on its way changes no connection's segment size; each message is counted once, as believed or as one drop; and in the
// end every connection still carries data both ways, and everything is given back.
#include <algorithm>
#include <array>
#include <deque>

#include "daemon/stack/stack.h"
#include "daemon/stack/tcp/connection.h"
#include "daemon/wire/icmp.h"
#include "daemon/wire/tcp.h"
#include "daemon/wire/udp.h"
#include "tests/fuzz/frames.h"
#include "tests/fuzz/world.h"

namespace culvert::stack {
namespace {

using namespace std::chrono_literals;
using fuzz::Bytes;
using fuzz::kOurs;
using fuzz::kPeers;

constexpr std::size_t kFlows = 8;
constexpr Port kFirstPort = 80;  // and one more for each congestion control
constexpr Port kDatagramPort = 5000;

/// A connection and its peer, who knows only what it was told.
struct Flow {
    Endpoint ours, peers;
    tcp::Connection* connection = nullptr;
    std::uint32_t next = 7000;      // of what the peer sends
    std::uint32_t expected = 0;     // what the peer wants next: all before it is acknowledged, once `told` says so
    std::uint32_t told = 0;         // the last ACK that the peer has sent
    std::uint32_t highest = 0;      // beyond the last byte that we have ever sent
    std::uint64_t delivered = 0;    // bytes that our application has got
    Bytes last;                     // our last packet, from the IP header on
};

class World final : public tcp::ListenerOwner, public tcp::ConnectionOwner, public udp::SocketOwner {
public:
    World() {
        const Address ours4 = Address::v4(10, 0, 0, 1), ours6 = *Address::parse("fd00::1");
        const Address peer4 = Address::v4(10, 0, 0, 2), peer6 = *Address::parse("fd00::2");
        Interface interface;
        interface.index = 1;
        interface.mac = kOurs;
        interface.up = true;
        interface.tx = &tx_;
        interface.addresses = {{ours4, 24}, {ours6, 64}};
        eth0_ = &stack_.add_interface(std::move(interface));
        stack_.routes().replace({{.destination = ours4, .prefix_length = 24, .interface = 1},
                                 {.destination = ours6, .prefix_length = 64, .interface = 1}});
        for (const Address& peer : {peer4, peer6})
            stack_.neighbors().update(1, peer, kPeers, NeighborState::kReachable, tx_);
        for (std::size_t i = 0; i < kFlows / 2; ++i) {
            tcp::Options options;
            options.congestion = static_cast<tcp::Congestion>(i + 1);
            listeners_[i] = *stack_.listen({Address(), static_cast<Port>(kFirstPort + i)}, true, options, *this);
        }
        for (std::size_t i = 0; i < kFlows; ++i) {
            const bool v4 = i % 2 == 0;
            const auto port = static_cast<Port>(kFirstPort + i / 2);
            flows_[i].ours = {v4 ? ours4 : ours6, port};
            flows_[i].peers = {v4 ? peer4 : peer6, static_cast<Port>(40000 + i)};
            open(flows_[i]);
        }
        for (std::size_t i = 0; i < 2; ++i) {
            udp_[i] = *stack_.bind_udp({i == 0 ? ours4 : ours6, kDatagramPort}, false, *this);
            const Endpoint remote{i == 0 ? peer4 : peer6, kDatagramPort};
            stack_.connect_udp(*udp_[i], &remote);
            stack_.set_options(*udp_[i], {.errors = i == 1});
        }
    }

    void step(fuzz::Input& in) {
        const std::uint8_t kind = in.u8();
        Flow& flow = flows_[kind >> 4 & 7];
        switch (kind & 7) {
            case 0:
            case 1:
            case 2: quote_flow(flow, in); break;
            case 3: quote_datagram(in); break;
            case 4: send(flow, in.u16()); turn(); break;
            case 5: acknowledge(flow); turn(); break;
            case 6: wait(std::chrono::milliseconds(in.u16())); break;
            default: exchange(flow); break;
        }
        for (const Flow& each : flows_)
            CHECK(each.connection != nullptr && each.connection->info().state == tcp::State::kEstablished);
    }
    void end() {
        for (Flow& flow : flows_) exchange(flow);
        for (Flow& flow : flows_) flow.connection->abort();
        for (tcp::Listener* each : listeners_) stack_.close(*each);
        for (udp::Socket* each : udp_) stack_.close(*each);
        for (int i = 0; i < 2000 && stack_.next_deadline() != kNever; ++i) turn_at(stack_.next_deadline());
        CHECK(stack_.next_deadline() == kNever);
        CHECK(std::ranges::all_of(flows_, [](const Flow& flow) { return flow.connection == nullptr; }));
        CHECK(std::ranges::all_of(chunks_, [](const SendChunk& chunk) { return chunk.tag == 0; }));
        CHECK(counters_.tcp_established == 0 && pool_.available() == pool_.count());
    }

    bool can_accept() override { return true; }
    tcp::ConnectionOwner* on_accept(tcp::Connection& c) override {
        flow_of(c.local(), c.remote())->connection = &c;
        return this;
    }
    void on_established(tcp::Connection&) override {}
    std::uint32_t on_data(tcp::Connection& c, Payload, std::uint32_t length) override {
        flow_of(c.local(), c.remote())->delivered += length;
        c.consumed(length);
        return length;
    }
    void on_end_of_stream(tcp::Connection&) override {}
    void on_released(tcp::Connection&, SendChunk* first) override {
        for (; first != nullptr; first = first->next) {
            CHECK(first->tag == 1);
            first->tag = 0;
        }
    }
    void on_acknowledged(tcp::Connection&, std::uint32_t) override {}
    void on_closed(tcp::Connection& c, int) override { flow_of(c.local(), c.remote())->connection = nullptr; }
    bool on_datagram(udp::Socket&, const udp::DatagramInfo&, Payload, std::uint32_t) override { return true; }
    void on_error(udp::Socket&, const udp::DatagramError& e) override { CHECK(e.error != 0); }

private:
    Flow* flow_of(const Endpoint& ours, const Endpoint& peers) {
        const auto found = std::ranges::find_if(flows_, [&](const Flow& f) { return f.ours == ours && f.peers == peers; });
        CHECK(found != flows_.end());
        return &*found;
    }
    void input(const Bytes& frame) {
        fuzz::as_packet(frame, [&](const RxPacket& packet) { stack_.input(*eth0_, packet, now_); });
    }
    void transport(const Flow& flow, wire::IpProtocol protocol, std::span<const std::byte> message) {
        Bytes frame = fuzz::frame_of({.to = kOurs, .from = kPeers, .source = flow.peers.address,
                                      .destination = flow.ours.address, .protocol = protocol}, message);
        fuzz::fix_checksums(frame);
        input(frame);
    }
    void tcp(Flow& flow, wire::TcpFlags flags, std::size_t payload = 0) {
        wire::TcpOptions options;
        if (flags.syn()) {
            options.mss = 1460;
            options.window_scale = 7;
            options.sack_permitted = true;
        }
        const std::size_t header = wire::tcp_header_length(options);
        Bytes message(header + payload);
        wire::emit(wire::TcpHeader{.source = flow.peers.port, .destination = flow.ours.port, .sequence = flow.next,
                                   .acknowledgment = flow.expected, .flags = flags, .window = 60000},
                   options, std::span(message).first(header));
        transport(flow, wire::IpProtocol::kTcp, message);
        flow.next += static_cast<std::uint32_t>(payload) + (flags.syn() ? 1 : 0);
        if (flags.ack()) flow.told = flow.expected;
    }
    void open(Flow& flow) {
        tcp(flow, wire::kSyn);
        turn();
        tcp(flow, wire::kAck);
        turn();
        CHECK(flow.connection != nullptr);
    }
    void acknowledge(Flow& flow) { tcp(flow, wire::kAck); }
    void send(Flow& flow, std::uint32_t length) {
        static const std::array<std::byte, 65536> kText{};
        const auto free = std::ranges::find(chunks_, 0u, &SendChunk::tag);
        SendChunk& chunk = free != chunks_.end() ? *free : chunks_.emplace_back();
        chunk = {.next = nullptr, .data = kText.data(), .length = std::max(length, 1u), .tag = 1};
        flow.connection->send(&chunk, &chunk);
    }
    /// No peer is silent for so long that a connection may give up.
    void wait(Duration time) {
        pass(time);
        silence_ += time;
        if (silence_ < 2min) return;
        silence_ = {};
        for (Flow& flow : flows_) exchange(flow);
    }
    static std::uint64_t left_of(const Flow& flow) {
        const tcp::Info info = flow.connection->info();
        return std::uint64_t{info.unsent_bytes} + info.in_flight_bytes;
    }
    /// Data both ways until both have all of it.
    void exchange(Flow& flow) {
        send(flow, 3000);
        const std::uint64_t delivered = flow.delivered;
        tcp(flow, wire::kAck | wire::kPsh, 500);
        std::uint64_t least = UINT64_MAX;
        for (int round = 0; round < 3000; ++round) {  // without progress: megabytes may be queued
            turn();
            bool answered = false;
            std::uint64_t left = 0;
            for (Flow& each : flows_) {  // the other peers do not fall silent meanwhile
                answered |= each.told != each.expected;
                if (each.told != each.expected) acknowledge(each);
                left += left_of(each);
            }
            if (left < least) round = 0;
            least = std::min(least, left);
            if (answered) continue;
            if (left_of(flow) == 0) break;
            CHECK(stack_.next_deadline() != kNever);
            now_ = std::max(now_ + 1ms, stack_.next_deadline());
        }
        CHECK(left_of(flow) == 0);
        CHECK(flow.delivered == delivered + 500);
    }

    // --- errors -------------------------------------------------------------------------------------------------------
    void quote_flow(Flow& flow, fuzz::Input& in) {
        const std::uint8_t how = in.u8();
        Bytes quote = flow.last;
        if ((how & 1) != 0) {
            const std::uint32_t sequence = (how & 2) != 0 ? std::uint32_t{in.u16()} << 16 | in.u16()
                                                          : flow.told + static_cast<std::uint32_t>(in.i16());
            Bytes message(wire::kTcpHeaderLength);
            wire::emit(wire::TcpHeader{.source = flow.ours.port, .destination = flow.peers.port, .sequence = sequence,
                                       .acknowledgment = flow.next, .flags = wire::kAck, .window = 1000}, {}, message);
            quote = fuzz::frame_of({.to = kPeers, .from = kOurs, .source = flow.ours.address,
                                    .destination = flow.peers.address}, message);
            quote.erase(quote.begin(), quote.begin() + wire::kEthernetHeaderLength);
        }
        error(flow, std::move(quote), in);
    }
    void quote_datagram(fuzz::Input& in) {
        const Flow& flow = flows_[in.u8() & 1];
        Bytes message(wire::kUdpHeaderLength + 16);
        wire::emit(wire::UdpHeader{kDatagramPort, kDatagramPort}, 16, message);
        Bytes quote = fuzz::frame_of({.to = kPeers, .from = kOurs, .source = flow.ours.address,
                                      .destination = flow.peers.address, .protocol = wire::IpProtocol::kUdp}, message);
        quote.erase(quote.begin(), quote.begin() + wire::kEthernetHeaderLength);
        error(flow, std::move(quote), in);
    }
    void error(const Flow& flow, Bytes quote, fuzz::Input& in) {
        const bool v4 = flow.ours.address.is_v4();
        const std::uint8_t type = in.u8(), code = in.u8();
        const std::uint32_t rest = std::uint32_t{in.u8()} << 16 | in.u16();
        const std::uint8_t length = in.u8();
        if (length != 0) quote.resize(std::min<std::size_t>(quote.size(), length));
        for (unsigned n = in.u8() & 3; n > 0; --n) {
            const std::uint8_t at = in.u8();
            const auto change = static_cast<std::byte>(in.u8());
            if (at < quote.size()) quote[at] ^= change;
        }
        Bytes message(wire::kIcmpHeaderLength + quote.size());
        wire::emit(wire::IcmpHeader{type, code, rest}, quote, flow.peers.address, flow.ours.address, message);

        const std::uint64_t counted = counters_.icmp_in + fuzz::drops(counters_);
        const auto before = segment_sizes();
        transport(flow, v4 ? wire::IpProtocol::kIcmp : wire::IpProtocol::kIcmpv6, message);
        CHECK(counters_.icmp_in + fuzz::drops(counters_) == counted + 1);
        const auto embedded = wire::EmbeddedPacket::parse(v4 ? Family::kIpv4 : Family::kIpv6, quote);
        if (!embedded || !believable(*embedded)) CHECK(segment_sizes() == before);
        turn();
    }
    /// It speaks of something that is on its way, as far as anybody but us can know.
    bool believable(const wire::EmbeddedPacket& quote) const {
        if (quote.protocol == wire::IpProtocol::kUdp) return true;
        return std::ranges::any_of(flows_, [&](const Flow& flow) {
            return flow.ours == Endpoint{quote.source, quote.source_port} &&
                   flow.peers == Endpoint{quote.destination, quote.destination_port} &&
                   quote.tcp_sequence - flow.told <= flow.highest - flow.told;
        });
    }
    std::array<std::uint32_t, kFlows> segment_sizes() const {
        std::array<std::uint32_t, kFlows> sizes{};
        std::ranges::transform(flows_, sizes.begin(), [](const Flow& flow) { return flow.connection->info().mss; });
        return sizes;
    }

    // --- output -------------------------------------------------------------------------------------------------------
    void pass(Duration time) { turn_at(now_ + time); }
    void turn_at(Instant time) {
        now_ = std::max(now_ + 1ms, time);
        turn();
    }
    void turn() {
        stack_.advance(now_);
        stack_.flush(now_);
        fuzz::take_output(tx_, [this](const Bytes& frame) {
            const auto packet = std::span(frame).subspan(wire::kEthernetHeaderLength);
            if (const auto v4 = wire::Ipv4View::parse(packet)) return read(*v4, packet);
            const auto v6 = wire::Ipv6View::parse(packet);
            CHECK(v6.has_value());
            read(*v6, packet);
        });
    }
    template <class View>
    void read(const View& ip, std::span<const std::byte> packet) {
        CHECK(packet.size() <= 1500);
        if (ip.protocol() != wire::IpProtocol::kTcp || ip.is_fragment()) return;
        const auto segment = wire::TcpView::parse(ip.payload_in_head());
        CHECK(segment.has_value());
        Flow& flow = *flow_of({ip.source(), segment->source()}, {ip.destination(), segment->destination()});
        const std::uint32_t end = segment->sequence() + static_cast<std::uint32_t>(segment->segment_length());
        if (segment->flags().syn()) flow.expected = flow.highest = end;
        else if (static_cast<std::int32_t>(segment->sequence() - flow.expected) <= 0 &&
                 static_cast<std::int32_t>(end - flow.expected) > 0)
            flow.expected = end;
        if (static_cast<std::int32_t>(end - flow.highest) > 0) flow.highest = end;
        flow.last.assign(packet.begin(), packet.end());
    }
    static StackConfig small() {
        StackConfig config = fuzz::small_stack(16);
        config.ecn = tcp::EcnMode::kOn;
        return config;
    }

    FramePool pool_{1024};
    TxQueue tx_{pool_};
    Counters counters_;
    fuzz::NoWorld outside_;
    Rng rng_{1};
    std::deque<SendChunk> chunks_;
    std::array<Flow, kFlows> flows_;
    Stack stack_{small(), outside_, outside_, counters_, rng_};
    Interface* eth0_ = nullptr;
    std::array<tcp::Listener*, kFlows / 2> listeners_{};
    std::array<udp::Socket*, 2> udp_{};
    Duration silence_{};
    Instant now_{1h};
};

}  // namespace
}  // namespace culvert::stack

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    return culvert::fuzz::run<culvert::stack::World>(data, size, 200);
}
