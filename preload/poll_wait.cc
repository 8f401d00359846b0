#include "preload/poll_wait.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <new>

#include "preload/client.h"
#include "preload/epoll_set.h"
#include "preload/fd_table.h"
#include "preload/inherited.h"
#include "preload/libc.h"
#include "preload/wait.h"

namespace culvert::preload {

namespace {

constexpr std::int64_t kWithoutQueueNs = 1'000'000;  // no queue to be had: look this often
constexpr nfds_t kMostDescriptors = 1u << 20;        // no limit on open files lies higher (fs.nr_open)
constexpr nfds_t kInline = 32;                       // descriptors that need no allocation

std::int64_t to_ns(const timespec& time) { return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec; }
timespec to_timespec(std::int64_t ns) { return {ns / 1'000'000'000, ns % 1'000'000'000}; }

/// An array that lives on the stack when it is short.
template <class T>
class Scratch {
public:
    explicit Scratch(std::size_t count) {
        if (count > kInline + 2) items_ = static_cast<T*>(std::malloc(count * sizeof(T)));
    }
    ~Scratch() {
        if (items_ != reinterpret_cast<T*>(inline_)) std::free(items_);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    explicit operator bool() const { return items_ != nullptr; }
    T* get() { return items_; }

private:
    alignas(T) unsigned char inline_[(kInline + 2) * sizeof(T)];
    T* items_ = reinterpret_cast<T*>(inline_);
};

/// One of our sockets in the list.
struct Ours {
    nfds_t index;
    DescriptionRef ref;
    bool watched;
    std::uint32_t record;
    bool left = false;  // the kernel's since we began
};

/// Is `fd` ours to answer for? Sets that are polled from outside are told so on the way.
bool concerns_us(int fd) noexcept {
    FdTable& table = FdTable::instance();
    if (!table.concerns(fd, Description::kPassesPolls)) return false;
    const DescriptionRef ref = table.find(fd);
    if (!ref) return false;
    if (ref->kind() == Description::Kind::kEpoll) {
        static_cast<EpollSet*>(ref.get())->make_pollable(fd);
        return false;
    }
    if (ref->has_left()) ref->leave();
    return ref->is_ours();
}

SpinHistory spin_history;  // all polls of the process learn together

/// One poll() that concerns us. A destructor cleans up, because the wait is a cancellation point.
class Poll {
public:
    Poll(pollfd* fds, nfds_t count)
        : fds_(fds), count_(count), kernel_(std::size_t{count} + 2), ours_(std::size_t{count} + 2) {}
    ~Poll() {
        const int saved = errno;
        stop_watching();
        drop_ours();
        errno = saved;
    }
    Poll(const Poll&) = delete;
    Poll& operator=(const Poll&) = delete;

    int run(const timespec* timeout, const sigset_t* mask);

private:
    void sort_out() noexcept;
    int look_at_ours() noexcept;
    void follow_the_left() noexcept;
    int look_at_kernel(std::int64_t timeout_ns, const sigset_t* mask);
    int merge() noexcept;
    void start_watching() noexcept;
    void stop_watching() noexcept;
    bool news() noexcept;
    bool spin(std::int64_t timeout_ns) noexcept;
    bool orphaned() noexcept;
    bool revive() noexcept;
    void start_over() noexcept;
    void drop_ours() noexcept;

    pollfd* fds_;
    nfds_t count_;
    Scratch<pollfd> kernel_;  // the same places as in fds_; -1 where the kernel has nothing to say. Then two of ours
    Scratch<Ours> ours_;
    nfds_t ours_count_ = 0;
    nfds_t kernel_count_ = 0;
    Client* client_ = nullptr;
    bool has_queue_ = false;
    bool crowded_ = false;  // the limit of descriptors leaves no room for the shim's own in a poll
    EventQueue queue_;
};

void Poll::sort_out() noexcept {
    for (nfds_t i = 0; i < count_; ++i) {
        pollfd& half = kernel_.get()[i];
        half = fds_[i];
        half.revents = 0;
        fds_[i].revents = 0;
        if (half.fd < 0) continue;
        if (!concerns_us(half.fd)) {
            ++kernel_count_;
            continue;
        }
        DescriptionRef ref = FdTable::instance().find(half.fd);
        if (!ref) continue;
        if (ref->polls_kernel_too()) {
            // Room to send is known on our side alone.
            half.events = static_cast<short>(half.events & ~(POLLOUT | POLLWRNORM));
            ++kernel_count_;
        } else {
            half.fd = -1;
        }
        new (&ours_.get()[ours_count_++]) Ours{i, std::move(ref), false, 0};
    }
}

// How many of ours are ready now; their revents are set.
int Poll::look_at_ours() noexcept {
    int ready = 0;
    for (nfds_t i = 0; i < ours_count_; ++i) {
        Ours& ours = ours_.get()[i];
        if (ours.left) continue;
        pollfd& entry = fds_[ours.index];
        std::uint32_t mask = ours.ref->poll_now((entry.events & (POLLOUT | POLLWRNORM)) != 0);
        if ((mask & EPOLLIN) != 0) mask |= POLLRDNORM;
        if ((mask & EPOLLOUT) != 0) mask |= POLLWRNORM;
        const auto asked = static_cast<std::uint32_t>(static_cast<unsigned short>(entry.events)) | POLLERR | POLLHUP;
        entry.revents = static_cast<short>(mask & asked);
        if (entry.revents != 0) ++ready;
    }
    return ready;
}

// A connection that has left the program meanwhile is looked for in the kernel from here on.
void Poll::follow_the_left() noexcept {
    for (nfds_t i = 0; i < ours_count_; ++i) {
        Ours& ours = ours_.get()[i];
        if (ours.ref->has_left()) ours.ref->leave();
        if (ours.left || ours.ref->is_ours()) continue;
        ours.left = true;
        pollfd& half = kernel_.get()[ours.index];
        if (half.fd < 0) ++kernel_count_;
        half = fds_[ours.index];
        half.revents = fds_[ours.index].revents = 0;
    }
}

// The kernel's answer; the shim's own two descriptors stand behind the application's.
int Poll::look_at_kernel(std::int64_t timeout_ns, const sigset_t* mask) {
    pollfd* const kernel = kernel_.get();
    nfds_t count = count_;
    if (client_ != nullptr && !crowded_) {
        if (has_queue_) kernel[count++] = {queue_.eventfd, POLLIN, 0};
        if (!client_->daemon_gone()) kernel[count++] = {client_->control_fd(), POLLIN | POLLRDHUP, 0};
    }
    const timespec timeout = to_timespec(std::max<std::int64_t>(timeout_ns, 0));
    const int result = libc::ppoll.get()(kernel, count, timeout_ns < 0 ? nullptr : &timeout, mask);
    if (result <= 0) return result;
    for (nfds_t i = count_; i < count; ++i)
        if (kernel[i].revents != 0 && kernel[i].fd == client_->control_fd()) client_->check_daemon();
    return result;
}

// Adds the kernel's answer to ours; returns how many descriptors have something to report.
int Poll::merge() noexcept {
    int ready = 0;
    for (nfds_t i = 0; i < count_; ++i) {
        pollfd& half = kernel_.get()[i];
        if (half.fd >= 0) fds_[i].revents = static_cast<short>(fds_[i].revents | half.revents);
        if (fds_[i].revents != 0) ++ready;
    }
    return ready;
}

void Poll::start_watching() noexcept {
    client_ = Client::current();
    if (client_ == nullptr || client_->daemon_gone()) return;
    const auto queue = client_->borrow_poll_queue();
    if (!queue) return;
    queue_ = *queue;
    has_queue_ = true;
    for (nfds_t i = 0; i < ours_count_; ++i) {
        Ours& ours = ours_.get()[i];
        if (!ours.ref->is_ours() || ours.ref->home() != client_) continue;
        ours.record = ours.ref->record();
        client_->watch(queue_.index, ours.record);
        ours.watched = true;
    }
}

void Poll::stop_watching() noexcept {
    if (!has_queue_) return;
    has_queue_ = false;
    shm::cancel_sleep(client_->segment().queue(queue_.index).asleep);
    for (nfds_t i = 0; i < ours_count_; ++i) {
        Ours& ours = ours_.get()[i];
        if (ours.watched) client_->unwatch(queue_.index, ours.record);
    }
    client_->segment().ready(queue_.index).collect([](std::uint32_t) {});
    std::uint64_t signals = 0;
    ::syscall(SYS_read, queue_.eventfd, &signals, sizeof signals);  // non-blocking: empties it for the next borrower
    client_->give_back_poll_queue(queue_);
}

/// A listener or UDP socket whose daemon has gone: the kernel's half serves it, and nobody says when there is a daemon again.
bool Poll::orphaned() noexcept {
    for (nfds_t i = 0; i < ours_count_; ++i)
        if (ours_.get()[i].ref->wants_daemon()) return true;
    return false;
}

/// True: some of these have a daemon now, or are the kernel's for good.
bool Poll::revive() noexcept {
    if (!Client::attempt_is_due()) return false;
    bool any = false;
    for (nfds_t i = 0; i < count_; ++i) {
        if (fds_[i].fd < 0 || !FdTable::instance().contains(fds_[i].fd)) continue;
        const DescriptionRef ref = FdTable::instance().find(fds_[i].fd);
        if (!ref || !ref->wants_daemon()) continue;
        if (Client::attached() == nullptr) return any;
        ref->revive(fds_[i].fd);
        any |= !ref->wants_daemon();
    }
    return any;
}

void Poll::drop_ours() noexcept {
    for (nfds_t i = 0; i < ours_count_; ++i) ours_.get()[i].~Ours();
    ours_count_ = 0;
}

void Poll::start_over() noexcept {
    stop_watching();
    drop_ours();
    kernel_count_ = 0;
    sort_out();
    start_watching();
}

bool Poll::news() noexcept { return has_queue_ && client_->segment().ready(queue_.index).any(); }

bool Poll::spin(std::int64_t timeout_ns) noexcept {
    if (!has_queue_) return false;
    const std::uint32_t spin_us = client_->spin_us();
    if (timeout_ns > 0 && timeout_ns / 1000 < spin_us) return false;
    SpinWait spin_wait(spin_history, spin_us);
    while (spin_wait.again()) {
        if (!news()) continue;
        spin_wait.found();
        return true;
    }
    return false;
}

int Poll::run(const timespec* timeout, const sigset_t* mask) {
    if (!kernel_ || !ours_) {
        errno = ENOMEM;
        return -1;
    }
    const std::int64_t timeout_ns = timeout != nullptr ? to_ns(*timeout) : -1;
    const std::int64_t deadline = timeout_ns > 0 ? monotonic_ns() + timeout_ns : 0;
    revive();
    sort_out();
    int ready = look_at_ours();
    if (kernel_count_ > 0) {
        const timespec now{};
        if (raw::ppoll(kernel_.get(), static_cast<unsigned>(count_), &now, nullptr) < 0) return -1;
        ready = merge();
    }
    if (ready > 0) return ready;
    if (timeout_ns == 0) return mask == nullptr ? 0 : look_at_kernel(0, mask) < 0 ? -1 : merge();  // a signal it lets in ends it

    start_watching();
    for (bool first = true;; first = false) {
        // Cleared before the look: what is posted after it stays in the bitmap.
        if (has_queue_) client_->segment().ready(queue_.index).collect([](std::uint32_t) {});
        follow_the_left();
        ready = look_at_ours();
        if (ready > 0) return merge();
        if (first && spin(timeout_ns)) continue;
        if (has_queue_) {
            shm::announce_sleep(client_->segment().queue(queue_.index).asleep);
            if (news()) continue;
        }
        std::int64_t left = timeout_ns;
        if (timeout_ns > 0) left = std::max<std::int64_t>(0, deadline - monotonic_ns());
        std::int64_t slice = has_queue_ || client_ == nullptr || client_->daemon_gone() ? INT64_MAX : kWithoutQueueNs;
        if (orphaned()) slice = std::min(slice, Client::until_next_attempt_ns());
        const bool blind = slice != INT64_MAX && (left < 0 || left > slice);
        const int before = errno;
        const int result = look_at_kernel(blind ? slice : left, mask);
        if (result < 0 && errno == EINVAL && client_ != nullptr && !crowded_) {  // poll takes no more entries than RLIMIT_NOFILE
            errno = before;
            stop_watching();
            crowded_ = true;
            continue;
        }
        if (result < 0) return -1;
        if (crowded_ && client_ != nullptr) client_->check_daemon();
        if (result == 0 && blind && revive()) {
            start_over();
            continue;
        }
        if (has_queue_) {
            shm::cancel_sleep(client_->segment().queue(queue_.index).asleep);
            std::uint64_t signals = 0;
            if (kernel_.get()[count_].revents != 0) ::syscall(SYS_read, queue_.eventfd, &signals, sizeof signals);
        }
        if (result == 0 && !blind) {
            look_at_ours();
            return merge();
        }
        if (result > 0) {
            look_at_ours();
            ready = merge();
            if (ready > 0) return ready;
        }
    }
}


/// Which words of a set that may be longer than FD_SETSIZE: programs with many descriptors allocate their own.
void clear(fd_set* set, int count) noexcept {
    if (set == nullptr) return;
    auto* words = reinterpret_cast<unsigned long*>(set);
    constexpr int kBits = 8 * sizeof(unsigned long);
    for (int i = 0; i < (count + kBits - 1) / kBits; ++i) words[i] = 0;
}
bool raw_in(const fd_set* set, int fd) noexcept {
    constexpr int kBits = 8 * sizeof(unsigned long);
    return set != nullptr && ((reinterpret_cast<const unsigned long*>(set)[fd / kBits] >> (fd % kBits)) & 1) != 0;
}
void raw_set(fd_set* set, int fd) noexcept {
    constexpr int kBits = 8 * sizeof(unsigned long);
    reinterpret_cast<unsigned long*>(set)[fd / kBits] |= 1ul << (fd % kBits);
}

// The kernel's own table (fs/select.c): which poll events make a descriptor readable, writable, exceptional.
constexpr int kReadable = POLLIN | POLLRDNORM | POLLRDBAND | POLLHUP | POLLERR;
constexpr int kWritable = POLLOUT | POLLWRNORM | POLLWRBAND | POLLERR;
constexpr int kExceptional = POLLPRI;

}  // namespace

bool poll_concerns_us(const pollfd* fds, nfds_t count) noexcept {
    if (fds == nullptr || count > kMostDescriptors) return false;  // the kernel has the word for it
    bool any = false;
    for (nfds_t i = 0; i < count; ++i) {
        meet(fds[i].fd);
        any |= concerns_us(fds[i].fd);
    }
    return any;
}

int poll_wait(pollfd* fds, nfds_t count, const timespec* timeout, const sigset_t* mask) {
    Poll poll(fds, count);
    return poll.run(timeout, mask);
}

bool select_concerns_us(int count, const fd_set* readable, const fd_set* writable, const fd_set* exceptional) noexcept {
    bool any = false;
    for (int fd = 0; any_inherited() && fd < count; ++fd)
        if (raw_in(readable, fd)) meet_inherited(fd);
    for (int fd = 0; fd < count; ++fd)
        if (FdTable::instance().contains(fd) && (raw_in(readable, fd) || raw_in(writable, fd) || raw_in(exceptional, fd)))
            any |= concerns_us(fd);
    return any;
}

int select_wait(int count, fd_set* readable, fd_set* writable, fd_set* exceptional, const timespec* timeout,
                const sigset_t* mask, timespec* remaining) {
    nfds_t used = 0;
    for (int fd = 0; fd < count; ++fd)
        if (raw_in(readable, fd) || raw_in(writable, fd) || raw_in(exceptional, fd)) ++used;
    Scratch<pollfd> scratch(used + 1);
    if (!scratch) {
        errno = ENOMEM;
        return -1;
    }
    pollfd* const polled = scratch.get();
    used = 0;
    for (int fd = 0; fd < count; ++fd) {
        int events = 0;
        if (raw_in(readable, fd)) events |= POLLIN;
        if (raw_in(writable, fd)) events |= POLLOUT;
        if (raw_in(exceptional, fd)) events |= POLLPRI;
        if (events != 0) polled[used++] = {fd, static_cast<short>(events), 0};
    }
    const std::int64_t deadline = timeout != nullptr ? monotonic_ns() + to_ns(*timeout) : 0;
    const auto time_left = [&] { return to_timespec(std::max<std::int64_t>(0, deadline - monotonic_ns())); };
    for (;;) {
        const timespec left = timeout != nullptr ? time_left() : timespec{};
        const int result = poll_wait(polled, used, timeout != nullptr ? &left : nullptr, mask);
        const int error = errno;
        if (remaining != nullptr && timeout != nullptr) *remaining = time_left();
        errno = error;
        if (result < 0) return -1;
        int bits = 0;
        bool only_noise = result > 0;
        for (nfds_t i = 0; i < used; ++i) {
            pollfd& entry = polled[i];
            if (entry.fd < 0) continue;
            if ((entry.revents & POLLNVAL) != 0) {
                errno = EBADF;
                return -1;
            }
            if ((raw_in(readable, entry.fd) && (entry.revents & kReadable) != 0) ||
                (raw_in(writable, entry.fd) && (entry.revents & kWritable) != 0) ||
                (raw_in(exceptional, entry.fd) && (entry.revents & kExceptional) != 0))
                only_noise = false;
        }
        if (only_noise) {
            // poll() reports a hang-up to those who did not ask; select() does not. It says nothing more from here on.
            for (nfds_t i = 0; i < used; ++i)
                if (polled[i].revents != 0) polled[i].fd = -1;
            continue;
        }
        Scratch<unsigned char> was(used + 1);
        if (!was) {
            errno = ENOMEM;
            return -1;
        }
        for (nfds_t i = 0; i < used; ++i)
            was.get()[i] = polled[i].fd < 0 ? 0
                                            : static_cast<unsigned char>((raw_in(readable, polled[i].fd) ? 1 : 0) |
                                                                         (raw_in(writable, polled[i].fd) ? 2 : 0) |
                                                                         (raw_in(exceptional, polled[i].fd) ? 4 : 0));
        clear(readable, count);
        clear(writable, count);
        clear(exceptional, count);
        for (nfds_t i = 0; i < used; ++i) {
            const pollfd& entry = polled[i];
            const unsigned asked = was.get()[i];
            if ((asked & 1) != 0 && (entry.revents & kReadable) != 0) raw_set(readable, entry.fd), ++bits;
            if ((asked & 2) != 0 && (entry.revents & kWritable) != 0) raw_set(writable, entry.fd), ++bits;
            if ((asked & 4) != 0 && (entry.revents & kExceptional) != 0) raw_set(exceptional, entry.fd), ++bits;
        }
        return bits;
    }
}

}  // namespace culvert::preload
