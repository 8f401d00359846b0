#include "tests/preload/readiness_daemon.h"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstring>

#include "preload/epoll_set.h"
#include "preload/fd_table.h"
#include "preload/libc.h"
#include "shm/attach_protocol.h"
#include "shm/base/check.h"
#include "shm/wakeup.h"

namespace culvert::preload::test {

namespace {

shm::Geometry geometry(std::uint32_t queues) {
    shm::Geometry g;
    g.sockets = 256;
    g.app_sockets = 64;
    g.tx_blocks = g.rx_blocks = 16;
    g.queues = queues;
    g.processes = 4;
    g.accept_queues = 4;
    return g;
}

void reply(int socket, const void* data, std::size_t size, std::initializer_list<int> fds) {
    iovec part{const_cast<void*>(data), size};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
    if (fds.size() > 0) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
        cmsghdr* header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
        std::memcpy(CMSG_DATA(header), std::data(fds), fds.size() * sizeof(int));
    }
    CHECK(::sendmsg(socket, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(size));
}

}  // namespace

ReadinessDaemon::ReadinessDaemon(std::uint32_t queues, std::uint32_t spin_us) : eventfds_(queues) {
    auto segment = shm::Segment::create(geometry(queues), "readiness-test", memory_);
    CHECK(segment.has_value());
    segment_ = std::make_unique<shm::Segment>(std::move(*segment));
    for (auto& fd : eventfds_) fd = -1;
    doorbell_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    int ends[2];
    CHECK(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    daemon_end_.reset(ends[0]);
    thread_ = std::thread([this, spin_us] {
        shm::Hello hello;
        CHECK(::recv(daemon_end_.get(), &hello, sizeof hello, 0) == sizeof hello);
        shm::Welcome welcome;
        welcome.geometry = segment_->geometry();
        welcome.spin_us = spin_us;
        segment_->process(0).live = 1;
        reply(daemon_end_.get(), &welcome, sizeof welcome, {memory_.get(), doorbell_.get()});
        serve();
    });
    client_ = Client::attach_over(ends[1]);
    CHECK(client_ != nullptr);
    Client::install(client_);
}

ReadinessDaemon::~ReadinessDaemon() {
    die();
    Client::install(nullptr);
    thread_.join();
    for (auto& fd : eventfds_)
        if (fd >= 0) ::close(fd);
}

void ReadinessDaemon::die() { ::shutdown(daemon_end_.get(), SHUT_RDWR); }

void ReadinessDaemon::serve() {
    for (;;) {
        shm::RemoveQueue request;  // the longest one that the shim sends here
        iovec part{&request, sizeof request};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        if (::recvmsg(daemon_end_.get(), &message, MSG_CMSG_CLOEXEC) <= 0) return;
        int received = -1;
        if (const cmsghdr* header = CMSG_FIRSTHDR(&message)) std::memcpy(&received, CMSG_DATA(header), sizeof received);
        shm::Answer answer;
        if (request.kind == shm::MessageKind::kAddQueue) {
            std::uint32_t index = 0;
            while (index < eventfds_.size() && eventfds_[index] >= 0) ++index;
            if (index == eventfds_.size()) {
                answer.error = ENOSPC;
                ::close(received);
            } else {
                eventfds_[index] = received;
                answer.value = index;
                ++in_use_;
            }
        } else if (request.kind == shm::MessageKind::kRemoveQueue) {
            ::close(eventfds_[request.queue].exchange(-1));
            --in_use_;
            continue;
        } else {
            answer.error = EPROTO;
            if (received >= 0) ::close(received);
        }
        reply(daemon_end_.get(), &answer, sizeof answer, {});
    }
}

void ReadinessDaemon::post(std::uint32_t record) {
    for (std::uint32_t queue = 0; queue < eventfds_.size(); ++queue) {
        if (eventfds_[queue] < 0 || !segment_->watched(queue).test(record)) continue;
        segment_->ready(queue).post(record);
        if (!shm::must_wake(segment_->queue(queue).asleep)) continue;
        ++signals_;
        shm::signal_eventfd(eventfds_[queue]);
    }
}

bool ReadinessDaemon::wait_until_asleep() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (std::chrono::steady_clock::now() < deadline) {
        for (std::uint32_t queue = 0; queue < eventfds_.size(); ++queue)
            if (eventfds_[queue] >= 0 && segment_->queue(queue).asleep != 0) return true;
        std::this_thread::yield();
    }
    return false;
}

FakeSocket::FakeSocket(ReadinessDaemon& daemon, bool ours, bool kernel_too)
    : Description(Kind::kSocket, kPassesNothing), daemon_(&daemon), ours_(ours), kernel_too_(kernel_too), record_(daemon.take_record()) {
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends_) == 0);
    FdTable::instance().insert(ends_[0], *this);
}

void FakeSocket::revive(int) noexcept {
    ReadinessDaemon* const successor = successor_.load();
    if (successor == nullptr || Client::current() != &successor->client()) return;
    record_ = successor->take_record();
    daemon_ = successor;
    orphan_ = false;
    notify_became_ours(*this);
}

void FakeSocket::close() {
    if (ends_[0] < 0) return;
    if (epoll_registrations != 0 && descriptors == 1) EpollSet::forget_everywhere(*this);
    FdTable::instance().remove(ends_[0]);
    ::close(ends_[0]);
    ends_[0] = -1;
}

FakeSocket::~FakeSocket() {
    close();
    ::close(ends_[1]);
}

}  // namespace culvert::preload::test
