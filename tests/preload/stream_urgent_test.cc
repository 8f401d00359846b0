// Urgent data as a program sees it. Every expectation is what Linux does (net/ipv4/tcp.c, tcp_input.c; RFC 6093 4).
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include "tests/preload/socket_fixture.h"

namespace culvert::test {
namespace {

class StreamUrgentTest : public SocketTest {
protected:
    int asked(const Fd& fd, unsigned long request) {
        int answer = -1;
        EXPECT_EQ(fd->ioctl(fd.number(), request, &answer), 0);
        return answer;
    }
    bool at_mark(const Fd& fd) { return asked(fd, SIOCATMARK) == 1; }
    std::uint32_t events(const Fd& fd) { return fd->poll_now(false) & (EPOLLIN | EPOLLPRI); }
    /// "ab!cd" has come, and ! is urgent.
    Fd with_urgent() {
        Fd fd = connected();
        daemon.announce_urgent(fd->record(), 2, '!');
        daemon.deliver(fd->record(), "ab!cd");
        return fd;
    }
    static constexpr int kNow = MSG_DONTWAIT;
};

TEST_F(StreamUrgentTest, ReadingEndsAtTheMarkAndGoesOnBehindIt) {
    const Fd fd = with_urgent();
    EXPECT_FALSE(at_mark(fd));
    EXPECT_EQ(asked(fd, FIONREAD), 2);
    EXPECT_EQ(fd.receive(10), "ab");
    EXPECT_TRUE(at_mark(fd));
    EXPECT_EQ(fd.receive(10), "cd");
    EXPECT_FALSE(at_mark(fd));
    EXPECT_EQ(fd.receive(1, MSG_OOB), error_text(EINVAL)) << "it was passed";
    EXPECT_TRUE(daemon.wait_consumed(fd->record(), 5)) << "the daemon is told that the mark is behind";
}

TEST_F(StreamUrgentTest, TheOctetIsTakenOnceOutOfBand) {
    const Fd fd = with_urgent();
    EXPECT_EQ(events(fd), EPOLLIN | EPOLLPRI);
    EXPECT_EQ(fd.receive(1, MSG_OOB | MSG_PEEK), "!");
    EXPECT_EQ(fd.receive(5, MSG_OOB), "!");
    EXPECT_EQ(events(fd), std::uint32_t{EPOLLIN});
    EXPECT_EQ(fd.receive(1, MSG_OOB), error_text(EINVAL));
    EXPECT_EQ(fd.receive(10), "ab");
    EXPECT_TRUE(at_mark(fd)) << "taken or not";
    EXPECT_EQ(fd.receive(10), "cd");
}

TEST_F(StreamUrgentTest, InLineItIsAByteAsAllOthers) {
    const Fd fd = with_urgent();
    EXPECT_EQ(fd.set_int(SOL_SOCKET, SO_OOBINLINE, 1), 0);
    EXPECT_EQ(fd.get_int(SOL_SOCKET, SO_OOBINLINE), 1);
    EXPECT_EQ(fd.receive(1, MSG_OOB), error_text(EINVAL));
    EXPECT_EQ(asked(fd, FIONREAD), 5);
    EXPECT_EQ(fd.receive(10), "ab");
    EXPECT_TRUE(at_mark(fd));
    EXPECT_EQ(fd.receive(10), "!cd");
    EXPECT_FALSE(at_mark(fd));
}

TEST_F(StreamUrgentTest, AnAcceptedConnectionInheritsHowItIsRead) {
    const Fd listener = listening();
    EXPECT_EQ(listener.set_int(SOL_SOCKET, SO_OOBINLINE, 1), 0);
    const auto record = daemon.arrive(listener->record(), 5000);
    ASSERT_TRUE(record);
    const Fd fd = accept(listener);
    EXPECT_EQ(fd.get_int(SOL_SOCKET, SO_OOBINLINE), 1);
    daemon.announce_urgent(*record, 0, '!');
    daemon.deliver(*record, "!x");
    EXPECT_EQ(fd.receive(10), "!x");
}

TEST_F(StreamUrgentTest, AnnouncedAndNotHereYet) {
    const Fd fd = connected();
    EXPECT_EQ(fd.receive(1, MSG_OOB), error_text(EINVAL));
    daemon.announce_urgent(fd->record(), 3);
    EXPECT_EQ(fd.receive(1, MSG_OOB), error_text(EAGAIN)) << "never waits, not even on a blocking socket";
    EXPECT_EQ(events(fd), 0u);
    daemon.deliver(fd->record(), "abc");
    EXPECT_EQ(fd.receive(10), "abc");
    EXPECT_TRUE(at_mark(fd));
    EXPECT_EQ(fd.receive(10, kNow), error_text(EAGAIN));
    daemon.announce_urgent(fd->record(), 3, '!');
    daemon.deliver(fd->record(), "!");
    EXPECT_EQ(events(fd), std::uint32_t{EPOLLPRI}) << "alone it is not something to read";
    EXPECT_EQ(fd.receive(10, kNow | MSG_PEEK), error_text(EAGAIN));
    EXPECT_EQ(fd.receive(1, MSG_OOB), "!");
    EXPECT_EQ(fd.receive(10, kNow), error_text(EAGAIN));
    EXPECT_EQ(asked(fd, FIONREAD), 0);
}

TEST_F(StreamUrgentTest, ABlockedReaderPassesALoneOctetAndWaitsForMore) {
    const Fd fd = connected();
    daemon.announce_urgent(fd->record(), 0, '!');
    daemon.deliver(fd->record(), "!");
    std::thread later([&] {
        EXPECT_TRUE(daemon.wait_consumed(fd->record(), 1));
        daemon.deliver(fd->record(), "x");
    });
    EXPECT_EQ(fd.receive(10), "x");
    later.join();
}

TEST_F(StreamUrgentTest, PeekingLeavesTheMarkWhereItIs) {
    const Fd fd = with_urgent();
    EXPECT_EQ(fd.receive(10, MSG_PEEK), "ab");
    EXPECT_EQ(fd.receive(10), "ab");
    EXPECT_EQ(fd.receive(10, MSG_PEEK), "cd");
    EXPECT_TRUE(at_mark(fd));
    EXPECT_EQ(fd.receive(1, MSG_OOB), "!");
}

TEST_F(StreamUrgentTest, WaitingForAllEndsAtTheMarkToo) {
    const Fd fd = connected();
    daemon.announce_urgent(fd->record(), 2, '!');
    daemon.deliver(fd->record(), "ab!cd");
    EXPECT_EQ(fd.receive(4, MSG_WAITALL), "ab");
    EXPECT_EQ(fd.receive(2, MSG_WAITALL), "cd");
}

TEST_F(StreamUrgentTest, WhatWasTakenOutOfBandIsNotReadAgainThoughAnotherCame) {
    const Fd fd = with_urgent();
    EXPECT_EQ(fd.receive(10), "ab");
    EXPECT_EQ(fd.receive(1, MSG_OOB), "!");
    daemon.announce_urgent(fd->record(), 5, '?');
    daemon.deliver(fd->record(), "?ef");
    EXPECT_EQ(fd.receive(10), "cd");
    EXPECT_TRUE(at_mark(fd));
    EXPECT_EQ(fd.receive(10), "ef");
}

TEST_F(StreamUrgentTest, OneMarkRightBehindTheOther) {
    const Fd fd = connected();
    daemon.announce_urgent(fd->record(), 0, '!');
    daemon.deliver(fd->record(), "!");
    EXPECT_EQ(fd.receive(1, MSG_OOB), "!");
    daemon.announce_urgent(fd->record(), 1, '?');
    daemon.deliver(fd->record(), "?");
    EXPECT_EQ(events(fd), std::uint32_t{EPOLLPRI});
    EXPECT_EQ(fd.receive(1, MSG_OOB), "?");
    daemon.deliver(fd->record(), "x");
    EXPECT_EQ(fd.receive(10), "x");
}

TEST_F(StreamUrgentTest, RecvmsgSaysThatItIsOutOfBand) {
    const Fd fd = with_urgent();
    char octet = 0;
    iovec part{&octet, 1};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    EXPECT_EQ(fd->receive(fd.number(), message, MSG_OOB | MSG_PEEK), 1);
    EXPECT_EQ(message.msg_flags, MSG_OOB);
    part.iov_len = 0;
    EXPECT_EQ(fd->receive(fd.number(), message, MSG_OOB), 0);
    EXPECT_EQ(message.msg_flags, MSG_OOB | MSG_TRUNC);
}

TEST_F(StreamUrgentTest, TheEndComesWithoutIt) {
    const Fd fd = connected();
    daemon.announce_urgent(fd->record(), 3);
    daemon.peer_closes(fd->record());
    EXPECT_EQ(fd.receive(1, MSG_OOB), "");
}

TEST_F(StreamUrgentTest, TheLastByteOfACallIsUrgent) {
    const Fd fd = connected();
    EXPECT_EQ(fd.send("abc"), 3);
    EXPECT_EQ(fd.send("de!", MSG_OOB), 3);
    EXPECT_EQ(fd.send("fg"), 2);
    ASSERT_TRUE(daemon.wait_received(fd->record(), 8));
    EXPECT_EQ(daemon.urgent_end(fd->record()), 6u);
    EXPECT_EQ(fd.send(std::string(200'000, 'x'), MSG_OOB), 200'000) << "more blocks than are handed over at once";
    ASSERT_TRUE(daemon.wait_received(fd->record(), 200'008));
    EXPECT_EQ(daemon.urgent_end(fd->record()), 200'008u);
}

}  // namespace
}  // namespace culvert::test
