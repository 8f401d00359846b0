// One epoll set, several processes: nothing is lost, nothing told twice, whoever ends. (What they see is compared with the kernel in
// tests/differential, fork_cases.cc.)

#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <vector>

#include "preload/epoll_set.h"
#include "preload/shared_set.h"
#include "tests/preload/socket_fixture.h"

namespace culvert::test {
namespace {

using preload::EpollSet;
using preload::SharedSet;

class EpollFamilyTest : public SocketTest {
protected:
    EpollFamilyTest() {
        preload::start_once();
        set_ = EpollSet::create();
        preload::FdTable::instance().insert(epoll_.number(), *set_);
    }
    int control(int operation, const Fd& fd, std::uint32_t events, std::uint64_t data) {
        epoll_event event{};
        event.events = events;
        event.data.u64 = data;
        return set_->control(epoll_.number(), operation, fd.number(), *fd, &event) == 0 ? 0 : errno;
    }
    /// Data of the first event; -1: none in time.
    int wait(int timeout_ms) {
        epoll_event event{};
        const timespec timeout{timeout_ms / 1000, timeout_ms % 1000 * 1'000'000L};
        return set_->wait(epoll_.number(), &event, 1, &timeout, nullptr) == 1 ? static_cast<int>(event.data.u64) : -1;
    }
    pid_t child(const std::function<int()>& work) {
        const pid_t pid = ::fork();
        if (pid == 0) ::_exit(work());
        children_.push_back(pid);
        return pid;
    }
    static int end_of(pid_t pid) {
        int status = 0;
        ::waitpid(pid, &status, 0);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    }
    /// Memory that the children have, too.
    template <class T>
    static T& shared_by_all() {
        return *::new (::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) T{};
    }
    static bool soon(const std::function<bool()>& condition) {
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
        while (!condition()) {
            if (std::chrono::steady_clock::now() > deadline) return false;
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        return true;
    }

    Fd epoll_{::epoll_create1(EPOLL_CLOEXEC)};
    EpollSet* set_ = nullptr;
    std::vector<pid_t> children_;
};

TEST_F(EpollFamilyTest, AChildThatDoesNotUseTheSetLeavesItAsItIs) {
    Fd fd = connected();
    ASSERT_EQ(control(EPOLL_CTL_ADD, fd, EPOLLIN, 1), 0);
    const pid_t pid = child([&] {
        fd.close();
        epoll_.close();
        return 0;
    });
    EXPECT_EQ(end_of(pid), 0);
    ASSERT_TRUE(daemon.wait_process_gone(client->process_slot() + 1));
    daemon.deliver(fd->record(), "x");
    EXPECT_EQ(wait(30'000), 1);
    EXPECT_EQ(control(EPOLL_CTL_DEL, fd, 0, 0), 0);
    EXPECT_EQ(wait(0), -1);
}

TEST_F(EpollFamilyTest, TheSetOutlivesWhoMadeItsQueue) {
    // The maker is a child, which two others fork from; when it is killed, one of them takes the queue over, while both sleep.
    Fd fd = connected(O_NONBLOCK);
    struct Seen {
        std::atomic<int> waiting, told, maker_slot;
    };
    auto& seen = shared_by_all<Seen>();
    const pid_t maker = child([&] {
        if (control(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLET, 7) != 0) return 1;
        seen.maker_slot = static_cast<int>(client->process_slot());
        for (int i = 0; i < 2; ++i)
            if (::fork() == 0) {
                while (wait(0) != -1) {
                }
                ++seen.waiting;
                if (wait(30'000) == 7) ++seen.told;
                ::_exit(0);
            }
        wait(30'000);
        return 0;
    });
    ASSERT_TRUE(soon([&] { return seen.waiting == 2; }));
    ::kill(maker, SIGKILL);
    end_of(maker);
    ASSERT_TRUE(daemon.wait_process_gone(static_cast<std::uint32_t>(seen.maker_slot)));
    // Perhaps nobody watches yet; whoever takes it over looks at everything.
    daemon.deliver(fd->record(), "x");
    EXPECT_TRUE(soon([&] { return seen.told != 0; }));
}

TEST_F(EpollFamilyTest, WhatTheMakerNotesBeforeTheChildLooksIsTrue) {
    Fd stays = connected(), goes = connected(), changes = connected();
    ASSERT_EQ(control(EPOLL_CTL_ADD, stays, EPOLLOUT, 1), 0);
    ASSERT_EQ(control(EPOLL_CTL_ADD, goes, EPOLLOUT, 2), 0);
    ASSERT_EQ(control(EPOLL_CTL_ADD, changes, EPOLLOUT, 3), 0);
    auto& go = shared_by_all<std::atomic<int>>();
    const pid_t pid = child([&] {
        if (!soon([&] { return go == 1; })) return 1;
        epoll_event events[8] = {};
        const timespec none{};
        const int count = set_->wait(epoll_.number(), events, 8, &none, nullptr);
        std::uint64_t sum = 0;
        for (int i = 0; i < count; ++i) sum += events[i].data.u64;
        return count * 20 + static_cast<int>(sum);
    });
    ASSERT_EQ(control(EPOLL_CTL_DEL, goes, 0, 0), 0);
    ASSERT_EQ(control(EPOLL_CTL_MOD, changes, EPOLLOUT, 4), 0);
    Fd comes = connected();
    ASSERT_EQ(control(EPOLL_CTL_ADD, comes, EPOLLOUT, 5), 0);  // where the other one was
    go = 1;
    EXPECT_EQ(end_of(pid), 3 * 20 + 1 + 4 + 5);
    EXPECT_EQ(control(EPOLL_CTL_ADD, stays, EPOLLOUT, 9), EEXIST) << "alone again";
    EXPECT_EQ(control(EPOLL_CTL_DEL, comes, 0, 0), 0);
}

TEST_F(EpollFamilyTest, ManyWorkersLoseNothingWhileTheyAreKilled) {
    constexpr int kConnections = 8, kWorkers = 4;
    std::vector<Fd> connections;
    for (int i = 0; i < kConnections; ++i) {
        connections.push_back(connected(O_NONBLOCK));
        ASSERT_EQ(control(EPOLL_CTL_ADD, connections.back(), i % 2 == 0 ? EPOLLIN | EPOLLET : std::uint32_t{EPOLLIN}, static_cast<std::uint64_t>(i)), 0);
    }
    const auto work = [&] {
        for (;;) {
            const int i = wait(30'000);
            if (i < 0) return 1;
            std::string got;
            do {
                got = connections[static_cast<std::size_t>(i)].receive(64);
            } while (got.find("errno") == std::string::npos);
        }
    };
    std::vector<pid_t> workers;
    for (int i = 0; i < kWorkers; ++i) workers.push_back(child(work));
    std::uint32_t random = 4711;
    std::vector<std::uint64_t> delivered(kConnections, 0);
    for (int round = 0; round < 400; ++round) {
        random = random * 1664525u + 1013904223u;
        const std::size_t i = (random >> 16) % kConnections;
        daemon.deliver(connections[i]->record(), "abc");
        delivered[i] += 3;
        // A level-triggered socket is read by whoever is left; an edge that was told to the dead is lost, as on Linux.
        if (round % 80 == 79) {
            const std::size_t victim = (random >> 8) % kWorkers;
            ::kill(workers[victim], SIGKILL);
            end_of(workers[victim]);
            workers[victim] = child(work);
        }
    }
    for (std::size_t i = 0; i < kConnections; ++i) {
        daemon.deliver(connections[i]->record(), "!");  // a last edge
        ++delivered[i];
    }
    for (std::size_t i = 0; i < kConnections; ++i)
        EXPECT_TRUE(soon([&] {
            return daemon.segment().socket(connections[i]->record()).app.rx_consumed.load() == delivered[i];
        })) << "connection " << i;
    for (const pid_t worker : workers) {
        ::kill(worker, SIGKILL);
        end_of(worker);
    }
    daemon.deliver(connections[0]->record(), "z");
    EXPECT_EQ(wait(30'000), 0) << "alone again";
}

TEST_F(EpollFamilyTest, ALockOfTheDeadIsPutInOrder) {
    SharedSet* const set = SharedSet::create(128);
    ASSERT_NE(set, nullptr);
    set->begin(0, 1, 0, false);
    set->activate();
    for (std::uint32_t i = 0; i < 10; ++i) {
        const std::uint32_t index = set->add(i % 3);
        set->entry(index).fd = static_cast<int>(i);
        set->entry(index).generation = 5;
    }
    EXPECT_EQ(end_of(child([&] {
                  set->lock();
                  set->entry(4).next = 5;   // half-way through a change
                  set->entry(7).used = false;
                  return 0;
              })),
              0);
    set->lock();
    EXPECT_TRUE(set->look_at_all);
    for (std::uint32_t i = 0; i < 10; ++i) EXPECT_EQ(set->find(static_cast<int>(i), i % 3, 5), i == 7 ? shm::kNoIndex : i);
    EXPECT_EQ(set->add(9), 7u) << "free again";
    set->unlock();
    SharedSet::destroy(set);
}

TEST_F(EpollFamilyTest, TheDaemonsDeathEndsIt) {
    Fd fd = connected();
    Fd listener = listening();
    ASSERT_EQ(control(EPOLL_CTL_ADD, fd, EPOLLIN, 1), 0);
    ASSERT_EQ(control(EPOLL_CTL_ADD, listener, EPOLLIN, 2), 0);
    auto& used = shared_by_all<std::atomic<int>>();
    const pid_t pid = child([&] {
        wait(0);
        used = 1;
        return soon([&] { return used == 2; }) ? 0 : 1;
    });
    ASSERT_TRUE(soon([&] { return used == 1; }));
    EXPECT_EQ(wait(0), -1);  // a member now
    used = 2;
    EXPECT_EQ(end_of(pid), 0);  // before the end: a child of this process has the daemon's ends of all connections, too
    daemon.die();
    ASSERT_TRUE(soon([&] { return client->check_daemon(); }));
    EXPECT_EQ(wait(30'000), 1) << "reset";
    EXPECT_FALSE(listener->is_ours()) << "the kernel's, for good";
    const int client_fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in to = ipv4("127.0.0.1", port);
    ASSERT_EQ(control(EPOLL_CTL_DEL, fd, 0, 0), 0);
    ASSERT_EQ(::connect(client_fd, as_sockaddr(to), sizeof to), 0);
    EXPECT_EQ(wait(30'000), 2) << "the kernel's half goes on";
    ::close(client_fd);
}

}  // namespace
}  // namespace culvert::test
