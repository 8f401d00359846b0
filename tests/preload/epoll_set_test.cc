#include "preload/epoll_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <future>
#include <map>
#include <thread>

#include "preload/fd_table.h"
#include "preload/libc.h"
#include "tests/preload/readiness_daemon.h"

namespace culvert::preload::test {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;
using testing::UnorderedElementsAre;

/// An epoll descriptor with its set, as epoll_create1 makes it.
class TestSet {
public:
    TestSet() : fd_(libc::epoll_create1(EPOLL_CLOEXEC)) {
        FdTable::instance().insert(fd_, *EpollSet::create());
    }
    ~TestSet() { close(); }
    TestSet(const TestSet&) = delete;
    TestSet& operator=(const TestSet&) = delete;
    void close() {
        if (fd_ < 0) return;
        FdTable::instance().remove(fd_);
        libc::close(fd_);
        fd_ = -1;
    }

    int fd() const { return fd_; }
    EpollSet& set() const {
        const DescriptionRef ref = FdTable::instance().find(fd_);
        return *static_cast<EpollSet*>(ref.get());
    }
    /// epoll_ctl; returns 0 or errno. The data is the descriptor plus 1000, to see that it comes back untouched.
    int control(int operation, int fd, Description& target, std::uint32_t events) {
        epoll_event event{};
        event.events = events;
        event.data.u64 = data_of(fd);
        return set().control(fd_, operation, fd, target, &event) == 0 ? 0 : errno;
    }
    int add(FakeSocket& socket, std::uint32_t events) { return control(EPOLL_CTL_ADD, socket.fd(), socket, events); }
    int modify(FakeSocket& socket, std::uint32_t events) { return control(EPOLL_CTL_MOD, socket.fd(), socket, events); }
    int remove(FakeSocket& socket) { return control(EPOLL_CTL_DEL, socket.fd(), socket, 0); }
    void add_kernel(int fd, std::uint32_t events) {
        epoll_event event{};
        event.events = events;
        event.data.u64 = data_of(fd);
        ASSERT_EQ(libc::epoll_ctl(fd_, EPOLL_CTL_ADD, fd, &event), 0);
    }

    /// epoll_wait as the interposed one does it; what was reported as (data, events), in order.
    std::vector<std::pair<std::uint64_t, std::uint32_t>> wait(std::chrono::nanoseconds timeout, int max_events = 64) {
        std::vector<epoll_event> events(static_cast<std::size_t>(max_events));
        const timespec limit{timeout / 1s, (timeout % 1s).count()};
        std::optional<int> in_kernel;
        if (timeout < 0ns || timeout % 1ms == 0ns)
            in_kernel = EpollSet::wait_in_kernel(fd_, events.data(), max_events, timeout < 0ns ? -1 : static_cast<int>(timeout / 1ms),
                                                 nullptr);
        const int count =
            in_kernel ? *in_kernel : set().wait(fd_, events.data(), max_events, timeout < 0ns ? nullptr : &limit, nullptr);
        EXPECT_GE(count, 0) << std::strerror(errno);
        std::vector<std::pair<std::uint64_t, std::uint32_t>> reported;
        events.resize(static_cast<std::size_t>(std::max(count, 0)));
        for (const epoll_event event : events)  // packed: copies, not references
            reported.emplace_back(std::uint64_t{event.data.u64}, std::uint32_t{event.events});
        return reported;
    }

    static std::uint64_t data_of(int fd) { return static_cast<std::uint64_t>(fd) + 1000; }

private:
    int fd_;
};

std::uint64_t data(const FakeSocket& socket) { return TestSet::data_of(socket.fd()); }

/// A pipe of the kernel's own.
struct Pipe {
    Pipe() { EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0); }
    ~Pipe() {
        ::close(ends[0]);
        ::close(ends[1]);
    }
    int reader() const { return ends[0]; }
    void write() const { EXPECT_EQ(::write(ends[1], "x", 1), 1); }
    std::uint64_t data() const { return TestSet::data_of(ends[0]); }
    int ends[2];
};

constexpr auto kForEver = -1ns;

class EpollSetTest : public testing::Test {
protected:
    ReadinessDaemon daemon_;
    TestSet set_;
};

TEST_F(EpollSetTest, LevelTriggeredIsReportedAsLongAsItIsReady) {
    FakeSocket socket(daemon_, true);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    EXPECT_THAT(set_.wait(0ns), IsEmpty());
    socket.set_and_post(EPOLLIN | EPOLLOUT);
    EXPECT_THAT(set_.wait(0ns), ElementsAre(Pair(data(socket), EPOLLIN)));
    EXPECT_THAT(set_.wait(0ns), ElementsAre(Pair(data(socket), EPOLLIN)));
    socket.set(0);
    EXPECT_THAT(set_.wait(0ns), IsEmpty());
}

TEST_F(EpollSetTest, WhatIsReadyBeforeTheAddIsReported) {
    FakeSocket socket(daemon_, true);
    socket.set(EPOLLIN);
    ASSERT_EQ(set_.add(socket, EPOLLIN | EPOLLET), 0);
    EXPECT_THAT(set_.wait(kForEver), ElementsAre(Pair(data(socket), EPOLLIN)));
}

TEST(EpollSetRace, ChangedBetweenTheLookAndTheSleepIsReported) {
    // The other thread sees nobody asleep and wakes nobody; who is about to sleep finds the candidate itself. The long
    // spin, which looks at the daemon's bits alone, lies between look and sleep.
    ReadinessDaemon daemon(16, 100'000);
    TestSet set;
    FakeSocket socket(daemon, true);
    ASSERT_EQ(set.add(socket, EPOLLIN | EPOLLET), 0);
    std::thread changer([&] {
        while (socket.looks() == 0) std::this_thread::yield();
        socket.set(EPOLLIN);
        EXPECT_EQ(set.modify(socket, EPOLLIN | EPOLLET), 0);
    });
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_THAT(set.wait(30s), ElementsAre(Pair(data(socket), EPOLLIN)));
    EXPECT_LT(std::chrono::steady_clock::now() - begin, 29s) << "found by the last look, when the time was up";
    changer.join();
}

TEST_F(EpollSetTest, AnIdleSocketIsNotLookedAt) {
    FakeSocket idle(daemon_, true);
    FakeSocket busy(daemon_, true);
    ASSERT_EQ(set_.add(idle, EPOLLIN), 0);
    ASSERT_EQ(set_.add(busy, EPOLLIN), 0);
    set_.wait(0ns);
    const int looks = idle.looks();
    busy.set_and_post(EPOLLIN);
    for (int i = 0; i < 10; ++i) set_.wait(0ns);
    EXPECT_EQ(idle.looks(), looks);
}

TEST_F(EpollSetTest, EdgeTriggeredIsReportedOnceForEachPieceOfNews) {
    FakeSocket socket(daemon_, true);
    ASSERT_EQ(set_.add(socket, EPOLLIN | EPOLLOUT | EPOLLET), 0);
    set_.wait(0ns);
    socket.set_and_post(EPOLLIN | EPOLLOUT);
    EXPECT_THAT(set_.wait(0ns), ElementsAre(Pair(data(socket), EPOLLIN | EPOLLOUT)));
    EXPECT_THAT(set_.wait(0ns), IsEmpty());
    socket.set_and_post(EPOLLIN | EPOLLOUT);
    EXPECT_THAT(set_.wait(0ns), ElementsAre(Pair(data(socket), EPOLLIN | EPOLLOUT)));
}

TEST_F(EpollSetTest, OneShotIsDisarmedUntilModified) {
    FakeSocket socket(daemon_, true);
    ASSERT_EQ(set_.add(socket, EPOLLIN | EPOLLONESHOT), 0);
    socket.set_and_post(EPOLLIN);
    EXPECT_THAT(set_.wait(0ns), ElementsAre(Pair(data(socket), EPOLLIN)));
    socket.set_and_post(EPOLLIN | EPOLLHUP);
    EXPECT_THAT(set_.wait(0ns), IsEmpty());
    ASSERT_EQ(set_.modify(socket, EPOLLIN | EPOLLONESHOT), 0);
    EXPECT_THAT(set_.wait(0ns), ElementsAre(Pair(data(socket), EPOLLIN | EPOLLHUP)));
    EXPECT_THAT(set_.wait(0ns), IsEmpty());
}

TEST_F(EpollSetTest, OneShotOnAListenerIsSpentByEitherSide) {
    FakeSocket listener(daemon_, true, true);
    ASSERT_EQ(set_.add(listener, EPOLLIN | EPOLLONESHOT), 0);
    ASSERT_EQ(::write(listener.kernel_peer(), "x", 1), 1);
    EXPECT_THAT(set_.wait(0ns), ElementsAre(Pair(data(listener), EPOLLIN)));
    listener.set_and_post(EPOLLIN);
    EXPECT_THAT(set_.wait(0ns), IsEmpty());
    ASSERT_EQ(set_.modify(listener, EPOLLIN | EPOLLONESHOT), 0);
    EXPECT_THAT(set_.wait(0ns), ElementsAre(Pair(data(listener), EPOLLIN)));
    EXPECT_THAT(set_.wait(0ns), IsEmpty()) << "the kernel's half must have been disarmed too";
}

TEST_F(EpollSetTest, ErrorsAndHangUpsNeedNotBeAskedFor) {
    FakeSocket socket(daemon_, true);
    ASSERT_EQ(set_.add(socket, 0), 0);
    socket.set_and_post(EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP);
    EXPECT_THAT(set_.wait(0ns), ElementsAre(Pair(data(socket), EPOLLERR | EPOLLHUP)));
}

TEST_F(EpollSetTest, RoomToSendIsAskedForOnlyWhenWanted) {
    FakeSocket reader(daemon_, true);
    FakeSocket writer(daemon_, true);
    ASSERT_EQ(set_.add(reader, EPOLLIN), 0);
    ASSERT_EQ(set_.add(writer, EPOLLOUT), 0);
    set_.wait(0ns);
    EXPECT_EQ(reader.write_looks(), 0);
    EXPECT_GT(writer.write_looks(), 0);
}

TEST_F(EpollSetTest, KernelDescriptorsAndOursAreReportedTogether) {
    Pipe pipe;
    FakeSocket socket(daemon_, true);
    set_.add_kernel(pipe.reader(), EPOLLIN);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    pipe.write();
    EXPECT_THAT(set_.wait(kForEver), ElementsAre(Pair(pipe.data(), EPOLLIN)));
    socket.set_and_post(EPOLLIN);
    std::map<std::uint64_t, std::uint32_t> seen;
    for (int i = 0; i < 8; ++i)
        for (const auto& event : set_.wait(kForEver)) seen.insert(event);
    EXPECT_THAT(seen, UnorderedElementsAre(Pair(pipe.data(), EPOLLIN), Pair(data(socket), EPOLLIN)));
}

TEST_F(EpollSetTest, APermanentlyReadySocketDoesNotStarveTheKernel) {
    Pipe pipe;
    FakeSocket socket(daemon_, true);
    set_.add_kernel(pipe.reader(), EPOLLIN);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    socket.set_and_post(EPOLLIN);
    pipe.write();
    int pipe_seen = 0, socket_seen = 0;
    for (int i = 0; i < 40; ++i)  // one event a call, so the two compete for it
        for (const auto& event : set_.wait(kForEver, 1)) ++(event.first == pipe.data() ? pipe_seen : socket_seen);
    EXPECT_GE(pipe_seen, 8);
    EXPECT_GE(socket_seen, 20);
}

TEST_F(EpollSetTest, APermanentlyReadyPipeDoesNotStarveOurs) {
    Pipe pipe;
    FakeSocket socket(daemon_, true);
    set_.add_kernel(pipe.reader(), EPOLLIN);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    pipe.write();
    ASSERT_THAT(set_.wait(kForEver, 1), ElementsAre(Pair(pipe.data(), EPOLLIN)));
    socket.set_and_post(EPOLLIN);
    EXPECT_THAT(set_.wait(kForEver, 1), ElementsAre(Pair(data(socket), EPOLLIN)));
}

TEST_F(EpollSetTest, SocketsTakeTurnsWhenThereIsRoomForFew) {
    std::vector<std::unique_ptr<FakeSocket>> sockets;
    for (int i = 0; i < 5; ++i) {
        sockets.push_back(std::make_unique<FakeSocket>(daemon_, true));
        ASSERT_EQ(set_.add(*sockets.back(), EPOLLIN), 0);
        sockets.back()->set_and_post(EPOLLIN);
    }
    std::map<std::uint64_t, int> seen;
    for (int i = 0; i < 10; ++i)
        for (const auto& event : set_.wait(0ns, 2)) ++seen[event.first];
    ASSERT_EQ(seen.size(), 5u);
    for (const auto& [who, times] : seen) EXPECT_EQ(times, 4);
}

TEST_F(EpollSetTest, ASleeperIsWokenByTheEventfd) {
    FakeSocket socket(daemon_, true);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    auto waiter = std::async(std::launch::async, [&] { return set_.wait(kForEver); });
    ASSERT_TRUE(daemon_.wait_until_asleep());
    socket.set_and_post(EPOLLIN);
    EXPECT_THAT(waiter.get(), ElementsAre(Pair(data(socket), EPOLLIN)));
    EXPECT_EQ(daemon_.signals(), 1);
}

TEST_F(EpollSetTest, NoSignalIsNeededForWhoIsAwake) {
    FakeSocket socket(daemon_, true);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    for (int i = 0; i < 100; ++i) {
        socket.set_and_post(EPOLLIN);
        ASSERT_EQ(set_.wait(0ns).size(), 1u);
        socket.set(0);
    }
    EXPECT_EQ(daemon_.signals(), 0);
}

TEST_F(EpollSetTest, NoWakeUpIsLostBetweenLookAndSleep) {
    FakeSocket socket(daemon_, true);
    ASSERT_EQ(set_.add(socket, EPOLLIN | EPOLLET), 0);
    set_.wait(0ns);
    std::atomic<int> handled{0};
    std::thread poster([&] {
        for (int i = 0; i < 20'000; ++i) {
            socket.set_and_post(EPOLLIN);
            while (handled.load() <= i) std::this_thread::yield();
        }
    });
    while (handled.load() < 20'000) {
        const auto events = set_.wait(30s);
        if (events.empty()) {
            ADD_FAILURE() << "slept through event " << handled.load();
            handled = 20'000;
        } else {
            ++handled;
        }
    }
    poster.join();
}

TEST_F(EpollSetTest, TimeoutsAreKept) {
    FakeSocket socket(daemon_, true);
    for (const bool any_ours : {false, true}) {
        if (any_ours) {
            ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
        }
        for (const std::chrono::nanoseconds timeout : {std::chrono::nanoseconds(30ms), std::chrono::nanoseconds(1500us)}) {
            const auto begin = std::chrono::steady_clock::now();
            EXPECT_THAT(set_.wait(timeout), IsEmpty());
            const auto took = std::chrono::steady_clock::now() - begin;
            EXPECT_GE(took, timeout);
            EXPECT_LT(took, timeout + 20s);
        }
    }
}

TEST_F(EpollSetTest, ErrorsAreLinuxs) {
    FakeSocket socket(daemon_, true);
    FakeSocket kernel(daemon_, false);
    EXPECT_EQ(set_.remove(socket), ENOENT);
    EXPECT_EQ(set_.modify(socket, EPOLLIN), ENOENT);
    EXPECT_EQ(set_.remove(kernel), ENOENT);
    EXPECT_EQ(set_.add(socket, EPOLLIN), 0);
    EXPECT_EQ(set_.add(socket, EPOLLIN), EEXIST);
    EXPECT_EQ(set_.add(kernel, EPOLLIN), 0);
    EXPECT_EQ(set_.add(kernel, EPOLLIN), EEXIST);
    EXPECT_EQ(set_.control(99, socket.fd(), socket, EPOLLIN), EINVAL);
    EXPECT_EQ(set_.modify(socket, EPOLLIN | EPOLLEXCLUSIVE), EINVAL);
    EXPECT_EQ(set_.remove(socket), 0);
    EXPECT_EQ(set_.add(socket, EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT), EINVAL);
    EXPECT_EQ(set_.set().control(set_.fd(), EPOLL_CTL_ADD, socket.fd(), socket, nullptr), -1);
    EXPECT_EQ(errno, EFAULT);
    epoll_event event;
    EXPECT_EQ(set_.set().wait(set_.fd(), &event, 0, nullptr, nullptr), -1);
    EXPECT_EQ(errno, EINVAL);
    const timespec wrong{0, 1'000'000'000};
    EXPECT_EQ(set_.set().wait(set_.fd(), &event, 1, &wrong, nullptr), -1);
    EXPECT_EQ(errno, EINVAL);
}

TEST_F(EpollSetTest, ExclusiveIsNotedInTheRecord) {
    FakeSocket listener(daemon_, true, true);
    ASSERT_EQ(set_.add(listener, EPOLLIN | EPOLLEXCLUSIVE), 0);
    EXPECT_NE(daemon_.segment().socket(listener.record()).app.flags & shm::kAppExclusive, 0u);
}

TEST_F(EpollSetTest, AnExclusiveWatcherThatLeavesLetsAnotherBeTold) {
    FakeSocket listener(daemon_, true, true), other(daemon_, true, true);
    const auto told = [&](const FakeSocket& socket) {
        const bool asked = (daemon_.segment().socket(socket.record()).app.flags & shm::kAppTellAnother) != 0;
        std::vector<std::uint32_t> posted;
        daemon_.segment().dirty().collect([&](std::uint32_t record) { posted.push_back(record); });
        EXPECT_EQ(posted, asked ? std::vector{socket.record()} : std::vector<std::uint32_t>{});
        return asked;
    };
    ASSERT_EQ(set_.add(listener, EPOLLIN | EPOLLEXCLUSIVE), 0);
    ASSERT_EQ(set_.remove(listener), 0);
    EXPECT_FALSE(told(listener)) << "there is nothing to tell";
    ASSERT_EQ(set_.add(other, EPOLLIN), 0);
    other.set_and_post(EPOLLIN);
    ASSERT_EQ(set_.remove(other), 0);
    EXPECT_FALSE(told(other)) << "the others have been told, too";
    ASSERT_EQ(set_.add(listener, EPOLLIN | EPOLLEXCLUSIVE), 0);
    listener.set_and_post(EPOLLIN);  // it alone was told, and has not looked
    ASSERT_EQ(set_.remove(listener), 0);
    EXPECT_TRUE(told(listener));
}

TEST_F(EpollSetTest, RemovedWhileReadyIsNotReported) {
    FakeSocket socket(daemon_, true);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    socket.set_and_post(EPOLLIN);
    ASSERT_EQ(set_.wait(0ns).size(), 1u);
    socket.set_and_post(EPOLLIN);
    ASSERT_EQ(set_.remove(socket), 0);
    EXPECT_THAT(set_.wait(0ns), IsEmpty());
    EXPECT_FALSE(daemon_.segment().watched(0).test(socket.record()));
    EXPECT_EQ(socket.epoll_registrations, 0u);
}

TEST_F(EpollSetTest, ClosingRemoves) {
    FakeSocket socket(daemon_, true);
    FakeSocket listener(daemon_, true, true);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    ASSERT_EQ(set_.add(listener, EPOLLIN), 0);
    // The kernel's file lives on, as under the placeholders of accepted connections: closing does not unregister it.
    const int placeholder = ::dup(listener.fd());
    ASSERT_EQ(::write(listener.kernel_peer(), "x", 1), 1);
    socket.set_and_post(EPOLLIN);
    listener.set_and_post(EPOLLIN);
    socket.close();
    listener.close();
    EXPECT_THAT(set_.wait(10ms), IsEmpty());
    EXPECT_EQ(socket.epoll_registrations, 0u);
    ::close(placeholder);
}

TEST_F(EpollSetTest, DuplicatesAreEntriesOfTheirOwn) {
    FakeSocket socket(daemon_, true);
    const int copy = ::dup(socket.fd());
    FdTable::instance().insert(copy, socket);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    ASSERT_EQ(set_.control(EPOLL_CTL_ADD, copy, socket, EPOLLIN | EPOLLOUT), 0);
    socket.set_and_post(EPOLLIN | EPOLLOUT);
    EXPECT_THAT(set_.wait(0ns), UnorderedElementsAre(Pair(data(socket), EPOLLIN),
                                                     Pair(TestSet::data_of(copy), EPOLLIN | EPOLLOUT)));
    ASSERT_EQ(set_.control(EPOLL_CTL_DEL, copy, socket, 0), 0);
    EXPECT_TRUE(daemon_.segment().watched(0).test(socket.record())) << "the other entry still wants news";
    socket.set_and_post(EPOLLIN);
    EXPECT_THAT(set_.wait(0ns), ElementsAre(Pair(data(socket), EPOLLIN)));
    FdTable::instance().remove(copy);
    ::close(copy);
}

TEST_F(EpollSetTest, ModifyReArmsAndChangesData) {
    FakeSocket socket(daemon_, true);
    ASSERT_EQ(set_.add(socket, EPOLLIN | EPOLLET), 0);
    socket.set_and_post(EPOLLIN);
    ASSERT_EQ(set_.wait(0ns).size(), 1u);
    ASSERT_THAT(set_.wait(0ns), IsEmpty());
    epoll_event event{};
    event.events = EPOLLIN | EPOLLET;
    event.data.u64 = 0xdeadbeefcafe;
    ASSERT_EQ(set_.set().control(set_.fd(), EPOLL_CTL_MOD, socket.fd(), socket, &event), 0);
    EXPECT_THAT(set_.wait(0ns), ElementsAre(Pair(0xdeadbeefcafe, EPOLLIN)));
}

TEST_F(EpollSetTest, ModifyWakesASleeper) {
    FakeSocket socket(daemon_, true);
    socket.set(EPOLLOUT);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    auto waiter = std::async(std::launch::async, [&] { return set_.wait(kForEver); });
    ASSERT_TRUE(daemon_.wait_until_asleep());
    ASSERT_EQ(set_.modify(socket, EPOLLOUT), 0);
    EXPECT_THAT(waiter.get(), ElementsAre(Pair(data(socket), EPOLLOUT)));
}

TEST_F(EpollSetTest, AListenerReportsBothSidesAsOne) {
    FakeSocket listener(daemon_, true, true);
    ASSERT_EQ(set_.add(listener, EPOLLIN), 0);
    ASSERT_EQ(::write(listener.kernel_peer(), "x", 1), 1);
    EXPECT_THAT(set_.wait(kForEver), ElementsAre(Pair(data(listener), EPOLLIN)));
    listener.set_and_post(EPOLLIN);
    for (int i = 0; i < 8; ++i) EXPECT_THAT(set_.wait(kForEver), ElementsAre(Pair(data(listener), EPOLLIN)));
}

TEST_F(EpollSetTest, ASocketThatBecomesOursLeavesTheKernel) {
    FakeSocket socket(daemon_, false);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    ASSERT_EQ(::write(socket.kernel_peer(), "x", 1), 1);
    EXPECT_THAT(set_.wait(0ns), ElementsAre(Pair(data(socket), EPOLLIN)));
    socket.become_ours();
    notify_became_ours(socket);
    EXPECT_THAT(set_.wait(0ns), IsEmpty()) << "the kernel's half does not count any more";
    socket.set_and_post(EPOLLIN);
    EXPECT_THAT(set_.wait(0ns), ElementsAre(Pair(data(socket), EPOLLIN)));
    EXPECT_EQ(set_.remove(socket), 0);
}

TEST_F(EpollSetTest, ASleeperLearnsThatASocketBecameOurs) {
    Pipe pipe;
    for (int round = 0; round < 100; ++round) {  // whether it looks, is about to sleep or sleeps
        TestSet set;
        FakeSocket socket(daemon_, false);
        set.add_kernel(pipe.reader(), EPOLLIN);
        ASSERT_EQ(set.add(socket, EPOLLIN), 0);
        std::atomic<bool> started{false};
        auto waiter = std::async(std::launch::async, [&] {
            started = true;
            return set.wait(30s);
        });
        while (!started) std::this_thread::yield();
        for (int i = 0; i < round; ++i) std::this_thread::yield();
        socket.become_ours();
        notify_became_ours(socket);
        socket.set_and_post(EPOLLIN);
        ASSERT_THAT(waiter.get(), ElementsAre(Pair(data(socket), EPOLLIN))) << round;
        set.remove(socket);
        socket.close();
    }
}

/// Asleep in a set that is the kernel's alone, and the rest of its time is right when the set is no longer.
TEST_F(EpollSetTest, ATimeoutGoesOnWhenTheFirstSocketOfOursComes) {
    FakeSocket socket(daemon_, true);
    const auto begin = std::chrono::steady_clock::now();
    auto waiter = std::async(std::launch::async, [&] { return set_.wait(100ms); });
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    socket.set_and_post(0);  // news of nothing
    EXPECT_THAT(waiter.get(), IsEmpty());
    const auto took = std::chrono::steady_clock::now() - begin;
    EXPECT_GE(took, 95ms);  // less a tick of the coarse clock
    EXPECT_LT(took, 20s);
}

TEST_F(EpollSetTest, TheDeathOfTheDaemonIsNews) {
    FakeSocket socket(daemon_, true);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    auto waiter = std::async(std::launch::async, [&] { return set_.wait(30s); });
    ASSERT_TRUE(daemon_.wait_until_asleep());
    socket.set(EPOLLIN | EPOLLERR | EPOLLHUP);  // what a socket says once daemon_gone()
    daemon_.die();
    EXPECT_THAT(waiter.get(), ElementsAre(Pair(data(socket), EPOLLIN | EPOLLERR | EPOLLHUP)));
    EXPECT_TRUE(daemon_.client().daemon_gone());
}

TEST_F(EpollSetTest, AnIdleSetFindsTheDaemonThatComesAfterwards) {
    FakeSocket socket(daemon_, true, true);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    auto waiter = std::async(std::launch::async, [&] { return set_.wait(30s); });
    ASSERT_TRUE(daemon_.wait_until_asleep());
    socket.become_orphan();
    daemon_.die();
    while (!daemon_.client().daemon_gone()) std::this_thread::yield();  // the sleeper has seen it
    ReadinessDaemon next;
    socket.revived_by(next);
    while (socket.wants_daemon()) std::this_thread::yield();
    ASSERT_TRUE(next.wait_until_asleep());
    socket.set_and_post(EPOLLIN);
    EXPECT_THAT(waiter.get(), ElementsAre(Pair(data(socket), EPOLLIN)));
}

TEST_F(EpollSetTest, ADeadConnectionIsNotWatchedInTheNextSegment) {
    FakeSocket dead(daemon_, true);
    daemon_.die();
    while (!daemon_.client().check_daemon()) std::this_thread::yield();
    ReadinessDaemon next;
    FakeSocket socket(next, true);  // of the same number
    ASSERT_EQ(socket.record(), dead.record());
    ASSERT_EQ(set_.add(dead, EPOLLIN | EPOLLET), 0);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    ASSERT_EQ(set_.remove(dead), 0);
    socket.set_and_post(EPOLLIN);
    EXPECT_THAT(set_.wait(30s), ElementsAre(Pair(data(socket), EPOLLIN)));
}

TEST_F(EpollSetTest, ManyThreadsOnOneSetLoseNothing) {
    constexpr int kSockets = 16, kRounds = 300;
    std::vector<std::unique_ptr<FakeSocket>> sockets;
    std::map<std::uint64_t, FakeSocket*> by_data;
    for (int i = 0; i < kSockets; ++i) {
        sockets.push_back(std::make_unique<FakeSocket>(daemon_, true));
        by_data[data(*sockets.back())] = sockets.back().get();
        ASSERT_EQ(set_.add(*sockets.back(), EPOLLIN | EPOLLONESHOT), 0);
    }
    std::atomic<int> handled{0};
    std::vector<std::atomic<int>> seen(kSockets);
    const auto work = [&] {
        while (handled < kSockets * kRounds) {
            for (const auto& event : set_.wait(200ms, 3)) {
                FakeSocket* socket = by_data[event.first];
                socket->set(0);
                ASSERT_EQ(set_.modify(*socket, EPOLLIN | EPOLLONESHOT), 0);
                for (int i = 0; i < kSockets; ++i)
                    if (sockets[static_cast<std::size_t>(i)].get() == socket) ++seen[static_cast<std::size_t>(i)];
                ++handled;
            }
        }
    };
    std::vector<std::thread> workers;
    for (int i = 0; i < 3; ++i) workers.emplace_back(work);
    bool stuck = false;
    for (int round = 0; round < kRounds && !stuck; ++round) {
        for (auto& socket : sockets) socket->set_and_post(EPOLLIN);
        const auto deadline = std::chrono::steady_clock::now() + 30s;
        while (handled < (round + 1) * kSockets && !stuck) {
            std::this_thread::yield();
            stuck = std::chrono::steady_clock::now() > deadline;
        }
        EXPECT_FALSE(stuck) << "round " << round << ", handled " << handled;
    }
    if (stuck) handled = kSockets * kRounds;
    for (auto& worker : workers) worker.join();
    if (!stuck) {
        for (const auto& times : seen) EXPECT_EQ(times, kRounds);
    }
}

void on_signal(int) {}

TEST_F(EpollSetTest, PwaitTakesItsMaskAtomically) {
    FakeSocket socket(daemon_, true);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    struct sigaction action{}, old_action{};
    action.sa_handler = on_signal;
    ASSERT_EQ(::sigaction(SIGUSR1, &action, &old_action), 0);
    sigset_t block, old_mask;
    ::sigemptyset(&block);
    ::sigaddset(&block, SIGUSR1);
    ::pthread_sigmask(SIG_BLOCK, &block, &old_mask);
    ::pthread_kill(::pthread_self(), SIGUSR1);  // pending: only the wait's own mask lets it in
    epoll_event event;
    const timespec limit{5, 0};
    EXPECT_EQ(set_.set().wait(set_.fd(), &event, 1, &limit, &old_mask), -1);
    EXPECT_EQ(errno, EINTR);
    ::pthread_sigmask(SIG_SETMASK, &old_mask, nullptr);
    ::sigaction(SIGUSR1, &old_action, nullptr);
}

TEST_F(EpollSetTest, ASetIsReadableForWhoPollsItFromOutside) {
    FakeSocket socket(daemon_, true);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    set_.set().make_pollable(set_.fd());
    set_.wait(0ns);  // looks at the candidate that the ADD left
    pollfd outside{set_.fd(), POLLIN, 0};
    EXPECT_EQ(::poll(&outside, 1, 0), 0);
    socket.set_and_post(EPOLLIN);
    EXPECT_EQ(::poll(&outside, 1, 30000), 1);
    EXPECT_THAT(set_.wait(0ns), ElementsAre(Pair(data(socket), EPOLLIN)));
    EXPECT_EQ(::poll(&outside, 1, 0), 1) << "still ready, level-triggered";
    socket.set(0);
    EXPECT_THAT(set_.wait(0ns), IsEmpty());
    EXPECT_EQ(::poll(&outside, 1, 0), 0);
    socket.set_and_post(EPOLLIN);
    EXPECT_EQ(::poll(&outside, 1, 30000), 1) << "and again";
}

TEST_F(EpollSetTest, ClosingTheSetGivesItsQueueBack) {
    FakeSocket socket(daemon_, true);
    {
        TestSet other;
        ASSERT_EQ(other.add(socket, EPOLLIN), 0);
        EXPECT_EQ(daemon_.queues_in_use(), 1);
        EXPECT_EQ(socket.epoll_registrations, 1u);
    }
    const auto deadline = std::chrono::steady_clock::now() + 30s;
    while (daemon_.queues_in_use() != 0 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    EXPECT_EQ(daemon_.queues_in_use(), 0);
    EXPECT_EQ(socket.epoll_registrations, 0u);
}

TEST(EpollSetWithoutQueue, StillFindsItsEvents) {
    ReadinessDaemon daemon(1);
    TestSet first, second;
    FakeSocket one(daemon, true), two(daemon, true);
    ASSERT_EQ(first.add(one, EPOLLIN), 0);   // takes the only queue
    ASSERT_EQ(second.add(two, EPOLLIN), 0);  // gets none
    auto waiter = std::async(std::launch::async, [&] { return second.wait(30s); });
    two.set(EPOLLIN);
    EXPECT_THAT(waiter.get(), ElementsAre(Pair(data(two), EPOLLIN)));
}

TEST_F(EpollSetTest, AForkedChildThatClosesEverythingTakesNothingFromTheParent) {
    FakeSocket socket(daemon_, true);
    ASSERT_EQ(set_.add(socket, EPOLLIN), 0);
    set_.wait(0ns);
    const pid_t child = ::fork();
    if (child == 0) {
        socket.close();
        set_.close();
        ::_exit(0);
    }
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    EXPECT_TRUE(daemon_.segment().watched(0).test(socket.record()));
    socket.set_and_post(EPOLLIN);
    EXPECT_THAT(set_.wait(0ns), ElementsAre(Pair(data(socket), EPOLLIN)));
}

TEST(EpollEntriesTest, BehaveLikeAMap) {
    // Oracle: a std::map under a thousand random changes.
    ReadinessDaemon daemon;
    std::vector<std::unique_ptr<FakeSocket>> sockets;
    for (int i = 0; i < 40; ++i) sockets.push_back(std::make_unique<FakeSocket>(daemon, true));
    EpollEntries entries;
    ASSERT_TRUE(entries.size_record_index(256));
    std::map<std::pair<int, Description*>, int> oracle;
    std::uint32_t random = 12345;
    for (int step = 0; step < 5000; ++step) {
        random = random * 1664525u + 1013904223u;
        FakeSocket& socket = *sockets[(random >> 8) % sockets.size()];
        const int fd = static_cast<int>((random >> 16) % 3);
        EpollEntry* entry = entries.find(fd, socket);
        ASSERT_EQ(entry != nullptr, oracle.contains({fd, &socket})) << "step " << step;
        if (entry != nullptr && (random & 1) != 0) {
            entries.remove(*entry);
            oracle.erase({fd, &socket});
        } else if (entry == nullptr) {
            entry = entries.add(fd, socket);
            ASSERT_NE(entry, nullptr);
            entry->record = socket.record();
            entry->ours = true;
            entries.link_record(*entry);
            oracle[{fd, &socket}] = 1;
        } else if ((random & 2) != 0) {
            entries.nominate_record(socket.record());
            std::uint32_t expected = 0;
            for (int other = 0; other < 3; ++other) {
                EpollEntry* found = entries.find(other, socket);
                if (found != nullptr) {
                    EXPECT_TRUE(found->candidate);
                    ++expected;
                }
            }
            EXPECT_GE(entries.candidates(), expected);
            while (EpollEntry* candidate = entries.oldest()) entries.dismiss(*candidate);
            EXPECT_EQ(entries.candidates(), 0u);
        }
        ASSERT_EQ(entries.size(), oracle.size());
    }
}

}  // namespace
}  // namespace culvert::preload::test
