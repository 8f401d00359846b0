// TCP tests that read like a page of a protocol book:
//
//   StackTest t;
//   t.connect();
//   t.expect(syn().seq(0).mss(1460));
//   t.inject(syn_ack().seq(0).ack(1));
//   t.expect(ack().seq(1).ack(1));
//
// Sequence numbers are relative: ours to our ISS (learned from the first SYN we send), the peer's to kPeerIss. The clock
// is virtual. A failed expectation prints every step so far.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <optional>
#include <sstream>

#include "daemon/stack/icmp.h"
#include "daemon/wire/describe.h"
#include "daemon/wire/ethernet.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"
#include "daemon/wire/tcp.h"
#include "tests/support/tcp_host.h"

namespace culvert::test {

/// A segment to inject, or what is expected of one: what is not said is not compared (payload: none, unless said).
struct Seg {
    explicit Seg(wire::TcpFlags control) : flags(control) {}

    wire::TcpFlags flags;
    std::optional<std::uint32_t> seq_, ack_;
    std::optional<std::uint32_t> window_;  // as on the wire
    std::optional<std::uint16_t> mss_;
    std::optional<std::uint8_t> wscale_;
    std::optional<bool> sack_ok_;
    std::optional<std::uint32_t> ts_, ts_echo_;
    std::optional<bool> has_ts_, psh_;
    std::vector<std::pair<std::uint32_t, std::uint32_t>> sacks_;
    bool compare_sacks_ = false;
    std::string data_;
    std::optional<std::size_t> length_;
    std::optional<wire::Ecn> ecn_;
    std::optional<std::string> cookie_;  // Fast Open
    bool no_cookie_ = false;
    std::uint16_t urgent_ = 0;

    Seg& seq(std::uint32_t v) { seq_ = v; return *this; }
    Seg& ack(std::uint32_t v) { ack_ = v; flags |= wire::kAck; return *this; }
    Seg& window(std::uint32_t v) { window_ = v; return *this; }
    Seg& mss(std::uint16_t v) { mss_ = v; return *this; }
    Seg& wscale(std::uint8_t v) { wscale_ = v; return *this; }
    Seg& sack_ok(bool v = true) { sack_ok_ = v; return *this; }
    /// Injected: TSval and TSecr. Expected: compared.
    Seg& ts(std::uint32_t value, std::uint32_t echo) { ts_ = value; ts_echo_ = echo; has_ts_ = true; return *this; }
    Seg& ts_echo(std::uint32_t echo) { ts_echo_ = echo; return *this; }
    Seg& no_ts() { has_ts_ = false; return *this; }
    Seg& sack(std::uint32_t left, std::uint32_t right) { sacks_.emplace_back(left, right); compare_sacks_ = true; return *this; }
    Seg& no_sack() { compare_sacks_ = true; return *this; }
    Seg& data(std::string v) { data_ = std::move(v); return *this; }
    Seg& len(std::size_t v) { length_ = v; return *this; }
    Seg& psh(bool v = true) { psh_ = v; return *this; }
    /// Injected: the ECN field of the IP header. Expected: compared.
    Seg& ecn(wire::Ecn v) { ecn_ = v; return *this; }
    Seg& ce() { return ecn(wire::Ecn::kCongestion); }
    Seg& ect() { return ecn(wire::Ecn::kCapable0); }
    Seg& not_ect() { return ecn(wire::Ecn::kNotCapable); }
    Seg& ece() { flags |= wire::kEce; return *this; }
    Seg& cwr() { flags |= wire::kCwr; return *this; }
    /// Fast Open. Empty: a request.
    Seg& cookie(std::string v) { cookie_ = std::move(v); return *this; }
    Seg& no_cookie() { no_cookie_ = true; return *this; }
    /// URG, and the pointer.
    Seg& urg(std::uint16_t pointer) { flags |= wire::kUrg; urgent_ = pointer; return *this; }
    Seg& fin() { flags |= wire::kFin; return *this; }
};

inline Seg syn() { return Seg(wire::kSyn); }
inline Seg syn_ack() { return Seg(wire::kSyn | wire::kAck); }
inline Seg ack() { return Seg(wire::kAck); }
inline Seg fin() { return Seg(wire::kFin | wire::kAck); }
inline Seg rst() { return Seg(wire::kRst); }

/// A segment that our TCP has sent.
struct Sent {
    wire::TcpFlags flags;
    std::uint32_t seq = 0, ack = 0, window = 0;
    std::uint16_t urgent = 0;
    wire::TcpOptions options;
    std::string data;
    std::uint8_t tos = 0;
    std::uint8_t ttl = 0;
    std::optional<std::string> cookie;  // Fast Open
    Endpoint from, to;
    std::string text;
};

class StackTest : public stack::tcp::ListenerOwner {
public:
    static constexpr std::uint32_t kPeerIss = 0xfffffe00;  // wraps early, so every test crosses the wrap

    explicit StackTest(HostConfig config = with_defaults({})) : host(config), local{config.address4, 40000} {}
    static HostConfig with_defaults(HostConfig config) {
        if (config.stack.secret[0] == 0) config.stack = small_stack_config();
        return config;
    }
    /// Everything over IPv6 from here on.
    StackTest& over_ipv6() {
        local.address = *Address::parse("fd00::1");
        remote.address = *Address::parse("fd00::2");
        return *this;
    }
    ~StackTest() override {
        if (!::testing::Test::HasFailure()) {
            EXPECT_TRUE(outbox_.empty()) << "sent and not expected: " << outbox_.front().text << transcript();
        }
    }

    // --- the application ---------------------------------------------------------------------------------------------
    stack::tcp::Connection& connect(stack::tcp::Options options = {}) {
        auto opened = host.tcp.connect(local, remote, options, app, now);
        EXPECT_TRUE(opened.has_value());
        connection = *opened;
        note("connect");
        return *connection;
    }
    stack::tcp::Listener& listen(const stack::tcp::Options& options = {}, Port port = 80) {
        return listen_with(stack::tcp::ListenerOptions(options), port);
    }
    stack::tcp::Listener& listen_with(const stack::tcp::ListenerOptions& options, Port port = 80) {
        local.port = port;
        remote.port = 50000;
        auto made = host.tcp.listen({local.address, port}, false, options, *this);
        EXPECT_TRUE(made.has_value());
        note("listen");
        return **made;
    }
    bool can_accept() override { return room_to_accept; }
    stack::tcp::ConnectionOwner* on_accept(stack::tcp::Connection& opened) override {
        connection = &opened;
        ++accepted;
        return refuse ? nullptr : &app;
    }
    StackTest& send(std::string_view text, bool more = false) {
        app.send(*connection, text, more);
        note("send " + std::to_string(text.size()));
        return *this;
    }
    StackTest& shutdown_write() {
        note("shutdown_write");
        connection->shutdown_write();
        return *this;
    }
    StackTest& close(bool unread = false, bool linger_zero = false) {
        note("close");
        orphanage.adopt(app);
        connection->close(orphanage, unread, linger_zero);
        return *this;
    }
    /// ICMP says of the segment that begins there why it did not arrive; `next_hop_mtu` not 0: it was too big. True if it is believed.
    bool icmp_error(std::uint32_t sequence, int error, std::uint32_t next_hop_mtu = 0) {
        return host.tcp.icmp_error(
            {.local = local, .remote = remote, .sequence = sequence, .error = error, .next_hop_mtu = next_hop_mtu}, nullptr, now);
    }
    StackTest& consumed(std::uint32_t bytes) {
        note("consumed " + std::to_string(bytes));
        connection->consumed(bytes);
        return *this;
    }

    // --- the wire ----------------------------------------------------------------------------------------------------
    /// From `remote` to `local`; sequence numbers relative.
    StackTest& inject(const Seg& segment) { return inject_raw(frame_of(segment)); }
    StackTest& inject_raw(const Bytes& frame) {
        note("in   " + wire::describe(frame));
        host.receive(frame, now);
        return *this;
    }
    Bytes frame_of(const Seg& segment) const {
        wire::TcpOptions options;
        options.mss = segment.mss_;
        options.window_scale = segment.wscale_;
        options.sack_permitted = segment.sack_ok_.value_or(false);
        if (segment.cookie_) options.fast_open_cookie = std::as_bytes(std::span(*segment.cookie_));
        if (segment.ts_) options.timestamps = {.value = *segment.ts_, .echo = *segment.ts_echo_};
        for (const auto& [left, right] : segment.sacks_)
            options.sack_blocks[options.sack_count++] = {.left = our_iss + left, .right = our_iss + right};
        const wire::TcpHeader header{.source = remote.port,
                                     .destination = local.port,
                                     .sequence = kPeerIss + segment.seq_.value_or(0),
                                     .acknowledgment = segment.ack_ ? our_iss + *segment.ack_ : 0,
                                     .flags = segment.flags,
                                     .window = static_cast<std::uint16_t>(segment.window_.value_or(0xffff)),
                                     .urgent = segment.urgent_};
        const Bytes payload = segment.length_ ? Bytes(*segment.length_, std::byte{'x'}) : bytes_of(segment.data_);
        const std::size_t tcp = wire::tcp_header_length(options);
        const bool v4 = local.address.is_v4();
        const std::size_t ip = v4 ? 20 : 40;
        Bytes frame(14 + ip + tcp + payload.size());
        wire::emit(wire::EthernetHeader{host.eth0.mac, MacAddress{{2, 0, 0, 0, 0, 2}},
                                        v4 ? wire::EtherType::kIpv4 : wire::EtherType::kIpv6},
                   frame);
        const auto at_ip = std::span(frame).subspan(14);
        const auto tos = static_cast<std::uint8_t>(segment.ecn_.value_or(wire::Ecn::kNotCapable));
        if (v4)
            wire::emit(wire::Ipv4Header{.source = remote.address, .destination = local.address, .traffic_class = tos},
                       tcp + payload.size(), at_ip);
        else
            wire::emit(wire::Ipv6Header{.source = remote.address, .destination = local.address, .traffic_class = tos},
                       tcp + payload.size(), at_ip);
        const auto at_tcp = at_ip.subspan(ip);
        wire::emit(header, options, at_tcp);
        std::ranges::copy(payload, at_tcp.begin() + static_cast<std::ptrdiff_t>(tcp));
        wire::finish_tcp_checksum(at_tcp.first(tcp), wire::sum_bytes(payload), payload.size(), remote.address, local.address);
        return frame;
    }

    /// The next segment out is this one.
    StackTest& expect(const Seg& wanted) {
        flush();
        if (outbox_.empty()) {
            ADD_FAILURE() << "expected " << describe(wanted) << ", nothing was sent" << transcript();
            return *this;
        }
        const Sent sent = outbox_.front();
        outbox_.pop_front();
        if ((sent.flags.syn() && wanted.flags.syn()) && !iss_known) {
            our_iss = sent.seq;
            iss_known = true;
        }
        std::ostringstream wrong;
        const auto compare = [&](const char* what, auto got, auto expected) {
            if (got != expected) wrong << " " << what << " is " << +got << ", not " << +expected << ";";
        };
        compare("flags", sent.flags.without(wire::kPsh).bits, wanted.flags.without(wire::kPsh).bits);
        if (wanted.seq_) compare("seq", sent.seq - our_iss, *wanted.seq_);
        if (wanted.ack_) compare("ack", sent.ack - kPeerIss, *wanted.ack_);
        if (wanted.window_) compare("window", sent.window, *wanted.window_);
        compare("urgent pointer", sent.urgent, wanted.urgent_);
        if (wanted.psh_) compare("PSH", sent.flags.psh(), *wanted.psh_);
        if (wanted.ecn_) compare("ECN field", sent.tos & 3, static_cast<int>(*wanted.ecn_));
        if (wanted.mss_) compare("mss", sent.options.mss.value_or(0), *wanted.mss_);
        if (wanted.wscale_) compare("wscale", sent.options.window_scale.value_or(255), *wanted.wscale_);
        if (wanted.sack_ok_) compare("sack ok", sent.options.sack_permitted, *wanted.sack_ok_);
        if (wanted.has_ts_) compare("has ts", sent.options.timestamps.has_value(), *wanted.has_ts_);
        if (wanted.ts_echo_ && sent.options.timestamps) compare("ts echo", sent.options.timestamps->echo, *wanted.ts_echo_);
        if (wanted.length_)
            compare("length", sent.data.size(), *wanted.length_);
        else if (sent.data != wanted.data_)
            wrong << " data is \"" << sent.data.substr(0, 60) << "\" (" << sent.data.size() << "), not \"" << wanted.data_ << "\";";
        if (wanted.cookie_ && sent.cookie != wanted.cookie_) wrong << " the Fast Open cookie differs;";
        if (wanted.no_cookie_ && sent.cookie) wrong << " there is a Fast Open option;";
        if (wanted.compare_sacks_) {
            std::vector<std::pair<std::uint32_t, std::uint32_t>> got;
            for (const auto& block : sent.options.sack()) got.emplace_back(block.left - kPeerIss, block.right - kPeerIss);
            if (got != wanted.sacks_) {
                wrong << " sack is";
                for (const auto& [left, right] : got) wrong << " " << left << "-" << right;
                wrong << ", not as expected;";
            }
        }
        if (!wrong.str().empty()) ADD_FAILURE() << "segment differs:" << wrong.str() << transcript();
        last = sent;
        return *this;
    }
    StackTest& expect_nothing() {
        flush();
        if (!outbox_.empty()) {
            ADD_FAILURE() << "sent, though nothing was expected: " << outbox_.front().text << transcript();
            outbox_.clear();
        }
        return *this;
    }
    /// Everything sent so far is looked at by nobody.
    StackTest& skip_output() {
        flush();
        outbox_.clear();
        return *this;
    }
    /// Everything sent so far.
    std::vector<Sent> take_all() {
        flush();
        std::vector<Sent> all(std::make_move_iterator(outbox_.begin()), std::make_move_iterator(outbox_.end()));
        outbox_.clear();
        return all;
    }
    std::size_t segments_waiting() {
        flush();
        return outbox_.size();
    }

    /// Time passes; timers fire when they are due.
    StackTest& after(Duration duration) {
        flush();
        const Instant target = now + duration;
        for (;;) {
            const Instant next = host.tcp.next_deadline();
            if (next > target) break;
            now = std::max(now, next) ;
            host.tcp.advance(now);
            flush();
            if (host.tcp.next_deadline() <= now) now += TimerWheel::kTick;
        }
        now = std::max(now, target);
        note("-- " + std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(now - start).count()) + " ms");
        host.tcp.advance(now);
        flush();
        return *this;
    }
    StackTest& flush() {
        host.tcp.flush(now);
        for (const Bytes& frame : host.take_frames()) take(frame);
        return *this;
    }

    // --- usual beginnings ---------------------------------------------------------------------------------------------
    /// An established connection, opened by us. Our data starts at 1, so does the peer's.
    StackTest& established(stack::tcp::Options options = {}, Seg answer = syn_ack().mss(1460).sack_ok()) {
        connect(options);
        expect(syn().seq(0));
        if (round_trip > Duration::zero()) after(round_trip);
        inject(answer.seq(0).ack(1));
        expect(ack().seq(1).ack(1));
        EXPECT_TRUE(app.established) << transcript();
        return *this;
    }
    /// An established connection, opened by the peer.
    StackTest& accepted_connection(stack::tcp::Options options = {}, Seg request = syn().mss(1460).sack_ok()) {
        listen(options);
        inject(request.seq(0));
        expect(syn_ack().seq(0).ack(1));
        inject(ack().seq(1).ack(1));
        EXPECT_NE(connection, nullptr) << transcript();
        expect_nothing();
        return *this;
    }
    std::uint64_t dropped(Drop reason) const { return host.counters.dropped(reason); }
    stack::tcp::State state() const { return connection->state(); }
    std::string transcript() const {
        std::string all = "\n--- transcript ---\n";
        for (const std::string& line : lines_) all += line + "\n";
        return all;
    }

    TcpHost host;
    App app;
    App orphanage;
    Endpoint local;
    Endpoint remote{Address::v4(10, 0, 0, 2), 80};
    stack::tcp::Connection* connection = nullptr;
    Duration round_trip{0};  // of the handshake in established()
    const Instant start{1h};
    Instant now{1h};
    std::uint32_t our_iss = 0;
    bool iss_known = false;
    bool room_to_accept = true;
    bool refuse = false;
    int accepted = 0;
    Sent last;

private:
    void note(std::string line) { lines_.push_back(std::move(line)); }
    void take(const Bytes& frame) {
        note("out  " + wire::describe(frame));
        const bool v4 = local.address.is_v4();
        const auto tcp = std::span<const std::byte>(frame).subspan(v4 ? 34 : 54);
        const auto view = wire::TcpView::parse(tcp);
        ASSERT_TRUE(view.has_value());
        Sent sent;
        sent.flags = view->flags();
        sent.seq = view->sequence();
        sent.ack = view->acknowledgment();
        sent.window = view->window();
        sent.urgent = view->urgent();
        sent.options = *wire::TcpOptions::parse(view->options());
        if (const auto cookie = std::exchange(sent.options.fast_open_cookie, std::nullopt))
            sent.cookie.emplace(reinterpret_cast<const char*>(cookie->data()), cookie->size());
        EXPECT_TRUE(sent.flags.syn() || !sent.options.mss) << transcript();  // [RFC9293 3.7.1 MUST-65] the same
        const auto payload = view->payload_in_head();
        sent.data.assign(reinterpret_cast<const char*>(payload.data()), payload.size());
        sent.text = lines_.back();
        const RxPacket packet{.head = frame, .rest = {}, .length = static_cast<std::uint32_t>(frame.size()),
                              .checksum = ChecksumState::kUnverified};
        if (v4) {
            const auto ip = wire::Ipv4View::parse(std::span<const std::byte>(frame).subspan(14));
            ASSERT_TRUE(ip.has_value());
            sent.tos = ip->traffic_class();
            sent.ttl = ip->hop_limit();
            sent.from = {ip->source(), view->source()};
            sent.to = {ip->destination(), view->destination()};
        } else {
            const auto ip = wire::Ipv6View::parse(std::span<const std::byte>(frame).subspan(14));
            ASSERT_TRUE(ip.has_value());
            sent.tos = ip->traffic_class();
            sent.ttl = ip->hop_limit();
            sent.from = {ip->source(), view->source()};
            sent.to = {ip->destination(), view->destination()};
        }
        // [RFC9293 3.1 MUST-2] of every segment in every test
        EXPECT_TRUE(wire::verify_transport_checksum(packet, v4 ? 34 : 54, tcp.size(), sent.from.address, sent.to.address,
                                                    wire::IpProtocol::kTcp))
            << "checksum" << transcript();
        outbox_.push_back(std::move(sent));
    }
    static std::string describe(const Seg& segment) {
        std::ostringstream text;
        if (segment.flags.syn()) text << "SYN ";
        if (segment.flags.fin()) text << "FIN ";
        if (segment.flags.rst()) text << "RST ";
        if (segment.flags.ack()) text << "ACK ";
        if (segment.seq_) text << "seq " << *segment.seq_ << " ";
        if (segment.ack_) text << "ack " << *segment.ack_ << " ";
        text << "len " << segment.length_.value_or(segment.data_.size());
        return text.str();
    }

    std::deque<Sent> outbox_;
    std::vector<std::string> lines_;
};

}  // namespace culvert::test
