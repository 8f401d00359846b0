// Socket: MSG_MORE and UDP_CORK, and EMSGSIZE in the error queue.
//
//   send(MSG_MORE) send(MSG_MORE) send()            one datagram; to where, from where and how the first one says
//   UDP_CORK 1     send() send()     UDP_CORK 0     the same
//
// The parts lie in the process (mapped with the first, kept for the next datagram), so a datagram belongs to the process that began it:
// after a fork both have it. Which half sends it is decided by the first part; what the kernel's half has begun it gets all of.
// A part that would make the datagram too long loses it, as on Linux.
//
// A datagram that may not be cut and is too long for its way is refused with EMSGSIZE and, if the program asked for errors, told of in
// the error queue: the notices lie in the process, too.

#include "preload/datagram_cork.h"

#include <netinet/in.h>
#include <sys/mman.h>
#include <time.h>

#include <linux/errqueue.h>  // needs timespec

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "preload/address.h"
#include "preload/epoll_set.h"
#include "preload/fail.h"
#include "preload/socket.h"
#include "preload/socket_inline.h"

namespace culvert::preload {

CorkedDatagram* CorkedDatagram::make() noexcept {
    void* const memory = ::mmap(nullptr, sizeof(CorkedDatagram), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? nullptr : static_cast<CorkedDatagram*>(memory);
}

void CorkedDatagram::destroy(CorkedDatagram* datagram) noexcept {
    if (datagram != nullptr) ::munmap(datagram, sizeof *datagram);
}

void DatagramState::drop_cork() noexcept {
    CorkedDatagram::destroy(pending.exchange(nullptr, std::memory_order_acq_rel));
    CorkedDatagram::destroy(spare.exchange(nullptr, std::memory_order_acq_rel));
}

/// One part of a datagram; `header`, `v4` and `mtu` count if it is the first. `more`: another one follows.
ssize_t Socket::send_part(const msghdr& message, const shm::DatagramHeader& header, bool v4, std::uint32_t mtu, int flags, bool more) noexcept {
    const KeepErrno keep;
    const std::size_t length = total_length(message);
    CorkedDatagram* whole = nullptr;
    const int state = send_datagram_state();
    int error = state;
    std::size_t refused = 0;
    {
        const SocketLock lock(*client_, shared().app.tx_lock);
        CorkedDatagram* pending = datagram_->pending.load(std::memory_order_relaxed);
        if (pending != nullptr && pending->v4 && length > 0xffff) return keep.fail(EMSGSIZE);  // said before it is looked at any further
        if (pending == nullptr && error == 0) {
            pending = datagram_->spare.exchange(nullptr, std::memory_order_acq_rel);
            if (pending == nullptr) pending = CorkedDatagram::make();
            if (pending == nullptr) return keep.fail(ENOBUFS);
            pending->header = header;
            pending->v4 = v4;
            pending->mtu = mtu;
            pending->length = 0;
        }
        if (error == 0) error = check_datagram(pending->length + length, pending->header, pending->v4, pending->mtu);
        refused = pending != nullptr ? pending->length + length : 0;
        datagram_->pending.store(error == 0 && more ? pending : nullptr, std::memory_order_relaxed);
        if (error == 0) {
            for (std::size_t i = 0; i < message.msg_iovlen; ++i) {
                const iovec& part = message.msg_iov[i];
                if (part.iov_len != 0) std::memcpy(pending->bytes + pending->length, part.iov_base, part.iov_len);
                pending->length += static_cast<std::uint32_t>(part.iov_len);
            }
            if (more) return static_cast<ssize_t>(length);
        }
        whole = pending;
    }
    if (error != 0 && state == 0) tell_too_long(error, std::min<std::size_t>(refused, 0xffff), whole->header, whole->v4, whole->mtu);
    if (error == 0 && send_whole(*whole, flags) < 0) error = errno;
    keep_spare(whole);
    return error != 0 ? keep.fail(error) : static_cast<ssize_t>(length);
}

ssize_t Socket::send_whole(CorkedDatagram& datagram, int flags) noexcept {
    iovec part{datagram.bytes, datagram.length};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    datagram.header.length = datagram.length;
    return send_datagram_blocks(message, datagram.header, flags);
}

void Socket::keep_spare(CorkedDatagram* datagram) noexcept {
    CorkedDatagram* none = nullptr;
    if (datagram != nullptr && !datagram_->spare.compare_exchange_strong(none, datagram, std::memory_order_acq_rel))
        CorkedDatagram::destroy(datagram);
}

/// UDP_CORK has been taken off. The kernel tells nobody what becomes of the datagram.
void Socket::uncork() noexcept {
    const KeepErrno keep;
    CorkedDatagram* whole = nullptr;
    if (datagram_->pending.load(std::memory_order_relaxed) == nullptr) return;
    {
        const SocketLock lock(*client_, shared().app.tx_lock);
        whole = datagram_->pending.exchange(nullptr, std::memory_order_relaxed);
    }
    if (whole == nullptr) return;
    if (!record_lost()) send_whole(*whole, 0);
    keep_spare(whole);
}

// --- EMSGSIZE -----------------------------------------------------------------------------------------------------------

/// A datagram of `length` bytes has been refused with `error`.
void Socket::tell_too_long(int error, std::size_t length, const shm::DatagramHeader& header, bool v4, std::uint32_t mtu) noexcept {
    // More than the field for it holds is not looked at any further by IPv4; segments of many (UDP_SEGMENT) are just refused.
    if (error != EMSGSIZE || (v4 && length > 0xffff) || (header.segment_size != 0 && length > header.segment_size)) return;
    const std::uint32_t asked = v4 ? shm::kOptionErrors4 : shm::kOptionErrors6;
    if (path() != Path::kDatagram || (shared().options.flags & asked) == 0) return;
    const KeepErrno keep;
    {
        const SocketLock lock(*client_, shared().app.tx_lock);
        const std::uint32_t made = datagram_->errors_made.load(std::memory_order_relaxed);
        if (made - datagram_->errors_told.load(std::memory_order_acquire) >= DatagramState::kMaxLocalErrors) return;
        DatagramState::LocalError& entry = datagram_->local_errors[made % DatagramState::kMaxLocalErrors];
        entry.to = header.remote.family != 0 ? header.remote : shm::WireEndpoint(shared().remote);
        if (v4 && !datagram_connected_) entry.to.port = 0;  // Linux: the port that the socket is connected to
        entry.mtu = mtu;
        datagram_->errors_made.store(made + 1, std::memory_order_release);
    }
    wake_own_watchers();
}

bool Socket::has_local_error() const noexcept {
    return datagram_ != nullptr && datagram_->errors_made.load(std::memory_order_relaxed) != datagram_->errors_told.load(std::memory_order_relaxed);
}

/// recv(MSG_ERRQUEUE), or -1 with EAGAIN. Under rx_lock.
ssize_t Socket::take_local_error(msghdr& message) noexcept {
    const std::uint32_t told = datagram_->errors_told.load(std::memory_order_relaxed);
    if (datagram_->errors_made.load(std::memory_order_acquire) == told) return fail(EAGAIN);
    const DatagramState::LocalError entry = datagram_->local_errors[told % DatagramState::kMaxLocalErrors];
    datagram_->errors_told.store(told + 1, std::memory_order_release);
    shm::DatagramErrorHeader header{};
    header.remote = entry.to;
    header.error = EMSGSIZE;
    header.origin = SO_EE_ORIGIN_LOCAL;
    header.info = entry.mtu;
    message.msg_flags = MSG_ERRQUEUE;
    from_wire(header.remote, family_, static_cast<sockaddr*>(message.msg_name), &message.msg_namelen);
    write_error_control(message, header, family_);
    return 0;
}

/// There is something in the error queue that the daemon does not know of. Epoll sets of this process look again; whoever sleeps in poll or
/// select is told by the daemon, as soon as there is room to send.
void Socket::wake_own_watchers() noexcept {
    notify_became_ours(*this);
    shm::SocketRecord& record = shared();
    if (record.app.watch.load(std::memory_order_seq_cst) == shm::kWatchNone) return;
    record.app.flags.fetch_or(shm::kAppWantWrite, std::memory_order_seq_cst);
    client_->post(record_.load(std::memory_order_relaxed));
}

}  // namespace culvert::preload
