// A TCP connection: the state of RFC 9293 3.3.1, and what is done with it.
//
//   input.cc     a segment arrives           (RFC 9293 3.10.7, step by step)
//   acknowledge.cc   its ACK                 (the sender's side: window, round trip, loss, release of chunks)
//   receive.cc   its text and FIN            (the receiver's side: delivery, reassembly, window, ACK owed)
//   ecn.cc       congestion marks        (CE, ECE, CWR)
//   mtu_probing.cc   the path's packet size when routers are silent
//   urgent.cc    urgent data             (SND.UP, and telling the owner of the peer's)
//   output.cc    flush: what may be sent     (Nagle, windows, retransmission, FIN, ACK)
//   timers.cc    deadlines                   (retransmission, zero-window probe, delayed ACK, keepalive, FIN-WAIT-2)
//   opening.cc   how it begins               (active SYN, from a half-open one)
//   connection.cc    what the owner calls    and how it ends
//
// Stream places are 64-bit positions (sequence.h). Connections lie in a pool and never move; the owner's pointer is good
// until on_closed has returned. Memory is given back at the next flush, so a connection may end in the middle of any
// call, also of its owner's.
//
//   SYN-SENT --> ESTABLISHED --> FIN-WAIT-1 --> FIN-WAIT-2 --> (TIME-WAIT: a compact record, on_closed(0))
//      |             |                +--> CLOSING -------------^
//      v             v
//   SYN-RECEIVED   CLOSE-WAIT --> LAST-ACK --> on_closed(0)
//   (simultaneous open only; passive opens are HalfOpen records until the handshake is done)
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "daemon/base/instant.h"
#include "daemon/base/timer_wheel.h"
#include "daemon/stack/ip_output.h"
#include "daemon/stack/owner.h"
#include "daemon/stack/stack.h"
#include "daemon/stack/tcp/congestion/controller.h"
#include "daemon/stack/tcp/delayed_ack.h"
#include "daemon/stack/tcp/loss_recovery.h"
#include "daemon/stack/tcp/mtu_search.h"
#include "daemon/stack/tcp/reassembler.h"
#include "daemon/stack/tcp/rtt_estimator.h"
#include "daemon/stack/tcp/segment.h"
#include "daemon/stack/tcp/send_queue.h"

namespace culvert::stack::tcp {

struct Shared;
struct HalfOpen;

/// What a connection has only while it has something to send or in flight, and a little longer (Connection::settle). Pooled:
/// there is one for every connection that there may be, so it is always to be had.
struct Sending {
    Sending(Position first, LossRecovery::Learned learned) : recovery(learned) { queue.start(first); }

    LossRecovery recovery;
    SendQueue queue;
    Position timed_end = 0;             // the ACK of this ends the measured round trip
    Instant timed_at{};
};

class Connection final : public TimerNode {
public:
    // --- for the owner ----------------------------------------------------------------------------------------------
    const Endpoint& local() const { return local_; }
    const Endpoint& remote() const { return remote_; }
    State state() const { return state_; }
    Info info() const;

    /// Appends a list of chunks (first .. last, linked by next). They come back through on_released. Allowed until
    /// shutdown_write(); afterwards, or when the connection has ended, they come back at once. Marks for output.
    /// `more`: the owner sends more at once, so what fills no segment waits for that, for an ACK, or as long as a cork holds (MSG_MORE).
    void send(SendChunk* first, SendChunk* last, bool more = false);
    /// What was appended so far, but for the last `behind` bytes, ends with an urgent octet. The latest one counts.
    void mark_urgent(std::uint64_t behind);
    /// FIN after everything appended so far. Idempotent.
    void shutdown_write();
    /// The application has taken `bytes` of delivered data: the window may open. Marks for output if the peer should know.
    /// `memory_scarce`: the buffer does not grow, but shrinks towards its least, unless the application has fixed it.
    void consumed(std::uint32_t bytes, bool memory_scarce = false);
    /// Sends RST and ends; on_closed(ECONNABORTED) is called before it returns.
    void abort();
    /// The application has closed its socket: `orphan` becomes the owner (it only gets on_released, on_acknowledged and
    /// on_closed). FIN after all data; with unread data (or linger_zero) RST at once [RFC1122 4.2.2.13].
    /// Later data from the peer is answered with RST.
    void close(ConnectionOwner& orphan, bool unread_data, bool linger_zero);
    void set_owner(ConnectionOwner& owner) { owner_ = &owner; }
    void set_options(const Options& options);
    /// A Fast Open cookie is known: the SYN waits for the first data, and the application need not wait for anything.
    bool awaits_first_data() const { return syn_waits_; }
    /// Bytes appended and not yet acknowledged.
    std::uint32_t unacknowledged_bytes() const;
    /// Bytes appended that have never been sent.
    std::uint32_t unsent_bytes() const;
    std::uint32_t congestion_window() const { return congestion_->cwnd(); }
    /// What may stand in the owner's receive queue (delivered, not consumed) at most.
    std::uint32_t receive_buffer() const { return receive_buffer_; }

    // --- for the rest of TCP ----------------------------------------------------------------------------------------
    static constexpr std::uint32_t kDefaultMss = 536;  // [RFC9293 3.7.1 MUST-15]
    static constexpr std::uint32_t kDefaultMssIpv6 = 1220;

    Connection(Shared& shared, const Endpoint& local, const Endpoint& remote, std::uint32_t flow_hash,
               const Options& options);
    ~Connection();

    /// Active open: SYN at the next flush.
    void open(ConnectionOwner& owner, const Path& path, std::uint32_t iss, std::uint32_t ts_recent, Instant now);
    /// A SYN with a Fast Open cookie: a connection that may send and receive at once. SYN-ACK at the next flush.
    void open_with_syn(const Segment& syn, const Path& path, std::uint32_t iss, bool cookie_due, Instant now);
    /// The data that came with it. The owner is set.
    void take_syn_data(const Segment& syn);
    /// A half-open connection was acknowledged. The owner is set afterwards; the final ACK goes through input().
    void establish(const HalfOpen& half_open, const Path& path, Instant now);

    void input(const Segment& segment, Instant now);
    /// Everything that windows and rules allow.
    void output(Instant now);
    /// Answers with the next deadline.
    Instant on_timer(Instant now);
    void on_icmp_error(const IcmpError& error, Instant now);

    bool matches(const Endpoint& local, const Endpoint& remote) const {
        return remote_ == remote && local_ == local;
    }
    /// The next text in order, with nothing held that lies behind it: what follows it in the same burst may come with it, and
    /// nobody could tell (segment_run.h).
    bool merges(const Segment& segment) const {
        return can_receive() && !orphan_ && segment.sequence == to_wire(rcv_nxt_) && reassembler_.empty();
    }
    bool ended() const { return state_ == State::kClosed; }
    /// The stack goes down: ends without a segment or a word to the owner.
    void discard();
    /// The list of marked connections.
    bool marked() const { return marked_; }
    Connection* unmark() {
        marked_ = false;
        return std::exchange(next_marked_, nullptr);
    }

private:
    // [RFC9293 3.8.3 SHLD-11] R2: give up. Linux: 15 for data (13 to 30 minutes), 6 for SYN, 8 for orphans.
    static constexpr unsigned kMaxDataRetries = 15;
    static constexpr unsigned kMaxOrphanRetries = 8;
    static constexpr unsigned kMaxSynRetries = 6;
    static constexpr std::uint32_t kMinMss = 48;            // below, a peer or an ICMP message would make us crawl
    static constexpr std::uint32_t kMaxBurst = 256 * 1024;  // bytes a flush, for fairness among connections
    static constexpr std::uint8_t kMaxDuplicateAcks = 32;   // owed for one burst
    static constexpr Duration kChallengeInterval = std::chrono::milliseconds(100);
    static constexpr Duration kCorkTimeout = std::chrono::milliseconds(200);  // as Linux: a cork delays, never holds
    // [RFC7323 5.5] a timestamp older than 24 days says nothing.
    static constexpr Duration kPawsIdle = std::chrono::hours(24 * 24);

    // input.cc
    void input_syn_sent(const Segment& segment, Instant now);
    bool predicted(const Segment& segment) const;
    bool acceptable(const Segment& segment, Position sequence, Instant now);
    bool passes_paws(const Segment& segment, Instant now);
    void input_reset(Position sequence, Instant now);
    void challenge(Drop reason, Instant now);
    void record_timestamp(const Segment& segment, Position sequence, Instant now);

    // acknowledge.cc
    bool input_ack(const Segment& segment, Position sequence, Instant now);
    void input_ack_of_syn(const Segment& segment, Position sequence, Position ack, Instant now);
    void take_ack(const Segment& segment, Position sequence, Position ack, Instant now);
    void take_late_ack(const Segment& segment, bool same_window, Instant now);
    std::size_t sack_ranges(const Segment& segment, std::span<Range, wire::kMaxSackBlocks> ranges) const;
    void measure_round_trip(const Segment& segment, Position ack, bool late, Instant now);
    void update_send_window(const Segment& segment, Position sequence, Position ack);
    void advance_una(Position before, Instant now);
    void on_fin_acknowledged(Instant now);
    std::uint64_t in_flight() const { return snd_nxt_ - snd_una_; }
    bool fin_acknowledged() const { return fin_sent_ && snd_una_ == snd_nxt_; }

    // receive.cc
    void input_text(const Segment& segment, Position sequence, Instant now);
    void receive_in_order(const Segment& segment, std::uint32_t skip, std::uint32_t length, Instant now);
    void receive_early(const Segment& segment, Position first, std::uint32_t skip, std::uint32_t length, Instant now);
    void drain_reassembler();
    bool has_undelivered();
    void deliver_late(Instant now);
    void refuse_after_close(Instant now);
    std::uint32_t deliver(const Segment& segment, std::uint32_t skip, std::uint32_t length);
    std::uint32_t deliver(Payload payload, std::uint32_t length);
    void input_fin(Instant now);
    void tune_receive_buffer(std::uint32_t consumed_bytes, bool memory_scarce, Instant now);
    std::uint16_t window_to_advertise();
    std::uint32_t free_space() const {
        return unread_ >= receive_buffer_ ? 0 : receive_buffer_ - unread_;
    }
    std::uint32_t window_clamp() const;
    /// How much the peer may be allowed to send.
    std::uint32_t window_space() const { return std::min(free_space(), window_clamp()); }

    // ecn.cc
    void note_marks(const Segment& segment, Instant now);
    void echo_exactly(bool marked, Instant now);
    void hear_echo(Instant now);
    void note_reduction();
    wire::Ecn mark_segment(Position first, std::uint32_t length, wire::TcpFlags& flags) const;

    // urgent.cc
    void input_urgent(const Segment& segment, Position sequence);
    void point_at_urgent(Position first, wire::TcpHeader& header) const;
    void end_urgent();

    // output.cc
    void send_syn(Instant now);
    void send_data(Instant now);
    struct Sendable {
        std::uint32_t length = 0;
        bool fin = false;      // FIN goes with it, or alone
        bool blocked = false;  // something waits, but for the peer's window, Nagle or the cork
        bool probe = false;    // one segment, longer than the MSS
        explicit operator bool() const { return length > 0 || fin; }
    };
    Sendable next_new_data(std::uint32_t room) const;
    bool last_may_be_small() const;
    Sendable widened(const Sendable& next, std::uint64_t permitted, std::uint32_t room) const;
    bool retransmit(const LossRecovery::Permit& permit, const wire::TcpOptions& options, std::uint32_t room, Instant now);
    /// More than `segment_size` bytes: as one packet that the device cuts.
    bool send_segment(Position first, std::uint32_t length, wire::TcpFlags flags, const wire::TcpOptions& options,
                      SendQueue::Reader* payload, Instant now, std::uint32_t segment_size = UINT32_MAX);
    bool send_ack(Instant now);
    void send_reset(Instant now);
    wire::TcpOptions segment_options(Instant now) const;
    bool refresh_path(Instant now);
    bool transmit_new(const Sendable& next, const wire::TcpOptions& options, std::uint32_t room, Instant now);
    bool send_probe(const wire::TcpOptions& options, std::uint32_t room, Instant now);
    void log_sent(Range range, bool again, Instant now);
    std::uint64_t pacing_rate() const;
    bool departs(std::uint64_t rate, std::uint32_t room, Instant& quantum_ends, Instant now);
    void arm_loss_probe(Instant now);
    void arm_retransmission(Instant now);
    void update_mss();
    std::uint32_t advertised_mss() const;
    std::uint32_t payload_room(const wire::TcpOptions& options) const;
    std::uint32_t now_stamp(Instant now) const;  // TSval

    // mtu_probing.cc
    bool searches_mtu() const { return mtu_search_ != MtuSearchPool::kNone; }
    MtuSearch& mtu_search() const;
    std::uint32_t usable_mtu() const;
    std::uint32_t widest_packet() const;
    bool search_mtu(std::uint32_t low);
    void suspect_black_hole();
    void suspect_path();
    Sendable probing_mtu(const Sendable& next, std::uint32_t room, Instant now);
    void note_mtu_probe(Range range, std::uint32_t room);
    void hear_of_mtu_probe(Instant now);
    bool mtu_probe_lost(Position una, Instant now);
    void forgive_mtu_probe();
    void end_mtu_search();

    // timers.cc
    void on_retransmission_timer(Instant now);
    void on_syn_timer(Instant now);
    void on_probe_timer(Instant now);
    void on_flight_timer(Instant now);
    RoundTrip round_trip() const { return {rtt_.srtt(), rtt_.min_rtt()}; }
    void on_idle_timer(Instant now);
    void start_idle_timer(Instant now);
    bool give_up(unsigned retries, unsigned limit, Instant now);
    Instant earliest_deadline() const;
    /// A deadline was set: the wheel must wake us no later. Whoever sets one says so, because asking for the earliest of
    /// all costs more than all else that a timer does.
    void due(Instant deadline);

    // connection.cc, opening.cc
    void mark();
    void report_duplicate(Range range) { dsack_ = {to_wire(range.first), to_wire(range.end)}; }  // [RFC2883 4]
    Position peer_fin() const { return widen(peer_fin_, rcv_nxt_); }
    void owe_ack() {
        ack_due_ = true;
        mark();
    }
    Sending& sending();
    /// Nothing is left to send and nothing in flight: what only senders need goes back.
    void settle();
    /// The position behind the last byte that the owner has given.
    Position queue_end() const { return sending_ != nullptr ? sending_->queue.end() : snd_nxt_ - (fin_sent_ ? 1 : 0); }
    void set_state(State state);
    void negotiate(const wire::TcpOptions& options);
    std::uint32_t add_fast_open(wire::TcpOptions& options, Instant now);
    void judge_fast_open(const Segment& segment, Position ack, Instant now);
    void let_syn_go() {
        if (!syn_waits_) return;
        syn_waits_ = false;
        syn_due_ = true;
    }
    /// FIN waits for the handshake. [RFC9293 3.10.4]
    bool fin_wanted() const { return shutdown_ && state_ != State::kSynReceived; }
    void become_established(Instant now);
    void enter_time_wait(Instant now);
    /// The end: everything is given back, the owner is told, the memory waits for the next flush.
    void finish(int error);
    bool can_receive() const {
        return state_ == State::kEstablished || state_ == State::kFinWait1 || state_ == State::kFinWait2;
    }

    // --- every segment ----------------------------------------------------------------------------------------------
    Shared& shared_;
    ConnectionOwner* owner_ = nullptr;
    State state_ = State::kClosed;
    std::uint8_t snd_scale_ = 0;
    std::uint8_t rcv_scale_ = 0;
    std::uint8_t duplicate_acks_due_ = 0;
    std::uint8_t soft_error_ = 0;       // errno of the last ICMP error that may pass, since the last progress
    bool timestamps_ : 1 = false;       // negotiated
    bool sack_ : 1 = false;             // negotiated
    bool scaling_ : 1 = false;          // negotiated
    bool ecn_ : 1 = false;              // negotiated; in SYN-SENT: asked for
    bool ece_ : 1 = false;              // ACKs echo a congestion mark
    bool cwr_due_ : 1 = false;          // the next new data says that the window was reduced
    bool ecn_reduced_ : 1 = false;      // it was, for something sent before ecn_recover_
    bool ect_seen_ : 1 = false;         // the peer's data was ECN-capable
    bool marked_ : 1 = false;           // in Shared::marked
    bool ack_due_ : 1 = false;
    bool syn_due_ : 1 = false;
    bool shutdown_ : 1 = false;         // the owner has no more to send: FIN comes after the queue
    bool fin_sent_ : 1 = false;         // snd_nxt_ counts it
    bool fin_known_ : 1 = false;        // the peer's FIN stands at peer_fin_
    bool orphan_ : 1 = false;           // the application has closed
    bool probing_ : 1 = false;          // retransmit_at_ is the zero-window probe's, or the cork's
    bool more_to_come_ : 1 = false;     // says the owner: as a cork, until the next send, ACK or kCorkTimeout
    bool push_out_ : 1 = false;         // the probe timer overrides Nagle, cork and small windows once
    bool probe_due_ : 1 = false;        // a segment that makes the peer answer (window probe, keepalive)
    bool window_limited_ : 1 = false;   // the sender last stopped for cwnd
    bool timing_ : 1 = false;           // a round trip is being measured
    bool measured_ : 1 = false;         // one was, since the last loss probe
    bool established_once_ : 1 = false;
    bool counted_ : 1 = false;          // in Counters::tcp_established
    bool fixed_buffer_ : 1 = false;     // the application chose the receive buffer's size
    bool fast_open_active_ : 1 = false;   // we have asked for a cookie, or used one
    bool fast_open_passive_ : 1 = false;  // accepted with its SYN
    bool cookie_due_ : 1 = false;       // ... with a cookie of the last key: the SYN-ACK brings a new one
    bool syn_waits_ : 1 = false;        // for the first data, to take it along
    bool syn_data_ : 1 = false;         // went with a SYN, and was taken
    bool urgent_ : 1 = false;           // Shared::urgent has a place for us: something urgent is not acknowledged
    bool handed_over_ : 1 = false;      // a TIME-WAIT record has the flow and the port
    Position snd_una_ = 0;
    Position snd_nxt_ = 0;              // the highest ever sent; retransmissions do not move it back
    Position rcv_nxt_ = 0;
    Position rcv_edge_ = 0;             // the right edge of the window, as the peer knows it; never moves left
    Position last_ack_sent_ = 0;        // [RFC7323 4.3]
    std::uint32_t snd_wnd_ = 0;         // scaled
    std::uint32_t unread_ = 0;          // delivered, not consumed
    std::uint32_t receive_buffer_ = 0;
    std::uint32_t ts_recent_ = 0;
    std::uint32_t ts_offset_ = 0;
    std::uint32_t mss_ = kDefaultMss;   // of payload, the usual options taken off
    Instant last_received_{};
    Instant retransmit_at_ = kNever;    // RTO, SYN, probe
    Connection* next_marked_ = nullptr;
    Reassembler reassembler_;
    DelayedAck delayed_ack_;
    Sending* sending_ = nullptr;        // null: an idle sender, everything is acknowledged
    // --- every segment with data or an ACK of it --------------------------------------------------------------------
    std::uint32_t snd_wl1_ = 0;         // on the wire [RFC9293 3.3.1]
    std::uint32_t snd_wl2_ = 0;
    Position snd_small_ = 0;            // end of the last segment smaller than MSS (Minshall's Nagle)
    std::uint32_t max_snd_wnd_ = 0;     // [RFC9293 3.8.6.2.1]
    std::uint32_t ecn_recover_ = 0;     // on the wire: SND.NXT at the last reduction, while ecn_reduced_
    Instant last_sent_{};               // data
    Instant progress_at_{};             // when the oldest byte in flight left, or a wait for the peer's window began
    RttEstimator rtt_;
    CongestionState congestion_;
    Path path_;
    // --- who, and rarely ---------------------------------------------------------------------------------------------
    Endpoint local_;
    Endpoint remote_;
    std::uint32_t hash_;
    std::uint16_t peer_mss_ = 0;        // as announced
    std::uint8_t retries_ = 0;          // SYNs or window probes sent without an answer
    std::uint8_t keepalive_probes_ = 0; // sent without an answer
    LossRecovery::Learned learned_;     // while there is no Sending
    std::uint32_t mtu_search_ = MtuSearchPool::kNone;  // our place in Shared::mtu_searches
    std::uint32_t peer_fin_ = 0;        // on the wire, while fin_known_
    struct WireRange {
        std::uint32_t first = 0;
        std::uint32_t end = 0;
    };
    WireRange dsack_;                   // to be reported in the next ACK; empty: nothing is
    Instant ts_recent_at_{};
    Instant challenge_at_{};            // the next answer to an unacceptable segment not before
    Instant idle_at_ = kNever;          // keepalive, or FIN-WAIT-2 of an orphan
    Instant tune_start_{};
    std::uint32_t tune_bytes_ = 0;
    std::uint32_t total_retransmits_ = 0;
    const Options* options_;            // shared (OptionsTable)
};

}  // namespace culvert::stack::tcp
