// Socket: birth, death, and the passing from the kernel to Culvert and back.

#include "preload/socket.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "preload/address.h"
#include "preload/epoll_set.h"
#include "preload/fail.h"
#include "preload/fd_table.h"
#include "preload/kernel_probe.h"
#include "preload/libc.h"
#include "preload/listener_mode.h"
#include "preload/signals_off.h"
#include "preload/socket_lock.h"
#include "preload/startup.h"
#include "preload/waiting.h"
#include "shm/base/fault_point.h"

namespace culvert::preload {

namespace {
constinit DescriptionPool<Socket> pool;
constinit DescriptionPool<DatagramState> datagram_pool;
/// What waiting for the daemon's answers has learnt about spinning.
constinit SpinHistory answers;
constexpr std::int64_t kAnswerTimeoutNs = 5'000'000'000;
/// No record has it: the daemon counts up from 0, and four thousand million sockets are more than one record sees.
constexpr std::uint32_t kNoGeneration = UINT32_MAX;

/// How far `ahead` is ahead of `behind`, for an int. The two are read and written one after the other (the daemon counts
/// bytes as delivered after it has pushed them), so for a moment it may be the other way round: nothing.
int bytes_between(std::uint64_t ahead, std::uint64_t behind) noexcept {
    return static_cast<int>(std::clamp<std::int64_t>(static_cast<std::int64_t>(ahead - behind), 0, INT32_MAX));
}

/// As the policy numbers them: `protocol` of a raw or ping socket.
shm::Policy::Protocol protocol_of(int type, bool ping, int protocol) noexcept {
    if (type == SOCK_STREAM) return shm::Policy::Protocol::kTcp;
    if (ping || (type == SOCK_RAW && (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6))) return shm::Policy::Protocol::kIcmp;
    return type == SOCK_RAW ? shm::Policy::Protocol::kRaw : shm::Policy::Protocol::kUdp;
}

bool still_listens(int fd) noexcept {
    int listens = 0;
    socklen_t length = sizeof listens;
    return libc::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) != 0 || listens != 0;
}

/// Control messages with data on a stream: the kernel reads those of SOL_SOCKET (sock_cmsg_send) and passes the others by.
/// SO_MARK and SO_TIMESTAMPING of single segments are not ours to give; whoever asks hears of it.
bool refuses_control(const msghdr& message) noexcept {
    const auto* const begin = static_cast<const char*>(message.msg_control);
    std::size_t left = message.msg_controllen;
    for (std::size_t at = 0; left >= sizeof(cmsghdr);) {
        cmsghdr header{};
        std::memcpy(&header, begin + at, sizeof header);
        if (header.cmsg_len < sizeof header || header.cmsg_len > left) return true;
        const bool passed_by = header.cmsg_level != SOL_SOCKET || header.cmsg_type == SCM_RIGHTS || header.cmsg_type == SCM_CREDENTIALS;
        if (!passed_by) return true;
        const std::size_t step = CMSG_ALIGN(header.cmsg_len);
        if (step >= left) break;
        at += step;
        left -= step;
    }
    return false;
}
}  // namespace

shm::Policy::Protocol Socket::policy_protocol() const noexcept {
    const bool raw = is_raw();
    return protocol_of(type_, raw && type_ == SOCK_DGRAM, raw ? static_cast<int>(datagram_->raw_kind & 0xff) : 0);
}

Socket* Socket::make(int family, int type, bool nonblocking) noexcept {
    DatagramState* state = nullptr;
    if (type != SOCK_STREAM && (state = datagram_pool.make()) == nullptr) return nullptr;
    Socket* const socket = pool.make(family, type, nonblocking);
    if (socket != nullptr) {
        socket->datagram_ = state;
    } else if (state != nullptr) {
        datagram_pool.recycle(*state);
    }
    return socket;
}

int Socket::open(int domain, int type, int protocol) noexcept {
    const int kind = type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC);
    const bool carried = (domain == AF_INET || domain == AF_INET6) &&
                         ((kind == SOCK_STREAM && (protocol == 0 || protocol == IPPROTO_TCP)) ||
                          (kind == SOCK_DGRAM && (protocol == 0 || protocol == IPPROTO_UDP)));
    const bool internet = domain == AF_INET || domain == AF_INET6;
    const bool ping = kind == SOCK_DGRAM && protocol == (domain == AF_INET ? int{IPPROTO_ICMP} : int{IPPROTO_ICMPV6});
    const bool raw = internet && (kind == SOCK_RAW || ping);
    if (!carried && !raw) return libc::socket(domain, type, protocol);
    start_once();
    const KeepErrno keep;
    Client* client = Client::attached();
    const shm::KernelReason never = why_never(protocol_of(kind, ping, protocol));
    const int fd = libc::socket(domain, type, protocol);
    if (fd < 0) return keep.pass(fd);
    if (client != nullptr)
        client->note_reason(fd, never != shm::KernelReason::kUnknown ? never : shm::KernelReason::kUnconnected);
    // Without a daemon it is watched all the same: one may come while the socket is used.
    if (never != shm::KernelReason::kUnknown && strict_error(never) == 0) return fd;
    if (Socket* socket = make(domain, kind, (type & SOCK_NONBLOCK) != 0)) {
        if (raw) socket->start_raw(fd, protocol);
        FdTable::instance().insert(fd, *socket);
    }
    return fd;
}

void Socket::on_last_close() noexcept {
    const KeepErrno keep;
    if (path() == Path::kConnection) wait_for_linger();
    EpollSet::forget_everywhere(*this);
}

void Socket::dispose() noexcept {
    const KeepErrno keep;
    if (path() != Path::kKernel)
        client_->let_go_of(record(), generation_, shared_.load(std::memory_order_relaxed));
    if (datagram_ != nullptr) {
        datagram_->drop_cork();
        datagram_pool.recycle(*std::exchange(datagram_, nullptr));
    }
    pool.recycle(*this);
}

void Socket::adopt(Client& client, std::uint32_t record, Path path) noexcept {
    // A listener or a UDP socket may be in use by other threads, and was another daemon's until now: no generation fits until
    // client and record belong together (record_lost).
    generation_.store(kNoGeneration, std::memory_order_release);
    client_ = &client;
    record_.store(record, std::memory_order_release);
    generation_.store(client.segment().socket(record).daemon.generation.load(std::memory_order_acquire), std::memory_order_release);
    error_reported_.store(false, std::memory_order_relaxed);
    bound_anew_ = false;
    set_path(path);
    CULVERT_FAULT_POINT(socket_adopted);
    notify_became_ours(*this);
}

/// Ours without a daemon: one that comes later takes it over (revive).
void Socket::adopt_nobody(Path path) noexcept {
    Client* const nobody = Client::nobody();
    if (nobody == nullptr) return;
    adopt(*nobody, 0, path);
    Client::note_orphan();
}

void Socket::revive(int fd) noexcept {
    // Several threads may wait for one socket.
    static constinit pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
    const KeepErrno keep;
    const SignalsOff off;  // a handler that accepts would wait for us
    ::pthread_mutex_lock(&one_at_a_time);
    if (wants_daemon() && Client::attached() != nullptr) {
        if (path() == Path::kListener && !still_listens(fd)) stop_listening(fd);  // shut by another process meanwhile
        else if (path() == Path::kListener) start_listening(fd, backlog_);
        else if (is_raw()) try_bind_raw(fd);
        else revive_datagram(fd);
    }
    ::pthread_mutex_unlock(&one_at_a_time);
}

/// For calls that use the socket. True: it has just become Culvert's.
bool Socket::revive_if_due(int fd) noexcept {
    if (!wants_daemon() || !Client::attempt_is_due() || Client::attached() == nullptr) return false;
    revive(fd);
    return is_ours() && !wants_daemon();
}

void Socket::abandon() noexcept {
    if (path() == Path::kKernel) return;
    set_path(Path::kKernel);
    // Or rather: is so no longer; a thread asleep in epoll_wait must hear of it. While the hold stands: afterwards the
    // record may be another socket's, whose watch must not be taken away.
    notify_became_ours(*this);
    client_->let_go_of(record(), generation_, shared_.load(std::memory_order_relaxed));
}

/// abandon(), and the daemon has done its part: what comes for the port from now on is the kernel's.
void Socket::abandon_at_once() noexcept {
    if (path() == Path::kKernel) return;
    constexpr std::int64_t kPatienceNs = 1'000'000'000;
    const timespec moment{0, 50'000};
    Client& client = *client_;
    const std::uint32_t record = this->record();
    const std::uint32_t generation = generation_.load(std::memory_order_acquire);
    const bool others_hold_it = is_shared();
    abandon();
    const std::int64_t deadline = now_ns() + kPatienceNs;
    while (!others_hold_it && !client.daemon_gone() && now_ns() < deadline &&
           client.segment().socket(record).daemon.generation.load(std::memory_order_acquire) == generation)
        raw::ppoll(nullptr, 0, &moment, nullptr);
}

bool Socket::record_lost() const noexcept {
    return client_->daemon_gone() || shared().daemon.generation.load(std::memory_order_acquire) != generation_;
}

void Socket::give_back(int fd, shm::KernelReason reason) noexcept {
    if (path() == Path::kListener) {
        Client* const client = client_;
        stop_listening(fd);
        client->note_reason(fd, reason);
    } else if (type_ == SOCK_DGRAM && !is_raw()) {
        leave_to_kernel(fd);
        datagram_->kernel_reason = reason;
        if (Client* const client = Client::current()) client->note_reason(fd, reason);
    }
}

std::uint32_t Socket::prepare_record(Client& client) noexcept {
    const auto record = client.take_record();
    if (!record) return shm::kNoIndex;
    shm::SocketRecord& shared = client.segment().socket(*record);
    shared.protocol.store(type_ == SOCK_STREAM ? IPPROTO_TCP : is_raw() ? IPPROTO_RAW : IPPROTO_UDP, std::memory_order_relaxed);
    shared.options = early_options_;
    return *record;
}

int Socket::operate(Client& client, std::uint32_t record, shm::Operation operation, std::uint32_t argument,
                    const shm::WireEndpoint& local, const shm::WireEndpoint& remote, bool* interrupted) noexcept {
    shm::SocketRecord& shared = client.segment().socket(record);
    const SocketLock lock(client, shared.app.tx_lock);
    shared.operation.code.store(static_cast<std::uint32_t>(operation), std::memory_order_relaxed);
    shared.operation.argument.store(argument, std::memory_order_relaxed);
    shared.operation.local = local;
    shared.operation.remote = remote;
    const std::uint32_t sequence = shared.app.operation_sequence.load(std::memory_order_relaxed) + 1;
    CULVERT_FAULT_POINT(operation_written);
    shared.app.operation_sequence.store(sequence, std::memory_order_release);
    CULVERT_FAULT_POINT(operation_submitted);
    client.post(record);
    CULVERT_FAULT_POINT(operation_posted);
    const auto answered = [&] {
        return shared.daemon.operation_done.load(std::memory_order_acquire) == sequence || client.daemon_gone();
    };
    const std::int64_t deadline = now_ns() + kAnswerTimeoutNs;
    while (wait_for(client, shared, answers, std::max<std::int64_t>(deadline - now_ns(), 0), answered) == EINTR) {
        if (interrupted != nullptr) *interrupted = true;
    }
    if (shared.daemon.operation_done.load(std::memory_order_acquire) != sequence) return ENETDOWN;
    CULVERT_FAULT_POINT(operation_answered);
    return shared.daemon.operation_result.load(std::memory_order_relaxed);
}

/// The kernel still says who may have the port; IP_FREEBIND only makes it believe that the address will come. It is taken
/// back when the bind fails, so that the program finds its socket as it was.
int Socket::bind_kernel(int fd, const sockaddr* address, socklen_t length) noexcept {
    const int saved = errno;
    if (libc::bind(fd, address, length) == 0) return 0;
    if (errno != EADDRNOTAVAIL) return -1;
    const auto wanted = to_wire(address, length, family_);
    Client* client = Client::attached();
    if (!wanted || client == nullptr) return fail(EADDRNOTAVAIL);
    const std::uint32_t record = prepare_record(*client);
    if (record == shm::kNoIndex) return fail(EADDRNOTAVAIL);
    const int answer = operate(*client, record, shm::Operation::kOwnAddress, 0, {}, *wanted);
    client->let_go(record, false);
    if (answer != 0) return fail(EADDRNOTAVAIL);

    const int level = family_ == AF_INET6 ? IPPROTO_IPV6 : IPPROTO_IP;
    const int option = family_ == AF_INET6 ? IPV6_FREEBIND : IP_FREEBIND;
    int before = 0;
    socklen_t size = sizeof before;
    const int on = 1;
    libc::getsockopt(fd, level, option, &before, &size);
    if (libc::setsockopt(fd, level, option, &on, socklen_t{sizeof on}) != 0) return fail(EADDRNOTAVAIL);
    if (libc::bind(fd, address, length) != 0) {
        const int error = errno;
        libc::setsockopt(fd, level, option, &before, size);
        return fail(error);
    }
    errno = saved;
    return 0;
}

int Socket::bind(int fd, const sockaddr* address, socklen_t length) noexcept {
    if (path() == Path::kConnection && type_ == SOCK_STREAM && has_ended()) return bind_ended(fd, address, length);
    if (accepted_) return refuse_bind(address, length);
    if (bind_kernel(fd, address, length) != 0) return -1;
    if (family_ == AF_INET6 && type_ == SOCK_STREAM) remember_v6_only(fd);
    if (is_raw()) {
        const KeepErrno keep;
        datagram_->bound = true;
        try_bind_raw(fd);
    } else if (type_ == SOCK_DGRAM && path() == Path::kKernel) {
        const KeepErrno keep;
        datagram_->bound = true;
        if (const int error = strict_error(try_bind_datagram(fd))) return keep.fail(error);
    }
    return 0;
}

int Socket::connect(int fd, const sockaddr* address, socklen_t length) noexcept {
    if (is_raw()) return connect_raw(fd, address, length);
    return type_ == SOCK_STREAM ? connect_stream(fd, address, length) : connect_datagram(fd, address, length);
}

ssize_t Socket::send(int fd, const msghdr& message, int flags) noexcept {
    if (message.msg_iovlen > UIO_MAXIOV) return fail(EMSGSIZE);
    if (is_raw()) return send_raw(fd, message, flags);
    if (type_ == SOCK_DGRAM) return send_datagram(fd, message, flags);
    if ((flags & MSG_FASTOPEN) != 0 && connecting_.load(std::memory_order_relaxed) != Connecting::kKernel)
        return send_fast_open(fd, message, flags);
    if (path() != Path::kConnection) return libc::sendmsg(fd, &message, flags);
    if (message.msg_controllen != 0 && message.msg_control != nullptr && refuses_control(message)) {
        const ssize_t able = send_parts(nullptr, 0, flags);  // the state of the connection is told first
        return able == -1 ? able : fail(EINVAL);
    }
    const ssize_t sent = send_parts(message.msg_iov, message.msg_iovlen, flags);
    if ((flags & MSG_ZEROCOPY) != 0) [[unlikely]]
        tell_copied(sent);
    if (sent == kElsewhere) return follow() ? libc::sendmsg(fd, &message, flags) : -1;
    return sent;
}

ssize_t Socket::receive(int fd, msghdr& message, int flags) noexcept {
    if (message.msg_iovlen > UIO_MAXIOV) return fail(EMSGSIZE);
    const Path path = this->path();
    if (path == Path::kDatagram) return receive_datagram(fd, message, flags);
    if (path != Path::kConnection) return libc::recvmsg(fd, &message, flags);
    if ((flags & MSG_ERRQUEUE) != 0) [[unlikely]]
        return receive_error(message, flags);
    const bool peeks = (flags & MSG_PEEK) != 0;
    const ssize_t got = receive_stream(message.msg_iov, message.msg_iovlen, flags, peeks ? peek_offset() : 0);
    if (got == kElsewhere) return follow() ? libc::recvmsg(fd, &message, flags) : -1;
    if (got >= 0) {
        const std::size_t control_room = message.msg_controllen;
        // A stream reports no source; msg_namelen of a connected TCP socket comes back as 0.
        message.msg_namelen = 0;
        message.msg_controllen = 0;
        message.msg_flags = flags & MSG_CMSG_CLOEXEC;
        if ((flags & MSG_OOB) != 0) message.msg_flags |= got == 0 ? MSG_OOB | MSG_TRUNC : MSG_OOB;
        if (stream_wants_.load(std::memory_order_relaxed) != 0) [[unlikely]] {
            if ((flags & MSG_OOB) == 0) move_peek_offset(peeks ? got : -got);
            message.msg_controllen = control_room;
            tell_unread(message);
        }
    }
    return got;
}

ssize_t Socket::peek_front(int fd, msghdr& message, int flags) noexcept {
    if (path() != Path::kConnection) return receive(fd, message, flags | MSG_PEEK);
    const ssize_t got = receive_stream(message.msg_iov, message.msg_iovlen, flags | MSG_PEEK);
    if (got == kElsewhere) return follow() ? libc::recvmsg(fd, &message, flags | MSG_PEEK) : -1;
    return got;
}

int Socket::send_many(int fd, mmsghdr* messages, unsigned count, int flags) noexcept {
    if (type_ == SOCK_STREAM && path() == Path::kKernel) return libc::sendmmsg(fd, messages, count, flags);
    const KeepErrno keep;
    unsigned done = 0;
    for (; done < count && done < 1024; ++done) {  // UIO_MAXIOV, as the kernel
        const ssize_t sent = send(fd, messages[done].msg_hdr, flags);
        if (sent < 0) break;
        messages[done].msg_len = static_cast<unsigned>(sent);
    }
    if (done == 0 && count != 0) return keep.pass(-1);
    return static_cast<int>(done);
}

int Socket::receive_many(int fd, mmsghdr* messages, unsigned count, int flags, timespec* timeout) noexcept {
    if (path() == Path::kKernel) return libc::recvmmsg(fd, messages, count, flags, timeout);
    const KeepErrno keep;
    if (timeout != nullptr && (timeout->tv_sec < 0 || timeout->tv_nsec < 0 || timeout->tv_nsec >= 1'000'000'000))
        return keep.fail(EINVAL);
    if ((flags & MSG_ERRQUEUE) == 0)
        if (const int error = take_error()) return keep.fail(error);  // before anything that has come, unlike recvmsg()
    const std::int64_t deadline =
        timeout != nullptr ? now_ns() + timeout->tv_sec * 1'000'000'000 + timeout->tv_nsec : INT64_MAX;
    unsigned done = 0;
    int each = flags & ~MSG_WAITFORONE;
    while (done < count) {
        const ssize_t got = receive(fd, messages[done].msg_hdr, each);
        if (got < 0) break;
        messages[done++].msg_len = static_cast<unsigned>(got);
        if ((flags & MSG_WAITFORONE) != 0) each |= MSG_DONTWAIT;
        // As the kernel: the time is looked at after each message only.
        if (now_ns() >= deadline) break;
    }
    if (done == 0 && count != 0) return keep.pass(-1);
    return static_cast<int>(done);
}

int Socket::sockname(int fd, sockaddr* address, socklen_t* length) noexcept {
    if (!accepted_) return libc::getsockname(fd, address, length);
    if (length == nullptr || (address == nullptr && *length != 0)) return fail(EFAULT);
    if (static_cast<int>(*length) < 0) return fail(EINVAL);
    from_wire(shared().local, family_, address, length);
    return 0;
}

int Socket::peername(int fd, sockaddr* address, socklen_t* length) noexcept {
    const bool datagram = path() == Path::kDatagram && datagram_connected_;
    if (path() != Path::kConnection && !datagram) return libc::getpeername(fd, address, length);
    const std::uint32_t status = shared().daemon.status.load(std::memory_order_acquire);
    if (!datagram && ((status & shm::kStatusReady) == 0 || (status & shm::kStatusDead) != 0 || record_lost())) return fail(ENOTCONN);
    if (length == nullptr) return fail(EFAULT);
    if (static_cast<int>(*length) < 0) return fail(EINVAL);
    if (address == nullptr && *length != 0) return fail(EFAULT);
    from_wire(shared().remote, family_, address, length);
    return 0;
}

int Socket::ioctl(int fd, unsigned long request, void* argument) noexcept {
    if (request == FIONBIO) {
        if (argument == nullptr) return fail(EFAULT);
        const bool on = *static_cast<const int*>(argument) != 0;
        if (!has_placeholder() && path() != Path::kListener && libc::ioctl(fd, FIONBIO, argument) < 0) return -1;
        set_file_flags(on ? O_NONBLOCK : 0, O_NONBLOCK);
        if (path() == Path::kListener) note_mode(fd, on);
        return 0;
    }
    if (path() == Path::kDatagram && request == FIONREAD && argument != nullptr) {
        if (const int waiting = next_datagram_length(); waiting >= 0) {
            *static_cast<int*>(argument) = waiting;
            return 0;
        }
    }
    if ((request == FIOGETOWN || request == SIOCGPGRP) && path() == Path::kConnection && has_left()) leave();
    if (request == FIOSETOWN || request == SIOCSPGRP) {
        const SignalCall call = [](int on, int command, long where) noexcept {
            return static_cast<int>(::syscall(SYS_ioctl, on, static_cast<unsigned>(command), where));
        };
        return set_signals(fd, call, static_cast<int>(request), reinterpret_cast<long>(argument));
    }
    if (path() != Path::kConnection || argument == nullptr) {
        const int result = libc::ioctl(fd, request, argument);
        if (result == 0 && request == FIOASYNC) heed_signals(fd);
        return result;
    }
    switch (request) {
        case FIONREAD: {
            const shm::SocketRecord& record = shared();
            const int unread = bytes_between(record.daemon.rx_delivered.load(std::memory_order_acquire),
                                             record.app.rx_consumed.load(std::memory_order_relaxed));
            *static_cast<int*>(argument) = static_cast<int>(bytes_to_mark(static_cast<std::uint64_t>(unread)));
            return 0;
        }
        case SIOCATMARK: {
            const Urgent urgent = this->urgent();
            *static_cast<int*>(argument) = urgent.known && urgent.ahead == 0 ? 1 : 0;
            return 0;
        }
        case TIOCOUTQ: {  // SIOCOUTQ
            const shm::SocketRecord& record = shared();
            *static_cast<int*>(argument) = bytes_between(record.app.tx_queued.load(std::memory_order_relaxed),
                                                         record.daemon.tx_released.load(std::memory_order_acquire));
            return 0;
        }
        case FIOASYNC:
            if (!has_placeholder()) return libc::ioctl(fd, request, argument);
            set_file_flags(*static_cast<const int*>(argument) != 0 ? O_ASYNC : 0, O_ASYNC);
            return 0;
        default: return libc::ioctl(fd, request, argument);
    }
}

std::uint32_t Socket::poll_record(Client& client, std::uint32_t record, std::uint32_t generation, Path path, int type, int low_water,
                                  bool wants_write) noexcept {
    Socket view(AF_INET, type, true);
    view.client_ = &client;
    view.record_.store(record, std::memory_order_relaxed);
    view.generation_.store(generation, std::memory_order_relaxed);
    view.low_water_.store(low_water, std::memory_order_relaxed);
    view.shared_.store(true, std::memory_order_relaxed);
    view.path_.store(path, std::memory_order_relaxed);
    return view.poll_now(wants_write);
}

std::uint32_t Socket::poll_now(bool wants_write) noexcept {
    const Path path = this->path();
    if (path == Path::kKernel) return 0;
    if (client_->daemon_gone()) {
        if (path == Path::kListener) return 0;  // the kernel's half goes on
        if (path == Path::kDatagram) return wants_write ? EPOLLOUT | EPOLLWRNORM : 0;  // which is not asked for room
        const std::uint32_t error = error_reported_.load(std::memory_order_relaxed) ? 0u : std::uint32_t{EPOLLERR};
        return EPOLLIN | EPOLLRDNORM | EPOLLOUT | EPOLLWRNORM | EPOLLRDHUP | EPOLLHUP | error;
    }
    shm::SocketRecord& record = shared();
    if (path == Path::kListener) {
        if (is_shut()) return EPOLLOUT | EPOLLWRNORM | EPOLLHUP;  // a closed socket
        note_awaited();
        const shm::AcceptQueueConsumer queue(
            client_->segment().accept_queue(record.accept_queue.load(std::memory_order_relaxed)));
        return queue.empty() ? 0 : EPOLLIN | EPOLLRDNORM;
    }
    const bool waiting = record.app.stash_head.load(std::memory_order_relaxed) != shm::kEmptyList ||
                         record.daemon.rx_list.load(std::memory_order_seq_cst) != shm::kEmptyList;
    const std::uint32_t status = record.daemon.status.load(std::memory_order_acquire);
    const bool marked = (status & shm::kStatusUrgent) != 0;  // of streams only
    const bool enough = path == Path::kDatagram || low_water_.load(std::memory_order_relaxed) == 1 || unread() >= low_water();
    std::uint32_t events = waiting && enough && (!marked || has_ordinary_bytes()) ? EPOLLIN | EPOLLRDNORM : 0;
    if (marked && urgent().arrived) events |= EPOLLPRI;
    if (record.daemon.error.load(std::memory_order_relaxed) != 0) events |= EPOLLERR;
    if (path == Path::kDatagram) {
        if (has_error_entry() || has_local_error() || has_copy_notice()) events |= EPOLLERR;
        const std::uint32_t shut = record.app.flags.load(std::memory_order_relaxed) & (shm::kAppShutRead | shm::kAppShutWrite);
        if ((shut & shm::kAppShutRead) != 0) events |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
        if (shut == (shm::kAppShutRead | shm::kAppShutWrite)) events |= EPOLLHUP;
        if (has_room() || (wants_write && arm_write_notice())) events |= EPOLLOUT | EPOLLWRNORM;
        return events;
    }
    if (has_copy_notice()) [[unlikely]]
        events |= EPOLLERR;
    const std::uint32_t wants = record.app.flags.load(std::memory_order_relaxed);
    const bool lost = record.daemon.generation.load(std::memory_order_relaxed) != generation_;
    if ((status & shm::kStatusDead) != 0 || lost)
        return events | EPOLLIN | EPOLLRDNORM | EPOLLOUT | EPOLLWRNORM | EPOLLRDHUP | EPOLLHUP |
               (!lost && has_error_entry() ? std::uint32_t{EPOLLERR} : 0);
    if ((status & shm::kStatusMoved) != 0) return 0;  // the kernel will say
    if ((status & shm::kStatusReady) == 0) return events;  // connecting
    const bool no_more_input = (status & shm::kStatusPeerClosed) != 0 || (wants & shm::kAppShutRead) != 0;
    const bool no_more_output = (status & shm::kStatusWriteClosed) != 0 || (wants & shm::kAppShutWrite) != 0;
    if (no_more_input) events |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
    if (no_more_input && no_more_output) events |= EPOLLHUP;
    if (no_more_output || has_room() || (wants_write && arm_write_notice())) events |= EPOLLOUT | EPOLLWRNORM;
    return events;
}

}  // namespace culvert::preload
