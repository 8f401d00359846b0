// When to acknowledge: RFC 9293 3.8.6.3 (RFC 1122 4.2.3.2) and RFC 5681 4.2, with Linux's quick start.
//
//   at once   out of order, filling a gap, FIN, duplicates; every second full-sized segment; the first segments of a
//             connection, so that the peer's slow start is not held up; anything while the application asks for it
//   later     otherwise, after 40 ms, unless data going the other way carries the ACK for nothing
#pragma once

#include <cstdint>

#include "daemon/base/instant.h"

namespace culvert::stack::tcp {

class DelayedAck {
public:
    /// [RFC9293 3.8.6.3 SHLD-18, MUST-40] less than 500 ms; 40 ms as in Linux.
    static constexpr Duration kDelay = std::chrono::milliseconds(40);
    /// Segments acknowledged at once at the start: the peer's initial window and what it grows to in a round trip.
    static constexpr std::uint8_t kQuickAcks = 16;

    enum class Urgency : std::uint8_t { kLater, kNow };

    /// A segment with `bytes` of payload arrived. `in_order`: it began at RCV.NXT and no out-of-order data was waiting.
    /// kNow: owe an ACK at the end of this burst; kLater: the deadline is set.
    Urgency on_data(std::uint32_t bytes, std::uint32_t mss, bool in_order, bool fin, Instant now,
                    Duration delay = kDelay) {
        unacked_bytes_ += bytes;
        // [RFC5681 4.2] [RFC9293 3.8.6.3 SHLD-19]
        if (!in_order || fin || quick_acks_ > 0 || unacked_bytes_ >= 2 * mss) {
            deadline_ = now;
            return Urgency::kNow;
        }
        if (deadline_ == kNever) deadline_ = now + delay;
        return deadline_ <= now ? Urgency::kNow : Urgency::kLater;
    }

    /// Any segment with ACK went out, data or not.
    void on_ack_sent() {
        unacked_bytes_ = 0;
        deadline_ = kNever;
        if (quick_acks_ > 0) --quick_acks_;
    }

    /// TCP_QUICKACK, or the peer was silent for longer than RTO: its window is small again.
    void enter_quick_mode() { quick_acks_ = kQuickAcks; }
    /// TCP_QUICKACK set to 0; also once the application turns out to answer what it gets (interactive traffic): the
    /// answer will carry the ACK.
    void leave_quick_mode() { quick_acks_ = 0; }
    bool quick() const { return quick_acks_ > 0; }

    /// When an ACK must go out by itself; kNever: none is owed.
    Instant deadline() const { return deadline_; }
    bool pending() const { return deadline_ != kNever; }

private:
    Instant deadline_ = kNever;
    std::uint32_t unacked_bytes_ = 0;
    std::uint8_t quick_acks_ = kQuickAcks;
};
static_assert(sizeof(DelayedAck) <= 16);

}  // namespace culvert::stack::tcp
