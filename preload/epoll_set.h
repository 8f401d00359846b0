// An epoll instance that holds kernel descriptors and Culvert sockets at once.
//
//   kernel descriptor ---------------------> the kernel's instance, with the application's own data: costs nothing
//   Culvert connection --> entry --+
//   Culvert listener   --> entry --+------> ... and in the kernel's instance too (clients of other interfaces)
//                                  |
//        segment.ready(queue) -----+--> candidates --poll_now--> reported
//        eventfd, control connection ------> the kernel's instance, under private data, so that a sleeper wakes
//
// Candidates are the entries that *may* be ready: the daemon gave a bit, or they were ready last time and are
// level-triggered. poll_now is the truth; being a candidate wrongly costs one look, not being one would lose an event.
// So an entry becomes a candidate when it is added or modified, on each bit, and when the daemon dies.
//
//   entry        | meaning                                   | leaves by
//   idle         | not ready when last looked at             | a bit, MOD
//   candidate    | look at it in the next wait               | not ready: idle; reported: level-triggered stays, EPOLLET
//                |                                           | idle, EPOLLONESHOT disarmed
//   disarmed     | one-shot and reported                     | MOD
//   kernel-only  | a socket that is not Culvert's (yet)      | became_ours: candidate
//
// Every socket the shim knows has an entry, because connect() and listen() may turn it into a Culvert socket after it
// was added; other kernel descriptors have none.
//
// Sleeping. Several threads may wait on one set, but the queue has one `asleep` flag, which the daemon takes to 0 with its
// one signal. Whoever collects bits while others sleep announces sleep on their behalf *before* it collects, and signals
// the eventfd itself if it leaves candidates behind. So no event is posted to a queue with a sleeper and no flag.
//
// Seen from outside. If the epoll descriptor itself is polled (another set, poll(), select()), nobody calls wait() when
// something comes. Then the set is `pollable`: its queue always says asleep, the eventfd is level-triggered and stays
// signalled as long as there are candidates; the kernel's instance is then readable whenever the set may have news.
//
// Without a daemon. Listeners and UDP sockets whose daemon has gone are orphans: the kernel's half serves them. Nobody says
// when there is a daemon again, so whoever waits here looks once a second (Client::until_next_attempt_ns) and gives it the
// orphans of this set. A set without orphans sleeps as long as ever.
//
// fork. The kernel's instance is shared with the child, our tables are copied. The child leaves everything alone until
// it uses the set; then both go on with tables in shared memory (epoll_family.cc).
#pragma once

#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <time.h>

#include <atomic>
#include <cstdint>
#include <optional>

#include "preload/client.h"
#include "preload/description.h"
#include "preload/epoll_entries.h"
#include "preload/fd_table.h"
#include "preload/wait.h"

namespace culvert::preload {

struct EpollSets;
class SharedSet;
struct SharedEntry;
class Socket;

class EpollSet final : public Description {
public:
    /// A fresh set (from the pool of type-stable sets), to be put behind a descriptor. Null: out of memory.
    static EpollSet* create() noexcept;
    /// The set behind `fd`, made now if `fd` is an epoll instance that we have not seen (inherited over exec).
    static DescriptionRef find_or_adopt(int fd) noexcept;

    /// epoll_ctl on the set behind `epoll_fd`: 0, or -1 and errno. `target` is what `fd` refers to: a socket.
    int control(int epoll_fd, int operation, int fd, Description& target, epoll_event* event) noexcept;
    /// epoll_pwait2; `timeout` null waits for ever. A cancellation point like the original.
    int wait(int epoll_fd, epoll_event* events, int max_events, const timespec* timeout, const sigset_t* mask);

    /// epoll_wait on a set in which nothing is Culvert's, for two atomic additions: no reference, since sets are never freed and
    /// a sleeper only counts itself. Nothing: `epoll_fd` is no such set. A cancellation point, too.
    static std::optional<int> wait_in_kernel(int epoll_fd, epoll_event* events, int max_events, int timeout_ms, const sigset_t* mask);

    /// Makes the kernel's instance tell the truth to whoever polls it. Cannot be undone.
    void make_pollable(int epoll_fd) noexcept;

    /// `target` has lost its last descriptor: takes its entries out of all sets.
    static void forget_everywhere(Description& target) noexcept;
    /// is_ours() or record() of `target` has changed (see notify_became_ours): moves its entries in all sets.
    static void ownership_changed_everywhere(Description& target) noexcept;

    /// Around a fork, with no signal handler in between (fork.cc).
    static void before_fork() noexcept;
    static void after_fork_in_parent() noexcept;
    static void after_fork_in_child() noexcept;
    /// Before a fork, between before_fork() and the fork: the child that will be in `child_slot` may use the sets, too.
    static void share_with_child(Client& client, std::uint32_t child_slot) noexcept;

    void on_last_close() noexcept override;
    void dispose() noexcept override;
    // As a target, a set is the kernel's: make_pollable keeps the kernel's instance truthful.
    bool is_ours() const noexcept override { return false; }
    std::uint32_t poll_now(bool) noexcept override { return 0; }
    bool polls_kernel_too() const noexcept override { return true; }
    std::uint32_t record() const noexcept override { return shm::kNoIndex; }

private:
    /// How many calls that found Culvert events may go by until the kernel is asked too: a system call of about 0.3 us
    /// on every fourth call is noise, and a kernel descriptor waits for three short calls at most.
    static constexpr std::uint32_t kHarvestEvery = 4;

    EpollSet() : Description(Kind::kEpoll, kPassesReceives | kPassesSends) {}

    class Lock;
    struct Sleeping;
    /// What one look came across besides events to report.
    struct Seen {
        bool private_event = false;  // the eventfd or the control connection
        static constexpr int kMostLeft = 16;
        int left[kMostLeft] = {};  // descriptors of connections that have left the program by another's hand
        int left_count = 0;
    };

    int add(int epoll_fd, int fd, Description& target, const epoll_event& event) noexcept;
    int modify(int epoll_fd, EpollEntry& entry, const epoll_event& event) noexcept;
    int remove(int epoll_fd, EpollEntry& entry) noexcept;
    int kernel_add(int epoll_fd, EpollEntry& entry, bool half) noexcept;
    void drop(EpollEntry& entry) noexcept;
    void forget(Description& target) noexcept;
    void defer_forgetting(Description& target) noexcept;
    void do_deferred() noexcept;
    void watch(EpollEntry& entry) noexcept;
    void unwatch(EpollEntry& entry) noexcept;
    void reconsider(int epoll_fd, EpollEntry& entry) noexcept;

    bool ensure_queue(int epoll_fd) noexcept;
    bool register_private(int epoll_fd, int fd, std::uint64_t data, std::uint32_t events) noexcept;
    void own_after_fork(int epoll_fd) noexcept;
    void release_queue() noexcept;
    int any_descriptor() noexcept;
    bool needs_tending() noexcept;
    void tend() noexcept;

    void collect() noexcept;
    bool kernel_alone() const noexcept {
        return ours_.load(std::memory_order_relaxed) == 0 && !has_queue_.load(std::memory_order_seq_cst);
    }
    static int wait_on(int epoll_fd, epoll_event* events, int count, int max_events, std::int64_t left_ns, const sigset_t* mask);
    int walk(epoll_event* events, int count, int max_events, Seen& seen) noexcept;
    static void follow(Seen& seen) noexcept;
    void wake_others() noexcept;
    void pass_on(const Seen& seen) noexcept;
    void settle_pollable() noexcept;
    bool has_ready() noexcept;
    std::uint32_t ready_events(const EpollEntry& entry) noexcept;
    static void settle_others(const EpollSet* but) noexcept;
    int look(int epoll_fd, epoll_event* events, int max_events, Seen& seen) noexcept;
    int look_locked(int epoll_fd, epoll_event* events, int max_events, Seen& seen) noexcept;
    int harvest(int epoll_fd, epoll_event* events, int max_events, Seen& seen) noexcept;
    template <class Tell>
    int sift(epoll_event* events, int count, Seen& seen, Tell&& tell) noexcept;
    int translate(epoll_event* events, int count, Seen& seen) noexcept;
    bool spin(std::int64_t timeout_ns) noexcept;
    bool blind() noexcept;
    bool news() noexcept;

    // epoll_family.cc
    bool in_family(int epoll_fd) noexcept;
    void publish(const EpollEntry& entry) noexcept;
    void publish_end(const EpollEntry& entry) noexcept;
    void activate() noexcept;
    void join() noexcept;
    void leave_family(int epoll_fd) noexcept;
    void close_shared() noexcept;
    void tend_queue() noexcept;
    void look_again(const SharedEntry& entry) noexcept;
    void look_at_all() noexcept;
    void end_shared(std::uint32_t index, int epoll_fd) noexcept;
    int control_shared(int epoll_fd, int operation, int fd, Description& target, epoll_event* event) noexcept;
    int add_shared(int epoll_fd, int fd, Description& target, const epoll_event& event) noexcept;
    void share(int epoll_fd, EpollEntry& entry) noexcept;
    bool forget_shared(Description& target) noexcept;
    void reconsider_shared(int epoll_fd, Description& target) noexcept;
    DescriptionRef local_target(const SharedEntry& entry) noexcept;
    std::uint32_t shared_events(const SharedEntry& entry, Seen& seen) noexcept;
    std::optional<int> wait_shared(int epoll_fd, epoll_event* events, int max_events, std::int64_t timeout_ns, std::int64_t deadline,
                                   const sigset_t* mask);
    int look_shared(int epoll_fd, epoll_event* events, int max_events, Seen& seen) noexcept;
    int translate_shared(epoll_event* events, int count, Seen& seen) noexcept;
    void wake_others_shared() noexcept;
    void make_pollable_shared(int epoll_fd) noexcept;
    void settle_shared() noexcept;

    pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
    std::atomic<bool> in_use_{false};
    EpollSet* next_set_ = nullptr;  // all sets ever made
    std::atomic<int> last_fd_{-1};  // a descriptor of this set, most likely
    std::atomic<bool> has_queue_{false};
    std::uint32_t generation_ = 0;  // fork generation that owns the queue
    Client* client_ = nullptr;
    EventQueue queue_;
    std::atomic<bool> pollable_{false};
    bool daemon_gone_seen_ = false;
    std::atomic<std::uint32_t> sleepers_{0};  // threads in the kernel's wait
    std::uint32_t calls_since_harvest_ = 0;
    std::uint32_t round_ = 0;             // numbers the looks
    std::atomic<std::uint32_t> ours_{0};  // entries that are Culvert's
    std::atomic<std::uint32_t> orphans_{0};       // of them, those that wait for a daemon; as counted at
    std::atomic<std::uint32_t> orphan_epoch_{0};  // this time (Client::orphan_epoch)
    SpinHistory spin_history_;
    // Left by signal handlers for the holder of the lock that they have interrupted.
    static constexpr int kMostDeferred = 16;
    std::atomic<bool> deferred_{false};
    std::atomic<bool> reconsider_all_{false};
    std::atomic<Description*> to_forget_[kMostDeferred] = {};
    EpollEntries entries_;
    std::atomic<SharedSet*> family_{nullptr};  // other processes may use the set
    bool joined_ = false;                      // ... and our sockets are in there, not in entries_
    SharedSet* shared_memory_ = nullptr;       // what family_ is or has been

    friend struct EpollSets;
};

/// Called by Socket when connect(), listen(), bind() or the loss of the daemon has changed its is_ours() or record().
/// Cheap when no set holds it.
void notify_became_ours(Description& target) noexcept;

}  // namespace culvert::preload
