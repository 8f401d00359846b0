#include "preload/epoll_set.h"

#include "preload/epoll_parts.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>

#include "preload/fd_table.h"
#include "preload/libc.h"
#include "preload/own_fd.h"
#include "preload/startup.h"

namespace culvert::preload {

/// One thread in the kernel's wait. A destructor, because the wait is a cancellation point.
/// A set without a queue costs two atomic additions: whoever makes the queue looks at sleepers_ after has_queue_.
struct EpollSet::Sleeping {
    explicit Sleeping(EpollSet& the_set) : set(the_set) {
        set.sleepers_.fetch_add(1, std::memory_order_seq_cst);
        if (!set.has_queue_.load(std::memory_order_seq_cst)) return;
        Lock lock(set);
        if (!set.has_queue_) return;
        shm::announce_sleep(set.client_->segment().queue(set.queue_.index).asleep);
        // Added or modified since we looked, by a thread that saw nobody asleep.
        work = set.entries_.candidates() > 0;
    }
    ~Sleeping() {
        if (set.has_queue_.load(std::memory_order_seq_cst)) {
            Lock lock(set);
            leave();
        } else {
            leave();
        }
    }
    // While others sleep the flag stays: they did not ask to be forgotten because we woke.
    void leave() {
        if (set.sleepers_.fetch_sub(1, std::memory_order_seq_cst) == 1 && set.has_queue_ && !set.pollable_ && set.family_ == nullptr)
            shm::cancel_sleep(set.client_->segment().queue(set.queue_.index).asleep);
    }
    Sleeping(const Sleeping&) = delete;
    Sleeping& operator=(const Sleeping&) = delete;

    EpollSet& set;
    bool work = false;  // look instead of sleeping
};

// No set is half-way through a change when the process is copied, unless the fork is a handler's that has interrupted the change.
void EpollSet::before_fork() noexcept {
    EpollSets::for_each([](EpollSet& set) {
        if (!Lock::is_mine(set)) ::pthread_mutex_lock(&set.mutex_);
    });
}

void EpollSet::after_fork_in_parent() noexcept {
    EpollSets::for_each([](EpollSet& set) {
        if (!Lock::is_mine(set)) ::pthread_mutex_unlock(&set.mutex_);
    });
}

void EpollSet::after_fork_in_child() noexcept {
    EpollSets::for_each([](EpollSet& set) {
        set.sleepers_ = 0;  // the other threads stayed behind
        if (set.client_ != nullptr && set.client_->daemon_gone()) {  // no place for this child: it has nothing to do with the others
            set.family_ = nullptr;
            set.joined_ = false;
        }
        ::pthread_mutex_unlock(&set.mutex_);
    });
    Lock::forget_all();
}

EpollSet* EpollSet::create() noexcept {
    if (private_base() == 0) return nullptr;
    start_once();
    EpollSet* found = nullptr;
    EpollSets::for_each([&found](EpollSet& set) {
        bool expected = false;
        if (found == nullptr && set.in_use_.compare_exchange_strong(expected, true, std::memory_order_acq_rel))
            found = &set;
    });
    if (found != nullptr) return found;
    // Never freed: a thread may look at a description that another one has just closed.
    auto* set = new (std::nothrow) EpollSet();
    if (set == nullptr) return nullptr;
    set->in_use_.store(true, std::memory_order_relaxed);
    std::atomic<EpollSet*>& head = EpollSets::first();
    set->next_set_ = head.load(std::memory_order_relaxed);
    while (!head.compare_exchange_weak(set->next_set_, set, std::memory_order_release, std::memory_order_relaxed)) {
    }
    return set;
}

DescriptionRef EpollSet::find_or_adopt(int fd) noexcept {
    FdTable& table = FdTable::instance();
    if (table.contains(fd)) return table.find(fd);
    Client* client = Client::current();
    if (client == nullptr) return {};
    // An epoll instance says that it does not know our control connection; anything else says EINVAL.
    epoll_event unused{};
    const int saved = errno;
    const bool is_epoll =
        libc::epoll_ctl(fd, EPOLL_CTL_DEL, client->control_fd(), &unused) != 0 && errno == ENOENT;
    errno = saved;
    if (!is_epoll) return {};
    EpollSet* set = create();
    if (set == nullptr) return {};
    table.insert(fd, *set);
    return table.find(fd);
}

// --- changes ----------------------------------------------------------------------------------------------------------

int EpollSet::control(int epoll_fd, int operation, int fd, Description& target, epoll_event* event) noexcept {
    last_fd_.store(epoll_fd, std::memory_order_relaxed);
    if (operation != EPOLL_CTL_ADD && operation != EPOLL_CTL_MOD && operation != EPOLL_CTL_DEL) return fail_with(EINVAL);
    if (operation != EPOLL_CTL_DEL && event == nullptr) return fail_with(EFAULT);
    if (Lock::is_mine(*this)) return fail_with(ENOMEM);  // in a handler, amid a call on this very set
    own_after_fork(epoll_fd);
    Lock lock(*this);
    if (in_family(epoll_fd) && target.is_ours() && target.home() == client_) [[unlikely]]
        return control_shared(epoll_fd, operation, fd, target, event);
    EpollEntry* entry = entries_.find(fd, target);
    if (operation == EPOLL_CTL_ADD) return entry != nullptr ? fail_with(EEXIST) : add(epoll_fd, fd, target, *event);
    // A socket that was added behind our back (by a raw system call, or before an exec) is the kernel's affair.
    if (entry == nullptr) return target.is_ours() ? fail_with(ENOENT) : libc::epoll_ctl(epoll_fd, operation, fd, event);
    return operation == EPOLL_CTL_MOD ? modify(epoll_fd, *entry, *event) : remove(epoll_fd, *entry);
}

int EpollSet::add(int epoll_fd, int fd, Description& target, const epoll_event& event) noexcept {
    const bool exclusive = (event.events & EPOLLEXCLUSIVE) != 0;
    if (exclusive && (event.events & ~kWithExclusive) != 0) return fail_with(EINVAL);
    EpollEntry* entry = entries_.add(fd, target);
    if (entry == nullptr) return fail_with(ENOMEM);
    entry->events = event.events;
    entry->data = event.data.u64;
    entry->record = shm::kNoIndex;
    const bool ours = target.is_ours();
    if (ours) ensure_queue(epoll_fd);
    if ((!ours || target.polls_kernel_too()) && kernel_add(epoll_fd, *entry, ours) != 0) {
        const int error = errno;
        entries_.remove(*entry);
        return fail_with(error);
    }
    target.epoll_registrations.fetch_add(1, std::memory_order_seq_cst);
    if (ours && target.wants_daemon()) Client::note_orphan();
    if (ours)
        watch(*entry);
    else if (target.is_ours())
        reconsider(epoll_fd, *entry);  // connect() on another thread may have found no registration yet
    wake_others();
    return 0;
}

// `half`: only the kernel's half of a Culvert socket, under private data.
int EpollSet::kernel_add(int epoll_fd, EpollEntry& entry, bool half) noexcept {
    epoll_event registration{};
    registration.events = half ? kernel_half(entry.events) : entry.events;
    registration.data.u64 = half ? private_base() + kEntryOffset + entries_.index_of(entry) : entry.data;
    const int result = libc::epoll_ctl(epoll_fd, EPOLL_CTL_ADD, entry.fd, &registration);
    entry.in_kernel = result == 0;
    return result;
}

// Makes the entry Culvert's: news about its record come to our queue from now on, and it is looked at once.
void EpollSet::watch(EpollEntry& entry) noexcept {
    entry.record = entry.target->record();
    entry.home = entry.target->home();
    entry.ours = true;
    entries_.link_record(entry);
    ++ours_;
    if (has_queue_ && entry.home == client_) {
        if ((entry.events & EPOLLEXCLUSIVE) != 0 && entry.record < client_->segment().geometry().sockets)
            client_->segment().socket(entry.record).app.flags.fetch_or(shm::kAppExclusive, std::memory_order_seq_cst);
        client_->watch(queue_.index, entry.record);
    }
    entries_.nominate(entry);
    publish(entry);
}

void EpollSet::unwatch(EpollEntry& entry) noexcept {
    if (!entry.ours) return;
    publish_end(entry);
    entries_.dismiss(entry);
    entries_.unlink_record(entry);
    entry.ours = false;
    --ours_;
    const bool own_queue = has_queue_ && generation_ == Client::fork_generation() && entry.home == client_;
    if (!own_queue || entries_.has_record(entry.record)) return;
    client_->unwatch(queue_.index, entry.record);
    // Perhaps this set alone was told of what waits there: a worker that ends, say, between being woken and accept().
    if ((entry.events & EPOLLEXCLUSIVE) != 0 && entry.target->is_ours() && entry.target->poll_now(false) != 0) client_->tell_another(entry.record);
}

int EpollSet::modify(int epoll_fd, EpollEntry& entry, const epoll_event& event) noexcept {
    if (((event.events | entry.events) & EPOLLEXCLUSIVE) != 0) return fail_with(EINVAL);
    if (entry.in_kernel) {
        epoll_event registration = event;
        if (entry.ours) {
            registration.events = kernel_half(event.events);
            registration.data.u64 = private_base() + kEntryOffset + entries_.index_of(entry);
        }
        if (libc::epoll_ctl(epoll_fd, EPOLL_CTL_MOD, entry.fd, &registration) != 0) return -1;
    }
    entry.events = event.events;
    entry.data = event.data.u64;
    entry.armed = true;
    if (entry.ours) {
        publish(entry);
        entries_.nominate(entry);
        wake_others();
    }
    return 0;
}

int EpollSet::remove(int epoll_fd, EpollEntry& entry) noexcept {
    int result = 0;
    if (entry.in_kernel) {
        epoll_event unused{};
        result = libc::epoll_ctl(epoll_fd, EPOLL_CTL_DEL, entry.fd, &unused);
    }
    const int error = errno;
    drop(entry);
    errno = error;
    return result;
}

// Takes the entry out of our tables; the kernel's registration is the caller's affair.
void EpollSet::drop(EpollEntry& entry) noexcept {
    entry.target->epoll_registrations.fetch_sub(1, std::memory_order_relaxed);
    unwatch(entry);
    entries_.remove(entry);
}

void EpollSet::forget_everywhere(Description& target) noexcept {
    if (target.epoll_registrations.load(std::memory_order_acquire) == 0) return;
    const KeepErrno keep;
    EpollSets::for_each([&target](EpollSet& set) {
        if (!set.in_use_.load(std::memory_order_acquire)) return;
        if (Lock::is_mine(set)) return set.defer_forgetting(target);
        Lock lock(set);
        set.forget(target);
    });
}

void EpollSet::forget(Description& target) noexcept {
    if (family_ != nullptr) [[unlikely]]
        if (forget_shared(target)) return;
    const bool own = generation_ == Client::fork_generation();
    entries_.for_each_of(target, [&](EpollEntry& entry) {
        // The kernel's file may live on under a placeholder, so that closing the descriptor does not unregister it.
        // A number that means something else by now is left alone; so is the parent's registration after a fork.
        if (entry.in_kernel && entry.ours && own) {
            const DescriptionRef now = FdTable::instance().find(entry.fd);
            epoll_event unused{};
            if (now.get() == &target) libc::epoll_ctl(any_descriptor(), EPOLL_CTL_DEL, entry.fd, &unused);
        }
        drop(entry);
    });
}

// In a signal handler that has interrupted the holder of our lock. The description stays until the holder has let go of it; one
// that finds no place stays for ever, which only costs its memory.
void EpollSet::defer_forgetting(Description& target) noexcept {
    target.references.fetch_add(1, std::memory_order_relaxed);
    for (std::atomic<Description*>& place : to_forget_) {
        Description* none = nullptr;
        if (!place.compare_exchange_strong(none, &target, std::memory_order_relaxed)) continue;
        deferred_.store(true, std::memory_order_relaxed);
        return;
    }
}

// What handlers have left to do while this thread held the lock.
void EpollSet::do_deferred() noexcept {
    deferred_.store(false, std::memory_order_relaxed);
    for (std::atomic<Description*>& place : to_forget_) {
        Description* const target = place.exchange(nullptr, std::memory_order_relaxed);
        if (target == nullptr) continue;
        const DescriptionRef ref(target);  // the reference that defer_forgetting took
        forget(*target);
    }
    const KeepErrno keep;
    if (!reconsider_all_.exchange(false, std::memory_order_relaxed)) return;
    const int epoll_fd = any_descriptor();
    if (epoll_fd < 0) return;
    entries_.for_each([&](EpollEntry& entry) { reconsider(epoll_fd, entry); });
    wake_others();
}

void EpollSet::ownership_changed_everywhere(Description& target) noexcept {
    const KeepErrno keep;
    EpollSets::for_each([&target](EpollSet& set) {
        if (!set.in_use_.load(std::memory_order_acquire)) return;
        const int epoll_fd = set.any_descriptor();
        if (epoll_fd < 0) return;
        if (Lock::is_mine(set)) {
            set.reconsider_all_.store(true, std::memory_order_relaxed);
            set.deferred_.store(true, std::memory_order_relaxed);
            return;
        }
        set.own_after_fork(epoll_fd);
        Lock lock(set);
        if (set.in_family(epoll_fd)) [[unlikely]]
            set.reconsider_shared(epoll_fd, target);
        set.entries_.for_each_of(target, [&](EpollEntry& entry) { set.reconsider(epoll_fd, entry); });
        set.wake_others();
    });
}

void notify_became_ours(Description& target) noexcept {
    if (target.epoll_registrations.load(std::memory_order_acquire) != 0) EpollSet::ownership_changed_everywhere(target);
}

// Moves an entry to where its socket is now: into the kernel's instance, to our queue, or both.
void EpollSet::reconsider(int epoll_fd, EpollEntry& entry) noexcept {
    const bool ours = entry.target->is_ours();
    if (!ours && !entry.ours) return;
    if (joined_ && ours && entry.target->home() == client_) [[unlikely]]
        return share(epoll_fd, entry);
    const bool same = entry.record == entry.target->record() && entry.home == entry.target->home();
    if (ours && entry.ours && same && (!has_queue_ || client_ == Client::current())) {
        entries_.nominate(entry);
        return;
    }
    epoll_event unused{};
    if (entry.in_kernel) libc::epoll_ctl(epoll_fd, EPOLL_CTL_DEL, entry.fd, &unused);
    entry.in_kernel = false;
    unwatch(entry);
    if (ours) ensure_queue(epoll_fd);
    if (!ours || entry.target->polls_kernel_too()) kernel_add(epoll_fd, entry, ours);
    if (ours) watch(entry);
}

void EpollSet::on_last_close() noexcept {
    const KeepErrno keep;
    if (Lock::is_mine(*this)) {  // in a handler, amid a call on this very set: it stays, unused, as the caller goes on with it
        references.fetch_add(1, std::memory_order_relaxed);
        return;
    }
    Lock lock(*this);
    if (family_ != nullptr) [[unlikely]]
        close_shared();
    entries_.for_each([this](EpollEntry& entry) { drop(entry); });
    entries_.clear();
    release_queue();
    if (pollable_.exchange(false)) pollable_sets.fetch_sub(1, std::memory_order_seq_cst);
    daemon_gone_seen_ = false;
    orphans_.store(0, std::memory_order_relaxed);
    calls_since_harvest_ = 0;
    last_fd_.store(-1, std::memory_order_relaxed);
}

void EpollSet::dispose() noexcept {
    SharedSet::destroy(std::exchange(shared_memory_, nullptr));  // nobody of this process is in it any more
    in_use_.store(false, std::memory_order_release);
}

// --- the queue --------------------------------------------------------------------------------------------------------

bool EpollSet::ensure_queue(int epoll_fd) noexcept {
    Client* client = Client::current();
    if (has_queue_ && (client == client_ || !client_->daemon_gone())) return true;
    if (client == nullptr || client->daemon_gone()) return has_queue_;
    if (!entries_.size_record_index(client->segment().geometry().sockets)) return false;
    const auto queue = client->add_queue();
    if (!queue) return false;
    // A queue of a daemon that has gone while another one came: its sockets are dead, and say so when they are looked at.
    release_queue();
    client_ = client;
    queue_ = *queue;
    generation_ = Client::fork_generation();
    daemon_gone_seen_ = false;
    const std::uint64_t base = private_base();
    const std::uint32_t trigger = pollable_ ? 0u : std::uint32_t{EPOLLET};
    if (!register_private(epoll_fd, queue_.eventfd, base + kQueueOffset, EPOLLIN | trigger) ||
        !register_private(epoll_fd, client->control_fd(), base + kControlOffset, EPOLLIN | EPOLLRDHUP | EPOLLET)) {
        client->remove_queue(queue_);
        return false;
    }
    has_queue_.store(true, std::memory_order_seq_cst);
    if (sleepers_ > 0 || pollable_) shm::announce_sleep(client_->segment().queue(queue_.index).asleep);
    return true;
}

bool EpollSet::register_private(int epoll_fd, int fd, std::uint64_t data, std::uint32_t events) noexcept {
    epoll_event registration{};
    registration.events = events;
    registration.data.u64 = data;
    return libc::epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &registration) == 0 || errno == EEXIST;
}

void EpollSet::release_queue() noexcept {
    if (!has_queue_) return;
    has_queue_.store(false, std::memory_order_release);
    if (generation_ == Client::fork_generation())
        client_->remove_queue(queue_);
    else
        close_own(queue_.eventfd);  // our copy of the parent's
    // client_ and queue_ stay as they are: a thread that is just leaving wait() may still look at them.
}

// The first use in a forked child: the queue that the tables speak of is the parent's.
void EpollSet::own_after_fork(int epoll_fd) noexcept {
    if (!has_queue_.load(std::memory_order_acquire) ||
        generation_ == Client::fork_generation())
        return;
    Lock lock(*this);
    if (!has_queue_ || generation_ == Client::fork_generation()) return;
    if (in_family(epoll_fd) || generation_ == Client::fork_generation()) return;
    release_queue();
    ensure_queue(epoll_fd);
    entries_.for_each([this](EpollEntry& entry) {
        if (!entry.ours) return;
        if (has_queue_ && entry.home == client_) client_->watch(queue_.index, entry.record);
        entries_.nominate(entry);
    });
}

bool EpollSet::needs_tending() noexcept {
    if (orphan_epoch_.load(std::memory_order_relaxed) != Client::orphan_epoch()) return true;
    return orphans_.load(std::memory_order_relaxed) != 0 && Client::attempt_is_due();
}

// Counts the orphans; if a daemon is to be had, it gets them. Not under the lock: revive() changes our entries.
void EpollSet::tend() noexcept {
    constexpr std::uint32_t kAtOnce = 16;
    const KeepErrno keep;
    for (;;) {
        int fds[kAtOnce];
        Description* targets[kAtOnce];
        std::uint32_t count = 0;
        {
            const Lock lock(*this);
            orphan_epoch_.store(Client::orphan_epoch(), std::memory_order_relaxed);
            std::uint32_t found = 0;
            entries_.for_each([&](EpollEntry& entry) {
                if (!entry.ours || !entry.target->wants_daemon()) return;
                ++found;
                if (count == kAtOnce) return;
                fds[count] = entry.fd;
                targets[count++] = entry.target;
            });
            orphans_.store(found, std::memory_order_relaxed);
        }
        if (count == 0 || Client::attached() == nullptr) return;
        bool helped = false;
        for (std::uint32_t i = 0; i < count; ++i) {
            const DescriptionRef ref = FdTable::instance().find(fds[i]);
            if (ref.get() != targets[i]) continue;  // closed meanwhile
            ref->revive(fds[i]);
            helped |= !ref->wants_daemon();
        }
        if (!helped) return;
    }
}

int EpollSet::any_descriptor() noexcept {
    FdTable& table = FdTable::instance();
    const int likely = last_fd_.load(std::memory_order_relaxed);
    if (likely >= 0 && table.find(likely).get() == this) return likely;
    int found = -1;
    table.for_each([&](int fd, Description& description) {
        if (&description == this) found = fd;
    });
    last_fd_.store(found, std::memory_order_relaxed);
    return found;
}

void EpollSet::make_pollable(int epoll_fd) noexcept {
    own_after_fork(epoll_fd);
    Lock lock(*this);
    if (in_family(epoll_fd)) [[unlikely]]
        return make_pollable_shared(epoll_fd);
    if (pollable_) return collect(), settle_pollable();
    pollable_ = true;
    pollable_sets.fetch_add(1, std::memory_order_seq_cst);
    if (!has_queue_) return;
    epoll_event registration{};
    registration.events = EPOLLIN;
    registration.data.u64 = private_base() + kQueueOffset;
    libc::epoll_ctl(epoll_fd, EPOLL_CTL_MOD, queue_.eventfd, &registration);
    collect();
    settle_pollable();
}

// --- waiting ----------------------------------------------------------------------------------------------------------

// Bits become candidates.
void EpollSet::collect() noexcept {
    if (!has_queue_) {
        if (ours_ > 0) entries_.for_each([this](EpollEntry& entry) { if (entry.ours) entries_.nominate(entry); });
        return;
    }
    if (client_->daemon_gone() && !daemon_gone_seen_) {
        daemon_gone_seen_ = true;
        entries_.for_each([this](EpollEntry& entry) { if (entry.ours) entries_.nominate(entry); });
    }
    // Before collecting, so that whatever is posted after it finds the flag of those who still sleep.
    shm::QueueRecord& record = client_->segment().queue(queue_.index);
    if ((sleepers_ > 0 || pollable_) && record.asleep.load(std::memory_order_relaxed) == 0)
        shm::announce_sleep(record.asleep);
    client_->segment().ready(queue_.index).collect([this](std::uint32_t socket) { entries_.nominate_record(socket); });
}

std::uint32_t EpollSet::ready_events(const EpollEntry& entry) noexcept {
    const std::uint32_t asked = (entry.events & ~kFlags) | kAlways;
    return with_aliases(entry.target->poll_now((entry.events & EPOLLOUT) != 0)) & asked;
}

// Would walk() report anything? Candidates that have nothing to report are none any more.
bool EpollSet::has_ready() noexcept {
    while (entries_.candidates() > 0) {
        EpollEntry& entry = *entries_.oldest();
        if (!entry.target->is_ours() || (entry.armed && entry.ours && ready_events(entry) != 0)) return true;
        entries_.dismiss(entry);
    }
    return false;
}

// Looks at each candidate once, oldest first, and reports those that are ready, after the `count` events that are there.
int EpollSet::walk(epoll_event* events, int count, int max_events, Seen& seen) noexcept {
    for (std::uint32_t left = entries_.candidates(); left > 0 && count < max_events; --left) {
        EpollEntry& entry = *entries_.oldest();
        entries_.dismiss(entry);
        if (!entry.target->is_ours()) reconsider(any_descriptor(), entry);  // back on the kernel path
        if (entry.ours && entry.target->has_left() && seen.left_count < Seen::kMostLeft) {
            seen.left[seen.left_count++] = entry.fd;
            continue;  // the kernel's instance has it in a moment
        }
        if (!entry.armed || !entry.ours) continue;
        const std::uint32_t mask = ready_events(entry);
        if (mask == 0) continue;
        if (entry.in_kernel && entry.round == round_) {
            events[entry.slot].events |= mask;  // a listener with connections on both sides: one report
        } else {
            events[count].events = mask;
            events[count].data.u64 = entry.data;
            ++count;
        }
        if ((entry.events & EPOLLONESHOT) != 0) {
            entry.armed = false;
            publish(entry);
            if (entry.in_kernel) {
                epoll_event disarmed{};  // the kernel's half reports no more either
                disarmed.events = EPOLLONESHOT;
                disarmed.data.u64 = private_base() + kEntryOffset + entries_.index_of(entry);
                libc::epoll_ctl(any_descriptor(), EPOLL_CTL_MOD, entry.fd, &disarmed);
            }
        } else if ((entry.events & EPOLLET) == 0) {
            entries_.nominate(entry);
        }
    }
    return count;
}

// Candidates that stay behind are for the threads that sleep.
void EpollSet::wake_others() noexcept {
    if (has_queue_ && entries_.candidates() > 0 && (sleepers_ > 0 || pollable_)) shm::signal_eventfd(queue_.eventfd);
}

// For a thread that returns the kernel's events: if it has taken the eventfd's edge along with them, those who sleep are
// woken for what the edge stood for.
void EpollSet::pass_on(const Seen& seen) noexcept {
    if (joined_) return wake_others_shared();
    if (!seen.private_event || sleepers_ == 0) return;
    collect();
    wake_others();
}

// The eventfd stays signalled exactly as long as there may be something to report.
void EpollSet::settle_pollable() noexcept {
    if (!pollable_ || !has_queue_) return;
    if (has_ready()) {
        pollfd signalled{queue_.eventfd, POLLIN, 0};
        const timespec now{};
        if (raw::ppoll(&signalled, 1, &now, nullptr) != 1) shm::signal_eventfd(queue_.eventfd);  // again would be another edge
        return;
    }
    std::uint64_t count = 0;
    ::syscall(SYS_read, queue_.eventfd, &count, sizeof count);
    shm::announce_sleep(client_->segment().queue(queue_.index).asleep);
    if (client_->segment().ready(queue_.index).any()) shm::signal_eventfd(queue_.eventfd);
}

// Before sets are asked for: what has been read since they were signalled is no news of theirs any more.
void EpollSet::settle_others(const EpollSet* but) noexcept {
    EpollSets::for_each([but](EpollSet& set) {
        if (&set == but || !set.in_use_.load(std::memory_order_acquire) || !set.pollable_ || Lock::is_mine(set)) return;
        Lock lock(set);
        if (!set.has_queue_) return;
        if (set.family_ != nullptr && set.in_family(set.any_descriptor())) return set.settle_shared();
        if (set.generation_ != Client::fork_generation()) return;
        set.collect();
        set.settle_pollable();
    });
}

// What the kernel has now, without waiting. Private events are taken out; -1 on error. A raw call: under the lock there
// must be no cancellation point.
int EpollSet::harvest(int epoll_fd, epoll_event* events, int max_events, Seen& seen) noexcept {
    calls_since_harvest_ = 0;
    const auto count =
        static_cast<int>(::syscall(SYS_epoll_pwait, epoll_fd, events, max_events, 0, nullptr, std::size_t{8}));
    return count > 0 ? translate(events, count, seen) : count;
}

// The kernel's events in the application's terms.
int EpollSet::translate(epoll_event* events, int count, Seen& seen) noexcept {
    if (joined_) [[unlikely]]
        return translate_shared(events, count, seen);
    return sift(events, count, seen, [this](std::uint32_t index, int slot, epoll_event& event) {
        EpollEntry* entry = entries_.at(index);
        if (entry == nullptr || !entry->in_kernel || !entry->armed) return false;
        if ((entry->events & EPOLLONESHOT) != 0) {
            entry->armed = false;
            publish(*entry);
            entries_.dismiss(*entry);
        }
        entry->round = round_;
        entry->slot = slot;
        // One report says all that holds, as the kernel's does: room to send, say, which its half does not know.
        event.events |= entry->ours ? ready_events(*entry) : 0;
        event.data.u64 = entry->data;
        return true;
    });
}

// Both sides, without waiting: Culvert's candidates and, now and then, what the kernel has.
int EpollSet::look(int epoll_fd, epoll_event* events, int max_events, Seen& seen) noexcept {
    const int count = look_locked(epoll_fd, events, max_events, seen);
    if (seen.left_count != 0) follow(seen);
    return count;
}

void EpollSet::follow(Seen& seen) noexcept {
    while (seen.left_count != 0)
        if (const DescriptionRef ref = FdTable::instance().find(seen.left[--seen.left_count])) ref->leave();
}

int EpollSet::look_locked(int epoll_fd, epoll_event* events, int max_events, Seen& seen) noexcept {
    Lock lock(*this);
    if (in_family(epoll_fd)) [[unlikely]]
        return look_shared(epoll_fd, events, max_events, seen);
    ++round_;
    collect();
    int kernel = 0;
    // The kernel first and at most half of the room, so that neither side starves the other.
    if (entries_.candidates() > 0 && ++calls_since_harvest_ >= kHarvestEvery)
        kernel = std::max(0, harvest(epoll_fd, events, (max_events + 1) / 2, seen));
    // The eventfd's edge has been taken, perhaps from a sleeper: what it stood for is looked at here, or passed on.
    if (seen.private_event) collect();
    const int count = walk(events, kernel, max_events, seen);
    wake_others();
    settle_pollable();
    return count;
}

bool EpollSet::news() noexcept {
    return has_queue_ && (client_->segment().ready(queue_.index).any() ||
                          (client_->daemon_gone() && !daemon_gone_seen_));
}

// True if nobody will wake us: the daemon lives but had no queue for this set.
bool EpollSet::blind() noexcept {
    if (ours_.load(std::memory_order_relaxed) == 0 || has_queue_) return false;
    Client* client = Client::current();
    return client != nullptr && !client->daemon_gone();
}

// Looks without a system call for a while. True if there is something to look at properly.
bool EpollSet::spin(std::int64_t timeout_ns) noexcept {
    if (!has_queue_) return false;
    const std::uint32_t spin_us = client_->spin_us();
    if (timeout_ns > 0 && timeout_ns / 1000 < spin_us) return false;
    SpinWait spin(spin_history_, spin_us);
    while (spin.again()) {
        if (!news()) continue;
        spin.found();
        return true;
    }
    return false;
}

int EpollSet::wait(int epoll_fd, epoll_event* events, int max_events, const timespec* timeout, const sigset_t* mask) {
    last_fd_.store(epoll_fd, std::memory_order_relaxed);
    if (max_events <= 0) return fail_with(EINVAL);
    if (timeout != nullptr && (timeout->tv_sec < 0 || timeout->tv_nsec < 0 || timeout->tv_nsec >= 1'000'000'000))
        return fail_with(EINVAL);
    if (Lock::is_mine(*this)) return fail_with(EINTR);  // in a handler, amid a call on this very set
    own_after_fork(epoll_fd);
    if (pollable_sets.load(std::memory_order_relaxed) > (pollable_ ? 1 : 0)) settle_others(this);
    const std::int64_t timeout_ns = timeout != nullptr ? to_ns(*timeout) : -1;
    const std::int64_t deadline = timeout_ns > 0 ? monotonic_ns() + timeout_ns : 0;
    for (bool first = true;; first = false) {
        if (family_.load(std::memory_order_relaxed) != nullptr) [[unlikely]]
            if (const auto count = wait_shared(epoll_fd, events, max_events, timeout_ns, deadline, mask)) return *count;
        if (needs_tending()) [[unlikely]]
            tend();
        Seen seen;
        const bool has_ours = ours_.load(std::memory_order_relaxed) > 0;
        if (has_ours || has_queue_.load(std::memory_order_relaxed)) {
            const int count = look(epoll_fd, events, max_events, seen);
            if (count > 0) return count;
        }
        if (has_ours) {
            int count = 0;
            {
                Lock lock(*this);
                count = harvest(epoll_fd, events, max_events, seen);
                if (count > 0) pass_on(seen);
            }
            if (count != 0) return count;
            if (timeout_ns == 0) return seen.private_event ? look(epoll_fd, events, max_events, seen) : 0;
            if (seen.private_event || (first && spin(timeout_ns))) continue;
        }
        std::int64_t left = timeout_ns;
        if (timeout_ns > 0) left = std::max<std::int64_t>(0, deadline - monotonic_ns());
        std::int64_t slice = blind() ? kWithoutQueueNs : INT64_MAX;
        if (orphans_.load(std::memory_order_relaxed) != 0) slice = std::min(slice, Client::until_next_attempt_ns());
        const bool sliced = slice != INT64_MAX && (left < 0 || left > slice);
        int count = 0;
        {
            Sleeping sleeping(*this);
            if (sleeping.work || news()) continue;
            count = kernel_wait(epoll_fd, events, max_events, sliced ? slice : left, mask);
        }
        if (count < 0) return -1;
        if (count == 0 && !sliced) return ours_ > 0 ? look(epoll_fd, events, max_events, seen) : 0;
        if (count > 0) {
            Lock lock(*this);
            count = translate(events, count, seen);
            if (count > 0) pass_on(seen);
        }
        if (count == 0) continue;
        return count;
    }
}

// While `count` events were waited for, the set got something of Culvert's: what came is put into the application's terms, and if
// nothing is left of it, the wait goes on properly.
int EpollSet::wait_on(int epoll_fd, epoll_event* events, int count, int max_events, std::int64_t left_ns, const sigset_t* mask) {
    const DescriptionRef ref = FdTable::instance().find(epoll_fd);
    if (!ref || ref->kind() != Kind::kEpoll) return fail_with(EBADF);  // closed meanwhile
    auto& set = static_cast<EpollSet&>(*ref.get());
    if (count > 0) {
        Lock lock(set);
        Seen seen;
        count = set.translate(events, count, seen);
        if (count > 0) set.pass_on(seen);
    }
    if (count > 0) return count;
    const timespec left{left_ns / 1'000'000'000, left_ns % 1'000'000'000};
    return set.wait(epoll_fd, events, max_events, left_ns < 0 ? nullptr : &left, mask);
}

std::optional<int> EpollSet::wait_in_kernel(int epoll_fd, epoll_event* events, int max_events, int timeout_ms,
                                            const sigset_t* mask) {
    const Description* const description = FdTable::instance().peek(epoll_fd);
    if (description == nullptr || description->kind() != Kind::kEpoll) return std::nullopt;
    auto& set = const_cast<EpollSet&>(static_cast<const EpollSet&>(*description));
    // A set in this one may be signalled for what has been read since: wait() looks first.
    if (!set.kernel_alone() || pollable_sets.load(std::memory_order_relaxed) != 0) return std::nullopt;
    if (timeout_ms == 0 && mask == nullptr) return libc::epoll_wait.get()(epoll_fd, events, max_events, 0);  // nobody sleeps
    const std::int64_t started = timeout_ms > 0 ? coarse_ns() : 0;
    int count = 0;
    {
        Sleeping sleeping(set);
        if (!set.kernel_alone() || FdTable::instance().peek(epoll_fd) != description) return std::nullopt;
        set.last_fd_.store(epoll_fd, std::memory_order_relaxed);
        count = mask == nullptr ? libc::epoll_wait.get()(epoll_fd, events, max_events, timeout_ms)
                                : libc::epoll_pwait.get()(epoll_fd, events, max_events, timeout_ms, mask);
    }
    if (count < 0 || (count == 0 && set.kernel_alone())) return count;
    const std::uint64_t base = private_base();
    const bool any_private =
        std::any_of(events, events + count, [base](const epoll_event& event) { return event.data.u64 - base < kPrivateRange; });
    if (count > 0 && !any_private) return count;
    std::int64_t left = timeout_ms * 1'000'000ll;
    if (timeout_ms > 0) left = std::max<std::int64_t>(0, left - (coarse_ns() - started));
    return wait_on(epoll_fd, events, count, max_events, left, mask);
}

}  // namespace culvert::preload
