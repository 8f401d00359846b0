#include "preload/poll_wait.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <future>
#include <thread>

#include "preload/epoll_set.h"
#include "preload/fd_table.h"
#include "preload/libc.h"
#include "tests/preload/readiness_daemon.h"

namespace culvert::preload::test {
namespace {

using namespace std::chrono_literals;

class PollWaitTest : public testing::Test {
protected:
    PollWaitTest() { EXPECT_EQ(::pipe2(pipe_, O_CLOEXEC), 0); }
    ~PollWaitTest() override {
        ::close(pipe_[0]);
        ::close(pipe_[1]);
    }
    void write_pipe() { ASSERT_EQ(::write(pipe_[1], "x", 1), 1); }
    int poll(std::vector<pollfd>& fds, std::chrono::nanoseconds timeout, const sigset_t* mask = nullptr) {
        const timespec limit{timeout / 1s, (timeout % 1s).count()};
        return poll_wait(fds.data(), fds.size(), timeout < 0ns ? nullptr : &limit, mask);
    }

    ReadinessDaemon daemon_;
    FakeSocket socket_{daemon_, true};
    int pipe_[2];
};

TEST_F(PollWaitTest, ConcernsUsOnlyWhenOneOfOursIsInTheList) {
    FakeSocket kernel(daemon_, false);
    const pollfd theirs[] = {{pipe_[0], POLLIN, 0}, {kernel.fd(), POLLIN, 0}, {-1, POLLIN, 0}};
    EXPECT_FALSE(poll_concerns_us(theirs, 3));
    const pollfd mixed[] = {{pipe_[0], POLLIN, 0}, {socket_.fd(), POLLIN, 0}};
    EXPECT_TRUE(poll_concerns_us(mixed, 2));
}

TEST_F(PollWaitTest, ReportsBothSides) {
    std::vector<pollfd> fds{{pipe_[0], POLLIN, 7}, {socket_.fd(), POLLIN | POLLOUT, 7}, {-1, POLLIN, 7}};
    EXPECT_EQ(poll(fds, 0ns), 0);
    EXPECT_EQ(fds[0].revents | fds[1].revents | fds[2].revents, 0);
    write_pipe();
    socket_.set(EPOLLOUT | EPOLLRDHUP);
    EXPECT_EQ(poll(fds, -1ns), 2);
    EXPECT_EQ(fds[0].revents, POLLIN);
    EXPECT_EQ(fds[1].revents, POLLOUT) << "RDHUP was not asked for";
    EXPECT_EQ(fds[2].revents, 0);
}

TEST_F(PollWaitTest, RdHupAndTheLongNamesCanBeAskedFor) {
    socket_.set(EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR);
    std::vector<pollfd> fds{{socket_.fd(), POLLRDNORM | POLLRDHUP, 0}};
    EXPECT_EQ(poll(fds, -1ns), 1);
    EXPECT_EQ(fds[0].revents, POLLRDNORM | POLLRDHUP | POLLHUP | POLLERR);
}

TEST_F(PollWaitTest, AClosedDescriptorIsInvalid) {
    const int closed = ::dup(pipe_[0]);
    ::close(closed);
    std::vector<pollfd> fds{{closed, POLLIN, 0}, {socket_.fd(), POLLIN, 0}};
    EXPECT_EQ(poll(fds, -1ns), 1);
    EXPECT_EQ(fds[0].revents, POLLNVAL);
}

TEST_F(PollWaitTest, WakesFromSleepForOurs) {
    auto waiter = std::async(std::launch::async, [&] {
        std::vector<pollfd> fds{{pipe_[0], POLLIN, 0}, {socket_.fd(), POLLIN, 0}};
        const int count = poll(fds, 30s);
        return std::pair(count, fds[1].revents);
    });
    ASSERT_TRUE(daemon_.wait_until_asleep());
    socket_.set_and_post(EPOLLIN);
    EXPECT_EQ(waiter.get(), std::pair(1, short{POLLIN}));
    EXPECT_FALSE(daemon_.segment().watched(0).test(socket_.record())) << "nobody listens any more";
}

TEST_F(PollWaitTest, WakesFromSleepForTheKernels) {
    auto waiter = std::async(std::launch::async, [&] {
        std::vector<pollfd> fds{{pipe_[0], POLLIN, 0}, {socket_.fd(), POLLIN, 0}};
        return poll(fds, 30s);
    });
    ASSERT_TRUE(daemon_.wait_until_asleep());
    write_pipe();
    EXPECT_EQ(waiter.get(), 1);
}

TEST_F(PollWaitTest, AListenersKernelHalfCounts) {
    FakeSocket listener(daemon_, true, true);
    std::vector<pollfd> fds{{listener.fd(), POLLIN | POLLOUT, 0}};
    EXPECT_EQ(poll(fds, 0ns), 0) << "a socketpair is writable, but that is the kernel's half";
    ASSERT_EQ(::write(listener.kernel_peer(), "x", 1), 1);
    EXPECT_EQ(poll(fds, -1ns), 1);
    EXPECT_EQ(fds[0].revents, POLLIN);
}

TEST_F(PollWaitTest, NewsThatChangesNothingDoesNotEndTheWait) {
    auto waiter = std::async(std::launch::async, [&] {
        std::vector<pollfd> fds{{socket_.fd(), POLLIN, 0}};
        return poll(fds, 30s);
    });
    ASSERT_TRUE(daemon_.wait_until_asleep());
    socket_.set_and_post(EPOLLOUT);
    EXPECT_EQ(waiter.wait_for(20ms), std::future_status::timeout);
    socket_.set_and_post(EPOLLIN);
    EXPECT_EQ(waiter.get(), 1);
}

TEST_F(PollWaitTest, KeepsItsTimeout) {
    std::vector<pollfd> fds{{socket_.fd(), POLLIN, 0}};
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_EQ(poll(fds, 20ms), 0);
    EXPECT_GE(std::chrono::steady_clock::now() - begin, 20ms);
}

TEST_F(PollWaitTest, TheDeathOfTheDaemonIsNews) {
    auto waiter = std::async(std::launch::async, [&] {
        std::vector<pollfd> fds{{socket_.fd(), POLLIN, 0}};
        return std::pair(poll(fds, 30s), fds[0].revents);
    });
    ASSERT_TRUE(daemon_.wait_until_asleep());
    socket_.set(EPOLLHUP);
    daemon_.die();
    EXPECT_EQ(waiter.get().first, 1);
}

TEST_F(PollWaitTest, AnIdlePollFindsTheDaemonThatComesAfterwards) {
    FakeSocket socket(daemon_, true, true);
    auto waiter = std::async(std::launch::async, [&] {
        std::vector<pollfd> fds{{socket.fd(), POLLIN, 0}};
        return std::pair(poll(fds, 30s), fds[0].revents);
    });
    ASSERT_TRUE(daemon_.wait_until_asleep());
    socket.become_orphan();
    daemon_.die();
    while (!daemon_.client().daemon_gone()) std::this_thread::yield();
    ReadinessDaemon next;
    socket.revived_by(next);
    while (socket.wants_daemon()) std::this_thread::yield();
    ASSERT_TRUE(next.wait_until_asleep());
    socket.set_and_post(EPOLLIN);
    EXPECT_EQ(waiter.get(), std::pair(1, short{POLLIN}));
}

void on_signal(int) {}

TEST_F(PollWaitTest, TakesItsMaskAtomically) {
    struct sigaction action{}, old_action{};
    action.sa_handler = on_signal;
    ::sigaction(SIGUSR1, &action, &old_action);
    sigset_t block, old_mask;
    ::sigemptyset(&block);
    ::sigaddset(&block, SIGUSR1);
    ::pthread_sigmask(SIG_BLOCK, &block, &old_mask);
    ::pthread_kill(::pthread_self(), SIGUSR1);
    std::vector<pollfd> fds{{socket_.fd(), POLLIN, 0}};
    EXPECT_EQ(poll(fds, 30s, &old_mask), -1);
    EXPECT_EQ(errno, EINTR);
    ::pthread_sigmask(SIG_SETMASK, &old_mask, nullptr);
    ::sigaction(SIGUSR1, &old_action, nullptr);
}

TEST_F(PollWaitTest, WorksWithoutAQueue) {
    ReadinessDaemon small(1);
    const auto taken = small.client().add_queue();
    ASSERT_TRUE(taken.has_value());
    FakeSocket socket(small, true);
    auto waiter = std::async(std::launch::async, [&] {
        std::vector<pollfd> fds{{socket.fd(), POLLIN, 0}};
        return poll(fds, 30s);
    });
    socket.set(EPOLLIN);  // nobody is told
    EXPECT_EQ(waiter.get(), 1);
    small.client().remove_queue(*taken);
}

TEST_F(PollWaitTest, LongListsWork) {
    std::vector<std::unique_ptr<FakeSocket>> sockets;
    std::vector<pollfd> fds;
    for (int i = 0; i < 60; ++i) {
        sockets.push_back(std::make_unique<FakeSocket>(daemon_, true));
        fds.push_back({sockets.back()->fd(), POLLIN, 0});
        fds.push_back({pipe_[0], POLLIN, 0});
    }
    sockets[41]->set(EPOLLIN);
    EXPECT_EQ(poll(fds, -1ns), 1);
    EXPECT_EQ(fds[82].revents, POLLIN);
    write_pipe();
    EXPECT_EQ(poll(fds, -1ns), 61);
}

// --- select -----------------------------------------------------------------------------------------------------------

struct Sets {
    Sets() {
        FD_ZERO(&readable);
        FD_ZERO(&writable);
        FD_ZERO(&exceptional);
    }
    fd_set readable, writable, exceptional;
};

TEST_F(PollWaitTest, SelectCountsBitsOfAllSets) {
    Sets sets;
    FD_SET(socket_.fd(), &sets.readable);
    FD_SET(socket_.fd(), &sets.writable);
    FD_SET(socket_.fd(), &sets.exceptional);
    FD_SET(pipe_[0], &sets.readable);
    FD_SET(pipe_[1], &sets.writable);
    socket_.set(EPOLLIN | EPOLLOUT);
    const int highest = std::max(socket_.fd(), pipe_[1]) + 1;
    ASSERT_TRUE(select_concerns_us(highest, &sets.readable, &sets.writable, &sets.exceptional));
    EXPECT_EQ(select_wait(highest, &sets.readable, &sets.writable, &sets.exceptional, nullptr, nullptr, nullptr), 3);
    EXPECT_TRUE(FD_ISSET(socket_.fd(), &sets.readable));
    EXPECT_TRUE(FD_ISSET(socket_.fd(), &sets.writable));
    EXPECT_FALSE(FD_ISSET(socket_.fd(), &sets.exceptional));
    EXPECT_FALSE(FD_ISSET(pipe_[0], &sets.readable));
    EXPECT_TRUE(FD_ISSET(pipe_[1], &sets.writable));
}

TEST_F(PollWaitTest, SelectWritesBackTheTimeLeftAndClearsTheSets) {
    Sets sets;
    FD_SET(socket_.fd(), &sets.readable);
    const timespec limit{0, 20'000'000};
    timespec left{9, 9};
    EXPECT_EQ(select_wait(socket_.fd() + 1, &sets.readable, nullptr, nullptr, &limit, nullptr, &left), 0);
    EXPECT_FALSE(FD_ISSET(socket_.fd(), &sets.readable));
    EXPECT_EQ(left.tv_sec, 0);
    EXPECT_EQ(left.tv_nsec, 0);
    socket_.set(EPOLLIN);
    FD_SET(socket_.fd(), &sets.readable);
    const timespec longer{5, 0};
    EXPECT_EQ(select_wait(socket_.fd() + 1, &sets.readable, nullptr, nullptr, &longer, nullptr, &left), 1);
    EXPECT_EQ(left.tv_sec, 4);
}

TEST_F(PollWaitTest, SelectRefusesAClosedDescriptor) {
    const int closed = ::dup(pipe_[0]);
    ::close(closed);
    Sets sets;
    FD_SET(socket_.fd(), &sets.readable);
    FD_SET(closed, &sets.readable);
    const int highest = std::max(socket_.fd(), closed) + 1;
    EXPECT_EQ(select_wait(highest, &sets.readable, nullptr, nullptr, nullptr, nullptr, nullptr), -1);
    EXPECT_EQ(errno, EBADF);
    EXPECT_TRUE(FD_ISSET(socket_.fd(), &sets.readable)) << "on an error the sets stay as they are";
}

TEST_F(PollWaitTest, SelectForWritingIsNotEndedByAHangUp) {
    Sets sets;
    FD_SET(socket_.fd(), &sets.writable);
    socket_.set(EPOLLHUP);
    const timespec limit{0, 10'000'000};
    EXPECT_EQ(select_wait(socket_.fd() + 1, nullptr, &sets.writable, nullptr, &limit, nullptr, nullptr), 0);
    FD_SET(socket_.fd(), &sets.readable);
    EXPECT_EQ(select_wait(socket_.fd() + 1, &sets.readable, nullptr, nullptr, &limit, nullptr, nullptr), 1);
}

TEST_F(PollWaitTest, APolledSetIsMadePollable) {
    const int epoll_fd = libc::epoll_create1(EPOLL_CLOEXEC);
    EpollSet* set = EpollSet::create();
    FdTable::instance().insert(epoll_fd, *set);
    epoll_event event{};
    event.events = EPOLLIN | EPOLLET;
    ASSERT_EQ(set->control(epoll_fd, EPOLL_CTL_ADD, socket_.fd(), socket_, &event), 0);
    pollfd outside{epoll_fd, POLLIN, 0};
    EXPECT_FALSE(poll_concerns_us(&outside, 1)) << "the kernel answers for it from now on";
    const timespec now{};
    EXPECT_EQ(set->wait(epoll_fd, &event, 1, &now, nullptr), 0);
    EXPECT_EQ(::poll(&outside, 1, 0), 0);
    socket_.set_and_post(EPOLLIN);
    EXPECT_EQ(::poll(&outside, 1, 30000), 1);
    EXPECT_EQ(set->wait(epoll_fd, &event, 1, &now, nullptr), 1);
    FdTable::instance().remove(epoll_fd);
    ::close(epoll_fd);
}

}  // namespace
}  // namespace culvert::preload::test
