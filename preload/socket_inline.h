// Templates of Socket that several of its source files need.
#pragma once

#include <algorithm>

#include "preload/socket.h"
#include "preload/socket_lock.h"
#include "preload/waiting.h"

namespace culvert::preload {

/// Changes the shared options under their sequence lock (even: whole, odd: being written) and tells the daemon.
template <class Change>
void Socket::change_options(Change&& change) noexcept {
    // What was set stays with the socket when another daemon takes it over.
    if (path() != Path::kConnection) change(early_options_);
    if (path() == Path::kKernel) return;
    shm::SocketRecord& record = shared();
    {
        const SocketLock lock(*client_, record.app.tx_lock);
        std::atomic<std::uint32_t>& version = record.app.options_version;
        const std::uint32_t before = version.load(std::memory_order_relaxed);
        version.store(before + 1, std::memory_order_relaxed);
        std::atomic_thread_fence(std::memory_order_release);
        change(record.options);
        version.store(before + 2, std::memory_order_release);
    }
    if (!record_lost()) client_->post(record_.load(std::memory_order_relaxed));
}

inline std::size_t total_length(const msghdr& message) noexcept {
    std::size_t length = 0;
    for (std::size_t i = 0; i < message.msg_iovlen; ++i) length += message.msg_iov[i].iov_len;
    return length;
}

/// Waits until the kernel's half is readable or ready() says so; without a daemon it is also over when one may be there
/// again. Returns 0, EAGAIN (timeout_ns < 0: never), EINTR or ECANCELED.
template <class Ready>
int Socket::wait_both(int fd, std::int64_t timeout_ns, Ready&& ready) noexcept {
    const std::int64_t deadline = timeout_ns >= 0 ? now_ns() + timeout_ns : INT64_MAX;
    Client& client = *client_;  // another thread may revive the socket meanwhile
    SpinWait spin(spin_history_, client.spin_us());
    do {
        if (ready()) {
            spin.found();
            return 0;
        }
    } while (spin.again());

    const std::uint32_t record = record_.load(std::memory_order_relaxed);
    const auto queue = client.borrow_poll_queue();
    struct Borrowed {  // given back after the bell has been taken down
        ~Borrowed() {
            if (!queue) return;
            client.unwatch(queue->index, record);
            client.give_back_poll_queue(*queue);
        }
        Client& client;
        const std::optional<EventQueue>& queue;
        std::uint32_t record;
    };
    const Borrowed borrowed{client, queue, record};
    if (queue) client.watch(queue->index, record);
    // Without a queue (the daemon has no more, or is gone) we look ten times a second.
    constexpr std::int64_t kBlindSliceNs = 100'000'000;
    const CancelBell bell(queue ? queue->eventfd : -1);
    int result = 0;
    for (;;) {
        const bool gone = client.daemon_gone();
        if (queue) shm::announce_sleep(client.segment().queue(queue->index).asleep);
        if (ready()) break;
        if (cancel_asked()) [[unlikely]] {
            result = ECANCELED;
            break;
        }
        const std::int64_t now = now_ns();
        if (now >= deadline) {
            result = EAGAIN;
            break;
        }
        pollfd polls[3] = {{fd, POLLIN, 0}, {queue ? queue->eventfd : -1, POLLIN, 0}, {gone ? -1 : client.control_fd(), POLLIN, 0}};
        std::int64_t sleep = deadline == INT64_MAX ? INT64_MAX : deadline - now;
        if (!bell.hangs()) sleep = std::min(sleep, kSliceNs);
        if (!queue && !gone) sleep = std::min(sleep, kBlindSliceNs);
        if (gone) sleep = std::min(sleep, Client::until_next_attempt_ns());
        const timespec timeout{static_cast<time_t>(sleep / 1'000'000'000), static_cast<long>(sleep % 1'000'000'000)};
        const int count = raw::ppoll(polls, 3, sleep == INT64_MAX ? nullptr : &timeout, nullptr);
        if (count < 0) {
            if (errno != EINTR) {
                result = errno;
                break;
            }
            if (timeout_ns < 0 && handlers_restart()) continue;
            result = EINTR;
            break;
        }
        if (count == 0 && gone) break;  // the caller tries to find a daemon, and comes back
        if (polls[1].revents != 0) {
            std::uint64_t signals = 0;
            (void)raw::read(queue->eventfd, &signals, sizeof signals);
            client.segment().ready(queue->index).collect([](std::uint32_t) {});
        }
        if (polls[2].revents != 0) client.check_daemon();
        if (polls[0].revents != 0) break;
    }
    return result;
}

}  // namespace culvert::preload
