// Connections that leave the program: the placeholder gives way to the kernel socket that stands in for it.
#include "preload/leave.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "preload/epoll_set.h"
#include "preload/poll_wait.h"
#include "tests/preload/socket_fixture.h"

namespace culvert::test {
namespace {

class LeaveTest : public SocketTest {
protected:
    LeaveTest() { preload::start_once(); }
    /// Until a word that this process writes says so; the daemon does not tell of that.
    template <class Condition>
    static bool soon(Condition&& condition) {
        const std::int64_t deadline = preload::now_ns() + 30'000'000'000;
        while (!condition())
            if (preload::now_ns() > deadline || (::sched_yield(), false)) return false;
        return true;
    }
    /// What comes out at the daemon's end.
    std::string far_end(std::uint32_t record, std::size_t size) {
        std::string bytes(size, '\0');
        const ssize_t got = ::recv(daemon.stand_in(record), bytes.data(), size, MSG_WAITALL);
        bytes.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
        return bytes;
    }
};

TEST_F(LeaveTest, TheSocketIsTheKernelsBehindAllItsDescriptors) {
    Fd listener = listening();
    const std::uint32_t record = *daemon.arrive(listener->record(), 1);
    Fd fd = accept(listener);
    Fd copy(preload::raw::fcntl(fd.number(), F_DUPFD_CLOEXEC, 0));
    preload::FdTable::instance().insert(copy.number(), *fd);
    daemon.deliver(record, "unread");
    ASSERT_TRUE(fd->leave());
    EXPECT_EQ(fd->path(), preload::Socket::Path::kKernel);
    for (const Fd* each : {&fd, &copy}) {
        EXPECT_EQ(::write(each->number(), "hello", 5), 5) << "a plain system call is enough";
        EXPECT_EQ(far_end(record, 5), "hello");
    }
    EXPECT_EQ(preload::raw::fcntl(copy.number(), F_GETFD, 0) & FD_CLOEXEC, FD_CLOEXEC);
    EXPECT_EQ(preload::raw::fcntl(fd.number(), F_GETFD, 0) & FD_CLOEXEC, 0);
    EXPECT_TRUE(daemon.wait_closed(record)) << "nobody needs the record any more";
    EXPECT_EQ(fd.send("more"), 4);
    EXPECT_EQ(far_end(record, 4), "more");
    EXPECT_TRUE(fd->leave() == false) << "it has left already";
}

TEST_F(LeaveTest, AUdpSocketThatIsPassedOnRestsUntilSomebodyWaitsForItAgain) {
    Fd fd = open(SOCK_DGRAM | SOCK_NONBLOCK);
    sockaddr_in any = ipv4("0.0.0.0", 0);
    ASSERT_EQ(fd->bind(fd.number(), as_sockaddr(any), sizeof any), 0);
    daemon.deliver_datagram(fd->record(), 53, "unread");
    const std::uint32_t record = fd->record();
    fd->pass_on(fd.number());
    EXPECT_EQ(fd->path(), preload::Socket::Path::kDatagram);
    EXPECT_TRUE(fd->is_resting());
    EXPECT_TRUE(fd->wants_daemon());
    EXPECT_EQ(fd->poll_now(false) & EPOLLIN, 0u) << "the kernel has it now";
    EXPECT_EQ(fd.send_to("x", ipv4("127.0.0.1", 9)), 1) << "by the kernel";
    EXPECT_TRUE(fd->is_resting()) << "who sends does not wait";
    EXPECT_EQ(fd.receive(1), "errno " + std::to_string(EAGAIN));
    EXPECT_FALSE(fd->is_resting());
    EXPECT_EQ(fd->record(), record);
    daemon.deliver_datagram(record, 53, "more");
    EXPECT_EQ(fd.receive(4), "more");
}

TEST_F(LeaveTest, AUdpSocketThatGoesByAMessageIsTheKernelsForAllWhoHoldIt) {
    Fd fd = open(SOCK_DGRAM | SOCK_NONBLOCK);
    sockaddr_in any = ipv4("0.0.0.0", 0);
    ASSERT_EQ(fd->bind(fd.number(), as_sockaddr(any), sizeof any), 0);
    const pid_t child = ::fork();
    if (child == 0) {
        fd->pass_on(fd.number());
        fd->give_datagrams_away(fd.number());
        ::_exit(fd->path() == preload::Socket::Path::kKernel ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    EXPECT_EQ(fd.receive(1), "errno " + std::to_string(EAGAIN));
    EXPECT_EQ(fd->path(), preload::Socket::Path::kKernel);
}

TEST_F(LeaveTest, RefusedItStaysWhatItWas) {
    daemon.refuse_stand_ins = true;
    Fd fd = connected();
    EXPECT_FALSE(fd->leave());
    EXPECT_EQ(fd->path(), preload::Socket::Path::kConnection);
    EXPECT_EQ(fd.send("still"), 5);
    EXPECT_TRUE(daemon.wait_received(fd->record(), 5));
}

TEST_F(LeaveTest, AConnectionThatIsBeingMadeIsWaitedFor) {
    Fd fd(preload::Socket::open(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    EXPECT_EQ(fd.connect("10.77.0.9", FakeDaemon::kSilentPort), -1);
    EXPECT_EQ(errno, EINPROGRESS);
    const std::uint32_t record = fd->record();
    bool left = false;
    std::thread leaver([&] { left = fd->leave(); });
    EXPECT_TRUE(soon([&] { return daemon.segment().socket(record).app.waiters.load() != 0; }));
    EXPECT_EQ(fd->path(), preload::Socket::Path::kConnection);
    daemon.establish(record);
    leaver.join();
    EXPECT_TRUE(left);
    EXPECT_EQ(::write(fd.number(), "hello", 5), 5);
    EXPECT_EQ(far_end(record, 5), "hello");
}

TEST_F(LeaveTest, ANumberThatALibraryHasClosedBehindOurBackIsLeftAlone) {
    Fd fd = connected();
    int pipe[2];
    ASSERT_EQ(::pipe(pipe), 0);
    ASSERT_EQ(::syscall(SYS_dup2, pipe[1], fd.number()), fd.number());
    EXPECT_TRUE(fd->leave());
    EXPECT_EQ(::write(fd.number(), "x", 1), 1);
    char byte = 0;
    EXPECT_EQ(::read(pipe[0], &byte, 1), 1) << "it is still the pipe";
    ::close(pipe[0]);
    ::close(pipe[1]);
}

TEST_F(LeaveTest, WhatTheProgramHasSetGoesAlong) {
    Fd fd = connected();
    fd->set_status_flags(fd.number(), O_NONBLOCK);
    const linger time{1, 7};
    ASSERT_EQ(fd->set_option(fd.number(), SOL_SOCKET, SO_LINGER, &time, sizeof time), 0);
    ASSERT_TRUE(fd->leave());
    EXPECT_NE(preload::raw::fcntl(fd.number(), F_GETFL, 0) & O_NONBLOCK, 0);
    linger found{};
    socklen_t length = sizeof found;
    ASSERT_EQ(::getsockopt(fd.number(), SOL_SOCKET, SO_LINGER, &found, &length), 0);
    EXPECT_EQ(found.l_linger, 7);
}

TEST_F(LeaveTest, AnotherProcessFollowsWithItsNextCall) {
    Fd fd = connected();
    const std::uint32_t record = fd->record();
    const int far = daemon.stand_in(record, true);
    EXPECT_TRUE(fd->has_left());
    EXPECT_EQ(fd.send("follows"), 7);
    EXPECT_FALSE(fd->is_ours());
    EXPECT_EQ(far_end(record, 7), "follows");
    ASSERT_EQ(::write(far, "answer", 6), 6);
    EXPECT_EQ(fd.receive(10), "answer");
}

TEST_F(LeaveTest, AReaderThatWaitsFollows) {
    Fd fd = connected();
    const std::uint32_t record = fd->record();
    std::string heard;
    std::thread reader([&] { heard = fd.receive(100); });
    ASSERT_TRUE(soon([&] { return daemon.segment().socket(record).app.waiters.load() != 0; }));
    const int far = daemon.stand_in(record, true);
    ASSERT_EQ(::write(far, "at last", 7), 7);
    reader.join();
    EXPECT_EQ(heard, "at last");
}

TEST_F(LeaveTest, AWriterThatWaitsFollows) {
    Fd fd = connected();
    const std::uint32_t record = fd->record();
    daemon.hold_acknowledgements(record);
    const std::string bytes(200'000, 'x');  // more than there is room for
    ssize_t sent = 0;
    std::thread writer([&] { sent = fd.send(bytes); });
    ASSERT_TRUE(soon([&] { return daemon.segment().socket(record).app.waiters.load() != 0; }));
    daemon.stand_in(record, true);
    writer.join();
    EXPECT_GT(sent, 0);
    EXPECT_LT(sent, ssize_t{200'000}) << "so much has gone the old way";
    EXPECT_EQ(fd.send("rest"), 4);
    EXPECT_EQ(far_end(record, 4), "rest");
}

TEST_F(LeaveTest, APollThatWaitsSeesTheStandIn) {
    Fd fd = connected();
    const std::uint32_t record = fd->record();
    pollfd entry{fd.number(), POLLIN, 0};
    int result = -1;
    std::thread waiter([&] { result = preload::poll_wait(&entry, 1, nullptr, nullptr); });
    ASSERT_TRUE(soon([&] { return daemon.segment().socket(record).app.watch.load() != shm::kWatchNone; }));
    const int far = daemon.stand_in(record, true);
    ASSERT_EQ(::write(far, "x", 1), 1);
    waiter.join();
    EXPECT_EQ(result, 1);
    EXPECT_EQ(entry.revents, POLLIN);
    EXPECT_FALSE(fd->is_ours());
}

TEST_F(LeaveTest, AnEpollSetThatWaitsSeesTheStandIn) {
    Fd fd = connected();
    const std::uint32_t record = fd->record();
    Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
    preload::EpollSet* const set = preload::EpollSet::create();
    preload::FdTable::instance().insert(epoll.number(), *set);
    epoll_event wanted{};
    wanted.events = EPOLLIN;
    wanted.data.u64 = 42;
    ASSERT_EQ(set->control(epoll.number(), EPOLL_CTL_ADD, fd.number(), *fd, &wanted), 0);
    epoll_event found{};
    int result = -1;
    std::thread waiter([&] { result = set->wait(epoll.number(), &found, 1, nullptr, nullptr); });
    ASSERT_TRUE(soon([&] { return daemon.segment().queue(0).asleep.load() != 0; }));
    const int far = daemon.stand_in(record, true);
    ASSERT_EQ(::write(far, "x", 1), 1);
    waiter.join();
    EXPECT_EQ(result, 1);
    EXPECT_EQ(found.data.u64, 42u);
    EXPECT_EQ(found.events, std::uint32_t{EPOLLIN});
    EXPECT_FALSE(fd->is_ours());
}

TEST_F(LeaveTest, ExecTakesWhatStaysOpen) {
    Fd stays = connected();
    Fd closes = connected();
    preload::raw::fcntl(stays.number(), F_SETFD, 0);
    preload::raw::fcntl(closes.number(), F_SETFD, FD_CLOEXEC);
    preload::leave_by_exec(false);
    EXPECT_FALSE(stays->is_ours());
    EXPECT_TRUE(closes->is_ours());
    closes->spawned = true;
    preload::leave_by_exec(true);
    EXPECT_FALSE(closes->is_ours()) << "a spawn action names it";
}

TEST_F(LeaveTest, TheChildOfAVforkChangesNothingOfOurs) {
#ifdef __SANITIZE_THREAD__
    GTEST_SKIP() << "ThreadSanitizer turns vfork into fork";
#endif
    Fd fd = connected();
    const std::uint32_t record = fd->record();
    const int free_number = preload::raw::fcntl(0, F_DUPFD_CLOEXEC, 0);
    ::close(free_number);
    volatile ssize_t written = 0;
    const pid_t child = ::vfork();
    if (child == 0) {
        // What the interposed dup2 and close do.
        ::syscall(SYS_dup2, fd.number(), free_number);
        preload::note_borrowed_copy(fd.number(), free_number);
        preload::raw::close(fd.number());
        preload::note_borrowed_close(static_cast<unsigned>(fd.number()), static_cast<unsigned>(fd.number()));
        preload::leave_by_exec(false);
        written = ::syscall(SYS_write, free_number, "child", 5);
        ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(written, 5);
    EXPECT_EQ(far_end(record, 5), "child");
    EXPECT_FALSE(preload::borrowed_copies());
    EXPECT_TRUE(fd->is_ours()) << "until we notice";
    EXPECT_EQ(fd.send("parent"), 6);
    EXPECT_EQ(far_end(record, 6), "parent");
}

TEST_F(LeaveTest, MessagesThatMakeNoSenseEndTheSearch) {
    alignas(cmsghdr) char control[CMSG_SPACE(4)] = {};
    msghdr message{};
    message.msg_control = control;
    auto* const header = reinterpret_cast<cmsghdr*>(control);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    int visits = 0;
    for (const std::size_t length : {std::size_t{0}, std::size_t{1}, sizeof control + 1, SIZE_MAX}) {
        header->cmsg_len = length;
        message.msg_controllen = sizeof control;
        preload::for_each_passed(message, [&](int) { ++visits; });
    }
    EXPECT_EQ(visits, 0);
    header->cmsg_len = CMSG_LEN(4);
    preload::for_each_passed(message, [&](int) { ++visits; });
    EXPECT_EQ(visits, 1);
}

}  // namespace
}  // namespace culvert::test
