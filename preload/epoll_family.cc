// An epoll set that several processes use, because it was there before they forked. On Linux there is one set, and so there is here:
//
//   the kernel's instance     is one anyway: kernel descriptors and the kernel's halves of ours
//   Culvert's sockets         entries in memory that all map (shared_set.h), under a lock of them all
//   what may be ready         the bits of one event queue, in the segment: who takes a bit looks, and whoever finds that a
//                             level-triggered socket stays ready puts it back; so an edge is told once, and a level to each
//   who sleeps                in the kernel's instance, in which the queue's eventfd wakes one of them
//
// Before each fork every set with a queue gets such memory (a mapping, nothing in it), and goes on as before:
//
//   idle     only its maker uses the set, from its own tables. What it changes while others live who could use the set, it notes in
//            the memory, at the entry's own number. An inherited set that no child touches costs no more than that.
//   active   a child has used the set: it has put its copy of the tables there, but for what the maker has noted since. Everybody
//            drops his own entries with his next call. Back to private tables as soon as nobody else is alive.
//
// An entry is known by (number of the descriptor, record, generation of the record), as on Linux by number and file. Events of a
// socket that a process does not hold are reported to it all the same: what they depend on stands in the record. The queue belongs to
// one process as far as the daemon knows; when that process ends, or closes the set, another one makes a new queue with the same
// eventfd, and looks at everything.
//
// When the daemon has gone, the family ends: connections are reset in each process, and listeners and UDP sockets become the
// kernel's for good, under the program's own data.

#include "preload/epoll_parts.h"
#include "preload/fd_table.h"
#include "preload/own_fd.h"
#include "preload/socket.h"
#include "preload/waiting.h"

namespace culvert::preload {

namespace {

/// As the daemon knows it: with the slot, the name of a process.
std::uint32_t own_pid(Client& client) noexcept { return client.segment().process(client.process_slot()).pid.load(std::memory_order_relaxed); }

bool has_gone(Client& client, const SharedEntry& entry) noexcept {
    return client.segment().socket(entry.record).daemon.generation.load(std::memory_order_acquire) != entry.generation;
}

Socket& socket_of(const EpollEntry& entry) noexcept { return Socket::of(*entry.target); }

void fill(SharedEntry& shared, const EpollEntry& entry) noexcept {
    const Socket& socket = socket_of(entry);
    shared = {};
    shared.data = entry.data;
    shared.record = entry.record;
    shared.generation = socket.generation();
    shared.events = entry.events;
    shared.fd = entry.fd;
    shared.low_water = socket.receive_low_water();
    shared.used = true;
    shared.armed = entry.armed;
    shared.in_kernel = entry.in_kernel;
    shared.path = static_cast<std::uint8_t>(socket.path());
    shared.type = static_cast<std::uint8_t>(socket.type());
}

}  // namespace

// --- coming and going -------------------------------------------------------------------------------------------------

void EpollSet::share_with_child(Client& client, std::uint32_t child_slot) noexcept {
    EpollSets::for_each([&](EpollSet& set) {
        if (!set.in_use_.load(std::memory_order_acquire) || !set.has_queue_ || set.client_ != &client) return;
        SharedSet* family = set.family_;
        const bool mine = set.generation_ == Client::fork_generation();
        if (family == nullptr && !mine) return;
        const bool fresh = family == nullptr || (mine && !set.joined_ && !family->has_others(client.segment(), client.process_slot()));
        if (fresh) {
            if (set.shared_memory_ == nullptr) set.shared_memory_ = SharedSet::create(client.segment().geometry().sockets);
            if ((family = set.shared_memory_) == nullptr) return;
            family->begin(client.process_slot(), own_pid(client), set.queue_.index, set.pollable_);
            set.family_ = family;
        }
        family->add_member(child_slot);
    });
}

/// True: the set's Culvert sockets are in the family's memory. Under the lock, first of all.
bool EpollSet::in_family(int epoll_fd) noexcept {
    SharedSet* const family = family_;
    if (family == nullptr) [[likely]]
        return false;
    const bool mine = generation_ == Client::fork_generation();
    if (!client_->daemon_gone() && family->has_others(client_->segment(), client_->process_slot())) {
        if (family->state == SharedSet::kIdle) {
            if (mine) return false;
            activate();
        }
        if (!joined_) join();
        generation_ = Client::fork_generation();
        tend_queue();
        return true;
    }
    if (!joined_ && mine && family->state == SharedSet::kIdle) {
        family_ = nullptr;
        return false;
    }
    if (family->state == SharedSet::kIdle) activate();
    if (!joined_) join();
    leave_family(epoll_fd);
    return false;
}

/// The maker, while idle: what its own table says of an entry now.
void EpollSet::publish(const EpollEntry& entry) noexcept {
    SharedSet* const family = family_;
    if (family == nullptr || joined_ || !entry.ours || entry.home != client_) [[likely]]
        return;
    if (family->state == SharedSet::kActive) {  // since our call began
        const std::uint32_t index = family->find(entry.fd, entry.record, socket_of(entry).generation());
        if (index != shm::kNoIndex) family->entry(index).armed = entry.armed;
        return;
    }
    const std::uint32_t index = entries_.index_of(entry);
    if (generation_ != Client::fork_generation() || index >= SharedSet::kMostEntries) return;
    fill(family->entry(index), entry);
    family->touch(index);
}

/// The same of one that goes. Of a child that does not use the set, and lets go of a socket: the entry stays, for those who have it.
void EpollSet::publish_end(const EpollEntry& entry) noexcept {
    SharedSet* const family = family_;
    if (family == nullptr || joined_ || entry.home != client_ || family->state == SharedSet::kActive) [[likely]]
        return;
    const std::uint32_t index = entries_.index_of(entry);
    if (index >= SharedSet::kMostEntries) return;
    const bool mine = generation_ == Client::fork_generation();
    if (!mine && family->is_touched(index)) return;
    if (mine) family->entry(index).used = false;
    else fill(family->entry(index), entry);
    family->touch(index);
}

/// Our tables are the family's from now on, but for what has been noted there since they were copied.
void EpollSet::activate() noexcept {
    SharedSet& family = *family_;
    const bool mine = generation_ == Client::fork_generation();
    entries_.for_each([&](EpollEntry& entry) {
        const std::uint32_t index = entries_.index_of(entry);
        if (!entry.ours || entry.home != client_ || index >= SharedSet::kMostEntries) return;
        if (!mine && family.is_touched(index)) return;
        fill(family.entry(index), entry);
        family.touch(index);
    });
    family.activate();
    for (std::uint32_t index = 0; index < family.end(); ++index)
        if (const SharedEntry& entry = family.entry(index); entry.used && entry.armed && (entry.events & EPOLLET) == 0) look_again(entry);
}

/// Our own entries go. An edge that we have taken and not told yet is put back.
void EpollSet::join() noexcept {
    const bool mine = generation_ == Client::fork_generation();
    entries_.for_each([&](EpollEntry& entry) {
        if (!entry.ours || entry.home != client_) return;
        if (mine && entry.candidate && family_.load()->queue != shm::kNoIndex)
            client_->segment().ready(family_.load()->queue).post(entry.record);
        entries_.dismiss(entry);
        entries_.unlink_record(entry);
        --ours_;
        entries_.remove(entry);  // the registration stays counted: close() then looks for what is in the memory
    });
    joined_ = true;
    generation_ = Client::fork_generation();
}

/// Nobody else is alive, or the daemon has gone: private tables again.
void EpollSet::leave_family(int epoll_fd) noexcept {
    SharedSet& family = *family_;
    const KeepErrno keep;
    const bool gone = client_->daemon_gone();
    const bool maker = family.maker_slot == client_->process_slot() && family.maker_pid == own_pid(*client_) && family.queue != shm::kNoIndex;
    family.remove_member(client_->process_slot());
    if (family.pollable && !pollable_.exchange(true)) pollable_sets.fetch_add(1, std::memory_order_seq_cst);
    if (maker) queue_.index = family.queue;
    family_ = nullptr;
    joined_ = false;
    generation_ = Client::fork_generation();
    if (!maker && !gone) {
        has_queue_.store(false, std::memory_order_release);
        close_own(queue_.eventfd);
        ensure_queue(epoll_fd);
    }
    for (std::uint32_t index = 0; index < family.end(); ++index) {
        SharedEntry& shared = family.entry(index);
        if (!shared.used) continue;
        Description* target = local_target(shared).get();
        if (target == nullptr)  // the number is something else by now: the file may have others
            FdTable::instance().for_each([&](int, Description& description) {
                if (description.kind() == Kind::kSocket && description.is_ours() && description.home() == client_ &&
                    description.record() == shared.record && Socket::of(description).generation() == shared.generation)
                    target = &description;
            });
        if (target == nullptr) {
            if (!gone && maker) client_->unwatch(queue_.index, shared.record);
            continue;
        }
        EpollEntry* const entry = entries_.add(shared.fd, *target);
        if (entry == nullptr) continue;
        target->epoll_registrations.fetch_add(1, std::memory_order_seq_cst);
        entry->events = shared.events;
        entry->data = shared.data;
        entry->armed = shared.armed;
        entry->record = shm::kNoIndex;
        epoll_event registration{};
        const bool kernels = gone && target->polls_kernel_too();
        if (shared.in_kernel && !shared.plain) libc::epoll_ctl(epoll_fd, EPOLL_CTL_DEL, shared.fd, &registration);
        if (kernels) {
            if (!shared.plain) kernel_add(epoll_fd, *entry, false);
            entry->in_kernel = shared.plain = true;
            Socket::of(*target).give_back(shared.fd, shm::KernelReason::kNoDaemon);
            continue;
        }
        if (shared.in_kernel) kernel_add(epoll_fd, *entry, true);
        watch(*entry);
    }
}

/// Our last descriptor of the set is closed; others go on with it.
void EpollSet::close_shared() noexcept {
    SharedSet& family = *family_;
    const bool mine = generation_ == Client::fork_generation();
    const bool others = !client_->daemon_gone() && family.has_others(client_->segment(), client_->process_slot());
    if (others && mine && !joined_ && family.state == SharedSet::kIdle) activate();
    if (others && mine && !joined_) join();
    family.remove_member(client_->process_slot());
    if (joined_) {
        const bool maker = family.maker_slot == client_->process_slot() && family.maker_pid == own_pid(*client_);
        has_queue_.store(false, std::memory_order_release);
        if (maker && family.queue != shm::kNoIndex) {
            queue_.index = std::exchange(family.queue, shm::kNoIndex);
            shm::signal_eventfd(queue_.eventfd);  // somebody else makes one
            client_->remove_queue(queue_);
        } else {
            close_own(queue_.eventfd);
        }
    }
    joined_ = false;
    family_ = nullptr;
}

/// The daemon knows one maker of the queue. If that has gone, or has closed the set, the queue has gone as well.
void EpollSet::tend_queue() noexcept {
    SharedSet& family = *family_;
    const shm::ProcessRecord& maker = client_->segment().process(family.maker_slot);
    const bool lives = family.queue != shm::kNoIndex && maker.live.load(std::memory_order_acquire) != 0 &&
                       maker.pid.load(std::memory_order_relaxed) == family.maker_pid;
    if (!lives) {
        family.queue = client_->add_queue_with(queue_.eventfd);
        family.maker_slot = client_->process_slot();
        family.maker_pid = own_pid(*client_);
        for (std::uint32_t index = 0; family.queue != shm::kNoIndex && index < family.end(); ++index)
            if (const SharedEntry& entry = family.entry(index); entry.used) client_->watch(family.queue, entry.record);
        family.look_at_all = true;
    }
    if (family.queue != shm::kNoIndex) queue_.index = family.queue;
    if (family.look_at_all || family.queue == shm::kNoIndex) look_at_all();
    family.look_at_all = false;
}

void EpollSet::look_again(const SharedEntry& entry) noexcept {
    if (family_.load()->queue != shm::kNoIndex) client_->segment().ready(family_.load()->queue).post(entry.record);
}

void EpollSet::look_at_all() noexcept {
    SharedSet& family = *family_;
    for (std::uint32_t index = 0; index < family.end(); ++index)
        if (const SharedEntry& entry = family.entry(index); entry.used && entry.armed) look_again(entry);
}

// --- changes ----------------------------------------------------------------------------------------------------------

int EpollSet::control_shared(int epoll_fd, int operation, int fd, Description& target, epoll_event* event) noexcept {
    SharedSet& family = *family_;
    const std::uint32_t index = family.find(fd, target.record(), Socket::of(target).generation());
    if (operation == EPOLL_CTL_ADD) {
        if (index != shm::kNoIndex) return fail_with(EEXIST);
        if ((event->events & EPOLLEXCLUSIVE) != 0 && (event->events & ~kWithExclusive) != 0) return fail_with(EINVAL);
        if (add_shared(epoll_fd, fd, target, *event) != 0) return -1;
        target.epoll_registrations.fetch_add(1, std::memory_order_seq_cst);
        return 0;
    }
    if (index == shm::kNoIndex) return fail_with(ENOENT);
    SharedEntry& entry = family.entry(index);
    if (operation == EPOLL_CTL_DEL) {
        end_shared(index, epoll_fd);
        return 0;
    }
    if (((event->events | entry.events) & EPOLLEXCLUSIVE) != 0) return fail_with(EINVAL);
    if (entry.in_kernel) {
        epoll_event registration{};
        registration.events = kernel_half(event->events);
        registration.data.u64 = private_base() + kEntryOffset + index;
        if (libc::epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &registration) != 0) return -1;
    }
    entry.events = event->events;
    entry.data = event->data.u64;
    entry.armed = true;
    look_again(entry);
    wake_others_shared();
    return 0;
}

int EpollSet::add_shared(int epoll_fd, int fd, Description& target, const epoll_event& event) noexcept {
    SharedSet& family = *family_;
    const Socket& socket = Socket::of(target);
    const std::uint32_t index = family.add(target.record());
    if (index == shm::kNoIndex) return fail_with(ENOSPC);
    SharedEntry& entry = family.entry(index);
    entry.data = event.data.u64;
    entry.generation = socket.generation();
    entry.events = event.events;
    entry.fd = fd;
    entry.low_water = socket.receive_low_water();
    entry.armed = true;
    entry.path = static_cast<std::uint8_t>(socket.path());
    entry.type = static_cast<std::uint8_t>(socket.type());
    if (target.polls_kernel_too()) {
        epoll_event registration{};
        registration.events = kernel_half(event.events);
        registration.data.u64 = private_base() + kEntryOffset + index;
        if (libc::epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &registration) != 0) {
            const int error = errno;
            family.remove(index);
            return fail_with(error);
        }
        entry.in_kernel = true;
    }
    if ((event.events & EPOLLEXCLUSIVE) != 0)
        client_->segment().socket(entry.record).app.flags.fetch_or(shm::kAppExclusive, std::memory_order_seq_cst);
    if (family.queue != shm::kNoIndex) client_->watch(family.queue, entry.record);
    look_again(entry);
    wake_others_shared();
    return 0;
}

/// `epoll_fd` -1: the kernel's half goes by itself.
void EpollSet::end_shared(std::uint32_t index, int epoll_fd) noexcept {
    SharedSet& family = *family_;
    const SharedEntry entry = family.entry(index);
    epoll_event unused{};
    if (entry.in_kernel && epoll_fd >= 0 && local_target(entry)) libc::epoll_ctl(epoll_fd, EPOLL_CTL_DEL, entry.fd, &unused);
    family.remove(index);
    if (family.has_record(entry.record) || family.queue == shm::kNoIndex || has_gone(*client_, entry)) return;
    client_->unwatch(family.queue, entry.record);
    if ((entry.events & EPOLLEXCLUSIVE) != 0) client_->tell_another(entry.record);
}

/// A socket of the kernel's in the set has become Culvert's.
void EpollSet::share(int epoll_fd, EpollEntry& entry) noexcept {
    const int fd = entry.fd;
    Description& target = *entry.target;
    epoll_event event{};
    if (entry.in_kernel) libc::epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, &event);
    event.events = entry.events;
    event.data.u64 = entry.data;
    unwatch(entry);
    entries_.remove(entry);
    add_shared(epoll_fd, fd, target, event);
}

/// A socket of Culvert's has become the kernel's (left the program, given back), or will be asked for under another record.
void EpollSet::reconsider_shared(int epoll_fd, Description& target) noexcept {
    SharedSet& family = *family_;
    if (target.kind() != Kind::kSocket || target.is_ours()) return;
    const std::uint32_t generation = Socket::of(target).generation();
    family.for_each_of(target.record(), [&](std::uint32_t index) {
        const SharedEntry shared = family.entry(index);
        if (shared.generation != generation || FdTable::instance().peek(shared.fd) != &target) return;
        epoll_event unused{};
        if (shared.in_kernel) libc::epoll_ctl(epoll_fd, EPOLL_CTL_DEL, shared.fd, &unused);
        family.remove(index);
        EpollEntry* const entry = entries_.find(shared.fd, target) == nullptr ? entries_.add(shared.fd, target) : nullptr;
        if (entry == nullptr) return;
        entry->events = shared.events;
        entry->data = shared.data;
        entry->armed = shared.armed;
        entry->record = shm::kNoIndex;
        if (kernel_add(epoll_fd, *entry, false) != 0) entry->in_kernel = errno == EEXIST;
    });
    if (!family.has_record(target.record()) && family.queue != shm::kNoIndex) client_->unwatch(family.queue, target.record());
}

/// The last descriptor of this process. The entry stays as long as another process has the socket. False: it is not in there.
bool EpollSet::forget_shared(Description& target) noexcept {
    SharedSet& family = *family_;
    if (target.kind() != Kind::kSocket || !target.is_ours() || target.home() != client_ || client_->daemon_gone()) return false;
    const bool others = client_->held_by_others(target.record());
    if (!joined_) {
        const bool mine = generation_ == Client::fork_generation();
        if (!mine) return false;
        if (family.state == SharedSet::kIdle) {
            if (!others) return false;
            activate();
        }
        join();
    }
    if (others) return true;
    const std::uint32_t generation = Socket::of(target).generation();
    family.for_each_of(target.record(), [&](std::uint32_t index) {
        if (family.entry(index).generation == generation) end_shared(index, any_descriptor());
    });
    return true;
}

// --- waiting ----------------------------------------------------------------------------------------------------------

/// What this process has under the number of the entry, if that is the entry's socket.
DescriptionRef EpollSet::local_target(const SharedEntry& entry) noexcept {
    DescriptionRef ref = FdTable::instance().find(entry.fd);
    const bool same = ref && ref->kind() == Kind::kSocket && ref->is_ours() && ref->home() == client_ && ref->record() == entry.record &&
                      Socket::of(*ref.get()).generation() == entry.generation;
    return same ? std::move(ref) : DescriptionRef();
}

std::uint32_t EpollSet::shared_events(const SharedEntry& entry, Seen& seen) noexcept {
    const bool wants_write = (entry.events & EPOLLOUT) != 0;
    const std::uint32_t asked = (entry.events & ~kFlags) | kAlways;
    if (const DescriptionRef ref = local_target(entry)) {
        if (ref->has_left() && seen.left_count < Seen::kMostLeft) seen.left[seen.left_count++] = entry.fd;
        return with_aliases(ref->poll_now(wants_write)) & asked;
    }
    return with_aliases(Socket::poll_record(*client_, entry.record, entry.generation, static_cast<Socket::Path>(entry.path), entry.type,
                                            entry.low_water, wants_write)) &
           asked;
}

// Whoever sleeps shall look, too: on Linux, too, a set that stays ready wakes one after the other.
void EpollSet::wake_others_shared() noexcept {
    const SharedSet& family = *family_;
    if (family.queue != shm::kNoIndex && client_->segment().ready(family.queue).any()) shm::signal_eventfd(queue_.eventfd);
}

int EpollSet::translate_shared(epoll_event* events, int count, Seen& seen) noexcept {
    SharedSet& family = *family_;
    return sift(events, count, seen, [&](std::uint32_t index, int slot, epoll_event& event) {
        if (index >= family.end()) return false;
        SharedEntry& entry = family.entry(index);
        if (!entry.used || !entry.in_kernel || !entry.armed) return false;
        if ((entry.events & EPOLLONESHOT) != 0) entry.armed = false;
        entry.round = family.round;
        entry.slot = slot;
        event.events |= shared_events(entry, seen);
        event.data.u64 = entry.data;
        return true;
    });
}

int EpollSet::look_shared(int epoll_fd, epoll_event* events, int max_events, Seen& seen) noexcept {
    SharedSet& family = *family_;
    ++family.round;
    // Before the bits are taken: whatever is posted after that finds the flag of those who sleep.
    if (family.queue != shm::kNoIndex) shm::announce_sleep(client_->segment().queue(family.queue).asleep);
    int count = 0;
    const int kernels_share = max_events == 1 ? static_cast<int>(family.round & 1) : (max_events + 1) / 2;
    if (kernels_share != 0) count = std::max(0, harvest(epoll_fd, events, kernels_share, seen));
    if (family.queue == shm::kNoIndex || count == max_events) return count;

    shm::ReadyBitmap ready = client_->segment().ready(family.queue);
    std::uint32_t again = 0;
    const auto look_later = [&](std::uint32_t index) { family.entry(index).again = std::exchange(again, index + 1); };
    ready.collect_some(static_cast<std::uint32_t>(max_events - count), family.cursor, [&](std::uint32_t record) {
        family.for_each_of(record, [&](std::uint32_t index) {
            SharedEntry& entry = family.entry(index);
            if (has_gone(*client_, entry)) return end_shared(index, -1);
            if (!entry.armed) return;
            if (count == max_events) return look_later(index);
            const std::uint32_t mask = shared_events(entry, seen);
            if (mask == 0) return;
            if (has_gone(*client_, entry)) return end_shared(index, -1);
            if (entry.in_kernel && entry.round == family.round) {
                events[entry.slot].events |= mask;
            } else {
                events[count].events = mask;
                events[count++].data.u64 = entry.data;
            }
            if ((entry.events & EPOLLONESHOT) != 0) {
                entry.armed = false;
                epoll_event disarmed{};
                disarmed.events = EPOLLONESHOT;
                disarmed.data.u64 = private_base() + kEntryOffset + index;
                if (entry.in_kernel && local_target(entry)) libc::epoll_ctl(epoll_fd, EPOLL_CTL_MOD, entry.fd, &disarmed);
            } else if ((entry.events & EPOLLET) == 0) {
                look_later(index);
            }
        });
    });
    while (again != 0) {
        const SharedEntry& entry = family.entry(again - 1);
        look_again(entry);
        again = entry.again;
    }
    wake_others_shared();
    if (family.pollable) settle_shared();
    return count;
}

/// The call that announces its sleep ends in a wait of the kernel's, which may be cancelled.
std::optional<int> EpollSet::wait_shared(int epoll_fd, epoll_event* events, int max_events, std::int64_t timeout_ns,
                                         std::int64_t deadline, const sigset_t* mask) {
    for (;;) {
        Seen seen;
        int count = 0;
        bool blind = false;
        {
            Lock lock(*this);
            if (!in_family(epoll_fd)) return std::nullopt;
            count = look_shared(epoll_fd, events, max_events, seen);
            if (count == 0) count = std::max(0, harvest(epoll_fd, events, max_events, seen));
            blind = family_.load()->queue == shm::kNoIndex;
            if (count == 0 && timeout_ns != 0 && !blind && client_->segment().ready(queue_.index).any() && seen.left_count == 0) continue;
        }
        const bool followed = seen.left_count != 0;
        follow(seen);
        if (count != 0) return count;
        if (followed) continue;
        std::int64_t left = timeout_ns;
        if (timeout_ns > 0) left = std::max<std::int64_t>(0, deadline - monotonic_ns());
        if (left == 0) return 0;
        // Not for longer: one who was killed between his wake-up and his look has taken the signal along.
        const std::int64_t slice = blind ? kWithoutQueueNs : kSliceNs;
        const bool sliced = left < 0 || left > slice;
        count = kernel_wait(epoll_fd, events, max_events, sliced ? slice : left, mask);
        if (count < 0) return -1;
        if (count == 0) client_->check_daemon();
        Lock lock(*this);
        if (!in_family(epoll_fd)) {
            if (count > 0) count = translate(events, count, seen);
            if (count > 0) return count;
            return std::nullopt;
        }
        if (count > 0) count = translate_shared(events, count, seen);
        if (count > 0) {
            wake_others_shared();
            return count;
        }
    }
}

// --- seen from outside ------------------------------------------------------------------------------------------------

void EpollSet::make_pollable_shared(int epoll_fd) noexcept {
    SharedSet& family = *family_;
    if (!pollable_.exchange(true)) pollable_sets.fetch_add(1, std::memory_order_seq_cst);
    if (!family.pollable) {
        family.pollable = true;
        epoll_event registration{};
        registration.events = EPOLLIN;
        registration.data.u64 = private_base() + kQueueOffset;
        libc::epoll_ctl(epoll_fd, EPOLL_CTL_MOD, queue_.eventfd, &registration);
    }
    settle_shared();
}

/// The eventfd stays signalled exactly as long as there may be something to report.
void EpollSet::settle_shared() noexcept {
    SharedSet& family = *family_;
    if (!family.pollable || family.queue == shm::kNoIndex) return;
    shm::ReadyBitmap ready = client_->segment().ready(family.queue);
    std::uint64_t signals = 0;
    ::syscall(SYS_read, queue_.eventfd, &signals, sizeof signals);
    shm::announce_sleep(client_->segment().queue(family.queue).asleep);
    std::uint32_t again = 0;
    Seen seen;
    ready.collect([&](std::uint32_t record) {
        family.for_each_of(record, [&](std::uint32_t index) {
            SharedEntry& entry = family.entry(index);
            if (!has_gone(*client_, entry) && entry.armed && shared_events(entry, seen) != 0)
                entry.again = std::exchange(again, index + 1);
        });
    });
    for (; again != 0; again = family.entry(again - 1).again) look_again(family.entry(again - 1));
    if (ready.any()) shm::signal_eventfd(queue_.eventfd);
}

}  // namespace culvert::preload
