// Frames, time and an application's whims into a living stack with a listener, a connection of its own and UDP sockets.
//
// The input is a list of steps. Most build frames that are right but for what the input says, relative to the real state
// of a connection, so that mutations reach deep; one kind is raw bytes.
//
//   step = kind, then what it needs (see World::step and World::feature)
//
// What must hold, whatever comes: every frame that leaves proves itself, and the text of every segment is what the
// application wrote at that place; what the application reads is what the peer wrote; owners are called as owner.h says
// (application.h); and at the end, when all is closed and time has run out, nothing is held.
#include <algorithm>
#include <array>
#include <optional>
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
#include "tests/fuzz/application.h"
#include "tests/fuzz/frames.h"
#include "tests/fuzz/world.h"

namespace culvert::stack {
namespace {

using namespace std::chrono_literals;
using fuzz::Bytes;
using fuzz::kOurs;
using fuzz::kPeers;

constexpr Address kOur4 = Address::v4(10, 0, 0, 1);
constexpr Address kPeer4 = Address::v4(10, 0, 0, 2);
const Address kOur6 = *Address::parse("fd00::1");
const Address kPeer6 = *Address::parse("fd00::2");
constexpr Port kListening = 80;
constexpr std::size_t kFlows = 6;

/// One flow as the peer sees it.
struct Flow {
    Endpoint ours, peers;
    std::uint32_t next_sequence = 1000;  // of what the peer sends
    std::uint32_t acknowledged = 0;      // of what we sent
    // What the peer does beyond the least, from its next SYN on.
    bool timestamps = false, ecn = false, ask_cookie = false, use_cookie = false, syn_data = false, ce = false;
    bool no_options = false;             // an old peer: nothing in its SYN
    std::uint32_t clock = 100;           // its TSval
    std::uint32_t echo = 0;              // our last TSval
    Bytes cookie;                        // that we gave it
    std::uint32_t syn_answered = 0;      // what our SYN-ACK acknowledged
    std::optional<std::uint32_t> first;  // sequence number of the first octet of our stream
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
        listener_ = *stack_.listen({Address(), kListening}, true, listener_options(0), application_);
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
        if (kind >= 0x80) return feature(kind & 15, flows_[(kind >> 4 & 7) % kFlows], in);
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
            case 9: raw_segment(flow, in); break;
            case 10: turn(); break;
            case 11: open(flow); turn(); break;
            case 12: finish(flow); break;
            case 13: neighbor(in); break;
            case 14: pass(std::chrono::seconds(in.u8())); break;
            default: send_datagram(flow, in.u16()); break;
        }
    }
    /// What came to TCP after 1981.
    void feature(unsigned kind, Flow& flow, fuzz::Input& in) {
        switch (kind) {
            case 0: habits(flow, in.u8()); break;
            case 1: selective_ack(flow, in); break;
            case 2: urgent(flow, in); break;
            case 3: flood(in.u8()); break;
            case 4: merged(flow, in); break;
            case 5: listen_again(in.u8()); break;
            case 6: device(in.u8()); break;
            case 7: stamped_text(flow, in.u16(), in.u8()); break;
            case 8: socket_options(in); break;
            case 9: open_with(flow, in); break;
            case 10: application_.reading = !application_.reading; break;
            case 11: datagram_options(flow, in); break;
            case 12: acknowledge_all(flow); break;
            default: sleep(std::chrono::milliseconds(in.u16())); break;
        }
    }

    /// Everything is given back, though not at once.
    void end() {
        turn();
        for (tcp::Connection* c : application_.usable())
            if (!application_.gone(c)) c->abort();
        stack_.close(*listener_);
        stack_.close(*udp_);
        for (int i = 0; i < 5000 && stack_.next_deadline() != kNever; ++i) {
            now_ = std::max(now_ + 1us, stack_.next_deadline());
            turn();
        }
        CHECK(application_.holds_nothing());
        fuzz::check_nothing_held(stack_, small(), counters_, pool_, outside_);
    }

private:
    void input(std::span<const std::byte> frame) {
        fuzz::as_packet(frame, [&](RxPacket packet) {
            packet.checksum = ChecksumState::kVerified;
            stack_.input(*eth0_, packet, now_);
        });
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

    /// As an engine does: a turn when something is due.
    void sleep(Duration time) {
        const Instant target = now_ + time;
        for (int turns = 0; turns < 100 && stack_.next_deadline() <= target; ++turns) {
            now_ = std::max(now_ + 1us, stack_.next_deadline());
            turn();
        }
        now_ = std::max(now_, target);
        turn();
    }

    void raw(fuzz::Input& in) {
        application_.forged = true;
        input(in.bytes(in.u16() % 2048));
    }

    /// A message of the flow's peer in right Ethernet and IP headers.
    Bytes frame_of(const Flow& flow, wire::IpProtocol protocol, std::span<const std::byte> message, std::uint8_t tos = 0) {
        return fuzz::frame_of({.to = kOurs, .from = kPeers, .source = flow.peers.address,
                               .destination = flow.ours.address, .protocol = protocol, .tos = tos}, message);
    }
    void transport(const Flow& flow, wire::IpProtocol protocol, std::span<const std::byte> message, std::uint8_t tos = 0) {
        input(frame_of(flow, protocol, message, tos));
    }
    void raw_segment(const Flow& flow, fuzz::Input& in) {
        application_.forged = true;
        transport(flow, wire::IpProtocol::kTcp, in.bytes(in.u8()));
    }
    /// The segment's text is the low bytes of its places. `urgent`: the pointer.
    static Bytes tcp_message(const Flow& flow, std::uint32_t sequence, std::uint32_t ack, wire::TcpFlags flags,
                             std::uint16_t window, std::span<const std::byte> options, std::size_t payload,
                             std::uint16_t urgent = 0) {
        const std::size_t header = wire::kTcpHeaderLength + options.size();
        Bytes message(header + payload);
        wire::emit(wire::TcpHeader{.source = flow.peers.port, .destination = flow.ours.port, .sequence = sequence,
                                   .acknowledgment = ack, .flags = flags, .window = window}, {}, message);
        message[12] = static_cast<std::byte>(header / 4 << 4);
        wire::store_be16(message.data() + 18, urgent);
        std::ranges::copy(options, message.begin() + wire::kTcpHeaderLength);
        const std::uint32_t place = sequence + (flags.syn() ? 1 : 0);
        for (std::size_t i = 0; i < payload; ++i) message[header + i] = static_cast<std::byte>(place + i);
        return message;
    }
    void tcp(const Flow& flow, std::uint32_t sequence, std::uint32_t ack, wire::TcpFlags flags, std::uint16_t window,
             std::span<const std::byte> options, std::size_t payload, std::uint8_t tos = 0, std::uint16_t urgent = 0) {
        transport(flow, wire::IpProtocol::kTcp, tcp_message(flow, sequence, ack, flags, window, options, payload, urgent), tos);
    }
    /// As a peer that does timestamps and selective ACKs writes them.
    Bytes usual_options(Flow& flow, std::span<const wire::SackBlock> blocks = {}) {
        wire::TcpOptions options;
        if (flow.timestamps) options.timestamps = wire::TcpTimestamps{++flow.clock, flow.echo};
        for (const wire::SackBlock& block : blocks.first(std::min(blocks.size(), wire::max_sack_blocks(flow.timestamps))))
            options.sack_blocks[options.sack_count++] = block;
        return emitted(options);
    }
    static Bytes emitted(const wire::TcpOptions& options) {
        Bytes bytes(wire::emitted_length(options));
        wire::emit(options, bytes);
        return bytes;
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
        const bool answers = flow.ours.port != kListening;
        if (answers) flags |= wire::kAck;
        if (flow.ecn) flags |= answers ? wire::TcpFlags(wire::kEce) : wire::kEce | wire::kCwr;
        wire::TcpOptions options;
        if (!flow.no_options) {
            options.mss = 1460;
            options.sack_permitted = true;
            options.window_scale = 7;
            if (flow.timestamps) options.timestamps = wire::TcpTimestamps{++flow.clock, flow.echo};
            if (flow.use_cookie && !flow.cookie.empty()) options.fast_open_cookie = flow.cookie;
            else if (flow.ask_cookie) options.fast_open_cookie = std::span<const std::byte>();
        }
        const std::size_t text = flow.syn_data ? 300 : 0;
        tcp(flow, flow.next_sequence, flow.acknowledged, flags, 65535, emitted(options), text);
        const std::uint32_t syn = flow.next_sequence++;
        flow.syn_answered = syn;
        turn();
        if (flow.syn_answered != syn) flow.next_sequence = flow.syn_answered;  // its data was taken, too
        tcp(flow, flow.next_sequence, flow.acknowledged, wire::kAck, 8192, usual_options(flow), 0);
        turn();
    }
    void habits(Flow& flow, std::uint8_t how) {
        flow.timestamps = (how & 1) != 0;
        flow.ecn = (how & 2) != 0;
        flow.ask_cookie = (how & 4) != 0;
        flow.use_cookie = (how & 8) != 0;
        flow.syn_data = (how & 16) != 0;
        flow.ce = (how & 32) != 0;
        flow.no_options = (how & 64) != 0;
    }
    /// Blocks from the last ACK on, as the input lays them; a duplicate ACK but for the input's word.
    void selective_ack(Flow& flow, fuzz::Input& in) {
        std::array<wire::SackBlock, 4> blocks;
        const std::uint8_t how = in.u8();
        const std::uint32_t ack = flow.acknowledged - in.u16();
        std::uint32_t at = ack;
        const std::size_t count = how & 3;
        for (wire::SackBlock& block : std::span(blocks).first(count)) {
            block.left = at + ((how & 4) != 0 ? static_cast<std::uint32_t>(in.i16()) : in.u16());
            block.right = at = block.left + in.u16();
        }
        const wire::TcpFlags flags = (how & 8) != 0 ? wire::kAck | wire::kEce : wire::TcpFlags(wire::kAck);
        tcp(flow, flow.next_sequence, ack, flags, 8192, usual_options(flow, std::span(blocks).first(count)), 0);
    }
    void acknowledge_all(Flow& flow) {
        tcp(flow, flow.next_sequence, flow.acknowledged, wire::kAck, 65535, usual_options(flow), 0);
        turn();
    }
    void urgent(Flow& flow, fuzz::Input& in) {
        const std::uint16_t pointer = in.u16();
        const std::size_t length = in.u16() % 1461;
        tcp(flow, flow.next_sequence, flow.acknowledged, wire::kAck | wire::kUrg, 8192, usual_options(flow), length, 0, pointer);
        flow.next_sequence += static_cast<std::uint32_t>(length);
    }
    /// SYNs of strangers: beyond the places for half-open ones cookies answer.
    void flood(std::uint8_t count) {
        Flow stranger = flows_[count & 1];
        for (unsigned i = 0; i < std::min<unsigned>(count, 40); ++i) {
            stranger.peers.port = static_cast<Port>(50000 + i);
            tcp(stranger, 77, 0, wire::kSyn, 1000, {}, 0);
        }
        turn();
    }
    /// Text as a device with GRO gives it: one packet made of several, in one piece of memory or in two.
    void merged(Flow& flow, fuzz::Input& in) {
        const std::size_t size = std::max<std::size_t>(in.u16() % 1461, 1), length = in.u16() % 60001;
        const std::uint8_t how = in.u8();
        const Bytes options = usual_options(flow);
        const auto sequence = flow.next_sequence + ((how & 1) != 0 ? static_cast<std::uint32_t>(in.i16()) : 0);
        const wire::TcpFlags flags = (how & 2) != 0 ? wire::kAck | wire::kFin : wire::kAck | wire::kPsh;
        const Bytes frame = frame_of(flow, wire::IpProtocol::kTcp,
                                     tcp_message(flow, sequence, flow.acknowledged, flags, 8192, options, length),
                                     flow.ce ? 3 : 0);
        const std::size_t headers = frame.size() - length;
        const std::size_t cut = (how & 4) != 0 ? std::min(headers + in.u16(), frame.size()) : frame.size();
        const Bytes rest(frame.begin() + static_cast<std::ptrdiff_t>(cut), frame.end());
        const std::span<const std::byte> piece(rest);
        fuzz::as_packet(std::span(frame).first(cut), [&](RxPacket packet) {
            packet.checksum = ChecksumState::kVerified;
            packet.length = static_cast<std::uint32_t>(frame.size());
            packet.segment_size = static_cast<std::uint16_t>(size);
            if (!rest.empty()) packet.rest = {&piece, 1};
            stack_.input(*eth0_, packet, now_);
        });
        if (sequence == flow.next_sequence) flow.next_sequence += static_cast<std::uint32_t>(length);
    }
    void stamped_text(Flow& flow, std::size_t length, std::uint8_t how) {
        length %= 1461;
        flow.clock += (how & 16) != 0 ? 0x70000000u : how & 15u;
        const wire::TcpFlags flags = (how & 32) != 0 ? wire::kAck | wire::kCwr : wire::TcpFlags(wire::kAck);
        tcp(flow, flow.next_sequence, flow.acknowledged, flags, 8192, usual_options(flow), length,
            static_cast<std::uint8_t>((how & 64) != 0 ? 3 : flow.ecn ? 2 : 0));
        flow.next_sequence += static_cast<std::uint32_t>(length);
    }
    static tcp::ListenerOptions listener_options(std::uint8_t how) {
        tcp::ListenerOptions options;
        options.congestion = static_cast<tcp::Congestion>(how % tcp::kCongestionCount);
        if ((how & 8) != 0) options.fast_open_queue = 3;
        if ((how & 16) != 0) options.defer_accept = 3s;
        if ((how & 32) != 0) options.keep_alive = true;
        if ((how & 64) != 0) options.max_segment = 600;
        if ((how & 128) != 0) options.receive_buffer = 4096;
        return options;
    }
    void listen_again(std::uint8_t how) {
        stack_.close(*listener_);
        listener_ = *stack_.listen({Address(), kListening}, true, listener_options(how), application_);
    }
    void device(std::uint8_t how) {
        eth0_->segmentation_limit = (how & 1) != 0 ? 65000 : 0;
        if ((how & 2) != 0) stack_.set_interface_state(1, (how & 4) == 0, (how & 8) != 0 ? 1280 : 1500);
        turn();
    }
    void socket_options(fuzz::Input& in) {
        tcp::Connection* const c = application_.pick(in.u8());
        const std::uint8_t what = in.u8();
        const std::uint16_t amount = in.u16();
        if (c == nullptr) return;
        if ((what & 0x80) != 0) return application_.urge(*c, amount);
        tcp::Options options;
        options.congestion = static_cast<tcp::Congestion>(what % tcp::kCongestionCount);
        if ((what & 8) != 0) options.max_pacing_rate = amount * 100u + 1u;
        if ((what & 16) != 0) options.receive_buffer = amount;
        if ((what & 32) != 0) options.max_segment = amount;
        if ((what & 64) != 0) options.tos = static_cast<std::uint8_t>(amount);
        c->set_options(options);
    }
    /// A connection of ours, perhaps with data in its SYN.
    void open_with(Flow& flow, fuzz::Input& in) {
        const std::uint8_t how = in.u8();
        tcp::Options options;
        options.congestion = static_cast<tcp::Congestion>(how % tcp::kCongestionCount);
        options.fast_open = (how & 8) != 0;
        tcp::Connection* const c = open(flow, options);
        if (c != nullptr && (how & 16) != 0) application_.send(*c, 700);
        turn();
    }
    void datagram_options(const Flow& flow, fuzz::Input& in) {
        const std::uint8_t how = in.u8();
        stack_.set_options(*udp_, {.merged = (how & 1) != 0, .errors = (how & 2) != 0,
                                   .path_mtu = static_cast<udp::PathMtu>(how >> 2 & 3)});
        if ((how & 16) != 0) stack_.connect_udp(*udp_, (how & 32) != 0 ? &flow.peers : nullptr);
        static const std::array<std::byte, 65536> kText{};
        const std::uint16_t length = in.u16();
        const std::span<const std::byte> payload(kText.data(), length);
        (void)stack_.send_datagram(*udp_, flow.peers, {&payload, 1}, length,
                                   {.segment_size = static_cast<std::uint16_t>(in.u16() % 1500), .ttl = in.u8(),
                                    .path_mtu = static_cast<udp::PathMtu>(how >> 2 & 3)}, now_);
        turn();
    }
    tcp::Connection* open(Flow& flow, const tcp::Options& options = {}) {
        if (flow.ours.port == kListening || application_.full()) return nullptr;
        const auto opened = stack_.connect(flow.ours, flow.peers, options, application_, now_);
        if (!opened) return nullptr;
        application_.add(**opened);
        return *opened;
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
            case 5: application_.send(*c, amount); break;
            case 6: application_.consume(*c, amount % 1461); break;
            case 7: application_.shut(*c); break;
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
                application_.close(*c, (amount & 1) != 0, (amount & 2) != 0);
        }
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
        std::uint16_t segment_size = 0;
        for (std::size_t i = 0; i < count; ++i) {
            const std::byte* const data = pool_.data(pending[i].chunk);
            if (frame.empty()) segment_size = pending[i].segment_size;
            frame.insert(frame.end(), data, data + pending[i].length);
            pool_.release(pending[i].chunk);
            if (pending[i].more) continue;
            check(frame, segment_size);
            last_frame_ = std::move(frame);
            frame.clear();
        }
        tx_.consume(count);
    }
    template <class View>
    void check_ip(const Bytes& frame, std::uint16_t segment_size) {
        const auto view = View::parse(std::span(frame).subspan(wire::kEthernetHeaderLength));
        CHECK(view.has_value());
        CHECK(view->total_length() + wire::kEthernetHeaderLength == frame.size());
        CHECK(segment_size != 0 || view->total_length() <= 1500);
        if (view->is_fragment()) return;
        const std::size_t transport = wire::kEthernetHeaderLength + view->header_length();
        const RxPacket packet{.head = frame, .rest = {}, .length = static_cast<std::uint32_t>(frame.size())};
        if (segment_size == 0) {
            CHECK(wire::verify_transport_checksum(packet, transport, view->payload_length(), view->source(),
                                                  view->destination(), view->protocol()));
        }
        if (view->protocol() != wire::IpProtocol::kTcp) return;
        const auto segment = wire::TcpView::parse(view->payload_in_head());
        CHECK(segment.has_value());
        const auto options = wire::TcpOptions::parse(segment->options());
        CHECK(options.has_value());
        if (segment_size != 0) {  // whoever cuts it completes the sum of the pseudo-header
            CHECK(segment->payload_in_head().size() > segment_size);
            CHECK(transport + segment->header_length() - wire::kEthernetHeaderLength + segment_size <= 1500);
            const auto sum = wire::pseudo_header_sum(view->source(), view->destination(), view->protocol(),
                                                     static_cast<std::uint32_t>(view->payload_length()));
            CHECK(wire::load_be16(frame.data() + transport + 16) == static_cast<std::uint16_t>(~wire::checksum(sum)));
        }
        for (Flow& flow : flows_)
            if (flow.ours == Endpoint{view->source(), segment->source()} &&
                flow.peers == Endpoint{view->destination(), segment->destination()} && !segment->flags().rst())
                hear(flow, *segment, *options);
    }
    static void hear(Flow& flow, const wire::TcpView& segment, const wire::TcpOptions& options) {
        flow.acknowledged = segment.sequence() + segment.segment_length();
        if (options.timestamps) flow.echo = options.timestamps->value;
        if (segment.flags().syn()) {
            flow.first = segment.sequence() + 1;
            if (segment.flags().ack()) flow.syn_answered = segment.acknowledgment();
            if (options.fast_open_cookie && !options.fast_open_cookie->empty())
                flow.cookie.assign(options.fast_open_cookie->begin(), options.fast_open_cookie->end());
        }
        // The SYN-ACK was lost (the interface was down), and a challenge ACK tells where the stream begins.
        if (!flow.first && segment.segment_length() == 0) flow.first = segment.sequence();
        const std::uint32_t place = segment.sequence() + (segment.flags().syn() ? 1 : 0);
        const auto text = segment.payload_in_head();
        CHECK(text.empty() || flow.first.has_value());
        for (std::size_t i = 0; i < text.size(); ++i) CHECK(text[i] == static_cast<std::byte>(place + i - *flow.first));
    }
    void check(const Bytes& frame, std::uint16_t segment_size) {
        const auto ethernet = wire::EthernetView::parse(frame);
        CHECK(ethernet.has_value());
        CHECK(ethernet->source() == kOurs);
        if (ethernet->ether_type() == wire::EtherType::kIpv4) check_ip<wire::Ipv4View>(frame, segment_size);
        else check_ip<wire::Ipv6View>(frame, segment_size);
    }

    static StackConfig small() {
        StackConfig config = fuzz::small_stack(8);
        config.max_connections = 32;
        config.max_listeners = 4;
        config.default_receive_buffer = 32 * 1024;
        config.max_receive_buffer = 64 * 1024;
        config.ecn = tcp::EcnMode::kOn;
        config.fast_open_server = true;
        return config;
    }

    FramePool pool_{256};
    TxQueue tx_{pool_};
    Counters counters_;
    fuzz::NoWorld outside_;
    Rng rng_{1};
    fuzz::Application application_;
    Stack stack_{small(), outside_, outside_, counters_, rng_};
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
    return culvert::fuzz::run<culvert::stack::World>(data, size, 400);
}
