// The path's packet size when nobody tells it: black holes found by timeouts, the way back up by probes. RFC 4821.
//
//   timeout, timeout --> smaller segments (1024, then 536; 1220 over IPv6) --> probe: one segment of new data that is
//   larger than the others --> acknowledged: that is the size now    --> ... --> as large as the link takes: over
//                          --> lost (three times): not so large, and cwnd keeps what it had
#include <algorithm>

#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/tcp/mss.h"
#include "daemon/stack/tcp/shared.h"

namespace culvert::stack::tcp {
namespace {

/// [RFC4821 7.2] eff_pmtu to begin with, bytes of a packet: 1024 of payload, as Linux' tcp_base_mss; then what every IPv4 host
/// takes. [RFC8200 5] every IPv6 link takes 1280.
std::uint32_t base_mtu(const Address& remote, bool first) {
    if (!remote.is_v4()) return 1280;
    return first ? 1024 + 40 : 576;
}

}  // namespace

MtuSearch& Connection::mtu_search() const { return shared_.mtu_searches[mtu_search_]; }

/// What packets may be by what we know: link, routers, and the search if there is one.
std::uint32_t Connection::usable_mtu() const {
    return searches_mtu() ? std::min(path_.mtu, mtu_search().low) : path_.mtu;
}

/// What the link, routers, the peer and the application allow: the search goes no further. Bytes of a packet.
std::uint32_t Connection::widest_packet() const {
    const std::uint32_t headers = remote_.address.is_v4() ? 40 : 60;
    std::uint32_t most = std::max<std::uint32_t>(peer_mss_, kMinMss);
    if (options_->max_segment != 0) most = std::min<std::uint32_t>(most, options_->max_segment);
    return std::min(path_.mtu, most + headers);
}

/// Packets of `low` bytes from here on, and larger ones are tried. False: no place.
bool Connection::search_mtu(std::uint32_t low) {
    if (!searches_mtu()) {
        mtu_search_ = shared_.mtu_searches.take();
        if (!searches_mtu()) {
            ++shared_.counters.tcp_no_mtu_search;
            return false;
        }
    }
    MtuSearch& search = mtu_search();
    search = {};
    search.low = low;
    search.widen(widest_packet());
    search.next = shared_.now + MtuSearch::kInterval;
    update_mss();
    return true;
}

/// [RFC4821 7.7] The timer has fired for the second time (the fourth, ...) without an ACK between, for more than a small
/// packet: what is sent again goes as large as the MSS and the data allow. Small ones may pass; what the path does with them
/// shows when they are sent.
void Connection::suspect_black_hole() {
    if (shared_.config.mtu_probing == MtuProbing::kOff || !established_once_ || path_.local) return;
    const unsigned timeouts = rtt_.backoffs();
    if (timeouts < 2 || timeouts % 2 != 0) return;
    for (const bool first : {true, false}) {
        const std::uint32_t base = base_mtu(remote_.address, first);
        const std::uint32_t smaller = mss_for_mtu(base, remote_.address);
        // A window that has shrunk or shut explains as well why nothing is acknowledged. [RFC9293 3.8.6]
        if (usable_mtu() > base && mss_ > smaller && std::min<std::uint64_t>(in_flight(), snd_wnd_) > smaller) {
            if (search_mtu(base)) ++shared_.counters.tcp_mtu_black_holes;
            return;
        }
        if (timeouts == 2) return;
    }
}

/// tcp.mtu_probing = "on": nothing is believed that was not tried.
void Connection::suspect_path() {
    if (path_.local) return;
    const std::uint32_t base = base_mtu(remote_.address, true);
    if (path_.mtu > base && mss_ > mss_for_mtu(base, remote_.address)) search_mtu(base);
}

/// The next segment of new data, which is `next` unless it is to be a probe: then longer. [RFC4821 7.4, 7.5]
Connection::Sendable Connection::probing_mtu(const Sendable& next, std::uint32_t room, Instant now) {
    MtuSearch& search = mtu_search();
    if (next.length != room || search.size != 0 || now < search.next) return next;
    if (sending_->recovery.state() != LossRecovery::State::kOpen || path_.mtu <= search.low) return next;
    if (search.done()) search.widen(widest_packet());
    const std::uint32_t size = std::min(search.next_size(), widest_packet());
    if (size <= search.low) return next;
    const std::uint32_t longer = room + (size - search.low);
    // Something must follow it, or only a timeout would tell of its loss; and the windows must take all of it.
    constexpr std::uint32_t kFollowers = 3;
    const std::uint64_t all = std::uint64_t{longer} + kFollowers * std::uint64_t{room};
    if (snd_nxt_ + all > std::min(queue_end(), snd_una_ + snd_wnd_) || in_flight() + all > congestion_->cwnd()) return next;
    return {.length = longer, .fin = false, .blocked = false, .probe = true};
}

/// The probe has left, with the data `range`.
void Connection::note_mtu_probe(Range range, std::uint32_t room) {
    MtuSearch& search = mtu_search();
    search.sent(search.low + static_cast<std::uint32_t>(range.size()) - room, range.first, range.end);
    ++shared_.counters.tcp_mtu_probes;
}

/// SND.UNA has moved: past the probe?
void Connection::hear_of_mtu_probe(Instant now) {
    MtuSearch& search = mtu_search();
    if (search.size == 0 || snd_una_ < search.end) return;
    search.arrived(now);
    if (search.low >= widest_packet()) end_mtu_search();
    update_mss();
}

/// A loss episode has begun, with everything below `una` acknowledged. If the probe is what is missing, it was too large.
/// True if so.
bool Connection::mtu_probe_lost(Position una, Instant now) {
    MtuSearch& search = mtu_search();
    if (search.size == 0) return false;
    if (una < search.first || una >= search.end) {
        search.forget(now);
        return false;
    }
    search.lost(now);
    ++shared_.counters.tcp_mtu_probes_lost;
    return true;
}

/// [RFC4821 7.6.2] The loss of a probe tells nothing about congestion: the window is again what it was before the controller
/// heard of the loss. It is the threshold, too, so that recovery ends with it; slow start is over by that.
void Connection::forgive_mtu_probe() {
    congestion_->undo();
    const std::uint32_t cwnd = congestion_->cwnd();
    congestion_->adopt(cwnd, cwnd);
}

void Connection::end_mtu_search() {
    shared_.mtu_searches.release(mtu_search_);
    mtu_search_ = MtuSearchPool::kNone;
}

}  // namespace culvert::stack::tcp
