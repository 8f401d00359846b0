// The control thread's one io_uring: start an operation, get called when it is done.
//
//   loop.accept(fd, done) ... loop.run():  submit, wait, done(result) for each completion, until stop()
//
// An operation that is under way borrows its buffers and its descriptor: keep them until `done` has run. Closing a
// connection early: shutdown(2) it, wait for its operations to end, then free it (connection.h does so).
#pragma once

#include <liburing.h>
#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>

#include "shm/base/error.h"
#include "shm/base/unique_fd.h"

namespace culvert::control {

class EventLoop;

/// A descriptor that a stranger has sent. Closed elsewhere, unless it is released: then it is known to be harmless.
class ForeignFd {
public:
    ForeignFd(EventLoop& loop, int fd) : loop_(&loop), fd_(fd) {}
    ForeignFd(ForeignFd&&) noexcept = default;
    ForeignFd& operator=(ForeignFd&&) = delete;
    ~ForeignFd();
    int get() const { return fd_.get(); }
    UniqueFd release() { return std::move(fd_); }

private:
    EventLoop* loop_;
    UniqueFd fd_;
};

class EventLoop {
public:
    /// `result` as the system call would return it, errors as -errno.
    using Done = std::function<void(int result)>;

    /// Errors: the kernel refuses io_uring (old kernel, kernel.io_uring_disabled, seccomp).
    static Result<std::unique_ptr<EventLoop>> create();
    /// Cancels what is under way and waits for it to end, so that no buffer is written afterwards. No `done` runs.
    ~EventLoop();
    EventLoop(const EventLoop&) = delete;
    EventLoop& operator=(const EventLoop&) = delete;

    // Descriptors must be blocking ones: io_uring answers EAGAIN at once for others. The accepted one is close-on-exec.
    void accept(int fd, Done done);
    void poll_readable(int fd, Done done);
    void read(int fd, std::span<std::byte> into, Done done);
    void receive(int fd, msghdr* message, Done done);
    void send(int fd, const msghdr* message, Done done);
    /// Closes a stranger's descriptor somewhere else: the last close of a socket that lingers, or of a file whose file system
    /// is a program of his, takes as long as he likes.
    void close_elsewhere(UniqueFd fd);

    /// Runs until stop(), which a `done` calls.
    void run();
    void stop() { stopping_ = true; }

private:
    EventLoop() = default;
    io_uring_sqe* prepare(Done done);
    void complete(std::uint64_t token, int result);

    io_uring ring_{};
    std::unordered_map<std::uint64_t, Done> under_way_;
    std::uint64_t next_token_ = 1;
    bool stopping_ = false;
};

}  // namespace culvert::control
