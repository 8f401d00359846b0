// Socket as a listener: the kernel's own and Culvert's, side by side on one port; accept takes from both.
//
// The kernel's half is always non-blocking: of several workers that see it readable only one gets the connection, and the
// others must not hang in accept(). What the application asked for is kept in nonblocking().

#include <fcntl.h>

#include <algorithm>
#include <cerrno>

#include "preload/address.h"
#include "preload/async_signals.h"
#include "preload/fail.h"
#include "preload/fd_table.h"
#include "preload/header_options.h"
#include "preload/libc.h"
#include "preload/listener_mode.h"
#include "preload/own_fd.h"
#include "preload/socket.h"
#include "preload/socket_inline.h"
#include "shm/base/fault_point.h"

namespace culvert::preload {

namespace {

/// net.core.somaxconn; what lies beyond is cut off without an error, as by the kernel.
constexpr std::uint32_t kMaxBacklog = 4096;

/// An unbound kernel socket, never connected: what the descriptors of accepted connections refer to. One a process and
/// family (a fork shares its file, which nobody writes).
int placeholder_for(int family) noexcept {
    static constinit std::atomic<int> placeholders[2] = {-1, -1};
    std::atomic<int>& mine = placeholders[family == AF_INET6 ? 1 : 0];
    int fd = mine.load(std::memory_order_acquire);
    if (fd >= 0) return fd;
    const int fresh = move_away(libc::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (fresh < 0) return fresh;
    if (mine.compare_exchange_strong(fd, fresh, std::memory_order_acq_rel)) return fresh;
    close_own(fresh);
    return fd;
}

int duplicate_placeholder(int family, int flags) noexcept {
    const int placeholder = placeholder_for(family);
    return placeholder < 0 ? -1 : raw::fcntl(placeholder, (flags & SOCK_CLOEXEC) != 0 ? F_DUPFD_CLOEXEC : F_DUPFD, 0);
}

/// A --strict program gets no connection of the kernel's: its client hears of it at once.
void reset_and_close(int fd) noexcept {
    const linger at_once{1, 0};
    libc::setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, socklen_t{sizeof at_once});
    raw::close(fd);
}

}  // namespace

int Socket::listen(int fd, int backlog) noexcept {
    if (path() == Path::kConnection) return fail(EINVAL);  // the placeholder, which others share, must not listen
    if (libc::listen(fd, backlog) != 0) return -1;
    if (type_ == SOCK_STREAM) {
        const KeepErrno keep;
        if (const int error = strict_error(start_listening(fd, backlog))) {
            libc::shutdown(fd, SHUT_RD);  // bound, and no listener: as before
            return keep.fail(error);
        }
    }
    return 0;
}

shm::KernelReason Socket::start_listening(int fd, int backlog) noexcept {
    backlog_ = backlog;
    // listen() takes its backlog as unsigned: a negative one is the greatest.
    const std::uint32_t clipped = std::clamp<std::uint32_t>(static_cast<std::uint32_t>(backlog), 1, kMaxBacklog);
    Client* client = Client::attached();
    sockaddr_storage name{};
    socklen_t length = sizeof name;
    const auto local = libc::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length) == 0
                           ? to_wire(reinterpret_cast<sockaddr*>(&name), length, family_)
                           : std::nullopt;
    if (!local) return shm::KernelReason::kType;
    const auto leave = [&](shm::KernelReason reason) {
        if (client != nullptr && !client->daemon_gone()) {     // else: gone again, it waits for the next one
            if (path() == Path::kListener) stop_listening(fd);  // was another daemon's, and this one does not take it
            client->note_reason(fd, reason);
        }
        return reason;
    };
    const shm::KernelReason policy = why_kernel(shm::Policy::Protocol::kTcp, shm::Policy::Call::kListen, *local);
    if (policy != shm::KernelReason::kUnknown) return leave(policy);
    if (needs_kernel_.load(std::memory_order_relaxed) || needs_kernel_to_listen_.load(std::memory_order_relaxed) ||
        has_extension_headers(fd, family_) || signals_input(fd))
        return leave(shm::KernelReason::kOption);
    if (client == nullptr) {
        if (path() == Path::kListener) return shm::KernelReason::kListenerPair;  // it waits already
        if (!Client::strict()) wait_for_daemon(fd);
        return shm::KernelReason::kNoDaemon;
    }
    if (path() == Path::kListener && !client_->daemon_gone()) {  // a second listen() changes the backlog, begins anew, or wakes
        const bool again = is_shut();
        const bool wakes = is_resting();
        if (again) shared().app.flags.fetch_and(~shm::kAppShutRead, std::memory_order_acq_rel);
        const int error = operate(*client_, record(), shm::Operation::kListen, clipped, *local, {});
        if (!again && !wakes) return shm::KernelReason::kListenerPair;
        if (error != 0) return leave(reason_of_bind(error, *local));
        never_block(fd);
        client->note_reason(fd, shm::KernelReason::kListenerPair);
        return shm::KernelReason::kListenerPair;
    }
    const std::uint32_t record = prepare_record(*client);
    if (record == shm::kNoIndex) return leave(shm::KernelReason::kTableFull);
    if (const int error = operate(*client, record, shm::Operation::kListen, clipped, *local, {}); error != 0) {
        client->let_go(record, false);
        return leave(reason_of_bind(error, *local));
    }
    const shm::SocketRecord& shared = client->segment().socket(record);
    if (shared.accept_queue.load(std::memory_order_relaxed) >= client->segment().geometry().accept_queues) {
        client->let_go(record, false);
        return leave(shm::KernelReason::kRefused);
    }
    learn_file_flags(fd);
    never_block(fd);
    adopt(*client, record, Path::kListener);
    client->note_reason(fd, shm::KernelReason::kListenerPair);
    return shm::KernelReason::kListenerPair;
}

/// With --strict, while the daemon is away: the kernel has made a connection in Culvert's place. What a policy leaves to the
/// kernel (loopback, if nothing else is said) is its own.
bool Socket::refuses_kernels_connection(int fd) const noexcept {
    if (!Client::strict() || !client_->check_daemon()) return false;
    sockaddr_storage name{};
    socklen_t length = sizeof name;
    if (libc::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length) != 0) return false;
    const auto local = to_wire(reinterpret_cast<sockaddr*>(&name), length, family_);
    return local && why_kernel(shm::Policy::Protocol::kTcp, shm::Policy::Call::kListen, *local) == shm::KernelReason::kUnknown;
}

/// A listener without a daemon is what one is whose daemon has just died: the kernel's half, and the hope for more.
void Socket::wait_for_daemon(int fd) noexcept {
    learn_file_flags(fd);
    never_block(fd);
    adopt_nobody(Path::kListener);
}

/// Both halves: the kernel's socket is an ordinary one again, and waits if the program wants it to.
void Socket::stop_listening(int fd) noexcept {
    abandon_at_once();
    if (!nonblocking()) block_again(fd);
}

void Socket::rest(int fd) noexcept {
    if (path() != Path::kListener || record_lost()) return;
    const KeepErrno keep;
    shm::SocketRecord& record = shared();
    if (is_shut() || is_resting() || (record.app.flags.load(std::memory_order_relaxed) & shm::kAppAwaited) != 0) return;
    int listens = 0;
    socklen_t length = sizeof listens;
    if (libc::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) != 0 || listens == 0) return;  // the number is another's
    if (operate(*client_, this->record(), shm::Operation::kRest, 0, {}, {}) != 0) return;
    if (!nonblocking()) block_again(fd);
    client_->note_reason(fd, shm::KernelReason::kResting);
}

/// shutdown(). Other processes that hold the listener find it ended, as its kernel's half is, and served again if one of them
/// listens anew: the record stays theirs.
void Socket::end_listening(int fd) noexcept {
    if (!is_shared() || record_lost()) return stop_listening(fd);
    shared().app.flags.fetch_or(shm::kAppShutRead, std::memory_order_seq_cst);
    // Answered when the daemon has looked: nobody gets in after shutdown() has returned.
    operate(*client_, record(), shm::Operation::kRefreshInfo, 0, {}, {});
    // What nobody has accepted has been reset: out of the queue, or it would look readable when it is used again.
    shm::AcceptQueueConsumer queue(client_->segment().accept_queue(shared().accept_queue.load(std::memory_order_relaxed)));
    while (queue.take()) {
    }
}

/// The descriptor of a connection that Culvert has ready, -1 and errno, or -2: there is none.
int Socket::accept_culvert(int listener, sockaddr* address, socklen_t* length, int flags) noexcept {
    if (record_lost() || is_shut()) return -2;
    shm::AcceptQueueConsumer queue(
        client_->segment().accept_queue(shared().accept_queue.load(std::memory_order_relaxed)));
    if (queue.empty()) return -2;
    // The descriptor first: EMFILE leaves the connection in the queue, as in Linux.
    const std::uint64_t passed_on = passed_on_.load(std::memory_order_relaxed);
    const int fd = passed_on != 0 ? libc::socket(family_, SOCK_STREAM | flags, 0) : duplicate_placeholder(family_, flags);
    if (fd < 0) return -1;
    Socket* socket = make(family_, SOCK_STREAM, (flags & SOCK_NONBLOCK) != 0);
    if (socket == nullptr) {
        raw::close(fd);
        return fail(ENOMEM);
    }
    const shm::Geometry& geometry = client_->segment().geometry();
    for (;;) {
        const auto record = queue.take();
        if (!record) {  // another worker was quicker
            socket->dispose();
            raw::close(fd);
            return -2;
        }
        if (*record < geometry.app_sockets || *record >= geometry.sockets) continue;  // not a connection
        CULVERT_FAULT_POINT(accept_taken);
        const shm::DaemonLine& line = client_->segment().socket(*record).daemon;
        const std::uint32_t generation = line.generation.load(std::memory_order_acquire);
        const bool fresh = client_->hold(*record);
        CULVERT_FAULT_POINT(accept_held);
        const std::uint32_t status = line.status.load(std::memory_order_acquire);
        // Freed before we held it (the listener was closed meanwhile): dead, and not as a connection that was reset is.
        if (line.generation.load(std::memory_order_acquire) != generation ||
            (status & (shm::kStatusReady | shm::kStatusDead)) == shm::kStatusDead) {
            if (fresh) client_->unhold(*record);
            continue;
        }
        socket->client_ = client_.get();
        socket->accepted_ = true;
        socket->placeholder_.store(passed_on == 0, std::memory_order_relaxed);
        socket->inherit_wants(*this);
        socket->generation_ = generation;
        socket->low_water_.store(low_water_.load(std::memory_order_relaxed), std::memory_order_relaxed);
        socket->receive_timeout_ns_.store(receive_timeout_ns_.load(std::memory_order_relaxed), std::memory_order_relaxed);
        socket->send_timeout_ns_.store(send_timeout_ns_.load(std::memory_order_relaxed), std::memory_order_relaxed);
        socket->record_.store(*record, std::memory_order_relaxed);
        socket->set_path(Path::kConnection);
        if (passed_on != 0) socket->dress_as_listener(fd, listener, passed_on);
        const shm::WireEndpoint remote = socket->shared().remote;
        FdTable::instance().insert(fd, *socket);
        CULVERT_FAULT_POINT(accept_done);
        if (address != nullptr) from_wire(remote, family_, address, length);
        return fd;
    }
}

int Socket::accept(int fd, sockaddr* address, socklen_t* length, int flags) noexcept {
    if (path() != Path::kListener) return libc::accept4(fd, address, length, flags);
    if ((flags & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)) != 0) return fail(EINVAL);
    note_awaited();
    const int wrong_room = address == nullptr ? 0 : length == nullptr ? EFAULT : static_cast<int>(*length) < 0 ? EINVAL : 0;
    const KeepErrno keep;
    const std::int64_t timeout = receive_timeout_ns_.load(std::memory_order_relaxed);
    const std::int64_t deadline = timeout >= 0 ? now_ns() + timeout : -1;
    for (;;) {
        revive_if_due(fd);
        const int ours = accept_culvert(fd, wrong_room != 0 ? nullptr : address, length, flags);
        if (ours >= 0 && wrong_room != 0) {  // as in the kernel: the connection is lost
            FdTable::instance().remove(ours);
            raw::close(ours);
            return keep.fail(wrong_room);
        }
        if (ours >= 0) return ours;
        if (ours == -1) return keep.pass(ours);
        const int kernel = libc::accept4(fd, address, length, flags);
        if (kernel >= 0 && refuses_kernels_connection(kernel)) {
            reset_and_close(kernel);
            return keep.fail(ENETDOWN);
        }
        if (kernel >= 0) {
            client_->note_reason(kernel, shm::KernelReason::kAcceptedByKernel);
            return kernel;
        }
        if (errno == EINVAL && wrong_room == 0 && !is_shut()) {  // another program that has the kernel's half has shut it
            stop_listening(fd);
            return keep.fail(EINVAL);
        }
        if (errno != EAGAIN || nonblocking()) return keep.pass(kernel);
        const std::int64_t left = deadline < 0 ? -1 : std::max<std::int64_t>(deadline - now_ns(), 0);
        const int woken = wait_both(fd, left, [&] {
            return !record_lost() && !is_shut() &&
                   !shm::AcceptQueueConsumer(
                        client_->segment().accept_queue(shared().accept_queue.load(std::memory_order_relaxed)))
                        .empty();
        });
        if (woken != 0) return keep.fail(woken);
    }
}

}  // namespace culvert::preload
