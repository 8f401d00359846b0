// Signal handlers that fork and use sockets, at whatever moment of the shim's they come: POSIX calls fork, accept, close, poll and
// socket async-signal-safe. postgres 15's postmaster forks in its handlers while it waits in select().
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <thread>

#include "preload/client.h"
#include "tests/support/fake_daemon.h"

namespace culvert::test {
namespace {

constexpr int kSignals = 200;

std::atomic<int> handled{0};
std::atomic<int> listener{-1};
std::atomic<int> victim{-1};  // a socket that the handler shall close

void fork_in_handler(int) {
    const int saved = errno;
    const pid_t child = ::fork();
    if (child == 0) ::_exit(0);
    int status = 0;
    if (child > 0) ::waitpid(child, &status, 0);
    handled += child > 0 && status == 0 ? 1 : kSignals;
    errno = saved;
}

void use_sockets_in_handler(int) {
    const int saved = errno;
    const int fresh = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pollfd waiting{listener, POLLIN, 0};
    ::poll(&waiting, 1, 1);
    const int accepted = ::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK);
    if (accepted >= 0) ::close(accepted);
    ::close(fresh);
    if (const int fd = victim.exchange(-1); fd >= 0) ::close(fd);
    ++handled;
    errno = saved;
}

/// A signal comes as soon as the handler has dealt with the one before, while `work` is done again and again.
template <class Work>
void interrupt(void (*handler)(int), Work&& work) {
    struct sigaction action{}, before{};
    action.sa_handler = handler;
    ASSERT_EQ(::sigaction(SIGUSR1, &action, &before), 0);
    ::alarm(120);  // a thread that waits for itself waits for ever
    handled = 0;
    std::thread sender([worker = ::pthread_self()] {
        sigset_t all;
        sigfillset(&all);
        ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
        for (int sent = 0; sent < kSignals; ++sent) {
            while (handled < sent) ::sched_yield();
            ::pthread_kill(worker, SIGUSR1);
        }
    });
    while (handled < kSignals) work();
    sender.join();
    ::alarm(0);
    EXPECT_EQ(handled, kSignals) << "a fork has failed";
    ::sigaction(SIGUSR1, &before, nullptr);
}

class SignalTest : public testing::Test {
protected:
    void SetUp() override {
        ASSERT_NE(daemon_.attach(), nullptr);
        set_ = ::epoll_create1(EPOLL_CLOEXEC);
        const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        sockaddr_in any{};
        any.sin_family = AF_INET;
        ASSERT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&any), sizeof any), 0);
        ASSERT_EQ(::listen(fd, 16), 0);
        add(fd);
        listener = fd;
    }
    void TearDown() override {
        ::close(listener);
        ::close(set_);
        preload::Client::install(nullptr);
    }
    void add(int fd) {
        epoll_event event{};
        event.events = EPOLLIN;
        ::epoll_ctl(set_, EPOLL_CTL_ADD, fd, &event);
    }
    static void select_a_little() {
        fd_set readable;
        FD_ZERO(&readable);
        FD_SET(listener, &readable);
        timeval limit{0, 300};
        ::select(listener + 1, &readable, nullptr, nullptr, &limit);
    }

    FakeDaemon daemon_;
    int set_ = -1;
};

TEST_F(SignalTest, AHandlerMayForkWhileItsThreadWaits) {
    interrupt(fork_in_handler, [this] {
        select_a_little();
        epoll_event event;
        ::epoll_wait(set_, &event, 1, 0);
    });
}

TEST_F(SignalTest, AHandlerMayForkWhileItsThreadMakesAndClosesSockets) {
    interrupt(fork_in_handler, [this] {
        const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        add(fd);
        ::close(fd);
        const int accepted = ::accept(listener, nullptr, nullptr);
        if (accepted >= 0) ::close(accepted);
    });
}

TEST_F(SignalTest, AHandlerMayMakePollAndCloseSockets) {
    interrupt(use_sockets_in_handler, [this] {
        const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        add(fd);
        victim = fd;  // closed by us or by the handler
        epoll_event events[4];
        for (int i = 0; i < 4; ++i) ::epoll_wait(set_, events, 4, 0);
        select_a_little();
        if (const int left = victim.exchange(-1); left >= 0) ::close(left);
    });
}

}  // namespace
}  // namespace culvert::test
