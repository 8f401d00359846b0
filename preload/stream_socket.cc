// Socket as a TCP connection: connect, send, receive, shutdown, close.

#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "preload/address.h"
#include "preload/async_signals.h"
#include "preload/confined.h"
#include "preload/fail.h"
#include "preload/header_options.h"
#include "preload/libc.h"
#include "preload/socket.h"
#include "preload/socket_inline.h"
#include "preload/waiting.h"
#include "shm/base/fault_point.h"

namespace culvert::preload {

namespace {

/// Blocks handed over at once: the daemon starts to send while we go on copying.
constexpr std::uint32_t kBlocksPerPush = 32;

std::size_t total_bytes(const iovec* parts, std::size_t count) noexcept {
    std::size_t total = 0;
    for (std::size_t i = 0; i < count; ++i) total += parts[i].iov_len;
    return total;
}

/// sendfile() reads from what has pages; a pipe or a socket would be read here, but not there. 0 or an errno value.
int refuse_source(int in_fd) noexcept {
    struct stat status{};
    const KeepErrno keep;
    const int flags = libc::fcntl(in_fd, F_GETFL);
    if (flags < 0 || (flags & O_ACCMODE) == O_WRONLY || (flags & O_PATH) != 0 || ::fstat(in_fd, &status) != 0) return EBADF;
    return S_ISREG(status.st_mode) || S_ISBLK(status.st_mode) || S_ISCHR(status.st_mode) ? 0 : EINVAL;
}

void raise_sigpipe() noexcept {
    if (is_confined()) return;
    const KeepErrno keep;
    ::syscall(SYS_tgkill, ::syscall(SYS_getpid), ::syscall(SYS_gettid), SIGPIPE);
}

}  // namespace

// --- connect ------------------------------------------------------------------------------------------------------------

int Socket::connect_kernel(int fd, const sockaddr* address, socklen_t length, shm::KernelReason reason) noexcept {
    if (const int error = strict_error(reason)) return fail(error);
    if (Client* client = Client::current()) client->note_reason(fd, reason);
    const int result = libc::connect(fd, address, length);
    // Under way or done: a second connect() is the kernel's business too.
    const bool stays = result == 0 || errno == EINPROGRESS || errno == EINTR || errno == EISCONN || errno == EALREADY;
    connecting_.store(stays ? Connecting::kKernel : Connecting::kNo, std::memory_order_relaxed);
    return result;
}

bool Socket::bind_in_range(int fd, const sockaddr* address, socklen_t length, std::uint16_t port) noexcept {
    constexpr int kLocalPortRange = 51;  // IP_LOCAL_PORT_RANGE: the lowest in the low half, the highest in the high one
    std::uint32_t range = 0;
    socklen_t size = sizeof range;
    if (port == 0 || libc::getsockopt(fd, IPPROTO_IP, kLocalPortRange, &range, &size) != 0 || range != 0) return false;
    range = std::uint32_t{port} << 16 | port;
    if (libc::setsockopt(fd, IPPROTO_IP, kLocalPortRange, &range, socklen_t{sizeof range}) != 0) return false;
    sockaddr_storage name{};
    socklen_t name_length = sizeof name;
    auto* const sockname = reinterpret_cast<sockaddr*>(&name);
    // IP_BIND_ADDRESS_NO_PORT: no port is taken before connect().
    const bool bound = bind_kernel(fd, address, length) == 0 && libc::getsockname(fd, sockname, &name_length) == 0 &&
                       to_wire(sockname, name_length, family_)->port != 0;
    range = 0;
    libc::setsockopt(fd, IPPROTO_IP, kLocalPortRange, &range, socklen_t{sizeof range});
    return bound;
}

/// To a port of the kernel's choice, at once, whatever IP_BIND_ADDRESS_NO_PORT says.
bool Socket::bind_to_any_port(int fd, const sockaddr* address, socklen_t length) noexcept {
    int later = 0;
    socklen_t size = sizeof later;
    if (libc::getsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &later, &size) != 0) later = 0;
    const auto set = [&](int value) { libc::setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &value, socklen_t{sizeof value}); };
    if (later != 0) set(0);
    const bool bound = bind_kernel(fd, address, length) == 0;
    if (later != 0) set(later);
    return bound;
}

int Socket::connect_stream(int fd, const sockaddr* address, socklen_t length) noexcept {
    if (static_cast<int>(length) < 0 || length > sizeof(sockaddr_storage)) return fail(EINVAL);
    if (address == nullptr && length != 0) return fail(EFAULT);
    if (length < sizeof(sa_family_t)) return fail(EINVAL);
    if (address->sa_family == AF_UNSPEC)
        return disconnect(fd, address, length);
    if (path() == Path::kConnection) return finish_connect(fd, !nonblocking(), EALREADY);
    if (is_shut()) stop_listening(fd);
    if (path() != Path::kKernel || connecting_.load(std::memory_order_relaxed) == Connecting::kKernel)
        return libc::connect(fd, address, length);
    const auto remote = to_wire(address, length, family_);
    if (!remote) return libc::connect(fd, address, length);
    if (is_unspecified(*remote) || is_multicast(*remote))
        return connect_kernel(fd, address, length, shm::KernelReason::kLoopback);

    int saved = errno;
    Client* client = Client::attached();  // whose daemon has a policy, too
    const shm::KernelReason policy = why_kernel(shm::Policy::Protocol::kTcp, shm::Policy::Call::kConnect, *remote);
    if (policy != shm::KernelReason::kUnknown) return connect_kernel(fd, address, length, policy);
    if (needs_kernel_.load(std::memory_order_relaxed) || has_header_options(fd, family_) || has_owner(fd))
        return connect_kernel(fd, address, length, shm::KernelReason::kOption);
    errno = saved;
    if (client == nullptr) return connect_kernel(fd, address, length, shm::KernelReason::kNoDaemon);
    const std::uint32_t record = prepare_record(*client);
    if (record == shm::kNoIndex) return connect_kernel(fd, address, length, shm::KernelReason::kTableFull);
    const auto through_kernel = [&](shm::KernelReason reason) {
        client->let_go(record, false);
        errno = saved;
        return connect_kernel(fd, address, length, reason);
    };
    bool interrupted = false;
    if (const int error = operate(*client, record, shm::Operation::kRoute, 0, {}, *remote, &interrupted); error != 0)
        return through_kernel(reason_of_route(error, *remote));
    shm::WireEndpoint source = client->segment().socket(record).local;
    CULVERT_FAULT_POINT(connect_routed);

    // The kernel's socket holds the port, so that no other program gets it.
    sockaddr_storage name{};
    socklen_t name_length = sizeof name;
    auto* const sockname = reinterpret_cast<sockaddr*>(&name);
    if (libc::getsockname(fd, sockname, &name_length) != 0) return through_kernel(shm::KernelReason::kUnknown);
    auto local = to_wire(sockname, name_length, family_);
    if (local && local->port == 0) {
        shm::WireEndpoint wanted = is_unspecified(*local) ? source : *local;
        // The daemon's proposal first: it knows which ports wait for their last connection to this peer to be forgotten. Whether
        // anybody else has it the kernel says.
        const auto bind_to = [&](std::uint16_t port, auto&& bind) {
            wanted.port = port;
            name_length = sizeof name;
            from_wire(wanted, family_, sockname, &name_length);
            return bind();
        };
        const auto simply = [&] { return bind_kernel(fd, sockname, name_length) == 0; };
        const bool bound = bind_to(0, [&] { return bind_in_range(fd, sockname, name_length, source.port); }) ||
                           (source.port != 0 && bind_to(source.port, simply)) ||
                           bind_to(0, [&] { return bind_to_any_port(fd, sockname, name_length); });
        if (!bound) return through_kernel(shm::KernelReason::kOption);
        name_length = sizeof name;
        if (libc::getsockname(fd, sockname, &name_length) != 0) return through_kernel(shm::KernelReason::kUnknown);
        local = to_wire(sockname, name_length, family_);
    }
    if (!local || local->port == 0) return through_kernel(shm::KernelReason::kOption);
    if (is_unspecified(*local)) {
        const std::uint16_t port = local->port;
        local = source;
        local->port = port;
    }
    local->family = remote->family;
    CULVERT_FAULT_POINT(connect_bound);
    if (const int error = operate(*client, record, shm::Operation::kConnect, 0, *local, *remote, &interrupted); error != 0)
        return through_kernel(reason_of(error, shm::KernelReason::kRefused));

    connecting_.store(Connecting::kCulvert, std::memory_order_relaxed);
    learn_file_flags(fd);
    adopt(*client, record, Path::kConnection);
    client->note_reason(fd, shm::KernelReason::kUnknown);
    errno = saved;
    // Without Fast Open a connection is never there at once, however quick the peer has been.
    const bool at_once = (shared().options.flags & shm::kOptionFastOpen) != 0 &&
                         (shared().daemon.status.load(std::memory_order_acquire) & shm::kStatusReady) != 0;
    // A handler that ran while the daemon was asked has interrupted connect() all the same: an alarm may be the only way out.
    if (interrupted && !nonblocking() && !at_once && !handlers_restart()) return fail(EINTR);
    if (at_once || !nonblocking()) return finish_connect(fd, true, EINPROGRESS);
    return fail(EINPROGRESS);
}

/// MSG_FASTOPEN: connects and sends, the data with the SYN if the daemon (or the kernel, where it connects) knows a
/// cookie; else the handshake comes first. It is TCP_FASTOPEN_CONNECT, connect and send in one call, so the option tells
/// both of them; errors and EINPROGRESS are Linux's.
ssize_t Socket::send_fast_open(int fd, const msghdr& message, int flags) noexcept {
    if (message.msg_name == nullptr) return path() == Path::kConnection ? fail(EINVAL) : libc::sendmsg(fd, &message, flags);
    const bool fresh = path() == Path::kKernel;
    if (fresh) {
        const int on = 1;
        if (set_option(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &on, sizeof on) != 0) return -1;
    }
    if (connect_stream(fd, static_cast<const sockaddr*>(message.msg_name), message.msg_namelen) != 0) return -1;
    msghdr rest = message;
    rest.msg_name = nullptr;
    rest.msg_namelen = 0;
    return send(fd, rest, flags & ~MSG_FASTOPEN);
}

/// `unfinished`: what it says if it does not end now.
int Socket::finish_connect(int fd, bool wait, int unfinished) noexcept {
    const KeepErrno keep;
    if (connecting_.load(std::memory_order_relaxed) != Connecting::kCulvert) return keep.fail(EISCONN);
    shm::SocketRecord& record = shared();
    const auto settled = [&] {
        return (record.daemon.status.load(std::memory_order_acquire) & (shm::kStatusReady | shm::kStatusDead)) != 0 ||
               record_lost();
    };
    if (!settled()) {
        if (!wait) return keep.fail(unfinished);
        const int woken = wait_for(*client_, record, spin_history_,
                                   send_timeout_ns_.load(std::memory_order_relaxed), settled, true);
        if (woken == EAGAIN) return keep.fail(unfinished);
        if (woken != 0) return keep.fail(woken);
    }
    const std::uint32_t status = record.daemon.status.load(std::memory_order_acquire);
    if ((status & shm::kStatusReady) != 0 && !record_lost()) {
        connecting_.store(Connecting::kNo, std::memory_order_relaxed);
        return 0;
    }
    if (connecting_.load(std::memory_order_relaxed) != Connecting::kCulvert) return keep.fail(ECONNRESET);  // another thread gave it up
    const int error = take_error();
    // As the kernel disconnects a socket whose connect() has told the failure: it is as before, ready for another attempt.
    free_own_port(fd);
    abandon();
    connecting_.store(Connecting::kNo, std::memory_order_relaxed);
    return keep.fail(error != 0 ? error : ECONNABORTED);  // told by SO_ERROR before
}

// --- errors -------------------------------------------------------------------------------------------------------------

/// The pending error, once: as sock_error() in the kernel.
int Socket::take_error() noexcept {
    if (record_lost() && path() != Path::kConnection) return 0;  // the kernel's half goes on, and has its own
    if (record_lost()) return error_reported_.exchange(true, std::memory_order_relaxed) ? 0 : ECONNRESET;
    std::atomic<std::int32_t>& error = shared().daemon.error;
    if (error.load(std::memory_order_relaxed) == 0) return 0;
    return error.exchange(0, std::memory_order_acq_rel);
}

/// What has been said of a connection that goes on (sk_err_soft of Linux).
int Socket::take_soft_error() noexcept {
    if (record_lost()) return 0;
    std::atomic<std::uint32_t>& error = shm::soft_error(shared().daemon);
    return error.load(std::memory_order_relaxed) == 0 ? 0 : static_cast<int>(error.exchange(0, std::memory_order_relaxed));
}

// --- send ---------------------------------------------------------------------------------------------------------------

std::uint64_t Socket::send_room() const noexcept {
    const shm::SocketRecord& record = shared();
    const std::uint64_t in_flight = record.app.tx_queued.load(std::memory_order_relaxed) -
                                    record.daemon.tx_released.load(std::memory_order_acquire);
    const std::uint64_t limit = record.daemon.send_limit.load(std::memory_order_relaxed);
    return in_flight < limit ? limit - in_flight : 0;
}

/// Room worth telling of.
bool Socket::has_room() const noexcept {
    const shm::SocketRecord& record = shared();
    const std::uint32_t limit = record.daemon.send_limit.load(std::memory_order_relaxed);
    const shm::SegmentHeader& header = client_->segment().header();
    return shm::worth_writing(send_room(), limit, record.options.notsent_lowat) &&
           static_cast<std::uint32_t>(header.tx_free.load(std::memory_order_relaxed)) != 0;
}

/// Asks the daemon to tell when there is room; true if there is some already. The daemon may have looked at the flag just
/// before: it is made to look again.
bool Socket::arm_write_notice() noexcept {
    shm::SocketRecord& record = shared();
    shm::SegmentHeader& header = client_->segment().header();
    if (static_cast<std::uint32_t>(header.tx_free.load(std::memory_order_relaxed)) == 0)
        header.tx_starved.store(1, std::memory_order_seq_cst);
    const std::uint32_t before = record.app.flags.fetch_or(shm::kAppWantWrite, std::memory_order_seq_cst);
    if (has_room()) return true;
    if ((before & shm::kAppWantWrite) == 0) client_->post(record_.load(std::memory_order_relaxed));
    return false;
}

/// 0: may send; an errno value; EAGAIN: still connecting. EPIPE comes without the signal.
int Socket::send_state() noexcept {
    const shm::SocketRecord& record = shared();
    if (const int error = take_error()) return error;
    const std::uint32_t status = record.daemon.status.load(std::memory_order_acquire);
    if ((status & (shm::kStatusDead | shm::kStatusWriteClosed)) != 0 || record_lost()) return EPIPE;
    if ((record.app.flags.load(std::memory_order_relaxed) & shm::kAppShutWrite) != 0) return EPIPE;
    return (status & shm::kStatusReady) != 0 ? 0 : EAGAIN;
}

int Socket::wait_writable(std::int64_t timeout_ns) noexcept {
    shm::SocketRecord& record = shared();
    return wait_for(*client_, record, spin_history_, timeout_ns, [&] {
        if (record_lost()) return true;
        const std::uint32_t status = record.daemon.status.load(std::memory_order_acquire);
        if ((status & (shm::kStatusDead | shm::kStatusWriteClosed | shm::kStatusMoved)) != 0) return true;
        if (record.daemon.error.load(std::memory_order_relaxed) != 0) return true;
        if ((record.app.flags.load(std::memory_order_relaxed) & shm::kAppShutWrite) != 0) return true;
        return (status & shm::kStatusReady) != 0 && (has_room() || arm_write_notice());
    }, true);
}

template <class Fill>
ssize_t Socket::send_stream(std::size_t total, int flags, Fill&& fill) noexcept {
    const KeepErrno keep;
    shm::SocketRecord& record = shared();
    shm::BlockMeta* const meta = client_->segment().block_meta();
    const std::int64_t timeout = send_timeout_ns_.load(std::memory_order_relaxed);
    const std::int64_t deadline = timeout >= 0 ? now_ns() + timeout : -1;
    std::size_t sent = 0;
    for (;;) {
        int state = 0;
        int source_error = 0;
        bool source_ended = false;
        {
            const SocketLock lock(*client_, record.app.tx_lock);
            if (is_elsewhere()) [[unlikely]]
                return sent != 0 ? static_cast<ssize_t>(sent) : kElsewhere;
            state = send_state();
            while (state == 0 && sent < total && !source_ended) {
                std::array<std::uint32_t, kBlocksPerPush> blocks;
                std::array<iovec, kBlocksPerPush> parts;
                const std::size_t room = std::min<std::size_t>(total - sent, send_room());
                std::size_t taken = 0;
                std::size_t count = 0;
                for (; taken < room && count < kBlocksPerPush; ++count) {
                    blocks[count] = client_->take_block();
                    if (blocks[count] == shm::kNoIndex) break;
                    const std::size_t size = std::min<std::size_t>(room - taken, shm::kBlockSize);
                    parts[count] = {client_->segment().block(blocks[count]), size};
                    taken += size;
                }
                if (count == 0) break;
                CULVERT_FAULT_POINT(send_blocks_taken);
                const ssize_t got = fill(parts.data(), count);
                if (got < 0) source_error = static_cast<int>(-got);
                const std::size_t batch = got > 0 ? static_cast<std::size_t>(got) : 0;
                source_ended = batch < taken;
                // Linked newest first; what was not filled goes back.
                std::uint32_t newest = shm::kNoIndex;
                std::size_t left = batch;
                for (std::size_t i = 0; i < count; ++i) {
                    const std::uint32_t block = blocks[i];
                    const std::size_t size = std::min<std::size_t>(left, parts[i].iov_len);
                    if (size == 0) {
                        client_->untake_block(block);
                        continue;
                    }
                    meta[block].length.store(static_cast<std::uint32_t>(size), std::memory_order_relaxed);
                    meta[block].offset.store(0, std::memory_order_relaxed);
                    meta[block].flags.store(0, std::memory_order_relaxed);
                    meta[block].next.store(newest == shm::kNoIndex ? shm::kEmptyList : newest + 1,
                                           std::memory_order_relaxed);
                    newest = block;
                    left -= size;
                }
                if (newest == shm::kNoIndex) break;
                const std::uint32_t oldest = blocks[0];
                if ((flags & MSG_MORE) != 0) meta[newest].flags.store(shm::kBlockMoreToCome, std::memory_order_relaxed);
                // The last byte of the call, or of what there is room for: then the rest points further.
                if ((flags & MSG_OOB) != 0 && (count < kBlocksPerPush || taken == room))
                    meta[newest].flags.store(shm::kBlockUrgent, std::memory_order_relaxed);
                // Counted before it is pushed: what is released is never more than what is queued.
                record.app.tx_queued.store(record.app.tx_queued.load(std::memory_order_relaxed) + batch,
                                           std::memory_order_release);
                CULVERT_FAULT_POINT(send_counted);
                shm::push_chain(record.app.tx_list, meta, newest, oldest);
                CULVERT_FAULT_POINT(send_pushed);
                client_->post(record_.load(std::memory_order_relaxed));
                sent += batch;
            }
        }
        if (sent == total && state == 0) return static_cast<ssize_t>(sent);
        if (state != 0 && state != EAGAIN) {
            if (sent != 0) return static_cast<ssize_t>(sent);
            if (state == EPIPE && (flags & MSG_NOSIGNAL) == 0) raise_sigpipe();
            return keep.fail(state);
        }
        if (source_ended) {
            if (sent == 0 && source_error != 0) return keep.fail(source_error);
            return static_cast<ssize_t>(sent);
        }
        if (!wants_to_wait(flags)) {
            // An edge-triggered watcher waits for the notice without asking again. Room that appeared since the attempt
            // brings no notice: it is used.
            const bool watched = record.app.watch.load(std::memory_order_relaxed) != shm::kWatchNone;
            if (watched && state == 0 && arm_write_notice()) continue;
            return sent != 0 ? static_cast<ssize_t>(sent) : keep.fail(EAGAIN);
        }
        const std::int64_t left = deadline < 0 ? -1 : std::max<std::int64_t>(deadline - now_ns(), 0);
        if (const int woken = wait_writable(left); woken != 0)
            return sent != 0 ? static_cast<ssize_t>(sent) : keep.fail(woken);
    }
}

ssize_t Socket::send_parts(const iovec* parts, std::size_t count, int flags) noexcept {
    std::size_t part = 0;
    std::size_t at = 0;
    return send_stream(total_bytes(parts, count), flags, [&](const iovec* to, std::size_t blocks) -> ssize_t {
        std::size_t copied = 0;
        for (const iovec* block = to; block != to + blocks; ++block) {
            auto* const begin = static_cast<std::byte*>(block->iov_base);
            for (std::size_t filled = 0; filled < block->iov_len && part < count;) {
                const std::size_t size = std::min(parts[part].iov_len - at, block->iov_len - filled);
                if (size != 0)
                    std::memcpy(begin + filled, static_cast<const std::byte*>(parts[part].iov_base) + at, size);
                filled += size;
                copied += size;
                at += size;
                if (at == parts[part].iov_len) {
                    ++part;
                    at = 0;
                }
            }
        }
        return static_cast<ssize_t>(copied);
    });
}

ssize_t Socket::sendfile(int fd, int in_fd, off_t* offset, std::size_t count) noexcept {
    if (path() != Path::kConnection) return libc::sendfile(fd, in_fd, offset, count);
    constexpr std::size_t kMost = 0x7ffff000;  // MAX_RW_COUNT
    // The file is looked at before the socket: what is wrong there, or its end, is told first.
    const bool refuses = record_lost() || shared().daemon.error.load(std::memory_order_relaxed) != 0 ||
                         (shared().daemon.status.load(std::memory_order_relaxed) & shm::kStatusReady) == 0 || !has_room() ||
                         (shared().app.flags.load(std::memory_order_relaxed) & shm::kAppShutWrite) != 0;
    // Where it is read at an offset and the socket takes it, the reading says as much, and costs nothing more.
    if (count == 0 || refuses || offset == nullptr) {
        if (const int refused = refuse_source(in_fd)) return fail(refused);
    }
    if (count == 0 || refuses) {
        char byte = 0;
        const long from = offset != nullptr ? long{*offset} : ::syscall(SYS_lseek, in_fd, 0L, SEEK_CUR);
        if (from < 0 && offset == nullptr && errno == EBADF) return -1;
        if (from >= 0 || offset != nullptr) {
            const long got = ::syscall(SYS_pread64, in_fd, &byte, count != 0 ? 1L : 0L, from);
            if (got <= 0) return got;
        }
    }
    off_t at = offset != nullptr ? *offset : 0;
    const ssize_t sent = send_stream(std::min(count, kMost), 0, [&](const iovec* to, std::size_t blocks) -> ssize_t {
        // Read no further than what the blocks take: without an offset the file's own position moves with it.
        const long got = offset != nullptr ? ::syscall(SYS_preadv, in_fd, to, blocks, at, 0L)
                                           : ::syscall(SYS_readv, in_fd, to, blocks);
        if (got < 0) return errno == ESPIPE || errno == EISDIR ? -EINVAL : -errno;  // no pages: as refuse_source()
        at += got;
        return got;
    });
    if (sent == kElsewhere) return follow() ? libc::sendfile(fd, in_fd, offset, count) : -1;
    if (sent >= 0 && offset != nullptr) *offset = at;
    return sent;
}

// --- receive ------------------------------------------------------------------------------------------------------------

bool Socket::readable() const noexcept {
    const shm::SocketRecord& record = shared();
    return record.app.stash_head.load(std::memory_order_relaxed) != shm::kEmptyList ||
           record.daemon.rx_list.load(std::memory_order_acquire) != shm::kEmptyList;
}

std::uint64_t Socket::unread() const noexcept {
    const shm::SocketRecord& record = shared();
    const std::uint64_t delivered = record.daemon.rx_delivered.load(std::memory_order_acquire);
    const std::uint64_t consumed = record.app.rx_consumed.load(std::memory_order_relaxed);
    return delivered > consumed ? delivered - consumed : 0;
}

/// SO_RCVLOWAT, as far as the receive buffer can ever hold so much: half of it, as Linux limits it.
std::size_t Socket::low_water() const noexcept {
    constexpr std::uint32_t kUntuned = 128 * 1024;
    const std::uint32_t buffer = shared().options.receive_buffer;
    const auto wanted = static_cast<std::size_t>(low_water_.load(std::memory_order_relaxed));
    return std::clamp<std::size_t>(wanted, 1, std::max<std::uint32_t>(buffer != 0 ? buffer / 2 : kUntuned, 1));
}

/// Takes what has come and appends it to the stash, oldest first. Under rx_lock.
void Socket::refill_stash() noexcept {
    shm::SocketRecord& record = shared();
    std::uint32_t link = shm::take_all(record.daemon.rx_list);
    if (link == shm::kEmptyList) return;
    CULVERT_FAULT_POINT(receive_list_taken);
    const std::uint32_t limit = client_->segment().geometry().blocks();
    shm::BlockMeta* const meta = client_->segment().block_meta();
    const std::uint32_t newest = link;
    std::uint32_t oldest = shm::kEmptyList;
    for (std::uint32_t steps = 0; link != shm::kEmptyList && link <= limit && steps < limit; ++steps) {
        const std::uint32_t next = meta[link - 1].next.load(std::memory_order_relaxed);
        meta[link - 1].next.store(oldest, std::memory_order_relaxed);
        oldest = link;
        link = next;
    }
    if (oldest == shm::kEmptyList) return;
    if (record.app.stash_head.load(std::memory_order_relaxed) == shm::kEmptyList)
        record.app.stash_head.store(oldest, std::memory_order_relaxed);
    else
        meta[record.app.stash_tail.load(std::memory_order_relaxed) - 1].next.store(oldest, std::memory_order_relaxed);
    record.app.stash_tail.store(newest, std::memory_order_relaxed);
    CULVERT_FAULT_POINT(receive_stashed);
}

/// Copies from the stash, after the first `skip` bytes of the application's buffers. Under rx_lock.
Socket::Taken Socket::take_bytes(const iovec* parts, std::size_t count, std::size_t skip, bool peek, bool discard,
                                 Reach reach) noexcept {
    shm::SocketRecord& record = shared();
    const std::uint32_t limit = client_->segment().geometry().blocks();
    shm::BlockMeta* const meta = client_->segment().block_meta();
    std::size_t part = 0;
    while (part < count && skip >= parts[part].iov_len) skip -= parts[part++].iov_len;
    std::size_t at = skip;
    Taken taken;
    std::uint32_t link = record.app.stash_head.load(std::memory_order_relaxed);
    std::uint32_t first_done = shm::kEmptyList;
    std::uint32_t last_done = shm::kEmptyList;
    std::uint32_t guard = 0;
    while (link != shm::kEmptyList && link <= limit && part < count && guard++ < limit) {
        const std::uint32_t block = link - 1;
        std::uint32_t offset = meta[block].offset.load(std::memory_order_relaxed);
        std::uint32_t length = meta[block].length.load(std::memory_order_relaxed);
        offset = std::min(offset, shm::kBlockSize);
        length = std::min(length, shm::kBlockSize - offset);
        if (taken.passed < reach.hole) [[unlikely]] {
            const auto size = static_cast<std::uint32_t>(std::min<std::size_t>(length, reach.hole - taken.passed));
            offset += size;
            length -= size;
            taken.passed += size;
        }
        const std::byte* from = client_->segment().block(block) + offset;
        while (length != 0 && part < count && taken.bytes < reach.most) {
            const auto size = static_cast<std::uint32_t>(
                std::min({std::size_t{length}, parts[part].iov_len - at, reach.most - taken.bytes}));
            if (!discard && size != 0) std::memcpy(static_cast<std::byte*>(parts[part].iov_base) + at, from, size);
            from += size;
            offset += size;
            length -= size;
            taken.bytes += size;
            at += size;
            if (at == parts[part].iov_len) {
                ++part;
                at = 0;
            }
        }
        const std::uint32_t next = meta[block].next.load(std::memory_order_relaxed);
        if (!peek) {
            meta[block].offset.store(offset, std::memory_order_relaxed);
            meta[block].length.store(length, std::memory_order_relaxed);
        }
        if (length != 0) break;
        if (first_done == shm::kEmptyList) first_done = link;
        last_done = link;
        link = next;
    }
    if (!peek && first_done != shm::kEmptyList) {
        record.app.stash_head.store(link <= limit ? link : shm::kEmptyList, std::memory_order_relaxed);
        client_->return_blocks(first_done - 1, last_done - 1);
    }
    return taken;
}

/// Under rx_lock. The daemon is told only when the peer waits for window.
void Socket::consumed(std::size_t bytes) noexcept {
    shm::SocketRecord& record = shared();
    const std::uint64_t before = record.app.rx_consumed.load(std::memory_order_relaxed);
    record.app.rx_consumed.store(before + bytes, std::memory_order_release);
    if (before + bytes >= record.daemon.window_position.load(std::memory_order_relaxed))
        client_->post(record_.load(std::memory_order_relaxed));
}

/// `peek_offset`: MSG_PEEK begins so many bytes behind the front (SO_PEEK_OFF).
ssize_t Socket::receive_stream(const iovec* parts, std::size_t count, int flags, std::size_t peek_offset) noexcept {
    if ((flags & MSG_OOB) != 0) return receive_urgent(parts, count, flags);
    const KeepErrno keep;
    const std::size_t want = total_bytes(parts, count);
    const bool peek = (flags & MSG_PEEK) != 0;
    const std::size_t target = (flags & MSG_WAITALL) != 0 ? want : std::min(want, low_water());
    const std::int64_t timeout = receive_timeout_ns_.load(std::memory_order_relaxed);
    const std::int64_t deadline = timeout >= 0 ? now_ns() + timeout : -1;
    shm::SocketRecord& record = shared();
    std::size_t copied = 0;
    for (;;) {
        // The state first: what it says about the end holds for everything that is in the list afterwards.
        const std::uint32_t status = record.daemon.status.load(std::memory_order_acquire);
        const bool lost = record_lost();
        bool more = false;
        bool at_mark = false;
        const std::uint64_t delivered = record.daemon.rx_delivered.load(std::memory_order_acquire);
        if (peek) copied = 0;  // always from the front
        if (!lost || client_->daemon_gone()) {
            const SocketLock lock(*client_, record.app.rx_lock);
            if (is_elsewhere()) [[unlikely]]
                return copied != 0 ? static_cast<ssize_t>(copied) : kElsewhere;
            refill_stash();
            // After the stash: whoever finds the urgent octet there knows of it. [RFC9293 3.8.5]
            Reach reach;
            if ((record.daemon.status.load(std::memory_order_relaxed) & shm::kStatusUrgent) != 0) [[unlikely]]
                reach = this->reach(copied);
            if (peek_offset != 0) [[unlikely]] {
                reach.hole += peek_offset;
                if (reach.most != SIZE_MAX) reach.most -= std::min(reach.most, peek_offset);
            }
            const Taken taken = take_bytes(parts, count, copied, peek, (flags & MSG_TRUNC) != 0, reach);
            copied += taken.bytes;
            CULVERT_FAULT_POINT(receive_copied);
            at_mark = taken.bytes == reach.most;
            if (taken.bytes + taken.passed != 0 && !peek && !lost) consumed(taken.bytes + taken.passed);
            // The daemon forgets the mark that we have passed.
            if (taken.passed != 0 && !peek) client_->post(record_.load(std::memory_order_relaxed));
            more = record.app.stash_head.load(std::memory_order_relaxed) != shm::kEmptyList;
        }
        if (copied != 0 && (copied >= target || at_mark)) return static_cast<ssize_t>(copied);
        if (want == 0 && more) return 0;
        const bool shut = (record.app.flags.load(std::memory_order_relaxed) & shm::kAppShutRead) != 0;
        const bool ended = lost || shut || (status & (shm::kStatusPeerClosed | shm::kStatusDead)) != 0;
        if (copied != 0 && (ended || record.daemon.error.load(std::memory_order_relaxed) != 0))
            return static_cast<ssize_t>(copied);
        if (const int error = take_error()) return keep.fail(error);
        if (ended) return 0;
        if (!wants_to_wait(flags)) return copied != 0 ? static_cast<ssize_t>(copied) : keep.fail(EAGAIN);
        const std::int64_t left = deadline < 0 ? -1 : std::max<std::int64_t>(deadline - now_ns(), 0);
        const int woken = wait_for(*client_, record, spin_history_, left, [&] {
            const bool more_to_peek = (copied == 0 && unread() > peek_offset) ||
                                      record.daemon.rx_delivered.load(std::memory_order_acquire) != delivered;
            return (readable() && has_ordinary_bytes() && (!peek || more_to_peek)) || record_lost() || record.daemon.error.load(std::memory_order_relaxed) != 0 ||
                   (record.daemon.status.load(std::memory_order_acquire) &
                    (shm::kStatusPeerClosed | shm::kStatusDead | shm::kStatusMoved)) != 0 ||
                   (record.app.flags.load(std::memory_order_relaxed) & shm::kAppShutRead) != 0;
        }, true);
        if (want == 0) return 0;  // recv() of no bytes waits once, as Linux does, and is content with what comes
        if (woken != 0) return copied != 0 ? static_cast<ssize_t>(copied) : keep.fail(woken);
    }
}

// --- the end ------------------------------------------------------------------------------------------------------------

int Socket::shutdown(int fd, int how) noexcept {
    const Path path = this->path();
    if (path == Path::kKernel) return libc::shutdown(fd, how);
    if (how != SHUT_RD && how != SHUT_WR && how != SHUT_RDWR) return fail(EINVAL);
    if (path == Path::kListener) {
        // Linux turns it back into a closed socket, which may listen again.
        if (how != SHUT_WR) end_listening(fd);
        return libc::shutdown(fd, how);
    }
    const KeepErrno keep;
    int result = 0;
    if (path == Path::kDatagram) {
        // The kernel's half as well. A socket without a peer is shut all the same, and told ENOTCONN.
        result = libc::shutdown(fd, how);
        if (datagram_connected_) result = 0;
    } else {
        const std::uint32_t status = shared().daemon.status.load(std::memory_order_acquire);
        if ((status & (shm::kStatusReady | shm::kStatusDead)) == 0 && !record_lost()) {
            end_connection(fd);  // SYN sent: Linux disconnects
            return 0;
        }
        if ((status & shm::kStatusReady) == 0 || (status & shm::kStatusDead) != 0 || record_lost())
            return keep.fail(ENOTCONN);
    }
    shm::SocketRecord& record = shared();
    std::uint32_t flags = 0;
    if (how != SHUT_WR) flags |= shm::kAppShutRead;
    if (how != SHUT_RD) flags |= shm::kAppShutWrite;
    {
        // After what other threads are just sending.
        const SocketLock lock(*client_, record.app.tx_lock);
        record.app.flags.fetch_or(flags, std::memory_order_seq_cst);
        CULVERT_FAULT_POINT(shutdown_flagged);
    }
    client_->post(record_.load(std::memory_order_relaxed));
    // Our own readers and writers sleep on the daemon's word; the daemon would not wake them for a SHUT_RD.
    if (record.app.waiters.load(std::memory_order_seq_cst) != 0) {
        record.daemon.event_sequence.fetch_add(1, std::memory_order_seq_cst);
        shm::futex_wake_all(record.daemon.event_sequence);
    }
    return keep.pass(result);
}

/// SO_LINGER with a time: close() waits until the peer has acknowledged everything.
void Socket::wait_for_linger() noexcept {
    shm::SocketRecord& record = shared();
    const shm::SocketOptions options = record.options;
    if ((options.flags & shm::kOptionLinger) == 0 || options.linger_s == 0) return;
    if (shared_.load(std::memory_order_relaxed) || record_lost()) return;
    {
        const SocketLock lock(*client_, record.app.tx_lock);
        record.app.flags.fetch_or(shm::kAppShutWrite | shm::kAppWantWrite, std::memory_order_seq_cst);
    }
    client_->post(record_.load(std::memory_order_relaxed));
    const std::int64_t deadline = now_ns() + std::int64_t{std::min(options.linger_s, 86400u)} * 1'000'000'000;
    for (;;) {
        const std::int64_t left = deadline - now_ns();
        if (left <= 0) return;
        // The daemon's notice of room comes before the last byte is acknowledged, so look again every 10 ms.
        const auto done = [&] {
            return record.daemon.tx_released.load(std::memory_order_acquire) ==
                       record.app.tx_queued.load(std::memory_order_relaxed) ||
                   (record.daemon.status.load(std::memory_order_acquire) & shm::kStatusDead) != 0 || record_lost();
        };
        const int woken = wait_for(*client_, record, spin_history_, std::min<std::int64_t>(left, 10'000'000), done);
        if (woken != EAGAIN) return;
        client_->check_daemon();
    }
}

}  // namespace culvert::preload
