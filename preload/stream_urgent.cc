// Socket: urgent data of a TCP connection, as Linux gives it to programs (tcp(7), RFC 6093): one octet out of band.
//
//   stream   ... a b c U d e ...     recv() ends before U, once; the next one goes on behind it (SO_OOBINLINE: with it)
//                      ^             recv(MSG_OOB) gives U, once; POLLPRI until then; SIOCATMARK while the reader stands at U
//
// U lies in the stream, where the daemon has delivered it, and a copy with its position in SocketRecord::urgent. What has
// been passed by reading is gone, also if nobody took it out of band. A connection with an owner, who wants SIGURG, is
// elsewhere (async_signals.cc).

#include <cerrno>
#include <cstring>

#include "preload/fail.h"
#include "preload/socket.h"
#include "preload/socket_inline.h"
#include "shm/urgent.h"

namespace culvert::preload {

/// How the reader stands to the urgent octet: `known` if it is at it or before it.
Socket::Urgent Socket::urgent() const noexcept {
    const shm::SocketRecord& record = shared();
    if ((record.daemon.status.load(std::memory_order_acquire) & shm::kStatusUrgent) == 0) [[likely]]
        return {};
    const std::uint64_t word = record.urgent.load(std::memory_order_acquire);
    const std::uint64_t consumed = record.app.rx_consumed.load(std::memory_order_relaxed);
    const std::int64_t ahead = shm::urgent_ahead(word, consumed);
    const std::uint32_t read = record.app.urgent_read.load(std::memory_order_relaxed);
    Urgent urgent;
    urgent.in_line = (record.options.flags & shm::kOptionUrgentInline) != 0;
    urgent.at_read = read == shm::urgent_mark(consumed);
    if ((word & shm::kUrgentKnown) == 0 || ahead < 0) return urgent;
    urgent.known = true;
    urgent.ahead = static_cast<std::uint64_t>(ahead);
    urgent.position = consumed + urgent.ahead;
    urgent.read = read == shm::urgent_mark(urgent.position);
    urgent.arrived = (word & shm::kUrgentArrived) != 0 && !urgent.read;
    urgent.octet = shm::urgent_octet(word);
    return urgent;
}

/// What a read that has `copied` something already may take now. Under rx_lock, after refill_stash().
Socket::Reach Socket::reach(std::size_t copied) const noexcept {
    const Urgent urgent = this->urgent();
    if (urgent.known && urgent.ahead == 0 && copied != 0) return {.most = 0, .hole = 0};
    Reach reach;
    // An octet that was taken out of band is not read again in line, though another mark has taken the place of its own.
    if (!urgent.in_line && (urgent.at_read || (urgent.known && urgent.ahead == 0))) reach.hole = 1;
    if (urgent.known && urgent.ahead > reach.hole)
        reach.most = urgent.ahead - reach.hole;
    else if (urgent.known && urgent.ahead != 0)
        reach.hole = 2;  // the next mark stands right behind
    return reach;
}

/// Given that there are bytes: are there some that recv() would take?
bool Socket::has_ordinary_bytes() const noexcept {
    const shm::SocketRecord& record = shared();
    if ((record.daemon.status.load(std::memory_order_acquire) & shm::kStatusUrgent) == 0) [[likely]]
        return true;
    const std::size_t hole = reach(0).hole;
    return hole == 0 || record.daemon.rx_delivered.load(std::memory_order_acquire) -
                                record.app.rx_consumed.load(std::memory_order_relaxed) > hole;
}

/// SIOCINQ: up to the mark, if there is one among what has come.
std::uint64_t Socket::bytes_to_mark(std::uint64_t unread) const noexcept {
    const Urgent urgent = this->urgent();
    return urgent.known && !urgent.in_line && urgent.ahead < unread ? urgent.ahead : unread;
}

/// recv(MSG_OOB): never waits, as on Linux.
ssize_t Socket::receive_urgent(const iovec* parts, std::size_t count, int flags) noexcept {
    const KeepErrno keep;
    shm::SocketRecord& record = shared();
    const SocketLock lock(*client_, record.app.rx_lock);
    const Urgent urgent = this->urgent();
    if (record_lost() || !urgent.known || urgent.in_line || urgent.read) return keep.fail(EINVAL);
    if (!urgent.arrived) {
        const std::uint32_t status = record.daemon.status.load(std::memory_order_acquire);
        const bool shut = (record.app.flags.load(std::memory_order_relaxed) & shm::kAppShutRead) != 0;
        const bool ended = shut || (status & (shm::kStatusPeerClosed | shm::kStatusDead)) != 0;
        return ended ? 0 : keep.fail(EAGAIN);
    }
    if ((flags & MSG_PEEK) == 0) {
        if (urgent.at_read && urgent.ahead != 0) {  // one octet is remembered as taken; the one before is passed now
            refill_stash();
            char nothing = 0;
            const iovec nowhere{&nothing, 1};
            consumed(take_bytes(&nowhere, 1, 0, false, true, {.most = 0, .hole = 1}).passed);
        }
        record.app.urgent_read.store(shm::urgent_mark(urgent.position), std::memory_order_relaxed);
    }
    for (std::size_t i = 0; i < count; ++i) {
        if (parts[i].iov_len == 0) continue;
        if ((flags & MSG_TRUNC) == 0) std::memcpy(parts[i].iov_base, &urgent.octet, 1);
        return 1;
    }
    return 0;
}

}  // namespace culvert::preload
