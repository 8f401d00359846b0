// Socket: what a stream may be told beside its bytes.
//
//   TCP_INQ       each receive says how many bytes wait behind those that it took
//   SO_PEEK_OFF   MSG_PEEK goes on where the last one ended; reading takes the place back
//   error queue   the ICMP message that has ended an attempt to connect
//   SO_ZEROCOPY   each send with MSG_ZEROCOPY has a number, and its buffer is the program's again when the error queue says so
//
// A send copies into the segment before it returns, so its buffer is free at once, and the notice says that it was copied, as
// that of the kernel does where it must copy (loopback, veth, devices without scatter-gather). Programs read that and stop asking. The kernel merges
// neighbouring notices that nobody has read, and there is nothing else that could come between them here: two counters are the
// whole queue. They are each process's own after a fork.

#include <netinet/in.h>
#include <time.h>

#include <linux/errqueue.h>  // needs timespec

#include <algorithm>
#include <cerrno>

#include "preload/datagram_control.h"
#include "preload/fail.h"
#include "preload/option_table.h"
#include "preload/socket.h"
#include "preload/socket_inline.h"

namespace culvert::preload {

void Socket::set_wants(StreamWants what, bool on) noexcept {
    if (on)
        stream_wants_.fetch_or(what, std::memory_order_relaxed);
    else
        stream_wants_.fetch_and(static_cast<std::uint8_t>(~what), std::memory_order_relaxed);
}

void Socket::inherit_wants(const Socket& listener) noexcept {
    stream_wants_.store(listener.stream_wants_.load(std::memory_order_relaxed), std::memory_order_relaxed);
    peek_offset_.store(listener.peek_offset_.load(std::memory_order_relaxed), std::memory_order_relaxed);
}

// --- SO_PEEK_OFF --------------------------------------------------------------------------------------------------------

std::size_t Socket::peek_offset() const noexcept {
    return wants(kPeeksOnward) ? static_cast<std::size_t>(std::max(peek_offset_.load(std::memory_order_relaxed), 0)) : 0;
}

void Socket::move_peek_offset(ssize_t by) noexcept {
    if (!wants(kPeeksOnward)) return;
    int before = peek_offset_.load(std::memory_order_relaxed);
    std::int64_t after = 0;
    do {
        if (before < 0) return;
        after = std::clamp<std::int64_t>(before + std::int64_t{by}, 0, INT32_MAX);
    } while (!peek_offset_.compare_exchange_weak(before, static_cast<int>(after), std::memory_order_relaxed));
}

// --- TCP_INQ ------------------------------------------------------------------------------------------------------------

void Socket::tell_unread(msghdr& message) const noexcept {
    ControlWriter out(message);
    if (wants(kTellsUnread)) {
        int waiting = static_cast<int>(std::min<std::uint64_t>(unread(), INT32_MAX));
        // As Linux: behind the last byte the end of the stream is worth one more call.
        const std::uint32_t status = shared().daemon.status.load(std::memory_order_acquire);
        if (waiting == 0 && (status & shm::kStatusPeerClosed) != 0) waiting = 1;
        out.put(IPPROTO_TCP, kTcpInq, &waiting, sizeof waiting);  // TCP_CM_INQ
    }
    out.finish();
}

// --- MSG_ZEROCOPY -------------------------------------------------------------------------------------------------------

/// A send with MSG_ZEROCOPY has returned `sent`.
void Socket::tell_copied(ssize_t sent) noexcept {
    if (sent < (type_ == SOCK_STREAM ? 1 : 0) || !wants(kTellsCopies)) return;
    const KeepErrno keep;
    copies_made_.fetch_add(1, std::memory_order_seq_cst);
    wake_own_watchers();
}

/// recv(MSG_ERRQUEUE): never waits. The entry has no bytes and no address.
ssize_t Socket::take_copy_notice(msghdr& message) noexcept {
    const std::uint32_t made = copies_made_.load(std::memory_order_relaxed);
    const std::uint32_t told = copies_told_.exchange(made, std::memory_order_relaxed);
    if (made == told) return fail(EAGAIN);
    struct {
        sock_extended_err error;
        unsigned char offender[sizeof(sockaddr_in6)];
    } entry{};
    entry.error.ee_origin = SO_EE_ORIGIN_ZEROCOPY;
    entry.error.ee_code = SO_EE_CODE_ZEROCOPY_COPIED;
    entry.error.ee_info = told;
    entry.error.ee_data = made - 1;
    const bool v4 = family_ == AF_INET;
    message.msg_flags = MSG_ERRQUEUE;
    message.msg_namelen = 0;
    ControlWriter out(message);
    out.put(v4 ? IPPROTO_IP : IPPROTO_IPV6, v4 ? IP_RECVERR : IPV6_RECVERR, &entry,
            sizeof entry.error + (v4 ? sizeof(sockaddr_in) : sizeof(sockaddr_in6)));
    out.finish();
    return 0;
}

/// recv(MSG_ERRQUEUE): what ICMP has said of an attempt to connect, then the copies. Never waits.
ssize_t Socket::receive_error(msghdr& message, int flags) noexcept {
    const KeepErrno keep;
    if (!record_lost() && has_error_entry()) {
        const SocketLock lock(*client_, shared().app.rx_lock);
        const ssize_t got = take_error_entry(message, flags);
        if (got >= 0) return got;
    }
    return keep.pass(take_copy_notice(message));
}

}  // namespace culvert::preload
