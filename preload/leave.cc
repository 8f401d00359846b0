// Connections that leave the program: by exec, posix_spawn or SCM_RIGHTS. (UDP sockets: at the end.)
//
// Whoever gets a descriptor of ours without our memory has the placeholder only. So before it goes, the daemon is asked for
// a stand-in: a kernel TCP connection with the true names, whose other end the daemon couples to Culvert's connection
// (daemon/control/stand_in_maker.h). It takes the placeholder's place behind all descriptors, and is an ordinary kernel
// socket from then on, for us, for a shell's `cat <&5`, for a static program, and over any further fork or exec.
//
//   process that lets it leave     record locked, AskStandIn, dup3() over the placeholder, path = kKernel
//   others that hold the record    find kStatusMoved at their next call or when they wake, ask the same, get the same
//   child of a vfork               asks on the parent's control connection, changes its own descriptors, and nothing else
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/syscall.h>

#include "preload/leave.h"

#include "preload/confined.h"
#include "preload/epoll_set.h"
#include "preload/fd_table.h"
#include "preload/inherited.h"
#include "preload/libc.h"
#include "preload/option_table.h"
#include "preload/signals_off.h"
#include "preload/socket.h"
#include "preload/socket_inline.h"
#include "preload/socket_lock.h"

namespace culvert::preload {

namespace {

/// One thread moves one socket at a time; no handler of its own comes in between.
constinit pthread_mutex_t leaving = PTHREAD_MUTEX_INITIALIZER;

class LeavingGuard {
public:
    LeavingGuard() noexcept { ::pthread_mutex_lock(&leaving); }
    ~LeavingGuard() { ::pthread_mutex_unlock(&leaving); }
    LeavingGuard(const LeavingGuard&) = delete;

private:
    const SignalsOff off_;
};

void set_option(int fd, int level, int name, const void* value, socklen_t length) noexcept {
    ::syscall(SYS_setsockopt, fd, level, name, value, length);
}

void set_flag(int fd, int level, int name) noexcept {
    const int on = 1;
    set_option(fd, level, name, &on, sizeof on);
}

void set_timeout(int fd, int name, std::int64_t ns) noexcept {
    if (ns < 0) return;
    const timeval time{static_cast<time_t>(ns / 1'000'000'000), static_cast<suseconds_t>(ns % 1'000'000'000 / 1000)};
    set_option(fd, SOL_SOCKET, name, &time, sizeof time);
}

/// Is `fd` still what stands for a connection of ours? A library may have closed the number behind our back. Placeholders are
/// TCP sockets that were never connected.
bool is_placeholder(int fd) noexcept {
    int protocol = 0;
    socklen_t length = sizeof protocol;
    if (libc::getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) != 0 || protocol != IPPROTO_TCP) return false;
    sockaddr_storage peer{};
    length = sizeof peer;
    return libc::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) != 0;
}

/// The same of a UDP socket's kernel half.
bool is_udp(int fd) noexcept {
    int protocol = 0;
    socklen_t length = sizeof protocol;
    return libc::getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) == 0 && protocol == IPPROTO_UDP;
}

void put_over(int stand_in, int fd) noexcept {
    const int flags = raw::fcntl(fd, F_GETFD, 0);
    if (flags >= 0 && is_placeholder(fd)) ::syscall(SYS_dup3, stand_in, fd, (flags & FD_CLOEXEC) != 0 ? O_CLOEXEC : 0);
}

/// Without close-on-exec: the next program will find it.
bool stays_open(int fd) noexcept {
    const int flags = raw::fcntl(fd, F_GETFD, 0);
    return flags >= 0 && (flags & FD_CLOEXEC) == 0;
}

// --- children that share our memory -----------------------------------------------------------------------------------
//
// What such a child does with its descriptors is noted, so that its exec knows which of them are connections. Its notes
// lie in memory that other threads use, and it may be killed at any moment: so no lock, and a place is taken by its pid.

struct BorrowerNote {
    std::atomic<int> pid;  // 0: free; the other two are this process's alone
    std::atomic<int> fd;
    std::atomic<Socket*> socket;  // null: the descriptor is nothing of ours any more
};
constexpr int kMostNotes = 256;
constinit BorrowerNote notes[kMostNotes] = {};
constinit std::atomic<int> notes_used{0};

int own_pid() noexcept { return static_cast<int>(::syscall(SYS_getpid)); }

BorrowerNote* note_of(int pid, int fd) noexcept {
    for (BorrowerNote& note : notes)
        if (note.pid.load(std::memory_order_relaxed) == pid && note.fd.load(std::memory_order_relaxed) == fd) return &note;
    return nullptr;
}

void free_note_of(BorrowerNote& note, int owner) noexcept {
    if (note.pid.compare_exchange_strong(owner, 0, std::memory_order_relaxed)) notes_used.fetch_sub(1, std::memory_order_relaxed);
}

/// Children that ended without an exec.
void forget_the_dead() noexcept {
    for (BorrowerNote& note : notes) {
        const int owner = note.pid.load(std::memory_order_relaxed);
        if (owner != 0 && ::syscall(SYS_kill, owner, 0) != 0) free_note_of(note, owner);
    }
}

BorrowerNote* free_note(int pid) noexcept {
    for (int attempt = 0; attempt < 2; ++attempt) {
        for (BorrowerNote& note : notes) {
            int nobody = 0;
            if (!note.pid.compare_exchange_strong(nobody, pid, std::memory_order_relaxed)) continue;
            notes_used.fetch_add(1, std::memory_order_relaxed);
            return &note;
        }
        forget_the_dead();
    }
    return nullptr;
}

/// What another program could not use as it is.
Socket* ours_at(int fd) noexcept {
    const DescriptionRef ref = FdTable::instance().find(fd);
    if (!ref || ref->kind() != Description::Kind::kSocket) return nullptr;
    Socket& socket = Socket::of(*ref.get());
    return socket.is_ours() ? &socket : nullptr;
}

/// The socket behind a descriptor of this child; it lives as long as the parent does not close it, which waits for us.
Socket* borrowed_socket(int pid, int fd) noexcept {
    if (const BorrowerNote* note = note_of(pid, fd)) return note->socket.load(std::memory_order_relaxed);
    return ours_at(fd);
}

void leave_as_borrower(bool only_standard) noexcept {
    const int pid = own_pid();
    const auto let_leave = [only_standard](int fd, Socket* socket) {
        if (socket == nullptr || (only_standard && fd > 2) || !stays_open(fd)) return;
        if (socket->path() == Socket::Path::kListener) return socket->rest(fd);
        if (socket->path() == Socket::Path::kDatagram) return socket->rest_datagrams(fd);
        if (socket->path() != Socket::Path::kConnection || !is_placeholder(fd)) return;
        const int stand_in = socket->stand_in_for_borrower();
        if (stand_in < 0) return;
        put_over(stand_in, fd);
        raw::close(stand_in);
    };
    FdTable::instance().for_each([&](int fd, Description& description) {
        if (description.kind() != Description::Kind::kSocket || note_of(pid, fd) != nullptr) return;
        let_leave(fd, ours_at(fd));
    });
    for (BorrowerNote& note : notes) {
        if (note.pid.load(std::memory_order_relaxed) != pid) continue;
        let_leave(note.fd.load(std::memory_order_relaxed), note.socket.load(std::memory_order_relaxed));
        free_note_of(note, pid);
    }
}

}  // namespace

bool borrowed_copies() noexcept {
    if (notes_used.load(std::memory_order_relaxed) == 0) [[likely]]
        return false;
    const KeepErrno keep;
    if (in_borrowed_memory()) return true;
    forget_the_dead();
    return false;
}

void note_borrowed_copy(int original, int copy) noexcept {
    const int pid = own_pid();
    Socket* const socket = borrowed_socket(pid, original);
    BorrowerNote* note = note_of(pid, copy);
    if (note == nullptr && socket == nullptr && ours_at(copy) == nullptr) return;
    if (note == nullptr && (note = free_note(pid)) == nullptr) return;
    note->fd.store(copy, std::memory_order_relaxed);
    note->socket.store(socket, std::memory_order_relaxed);
}

void note_borrowed_close(unsigned first, unsigned last) noexcept {
    const int pid = own_pid();
    FdTable::instance().for_each([&](int fd, Description&) {
        if (static_cast<unsigned>(fd) < first || static_cast<unsigned>(fd) > last || ours_at(fd) == nullptr) return;
        BorrowerNote* note = note_of(pid, fd);
        if (note == nullptr && (note = free_note(pid)) == nullptr) return;
        note->fd.store(fd, std::memory_order_relaxed);
        note->socket.store(nullptr, std::memory_order_relaxed);
    });
    for (BorrowerNote& note : notes)
        if (note.pid.load(std::memory_order_relaxed) == pid && static_cast<unsigned>(note.fd.load(std::memory_order_relaxed)) >= first &&
            static_cast<unsigned>(note.fd.load(std::memory_order_relaxed)) <= last)
            note.socket.store(nullptr, std::memory_order_relaxed);
}

void leave_by_exec(bool spawns) noexcept {
    if (is_confined()) return;
    const KeepErrno keep;
    FdTable& table = FdTable::instance();
    const auto goes = [spawns](int fd, Socket& socket) {
        return stays_open(fd) || (spawns && socket.spawned.exchange(false, std::memory_order_relaxed));
    };
    int count = 0;
    table.for_each([&](int fd, Description& description) {
        if (description.kind() == Description::Kind::kSocket && description.is_ours() && stays_open(fd)) ++count;
    });
    const bool only_standard = count > kMostByExec;
    if (in_borrowed_memory()) return leave_as_borrower(only_standard);
    table.for_each([&](int fd, Description& description) {
        if (description.kind() != Description::Kind::kSocket || !description.is_ours()) return;
        Socket& socket = Socket::of(description);
        if (!goes(fd, socket) || (only_standard && fd > 2)) return;
        if (const DescriptionRef ref = table.find(fd); ref.get() != &description) return;
        socket.pass_on(fd);
    });
}

void leave_by_message(const msghdr& message) noexcept {
    if (message.msg_control == nullptr || is_confined() || in_borrowed_memory()) return;
    const KeepErrno keep;
    for_each_passed(message, [](int fd) {
        const DescriptionRef ref = FdTable::instance().find(fd);
        if (!ref || ref->kind() != Description::Kind::kSocket) return;
        Socket& socket = Socket::of(*ref.get());
        socket.pass_on(fd);
        socket.give_datagrams_away(fd);
    });
}

void meet_received(const msghdr& message) noexcept {
    if (message.msg_control == nullptr || is_confined() || in_borrowed_memory()) return;
    const KeepErrno keep;
    for_each_passed(message, [](int fd) {
        if (fd < 0) return;
        FdTable::instance().remove(fd);  // the number is new: what we knew of it was closed behind our back
        // Not with its first use, as what came by exec: whoever gave it may close it before that (haproxy's reload), and what waited
        // there for accept() needs an heir.
        take_listener(fd);
    });
}

/// A connection that is being made can stand for nothing yet: its handshake is waited for, so long as a peer that answers at all takes.
void Socket::await_handshake() noexcept {
    constexpr std::int64_t kPatienceNs = 1'000'000'000;
    if (record_lost()) return;
    shm::SocketRecord& record = shared();
    const auto made = [&] {
        return record_lost() || (record.daemon.status.load(std::memory_order_acquire) & shm::kStatusConnecting) == 0;
    };
    const std::int64_t deadline = now_ns() + kPatienceNs;
    while (!made() && wait_for(*client_, record, spin_history_, std::max<std::int64_t>(deadline - now_ns(), 0), made) == EINTR) {
    }
}

/// The locks keep everybody from reading and writing while the connection moves; what lies unread moves with it.
int Socket::fetch_stand_in() noexcept {
    if (record_lost()) return -1;
    shm::SocketRecord& record = shared();
    const SocketLock receiving(*client_, record.app.rx_lock);
    const SocketLock sending(*client_, record.app.tx_lock);
    const bool moved_before = (record.daemon.status.load(std::memory_order_acquire) & shm::kStatusMoved) != 0;
    const int stand_in = client_->ask_stand_in(this->record(), generation_, family_);
    if (stand_in < 0 || moved_before) return stand_in;
    // The blocks are the daemon's again: nobody shall find them here.
    shm::take_all(record.daemon.rx_list);
    record.app.stash_head.store(shm::kEmptyList, std::memory_order_relaxed);
    record.app.stash_tail.store(shm::kEmptyList, std::memory_order_relaxed);
    return stand_in;
}

/// What the program has set on the socket, it finds on the stand-in.
void Socket::dress(int stand_in) noexcept {
    const shm::SocketRecord& record = shared();
    const shm::SocketOptions options = record.options;
    if ((options.flags & shm::kOptionNoDelay) != 0) set_flag(stand_in, IPPROTO_TCP, TCP_NODELAY);
    if ((options.flags & shm::kOptionCork) != 0) set_flag(stand_in, IPPROTO_TCP, TCP_CORK);
    if ((options.flags & shm::kOptionUrgentInline) != 0) set_flag(stand_in, SOL_SOCKET, SO_OOBINLINE);
    if ((options.flags & shm::kOptionKeepAlive) != 0) set_flag(stand_in, SOL_SOCKET, SO_KEEPALIVE);
    if ((options.flags & shm::kOptionLinger) != 0) {
        const linger time{1, static_cast<int>(options.linger_s)};
        set_option(stand_in, SOL_SOCKET, SO_LINGER, &time, sizeof time);
    }
    if (wants(kTellsCopies)) set_flag(stand_in, SOL_SOCKET, SO_ZEROCOPY);
    if (wants(kTellsUnread)) set_flag(stand_in, IPPROTO_TCP, kTcpInq);
    if (const int offset = peek_offset_.load(std::memory_order_relaxed); offset >= 0)
        set_option(stand_in, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset);
    set_timeout(stand_in, SO_RCVTIMEO, receive_timeout_ns_.load(std::memory_order_relaxed));
    set_timeout(stand_in, SO_SNDTIMEO, send_timeout_ns_.load(std::memory_order_relaxed));
    if (nonblocking()) raw::fcntl(stand_in, F_SETFL, O_RDWR | O_NONBLOCK);
    const std::uint32_t flags = record.app.flags.load(std::memory_order_relaxed);
    if ((flags & shm::kAppShutRead) != 0) ::syscall(SYS_shutdown, stand_in, SHUT_RD);
    if ((flags & shm::kAppShutWrite) != 0) ::syscall(SYS_shutdown, stand_in, SHUT_WR);
}

pthread_mutex_t& Socket::leaving_mutex() noexcept { return leaving; }

/// A transfer found the connection elsewhere. False, and errno: the stand-in is not to be had, the connection is lost.
bool Socket::follow() noexcept {
    if (leave() || path() != Path::kConnection) return true;
    error_reported_.store(true, std::memory_order_relaxed);
    errno = ECONNRESET;
    return false;
}

bool Socket::leave() noexcept {
    if (path() != Path::kConnection || is_confined() || in_borrowed_memory()) return false;
    const KeepErrno keep;
    await_handshake();
    const LeavingGuard guard;
    if (path() != Path::kConnection) return true;  // another thread was quicker
    const int stand_in = fetch_stand_in();
    if (stand_in < 0) return false;
    dress(stand_in);
    FdTable::instance().for_each([&](int fd, Description& description) {
        if (&description == this) put_over(stand_in, fd);
    });
    raw::close(stand_in);
    placeholder_.store(false, std::memory_order_release);
    accepted_ = false;
    connecting_.store(Connecting::kKernel, std::memory_order_relaxed);
    abandon();  // moves the entries of epoll sets to the kernel's instance, which finds the stand-in there
    return true;
}

/// Nothing may be set on a placeholder, the file of many. A connection whose program wants more set than the record has gets a
/// socket of its own, and is to the rest of the shim as one that was connected. A fork that has it already keeps the placeholder.
bool Socket::own_kernel_half() noexcept {
    if (path() != Path::kConnection || is_confined() || in_borrowed_memory()) return false;
    const KeepErrno keep;
    const LeavingGuard guard;
    if (!has_placeholder()) return true;  // another thread was quicker
    const int half = libc::socket(family_, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (half < 0) return false;
    repeat_options(half);
    const int waiting = nonblocking() ? O_NONBLOCK : 0;  // first: it looks what other processes have set
    raw::fcntl(half, F_SETFL, O_RDWR | waiting | status_flags_.exchange(0, std::memory_order_relaxed));
    FdTable::instance().for_each([&](int fd, Description& description) {
        if (&description == this) put_over(half, fd);
    });
    raw::close(half);
    placeholder_.store(false, std::memory_order_release);
    return true;
}

int Socket::stand_in_for_borrower() noexcept {
    if (path() != Path::kConnection) return -1;
    const KeepErrno keep;
    await_handshake();
    const int stand_in = fetch_stand_in();
    if (stand_in >= 0) dress(stand_in);
    return stand_in;
}

void Socket::pass_on(int fd) noexcept {
    switch (path()) {
        case Path::kKernel: return;
        case Path::kConnection: leave(); return;
        case Path::kListener: return rest(fd);
        case Path::kDatagram: return rest_datagrams(fd);
    }
}

/// The locks keep everybody from reading and writing meanwhile; what is queued to be sent is sent.
void Socket::rest_datagrams(int fd) noexcept {
    if (path() != Path::kDatagram || is_resting()) return;
    const KeepErrno keep;
    if (!is_raw() && !record_lost() && is_udp(fd)) {
        shm::SocketRecord& record = shared();
        const SocketLock receiving(*client_, record.app.rx_lock);
        const SocketLock sending(*client_, record.app.tx_lock);
        if (is_resting()) return;  // another process was quicker
        if (client_->ask_to_rest(this->record(), generation_, fd)) {
            // The blocks are the daemon's again.
            shm::take_all(record.daemon.rx_list);
            record.app.stash_head.store(shm::kEmptyList, std::memory_order_relaxed);
            record.app.stash_tail.store(shm::kEmptyList, std::memory_order_relaxed);
            return;
        }
    }
    if (!in_borrowed_memory()) leave_to_kernel(fd);
}

void Socket::give_datagrams_away(int fd) noexcept {
    if (path() != Path::kDatagram || is_raw()) return;
    if (!record_lost()) shared().app.flags.fetch_or(shm::kAppPassedOn, std::memory_order_seq_cst);
    give_back(fd, shm::KernelReason::kPassedOn);
}

}  // namespace culvert::preload
