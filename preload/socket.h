// An application's AF_INET or AF_INET6 socket, from socket() to the last close().
//
//              bind, listen       +--> kListener    kernel listener + Culvert listener: accept takes from both
//   kKernel ----------------------+
//   (a kernel socket, watched)    +--> kConnection  Culvert TCP connection; also what accept returns (a placeholder)
//              connect, sendto    +--> kDatagram    Culvert and kernel datagrams, side by side on one port; so, too,
//                                                   the packets of a raw or ping socket
//
// Every method has the semantics of the system call of its name: returns -1 and sets errno, or returns the value and leaves
// errno alone. `fd` is the descriptor that the application used (all descriptors of one description are equal). A socket
// that is not in Culvert passes the call to libc, so a caller need not ask first; but a caller may skip us when
// !is_ours() for receive, send on streams, shutdown, sockname, peername, get_option. It must *not* skip us for bind,
// listen, connect, send on datagram sockets, set_option, ioctl(FIONBIO) and the status flags.
//
// O_NONBLOCK is kept here: placeholders share one kernel file, and a listener's kernel half is always non-blocking.
#pragma once

#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <atomic>
#include <cstdint>

#include "preload/client.h"
#include "preload/datagram_state.h"
#include "preload/description.h"
#include "preload/description_pool.h"
#include "preload/policy.h"
#include "preload/route_cache.h"
#include "preload/wait.h"

namespace culvert::preload {

/// Whose segment a socket's record is in. Changes when a daemon has gone and another one takes the socket over.
class ClientPointer {
public:
    ClientPointer& operator=(Client* client) noexcept {
        client_.store(client, std::memory_order_release);
        return *this;
    }
    Client* get() const noexcept { return client_.load(std::memory_order_acquire); }
    operator Client*() const noexcept { return get(); }  // NOLINT: a pointer that several threads may look at
    Client* operator->() const noexcept { return get(); }
    Client& operator*() const noexcept { return *get(); }

private:
    std::atomic<Client*> client_{nullptr};
};

class Socket final : public Description {
public:
    enum class Path : std::uint8_t { kKernel, kListener, kConnection, kDatagram };

    /// socket(2) for any family: makes the kernel socket and, for the kinds that Culvert can carry while a daemon is
    /// attached, registers it.
    static int open(int domain, int type, int protocol) noexcept;
    /// A description from the pool, not behind any descriptor yet; null without memory. dispose() gives it back.
    static Socket* make(int family, int type, bool nonblocking) noexcept;
    /// The Socket behind a description of Kind::kSocket.
    static Socket& of(Description& description) noexcept { return static_cast<Socket&>(description); }

    /// The connection leaves the program (leave.cc): the kernel's socket that stands in for it takes the place of the
    /// placeholder, in this process, and the Socket is the kernel's from then on. False: it stays what it is.
    bool leave() noexcept override;
    /// Somebody else of the program has let the connection leave: this process follows with its next call.
    bool has_left() const noexcept override {
        return path() == Path::kConnection &&
               (shared().daemon.status.load(std::memory_order_relaxed) & shm::kStatusMoved) != 0;
    }
    /// The kernel's socket for a process that shares our memory but not our descriptors, which executes another program:
    /// nothing here is changed. -1: none. The caller's.
    int stand_in_for_borrower() noexcept;
    /// `fd` goes to another program, which must find what it can use.
    void pass_on(int fd) noexcept;
    /// A listener is passed on, also by a process that shares our memory only: if nobody of ours waits for connections, it rests.
    void rest(int fd) noexcept;
    /// A datagram socket is passed on, also by a process that shares our memory only: its packets, unread ones too, are the kernel's
    /// until somebody of ours waits for more.
    void rest_datagrams(int fd) noexcept;
    /// It is passed on by a message, and stays with the kernel: nobody can tell when the other program is done with it.
    void give_datagrams_away(int fd) noexcept;

    /// A listening TCP socket that was there before the library is Culvert's, too, from now on, if a daemon takes it.
    static void inherit(int fd) noexcept;

    int bind(int fd, const sockaddr* address, socklen_t length) noexcept;
    int listen(int fd, int backlog) noexcept;
    /// accept4(2).
    int accept(int fd, sockaddr* address, socklen_t* length, int flags) noexcept;
    int connect(int fd, const sockaddr* address, socklen_t length) noexcept;
    int shutdown(int fd, int how) noexcept;

    /// sendmsg(2). write, send, sendto and writev build a msghdr.
    ssize_t send(int fd, const msghdr& message, int flags) noexcept;
    /// recvmsg(2): also fills msg_name, msg_namelen, msg_controllen and msg_flags.
    ssize_t receive(int fd, msghdr& message, int flags) noexcept;
    /// recv(MSG_PEEK) of a stream from its front, whatever SO_PEEK_OFF says.
    ssize_t peek_front(int fd, msghdr& message, int flags) noexcept;
    int send_many(int fd, mmsghdr* messages, unsigned count, int flags) noexcept;
    int receive_many(int fd, mmsghdr* messages, unsigned count, int flags, timespec* timeout) noexcept;
    ssize_t sendfile(int fd, int in_fd, off_t* offset, std::size_t count) noexcept;

    int get_option(int fd, int level, int name, void* value, socklen_t* length) noexcept;
    int set_option(int fd, int level, int name, const void* value, socklen_t length) noexcept;
    int ioctl(int fd, unsigned long request, void* argument) noexcept;
    int sockname(int fd, sockaddr* address, socklen_t* length) noexcept;
    int peername(int fd, sockaddr* address, socklen_t* length) noexcept;
    /// fcntl F_GETFL and F_SETFL. All other fcntl commands are the kernel's (dup, FD_CLOEXEC, locks).
    int get_status_flags(int fd) noexcept;
    int set_status_flags(int fd, int flags) noexcept;
    /// F_SETOWN, F_SETOWN_EX, F_SETSIG, FIOSETOWN, SIOCSPGRP. `call` is the system call: fcntl or ioctl.
    using SignalCall = int (*)(int fd, int command, long argument) noexcept;
    int set_signals(int fd, SignalCall call, int command, long argument) noexcept;
    /// SO_SNDTIMEO; -1: none.
    std::int64_t send_timeout_ns() const noexcept { return send_timeout_ns_.load(std::memory_order_relaxed); }
    bool nonblocking() const noexcept {
        if (is_shared()) [[unlikely]]
            follow_file_flags();
        return nonblocking_.load(std::memory_order_relaxed);
    }

    /// Lets the kernel have a listener or a datagram socket for good; connections stay, and what is raw.
    void give_back(int fd, shm::KernelReason reason) noexcept;

    Path path() const noexcept { return path_.load(std::memory_order_acquire); }
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_RAW; AF_INET or AF_INET6.
    int type() const noexcept { return type_; }
    int family() const noexcept { return family_; }
    /// The shared record, for tests that look at what the daemon sees.
    const shm::SocketRecord& shared_for_test() const noexcept { return shared(); }
    /// The client whose segment holds the record; valid while path() is not kKernel.
    Client* client() const noexcept { return client_; }

    // Description
    void on_last_close() noexcept override;
    void dispose() noexcept override;
    /// A posix_spawn_file_actions_t names it: the next spawn takes it along, close-on-exec or not.
    std::atomic<bool> spawned{false};

    /// For dead_flows.h: the kernel's socket behind this description may hold a port of its own.
    bool may_hold_port() const noexcept { return type_ == SOCK_STREAM && !has_placeholder(); }

    /// Other processes may hold our record too, from now on (fork).
    bool is_shared() const noexcept { return shared_.load(std::memory_order_relaxed); }
    void note_shared() noexcept;
    /// Taken around a fork, so that the child finds it unlocked.
    static pthread_mutex_t& leaving_mutex() noexcept;
    bool is_ours() const noexcept override { return path() != Path::kKernel; }
    std::uint32_t poll_now(bool wants_write) noexcept override;
    bool polls_kernel_too() const noexcept override {
        const Path path = this->path();
        return path == Path::kListener || path == Path::kDatagram;
    }
    /// poll_now() of a socket that another process of the family holds.
    static std::uint32_t poll_record(Client& client, std::uint32_t record, std::uint32_t generation, Path path, int type, int low_water,
                                     bool wants_write) noexcept;
    std::uint32_t generation() const noexcept { return generation_.load(std::memory_order_acquire); }
    int receive_low_water() const noexcept { return low_water_.load(std::memory_order_relaxed); }
    std::uint32_t record() const noexcept override { return record_.load(std::memory_order_relaxed); }
    Client* home() const noexcept override { return client_; }
    bool wants_daemon() const noexcept override { return polls_kernel_too() && (client_->daemon_gone() || is_resting()); }
    /// A listener that has been passed on before anybody here waited for a connection, or a UDP socket that has been passed on:
    /// Culvert's again with the first who waits for something there.
    bool is_resting() const noexcept {
        return polls_kernel_too() && !client_->daemon_gone() &&
               (shared().daemon.status.load(std::memory_order_relaxed) & shm::kStatusResting) != 0;
    }
    /// Somebody waits for connections on this listener.
    void note_awaited() noexcept {
        if (path() != Path::kListener || client_->daemon_gone()) return;
        std::atomic<std::uint32_t>& flags = shared().app.flags;
        if ((flags.load(std::memory_order_relaxed) & shm::kAppAwaited) == 0) flags.fetch_or(shm::kAppAwaited, std::memory_order_relaxed);
    }
    void revive(int fd) noexcept override;

    Socket(int family, int type, bool nonblocking) noexcept
        : Description(Kind::kSocket, passes_of(Path::kKernel, type)), nonblocking_(nonblocking), family_(family), type_(type) {}

private:
    friend class DescriptionPool<Socket>;
    enum class Connecting : std::uint8_t { kNo, kCulvert, kKernel };
    struct Look;

    /// Datagrams choose their path one by one.
    static std::uint8_t passes_of(Path path, int type) noexcept {
        if (path != Path::kKernel) return kPassesNothing;
        return kPassesReceives | kPassesPolls | (type == SOCK_STREAM ? kPassesSends : kPassesNothing);
    }
    void set_path(Path path) noexcept {
        let_pass(passes_of(path, type_));
        path_.store(path, std::memory_order_release);
    }

    // async_signals.cc
    void heed_signals(int fd) noexcept;

    // file_flags.cc
    void follow_file_flags() const noexcept;
    void set_file_flags(int flags, int which) noexcept;
    void learn_file_flags(int fd) noexcept;

    // socket.cc
    shm::Policy::Protocol policy_protocol() const noexcept;
    shm::SocketRecord& shared() const noexcept { return client_->segment().socket(record()); }
    bool record_lost() const noexcept;
    void adopt(Client& client, std::uint32_t record, Path path) noexcept;
    void adopt_nobody(Path path) noexcept;
    bool revive_if_due(int fd) noexcept;
    void abandon() noexcept;
    void abandon_at_once() noexcept;
    int operate(Client& client, std::uint32_t record, shm::Operation operation, std::uint32_t argument,
                const shm::WireEndpoint& local, const shm::WireEndpoint& remote, bool* interrupted = nullptr) noexcept;
    std::uint32_t prepare_record(Client& client) noexcept;
    template <class Ready>
    int wait_both(int fd, std::int64_t timeout_ns, Ready&& ready) noexcept;
    bool wants_to_wait(int flags) const noexcept { return !nonblocking() && (flags & MSG_DONTWAIT) == 0; }

    // stream_socket.cc
    int connect_stream(int fd, const sockaddr* address, socklen_t length) noexcept;
    int connect_kernel(int fd, const sockaddr* address, socklen_t length, shm::KernelReason reason) noexcept;
    int finish_connect(int fd, bool wait, int unfinished) noexcept;

    // disconnect.cc
    bool has_ended() const noexcept {
        return record_lost() || (shared().daemon.status.load(std::memory_order_acquire) & shm::kStatusDead) != 0;
    }
    bool leaves_reset() const noexcept;
    void end_connection(int fd) noexcept;
    bool reset_own_half(int fd) noexcept;
    void free_own_port(int fd) noexcept;
    int bind_ended(int fd, const sockaddr* address, socklen_t length) noexcept;
    int refuse_bind(const sockaddr* address, socklen_t length) const noexcept;
    int disconnect(int fd, const sockaddr* address, socklen_t length) noexcept;
    int take_error() noexcept;
    int take_soft_error() noexcept;
    template <class Fill>
    ssize_t send_stream(std::size_t total, int flags, Fill&& fill) noexcept;
    int wait_writable(std::int64_t deadline_ns) noexcept;
    std::uint64_t send_room() const noexcept;
    bool has_room() const noexcept;
    bool arm_write_notice() noexcept;
    ssize_t send_fast_open(int fd, const msghdr& message, int flags) noexcept;
    ssize_t send_parts(const iovec* parts, std::size_t count, int flags) noexcept;
    int send_state() noexcept;
    ssize_t receive_stream(const iovec* parts, std::size_t count, int flags, std::size_t peek_offset = 0) noexcept;
    void refill_stash() noexcept;
    /// How much of the stream a read may take: `hole` bytes at the front are passed over, then at most `most`.
    struct Reach {
        std::size_t most = SIZE_MAX;
        std::size_t hole = 0;
    };
    struct Taken {
        std::size_t bytes = 0;
        std::size_t passed = 0;  // of the hole
    };
    Taken take_bytes(const iovec* parts, std::size_t count, std::size_t skip, bool peek, bool discard, Reach reach) noexcept;
    void consumed(std::size_t bytes) noexcept;
    bool readable() const noexcept;
    std::uint64_t unread() const noexcept;
    std::size_t low_water() const noexcept;
    void wait_for_linger() noexcept;

    // stream_urgent.cc
    struct Urgent {
        bool known = false;    // there is an urgent octet at the reader or ahead of it
        bool arrived = false;  // and it can be taken out of band
        bool read = false;     // and it has been
        bool at_read = false;  // the next byte of the stream was taken out of band
        bool in_line = false;  // SO_OOBINLINE
        std::uint8_t octet = 0;
        std::uint64_t ahead = 0;
        std::uint64_t position = 0;
    };
    Urgent urgent() const noexcept;
    Reach reach(std::size_t copied) const noexcept;
    bool has_ordinary_bytes() const noexcept;
    std::uint64_t bytes_to_mark(std::uint64_t unread) const noexcept;
    ssize_t receive_urgent(const iovec* parts, std::size_t count, int flags) noexcept;

    // leave.cc
    /// What a transfer returns that found the connection gone to a stand-in: the caller follows with leave(), and goes to the kernel.
    static constexpr ssize_t kElsewhere = -2;
    bool is_elsewhere() const noexcept { return path() != Path::kConnection || has_left(); }
    bool follow() noexcept;
    void await_handshake() noexcept;
    int fetch_stand_in() noexcept;
    void dress(int stand_in) noexcept;
    /// True for an accepted connection as long as its kernel descriptor is the file of others, too.
    bool has_placeholder() const noexcept { return placeholder_.load(std::memory_order_acquire); }
    /// Gives it a kernel socket of its own, with the options that the record has. False: none is to be had.
    bool own_kernel_half() noexcept;

    // listen_socket.cc
    /// kUnknown, kListenerPair: fd is a listener of Culvert's, too; else why not, which has been noted.
    shm::KernelReason start_listening(int fd, int backlog) noexcept;
    bool refuses_kernels_connection(int fd) const noexcept;
    void stop_listening(int fd) noexcept;
    void end_listening(int fd) noexcept;
    /// shutdown() has ended this listener, which other processes hold, too; it may listen again.
    bool is_shut() const noexcept {
        return is_shared() && path() == Path::kListener && (shared().app.flags.load(std::memory_order_acquire) & shm::kAppShutRead) != 0;
    }
    void wait_for_daemon(int fd) noexcept;
    int accept_culvert(int fd, sockaddr* address, socklen_t* length, int flags) noexcept;

    // datagram_socket.cc
    /// kUnknown: it is Culvert's now; else why not, which has been noted.
    shm::KernelReason try_bind_datagram(int fd) noexcept;
    int stays_with_kernel(int fd, shm::KernelReason reason) const noexcept;
    shm::KernelReason why_not_to(const shm::WireEndpoint& remote) const noexcept;
    /// bind(2) of the kernel's socket, also to an address that is the daemon's alone (which the kernel does not know).
    int bind_kernel(int fd, const sockaddr* address, socklen_t length) noexcept;
    bool bind_to_any_port(int fd, const sockaddr* address, socklen_t length) noexcept;
    /// Binds to that port as if the kernel had chosen it, so that it is free again when the socket is disconnected. False: it is taken,
    /// or the kernel cannot (before Linux 6.3), or the program has said which ports it wants.
    bool bind_in_range(int fd, const sockaddr* address, socklen_t length, std::uint16_t port) noexcept;
    int connect_datagram(int fd, const sockaddr* address, socklen_t length) noexcept;
    RouteAnswer ask_route(const RouteKey& key) noexcept;
    int send_datagram_state() noexcept;
    int error_of_both(const msghdr& message, int flags) noexcept;
    bool has_something_waiting() const noexcept {
        return readable() || has_error_entry() || shared().daemon.error.load(std::memory_order_relaxed) != 0;
    }
    ssize_t send_datagram(int fd, const msghdr& message, int flags) noexcept;
    ssize_t send_by_kernel(int fd, const msghdr& message, int flags) noexcept;
    ssize_t send_datagram_blocks(const msghdr& message, shm::DatagramHeader& header, int flags) noexcept;
    static int check_datagram(std::size_t length, const shm::DatagramHeader& header, bool v4, std::uint32_t mtu) noexcept;
    void push_datagram(const msghdr& message, const shm::DatagramHeader& header, std::uint32_t newest,
                       std::size_t count) noexcept;
    /// `fd` -1: leave no note why.
    void leave_to_kernel(int fd) noexcept;
    void revive_datagram(int fd) noexcept;
    void wake_datagrams(int fd) noexcept;
    void remember_group(int fd, const GroupRequest& request) noexcept;
    void tell_groups() noexcept;

    // datagram_cork.cc
    ssize_t send_part(const msghdr& message, const shm::DatagramHeader& header, bool v4, std::uint32_t mtu, int flags, bool more) noexcept;
    ssize_t send_whole(CorkedDatagram& datagram, int flags) noexcept;
    void keep_spare(CorkedDatagram* datagram) noexcept;
    void uncork() noexcept;
    void tell_too_long(int error, std::size_t length, const shm::DatagramHeader& header, bool v4, std::uint32_t mtu) noexcept;
    bool has_local_error() const noexcept;
    ssize_t take_local_error(msghdr& message) noexcept;
    void wake_own_watchers() noexcept;

    // raw_socket.cc
    bool is_raw() const noexcept { return datagram_ != nullptr && datagram_->raw_kind != 0; }
    void start_raw(int fd, int protocol) noexcept;
    void try_bind_raw(int fd) noexcept;
    RouteAnswer ask_raw_route(int fd, RouteKey key) noexcept;
    int connect_raw(int fd, const sockaddr* address, socklen_t length) noexcept;
    ssize_t send_raw(int fd, const msghdr& message, int flags) noexcept;
    bool keep_raw_option(int level, int name, const void* value, socklen_t length) noexcept;
    int tell_filter() noexcept;

    // datagram_receive.cc
    ssize_t receive_datagram(int fd, msghdr& message, int flags) noexcept;
    ssize_t take_datagram(msghdr& message, int flags) noexcept;
    ssize_t take_error_entry(msghdr& message, int flags) noexcept;
    bool has_error_entry() const noexcept;
    int next_datagram_length() noexcept;

    // datagram_options.cc
    bool set_group_option(int fd, int level, int name, const void* value, socklen_t length, int& result) noexcept;
    void keep_datagram_option(int fd, int level, int name, const void* value, socklen_t length) noexcept;
    bool keep_send_option(int level, int name, int number) noexcept;
    bool keep_daemon_option(int level, int name, int number) noexcept;
    int tell_group(const GroupRequest& request) noexcept;

    // socket_options.cc
    int ask_kernel(int level, int name, const void* value, socklen_t length) const noexcept;
    int set_shared_option(int level, int name, const void* value, socklen_t length) noexcept;
    int get_shared_option(int level, int name, void* value, socklen_t* length) noexcept;
    /// The options that the kernel's socket has already: somebody else has set them.
    void keep_kernel_options(int fd) noexcept;
    void keep_option(int level, int name, const void* value, socklen_t length) noexcept;
    template <class Change>
    void change_options(Change&& change) noexcept;
    int copy_info(void* value, socklen_t* length) noexcept;
    int give_peername(int fd, void* value, socklen_t* length) noexcept;
    void repeat_options(int half) const noexcept;
    void dress_as_listener(int half, int listener, std::uint64_t options) const noexcept;
    void note_passed_on(int fd) noexcept;
    void remember_v6_only(int fd) noexcept;
    bool is_established() const noexcept {
        return (shared().daemon.status.load(std::memory_order_acquire) & (shm::kStatusReady | shm::kStatusDead)) == shm::kStatusReady;
    }

    // stream_extras.cc
    /// What a stream has asked for beside its bytes.
    enum StreamWants : std::uint8_t {
        kTellsUnread = 1,  // TCP_INQ
        kPeeksOnward = 2,  // SO_PEEK_OFF
        kTellsCopies = 4,  // SO_ZEROCOPY
    };
    bool wants(StreamWants what) const noexcept { return (stream_wants_.load(std::memory_order_relaxed) & what) != 0; }
    void set_wants(StreamWants what, bool on) noexcept;
    void inherit_wants(const Socket& listener) noexcept;
    std::size_t peek_offset() const noexcept;
    void move_peek_offset(ssize_t by) noexcept;
    void tell_unread(msghdr& message) const noexcept;
    void tell_copied(ssize_t sent) noexcept;
    bool has_copy_notice() const noexcept {
        return copies_made_.load(std::memory_order_relaxed) != copies_told_.load(std::memory_order_relaxed);
    }
    ssize_t take_copy_notice(msghdr& message) noexcept;
    ssize_t receive_error(msghdr& message, int flags) noexcept;

    std::atomic<Path> path_{Path::kKernel};
    mutable std::atomic<bool> nonblocking_;
    std::atomic<Connecting> connecting_{Connecting::kNo};
    std::atomic<bool> error_reported_{false};  // the reset that a vanished daemon means has been returned once
    std::atomic<bool> shared_{false};
    bool accepted_ = false;
    bool bound_anew_ = false;  // the connection has ended, and the program has bound the socket since
    std::atomic<bool> placeholder_{false};  // accepted: the kernel descriptor is a duplicate shared with others
    std::atomic<std::uint8_t> stream_wants_{0};
    const int family_;
    const int type_;
    std::atomic<std::uint32_t> record_{shm::kNoIndex};
    std::atomic<std::uint32_t> generation_{0};
    int backlog_ = 0;
    SpinHistory spin_history_;
    ClientPointer client_;
    std::atomic<bool> needs_kernel_{false};  // a stream on which an option was set that only the kernel honours
    std::atomic<bool> needs_kernel_to_listen_{false};  // ... of a listener
    std::atomic<std::uint64_t> passed_on_{0};  // options that accepted connections are to have, too: bits of kPassedOn (passed_on.h)
    mutable std::atomic<int> status_flags_{0};  // of a placeholder, whose file is everybody's: what F_SETFL has set besides O_NONBLOCK
    std::atomic<int> low_water_{1};  // SO_RCVLOWAT of a stream
    std::atomic<int> peek_offset_{-1};  // SO_PEEK_OFF of a stream
    std::atomic<std::uint32_t> copies_made_{0};  // sends with MSG_ZEROCOPY so far, and
    std::atomic<std::uint32_t> copies_told_{0};  // how many of them the program has been told of
    std::atomic<std::int64_t> receive_timeout_ns_{-1};
    std::atomic<std::int64_t> send_timeout_ns_{-1};
    shm::SocketOptions early_options_{};  // set while there is no record
    DatagramState* datagram_ = nullptr;  // of a datagram socket
    bool datagram_connected_ = false;
    bool connected_kernel_ = false;  // connected to a peer that the kernel reaches
};

}  // namespace culvert::preload
