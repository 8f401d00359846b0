// What a connection does with congestion marks, RFC 3168 6.1 and RFC 8257 3.
//
//   receiver  CE on a data segment ---> ECE on every ACK until the peer says CWR
//             (exactly, for DCTCP:      ECE on the ACKs of marked segments, and of no others)
//   sender    ECE on an ACK ----------> the window shrinks, at most once a window; CWR on the next new segment
//
// The window of a reduction lasts until everything sent before it is acknowledged (ecn_recover_): losses and echoes of
// the same window are one sign of congestion, not two.
#include "daemon/stack/tcp/ecn.h"

#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/tcp/shared.h"

namespace culvert::stack::tcp {

/// An acceptable segment of a connection that has negotiated ECN. The receiver's side.
void Connection::note_marks(const Segment& segment, Instant now) {
    const wire::Ecn mark = ecn_of(segment.ip.tos);
    if (segment.payload_length == 0) return;  // [RFC3168 6.1.4] only data is ECN-capable: a mark elsewhere says nothing
    if (mark != wire::Ecn::kNotCapable) ect_seen_ = true;
    const bool marked = mark == wire::Ecn::kCongestion;
    if (marked) ++shared_.counters.tcp_ce_in;
    if (congestion_->wants_exact_echo()) {
        echo_exactly(marked, now);
        return;
    }
    if (segment.flags.cwr()) {  // [RFC3168 6.1.3] the peer has shrunk its window
        ece_ = false;
        owe_ack();  // the window may be a single segment now: do not let it wait
    }
    if (marked && !ece_) {  // a marked segment with CWR begins anew
        ece_ = true;
        owe_ack();
    }
}

/// [RFC8257 3.2] The ACKs must carry the marks one for one, also when one ACK serves several segments: where marks begin
/// or end, what came before is acknowledged first, with the flag that fits it.
void Connection::echo_exactly(bool marked, Instant now) {
    if (marked == ece_) return;
    const bool waits = ack_due_ || delayed_ack_.pending();
    if (waits && rcv_nxt_ > last_ack_sent_ && refresh_path(now)) send_ack(now);
    ece_ = marked;
    owe_ack();
}

/// An ACK at or above SND.UNA with ECE. The sender's side. [RFC3168 6.1.2]
void Connection::hear_echo(Instant now) {
    // A window that was reduced already, for a loss or another mark, is not reduced again.
    if (ecn_reduced_ || sending_->recovery.state() != LossRecovery::State::kOpen) return;
    const std::uint64_t flight = in_flight();
    if (flight == 0) return;  // everything it may speak of is acknowledged, and nothing would be slowed down
    congestion_->on_congestion_echo(now, flight);
    ++shared_.counters.tcp_ecn_reductions;
    note_reduction();
}

/// The congestion window has shrunk, for whatever reason. [RFC3168 6.1.2]
void Connection::note_reduction() {
    if (!ecn_) return;
    ecn_reduced_ = true;
    ecn_recover_ = to_wire(snd_nxt_);
    cwr_due_ = true;
}

/// The ECN bits of a segment that is about to leave: flags are added to it, the IP field is the result.
wire::Ecn Connection::mark_segment(Position first, std::uint32_t length, wire::TcpFlags& flags) const {
    if (ece_) flags |= wire::kEce;
    // [RFC3168 6.1.4, 6.1.5, 6.1.6] new data only: no pure ACK, no retransmission, no window probe
    if (length == 0 || first < snd_nxt_) return wire::Ecn::kNotCapable;
    if (cwr_due_) flags |= wire::kCwr;
    return wire::Ecn::kCapable0;
}

}  // namespace culvert::stack::tcp
