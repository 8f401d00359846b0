// Urgent data: RFC 9293 3.8.5, with the meaning of the pointer that everybody gives it (RFC 6093): it names the octet after
// the last urgent one.
//
//   sending     queue  [..........U....]     SND.UP stands behind U, in Shared::urgent. Every segment that begins before it
//                                 |          says URG and how far away it is; with nothing to carry it, an ACK does at once.
//   receiving   RCV.NXT --ahead-->U          the owner is told how far ahead the urgent octet is; the octet itself comes in
//                                            its place in the stream, and what it means there is the owner's to say.
#include <algorithm>

#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/tcp/shared.h"

namespace culvert::stack::tcp {

// [RFC9293 3.8.5 MUST-62]
void Connection::mark_urgent(std::uint64_t behind) {
    if (ended() || shutdown_ || behind > unacknowledged_bytes()) return;
    const Position end = queue_end() - behind;
    if (end <= snd_una_ || !shared_.urgent.set(shared_.connections.index_of(this), end)) {
        ++shared_.counters.tcp_urgent_refused;
        return;
    }
    urgent_ = true;
    // The peer hears of it at once, also while its window is shut. [RFC9293 3.8.5]
    if (established_once_) owe_ack();
}

/// SND.UNA has reached the end of the urgent data, or the connection ends.
void Connection::end_urgent() {
    if (snd_una_ < shared_.urgent.find(shared_.connections.index_of(this)) && !ended()) return;
    shared_.urgent.erase(shared_.connections.index_of(this));
    urgent_ = false;
}

/// [RFC9293 3.8.5 MUST-30] Also if the end is beyond what 16 bits can say: then a later segment says it exactly. Not when
/// old data goes again, from which the end was too far the first time, too.
void Connection::point_at_urgent(Position first, wire::TcpHeader& header) const {
    const Position end = shared_.urgent.find(shared_.connections.index_of(this));
    if (first >= end || (end - first > 0xffff && first < snd_nxt_)) return;
    header.flags |= wire::kUrg;
    header.urgent = static_cast<std::uint16_t>(std::min<Position>(end - first, 0xffff));
}

/// [RFC9293 3.10.7.4, sixth] [RFC9293 3.8.5 MUST-31] The pointer may be ahead of everything that has come, and of the window.
void Connection::input_urgent(const Segment& segment, Position sequence) {
    if (segment.urgent == 0 || orphan_ || !can_receive()) return;
    const Position octet = sequence + segment.urgent - 1;
    // What was delivered cannot become urgent any more, and behind a FIN there is nothing.
    if (octet < rcv_nxt_ || (fin_known_ && octet >= peer_fin_)) return;
    ++shared_.counters.tcp_urgent_in;
    owner_->on_urgent(*this, octet - rcv_nxt_);
}

}  // namespace culvert::stack::tcp
