// Frames, time and an application's whims into a living stack with a listener, a connection of its own and UDP sockets.
//
// The input is a list of steps. Most build frames that are right but for what the input says, relative to the real state
// of a connection, so that mutations reach deep; one kind is raw bytes.
//
//   step = kind, then what it needs (see World::step)
//
// What must hold, whatever comes: every frame that leaves proves itself; owners are called as owner.h says; and at the
// end, when all is closed and time has run out, no frame, chunk, connection or timer is left.
#include <array>
#include <deque>
#include <memory>
#include <set>
#include <vector>

#include "daemon/stack/stack.h"
#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/udp.h"
#include "daemon/wire/ethernet.h"
#include "daemon/wire/icmp.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"
#include "daemon/wire/tcp.h"
#include "daemon/wire/udp.h"
#include "tests/fuzz/target.h"

namespace culvert::stack {
namespace {

using namespace std::chrono_literals;
using Bytes = std::vector<std::byte>;

constexpr MacAddress kOurs{{2, 0, 0, 0, 0, 1}};
constexpr MacAddress kPeers{{2, 0, 0, 0, 0, 2}};
constexpr Address kOur4 = Address::v4(10, 0, 0, 1);
constexpr Address kPeer4 = Address::v4(10, 0, 0, 2);
const Address kOur6 = *Address::parse("fd00::1");
const Address kPeer6 = *Address::parse("fd00::2");
constexpr Port kListening = 80;
constexpr std::size_t kFlows = 6;
constexpr std::size_t kMaxLive = 16;

class NoKernel final : public NeighborResolver, public PortOwner {
public:
    void resolve(std::uint32_t, const Address&) override {}
    void take_port(Protocol, const Address&, Port) override {}
    void release_port(Protocol, const Address&, Port) override {}
};

/// All sockets of the application in one; keeps the contract of owner.h under watch.
class Application final : public tcp::ListenerOwner, public tcp::ConnectionOwner, public udp::SocketOwner {
public:
    bool can_accept() override { return accepting && live.size() < kMaxLive; }
    tcp::ConnectionOwner* on_accept(tcp::Connection& c) override {
        if (refusing) return nullptr;
        CHECK(live.insert(&c).second);
        return this;
    }
    void on_established(tcp::Connection& c) override { CHECK(live.count(&c) == 1); }
    std::uint32_t on_data(tcp::Connection& c, Payload payload, std::uint32_t length) override {
        CHECK(live.count(&c) == 1 && closing.count(&c) == 0);
        std::uint32_t sum = 0;
        for (const auto piece : payload) sum += static_cast<std::uint32_t>(piece.size());
        CHECK(sum == length);
        return std::min(length, appetite);
    }
    void on_end_of_stream(tcp::Connection& c) override { CHECK(live.count(&c) == 1); }
    void on_released(tcp::Connection&, SendChunk* first) override {
        while (first != nullptr) {
            CHECK(first->tag == 1);
            first->tag = 0;
            CHECK(sent_chunks > 0);
            --sent_chunks;
            first = first->next;
        }
    }
    void on_acknowledged(tcp::Connection&, std::uint32_t) override {}
    void on_closed(tcp::Connection& c, int) override {
        CHECK(live.erase(&c) == 1);
        closing.erase(&c);
    }
    bool on_datagram(udp::Socket&, const udp::DatagramInfo&, Payload, std::uint32_t) override { return accepting; }
    void on_error(udp::Socket&, const udp::DatagramError& e) override { CHECK(e.error != 0); }

    /// The nth connection that the application still uses; nullptr if there is none.
    tcp::Connection* pick(std::uint8_t n) const {
        std::vector<tcp::Connection*> usable;
        for (tcp::Connection* c : order()) usable.push_back(c);
        return usable.empty() ? nullptr : usable[n % usable.size()];
    }
    /// By local port and remote, so that a run does not depend on addresses in memory.
    std::vector<tcp::Connection*> order() const {
        std::vector<tcp::Connection*> all;
        for (tcp::Connection* c : live)
            if (closing.count(c) == 0) all.push_back(c);
        std::sort(all.begin(), all.end(), [](const auto* a, const auto* b) {
            return std::pair(a->local(), a->remote()) < std::pair(b->local(), b->remote());
        });
        return all;
    }

    std::set<tcp::Connection*> live;
    std::set<tcp::Connection*> closing;  // close() was called
    bool accepting = true;
    bool refusing = false;
    std::uint32_t appetite = UINT32_MAX;
    std::size_t sent_chunks = 0;
};

/// One flow as the peer sees it.
struct Flow {
    Endpoint ours, peers;
    std::uint32_t next_sequence = 1000;  // of what the peer sends
    std::uint32_t acknowledged = 0;      // of what we sent
};

class World {
public:
    World() {
        Interface interface;
        interface.index = 1;
        interface.mac = kOurs;
        interface.up = true;
        interface.tx = &tx_;
        interface.addresses = {{kOur4, 24}, {kOur6, 64}};
        eth0_ = &stack_.add_interface(std::move(interface));
        stack_.routes().replace({{.destination = kOur4, .prefix_length = 24, .interface = 1},
                                 {.destination = kOur6, .prefix_length = 64, .interface = 1}});
        for (const Address& peer : {kPeer4, kPeer6})
            stack_.neighbors().update(1, peer, kPeers, NeighborState::kReachable, tx_);
        listener_ = *stack_.listen({Address(), kListening}, true, {}, application_);
        udp_ = *stack_.bind_udp({Address(), 53}, true, application_);
        for (std::size_t i = 0; i < kFlows; ++i) {
            const bool v4 = i % 2 == 0;
            const bool active = i >= 4;
            const auto port = static_cast<Port>(40000 + i);
            flows_[i].ours = {v4 ? kOur4 : kOur6, active ? port : kListening};
            flows_[i].peers = {v4 ? kPeer4 : kPeer6, active ? kListening : port};
        }
    }

    void step(fuzz::Input& in) {
        const std::uint8_t kind = in.u8();
        Flow& flow = flows_[(kind >> 4) % kFlows];
        switch (kind & 15) {
            case 0: raw(in); break;
            case 1:
            case 2: segment(flow, in); break;
            case 3: handshake(flow); break;
            case 4: pass(std::chrono::milliseconds(in.u16())); break;
            case 5: application(in); break;
            case 6: icmp(flow, in); break;
            case 7: udp(flow, in); break;
            case 8: text(flow, in.u16()); break;
            case 9: transport(flow, wire::IpProtocol::kTcp, in.bytes(in.u8())); break;
            case 10: turn(); break;
            case 11: open(flow); break;
            case 12: finish(flow); break;
            case 13: neighbor(in); break;
            case 14: pass(std::chrono::seconds(in.u8())); break;
            default: send_datagram(flow, in.u16()); break;
        }
    }

    /// Everything is given back, though not at once.
    void end() {
        turn();
        for (tcp::Connection* c : application_.order()) {
            if (application_.live.count(c) != 0) c->abort();
        }
        stack_.close(*listener_);
        stack_.close(*udp_);
        for (int i = 0; i < 5000; ++i) {
            turn();
            const Instant deadline = stack_.next_deadline();
            if (deadline == kNever) break;
            now_ = std::max(now_, deadline);
        }
        CHECK(stack_.next_deadline() == kNever);
        CHECK(application_.live.empty());
        CHECK(application_.sent_chunks == 0);
        CHECK(counters_.tcp_established == 0);
        CHECK(counters_.tcp_time_wait == 0);
        CHECK(pool_.available() == pool_.count());
    }

private:
    void input(std::span<const std::byte> frame) {
        // A copy of its own, so that AddressSanitizer sees a read beyond the end.
        const auto copy = std::make_unique<std::byte[]>(frame.size());
        std::ranges::copy(frame, copy.get());
        if (frame.empty()) return;
        stack_.input(*eth0_,
                     {.head = {copy.get(), frame.size()},
                      .rest = {},
                      .length = static_cast<std::uint32_t>(frame.size()),
                      .checksum = ChecksumState::kVerified},
                     now_);
    }
    void turn() {
        stack_.advance(now_);
        stack_.flush(now_);
        read_output();
    }
    void pass(Duration time) {
        now_ += time;
        turn();
    }

    void raw(fuzz::Input& in) { input(in.bytes(in.u16() % 2048)); }

    /// A message of the flow's peer in right Ethernet and IP headers.
    void transport(const Flow& flow, wire::IpProtocol protocol, std::span<const std::byte> message) {
        const bool v4 = flow.ours.address.is_v4();
        const std::size_t ip_header = v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength;
        Bytes frame(wire::kEthernetHeaderLength + ip_header + message.size());
        wire::emit(wire::EthernetHeader{kOurs, kPeers, v4 ? wire::EtherType::kIpv4 : wire::EtherType::kIpv6}, frame);
        const auto ip = std::span(frame).subspan(wire::kEthernetHeaderLength);
        if (v4) {
            wire::emit(wire::Ipv4Header{.source = flow.peers.address, .destination = flow.ours.address,
                                        .protocol = protocol}, message.size(), ip);
        } else {
            wire::emit(wire::Ipv6Header{.source = flow.peers.address, .destination = flow.ours.address,
                                        .protocol = protocol}, message.size(), ip);
        }
        std::ranges::copy(message, ip.begin() + static_cast<std::ptrdiff_t>(ip_header));
        input(frame);
    }
    void tcp(const Flow& flow, std::uint32_t sequence, std::uint32_t ack, wire::TcpFlags flags, std::uint16_t window,
             std::span<const std::byte> options, std::size_t payload) {
        const std::size_t header = wire::kTcpHeaderLength + options.size();
        Bytes message(header + payload);
        wire::emit(wire::TcpHeader{.source = flow.peers.port, .destination = flow.ours.port, .sequence = sequence,
                                   .acknowledgment = ack, .flags = flags, .window = window}, {}, message);
        message[12] = static_cast<std::byte>(header / 4 << 4);
        std::ranges::copy(options, message.begin() + wire::kTcpHeaderLength);
        transport(flow, wire::IpProtocol::kTcp, message);
    }
    void segment(Flow& flow, fuzz::Input& in) {
        const wire::TcpFlags flags{in.u8()};
        const auto sequence = flow.next_sequence + static_cast<std::uint32_t>(in.i16());
        const auto ack = flow.acknowledged + static_cast<std::uint32_t>(in.i16());
        const std::uint16_t window = in.u16();
        Bytes options(in.u8() % 11 * 4u);
        std::ranges::copy(in.bytes(options.size()), options.begin());
        tcp(flow, sequence, ack, flags, window, options, in.u16() % 1461);
    }
    void text(Flow& flow, std::size_t length) {
        length %= 1461;
        tcp(flow, flow.next_sequence, flow.acknowledged, wire::kAck, 8192, {}, length);
        flow.next_sequence += static_cast<std::uint32_t>(length);
    }
    void finish(Flow& flow) {
        tcp(flow, flow.next_sequence, flow.acknowledged, wire::kAck | wire::kFin, 8192, {}, 0);
        ++flow.next_sequence;
    }
    /// SYN and, after the answer, ACK; to a SYN of ours the SYN-ACK.
    void handshake(Flow& flow) {
        turn();
        wire::TcpFlags flags = wire::kSyn;
        if (flow.ours.port != kListening) flags |= wire::kAck;
        constexpr std::uint8_t kOptions[] = {2, 4, 5, 0xb4, 4, 2, 1, 3, 3, 7, 0, 0};
        tcp(flow, flow.next_sequence, flow.acknowledged, flags, 65535, std::as_bytes(std::span(kOptions)), 0);
        ++flow.next_sequence;
        turn();
        tcp(flow, flow.next_sequence, flow.acknowledged, wire::kAck, 8192, {}, 0);
        turn();
    }
    void open(Flow& flow) {
        if (flow.ours.port == kListening || application_.live.size() >= kMaxLive) return;
        const auto opened = stack_.connect(flow.ours, flow.peers, {}, application_, now_);
        if (opened) CHECK(application_.live.insert(*opened).second);
        turn();
    }

    void application(fuzz::Input& in) {
        const std::uint8_t what = in.u8();
        tcp::Connection* const c = application_.pick(in.u8());
        const std::uint16_t amount = in.u16();
        switch (what % 12) {
            case 0: application_.appetite = amount; return;
            case 1: application_.appetite = UINT32_MAX; return;
            case 2: application_.accepting = !application_.accepting; return;
            case 3: application_.refusing = !application_.refusing; return;
            default: break;
        }
        if (c == nullptr) return;
        switch (what % 12) {
            case 4:
            case 5: send(*c, amount); break;
            case 6: c->consumed(amount % 1461); break;
            case 7: c->shutdown_write(); break;
            case 8: c->abort(); break;
            case 9: {
                tcp::Options options;
                options.no_delay = (amount & 1) != 0;
                options.cork = (amount & 2) != 0;
                options.keep_alive = (amount & 4) != 0;
                options.quick_ack = (amount & 8) != 0;
                if ((amount & 16) != 0) options.user_timeout = std::chrono::milliseconds(amount);
                c->set_options(options);
                break;
            }
            default:
                application_.closing.insert(c);
                c->close(application_, (amount & 1) != 0, (amount & 2) != 0);
        }
    }
    void send(tcp::Connection& c, std::uint32_t length) {
        static const std::array<std::byte, 65536> kText{};
        const auto free = std::ranges::find(chunks_, 0u, &SendChunk::tag);
        SendChunk& chunk = free != chunks_.end() ? *free : chunks_.emplace_back();
        chunk = {.next = nullptr, .data = kText.data(), .length = std::max(length, 1u), .tag = 1};
        ++application_.sent_chunks;
        c.send(&chunk, &chunk);
    }

    /// An error about the last frame that left, bent by the input.
    void icmp(const Flow& flow, fuzz::Input& in) {
        const std::uint8_t type = in.u8();
        const std::uint8_t code = in.u8();
        const std::uint32_t rest = in.u16();
        Bytes embedded;
        if (last_frame_.size() > wire::kEthernetHeaderLength)
            embedded.assign(last_frame_.begin() + wire::kEthernetHeaderLength, last_frame_.end());
        embedded.resize(std::min<std::size_t>(embedded.size(), in.u8()));
        const std::uint8_t at = in.u8();
        const std::uint8_t change = in.u8();
        if (at < embedded.size()) embedded[at] ^= static_cast<std::byte>(change);
        Bytes message(wire::kIcmpHeaderLength + embedded.size());
        wire::emit(wire::IcmpHeader{type, code, rest}, embedded, flow.peers.address, flow.ours.address, message);
        transport(flow, flow.ours.address.is_v4() ? wire::IpProtocol::kIcmp : wire::IpProtocol::kIcmpv6, message);
    }
    void udp(const Flow& flow, fuzz::Input& in) {
        const auto payload = in.bytes(in.u8());
        Bytes message(wire::kUdpHeaderLength + payload.size());
        wire::emit(wire::UdpHeader{flow.peers.port, 53}, payload.size(), message);
        std::ranges::copy(payload, message.begin() + wire::kUdpHeaderLength);
        wire::store_be16(message.data() + 4, static_cast<std::uint16_t>(message.size() + (in.u8() & 3)));
        transport(flow, wire::IpProtocol::kUdp, message);
    }
    void send_datagram(const Flow& flow, std::uint16_t length) {
        static const std::array<std::byte, 65536> kText{};
        const std::span<const std::byte> payload(kText.data(), length);
        // To the peer, or (odd lengths) to a socket of our own.
        const Endpoint to = (length & 1) != 0 ? Endpoint{flow.ours.address, 53} : flow.peers;
        (void)stack_.send_datagram(*udp_, to, {&payload, 1}, length, {}, now_);
        turn();
    }
    void neighbor(fuzz::Input& in) {
        const std::uint8_t what = in.u8();
        const Address& peer = (what & 1) != 0 ? kPeer4 : kPeer6;
        if ((what & 2) != 0) stack_.neighbors().remove(1, peer, tx_);
        else stack_.neighbors().update(1, peer, kPeers, static_cast<NeighborState>(what >> 2 & 3), tx_);
    }

    /// Every frame that leaves must prove itself; what it says moves the peer's view of the flow.
    void read_output() {
        Bytes frame;
        const auto pending = tx_.pending();
        const std::size_t count = pending.size();
        for (std::size_t i = 0; i < count; ++i) {
            const std::byte* const data = pool_.data(pending[i].chunk);
            frame.insert(frame.end(), data, data + pending[i].length);
            pool_.release(pending[i].chunk);
            if (pending[i].more) continue;
            check(frame);
            last_frame_ = std::move(frame);
            frame.clear();
        }
        tx_.consume(count);
    }
    template <class View>
    void check_ip(const Bytes& frame) {
        const auto view = View::parse(std::span(frame).subspan(wire::kEthernetHeaderLength));
        CHECK(view.has_value());
        CHECK(view->total_length() + wire::kEthernetHeaderLength == frame.size());
        CHECK(view->total_length() <= 1500);
        if (view->is_fragment()) return;
        const RxPacket packet{.head = frame, .rest = {}, .length = static_cast<std::uint32_t>(frame.size())};
        CHECK(wire::verify_transport_checksum(packet, wire::kEthernetHeaderLength + view->header_length(),
                                              view->payload_length(), view->source(), view->destination(),
                                              view->protocol()));
        if (view->protocol() != wire::IpProtocol::kTcp) return;
        const auto segment = wire::TcpView::parse(view->payload_in_head());
        CHECK(segment.has_value());
        CHECK(wire::TcpOptions::parse(segment->options()).has_value());
        for (Flow& flow : flows_)
            if (flow.ours == Endpoint{view->source(), segment->source()} &&
                flow.peers == Endpoint{view->destination(), segment->destination()} && !segment->flags().rst())
                flow.acknowledged = segment->sequence() + segment->segment_length();
    }
    void check(const Bytes& frame) {
        const auto ethernet = wire::EthernetView::parse(frame);
        CHECK(ethernet.has_value());
        CHECK(ethernet->source() == kOurs);
        if (ethernet->ether_type() == wire::EtherType::kIpv4) check_ip<wire::Ipv4View>(frame);
        else check_ip<wire::Ipv6View>(frame);
    }

    static StackConfig small() {
        StackConfig config;
        config.max_connections = 32;
        config.max_half_open = 8;
        config.max_time_wait = 8;
        config.max_listeners = 4;
        config.max_udp_sockets = 4;
        config.reassembly_chunks = 32;
        config.default_receive_buffer = 32 * 1024;
        config.max_receive_buffer = 64 * 1024;
        return config;
    }

    FramePool pool_{256};
    TxQueue tx_{pool_};
    Counters counters_;
    NoKernel kernel_;
    Rng rng_{1};
    Application application_;
    std::deque<SendChunk> chunks_;
    Stack stack_{small(), kernel_, kernel_, counters_, rng_};
    Interface* eth0_ = nullptr;
    tcp::Listener* listener_ = nullptr;
    udp::Socket* udp_ = nullptr;
    std::array<Flow, kFlows> flows_;
    Bytes last_frame_;
    Instant now_{1h};
};

}  // namespace
}  // namespace culvert::stack

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    culvert::fuzz::Input in(data, size);
    culvert::stack::World world;
    for (int steps = 0; steps < 400 && !in.done(); ++steps) world.step(in);
    world.end();
    return 0;
}
