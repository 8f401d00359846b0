// Congestion control as the rest of TCP sees it: events in, a window out.
//
//   loss_recovery -- what happened --> controller -- cwnd --> loss_recovery -- may send? --> output
//
// A controller knows nothing about segments or holes; loss recovery knows nothing about curves. The window and the
// threshold lie in the base class, so reading them is no virtual call. Controllers live in a fixed buffer inside the
// connection (CongestionState) and are never allocated.
// [RFC9293 3.8.2 MAY-18]
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <optional>
#include <string_view>

#include "daemon/base/instant.h"
#include "daemon/stack/tcp/sequence.h"

namespace culvert::stack::tcp {

enum class Algorithm : std::uint8_t { kNewReno, kCubic, kBbr, kDctcp };

/// "reno", "cubic", "bbr", "dctcp": the names of TCP_CONGESTION. "newreno" is parsed, too.
std::string_view algorithm_name(Algorithm algorithm);
std::optional<Algorithm> parse_algorithm(std::string_view name);

/// An ACK that moved SND.UNA, outside fast recovery.
struct AckEvent {
    std::uint64_t acked_bytes = 0;     // newly acknowledged by it
    Duration rtt{0};                   // measured by it; zero: not measured
    Instant now;
    std::uint64_t in_flight = 0;       // before it
    bool app_limited = false;          // the sender last stopped for want of data or of peer's window, not of cwnd
    Position snd_una = 0;              // after it
    Position snd_nxt = 0;
};

/// What one ACK tells about the path, loss or not: the rate sample of draft-ietf-ccwg-bbr 4.1, and the echo of ECN.
/// Made by the connection from its log of transmissions (sent_log.h) for every ACK that delivers something.
struct DeliveryEvent {
    Instant now;
    Position snd_una = 0;                // after the ACK
    Position snd_nxt = 0;
    std::uint64_t delivered_total = 0;   // bytes the peer has got since the connection began (C.delivered)
    std::uint64_t newly_delivered = 0;   // of them by this ACK, SACKed ones too (RS.newly_acked)
    std::uint64_t newly_lost = 0;        // bytes that this ACK showed to be lost (RS.newly_lost)
    std::uint64_t lost_total = 0;        // since the connection began (C.lost)
    std::uint64_t in_flight = 0;         // pipe, after the ACK
    std::uint64_t flight_at_send = 0;    // pipe when the newest segment of the sample left, itself included (RS.tx_in_flight)
    std::uint64_t prior_delivered = 0;   // C.delivered when it left (P.delivered)
    std::uint64_t lost_since_send = 0;   // RS.lost: lost while it was under way
    std::uint64_t sample_bytes = 0;      // delivered over `interval` (RS.delivered)
    Duration interval{0};                // zero: no valid rate sample
    Duration rtt{0};                     // of the newest segment of the sample; zero: none (sent twice)
    bool app_limited = false;            // the sample began while there was nothing to send (RS.is_app_limited)
    bool in_recovery = false;            // fast recovery or timeout recovery is going on, after this ACK
    bool echo = false;                   // the segment carried ECE, and ECN is in use
};

/// In bytes throughout.
class CongestionController {
public:
    /// [RFC6928 2] min(10*MSS, max(2*MSS, 14600))
    static std::uint32_t initial_window(std::uint32_t mss);

    virtual Algorithm algorithm() const = 0;

    virtual void on_ack(const AckEvent& event) = 0;
    /// Every ACK that delivers something or echoes a mark, also in recovery; before on_ack and on_enter_recovery.
    virtual void on_delivery(const DeliveryEvent&) {}
    /// False: on_delivery does nothing, the event need not be made. Known from the type, by CongestionState.
    bool wants_delivery() const { return wants_delivery_; }
    void set_wants_delivery(bool wants) { wants_delivery_ = wants; }
    /// ECE of RFC 3168, at most once a window: a reduction as for a loss, with nothing to repair. [RFC3168 6.1.2]
    /// DCTCP shrinks by the fraction of marks that it has counted in on_delivery.
    virtual void on_congestion_echo(Instant now, std::uint64_t in_flight) { on_enter_recovery(now, in_flight); }
    /// Loss detected by duplicate ACKs or SACK, or ECN echo. Sets ssthresh, and cwnd to it.
    /// `in_flight`: FlightSize, everything sent and not cumulatively acknowledged.
    virtual void on_enter_recovery(Instant now, std::uint64_t in_flight) = 0;
    /// Everything sent before the loss is acknowledged.
    virtual void on_exit_recovery(Instant now) = 0;
    /// The retransmission timer fired. `first`: SND.UNA has moved since it last did; otherwise ssthresh is held.
    /// cwnd becomes one MSS. [RFC5681 3.1]
    virtual void on_rto(Instant now, std::uint64_t in_flight, bool first) = 0;
    /// The last on_enter_recovery or on_rto proved spurious: restore what it took away. [RFC4015]
    virtual void undo() = 0;
    /// Nothing was sent for longer than RTO: the window says nothing about the path now. [RFC5681 4.1]
    virtual void on_idle_restart();

    std::uint32_t cwnd() const { return cwnd_; }
    std::uint32_t ssthresh() const { return ssthresh_; }
    bool in_slow_start() const { return cwnd_ < ssthresh_; }
    /// Bytes a second at which segments should leave; 0: as fast as cwnd allows.
    std::uint64_t pacing_rate() const { return pacing_rate_; }
    /// True: cwnd alone says what may be sent in recovery (BBR); false: PRR does. [RFC9937 6.1]
    bool governs_recovery() const { return governs_recovery_; }
    /// True: data is sent ECT whatever RFC 3168 negotiation allows it to, and each CE is echoed at once. [RFC8257 3]
    bool wants_exact_echo() const { return exact_echo_; }
    std::uint32_t mss() const { return mss_; }
    /// The path MTU changed, or the handshake made the MSS known. The window keeps its bytes, at least one segment.
    void set_mss(std::uint32_t mss);
    /// Takes over from another controller (TCP_CONGESTION set on a live connection) or from a test.
    void adopt(std::uint32_t cwnd, std::uint32_t ssthresh);

protected:
    explicit CongestionController(std::uint32_t mss);
    ~CongestionController() = default;

    /// True unless the window is larger than what the application used of it: growing on would promise the path a
    /// burst that nothing has tested. In slow start half the window must have been in use. [RFC7661, RFC9438 5.8]
    bool may_grow(const AckEvent& event) const;
    /// What a loss reduces: FlightSize, but no more than the window (limited transmit exceeds it). [RFC5681 3.1]
    std::uint32_t flight_size(std::uint64_t in_flight) const;
    /// cwnd += bytes, saturating.
    void grow(std::uint64_t bytes);

    std::uint32_t cwnd_;
    std::uint32_t ssthresh_ = UINT32_MAX;
    std::uint32_t mss_;
    bool wants_delivery_ = true;
    bool governs_recovery_ = false;
    bool exact_echo_ = false;
    std::uint64_t pacing_rate_ = 0;
};

class BbrPool;

/// The storage of a connection's controller. What does not fit comes from a pool: `models` is BBR's, and without one, or
/// when it is spent, CUBIC takes its place (as algorithm() then says).
class CongestionState {
public:
    CongestionState(Algorithm algorithm, std::uint32_t mss, BbrPool* models = nullptr) { create(algorithm, mss, models); }
    CongestionState(const CongestionState&) = delete;
    CongestionState& operator=(const CongestionState&) = delete;

    /// Another algorithm takes over with the same window. False: CUBIC does, there was no memory for it.
    bool change(Algorithm algorithm, BbrPool* models = nullptr);
    /// Gives back what came from a pool; the window stays readable. Must be called before a connection with BBR dies.
    void release(BbrPool& models);

    CongestionController* operator->() { return get(); }
    const CongestionController* operator->() const { return get(); }
    CongestionController& operator*() { return *get(); }
    const CongestionController& operator*() const { return *get(); }

private:
    static constexpr std::size_t kBytes = 88;

    template <typename Controller, typename... More>
    void emplace(std::uint32_t mss, More&... more);
    void create(Algorithm algorithm, std::uint32_t mss, BbrPool* models);
    // Every controller begins with its CongestionController (checked in emplace).
    CongestionController* get() { return std::launder(reinterpret_cast<CongestionController*>(storage_)); }
    const CongestionController* get() const {
        return std::launder(reinterpret_cast<const CongestionController*>(storage_));
    }

    alignas(8) std::byte storage_[kBytes];
};
static_assert(sizeof(CongestionState) <= 88);

}  // namespace culvert::stack::tcp
