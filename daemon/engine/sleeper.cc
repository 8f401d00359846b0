#include "daemon/engine/sleeper.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

#include <cerrno>
#include <system_error>

#include "shm/wakeup.h"

namespace culvert::engine {

namespace {
constexpr unsigned kEntries = 64;
constexpr std::uint64_t kNobody = UINT64_MAX;  // waits for this completion
}

Sleeper::Sleeper() : own_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)), doorbell_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!own_ || !doorbell_) throw std::system_error(errno, std::generic_category(), "eventfd");
    const int result = ::io_uring_queue_init(kEntries, &ring_, 0);
    if (result < 0) throw std::system_error(-result, std::generic_category(), "io_uring_setup");
    watch(own_.get());
    watch(doorbell_.get());
}

Sleeper::~Sleeper() { ::io_uring_queue_exit(&ring_); }

void Sleeper::watch(int fd) {
    watched_.push_back(fd);
    arm(fd);
}

void Sleeper::arm(int fd) {
    io_uring_sqe* entry = ::io_uring_get_sqe(&ring_);
    if (entry == nullptr) {
        ::io_uring_submit(&ring_);
        entry = ::io_uring_get_sqe(&ring_);
    }
    ::io_uring_prep_poll_multishot(entry, fd, POLLIN);
    ::io_uring_sqe_set_data64(entry, static_cast<std::uint64_t>(fd));
}

void Sleeper::close_elsewhere(UniqueFd fd) {
    io_uring_sqe* entry = ::io_uring_get_sqe(&ring_);
    if (entry == nullptr) {
        ::io_uring_submit(&ring_);
        entry = ::io_uring_get_sqe(&ring_);
    }
    ::io_uring_prep_close(entry, fd.release());
    ::io_uring_sqe_set_flags(entry, IOSQE_ASYNC);
    ::io_uring_sqe_set_data64(entry, kNobody);
    ::io_uring_submit(&ring_);
}

void Sleeper::wait(Duration longest) {
    if (longest <= Duration::zero()) return;
    const auto ns = longest.count();
    __kernel_timespec timeout{.tv_sec = ns / 1'000'000'000, .tv_nsec = ns % 1'000'000'000};
    io_uring_cqe* completion = nullptr;
    ::io_uring_submit_and_wait_timeout(&ring_, &completion, 1, &timeout, nullptr);
    unsigned head = 0;
    unsigned count = 0;
    bool rung = false;
    std::uint64_t again = 0;  // a multishot poll that the kernel has ended (it does on overflow) is armed anew
    io_uring_for_each_cqe(&ring_, head, completion) {
        ++count;
        rung |= completion->user_data == static_cast<std::uint64_t>(doorbell_.get());
        if ((completion->flags & IORING_CQE_F_MORE) == 0) {
            for (std::size_t i = 0; i < watched_.size() && i < 64; ++i)
                if (static_cast<std::uint64_t>(watched_[i]) == completion->user_data) again |= std::uint64_t{1} << i;
        }
    }
    ::io_uring_cq_advance(&ring_, count);
    if (rung) empty_doorbell();
    for (std::size_t i = 0; i < watched_.size() && i < 64; ++i)
        if ((again >> i & 1) != 0) arm(watched_[i]);
}

/// A counter that somebody has filled would take no other application's ring. RWF_NOWAIT, because O_NONBLOCK is theirs to clear.
void Sleeper::empty_doorbell() {
    std::uint64_t rings = 0;
    const iovec into{&rings, sizeof rings};
    (void)::preadv2(doorbell_.get(), &into, 1, -1, RWF_NOWAIT);
}

void Sleeper::ring() { shm::signal_eventfd(own_.get()); }

}  // namespace culvert::engine
