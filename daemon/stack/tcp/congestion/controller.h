// Congestion control as the rest of TCP sees it: events in, a window out.
//
//   loss_recovery -- what happened --> controller -- cwnd --> loss_recovery -- may send? --> output
//
// A controller knows nothing about segments or holes; loss recovery knows nothing about curves. The window and the
// threshold lie in the base class, so reading them is no virtual call. Controllers live in a fixed buffer inside the
// connection (CongestionState) and are never allocated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <optional>
#include <string_view>

#include "daemon/base/instant.h"
#include "daemon/stack/tcp/sequence.h"

namespace culvert::stack::tcp {

enum class Algorithm : std::uint8_t { kNewReno, kCubic };

/// "reno", "cubic": the names of TCP_CONGESTION.
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

/// In bytes throughout.
class CongestionController {
public:
    /// [RFC6928 2] min(10*MSS, max(2*MSS, 14600))
    static std::uint32_t initial_window(std::uint32_t mss);

    virtual Algorithm algorithm() const = 0;

    virtual void on_ack(const AckEvent& event) = 0;
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
};

/// The storage of a connection's controller.
class CongestionState {
public:
    CongestionState(Algorithm algorithm, std::uint32_t mss) { create(algorithm, mss); }
    CongestionState(const CongestionState&) = delete;
    CongestionState& operator=(const CongestionState&) = delete;

    /// Another algorithm takes over with the same window.
    void change(Algorithm algorithm);

    CongestionController* operator->() { return get(); }
    const CongestionController* operator->() const { return get(); }
    CongestionController& operator*() { return *get(); }
    const CongestionController& operator*() const { return *get(); }

private:
    static constexpr std::size_t kBytes = 96;

    template <typename Controller>
    void emplace(std::uint32_t mss);
    void create(Algorithm algorithm, std::uint32_t mss);
    // Every controller begins with its CongestionController (checked in emplace).
    CongestionController* get() { return std::launder(reinterpret_cast<CongestionController*>(storage_)); }
    const CongestionController* get() const {
        return std::launder(reinterpret_cast<const CongestionController*>(storage_));
    }

    alignas(8) std::byte storage_[kBytes];
};
static_assert(sizeof(CongestionState) <= 104);

}  // namespace culvert::stack::tcp
