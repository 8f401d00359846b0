// A path for congestion controllers alone: flows that always have data share one queue before one link, in virtual time.
//
//   flow --> queue (bytes, marks above a threshold, drops when full; random loss) --> link --> half a round trip --> ACK
//
// Packets are whole segments and never overtake each other. A lost one is known when the third sent after it is
// acknowledged, and is replaced by a new one, so a position stands for a transmission. Rate samples are made as
// draft-ietf-ccwg-bbr 4.1 says. Everything else of TCP is left out on purpose.
#pragma once

#include <algorithm>
#include <deque>
#include <memory>
#include <queue>
#include <tuple>
#include <utility>
#include <vector>

#include "daemon/base/rng.h"
#include "daemon/stack/tcp/congestion/bbr.h"
#include "daemon/stack/tcp/congestion/controller.h"

namespace culvert::test {

struct BottleneckConfig {
    double bits_per_second = 100e6;
    Duration round_trip = std::chrono::milliseconds(20);
    double buffer_bdp = 1.0;
    std::uint32_t mark_above = UINT32_MAX;  // bytes in the queue
    double loss = 0;
    std::uint64_t seed = 1;

    double bytes_per_second() const { return bits_per_second / 8; }
    double bdp() const { return bytes_per_second() * std::chrono::duration<double>(round_trip).count(); }
};

class Bottleneck {
public:
    static constexpr std::uint32_t kMss = 1448;

    explicit Bottleneck(const BottleneckConfig& config) : config_(config), rng_(config.seed) {}
    ~Bottleneck() {
        for (auto& flow : flows_) flow->cc.release(models_);
    }

    std::size_t add(stack::tcp::Algorithm algorithm, Duration start = {}) {
        flows_.push_back(std::make_unique<Flow>(algorithm, models_));
        schedule(Instant{} + start, flows_.size() - 1, kNoPacket);
        return flows_.size() - 1;
    }
    /// It sends no more.
    void stop(std::size_t flow) { flows_[flow]->stopped = true; }
    stack::tcp::CongestionController& controller(std::size_t flow) { return *flows_[flow]->cc; }

    void run_until(Duration end) {
        while (!events_.empty() && events_.top().at <= Instant{} + end) {
            const Event event = events_.top();
            events_.pop();
            now_ = event.at;
            Flow& flow = *flows_[event.flow];
            if (event.packet == kNoPacket) {
                flow.timer = kNever;
            } else {
                acknowledge(flow, event.packet, event.marked);
            }
            send(event.flow);
        }
        now_ = Instant{} + end;
    }
    /// Bytes delivered so far.
    std::uint64_t delivered(std::size_t flow) const { return flows_[flow]->delivered; }
    /// Since the last call: the part of the link's rate that `flow` had.
    double share(std::size_t flow) {
        Flow& f = *flows_[flow];
        const double seconds = std::chrono::duration<double>(now_ - f.share_since).count();
        const double bytes = static_cast<double>(f.delivered - f.share_from);
        f.share_since = now_;
        f.share_from = f.delivered;
        return bytes / seconds / config_.bytes_per_second();
    }
    /// Since the last call: the longest queue that a packet found, in bytes.
    double take_longest_queue() { return std::exchange(longest_queue_, 0); }
    std::uint64_t losses(std::size_t flow) const { return flows_[flow]->lost_total; }

private:
    static constexpr std::uint64_t kNoPacket = UINT64_MAX;
    struct Packet {
        Instant sent_at, first_sent_at, delivered_at;
        std::uint64_t delivered, lost, flight;
        bool done = false;
    };
    struct Flow {
        Flow(stack::tcp::Algorithm algorithm, stack::tcp::BbrPool& models) : cc(algorithm, kMss, &models) {}
        stack::tcp::CongestionState cc;
        std::deque<Packet> packets;  // from number `first` on
        std::uint64_t first = 1;
        std::uint64_t next = 1;
        std::uint64_t in_flight = 0;
        std::uint64_t delivered = 0, lost_total = 0;
        std::uint64_t recover = 0;      // the episode ends with a packet from here on
        std::uint64_t ecn_recover = 0;
        bool in_recovery = false;
        bool stopped = false;
        Instant delivered_at{}, first_sent_at{}, depart_at{}, timer = kNever, share_since{};
        std::uint64_t share_from = 0;
    };
    struct Event {
        Instant at;
        std::uint64_t order;
        std::size_t flow;
        std::uint64_t packet;
        bool marked;
        bool operator>(const Event& other) const { return std::tie(at, order) > std::tie(other.at, other.order); }
    };
    static stack::tcp::Position position(std::uint64_t number) { return stack::tcp::initial_position(0) + number * kMss; }

    void schedule(Instant at, std::size_t flow, std::uint64_t packet, bool marked = false) {
        events_.push({at, order_++, flow, packet, marked});
    }
    Duration transmission(double bytes) const {
        return Duration(static_cast<Duration::rep>(bytes / config_.bytes_per_second() * 1e9));
    }

    void send(std::size_t index) {
        Flow& flow = *flows_[index];
        while (!flow.stopped && flow.in_flight + kMss <= flow.cc->cwnd()) {
            const std::uint64_t rate = flow.cc->pacing_rate();
            if (rate != 0 && flow.depart_at > now_) {
                if (flow.timer == kNever) schedule(flow.timer = flow.depart_at, index, kNoPacket);
                return;
            }
            if (flow.in_flight == 0) flow.delivered_at = flow.first_sent_at = now_;
            flow.in_flight += kMss;
            flow.packets.push_back({now_, flow.first_sent_at, flow.delivered_at, flow.delivered, flow.lost_total, flow.in_flight});
            if (rate != 0)
                flow.depart_at = std::max(flow.depart_at, now_) + Duration(static_cast<Duration::rep>(kMss * 1e9 / static_cast<double>(rate)));
            transmit(index, flow.next++);
        }
    }

    void transmit(std::size_t index, std::uint64_t number) {
        link_free_ = std::max(link_free_, now_);
        const double queue = std::chrono::duration<double>(link_free_ - now_).count() * config_.bytes_per_second();
        longest_queue_ = std::max(longest_queue_, queue);
        if (queue + kMss > config_.buffer_bdp * config_.bdp() + kMss || rng_.happens(config_.loss)) return;
        link_free_ += transmission(kMss);
        schedule(link_free_ + config_.round_trip, index, number, queue > config_.mark_above);
    }

    void acknowledge(Flow& flow, std::uint64_t number, bool marked) {
        Packet& packet = flow.packets[number - flow.first];
        packet.done = true;
        std::uint64_t lost = 0;
        for (std::uint64_t n = flow.first; n + 3 <= number; ++n) {
            Packet& earlier = flow.packets[n - flow.first];
            if (!earlier.done) lost += kMss;
            earlier.done = true;
        }
        const std::uint64_t flight_before = flow.in_flight;
        flow.delivered += kMss;
        flow.delivered_at = now_;
        flow.first_sent_at = packet.sent_at;
        flow.lost_total += lost;
        flow.in_flight -= kMss + lost;
        const Packet sample = packet;
        while (!flow.packets.empty() && flow.packets.front().done) {
            flow.packets.pop_front();
            ++flow.first;
        }
        const bool ends = flow.in_recovery && number >= flow.recover;
        const bool begins = lost > 0 && (!flow.in_recovery || ends);
        flow.cc->on_delivery({.now = now_,
                              .snd_una = position(flow.first),
                              .snd_nxt = position(flow.next),
                              .delivered_total = flow.delivered,
                              .newly_delivered = kMss,
                              .newly_lost = lost,
                              .lost_total = flow.lost_total,
                              .in_flight = flow.in_flight,
                              .flight_at_send = sample.flight,
                              .prior_delivered = sample.delivered,
                              .lost_since_send = flow.lost_total - sample.lost,
                              .sample_bytes = flow.delivered - sample.delivered,
                              .interval = std::max(sample.sent_at - sample.first_sent_at, now_ - sample.delivered_at),
                              .rtt = now_ - sample.sent_at,
                              .in_recovery = (flow.in_recovery && !ends) || begins,
                              .echo = marked});
        if (ends) {
            flow.in_recovery = false;
            flow.cc->on_exit_recovery(now_);
        }
        if (begins) {
            flow.in_recovery = true;
            flow.recover = flow.next;
            flow.cc->on_enter_recovery(now_, flight_before);
        } else if (marked && !flow.in_recovery && number >= flow.ecn_recover) {
            flow.ecn_recover = flow.next;
            flow.cc->on_congestion_echo(now_, flight_before);
        } else if (!flow.in_recovery && !marked) {
            flow.cc->on_ack({.acked_bytes = kMss,
                             .rtt = now_ - sample.sent_at,
                             .now = now_,
                             .in_flight = flight_before,
                             .app_limited = false,
                             .snd_una = position(flow.first),
                             .snd_nxt = position(flow.next)});
        }
    }

    BottleneckConfig config_;
    Rng rng_;
    stack::tcp::BbrPool models_{16, rng_};
    std::vector<std::unique_ptr<Flow>> flows_;
    std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
    std::uint64_t order_ = 0;
    Instant now_{};
    Instant link_free_{};
    double longest_queue_ = 0;
};

}  // namespace culvert::test
