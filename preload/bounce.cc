#include "preload/bounce.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>

#include "preload/interpose.h"
#include "preload/poll_wait.h"

namespace culvert::preload {

namespace {

constexpr std::size_t kBounce = 16 * 1024;

int refuse(int error) noexcept {
    errno = error;
    return -1;
}

bool ready(int fd, short events) noexcept {
    pollfd entry{fd, events, 0};
    const timespec now{};
    return libc::ppoll(&entry, nfds_t{1}, &now, static_cast<const sigset_t*>(nullptr)) == 1;
}

/// How much a pipe takes without waiting, at least: all of it when it is empty, else one page when poll says so.
std::size_t pipe_room(int pipe) noexcept {
    int queued = 0;
    const int capacity = libc::fcntl(pipe, F_GETPIPE_SZ);
    if (capacity > 0 && libc::ioctl(pipe, FIONREAD, &queued) == 0 && queued == 0)
        return static_cast<std::size_t>(capacity);
    return ready(pipe, POLLOUT) ? PIPE_BUF : 0;
}

bool is_nonblocking(int fd) noexcept { return (libc::fcntl(fd, F_GETFL) & O_NONBLOCK) != 0; }

}  // namespace

ssize_t splice_from(Socket& socket, int fd, int out, std::size_t length, unsigned flags) {
    if (libc::fcntl(out, F_GETPIPE_SZ) < 0) return refuse(EINVAL);  // one end must be a pipe
    if (length == 0) return 0;
    std::size_t room = pipe_room(out);
    if (room == 0) {
        if ((flags & SPLICE_F_NONBLOCK) != 0 || is_nonblocking(out)) return refuse(EAGAIN);
        pollfd entry{out, POLLOUT, 0};
        if (libc::poll.get()(&entry, 1, -1) < 0) return -1;
        room = PIPE_BUF;
    }
    char buffer[kBounce];
    Message peeked(buffer, std::min({length, room, sizeof buffer}));
    const int wait = (flags & SPLICE_F_NONBLOCK) != 0 ? MSG_DONTWAIT : 0;
    const ssize_t got = socket.peek_front(fd, peeked.header, wait);
    if (got <= 0) return got;
    const ssize_t written = libc::write.get()(out, buffer, static_cast<std::size_t>(got));
    if (written <= 0) return written;
    Message taken(buffer, static_cast<std::size_t>(written));  // the bytes are there: this does not wait
    return socket.receive(fd, taken.header, MSG_DONTWAIT);
}

ssize_t splice_to(int in, Socket& socket, int fd, std::size_t length, unsigned flags) {
    if (libc::fcntl(in, F_GETPIPE_SZ) < 0) return refuse(EINVAL);
    if (length == 0) return 0;
    const bool may_wait = (flags & SPLICE_F_NONBLOCK) == 0;
    if (!(may_wait && !is_nonblocking(in)) && !ready(in, POLLIN)) return refuse(EAGAIN);
    // A socket that takes nothing any more leaves the pipe as it is.
    Message nothing(nullptr, 0);
    if (socket.send(fd, nothing.header, MSG_DONTWAIT) < 0 && errno != EAGAIN) return -1;
    pollfd writable{fd, POLLOUT, 0};
    const timespec now{};
    const std::int64_t patience = socket.send_timeout_ns();
    const timespec limit{static_cast<time_t>(patience / 1'000'000'000), static_cast<long>(patience % 1'000'000'000)};
    const bool send_waits = may_wait && !socket.nonblocking();
    const int has_room = poll_wait(&writable, 1, !send_waits ? &now : patience >= 0 ? &limit : nullptr, nullptr);
    if (has_room < 0) return -1;
    if (has_room == 0) return refuse(EAGAIN);
    char buffer[kBounce];
    const ssize_t got = libc::read.get()(in, buffer, std::min(length, sizeof buffer));
    if (got <= 0) return got;
    ssize_t sent = 0;
    while (sent < got) {
        Message message(buffer + sent, static_cast<std::size_t>(got - sent));
        const ssize_t now_sent = socket.send(fd, message.header, MSG_DONTWAIT | ((flags & SPLICE_F_MORE) != 0 ? MSG_MORE : 0));
        if (now_sent > 0) {
            sent += now_sent;
        } else if (now_sent < 0 && errno == EAGAIN) {
            if (poll_wait(&writable, 1, nullptr, nullptr) < 0 && errno != EINTR) return -1;
        } else if (now_sent < 0) {
            return sent > 0 ? sent : -1;
        }
    }
    return sent;
}

}  // namespace culvert::preload
