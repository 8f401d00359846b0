// The process's connection to the daemon: segment, process slot, doorbell, event queues.
//
// One per process. Attaches on the first socket() call of a kind that could be Culvert's (or at load when it inherits
// nothing but the environment says so); a daemon that is absent, refuses, or speaks another version makes every socket
// a kernel socket, silently (strict mode: policy.h).
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "preload/spin_lock.h"
#include "shm/accept_queue.h"
#include "shm/attach_protocol.h"
#include "shm/block_list.h"
#include "shm/policy.h"
#include "shm/segment.h"
#include "shm/wakeup.h"

namespace culvert::preload {

/// An event queue of this process: index in the segment and the eventfd that the daemon signals.
struct EventQueue {
    std::uint32_t index = 0;
    int eventfd = -1;
};

class Client {
public:
    /// The process's client, attached if possible; null when this process runs on kernel sockets. Thread-safe, no
    /// allocation after the first call, never throws.
    static Client* attached() noexcept;
    /// Null when not attached *yet*; never attaches. For calls on existing descriptors.
    static Client* current() noexcept;
    /// The client of sockets that would be Culvert's if there were a daemon: always gone, its segment a private one that no
    /// daemon sees. So they are what they would be if their daemon had just died, and are revived in the same way. Null: no memory.
    static Client* nobody() noexcept;

    /// Whether attached() would try now, or need not. Between attempts there are pauses.
    static bool attempt_is_due() noexcept;
    /// How long a sleep may be that ends with the next attempt; at least a millisecond.
    static std::int64_t until_next_attempt_ns() noexcept;
    /// Changes whenever a daemon has gone, or a socket has come that waits for one (Description::wants_daemon).
    static std::uint32_t orphan_epoch() noexcept;
    static void note_orphan() noexcept;

    shm::Segment& segment() noexcept;
    std::uint32_t process_slot() const noexcept;
    /// What the daemon's configuration says of this program; null: nothing.
    const shm::Policy* policy() const noexcept { return has_policy_ ? &policy_ : nullptr; }
    /// How long a waiter may look before it sleeps.
    std::uint32_t spin_us() const noexcept;

    /// Marks the socket for the daemon and rings the doorbell if the engine sleeps. One fetch_or when it does not.
    void post(std::uint32_t record) noexcept;
    /// After unwatch() of a listener that may have been told of to this process alone: another watcher is told.
    void tell_another(std::uint32_t record) noexcept;

    /// A record of the application's range: holder bit first, then the claim (see shm/layout.h). Nothing left: nullopt.
    std::optional<std::uint32_t> take_record() noexcept;
    /// Marks this process as holder of an accepted record. False: it was marked already.
    bool hold(std::uint32_t record) noexcept;
    /// Takes back a hold() that was a mistake: the record is not what it was taken for. Tells nobody.
    void unhold(std::uint32_t record) noexcept;
    bool held_by_others(std::uint32_t record) noexcept;
    /// Gives up this process's hold; if no other live process holds the record, asks the daemon to close it.
    /// `may_be_shared` false: the record was never inherited by or from another process, so nobody else is asked.
    void let_go(std::uint32_t record, bool may_be_shared = true) noexcept;
    /// The same for a record that was taken in `generation`; if it has another one by now, it is somebody else's (perhaps
    /// another socket's of this process) and is left alone.
    void let_go_of(std::uint32_t record, std::uint32_t generation, bool may_be_shared) noexcept;

    /// A free transmit block, or kNoIndex (pool empty: set tx_starved and wait for kAppWantWrite's notice).
    std::uint32_t take_block() noexcept;
    /// Gives back a block that take_block gave and that was not sent.
    void untake_block(std::uint32_t block) noexcept;
    /// Returns a received block to the daemon.
    void return_block(std::uint32_t block) noexcept;
    /// Returns a chain of received blocks, linked from `first` to `last`, with one push.
    void return_blocks(std::uint32_t first, std::uint32_t last) noexcept;

    /// A new event queue (one round trip on the control connection) / one from the pool for a poll() call.
    std::optional<EventQueue> add_queue(bool of_call = false) noexcept;
    /// The same with an eventfd that other processes have, too. kNoIndex: no.
    std::uint32_t add_queue_with(int eventfd) noexcept;
    void remove_queue(EventQueue queue) noexcept;
    std::optional<EventQueue> borrow_poll_queue() noexcept;
    void give_back_poll_queue(EventQueue queue) noexcept;

    /// Shows the daemon a raw or ping socket of the kernel's: one kBindRaw of that kind is then let through. False: not so.
    bool grant_raw(int fd) noexcept;

    /// Tells the daemon of connections that died with its predecessor; flow i's proof is an index into `fds`. How many peers it
    /// will make ask; nothing: no daemon any more.
    std::optional<std::uint32_t> report_dead(const shm::ReportDead& report, const int* fds, std::uint32_t fd_count) noexcept;

    /// The kernel socket that stands in for a connection which leaves the program; of the caller. -1: there is none.
    int ask_stand_in(std::uint32_t record, std::uint32_t generation, int family) noexcept;
    /// A datagram socket comes to rest, and what lies unread goes to the kernel's half, which is `fd`. Under the record's locks. False:
    /// refused.
    bool ask_to_rest(std::uint32_t record, std::uint32_t generation, int fd) noexcept;

    /// `queue` wants news of `record` (sets its watch bit, then AppLine::watch) / does not any more.
    void watch(std::uint32_t queue, std::uint32_t record) noexcept;
    void unwatch(std::uint32_t queue, std::uint32_t record) noexcept;

    /// The control connection; readable (EOF) when the daemon is gone. Every wait in the kernel includes it.
    int control_fd() const noexcept;
    /// True once the daemon's end is closed: every Culvert connection is then reset (ECONNRESET), listeners go on in the
    /// kernel.
    bool daemon_gone() const noexcept;
    /// Looks at the control connection (a system call) and sets daemon_gone().
    bool check_daemon() noexcept;

    /// Why a descriptor of ours is on the kernel path; shown by `culvert ss`.
    void note_reason(int fd, shm::KernelReason reason) noexcept;

    /// The same for a connection that the kernel's listener has accepted: the reason is the listener's.
    void inherit_reason(int fd, int listener) noexcept;

    // pthread_atfork: a slot for the child is asked for before the fork; the child takes it over and inherits the holds.
    static void before_fork() noexcept;
    static void after_fork_in_parent() noexcept;
    static void after_fork_in_child() noexcept;
    /// How many forks lie between the first process and this one; per-process objects (queues) remember it.
    static std::uint32_t fork_generation() noexcept;
    /// The program's name as it is when the library is loaded; servers write over it later (setproctitle).
    static void remember_name() noexcept;
    /// True if CULVERT_STRICT asks to fail rather than to use kernel sockets.
    static bool strict() noexcept;

    /// Attaches through a control connection that is made already; what attached() does after connecting. Takes `control`
    /// over. Null when the daemon refuses. For tests, and for attached() itself.
    static Client* attach_over(int control) noexcept;
    /// Makes `client` the process's client. With one, the pauses between attempts begin anew.
    static void install(Client* client) noexcept;

private:
    static constexpr std::uint32_t kPooledQueues = 32;

    Client(shm::Segment&& segment, std::uint32_t slot, std::uint32_t spin_us, int control, int doorbell) noexcept;
    bool ask(const void* request, std::size_t size, int fd, std::uint32_t& value, int* received = nullptr) noexcept;
    bool ask_with(const void* request, std::size_t size, const int* fds, std::size_t fd_count, std::uint32_t& value, int* received) noexcept;
    bool send_message(const void* request, std::size_t size, int fd) noexcept;
    static void lock_attaching() noexcept;
    static void unlock_attaching() noexcept;
    void mark_gone() noexcept;
    void retire() noexcept;
    void prepare_child() noexcept;
    void close_pooled_queues() noexcept;
    void become_child() noexcept;

    shm::Segment segment_;
    std::atomic<std::uint32_t> slot_;
    std::uint32_t spin_us_;
    bool has_policy_ = false;  // both written before the client is installed, never afterwards
    shm::Policy policy_;
    std::atomic<int> control_;
    int doorbell_;
    std::atomic<bool> gone_{false};
    Client* predecessor_ = nullptr;  // until it is retired
    pthread_mutex_t control_mutex_ = PTHREAD_MUTEX_INITIALIZER;  // one request at a time
    SpinLock holds_lock_;   // this process's holder bitmap against fork and against itself
    std::atomic<std::uint64_t> pooled_[kPooledQueues] = {};  // index << 32 | eventfd + 1; 0: free. No lock: a handler may poll
    std::atomic<std::uint32_t> next_record_word_{0};  // where the last free record was found
    // Between before_fork and after_fork:
    int child_control_ = -1;
    std::uint32_t child_slot_ = shm::kNoIndex;
};

}  // namespace culvert::preload
