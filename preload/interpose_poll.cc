// epoll, poll and select.
#include "preload/interpose.h"

#include "preload/epoll_set.h"
#include "preload/inherited.h"
#include "preload/poll_wait.h"

using namespace culvert::preload;

namespace {

int refuse(int error) noexcept {
    errno = error;
    return -1;
}

timespec from_ms(int ms) noexcept { return {ms / 1000, ms % 1000 * 1'000'000L}; }

/// The set behind an epoll descriptor, kept alive during the call; made now if the shim has not seen it yet.
class SetRef {
public:
    explicit SetRef(DescriptionRef ref) : ref_(std::move(ref)) {}
    explicit operator bool() const { return ref_ && ref_->kind() == Description::Kind::kEpoll; }
    EpollSet* operator->() const { return static_cast<EpollSet*>(ref_.get()); }

private:
    DescriptionRef ref_;
};

SetRef set_behind(int fd) noexcept {
    FdTable& table = FdTable::instance();
    return SetRef(table.contains(fd) ? table.find(fd) : DescriptionRef());
}

int remember(int fd) noexcept {
    if (fd < 0 || in_borrowed_memory()) return fd;
    if (EpollSet* set = EpollSet::create()) FdTable::instance().insert(fd, *set);
    return fd;
}

bool valid(const timespec* time) noexcept {
    return time == nullptr || (time->tv_sec >= 0 && time->tv_nsec >= 0 && time->tv_nsec < 1'000'000'000);
}

int poll_ms(pollfd* fds, nfds_t count, int timeout_ms) {
    if (!poll_concerns_us(fds, count)) return libc::poll.get()(fds, count, timeout_ms);
    const timespec timeout = from_ms(timeout_ms);
    return poll_wait(fds, count, timeout_ms < 0 ? nullptr : &timeout, nullptr);
}

}  // namespace

extern "C" [[noreturn]] void __chk_fail() noexcept;

CULVERT_EXPORT int epoll_create(int size) noexcept { return remember(libc::epoll_create(size)); }
CULVERT_EXPORT int epoll_create1(int flags) noexcept { return remember(libc::epoll_create1(flags)); }

CULVERT_EXPORT int epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event) noexcept {
    FdTable& table = FdTable::instance();
    if (table.is_protected(fd)) return refuse(EBADF);
    if (operation == EPOLL_CTL_ADD) meet(fd);
    if (table.contains(fd)) {
        const DescriptionRef target = table.find(fd);
        if (target && target->kind() == Description::Kind::kSocket) {
            if (operation == EPOLL_CTL_ADD) Socket::of(*target.get()).note_awaited();
            const SetRef set{EpollSet::find_or_adopt(epoll_fd)};
            if (set) return set->control(epoll_fd, operation, fd, *target.get(), event);
        } else if (target && operation == EPOLL_CTL_ADD) {
            static_cast<EpollSet*>(target.get())->make_pollable(fd);
        }
    }
    return libc::epoll_ctl(epoll_fd, operation, fd, event);
}

CULVERT_EXPORT int epoll_wait(int fd, epoll_event* events, int max_events, int timeout_ms) {
    if (const auto count = EpollSet::wait_in_kernel(fd, events, max_events, timeout_ms, nullptr)) return *count;
    const SetRef set = set_behind(fd);
    if (!set) return libc::epoll_wait.get()(fd, events, max_events, timeout_ms);
    const timespec timeout = from_ms(timeout_ms);
    return set->wait(fd, events, max_events, timeout_ms < 0 ? nullptr : &timeout, nullptr);
}

CULVERT_EXPORT int epoll_pwait(int fd, epoll_event* events, int max_events, int timeout_ms, const sigset_t* mask) {
    if (const auto count = EpollSet::wait_in_kernel(fd, events, max_events, timeout_ms, mask)) return *count;
    const SetRef set = set_behind(fd);
    if (!set) return libc::epoll_pwait.get()(fd, events, max_events, timeout_ms, mask);
    const timespec timeout = from_ms(timeout_ms);
    return set->wait(fd, events, max_events, timeout_ms < 0 ? nullptr : &timeout, mask);
}

CULVERT_EXPORT int epoll_pwait2(int fd, epoll_event* events, int max_events, const timespec* timeout,
                                const sigset_t* mask) {
    const SetRef set = set_behind(fd);
    if (set) return set->wait(fd, events, max_events, timeout, mask);
    if (libc::epoll_pwait2.get() == nullptr) return refuse(ENOSYS);
    return libc::epoll_pwait2.get()(fd, events, max_events, timeout, mask);
}

CULVERT_EXPORT int poll(pollfd* fds, nfds_t count, int timeout_ms) { return poll_ms(fds, count, timeout_ms); }
CULVERT_EXPORT int __poll(pollfd* fds, nfds_t count, int timeout_ms) { return poll_ms(fds, count, timeout_ms); }

// glibc marks the list as written only, though `fd` and `events` are read.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
CULVERT_EXPORT int ppoll(pollfd* fds, nfds_t count, const timespec* timeout, const sigset_t* mask) {
    if (!poll_concerns_us(fds, count)) return libc::ppoll.get()(fds, count, timeout, mask);
    return valid(timeout) ? poll_wait(fds, count, timeout, mask) : refuse(EINVAL);
}
#pragma GCC diagnostic pop

CULVERT_EXPORT int __poll_chk(pollfd* fds, nfds_t count, int timeout_ms, std::size_t bytes) {
    if (bytes / sizeof(pollfd) < count) __chk_fail();
    return poll_ms(fds, count, timeout_ms);
}

CULVERT_EXPORT int __ppoll_chk(pollfd* fds, nfds_t count, const timespec* timeout, const sigset_t* mask,
                               std::size_t bytes) {
    if (bytes / sizeof(pollfd) < count) __chk_fail();
    return ppoll(fds, count, timeout, mask);
}

CULVERT_EXPORT int select(int count, fd_set* readable, fd_set* writable, fd_set* exceptional, timeval* timeout) {
    if (!select_concerns_us(count, readable, writable, exceptional))
        return libc::select.get()(count, readable, writable, exceptional, timeout);
    if (timeout == nullptr) return select_wait(count, readable, writable, exceptional, nullptr, nullptr, nullptr);
    if (timeout->tv_sec < 0 || timeout->tv_usec < 0) return refuse(EINVAL);
    const timespec limit{timeout->tv_sec + timeout->tv_usec / 1'000'000, timeout->tv_usec % 1'000'000 * 1000};
    timespec remaining = limit;
    const int result = select_wait(count, readable, writable, exceptional, &limit, nullptr, &remaining);
    timeout->tv_sec = remaining.tv_sec;
    timeout->tv_usec = remaining.tv_nsec / 1000;
    return result;
}
CULVERT_EXPORT int __select(int count, fd_set* readable, fd_set* writable, fd_set* exceptional, timeval* timeout) {
    return select(count, readable, writable, exceptional, timeout);
}

CULVERT_EXPORT int pselect(int count, fd_set* readable, fd_set* writable, fd_set* exceptional, const timespec* timeout,
                           const sigset_t* mask) {
    if (!select_concerns_us(count, readable, writable, exceptional))
        return libc::pselect.get()(count, readable, writable, exceptional, timeout, mask);
    if (!valid(timeout)) return refuse(EINVAL);
    return select_wait(count, readable, writable, exceptional, timeout, mask, nullptr);
}
