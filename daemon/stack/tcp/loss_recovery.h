// What to send, and how much, when segments get lost.
//
//             duplicate ACKs / SACK says lost             timeout
//    kOpen ----------------------------------> kRecovery ---------> kLoss
//      ^  ^                                        |                 |
//      |  +---- everything sent before it is acknowledged, or the ---+
//      |        retransmission proves to have been needless (undo)
//
//   state      meaning                          may send
//   kOpen      nothing lost that we know of     new data: cwnd - pipe; SACKed bytes leave the pipe, which is the
//                                               limited transmit of RFC 3042
//   kRecovery  fast recovery                    what is lost first, then new data, at the rate of PRR (RFC 6937, with
//                                               the safe bound of RFC 9937) or of a controller that governs recovery
//   kLoss      after a timeout                  what is lost, in slow start; while F-RTO (RFC 5682) still asks whether
//                                               the timeout was one, two new segments first
//
// What is lost? Three judges, the best that there is:
//   with SACK and a Flight   RACK-TLP (RFC 8985): by time (flight.h), with probes for lost tails
//   with SACK alone          RFC 6675: by what is SACKed above (no piece was left in the FlightPool)
//   without SACK             RFC 6582: by duplicate ACKs, one segment a partial ACK
//
// Pure bookkeeping: it is fed ACKs and answers "what next?". The controller decides the window; segments, timers and
// the send buffer belong to the connection. How it is driven:
//
//   on an ACK:       verdict = recovery.on_ack(facts, cc, pool);  if (verdict.grow) cc.on_ack(...)
//   output:          for (;;) { permit = recovery.next(snd_una, snd_nxt, cc, has_new_data);
//                               retransmit -> send permit.range (or its head), on_retransmitted(...)
//                               new data   -> send up to permit.bytes, on_new_data(n)
//                               nothing    -> stop }
//                               and record() for each of them: the log of RACK
//   its own timer:   Flight::timer_at, on_timer(): losses found by time alone, or a probe is due
//   on a timeout:    recovery.on_timeout(...), then output
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "daemon/base/instant.h"
#include "daemon/stack/tcp/ack_facts.h"
#include "daemon/stack/tcp/congestion/controller.h"
#include "daemon/stack/tcp/flight.h"
#include "daemon/stack/tcp/sack_scoreboard.h"
#include "daemon/stack/tcp/sequence.h"

namespace culvert::stack::tcp {

/// What RACK needs to know of the path.
struct RoundTrip {
    Duration srtt{0};                    // zero: not measured yet
    Duration minimum = Duration::max();  // RACK.min_RTT
};

class LossRecovery {
public:
    enum class State : std::uint8_t { kOpen, kRecovery, kLoss };

    struct Verdict {
        std::uint64_t newly_acked = 0;   // bytes below the new SND.UNA that were not before
        std::uint64_t delivered = 0;     // newly acknowledged or SACKed
        std::uint64_t newly_lost = 0;    // by time
        bool grow = false;               // hand this ACK to the controller's on_ack
        bool entered_recovery = false;   // a fast retransmit is due
        bool left_recovery = false;      // back in kOpen
        bool undone = false;             // by undo: the loss was none
        bool repaired = false;           // a loss probe has repaired a loss that nothing else had seen
        std::optional<Range> dsack;      // the peer received this twice
    };

    struct Permit {
        enum class Kind : std::uint8_t { kNothing, kRetransmit, kNewData };
        Kind kind = Kind::kNothing;
        Range range;               // kRetransmit: one segment at most
        std::uint64_t bytes = 0;   // kNewData: at most so many
        bool rescue = false;       // RFC 6675 NextSeg (4)
        bool probe = false;        // RFC 8985 7.3: the tail again, lost or not
    };

    enum class Fired : std::uint8_t { kNothing, kLost, kProbe };

    /// What is worth remembering of the path when everything is acknowledged. [RFC8985 6.2 step 4]
    struct Learned {
        std::uint8_t reo_wnd_mult = 1;
        std::uint8_t reo_wnd_persist = 16;
        bool reordering_seen = false;
    };

    LossRecovery() = default;
    explicit LossRecovery(Learned learned)
        : reo_wnd_mult_(learned.reo_wnd_mult), reo_wnd_persist_(learned.reo_wnd_persist),
          reordering_seen_(learned.reordering_seen) {}
    LossRecovery(const LossRecovery&) = delete;
    LossRecovery& operator=(const LossRecovery&) = delete;
    ~LossRecovery();

    /// Call before SND.UNA is moved. Tells `cc` of a loss, of its end, or that it was none.
    Verdict on_ack(const AckFacts& facts, CongestionController& cc, SackPool& pool);

    /// True: an ACK that moves SND.UNA and has no SACK blocks says that all below it has arrived, and nothing more; it
    /// need not be judged (on_clean_ack). Nearly every ACK.
    bool clean(Position snd_una) const {
        return flight_ != nullptr && board_ == nullptr && state_ == State::kOpen && frto_ == FRto::kOff && !stamped_ &&
               !probe_out_ && !blind_ && flight_->in_order(snd_una);
    }
    /// on_ack for such an ACK. Requires: clean(), a controller that wants no delivery events.
    Verdict on_clean_ack(Position snd_una, Position ack, Instant now) {
        timed_out_ = false;
        dup_acks_ = 0;
        high_rxt_ = std::max(high_rxt_, ack);
        flight_->deliver_in_order(ack, ack - snd_una, now);
        Verdict verdict;
        verdict.newly_acked = verdict.delivered = ack - snd_una;
        verdict.grow = true;
        return verdict;
    }

    /// An ACK without news that comes when everything is acknowledged: it may still prove an episode or a loss probe
    /// needless. `facts.duplicate`: as RFC 5681 2, but for the data outstanding. [RFC3708] [RFC8985 7.4]
    Verdict on_late_ack(const AckFacts& facts, CongestionController& cc);

    /// Nothing is to be repaired, and no question of F-RTO waits: without new data there is nothing to send.
    bool quiet() const { return state_ == State::kOpen && frto_ == FRto::kOff; }
    /// What may be sent now. `has_new_data`: there is unsent data that the peer's window has room for.
    Permit next(Position snd_una, Position snd_nxt, const CongestionController& cc, bool has_new_data) const {
        if (!quiet() || !has_new_data) return next_of_all(snd_una, snd_nxt, cc, has_new_data);
        const std::uint64_t in_pipe = pipe(snd_una, snd_nxt);
        if (in_pipe >= cc.cwnd()) return {};
        return {.kind = Permit::Kind::kNewData, .range = {}, .bytes = cc.cwnd() - in_pipe};
    }
    /// `sent` (permit.range or its head) went out again, stamped `ts_value` if the connection uses timestamps.
    void on_retransmitted(const Permit& permit, Range sent, Position snd_nxt, std::optional<std::uint32_t> ts_value);
    void on_new_data(std::uint64_t bytes);

    /// `range` has left (again): takes a Flight from the pool if nothing was in flight. False: no memory was left for it,
    /// so the flight goes on without RACK, pacing and rate samples. Call before SND.NXT moves over new data.
    bool record(FlightPool& pool, Range range, bool again, Position snd_una, Position snd_nxt, Duration srtt, Instant now);
    /// Everything is acknowledged: the Flight goes back, unless its pacing must be remembered for a while.
    void on_flight_empty(Instant now) {
        if (flight_ == nullptr) return;
        flight_->timer_at = kNever;
        flight_->held = flight_->depart_at > now;
        if (!flight_->held) release_flight();
    }
    /// nullptr: nothing is in flight, or there was no memory for it.
    Flight* flight() const { return flight_; }
    /// nullptr: nothing is SACKed.
    const SackScoreboard* board() const { return board_; }

    /// Flight::timer_at has come. kLost: recovery has begun or goes on, call output. kProbe: send a probe, if one may be sent.
    Fired on_timer(Position snd_una, Position snd_nxt, RoundTrip path, Instant now, CongestionController& cc);
    /// [RFC8985 7.2] Sets the loss probe's timer, if the flight is one that needs it; `latest`: the retransmission timer.
    void arm_probe(Duration timeout, Instant latest, Instant now);
    bool probe_out() const { return probe_out_; }
    /// A probe left: new data that ended at `end`, or (`again`) the tail once more. [RFC8985 7.3]
    void on_probe_sent(Position end, bool again) {
        probe_out_ = true;
        probe_again_ = again;
        if (again) tail_resent_ = true;
        probe_end_ = to_wire(end);
    }
    /// Nothing is left to send though the window has room: rate samples from here on say little about the path.
    void on_app_limited(Position snd_una, Position snd_nxt);

    /// The retransmission timer fired: what RACK says is lost (RFC 8985 6.3), or everything in flight. SACKs are kept
    /// unless the receiver has taken some back, which shows when SND.UNA itself is SACKed. [RFC6675 5.1] [RFC5681 3.1]
    /// `all`: everything is lost (the path's MTU has shrunk), which is also no question for F-RTO.
    void on_timeout(Position snd_una, Position snd_nxt, Instant now, CongestionController& cc, SackPool& pool,
                    RoundTrip path = {}, bool all = false);

    /// Give the scoreboard and the Flight back. Must be called before the connection dies.
    void release(SackPool& pool);
    void release_flight();

    /// True, with nothing in flight: learned() is all that matters from here on. (What may still undo an episode is given up:
    /// D-SACKs come within a round trip.)
    bool settled() const { return state_ == State::kOpen && flight_ == nullptr && board_ == nullptr && !probe_out_; }
    Learned learned() const { return {reo_wnd_mult_, reo_wnd_persist_, reordering_seen_}; }
    State state() const { return state_; }
    /// Bytes believed to be on the way. [RFC6675 4 SetPipe]
    std::uint64_t pipe(Position snd_una, Position snd_nxt) const {
        if (snd_una == snd_nxt) return 0;
        if (!by_time()) return pipe_by_sack(snd_una, snd_nxt);
        if (board_ == nullptr && flight_->lost.empty()) [[likely]] return snd_nxt - snd_una;
        return pipe_by_time(snd_una, snd_nxt);
    }
    std::uint64_t sacked_bytes() const { return board_ == nullptr ? 0 : board_->sacked_bytes(); }
    /// Where the current (or last) episode ends: RecoveryPoint, or `recover` of RFC 6582.
    Position recovery_point() const { return recover_; }
    std::uint8_t duplicate_acks() const { return dup_acks_; }
    /// RFC 8985 6.2 step 4, for tests and `ss`.
    unsigned reordering_multiplier() const { return reo_wnd_mult_; }
    bool reordering_seen() const { return reordering_seen_; }
    /// RACK judges, not duplicate ACKs.
    bool by_time() const { return flight_ != nullptr && !blind_; }

private:
    enum class FRto : std::uint8_t { kOff, kFirstAck, kSecondAck };  // [RFC5682 3.1] waits for the ACK of step 2, of step 3

    Permit next_of_all(Position snd_una, Position snd_nxt, const CongestionController& cc, bool has_new_data) const;
    bool anything_lost(Position ack) const { return by_time() ? !flight_->lost.empty() : loss_edge() > ack; }
    Duration reordering_window(RoundTrip path) const;
    void adapt_reordering_window(const AckFacts& facts, const Verdict& verdict);
    void judge_by_time(const AckFacts& facts, const Delivery& arrived, Verdict& verdict);
    void report_delivery(const AckFacts& facts, const Delivery& arrived, const Verdict& verdict, CongestionController& cc);
    void close_probe(const AckFacts& facts, CongestionController& cc, Verdict& verdict);
    bool refuted_by_frto(const AckFacts& facts, const Delivery& arrived, const Verdict& verdict, CongestionController& cc);
    void undo(const AckFacts& facts, CongestionController& cc, Verdict& verdict);
    void judge_without_log(Position snd_una);
    std::uint64_t pipe_by_sack(Position snd_una, Position snd_nxt) const;
    std::uint64_t pipe_by_time(Position snd_una, Position snd_nxt) const;
    Position loss_edge() const;
    std::uint64_t unsacked(Range range) const;
    Range next_hole(Range within) const;
    bool take_sacks(const AckFacts& facts, const CongestionController& cc, SackPool& pool);
    void count_without_sack(const AckFacts& facts, std::uint32_t mss, Verdict& verdict);
    bool proves_spurious(const AckFacts& facts, const Verdict& verdict);
    void enter_recovery(const AckFacts& facts, CongestionController& cc, Verdict& verdict);
    void on_partial_ack(const AckFacts& facts, const Verdict& verdict, const CongestionController& cc);
    void reduce_proportionally(const AckFacts& facts, const Verdict& verdict, bool new_loss,
                               const CongestionController& cc);
    Range next_lost(Position snd_una, Position snd_nxt) const;
    void leave(State from, Verdict& verdict);

    SackScoreboard* board_ = nullptr;  // while something is SACKed
    Flight* flight_ = nullptr;         // while something is in flight
    std::uint64_t lost_total_ = 0;     // bytes that RACK has found lost (C.lost)
    Position recover_ = 0;             // SND.NXT when the episode began
    Position high_rxt_ = 0;            // [RFC6675 2] every hole below was sent again; by time: nothing from there on was
    Position lost_below_ = 0;          // lost whatever the scoreboard says; 0: nothing. Not by time
    Position rxt_mark_ = 0;            // SND.NXT at the last retransmission
    std::uint32_t prr_delivered_ = 0;  // [RFC6937 3]
    std::uint32_t prr_out_ = 0;
    std::uint32_t recover_fs_ = 0;
    std::uint32_t credit_ = 0;         // kRecovery: sndcnt, what may still be sent until the next ACK
    std::uint32_t dup_bytes_ = 0;      // without SACK: bytes that duplicate ACKs say have arrived
    std::uint32_t undo_bytes_ = 0;     // sent again in this episode and not yet reported by D-SACK
    std::uint32_t first_rxt_ts_ = 0;   // timestamp of the first retransmission of the episode
    std::uint32_t probe_end_ = 0;      // TLP.end_seq on the wire, while probe_out_
    State state_ = State::kOpen;
    std::uint8_t dup_acks_ = 0;
    std::uint8_t reo_wnd_mult_ = 1;    // [RFC8985 5.2]
    std::uint8_t reo_wnd_persist_ = 16;
    FRto frto_ = FRto::kOff;
    std::uint8_t frto_sent_ = 0;       // new segments of step 2
    bool reordering_seen_ : 1 = false; // RACK.reordering_seen
    bool probe_out_ : 1 = false;       // TLP.end_seq is one
    bool probe_again_ : 1 = false;     // TLP.is_retrans
    bool tail_resent_ : 1 = false;     // in this flight a probe has repeated the last segment
    bool blind_ : 1 = false;           // no SACK: not negotiated, or no scoreboard was left for us
    bool rescued_ : 1 = false;         // NextSeg (4) was used in this episode
    bool undo_open_ : 1 = false;       // D-SACK may still prove the episode needless
    bool stamped_ : 1 = false;         // first_rxt_ts_ is valid, and no ACK has been judged by it
    bool head_due_ : 1 = false;        // the timer fired and nothing was sent again since
    bool timed_out_ : 1 = false;       // the timer fired and SND.UNA has not moved since
};
static_assert(sizeof(LossRecovery) <= 104);

}  // namespace culvert::stack::tcp
