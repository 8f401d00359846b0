// Two TCPs back to back over a bad link, seeded: loss, delay, reordering, duplication, corruption, a narrow and short
// queue. Whatever happens on the way, the bytes that arrive are the bytes that were sent, in order; in the end nothing
// is left: no connection, chunk, frame, timer, port.
//
// A failure prints its seed; CULVERT_SEED=n runs that one alone, with CULVERT_SEED_COUNT=m those from there on.
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <queue>

#include "tests/support/tcp_host.h"

namespace culvert::test {
namespace {

using stack::tcp::Connection;
using stack::tcp::State;

/// Byte `offset` of stream `stream`.
std::byte stream_byte(std::uint64_t stream, std::uint64_t offset) {
    const std::uint64_t x = (offset + 1) * 0x9e3779b97f4a7c15u ^ stream * 0xc2b2ae3d27d4eb4fu;
    return static_cast<std::byte>(x >> 53);
}

struct Weather {
    double loss, duplicate, reorder, corrupt;
    Duration delay, jitter;
    Duration per_kilobyte;  // serialisation; 0: infinitely fast
    Duration longest_queue;
};

/// One direction.
class Link {
public:
    Link(const Weather& weather, Rng& rng) : weather_(weather), rng_(rng) {}

    void carry(Bytes frame, Instant now) {
        if (rng_.happens(weather_.loss)) return;
        const Instant begins = std::max(now, busy_until_);
        if (begins - now > weather_.longest_queue) return;  // tail drop
        busy_until_ = begins + weather_.per_kilobyte * static_cast<std::int64_t>(frame.size()) / 1024;
        if (rng_.happens(weather_.corrupt)) frame[rng_.below(frame.size())] ^= static_cast<std::byte>(1u << rng_.below(8));
        if (rng_.happens(weather_.duplicate)) put(frame, busy_until_);
        put(std::move(frame), busy_until_);
    }
    Instant next() const { return flying_.empty() ? kNever : flying_.top().at; }
    /// The next frame that has arrived; empty if none.
    Bytes arrive(Instant now) {
        if (flying_.empty() || flying_.top().at > now) return {};
        Bytes frame = std::move(const_cast<Flying&>(flying_.top()).frame);
        flying_.pop();
        return frame;
    }

private:
    struct Flying {
        Instant at;
        std::uint64_t order;
        Bytes frame;
        bool operator<(const Flying& other) const { return std::tie(other.at, other.order) < std::tie(at, order); }
    };
    void put(Bytes frame, Instant sent) {
        Instant at = sent + weather_.delay;
        if (rng_.happens(weather_.reorder) && weather_.jitter > Duration::zero())
            at += Duration(rng_.below(static_cast<std::uint64_t>(weather_.jitter.count())));
        flying_.push({at, order_++, std::move(frame)});
    }
    Weather weather_;
    Rng& rng_;
    Instant busy_until_{};
    std::uint64_t order_ = 0;
    std::priority_queue<Flying> flying_;
};

/// One end's application: sends its stream in odd pieces, reads by fits and starts, checks every byte.
class Peer final : public stack::tcp::ConnectionOwner {
public:
    Peer(std::uint64_t out, std::uint64_t bytes_out, std::uint64_t in, std::uint64_t bytes_in, Rng& rng)
        : out_(out), bytes_out_(bytes_out), in_(in), bytes_in_(bytes_in), rng_(rng) {}

    void on_established(Connection&) override { maybe_vanish(0.01); }
    std::uint32_t on_data(Connection&, stack::Payload payload, std::uint32_t length) override {
        EXPECT_FALSE(orphaned_);
        // Now and then there is no room for all of it.
        const std::uint32_t take = rng_.happens(0.02) ? static_cast<std::uint32_t>(rng_.below(length + 1)) : length;
        std::uint32_t left = take;
        for (const auto& piece : payload)
            for (const std::byte b : piece.first(std::min<std::size_t>(left, piece.size()))) {
                if (b != stream_byte(in_, received_)) ++wrong_;
                ++received_;
                --left;
            }
        unread_ += take;
        maybe_vanish(0.005);
        return take;
    }
    void on_end_of_stream(Connection&) override {
        EXPECT_FALSE(orphaned_);
        EXPECT_FALSE(end_);
        end_ = true;
        maybe_vanish(0.05);
    }
    void on_released(Connection&, stack::SendChunk* first) override {
        for (; first != nullptr;) {
            auto* const next = first->next;
            chunks_.erase(first);
            first = next;
        }
        maybe_vanish(0.005);
    }
    void on_acknowledged(Connection&, std::uint32_t bytes) override {
        acknowledged_ += bytes;
        maybe_vanish(0.005);
    }
    void on_closed(Connection&, int error) override {
        EXPECT_FALSE(closed_);
        closed_ = true;
        error_ = error;
        connection = nullptr;
    }

    void act() {
        maybe_vanish(0.01);
        if (connection == nullptr || orphaned_) return;
        if (unread_ > 0 && rng_.happens(0.7)) {
            const auto n = static_cast<std::uint32_t>(rng_.happens(0.5) ? unread_ : 1 + rng_.below(unread_));
            unread_ -= n;
            connection->consumed(n);
        }
        while (connection != nullptr && sent_ < bytes_out_ && chunks_.size() < 40 && rng_.happens(0.8)) send_piece();
        if (connection != nullptr && sent_ == bytes_out_ && !shut_ && rng_.happens(0.5)) {
            shut_ = true;
            connection->shutdown_write();
        }
    }
    bool done() const { return closed_; }
    void check(const char* who) const {
        EXPECT_EQ(wrong_, 0u) << who;
        EXPECT_EQ(received_, bytes_in_) << who;
        EXPECT_EQ(acknowledged_, bytes_out_) << who;
        EXPECT_TRUE(end_) << who;
        EXPECT_EQ(error_, 0) << who;
        EXPECT_TRUE(chunks_.empty()) << who;
    }
    std::string describe() const {
        return "sent " + std::to_string(sent_) + "/" + std::to_string(bytes_out_) + " acked " +
               std::to_string(acknowledged_) + " received " + std::to_string(received_) + "/" +
               std::to_string(bytes_in_) + (end_ ? " end" : "") + (closed_ ? " closed" : "") +
               (connection != nullptr ? " state " + std::to_string(static_cast<int>(connection->state())) : "");
    }

    /// What arrived is at least a true beginning, and nothing is out.
    void check_torn(const char* who) const {
        EXPECT_EQ(wrong_, 0u) << who;
        EXPECT_LE(received_, bytes_in_) << who;
        EXPECT_LE(acknowledged_, bytes_out_) << who;
        EXPECT_TRUE(closed_) << who;
        EXPECT_TRUE(chunks_.empty()) << who;
    }

    Connection* connection = nullptr;
    Instant next_action{};
    bool erratic = false;  // may abort or close at any moment, also in the middle of a call

private:
    void maybe_vanish(double chance) {
        if (!erratic || connection == nullptr || orphaned_ || !rng_.happens(chance)) return;
        if (rng_.happens(0.4)) {
            connection->abort();
        } else {
            orphaned_ = true;
            connection->close(*this, rng_.happens(0.3), rng_.happens(0.1));
        }
    }
    void send_piece() {
        const std::uint64_t n = std::min(bytes_out_ - sent_, rng_.below(6000));
        auto entry = std::make_unique<Entry>();
        entry->bytes.resize(n);
        for (std::uint64_t i = 0; i < n; ++i) entry->bytes[i] = stream_byte(out_, sent_ + i);
        entry->chunk.data = entry->bytes.data();
        entry->chunk.length = static_cast<std::uint32_t>(n);
        sent_ += n;
        auto* const chunk = &entry->chunk;
        chunks_.emplace(chunk, std::move(entry));
        connection->send(chunk, chunk);
    }
    struct Entry {
        stack::SendChunk chunk;
        Bytes bytes;
    };
    std::map<stack::SendChunk*, std::unique_ptr<Entry>> chunks_;
    std::uint64_t out_, bytes_out_, in_, bytes_in_;
    Rng& rng_;
    std::uint64_t sent_ = 0, received_ = 0, acknowledged_ = 0, wrong_ = 0;
    std::uint64_t unread_ = 0;
    bool end_ = false, closed_ = false, shut_ = false, orphaned_ = false;
    int error_ = -1;
};

class Simulation : public stack::tcp::ListenerOwner {
public:
    Simulation(std::uint64_t seed, bool erratic)
        : erratic_(erratic),
          rng_(seed),
          weather_(draw()),
          mtu_(rng_.below(4) == 0 ? (rng_.below(2) == 0 ? 9000u : 65535u) : 1500u),
          client_(host_config(1)),
          server_(host_config(2)),
          to_server_(weather_, rng_),
          to_client_(weather_, rng_),
          v6_(rng_.below(2) == 0) {}

    bool can_accept() override { return !rng_.happens(0.05); }
    stack::tcp::ConnectionOwner* on_accept(Connection& opened) override {
        const auto& [out, in] = sizes_[opened.remote().port - kFirstPort];
        // A flow may be accepted twice: when the client's last ACK of the handshake found an old half-open one.
        auto& peer = servers_.emplace_back(
            std::make_unique<Peer>(opened.remote().port * 2 + 1, in, opened.remote().port * 2, out, rng_));
        peer->connection = &opened;
        peer->erratic = erratic_;
        return peer.get();
    }

    struct Totals {
        std::uint64_t bytes = 0, segments = 0, retransmits = 0, timeouts = 0, fast_retransmits = 0, out_of_order = 0,
                      probes = 0, no_frame = 0;
        Totals& operator+=(const Totals& other) {
            bytes += other.bytes;
            segments += other.segments;
            retransmits += other.retransmits;
            timeouts += other.timeouts;
            fast_retransmits += other.fast_retransmits;
            out_of_order += other.out_of_order;
            probes += other.probes;
            no_frame += other.no_frame;
            return *this;
        }
    };
    Totals totals() const {
        Totals totals;
        for (const auto& [out, in] : sizes_) totals.bytes += out + in;
        for (const TcpHost* host : {&client_, &server_}) {
            const Counters& c = host->counters;
            totals += {.bytes = 0,
                       .segments = c.tcp_segments_out,
                       .retransmits = c.tcp_retransmits,
                       .timeouts = c.tcp_timeouts,
                       .fast_retransmits = c.tcp_fast_retransmits,
                       .out_of_order = c.tcp_out_of_order,
                       .probes = c.tcp_zero_window_probes,
                       .no_frame = c.dropped(Drop::kTxNoFrame)};
        }
        return totals;
    }

    void run() {
        const Address server = v6_ ? *Address::parse("fd00::2") : Address::v4(10, 0, 0, 2);
        const Address client = v6_ ? *Address::parse("fd00::1") : Address::v4(10, 0, 0, 1);
        auto listener = server_.tcp.listen({server, 80}, false, options(), *this);
        ASSERT_TRUE(listener.has_value());
        const std::size_t count = 1 + rng_.below(10);
        for (std::size_t i = 0; i < count; ++i)
            sizes_.emplace_back(rng_.below(std::uint64_t{1} << (4 + rng_.below(17))),
                                rng_.below(std::uint64_t{1} << (4 + rng_.below(17))));
        for (std::size_t i = 0; i < count; ++i) {
            const Port port = static_cast<Port>(kFirstPort + i);
            auto& peer = clients_.emplace_back(
                std::make_unique<Peer>(port * 2, sizes_[i].first, port * 2 + 1, sizes_[i].second, rng_));
            auto opened = client_.tcp.connect({client, port}, {server, 80}, options(), *peer, now_);
            ASSERT_TRUE(opened.has_value());
            peer->connection = *opened;
            peer->erratic = erratic_;
        }
        turn();
        const Instant horizon = now_ + 2h;
        while (!all_done() && now_ < horizon) step();
        for (const auto& peer : clients_)
            erratic_ ? peer->check_torn(("client " + peer->describe()).c_str())
                     : peer->check(("client " + peer->describe()).c_str());
        for (const auto& peer : servers_)
            erratic_ ? peer->check_torn(("server " + peer->describe()).c_str())
                     : peer->check(("server " + peer->describe()).c_str());
        if (!erratic_) {
            EXPECT_EQ(servers_.size(), clients_.size());
        }

        server_.tcp.close(**listener);
        for (const Instant end = now_ + 5min; now_ < end && next() != kNever;) step();  // TIME-WAIT, stray frames
        for (TcpHost* host : {&client_, &server_}) {
            const auto usage = host->tcp.usage();
            EXPECT_EQ(usage.connections, 0u);
            EXPECT_EQ(usage.half_open, 0u);
            EXPECT_EQ(usage.time_wait, 0u);
            EXPECT_EQ(usage.flows, 0u);
            EXPECT_EQ(usage.reassembly_pieces, 0u);
            EXPECT_EQ(usage.sack_boards, 0u);
            EXPECT_EQ(usage.flight_pieces, 0u);
            EXPECT_EQ(usage.ports, 0u);
            EXPECT_TRUE(host->ports.held.empty());
            EXPECT_EQ(host->tcp.next_deadline(), kNever);
            EXPECT_EQ(host->pool.available(), host->pool.count());
            EXPECT_EQ(host->counters.tcp_established, 0u);
            EXPECT_EQ(host->counters.tcp_time_wait, 0u);
        }
    }

private:
    static constexpr Port kFirstPort = 10000;

    Weather draw() {
        const auto chance = [&](double most) { return rng_.happens(0.3) ? 0 : most * static_cast<double>(rng_.below(1000)) / 1000; };
        const auto span = [&](std::uint64_t ms) { return std::chrono::microseconds(rng_.below(ms * 1000 + 1)); };
        Weather w{};
        w.loss = chance(0.08);
        w.duplicate = chance(0.05);
        w.reorder = chance(0.3);
        w.corrupt = chance(0.01);
        w.delay = span(rng_.happens(0.5) ? 1 : 40);
        w.jitter = span(20);
        w.per_kilobyte = rng_.happens(0.5) ? Duration::zero() : Duration(span(1));
        w.longest_queue = 5ms + span(100);
        return w;
    }
    HostConfig host_config(std::uint8_t last) {
        HostConfig config;
        config.address4 = Address::v4(10, 0, 0, last);
        config.address6 = *Address::parse("fd00::" + std::to_string(last));
        config.mac = MacAddress{{2, 0, 0, 0, 0, last}};
        config.peer_mac = MacAddress{{2, 0, 0, 0, 0, static_cast<std::uint8_t>(3 - last)}};
        config.mtu = mtu_;
        config.frames = rng_.happens(0.2) ? (mtu_ == 65535 ? 24 : 6) : 4096;  // also with too few
        config.seed = rng_.next();
        config.stack = small_stack_config();
        config.stack.secret[0] = rng_.next();
        config.stack.reassembly_chunks = rng_.happens(0.2) ? 32 : 1024;
        return config;
    }
    stack::tcp::Options options() {
        stack::tcp::Options options;
        if (erratic_) {  // a peer that vanished without a trace must be noticed
            options.keep_alive = true;
            options.keep_alive_idle = 20s;
            options.keep_alive_interval = 5s;
        }
        options.no_delay = rng_.happens(0.5);
        options.cork = rng_.happens(0.1);
        if (rng_.happens(0.4)) options.receive_buffer = static_cast<std::uint32_t>(4096 + rng_.below(200'000));
        if (rng_.happens(0.2)) options.max_segment = static_cast<std::uint16_t>(100 + rng_.below(2000));
        options.congestion = rng_.happens(0.5) ? stack::tcp::Congestion::kNewReno : stack::tcp::Congestion::kCubic;
        return options;
    }

    Instant next() const {
        Instant at = std::min({to_server_.next(), to_client_.next(), client_.tcp.next_deadline(), server_.tcp.next_deadline()});
        for (const auto* side : {&clients_, &servers_})
            for (const auto& peer : *side)
                if (peer->connection != nullptr) at = std::min(at, peer->next_action);
        return at;
    }
    void step() {
        now_ = std::max(now_ + Duration(1), next());
        turn();
    }
    void turn() {
        for (Bytes frame = to_server_.arrive(now_); !frame.empty(); frame = to_server_.arrive(now_)) server_.receive(frame, now_);
        for (Bytes frame = to_client_.arrive(now_); !frame.empty(); frame = to_client_.arrive(now_)) client_.receive(frame, now_);
        client_.tcp.advance(now_);
        server_.tcp.advance(now_);
        for (auto* side : {&clients_, &servers_})
            for (auto& peer : *side)
                if (peer->connection != nullptr && peer->next_action <= now_) {
                    peer->act();
                    peer->next_action = now_ + std::chrono::microseconds(100 + rng_.below(rng_.happens(0.01) ? 3'000'000 : 10'000));
                }
        client_.tcp.flush(now_);
        server_.tcp.flush(now_);
        for (Bytes& frame : client_.take_frames()) to_server_.carry(std::move(frame), now_);
        for (Bytes& frame : server_.take_frames()) to_client_.carry(std::move(frame), now_);
    }
    bool all_done() const {
        const auto done = [](const auto& peer) { return peer->done(); };
        return (erratic_ || servers_.size() >= clients_.size()) && std::ranges::all_of(clients_, done) && std::ranges::all_of(servers_, done);
    }

    bool erratic_;
    Rng rng_;
    Weather weather_;
    std::uint32_t mtu_;
    TcpHost client_;
    TcpHost server_;
    Link to_server_;
    Link to_client_;
    bool v6_;
    Instant now_{1h};
    std::vector<std::pair<std::uint64_t, std::uint64_t>> sizes_;  // client to server, server to client
    std::vector<std::unique_ptr<Peer>> clients_;
    std::vector<std::unique_ptr<Peer>> servers_;
};

std::pair<std::uint64_t, std::uint64_t> seeds(std::uint64_t usual) {
    std::uint64_t first = 1;
    std::uint64_t last = usual;
    if (const char* chosen = std::getenv("CULVERT_SEED")) first = last = std::strtoull(chosen, nullptr, 10);
    if (const char* count = std::getenv("CULVERT_SEED_COUNT")) last = first + std::strtoull(count, nullptr, 10) - 1;
    return {first, last};
}

/// Applications that abort and close whenever they like: nothing may be left, and no byte may be wrong.
TEST(TcpSimulation, ErraticApplicationsLeakNothing) {
    const auto [first, last] = seeds(100);
    for (std::uint64_t seed = first; seed <= last; ++seed) {
        SCOPED_TRACE("CULVERT_SEED=" + std::to_string(seed));
        Simulation simulation(seed, true);
        simulation.run();
        if (::testing::Test::HasFailure()) FAIL() << "seed " << seed;
    }
}

TEST(TcpSimulation, BytesArriveAndNothingLeaks) {
    const auto [first, last] = seeds(60);
    Simulation::Totals total;
    for (std::uint64_t seed = first; seed <= last; ++seed) {
        SCOPED_TRACE("CULVERT_SEED=" + std::to_string(seed));
        Simulation simulation(seed, false);
        simulation.run();
        if (::testing::Test::HasFailure()) FAIL() << "seed " << seed;
        total += simulation.totals();
    }
    // The weather must have been bad enough to mean something.
    if (first != last) {
        EXPECT_GT(total.bytes, 10'000'000u);
        EXPECT_GT(total.retransmits, 500u);
        EXPECT_GT(total.timeouts, 100u);
        EXPECT_GT(total.fast_retransmits, 50u);
        EXPECT_GT(total.out_of_order, 1000u);
        EXPECT_GT(total.probes, 10u);
        EXPECT_GT(total.no_frame, 10u);
    }
    std::cout << total.bytes << " bytes, " << total.segments << " segments, " << total.retransmits << " retransmitted, "
              << total.timeouts << " timeouts, " << total.fast_retransmits << " recoveries, " << total.out_of_order
              << " out of order, " << total.probes << " window probes, " << total.no_frame << " without a frame\n";
}

}  // namespace
}  // namespace culvert::test
