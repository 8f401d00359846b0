#include "daemon/control/event_loop.h"

#include <poll.h>

#include "shm/base/check.h"

namespace culvert::control {
namespace {

// Bounds one submission, not the operations under way: a full queue is submitted and goes on.
constexpr unsigned kEntries = 256;
// Of what nobody waits for: closing elsewhere, and the cancellation in ~EventLoop.
constexpr std::uint64_t kNobodyWaits = 0;
// Threads of the kernel that may hang in strangers' descriptors; everything else of ours is armed by poll and needs none.
constexpr unsigned kWorkers = 16;

}  // namespace

Result<std::unique_ptr<EventLoop>> EventLoop::create() {
    std::unique_ptr<EventLoop> loop(new EventLoop());
    if (const int code = io_uring_queue_init(kEntries, &loop->ring_, IORING_SETUP_CLAMP); code < 0) {
        loop->ring_.ring_fd = -1;
        return fail(-code, "io_uring (needs Linux 6.1, sysctl kernel.io_uring_disabled=0)");
    }
    unsigned workers[2] = {kWorkers, kWorkers};
    if (const int code = io_uring_register_iowq_max_workers(&loop->ring_, workers); code < 0)
        return fail(-code, "io_uring (workers)");
    return loop;
}

EventLoop::~EventLoop() {
    if (ring_.ring_fd < 0) return;
    io_uring_submit(&ring_);  // closings
    if (!under_way_.empty()) {
        io_uring_sqe* entry = io_uring_get_sqe(&ring_);
        if (entry == nullptr) {
            io_uring_submit(&ring_);
            entry = io_uring_get_sqe(&ring_);
        }
        CHECK(entry != nullptr);
        io_uring_prep_cancel(entry, nullptr, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
        io_uring_sqe_set_data64(entry, kNobodyWaits);
        io_uring_submit(&ring_);
        while (!under_way_.empty()) {
            io_uring_cqe* completion = nullptr;
            if (io_uring_wait_cqe(&ring_, &completion) < 0) continue;
            under_way_.erase(io_uring_cqe_get_data64(completion));
            io_uring_cqe_seen(&ring_, completion);
        }
    }
    io_uring_queue_exit(&ring_);
}

io_uring_sqe* EventLoop::prepare(Done done) {
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    if (entry == nullptr) {
        io_uring_submit(&ring_);
        entry = io_uring_get_sqe(&ring_);
    }
    CHECK(entry != nullptr);
    const std::uint64_t token = next_token_++;
    under_way_.emplace(token, std::move(done));
    return entry;
}

// liburing's prep functions may clear user_data, so the token is set behind them.
void EventLoop::accept(int fd, Done done) {
    io_uring_sqe* entry = prepare(std::move(done));
    io_uring_prep_accept(entry, fd, nullptr, nullptr, SOCK_CLOEXEC);
    io_uring_sqe_set_data64(entry, next_token_ - 1);
}

void EventLoop::poll_readable(int fd, Done done) {
    io_uring_sqe* entry = prepare(std::move(done));
    io_uring_prep_poll_add(entry, fd, POLLIN);
    io_uring_sqe_set_data64(entry, next_token_ - 1);
}

void EventLoop::read(int fd, std::span<std::byte> into, Done done) {
    io_uring_sqe* entry = prepare(std::move(done));
    io_uring_prep_read(entry, fd, into.data(), static_cast<unsigned>(into.size()), 0);
    io_uring_sqe_set_data64(entry, next_token_ - 1);
}

void EventLoop::receive(int fd, msghdr* message, Done done) {
    io_uring_sqe* entry = prepare(std::move(done));
    io_uring_prep_recvmsg(entry, fd, message, MSG_CMSG_CLOEXEC);
    io_uring_sqe_set_data64(entry, next_token_ - 1);
}

void EventLoop::send(int fd, const msghdr* message, Done done) {
    io_uring_sqe* entry = prepare(std::move(done));
    io_uring_prep_sendmsg(entry, fd, message, MSG_NOSIGNAL);
    io_uring_sqe_set_data64(entry, next_token_ - 1);
}

void EventLoop::close_elsewhere(UniqueFd fd) {
    if (!fd) return;
    // Lingering is the usual trick, and is easily taken from a socket; whatever else there is keeps a worker.
    const linger none{.l_onoff = 0, .l_linger = 0};
    (void)::setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &none, sizeof none);
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    if (entry == nullptr) {
        io_uring_submit(&ring_);
        entry = io_uring_get_sqe(&ring_);
    }
    CHECK(entry != nullptr);
    io_uring_prep_close(entry, fd.release());
    io_uring_sqe_set_flags(entry, IOSQE_ASYNC);
    io_uring_sqe_set_data64(entry, kNobodyWaits);
}

ForeignFd::~ForeignFd() {
    if (fd_) loop_->close_elsewhere(std::move(fd_));
}

void EventLoop::complete(std::uint64_t token, int result) {
    const auto node = under_way_.extract(token);
    if (!node.empty()) node.mapped()(result);
}

void EventLoop::run() {
    stopping_ = false;
    while (!stopping_) {
        const int code = io_uring_submit_and_wait(&ring_, 1);
        if (code < 0 && code != -EINTR && code != -EAGAIN && code != -EBUSY) CHECK(!"io_uring_submit_and_wait failed");
        io_uring_cqe* completion = nullptr;
        while (!stopping_ && io_uring_peek_cqe(&ring_, &completion) == 0) {
            const std::uint64_t token = io_uring_cqe_get_data64(completion);
            const int result = completion->res;
            io_uring_cqe_seen(&ring_, completion);
            complete(token, result);
        }
    }
}

}  // namespace culvert::control
