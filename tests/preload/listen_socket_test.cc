// A listener takes connections from Culvert and from the kernel, on one port.

#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "preload/listener_mode.h"
#include "shm/attach_protocol.h"
#include "tests/preload/socket_fixture.h"

namespace culvert::test {
namespace {

using preload::Socket;
using ListenSocketTest = SocketTest;

TEST_F(ListenSocketTest, AcceptsFromCulvert) {
    Fd listener = listening(SOCK_NONBLOCK);
    EXPECT_EQ(listener->accept(listener.number(), nullptr, nullptr, 0), -1);
    EXPECT_EQ(errno, EAGAIN);
    EXPECT_EQ(listener->poll_now(false), 0u);
    const auto record = daemon.arrive(listener->record(), 4711);
    EXPECT_NE(listener->poll_now(false) & EPOLLIN, 0u);
    sockaddr_in peer{};
    socklen_t length = sizeof peer;
    errno = 77;
    Fd fd(listener->accept(listener.number(), as_sockaddr(peer), &length, SOCK_NONBLOCK | SOCK_CLOEXEC));
    ASSERT_GE(fd.number(), 0);
    EXPECT_EQ(errno, 77);
    EXPECT_EQ(length, sizeof peer);
    EXPECT_EQ(ntohs(peer.sin_port), 4711);
    EXPECT_EQ(peer.sin_addr.s_addr, ipv4("10.77.0.9", 0).sin_addr.s_addr);
    EXPECT_EQ(fd->record(), *record);
    EXPECT_TRUE(daemon.segment().holders(client->process_slot()).test(*record));
    EXPECT_NE(::fcntl(fd.number(), F_GETFD) & FD_CLOEXEC, 0);
    EXPECT_TRUE(fd->nonblocking());
    struct stat status{};
    ASSERT_EQ(::fstat(fd.number(), &status), 0);
    EXPECT_TRUE(S_ISSOCK(status.st_mode)) << "programs check";
    EXPECT_EQ(fd.send("hi"), 2);
    fd.close();
    EXPECT_TRUE(daemon.wait_closed(*record));
}

TEST_F(ListenSocketTest, PlaceholdersShareAFileButNotTheirFlags) {
    Fd listener = listening(SOCK_NONBLOCK);
    daemon.arrive(listener->record(), 1);
    daemon.arrive(listener->record(), 2);
    Fd a = accept(listener);
    Fd b = accept(listener);
    EXPECT_EQ(a->set_status_flags(a.number(), O_NONBLOCK), 0);
    EXPECT_NE(a->get_status_flags(a.number()) & O_NONBLOCK, 0);
    EXPECT_EQ(b->get_status_flags(b.number()) & O_NONBLOCK, 0);
    int on = 1;
    EXPECT_EQ(b->ioctl(b.number(), FIONBIO, &on), 0);
    EXPECT_EQ(::fcntl(a.number(), F_GETFL) & O_NONBLOCK, 0) << "the shared file is left alone";
}

TEST_F(ListenSocketTest, PassedOnBeforeAnybodyWaitedItRestsUntilSomebodyDoes) {
    Fd listener = listening();
    const auto flags = [&] { return ::fcntl(listener.number(), F_GETFL); };
    EXPECT_NE(flags() & O_NONBLOCK, 0);
    listener->pass_on(listener.number());
    EXPECT_TRUE(listener->is_resting());
    EXPECT_EQ(flags() & O_NONBLOCK, 0) << "whoever gets it may wait in accept()";
    EXPECT_TRUE(listener->wants_daemon());
    daemon.arrive(listener->record(), 3);
    Fd fd = accept(listener);
    ASSERT_GE(fd.number(), 0);
    EXPECT_FALSE(listener->is_resting());
    EXPECT_NE(flags() & O_NONBLOCK, 0);
}

TEST_F(ListenSocketTest, PassedOnWhileItServesItGoesOn) {
    Fd listener = listening();
    EXPECT_EQ(listener->poll_now(false), 0u);
    listener->pass_on(listener.number());
    EXPECT_FALSE(listener->is_resting());
    EXPECT_NE(::fcntl(listener.number(), F_GETFL) & O_NONBLOCK, 0);
}

TEST_F(ListenSocketTest, TheFileTellsWhatItsProgramWanted) {
    Fd listener = listening();
    EXPECT_FALSE(preload::wants_nonblocking(listener.number()));
    EXPECT_EQ(listener->set_status_flags(listener.number(), O_NONBLOCK), 0);
    EXPECT_TRUE(preload::wants_nonblocking(listener.number()));
    int off = 0;
    EXPECT_EQ(listener->ioctl(listener.number(), FIONBIO, &off), 0);
    EXPECT_FALSE(preload::wants_nonblocking(listener.number()));
    EXPECT_NE(::fcntl(listener.number(), F_GETFL) & O_NONBLOCK, 0);
    ASSERT_EQ(::fcntl(listener.number(), F_SETSIG, 40), 0);
    EXPECT_EQ(listener->set_status_flags(listener.number(), O_NONBLOCK), 0);
    EXPECT_EQ(::fcntl(listener.number(), F_GETSIG), 40) << "a signal that the program has chosen stays";
}

TEST_F(ListenSocketTest, AConnectionThatWasFreedInTheQueueIsSkipped) {
    Fd listener = listening(SOCK_NONBLOCK);
    const auto freed = daemon.arrive(listener->record(), 1);
    const auto good = daemon.arrive(listener->record(), 2);
    daemon.segment().socket(*freed).daemon.generation.fetch_add(1);
    daemon.segment().socket(*freed).daemon.status.store(shm::kStatusDead);
    Fd fd = accept(listener);
    ASSERT_GE(fd.number(), 0);
    EXPECT_EQ(fd->record(), *good);
    EXPECT_FALSE(daemon.segment().holders(client->process_slot()).test(*freed));
}

TEST_F(ListenSocketTest, LowestFreeDescriptorIsUsed) {
    Fd listener = listening(SOCK_NONBLOCK);
    daemon.arrive(listener->record(), 1);
    accept(listener).close();  // the placeholder of this process exists from now on
    daemon.arrive(listener->record(), 2);
    const int lowest = ::dup(0);
    ::close(lowest);
    Fd fd = accept(listener);
    EXPECT_EQ(fd.number(), lowest);
}

TEST_F(ListenSocketTest, BlockingAcceptIsWokenByEitherSide) {
    Fd listener = listening();
    std::vector<int> accepted(2, -1);
    std::thread acceptor([&] {
        for (int& fd : accepted) fd = listener->accept(listener.number(), nullptr, nullptr, 0);
    });
    // Watched: the acceptor is in its wait, or about to look once more.
    while (daemon.segment().socket(listener->record()).app.watch.load() == shm::kWatchNone) std::this_thread::yield();
    daemon.arrive(listener->record(), 5);
    Fd client_socket = open(SOCK_STREAM);
    EXPECT_EQ(client_socket.connect("127.0.0.1", port), 0);
    acceptor.join();
    ASSERT_GE(accepted[0], 0);
    ASSERT_GE(accepted[1], 0);
    EXPECT_NE(preload::FdTable::instance().contains(accepted[0]), preload::FdTable::instance().contains(accepted[1]))
        << "one from each";
    for (const int fd : accepted) Fd(fd).close();
}

TEST_F(ListenSocketTest, AcceptTimeout) {
    Fd listener = listening();
    const timeval time{0, 20'000};
    ASSERT_EQ(listener->set_option(listener.number(), SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time), 0);
    EXPECT_EQ(listener->accept(listener.number(), nullptr, nullptr, 0), -1);
    EXPECT_EQ(errno, EAGAIN);
}

TEST_F(ListenSocketTest, TableFullLeavesTheConnectionInTheQueue) {
    Fd listener = listening(SOCK_NONBLOCK);
    daemon.arrive(listener->record(), 1);
    accept(listener).close();
    daemon.arrive(listener->record(), 2);
    rlimit before{};
    ::getrlimit(RLIMIT_NOFILE, &before);
    const int lowest = ::dup(0);
    ::close(lowest);
    const rlimit tight{static_cast<rlim_t>(lowest), before.rlim_max};
    ::setrlimit(RLIMIT_NOFILE, &tight);
    EXPECT_EQ(listener->accept(listener.number(), nullptr, nullptr, 0), -1);
    EXPECT_EQ(errno, EMFILE);
    ::setrlimit(RLIMIT_NOFILE, &before);
    EXPECT_GE(accept(listener).number(), 0);
}

TEST_F(ListenSocketTest, OptionsAreInheritedAndLiveInTheRecord) {
    Fd listener = open(SOCK_STREAM);
    listener.set_int(IPPROTO_TCP, TCP_NODELAY, 1);
    const sockaddr_in any = ipv4("0.0.0.0", 0);
    ASSERT_EQ(listener->bind(listener.number(), as_sockaddr(any), sizeof any), 0);
    ASSERT_EQ(listener->listen(listener.number(), 5), 0);
    daemon.arrive(listener->record(), 1);
    daemon.arrive(listener->record(), 2);
    Fd a = accept(listener);
    Fd b = accept(listener);
    EXPECT_EQ(a.get_int(IPPROTO_TCP, TCP_NODELAY), 1);
    EXPECT_EQ(a.set_int(IPPROTO_TCP, TCP_NODELAY, 0), 0);
    EXPECT_EQ(a.get_int(IPPROTO_TCP, TCP_NODELAY), 0);
    EXPECT_EQ(b.get_int(IPPROTO_TCP, TCP_NODELAY), 1) << "not a matter of the shared placeholder";
    EXPECT_EQ(a.get_int(IPPROTO_TCP, TCP_KEEPIDLE), 7200);
    EXPECT_EQ(a.set_int(SOL_SOCKET, SO_SNDBUF, 50'000), 0);
    EXPECT_EQ(a.get_int(SOL_SOCKET, SO_SNDBUF), 100'000) << "Linux doubles";
    EXPECT_EQ(daemon.options(a->record()).send_buffer, 50'000u);
    EXPECT_EQ(a.set_int(IPPROTO_TCP, TCP_NOTSENT_LOWAT, 16384), 0);
    EXPECT_EQ(a.get_int(IPPROTO_TCP, TCP_NOTSENT_LOWAT), 16384);
    EXPECT_EQ(daemon.options(a->record()).notsent_lowat, 16384u);
    EXPECT_EQ(a.set_int(IPPROTO_TCP, TCP_WINDOW_CLAMP, 0), -EINVAL) << "it is connected";
    EXPECT_EQ(a.set_int(IPPROTO_TCP, TCP_WINDOW_CLAMP, 500), 0);
    EXPECT_EQ(a.get_int(IPPROTO_TCP, TCP_WINDOW_CLAMP), 1152) << "the kernel's least";
    EXPECT_EQ(a.get_int(SOL_SOCKET, SO_TYPE), SOCK_STREAM);
    EXPECT_EQ(a.get_int(SOL_SOCKET, SO_DOMAIN), AF_INET);
    EXPECT_EQ(a.get_int(SOL_SOCKET, SO_ACCEPTCONN), 0);
    EXPECT_EQ(listener.get_int(SOL_SOCKET, SO_ACCEPTCONN), 1);
    EXPECT_EQ(a.set_int(SOL_SOCKET, 9999, 1), -ENOPROTOOPT);
    EXPECT_EQ(a.set_int(IPPROTO_TCP, TCP_KEEPCNT, 1000), -EINVAL);
}

TEST_F(ListenSocketTest, RefusedByTheDaemonItStaysTheKernels) {
    daemon.refuse_operations(EADDRNOTAVAIL);
    Fd listener = open(SOCK_STREAM);
    const sockaddr_in any = ipv4("0.0.0.0", 0);
    ASSERT_EQ(listener->bind(listener.number(), as_sockaddr(any), sizeof any), 0);
    EXPECT_EQ(listener->listen(listener.number(), 5), 0);
    EXPECT_FALSE(listener->is_ours());
    EXPECT_EQ(daemon.segment().process(client->process_slot()).reasons[listener.number()].load(),
              static_cast<std::uint8_t>(shm::KernelReason::kNotLocal));
}

TEST_F(ListenSocketTest, LoopbackListenerStaysTheKernels) {
    Fd listener = open(SOCK_STREAM);
    const sockaddr_in loopback = ipv4("127.0.0.1", 0);
    ASSERT_EQ(listener->bind(listener.number(), as_sockaddr(loopback), sizeof loopback), 0);
    EXPECT_EQ(listener->listen(listener.number(), 5), 0);
    EXPECT_FALSE(listener->is_ours());
}

TEST_F(ListenSocketTest, GoesOnInTheKernelWhenTheDaemonDies) {
    Fd listener = listening();
    daemon.die();
    while (!client->check_daemon()) std::this_thread::yield();
    Fd client_socket(preload::libc::socket(AF_INET, SOCK_STREAM, 0));
    const sockaddr_in to = ipv4("127.0.0.1", port);
    ASSERT_EQ(preload::libc::connect(client_socket.number(), as_sockaddr(to), static_cast<socklen_t>(sizeof to)), 0);
    Fd fd = accept(listener);
    EXPECT_GE(fd.number(), 0);
}

TEST_F(ListenSocketTest, TheNextDaemonTakesItOverWithItsOptions) {
    Fd listener = listening(SOCK_NONBLOCK);
    daemon.die();
    while (!client->check_daemon()) std::this_thread::yield();
    EXPECT_TRUE(listener->wants_daemon());
    EXPECT_EQ(listener.set_int(IPPROTO_TCP, TCP_NODELAY, 1), 0) << "while nobody is there";
    FakeDaemon next;
    ASSERT_NE(next.attach(), nullptr);
    EXPECT_EQ(listener->accept(listener.number(), nullptr, nullptr, 0), -1);
    EXPECT_EQ(errno, EAGAIN);
    ASSERT_FALSE(listener->wants_daemon());
    EXPECT_EQ(listener->path(), Socket::Path::kListener);
    EXPECT_NE(next.options(listener->record()).flags & shm::kOptionNoDelay, 0u);
    ASSERT_TRUE(next.arrive(listener->record(), 4711));
    EXPECT_GE(accept(listener).number(), 0);
    listener.close();
}

TEST_F(ListenSocketTest, WhatTheNextDaemonRefusesIsTheKernels) {
    Fd listener = listening();
    daemon.die();
    while (!client->check_daemon()) std::this_thread::yield();
    FakeDaemon next;
    next.refuse_operations(EADDRNOTAVAIL);
    ASSERT_NE(next.attach(), nullptr);
    listener->revive(listener.number());
    EXPECT_EQ(listener->path(), Socket::Path::kKernel);
    EXPECT_EQ(preload::libc::fcntl(listener.number(), F_GETFL) & O_NONBLOCK, 0) << "the kernel's own again";
}

TEST_F(ListenSocketTest, OneWithoutADaemonWaitsForTheFirst) {
    preload::Client::install(nullptr);
    Fd listener = open(SOCK_STREAM);
    const sockaddr_in any = ipv4("0.0.0.0", 0);
    ASSERT_EQ(listener->bind(listener.number(), as_sockaddr(any), sizeof any), 0);
    ASSERT_EQ(listener->listen(listener.number(), 5), 0);
    EXPECT_TRUE(listener->wants_daemon());
    EXPECT_EQ(listener->poll_now(false), 0u);
    EXPECT_EQ(listener->get_status_flags(listener.number()) & O_NONBLOCK, 0) << "to the program";
    ASSERT_NE(daemon.attach(), nullptr);
    listener->revive(listener.number());
    EXPECT_FALSE(listener->wants_daemon());
    ASSERT_TRUE(daemon.arrive(listener->record(), 4711));
    EXPECT_GE(accept(listener).number(), 0);
}

TEST_F(ListenSocketTest, AStrictProgramGetsNoConnectionOfTheKernels) {
    preload::set_policy_for_test("loopback");  // else these connections are the kernel's by intention
    Fd listener = listening(SOCK_NONBLOCK);
    daemon.die();
    ::setenv(shm::kStrictVariable, "1", 1);
    Fd stranger(preload::libc::socket(AF_INET, SOCK_STREAM, 0));
    const sockaddr_in to = ipv4("127.0.0.1", port);
    ASSERT_EQ(preload::libc::connect(stranger.number(), as_sockaddr(to), static_cast<socklen_t>(sizeof to)), 0);
    while (!client->check_daemon()) std::this_thread::yield();
    EXPECT_EQ(listener->accept(listener.number(), nullptr, nullptr, 0), -1);
    EXPECT_EQ(errno, ENETDOWN);
    char byte = 0;
    EXPECT_EQ(preload::raw::read(stranger.number(), &byte, 1), -1);
    EXPECT_EQ(errno, ECONNRESET);
    ::unsetenv(shm::kStrictVariable);
    preload::set_policy_for_test(nullptr);
}

TEST_F(ListenSocketTest, ClosingTheListenerTellsTheDaemon) {
    Fd listener = listening();
    const std::uint32_t record = listener->record();
    listener.close();
    EXPECT_TRUE(daemon.wait_closed(record));
}

}  // namespace
}  // namespace culvert::test
