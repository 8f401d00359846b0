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
//   kRecovery  fast recovery: RFC 6675 with     holes first, then new data, at the rate of PRR (RFC 6937, with the
//              SACK, RFC 6582 without           safe bound of RFC 9937)
//   kLoss      after a timeout: all that was    from SND.UNA on, jumping over what is SACKed again, in slow start
//              in flight counts as lost
//
// Pure bookkeeping: it is fed ACKs and answers "what next?". The controller decides the window; segments, timers and
// the send buffer belong to the connection. How it is driven:
//
//   on an ACK:       verdict = recovery.on_ack(facts, cc, pool);  if (verdict.grow) cc.on_ack(...)
//   output:          for (;;) { permit = recovery.next(snd_una, snd_nxt, cc, has_new_data);
//                               retransmit -> send permit.range (or its head), on_retransmitted(...)
//                               new data   -> send up to permit.bytes, on_new_data(n)
//                               nothing    -> stop }
//   on a timeout:    recovery.on_timeout(...), then output
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "daemon/base/instant.h"
#include "daemon/stack/tcp/congestion/controller.h"
#include "daemon/stack/tcp/sack_scoreboard.h"
#include "daemon/stack/tcp/sequence.h"

namespace culvert::stack::tcp {

/// An acceptable ACK (SND.UNA <= SEG.ACK <= SND.NXT; an older one passes SND.UNA as `ack`).
struct AckFacts {
    Position snd_una = 0;  // before this ACK
    Position ack = 0;      // SEG.ACK
    Position snd_nxt = 0;
    bool sack_permitted = false;  // negotiated in the handshake
    bool duplicate = false;  // RFC 5681 2: data outstanding, no payload, no SYN or FIN, SEG.ACK == SND.UNA, window unchanged
    std::span<const Range> sack;             // as received, D-SACK included; empty without SACK
    std::optional<std::uint32_t> ts_echo;    // RFC 7323 TSecr
    Instant now;
};

class LossRecovery {
public:
    enum class State : std::uint8_t { kOpen, kRecovery, kLoss };

    struct Verdict {
        std::uint64_t newly_acked = 0;   // bytes below the new SND.UNA that were not before
        std::uint64_t delivered = 0;     // newly acknowledged or SACKed
        bool grow = false;               // hand this ACK to the controller's on_ack
        bool entered_recovery = false;   // a fast retransmit is due
        bool left_recovery = false;      // back in kOpen
        bool undone = false;             // by undo: the loss was none
        std::optional<Range> dsack;      // the peer received this twice
    };

    struct Permit {
        enum class Kind : std::uint8_t { kNothing, kRetransmit, kNewData };
        Kind kind = Kind::kNothing;
        Range range;               // kRetransmit: one segment at most
        std::uint64_t bytes = 0;   // kNewData: at most so many
        bool rescue = false;       // RFC 6675 NextSeg (4)
    };

    LossRecovery() = default;
    LossRecovery(const LossRecovery&) = delete;
    LossRecovery& operator=(const LossRecovery&) = delete;
    ~LossRecovery();

    /// Call before SND.UNA is moved. Tells `cc` of a loss, of its end, or that it was none.
    Verdict on_ack(const AckFacts& facts, CongestionController& cc, SackPool& pool);

    /// What may be sent now. `has_new_data`: there is unsent data that the peer's window has room for.
    Permit next(Position snd_una, Position snd_nxt, const CongestionController& cc, bool has_new_data) const;
    /// `sent` (permit.range or its head) went out again, stamped `ts_value` if the connection uses timestamps.
    void on_retransmitted(const Permit& permit, Range sent, Position snd_nxt, std::optional<std::uint32_t> ts_value);
    void on_new_data(std::uint64_t bytes);

    /// The retransmission timer fired: everything in flight counts as lost, SACKs included, since the receiver may
    /// have dropped them. [RFC2018 8] [RFC6675 5.1] [RFC5681 3.1]
    void on_timeout(Position snd_una, Position snd_nxt, Instant now, CongestionController& cc, SackPool& pool);

    /// Gives the scoreboard back. Must be called before the connection dies.
    void release(SackPool& pool);

    State state() const { return state_; }
    /// Bytes believed to be on the way. [RFC6675 4 SetPipe]
    std::uint64_t pipe(Position snd_una, Position snd_nxt) const;
    std::uint64_t sacked_bytes() const { return board_ == nullptr ? 0 : board_->sacked_bytes(); }
    /// Where the current (or last) episode ends: RecoveryPoint, or `recover` of RFC 6582.
    Position recovery_point() const { return recover_; }
    std::uint8_t duplicate_acks() const { return dup_acks_; }

private:
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
    void leave(State from, Verdict& verdict);

    SackScoreboard* board_ = nullptr;  // while something is SACKed
    Position recover_ = 0;             // SND.NXT when the episode began
    Position high_rxt_ = 0;            // [RFC6675 2] every hole below was sent again
    Position lost_below_ = 0;          // lost whatever the scoreboard says; 0: nothing
    Position rxt_mark_ = 0;            // SND.NXT at the last retransmission
    std::uint32_t prr_delivered_ = 0;  // [RFC6937 3]
    std::uint32_t prr_out_ = 0;
    std::uint32_t recover_fs_ = 0;
    std::uint32_t credit_ = 0;         // kRecovery: sndcnt, what may still be sent until the next ACK
    std::uint32_t dup_bytes_ = 0;      // without SACK: bytes that duplicate ACKs say have arrived
    std::uint32_t undo_bytes_ = 0;     // sent again in this episode and not yet reported by D-SACK
    std::uint32_t first_rxt_ts_ = 0;   // timestamp of the first retransmission of the episode
    State state_ = State::kOpen;
    std::uint8_t dup_acks_ = 0;
    bool blind_ : 1 = false;           // no SACK: not negotiated, or no scoreboard was left for us
    bool rescued_ : 1 = false;         // NextSeg (4) was used in this episode
    bool undo_open_ : 1 = false;       // D-SACK may still prove the episode needless
    bool stamped_ : 1 = false;         // first_rxt_ts_ is valid, and no ACK has been judged by it
    bool timed_out_ : 1 = false;       // the timer fired and SND.UNA has not moved since
};
static_assert(sizeof(LossRecovery) <= 80);

}  // namespace culvert::stack::tcp
