// Descriptors: closing, duplicating, status flags.
//
// Between vfork and exec the child has our memory but its own descriptors: it may close and duplicate as it likes, and
// nothing of that is noted here.
#include "preload/interpose.h"

#include <fcntl.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdarg>

#include "preload/epoll_set.h"
#include "preload/leave.h"
#include "preload/listener_mode.h"

namespace culvert::preload {

void take_out(int fd) noexcept {
    FdTable& table = FdTable::instance();
    {
        const DescriptionRef ref = table.find(fd);
        if (!ref) return;
        // Before the table, because the epoll set's registrations go by descriptor, and before the record is given up.
        if (ref->epoll_registrations.load(std::memory_order_acquire) != 0 &&
            ref->descriptors.load(std::memory_order_acquire) == 1)
            EpollSet::forget_everywhere(*ref.get());
    }
    table.remove(fd);
}

void follow_duplicate(int original, int copy) noexcept {
    FdTable& table = FdTable::instance();
    const DescriptionRef ref = table.find(original);
    if (ref) table.insert(copy, *ref.get());
}

}  // namespace culvert::preload

using namespace culvert::preload;

namespace {

bool known(int fd) noexcept { return FdTable::instance().contains(fd); }

/// `copy` refers to what `original` does. Standard streams are read and written by libc itself, by names that nobody can
/// interpose, so a connection that becomes one leaves for the kernel at once (leave.cc), as it will with the exec that usually follows.
void note_duplicate(int original, int copy) noexcept {
    follow_duplicate(original, copy);
    if (copy > STDERR_FILENO) return;
    if (const SocketRef socket = any_socket(copy); socket && socket->path() == Socket::Path::kConnection) socket->leave();
}

int duplicated(int original, int copy) noexcept {
    if (copy < 0 || (!known(original) && !borrowed_copies())) return copy;
    if (in_borrowed_memory())
        note_borrowed_copy(original, copy);
    else if (known(original))
        note_duplicate(original, copy);
    return copy;
}

/// dup2 and dup3 once it is clear that `copy` is another number. `place` does it.
template <class Place>
int place_duplicate(int original, int copy, Place&& place) noexcept {
    if (!known(original) && !known(copy) && !FdTable::instance().is_protected(copy) && !borrowed_copies()) return place();
    if (in_borrowed_memory()) {
        // Ours are close-on-exec, and needed until then.
        if (FdTable::instance().is_protected(copy)) {
            errno = EBUSY;
            return -1;
        }
        const int result = place();
        if (result >= 0) note_borrowed_copy(original, result);
        return result;
    }
    // The shim's own descriptors lie high; who wants exactly that number is told that it is in use.
    if (FdTable::instance().is_protected(copy) || FdTable::instance().is_protected(original)) {
        errno = FdTable::instance().is_protected(original) ? EBADF : EBUSY;
        return -1;
    }
    if (libc::fcntl(original, F_GETFD) < 0) return -1;  // EBADF, and `copy` stays open
    take_out(copy);
    const int result = place();
    if (result >= 0) note_duplicate(original, result);
    return result;
}

/// Calls close(first, last) for every stretch of [first, last] without a protected descriptor.
template <class Close>
int between_protected(unsigned first, unsigned last, Close&& close_stretch) noexcept {
    FdTable& table = FdTable::instance();
    constexpr unsigned kHighestProtected = 1u << 20;
    unsigned begin = first;
    for (unsigned fd = first; fd <= last && fd < kHighestProtected; ++fd) {
        if (!table.is_protected(static_cast<int>(fd))) continue;
        if (fd > begin && close_stretch(begin, fd - 1) != 0) return -1;
        begin = fd + 1;
    }
    return begin <= last ? close_stretch(begin, last) : 0;
}

int close_stretch(unsigned first, unsigned last, int flags) noexcept {
    if (libc::close_range.get() != nullptr) {
        const int result = libc::close_range(first, last, flags);
        if (result == 0 || errno != ENOSYS || flags != 0) return result;
    }
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    const unsigned end = std::min(last, static_cast<unsigned>(std::min<rlim_t>(limit.rlim_cur, 1u << 20)));
    for (unsigned fd = first; fd <= end; ++fd) libc::close(static_cast<int>(fd));
    return 0;
}

int close_many(unsigned first, unsigned last, int flags) noexcept {
    // With CLOSE_RANGE_CLOEXEC nothing is closed now, and ours are close-on-exec anyway.
    if ((flags & ~CLOSE_RANGE_UNSHARE) != 0 || first > last) return close_stretch(first, last, flags);
    const auto spare_ours = [flags](unsigned begin, unsigned end) { return close_stretch(begin, end, flags); };
    if (in_borrowed_memory()) {
        note_borrowed_close(first, last);
        return between_protected(first, last, spare_ours);
    }
    FdTable::instance().for_each([first, last](int fd, Description&) {
        if (static_cast<unsigned>(fd) >= first && static_cast<unsigned>(fd) <= last) take_out(fd);
    });
    return between_protected(first, last, spare_ours);
}

int control(int fd, int command, long argument, LibcFunction<int(int, int, ...)>& original) {
    if (FdTable::instance().is_protected(fd) && !in_borrowed_memory()) {
        errno = EBADF;
        return -1;
    }
    switch (command) {
        case F_DUPFD:
        case F_DUPFD_CLOEXEC: return duplicated(fd, original.get()(fd, command, argument));
        case F_GETFL:
            if (const SocketRef socket = any_socket(fd)) return socket->get_status_flags(fd);
            break;
        case F_GETSIG: {
            if (const SocketRef socket = our_socket(fd); socket && socket->has_left()) socket->leave();
            const int signal = original.get()(fd, command, argument);
            if (const SocketRef socket = our_socket(fd); socket && socket->path() == Socket::Path::kListener && signal == kModeIsOurs) return 0;
            return signal;
        }
        case F_GETOWN:
        case F_GETOWN_EX:
            if (const SocketRef socket = our_socket(fd); socket && socket->has_left()) socket->leave();
            break;
        case F_SETOWN:
        case F_SETOWN_EX:
        case F_SETSIG:
            if (const SocketRef socket = our_socket(fd)) return socket->set_signals(fd, raw::fcntl, command, argument);
            break;
        case F_SETFL:
            if (const SocketRef socket = any_socket(fd)) return socket->set_status_flags(fd, static_cast<int>(argument));
            break;
        default: break;
    }
    return original.get()(fd, command, argument);
}

}  // namespace

CULVERT_EXPORT int close(int fd) {
    if (FdTable::instance().is_protected(fd)) {
        errno = EBADF;
        return -1;
    }
    if (known(fd) || borrowed_copies()) {
        if (in_borrowed_memory())
            note_borrowed_close(static_cast<unsigned>(fd), static_cast<unsigned>(fd));
        else
            take_out(fd);
    }
    return libc::close.get()(fd);
}
CULVERT_EXPORT int __close(int fd) { return close(fd); }

CULVERT_EXPORT int close_range(unsigned first, unsigned last, int flags) noexcept { return close_many(first, last, flags); }

CULVERT_EXPORT void closefrom(int lowest) noexcept {
    close_many(static_cast<unsigned>(std::max(lowest, 0)), UINT_MAX, 0);
}

CULVERT_EXPORT int dup(int fd) noexcept {
    if (FdTable::instance().is_protected(fd)) {
        errno = EBADF;
        return -1;
    }
    return duplicated(fd, libc::dup(fd));
}

CULVERT_EXPORT int dup2(int original, int copy) noexcept {
    if (original == copy) return libc::dup2(original, copy);
    return place_duplicate(original, copy, [=] { return libc::dup2(original, copy); });
}
CULVERT_EXPORT int __dup2(int original, int copy) noexcept { return dup2(original, copy); }

CULVERT_EXPORT int dup3(int original, int copy, int flags) noexcept {
    if (original == copy || (flags & ~O_CLOEXEC) != 0) return libc::dup3(original, copy, flags);
    return place_duplicate(original, copy, [=] { return libc::dup3(original, copy, flags); });
}

CULVERT_EXPORT int fcntl(int fd, int command, ...) {
    va_list arguments;
    va_start(arguments, command);
    const long argument = va_arg(arguments, long);
    va_end(arguments);
    return control(fd, command, argument, libc::fcntl);
}
CULVERT_EXPORT int fcntl64(int fd, int command, ...) {
    va_list arguments;
    va_start(arguments, command);
    const long argument = va_arg(arguments, long);
    va_end(arguments);
    return control(fd, command, argument, libc::fcntl64.get() != nullptr ? libc::fcntl64 : libc::fcntl);
}
CULVERT_EXPORT int __fcntl(int fd, int command, ...) {
    va_list arguments;
    va_start(arguments, command);
    const long argument = va_arg(arguments, long);
    va_end(arguments);
    return control(fd, command, argument, libc::fcntl);
}
