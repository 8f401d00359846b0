// The interposed functions as a program calls them. They are linked into this test, so libc's names mean ours here, and a
// fake daemon plays the other side. No LD_PRELOAD.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>

#include "preload/client.h"
#include "preload/fd_table.h"
#include "preload/socket.h"
#include "tests/support/fake_daemon.h"

extern "C" ssize_t __read_chk(int, void*, std::size_t, std::size_t);
extern "C" ssize_t __recv_chk(int, void*, std::size_t, std::size_t, int);
extern "C" int __poll_chk(pollfd*, nfds_t, int, std::size_t);

namespace culvert::test {
namespace {

class InterposeTest : public testing::Test {
protected:
    InterposeTest() : client_(daemon_.attach()) {}
    ~InterposeTest() override { preload::Client::install(nullptr); }
    void SetUp() override { ASSERT_NE(client_, nullptr); }

    static bool ours(int fd) {
        const preload::DescriptionRef ref = preload::FdTable::instance().find(fd);
        return ref && ref->is_ours();
    }
    static std::uint32_t record(int fd) { return preload::FdTable::instance().find(fd)->record(); }
    /// A connection whose peer sends everything back.
    int connected() {
        const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in to{};
        to.sin_family = AF_INET;
        to.sin_port = htons(80);
        ::inet_pton(AF_INET, "10.77.0.9", &to.sin_addr);
        EXPECT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0) << std::strerror(errno);
        EXPECT_TRUE(ours(fd));
        daemon_.echo(record(fd));
        return fd;
    }
    int listening(std::uint32_t* listener_record) {
        const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in any{};
        any.sin_family = AF_INET;
        EXPECT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&any), sizeof any), 0);
        EXPECT_EQ(::listen(fd, 16), 0);
        EXPECT_TRUE(ours(fd));
        *listener_record = record(fd);
        return fd;
    }
    /// Reads until `size` bytes have come.
    static std::string read_all(int fd, std::size_t size) {
        std::string all;
        char buffer[4096];
        while (all.size() < size) {
            const ssize_t got = ::read(fd, buffer, std::min(sizeof buffer, size - all.size()));
            if (got <= 0) break;
            all.append(buffer, static_cast<std::size_t>(got));
        }
        return all;
    }

    FakeDaemon daemon_;
    preload::Client* client_;
};

TEST_F(InterposeTest, EveryWayToWriteAndRead) {
    const int fd = connected();
    char buffer[64];
    iovec parts[2] = {{const_cast<char*>("ab"), 2}, {const_cast<char*>("cd"), 2}};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    mmsghdr many[2] = {{message, 0}, {message, 0}};
    EXPECT_EQ(::write(fd, "1234", 4), 4);
    EXPECT_EQ(::send(fd, "5678", 4, MSG_NOSIGNAL), 4);
    EXPECT_EQ(::sendto(fd, "9", 1, 0, nullptr, 0), 1);
    EXPECT_EQ(::writev(fd, parts, 2), 4);
    EXPECT_EQ(::pwritev2(fd, parts, 2, -1, 0), 4);
    EXPECT_EQ(::sendmsg(fd, &message, 0), 4);
    EXPECT_EQ(::sendmmsg(fd, many, 2, 0), 2);
    EXPECT_EQ(many[0].msg_len + many[1].msg_len, 8u);
    EXPECT_EQ(::syscall(SYS_write, fd, "!", 1L), 1);
    EXPECT_EQ(::dprintf(fd, "%d", 42), 2);
    const std::string sent = "123456789abcdabcdabcdabcdabcd!42";

    EXPECT_EQ(::recv(fd, buffer, 32, MSG_WAITALL | MSG_PEEK) > 0, true);
    std::string back;
    const auto add = [&](ssize_t got) {
        ASSERT_GT(got, 0) << std::strerror(errno);
        back.append(buffer, static_cast<std::size_t>(got));
    };
    add(::read(fd, buffer, 3));
    add(::recv(fd, buffer, 3, 0));
    add(::recvfrom(fd, buffer, 3, 0, nullptr, nullptr));
    iovec into{buffer, 3};
    add(::readv(fd, &into, 1));
    add(::preadv2(fd, &into, 1, -1, 0));
    msghdr receive{};
    receive.msg_iov = &into;
    receive.msg_iovlen = 1;
    add(::recvmsg(fd, &receive, 0));
    mmsghdr one{receive, 0};
    ASSERT_EQ(::recvmmsg(fd, &one, 1, 0, nullptr), 1);
    back.append(buffer, one.msg_len);
    add(__read_chk(fd, buffer, 3, sizeof buffer));
    add(__recv_chk(fd, buffer, 3, sizeof buffer, 0));
    add(::syscall(SYS_read, fd, buffer, 3L));
    back += read_all(fd, sent.size() - back.size());
    EXPECT_EQ(back, sent);
    ::close(fd);
}

TEST_F(InterposeTest, WhatTheKernelRefusesOnASocketIsRefused) {
    const int fd = connected();
    char buffer[4];
    EXPECT_EQ(::pread(fd, buffer, 4, 0), -1);
    EXPECT_EQ(errno, ESPIPE);
    EXPECT_EQ(::lseek(fd, 0, SEEK_CUR), -1);
    EXPECT_EQ(errno, ESPIPE);
    iovec bad{buffer, static_cast<std::size_t>(-1)};
    EXPECT_EQ(::readv(fd, &bad, 1), -1);
    EXPECT_EQ(errno, EINVAL);
    struct stat status{};
    EXPECT_EQ(::fstat(fd, &status), 0);
    EXPECT_TRUE(S_ISSOCK(status.st_mode));
    EXPECT_EQ(::isfdtype(fd, S_IFSOCK), 1);
    EXPECT_EQ(::sockatmark(fd), 0);
    EXPECT_DEATH(__read_chk(fd, buffer, 5, 4), "");
    ::close(fd);
}

TEST_F(InterposeTest, DuplicatesShareOneConnection) {
    const int fd = connected();
    const std::uint32_t number = record(fd);
    const int copies[] = {::dup(fd), ::fcntl(fd, F_DUPFD, 50), ::fcntl(fd, F_DUPFD_CLOEXEC, 60), ::dup2(fd, 70),
                          ::dup3(fd, 71, O_CLOEXEC)};
    EXPECT_EQ(copies[3], 70);
    EXPECT_EQ(copies[4], 71);
    ::close(fd);
    for (const int copy : copies) {
        ASSERT_TRUE(ours(copy));
        EXPECT_EQ(record(copy), number);
        EXPECT_EQ(::write(copy, "x", 1), 1);
        EXPECT_EQ(read_all(copy, 1), "x");
    }
    EXPECT_NE(::fcntl(copies[4], F_GETFD) & FD_CLOEXEC, 0);
    EXPECT_FALSE(daemon_.closed(number));
    for (const int copy : copies) ::close(copy);
    EXPECT_TRUE(daemon_.wait_closed(number));
}

TEST_F(InterposeTest, Dup2ClosesWhatWasThereButOnlyIfItSucceeds) {
    const int fd = connected();
    const std::uint32_t number = record(fd);
    const int closed = ::dup(0);
    ::close(closed);
    EXPECT_EQ(::dup2(closed, fd), -1);
    EXPECT_EQ(errno, EBADF);
    EXPECT_TRUE(ours(fd));
    EXPECT_EQ(::dup2(fd, fd), fd);
    EXPECT_TRUE(ours(fd));
    const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    EXPECT_EQ(::dup2(null, fd), fd);
    EXPECT_FALSE(preload::FdTable::instance().contains(fd));
    EXPECT_TRUE(daemon_.wait_closed(number));
    EXPECT_EQ(::write(fd, "x", 1), 1) << "now /dev/null";
    ::close(fd);
    ::close(null);
}

TEST_F(InterposeTest, TheShimsOwnDescriptorsCannotBeClosed) {
    const int control = client_->control_fd();
    EXPECT_EQ(::close(control), -1);
    EXPECT_EQ(errno, EBADF);
    EXPECT_EQ(::dup2(0, control), -1);
    EXPECT_EQ(errno, EBUSY);
    EXPECT_EQ(::fcntl(control, F_GETFD), -1);
    EXPECT_EQ(errno, EBADF);
    int beside = control + 1;
    while (preload::FdTable::instance().is_protected(beside)) ++beside;
    ASSERT_EQ(::dup2(0, beside), beside);
    const int fd = ::fcntl(connected(), F_DUPFD, beside + 1);
    EXPECT_EQ(::close_range(static_cast<unsigned>(control), static_cast<unsigned>(fd), 0), 0);
    EXPECT_FALSE(preload::FdTable::instance().contains(fd));
    pollfd entry{control, 0, 0};
    EXPECT_EQ(::poll(&entry, 1, 0), 0) << "not POLLNVAL: it is open";
    entry.fd = beside;
    EXPECT_EQ(::poll(&entry, 1, 0), 1);
    EXPECT_EQ(entry.revents, POLLNVAL);
    EXPECT_FALSE(client_->check_daemon());
}

TEST_F(InterposeTest, StatusFlagsAreTheSockets) {
    const int fd = connected();
    EXPECT_EQ(::fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
    EXPECT_EQ(::fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK), 0);
    EXPECT_NE(::fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
    char byte;
    EXPECT_EQ(::read(fd, &byte, 1), -1);
    EXPECT_EQ(errno, EAGAIN);
    int off = 0;
    EXPECT_EQ(::ioctl(fd, FIONBIO, &off), 0);
    EXPECT_EQ(::fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
    ::close(fd);
}

TEST_F(InterposeTest, StdioOnASocket) {
    const int fd = connected();
    FILE* stream = ::fdopen(fd, "r+");
    ASSERT_NE(stream, nullptr);
    EXPECT_EQ(::fileno(stream), fd);
    EXPECT_GT(std::fprintf(stream, "hello %d\n", 7), 0);
    EXPECT_EQ(std::fflush(stream), 0);
    char line[32] = {};
    EXPECT_NE(std::fgets(line, sizeof line, stream), nullptr);
    EXPECT_STREQ(line, "hello 7\n");
    const std::uint32_t number = record(fd);
    EXPECT_EQ(std::fclose(stream), 0);
    EXPECT_TRUE(daemon_.wait_closed(number));
    EXPECT_EQ(::fcntl(fd, F_GETFD), -1);
}

TEST_F(InterposeTest, SpliceMovesBytesBothWays) {
    const int fd = connected();
    int pipe[2];
    ASSERT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
    ASSERT_EQ(::write(pipe[1], "through the pipe", 16), 16);
    EXPECT_EQ(::splice(pipe[0], nullptr, fd, nullptr, 100, 0), 16);
    char byte;
    ASSERT_EQ(::recv(fd, &byte, 1, MSG_PEEK), 1);  // until it has come back
    std::string back;
    while (back.size() < 16) {
        const ssize_t moved = ::splice(fd, nullptr, pipe[1], nullptr, 10, 0);
        ASSERT_GT(moved, 0);
        ASSERT_LE(moved, 10);
        back += read_all(pipe[0], static_cast<std::size_t>(moved));
    }
    EXPECT_EQ(back, "through the pipe");
    EXPECT_EQ(::splice(fd, nullptr, pipe[1], nullptr, 10, SPLICE_F_NONBLOCK), -1);
    EXPECT_EQ(errno, EAGAIN);
    EXPECT_EQ(::splice(pipe[0], nullptr, fd, nullptr, 10, SPLICE_F_NONBLOCK), -1);
    EXPECT_EQ(errno, EAGAIN);
    off64_t offset = 0;
    EXPECT_EQ(::splice(fd, &offset, pipe[1], nullptr, 10, 0), -1);
    EXPECT_EQ(errno, EINVAL);
    const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    EXPECT_EQ(::splice(fd, nullptr, null, nullptr, 10, 0), -1);
    EXPECT_EQ(errno, EINVAL);
    for (const int end : {pipe[0], pipe[1], null, fd}) ::close(end);
}

TEST_F(InterposeTest, SpliceTakesNoMoreThanThePipeHolds) {
    const int fd = connected();
    int pipe[2];
    ASSERT_EQ(::pipe2(pipe, O_CLOEXEC | O_NONBLOCK), 0);
    const std::string filler(65536, 'f');
    ASSERT_EQ(::write(pipe[1], filler.data(), filler.size()), 65536);
    ASSERT_EQ(::write(fd, "kept", 4), 4);
    char bytes[4];
    ASSERT_EQ(::recv(fd, bytes, 4, MSG_PEEK | MSG_WAITALL) > 0, true);
    EXPECT_EQ(::splice(fd, nullptr, pipe[1], nullptr, 4, 0), -1);
    EXPECT_EQ(errno, EAGAIN);
    EXPECT_EQ(read_all(fd, 4), "kept");
    for (const int end : {pipe[0], pipe[1], fd}) ::close(end);
}

TEST_F(InterposeTest, EpollServesAListenerAndItsConnections) {
    std::uint32_t listener_record = 0;
    const int listener = listening(&listener_record);
    const int epoll = ::epoll_create1(EPOLL_CLOEXEC);
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = listener;
    ASSERT_EQ(::epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event), 0);
    epoll_event got[8];
    EXPECT_EQ(::epoll_wait(epoll, got, 8, 0), 0);
    const auto connection = daemon_.arrive(listener_record, 4000);
    ASSERT_TRUE(connection.has_value());
    ASSERT_EQ(::epoll_wait(epoll, got, 8, 30000), 1);
    EXPECT_EQ(got[0].data.fd, listener);
    sockaddr_in peer{};
    socklen_t length = sizeof peer;
    const int fd = ::accept4(listener, reinterpret_cast<sockaddr*>(&peer), &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    ASSERT_GE(fd, 0);
    EXPECT_EQ(ntohs(peer.sin_port), 4000);
    event.events = EPOLLIN | EPOLLRDHUP | EPOLLET;
    event.data.fd = fd;
    ASSERT_EQ(::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
    EXPECT_EQ(::epoll_wait(epoll, got, 8, 0), 0);
    daemon_.deliver(*connection, "request");
    ASSERT_EQ(::epoll_pwait(epoll, got, 8, 5000, nullptr), 1);
    EXPECT_EQ(got[0].data.fd, fd);
    EXPECT_EQ(got[0].events, EPOLLIN);
    EXPECT_EQ(read_all(fd, 7), "request");
    daemon_.peer_closes(*connection);
    const timespec limit{5, 0};
    ASSERT_EQ(::epoll_pwait2(epoll, got, 8, &limit, nullptr), 1);
    EXPECT_EQ(got[0].events, EPOLLIN | EPOLLRDHUP);
    ::close(fd);
    EXPECT_EQ(::epoll_ctl(epoll, EPOLL_CTL_DEL, fd, nullptr), -1);
    EXPECT_EQ(errno, EBADF);
    EXPECT_EQ(::epoll_ctl(epoll, EPOLL_CTL_DEL, listener, nullptr), 0);
    EXPECT_EQ(::epoll_ctl(epoll, EPOLL_CTL_DEL, listener, nullptr), -1);
    EXPECT_EQ(errno, ENOENT);
    ::close(listener);
    ::close(epoll);
}

TEST_F(InterposeTest, ASocketAddedBeforeItConnectsIsFound) {
    const int epoll = ::epoll_create(1);
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    epoll_event event{};
    event.events = EPOLLIN | EPOLLOUT | EPOLLET;
    event.data.u64 = 77;
    ASSERT_EQ(::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
    epoll_event got;
    ::epoll_wait(epoll, &got, 1, 0);  // the kernel's HUP of an unconnected socket
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(80);
    ::inet_pton(AF_INET, "10.77.0.9", &to.sin_addr);
    const int result = ::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to);
    ASSERT_TRUE(result == 0 || errno == EINPROGRESS) << std::strerror(errno);
    ASSERT_TRUE(ours(fd));
    ASSERT_EQ(::epoll_wait(epoll, &got, 1, 30000), 1);
    EXPECT_EQ(got.data.u64, 77u);
    EXPECT_NE(got.events & EPOLLOUT, 0u);
    ::close(fd);
    ::close(epoll);
}

TEST_F(InterposeTest, AnEdgeTriggeredWriterHearsOfRoomAfterEagain) {
    const int fd = connected();
    ASSERT_EQ(::fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    const int epoll = ::epoll_create1(0);
    epoll_event event{};
    event.events = EPOLLOUT | EPOLLET;
    ASSERT_EQ(::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
    ASSERT_EQ(::epoll_wait(epoll, &event, 1, 30000), 1);
    daemon_.hold_acknowledgements(record(fd));
    const std::string chunk(4096, 'x');
    std::size_t sent = 0;
    ssize_t now = 0;
    while ((now = ::send(fd, chunk.data(), chunk.size(), MSG_NOSIGNAL)) > 0) sent += static_cast<std::size_t>(now);
    ASSERT_EQ(errno, EAGAIN);
    ASSERT_GT(sent, 0u);
    while (::epoll_wait(epoll, &event, 1, 0) == 1) {  // news from before the buffer was full
    }
    daemon_.resume(record(fd));
    ASSERT_EQ(::epoll_wait(epoll, &event, 1, 30000), 1) << "nobody told that there is room";
    EXPECT_NE(event.events & EPOLLOUT, 0u);
    ::close(fd);
    ::close(epoll);
}

TEST_F(InterposeTest, PollAndSelectSeeBothKinds) {
    const int fd = connected();
    int pipe[2];
    ASSERT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
    pollfd fds[] = {{fd, POLLIN, 0}, {pipe[0], POLLIN, 0}};
    EXPECT_EQ(::poll(fds, 2, 0), 0);
    ASSERT_EQ(::write(fd, "x", 1), 1);
    EXPECT_EQ(::poll(fds, 2, 30000), 1);
    EXPECT_EQ(fds[0].revents, POLLIN);
    EXPECT_EQ(__poll_chk(fds, 2, 0, sizeof fds), 1);
    ASSERT_EQ(::write(pipe[1], "x", 1), 1);
    const timespec limit{5, 0};
    EXPECT_EQ(::ppoll(fds, 2, &limit, nullptr), 2);
    fd_set readable;
    FD_ZERO(&readable);
    FD_SET(fd, &readable);
    FD_SET(pipe[0], &readable);
    timeval patience{5, 0};
    EXPECT_EQ(::select(std::max(fd, pipe[0]) + 1, &readable, nullptr, nullptr, &patience), 2);
    EXPECT_EQ(patience.tv_sec, 4) << "the rest is written back";
    EXPECT_EQ(::pselect(std::max(fd, pipe[0]) + 1, &readable, nullptr, nullptr, &limit, nullptr), 2);
    for (const int end : {fd, pipe[0], pipe[1]}) ::close(end);
}

TEST_F(InterposeTest, NamesAndOptionsComeFromUs) {
    const int fd = connected();
    sockaddr_in peer{};
    socklen_t length = sizeof peer;
    ASSERT_EQ(::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length), 0);
    char text[INET_ADDRSTRLEN];
    EXPECT_STREQ(::inet_ntop(AF_INET, &peer.sin_addr, text, sizeof text), "10.77.0.9");
    EXPECT_EQ(ntohs(peer.sin_port), 80);
    int value = 1;
    EXPECT_EQ(::setsockopt(fd, IPPROTO_TCP, 1 /* TCP_NODELAY */, &value, sizeof value), 0);
    value = 0;
    socklen_t size = sizeof value;
    EXPECT_EQ(::getsockopt(fd, IPPROTO_TCP, 1, &value, &size), 0);
    EXPECT_EQ(value, 1);
    EXPECT_EQ(::shutdown(fd, SHUT_WR), 0);
    EXPECT_TRUE(daemon_.wait_until([&] { return true; }));
    EXPECT_EQ(::send(fd, "x", 1, MSG_NOSIGNAL), -1);
    EXPECT_EQ(errno, EPIPE);
    ::close(fd);
}

TEST_F(InterposeTest, AThreadInAnInterposedWaitCanBeCancelled) {
    int pipe[2];
    ASSERT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
    const int fd = connected();
    const int epoll = ::epoll_create1(0);
    epoll_event event{};
    event.events = EPOLLIN;
    ASSERT_EQ(::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
    struct Job {
        int pipe, epoll, fd;
        std::atomic<bool> started{false};
    } job{pipe[0], epoll, fd, {}};
    const auto in_read = [](void* argument) -> void* {
        Job& mine = *static_cast<Job*>(argument);
        mine.started = true;
        char byte;
        (void)!::read(mine.pipe, &byte, 1);
        return nullptr;
    };
    const auto in_epoll = [](void* argument) -> void* {
        Job& mine = *static_cast<Job*>(argument);
        mine.started = true;
        epoll_event unused;
        ::epoll_wait(mine.epoll, &unused, 1, -1);
        return nullptr;
    };
    const auto in_poll = [](void* argument) -> void* {
        Job& mine = *static_cast<Job*>(argument);
        mine.started = true;
        pollfd entry{mine.fd, POLLIN, 0};
        ::poll(&entry, 1, -1);
        return nullptr;
    };
    for (void* (*body)(void*) : {+in_read, +in_epoll, +in_poll}) {
        job.started = false;
        pthread_t thread;
        ASSERT_EQ(::pthread_create(&thread, nullptr, body, &job), 0);
        while (!job.started) std::this_thread::yield();
        ASSERT_EQ(::pthread_cancel(thread), 0);
        void* result = nullptr;
        ASSERT_EQ(::pthread_join(thread, &result), 0);
        EXPECT_EQ(result, PTHREAD_CANCELED);
    }
    // What the cancelled threads held is given back: the set and the connection still work.
    ASSERT_EQ(::write(fd, "x", 1), 1);
    EXPECT_EQ(::epoll_wait(epoll, &event, 1, 30000), 1);
    pollfd entry{fd, POLLIN, 0};
    EXPECT_EQ(::poll(&entry, 1, 30000), 1);
    for (const int end : {fd, epoll, pipe[0], pipe[1]}) ::close(end);
}

TEST_F(InterposeTest, AVforkedChildChangesNothingHere) {
    const int fd = connected();
    const std::uint32_t number = record(fd);
    const pid_t child = ::vfork();
    if (child == 0) {
        ::close(fd);
        ::dup2(0, fd);
        ::_exit(::write(1, "", 0) == 0 ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    EXPECT_TRUE(ours(fd));
    EXPECT_FALSE(daemon_.closed(number));
    ASSERT_EQ(::write(fd, "x", 1), 1);
    EXPECT_EQ(read_all(fd, 1), "x");
    ::close(fd);
}

TEST_F(InterposeTest, AChildThatClosesItsCopiesLeavesTheParents) {
    const int fd = connected();
    const int epoll = ::epoll_create1(0);
    epoll_event event{};
    event.events = EPOLLIN;
    ASSERT_EQ(::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
    const pid_t child = ::fork();
    if (child == 0) {
        ::close(fd);
        ::close(epoll);
        ::_exit(0);
    }
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    ASSERT_EQ(::write(fd, "x", 1), 1);
    ASSERT_EQ(::epoll_wait(epoll, &event, 1, 30000), 1);
    EXPECT_EQ(read_all(fd, 1), "x");
    ::close(fd);
    ::close(epoll);
}

TEST_F(InterposeTest, AChildThatUsesAnInheritedSetGetsItsOwnNews) {
    std::uint32_t listener_record = 0;
    const int listener = listening(&listener_record);
    const int epoll = ::epoll_create1(0);
    epoll_event event{};
    event.events = EPOLLIN;
    ASSERT_EQ(::epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event), 0);
    int ready[2];
    ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    const pid_t child = ::fork();  // as daemon() does: the child goes on with what the parent made
    if (child == 0) {
        epoll_event got;
        (void)!::epoll_wait(epoll, &got, 1, 0);
        (void)!::write(ready[1], "r", 1);
        const int count = ::epoll_wait(epoll, &got, 1, 30000);
        const int fd = count == 1 ? ::accept(listener, nullptr, nullptr) : -1;
        ::_exit(fd >= 0 ? 0 : 1);
    }
    char byte;
    ASSERT_EQ(::read(ready[0], &byte, 1), 1);
    ASSERT_TRUE(daemon_.arrive(listener_record, 4001).has_value());
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    for (const int end : {listener, epoll, ready[0], ready[1]}) ::close(end);
}

}  // namespace
}  // namespace culvert::test
