// One direction of a bad wire, seeded: what it takes away, holds up, doubles, turns around, damages, marks; how wide it
// is and how long its queue. A path narrower than both ends' interfaces drops what is too long and says so (ICMP), or
// says nothing: a black hole.
//
//   carry() --> cut off? --> too long? --> lost? --> queue (marks, tail drop) --> flipped bit? --> delay, jitter --> arrive()
#pragma once

#include <algorithm>
#include <functional>
#include <queue>
#include <tuple>
#include <utility>

#include "daemon/base/instant.h"
#include "daemon/base/rng.h"
#include "tests/sim/sim_host.h"

namespace culvert::sim {

struct Weather {
    double loss = 0, duplicate = 0, reorder = 0, corrupt = 0;
    double burst = 0;       // chance that a frame begins a burst of losses
    double burst_more = 0;  // chance that a burst goes on with the next frame
    Duration delay{}, jitter{};
    double bytes_per_second = 0;  // 0: infinitely fast
    double longest_queue = 1e9;   // bytes
    double mark_above = 1e18;     // bytes in the queue from which ECN-capable packets are marked
};

class Link {
public:
    static constexpr std::uint32_t kNoLimit = 1u << 20;  // longer than any packet

    Link(const Weather& weather, Rng& rng) : weather_(weather), rng_(rng) {}

    /// What became of a frame, for the transcript.
    enum class Fate : std::uint8_t { kSent, kLost, kCutOff, kTooLong, kQueueFull };

    Fate carry(Bytes frame, Instant now) {
        ++carried;
        if (cut_off) return Fate::kCutOff;
        if (frame.size() > 14 + path_mtu) return Fate::kTooLong;
        in_burst_ = rng_.happens(in_burst_ ? weather_.burst_more : weather_.burst);
        if (in_burst_ || rng_.happens(weather_.loss)) return Fate::kLost;
        busy_until_ = std::max(now, busy_until_);
        if (weather_.bytes_per_second > 0) {
            const double queued = std::chrono::duration<double>(busy_until_ - now).count() * weather_.bytes_per_second;
            longest_queue_seen = std::max(longest_queue_seen, queued);
            if (queued > weather_.longest_queue) return Fate::kQueueFull;
            if (queued > weather_.mark_above && mark_congestion(frame)) ++marked;
            busy_until_ += Duration(static_cast<Duration::rep>(static_cast<double>(frame.size()) * 1e9 / weather_.bytes_per_second));
        }
        // Only ever from 0 to 1: two damages (a router lies between the wires, a datagram has fragments) could cancel each other
        // out in the Internet checksum otherwise, and would be nobody's fault.
        if (rng_.happens(weather_.corrupt)) frame[rng_.below(frame.size())] |= static_cast<std::byte>(1u << rng_.below(8));
        if (rng_.happens(weather_.duplicate)) {
            ++duplicated;
            put(frame);
        }
        put(std::move(frame));
        return Fate::kSent;
    }
    Instant next() const { return flying_.empty() ? kNever : flying_.top().at; }
    /// The next frame that has arrived; empty if none.
    Bytes arrive(Instant now) {
        if (next() > now) return {};
        Bytes frame = std::move(const_cast<Flying&>(flying_.top()).frame);
        flying_.pop();
        return frame;
    }

    bool cut_off = false;
    std::uint32_t path_mtu = kNoLimit;  // of IP packets
    bool tells = true;                    // about what is too long
    std::uint64_t carried = 0, duplicated = 0, marked = 0;
    double longest_queue_seen = 0;  // bytes

private:
    struct Flying {
        Instant at;
        std::uint64_t order;
        Bytes frame;
        bool operator<(const Flying& other) const { return std::tie(other.at, other.order) < std::tie(at, order); }
    };
    void put(Bytes frame) {
        Instant at = busy_until_ + weather_.delay;
        if (weather_.jitter > Duration::zero() && rng_.happens(weather_.reorder))
            at += Duration(static_cast<Duration::rep>(rng_.below(static_cast<std::uint64_t>(weather_.jitter.count()))));
        flying_.push({at, order_++, std::move(frame)});
    }
    Weather weather_;
    Rng& rng_;
    Instant busy_until_{};
    bool in_burst_ = false;
    std::uint64_t order_ = 0;
    std::priority_queue<Flying> flying_;
};

}  // namespace culvert::sim
