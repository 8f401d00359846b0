// What a connection knows only while something of it is on the way: the log of what was sent, RACK (RFC 8985 5.2), the
// loss probe, the rate sample and the pacing. Pooled: taken when the first segment leaves, given back when everything is
// acknowledged, so that an idle connection pays eight bytes for it. No piece left in the pool: the connection recovers by
// RFC 6675 for that flight, is not paced and gives no rate samples (Counters::tcp_no_flight_memory).
#pragma once

#include <cstdint>
#include <new>

#include "daemon/base/instant.h"
#include "daemon/stack/tcp/ack_facts.h"
#include "daemon/stack/tcp/lost_ranges.h"
#include "daemon/stack/tcp/sack_scoreboard.h"
#include "daemon/stack/tcp/sent_log.h"
#include "daemon/stack/tcp/sequence.h"

namespace culvert::stack::tcp {

/// The flight's part of RFC 8985 5.2.
struct Rack {
    Instant xmit_at{};          // RACK.xmit_ts: when the most recently sent segment that has arrived was sent
    Position end_seq = 0;       // RACK.end_seq: its end
    Duration rtt{0};            // RACK.rtt: its round trip
    Position fack = 0;          // RACK.fack: the highest position that has arrived
    Position dsack_round = 0;   // RACK.dsack_round; 0: none
};

/// What an ACK told about the flight.
struct Delivery {
    bool any = false;           // something arrived that the log knows
    Position original = UINT64_MAX;  // the lowest position that arrived and was never sent again
    bool reordered = false;     // [RFC8985 6.2 step 3]
    Position top = 0;           // the end of the highest thing that arrived
    SentRun newest;             // if any: the run last sent of what arrived; P of the rate sample
};

struct Flight {
    explicit Flight(FlightPool& memory, Position snd_una, Instant now)
        : pool(memory), delivered(snd_una), delivered_at(now), first_sent_at(now), app_limited_until(snd_una) {
        rack.fack = snd_una;
    }

    /// nullptr: the pool is spent.
    static Flight* create(FlightPool& pool, Position snd_una, Instant now) {
        void* const memory = pool.allocate();
        return memory == nullptr ? nullptr : new (memory) Flight(pool, snd_una, now);
    }
    void destroy() {
        log.clear(pool);
        pool.release(this);
    }

    struct Sending {
        Range range;
        bool again = false;
        std::uint64_t in_flight = 0;  // pipe, without it
        std::uint64_t lost_total = 0;
        Duration srtt{0};
        Instant now;
    };
    /// [RFC8985 6.1] False: no room; the flight must be given up.
    bool record(const Sending& sending);
    /// What this ACK says has arrived, against `board` as it was before the ACK; RACK.xmit_ts, RACK.rtt and RACK.fack
    /// move. [RFC8985 6.2 steps 2 and 3] `resent_below`: nothing from there on was ever sent again.
    Delivery deliver(const AckFacts& facts, const SackScoreboard* board, Position resent_below);
    /// Nothing is lost or was sent again, and nothing was ever missing below `snd_una`.
    bool in_order(Position snd_una) const {
        return lost.empty() && log.again() == 0 && rack.fack == snd_una && rack.dsack_round == 0;
    }
    /// deliver() for an ACK without SACK blocks, while in_order(): `bytes` below `ack` have arrived.
    void deliver_in_order(Position ack, std::uint64_t bytes, Instant now) {
        Instant sent_at = Instant::min();
        while (SentRun* const run = log.front()) {
            if (run->range.first >= ack) break;
            sent_at = run->sent_at;
            if (run->range.end > ack) {
                run->range.first = ack;
                break;
            }
            log.pop_front(pool);
        }
        rack.fack = ack;
        timer_at = kNever;
        delivered += bytes;
        delivered_at = now;
        if (app_limited_until != 0 && delivered > app_limited_until) app_limited_until = 0;
        if (sent_at == Instant::min()) return;
        first_sent_at = rack.xmit_at = sent_at;
        rack.rtt = now - sent_at;
        rack.end_seq = ack;
    }
    /// Marks as lost what was sent before what has arrived, more than RACK.rtt + `reordering_window` ago.
    /// [RFC8985 6.2 step 5] Answers with the bytes marked; timer_at becomes the time of the next one.
    std::uint64_t detect(Position snd_una, const SackScoreboard* board, Duration reordering_window, Instant now);
    /// The retransmission timer fired: the segment at SND.UNA is lost, of the rest what was sent long enough ago.
    /// [RFC8985 6.3] `all`: everything is.
    std::uint64_t mark_on_timeout(Range head, Position snd_nxt, const SackScoreboard* board, Duration reordering_window,
                                  bool all, Instant now);
    /// It was not lost at all: back to the log, as if sent now. False: no room in it.
    bool unmark(const SackScoreboard* board, Instant now);
    /// The scoreboard has forgotten that `range` is SACKed: unless the log has it still, it is in flight as if sent now.
    void take_back(Range range, Instant now);
    /// Older copies of `range`, which is sent again out of turn, count no more. Only its ends are looked at.
    void forget(Range range);

    /// When the reordering timer or the loss probe is due; kNever: neither.
    Instant timer_at = kNever;
    bool timer_is_probe = false;
    bool probe_due = false;         // a loss probe is to be sent at the next output
    bool held = false;              // output waits for depart_at
    FlightPool& pool;
    Rack rack;
    LostRanges lost;
    std::uint64_t delivered;        // C.delivered: a count whose zero means nothing
    Instant delivered_at;           // C.delivered_time
    Instant first_sent_at;          // C.first_send_time
    std::uint64_t app_limited_until;  // C.app_limited; 0: not limited
    Instant depart_at{};            // pacing: nothing leaves before
    SentLog log;

private:
    void deliver_in_order(const AckFacts& facts, Delivery& found);
    std::uint64_t mark(Range range, const SackScoreboard* board);
    bool append_again(Range range, Instant now);
};
static_assert(sizeof(Flight) <= FlightPool::kPieceBytes);

/// Bytes of `range` that are not SACKed.
inline std::uint64_t unsacked(Range range, const SackScoreboard* board) {
    if (range.empty()) return 0;
    return range.size() - (board == nullptr ? 0 : board->sacked_in(range));
}

}  // namespace culvert::stack::tcp
