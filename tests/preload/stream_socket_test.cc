// A Culvert TCP connection as a program sees it: the results and errno values are Linux's.

#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

#include "preload/header_options.h"
#include "shm/block_list.h"
#include "tests/preload/socket_fixture.h"

namespace culvert::test {
namespace {

using preload::Socket;

class StreamSocketTest : public SocketTest {
protected:
    std::string pattern(std::size_t size) {
        std::string bytes(size, '\0');
        std::uint32_t state = 12345;
        for (char& byte : bytes) byte = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
        return bytes;
    }
    /// Waits until a thread sleeps on (or looks at) the record's futex word.
    void wait_for_waiter(std::uint32_t record) {
        while (daemon.segment().socket(record).app.waiters.load() == 0) std::this_thread::yield();
    }
};

TEST_F(StreamSocketTest, SendsAndReceives) {
    Fd fd = connected();
    errno = 77;
    EXPECT_EQ(fd.send("hello"), 5);
    EXPECT_EQ(errno, 77) << "success leaves errno alone";
    ASSERT_TRUE(daemon.wait_received(fd->record(), 5));
    EXPECT_EQ(daemon.received(fd->record()), "hello");
    daemon.deliver(fd->record(), "world");
    EXPECT_EQ(fd.receive(3), "wor");
    EXPECT_EQ(fd.receive(100), "ld");
}

TEST_F(StreamSocketTest, OptionsForTheIpHeaderMakeTheSocketTheKernels) {
    const unsigned char nops[4] = {1, 1, 1, 1};
    Fd fd = open(SOCK_STREAM);
    // From this source the kernel sends nothing to the peer, which is behind Culvert: its EINVAL shows that it was asked.
    const sockaddr_in here = ipv4("127.0.0.1", 0);
    ASSERT_EQ(fd->bind(fd.number(), as_sockaddr(here), sizeof here), 0);
    ASSERT_EQ(fd->set_option(fd.number(), IPPROTO_IP, IP_OPTIONS, nops, sizeof nops), 0);
    EXPECT_EQ(fd.connect("10.77.0.9", 80), -1);
    EXPECT_EQ(errno, EINVAL);
    EXPECT_EQ(fd->path(), Socket::Path::kKernel) << "Culvert's segments would not carry them";

    ASSERT_EQ(fd->set_option(fd.number(), IPPROTO_IP, IP_OPTIONS, nullptr, 0), 0);
    EXPECT_EQ(fd.connect("10.77.0.9", 80), 0) << "taken away again: " << std::strerror(errno);
    EXPECT_EQ(fd->path(), Socket::Path::kConnection);
}

TEST_F(StreamSocketTest, ExtensionHeadersAreSeenOnIpv6SocketsOnly) {
    const unsigned char padding[8] = {0, 0, 1, 4, 0, 0, 0, 0};  // one unit of destination options, PadN
    const int six = ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0), four = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_FALSE(preload::has_header_options(six, AF_INET6) || preload::has_header_options(four, AF_INET));
    ASSERT_EQ(::setsockopt(six, IPPROTO_IPV6, IPV6_DSTOPTS, padding, sizeof padding), 0) << std::strerror(errno);
    EXPECT_TRUE(preload::has_header_options(six, AF_INET6));
    EXPECT_TRUE(preload::has_extension_headers(six, AF_INET6)) << "a listener hands them on";
    ::close(six);
    ::close(four);
}

TEST_F(StreamSocketTest, AConnectionRefusesOptionsForTheIpHeader) {
    Fd fd = connected();
    const unsigned char nops[4] = {1, 1, 1, 1};
    EXPECT_EQ(fd->set_option(fd.number(), IPPROTO_IP, IP_OPTIONS, nops, sizeof nops), -1);
    EXPECT_EQ(errno, ENOPROTOOPT);
    EXPECT_FALSE(preload::has_header_options(fd.number(), AF_INET));
}

TEST_F(StreamSocketTest, KeepsTheOrderOfManyBlocksAndParts) {
    Fd fd = connected();
    const std::string bytes = pattern(300'000);  // more than the send buffer: blocks until acknowledged
    std::string a = bytes.substr(0, 1), b = bytes.substr(1, 5000), c = bytes.substr(5001);
    iovec parts[4] = {{a.data(), a.size()}, {nullptr, 0}, {b.data(), b.size()}, {c.data(), c.size()}};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = 4;
    EXPECT_EQ(fd->send(fd.number(), message, 0), 300'000);
    ASSERT_TRUE(daemon.wait_received(fd->record(), bytes.size()));
    EXPECT_TRUE(daemon.received(fd->record()) == bytes);

    const std::size_t free_before = daemon.free_receive_blocks();
    daemon.deliver(fd->record(), bytes.substr(0, 100'000), 700);
    std::string got;
    while (got.size() < 100'000) {
        const std::string piece = fd.receive(1013);
        ASSERT_LE(piece.size(), 1013u);
        ASSERT_FALSE(piece.empty());
        got += piece;
    }
    EXPECT_TRUE(got == bytes.substr(0, 100'000));
    EXPECT_EQ(daemon.free_receive_blocks(), free_before) << "every block went back";
}

TEST_F(StreamSocketTest, NonBlockingSendIsPartialAndThenEagain) {
    Fd fd = connected(SOCK_NONBLOCK);
    daemon.hold_acknowledgements(fd->record());
    const std::string bytes = pattern(200'000);
    const ssize_t sent = fd.send(bytes);
    EXPECT_GE(sent, 64 * 1024);
    EXPECT_LT(sent, 64 * 1024 + 2 * static_cast<ssize_t>(shm::kBlockSize)) << "a block of overshoot at most";
    EXPECT_EQ(fd.send("more"), -1);
    EXPECT_EQ(errno, EAGAIN);
    EXPECT_EQ(fd->poll_now(true) & EPOLLOUT, 0u);
    daemon.resume(fd->record());
    ASSERT_TRUE(daemon.wait_until([&] { return (fd->poll_now(false) & EPOLLOUT) != 0; }));
    EXPECT_EQ(fd.send("more"), 4);
}

TEST_F(StreamSocketTest, BlockingSendWaitsForRoom) {
    Fd fd = connected();
    daemon.hold_acknowledgements(fd->record());
    const std::string bytes = pattern(150'000);
    ssize_t sent = 0;
    std::thread sender([&] { sent = fd.send(bytes); });
    wait_for_waiter(fd->record());
    daemon.resume(fd->record());
    sender.join();
    EXPECT_EQ(sent, 150'000);
    ASSERT_TRUE(daemon.wait_received(fd->record(), bytes.size()));
    EXPECT_TRUE(daemon.received(fd->record()) == bytes);
}

TEST_F(StreamSocketTest, EdgeTriggeredWriterIsToldOfRoomWithoutAsking) {
    Fd fd = connected(SOCK_NONBLOCK);
    const auto queue = client->borrow_poll_queue();
    ASSERT_TRUE(queue.has_value());
    client->watch(queue->index, fd->record());
    daemon.hold_acknowledgements(fd->record());
    fd.send(pattern(200'000));
    EXPECT_EQ(fd.send("x"), -1);
    daemon.segment().ready(queue->index).collect([](std::uint32_t) {});
    daemon.resume(fd->record());
    EXPECT_TRUE(daemon.segment().ready(queue->index).any());
    client->unwatch(queue->index, fd->record());
    client->give_back_poll_queue(*queue);
}

TEST_F(StreamSocketTest, EdgeTriggeredWriterNeverWaitsInVain) {
    // Room may appear between the attempt that failed and the request for a notice: then no notice comes, and the room is
    // used. A quick daemon of the test's own, which looks only when it is told to, meets that moment often.
    Fd fd = connected(SOCK_NONBLOCK);
    const std::uint32_t record = fd->record();
    shm::Segment& segment = daemon.segment();
    shm::SocketRecord& shared = segment.socket(record);
    client->watch(0, record);
    shared.daemon.send_limit = 4000;  // two blocks
    const std::string bytes = pattern(8000);
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> notices{0};
    int waits = 0;
    bool lost = false;
    const auto quick_daemon = [&] {
        shm::TaggedStack pool(segment.header().tx_free, segment.block_meta(), segment.geometry().tx_blocks);
        for (std::uint32_t turn = 0; !stop; ++turn)
            segment.dirty().collect([&](std::uint32_t) {
                for (std::atomic<std::uint32_t> delay{0}; delay < turn % 128; ++delay) {
                }
                std::uint32_t link = shm::take_all(shared.app.tx_list);
                while (link != shm::kEmptyList) {
                    const std::uint32_t next = segment.block_meta()[link - 1].next.load();
                    pool.push(link - 1);
                    link = next;
                }
                shared.daemon.tx_released = shared.app.tx_queued.load();
                if ((shared.app.flags.fetch_and(~shm::kAppWantWrite) & shm::kAppWantWrite) != 0) ++notices;
            });
    };
    EXPECT_TRUE(daemon.wait_until([&] {  // under the fake's lock: it stands still meanwhile
        std::thread thread(quick_daemon);
        for (int round = 0; round < 20'000 && !lost; ++round) {
            const std::uint64_t before = notices;
            if (fd.send(bytes) == 8000) continue;
            ++waits;
            const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
            while (notices == before && !lost) {
                std::this_thread::yield();
                lost = std::chrono::steady_clock::now() > deadline;
            }
        }
        stop = true;
        thread.join();
        return true;
    }));
    EXPECT_FALSE(lost) << "no notice, after " << waits << " that came";
    EXPECT_GT(waits, 0);
    client->unwatch(0, record);
}

TEST_F(StreamSocketTest, CountsOfBytesDoNotUnderflow) {
    Fd fd = connected();
    shm::SocketRecord& shared = daemon.segment().socket(fd->record());
    const auto ask = [&](unsigned long request) {
        int value = -1;
        return fd->ioctl(fd.number(), request, &value) == 0 ? value : -errno;
    };
    shared.daemon.rx_delivered = 100;
    shared.app.rx_consumed = 40;
    EXPECT_EQ(ask(FIONREAD), 60);
    shared.app.rx_consumed = 101;  // read before it was counted as delivered
    EXPECT_EQ(ask(FIONREAD), 0);
    shared.app.tx_queued = 7;
    EXPECT_EQ(ask(TIOCOUTQ), 7);
    shared.daemon.tx_released = 8;
    EXPECT_EQ(ask(TIOCOUTQ), 0);
    shared.app.tx_queued = 8;
}

TEST_F(StreamSocketTest, MaximumSegmentIsTheConnections) {
    Fd fd = connected();
    daemon.segment().socket(fd->record()).info.mss = 1448;
    EXPECT_EQ(fd.get_int(IPPROTO_TCP, TCP_MAXSEG), 1448);
}

TEST_F(StreamSocketTest, AskingForRoomMakesTheDaemonLook) {
    // It may have looked at the flag just before it was set, and would never tell.
    Fd fd = connected(SOCK_NONBLOCK);
    const std::uint32_t record = fd->record();
    daemon.hold_acknowledgements(record);
    const ssize_t sent = fd.send(pattern(200'000));
    ASSERT_TRUE(daemon.wait_received(record, static_cast<std::size_t>(sent)));
    const std::uint32_t before = daemon.looks(record);
    EXPECT_EQ(fd->poll_now(true) & EPOLLOUT, 0u);
    while (daemon.looks(record) == before) std::this_thread::yield();
    EXPECT_EQ(daemon.segment().socket(record).app.flags & shm::kAppWantWrite, shm::kAppWantWrite);
}

TEST_F(StreamSocketTest, TheDaemonIsToldWhenThePeerWaitsForWindow) {
    Fd fd = connected();
    daemon.deliver(fd->record(), pattern(40'000));  // the fake's window_position is 32 KiB
    EXPECT_EQ(fd.receive(1000).size(), 1000u);
    EXPECT_EQ(daemon.segment().socket(fd->record()).app.rx_consumed, 1000u);
    EXPECT_EQ(fd.receive(1000, MSG_PEEK).size(), 1000u);
    EXPECT_EQ(daemon.segment().socket(fd->record()).app.rx_consumed, 1000u) << "looking is not reading";
    EXPECT_EQ(fd.receive(39'000, MSG_WAITALL).size(), 39'000u);
    EXPECT_TRUE(daemon.wait_consumed(fd->record(), 40'000));
}

TEST_F(StreamSocketTest, SendTimeoutIsEagain) {
    Fd fd = connected();
    daemon.hold_acknowledgements(fd->record());
    const timeval time{0, 20'000};
    ASSERT_EQ(fd->set_option(fd.number(), SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time), 0);
    EXPECT_GE(fd.send(pattern(200'000)), 64 * 1024);
    EXPECT_EQ(fd.send("x"), -1);
    EXPECT_EQ(errno, EAGAIN);
}

TEST_F(StreamSocketTest, EndOfStreamComesAfterTheData) {
    Fd fd = connected();
    daemon.deliver(fd->record(), "last");
    daemon.peer_closes(fd->record());
    EXPECT_EQ(fd->poll_now(false) & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLOUT), EPOLLIN | EPOLLRDHUP | EPOLLOUT);
    EXPECT_EQ(fd.receive(100), "last");
    EXPECT_EQ(fd.receive(100), "");
    EXPECT_EQ(fd.receive(100), "");
    EXPECT_EQ(fd.send("still open"), 10) << "half-closed";
}

TEST_F(StreamSocketTest, PeekLeavesAndWaitAllWaits) {
    Fd fd = connected();
    daemon.deliver(fd->record(), "abcdef", 2);
    EXPECT_EQ(fd.receive(5, MSG_PEEK), "abcde");
    EXPECT_EQ(fd.receive(3), "abc");
    EXPECT_EQ(fd.receive(10, MSG_PEEK), "def");
    std::string got;
    std::thread receiver([&] { got = fd.receive(6, MSG_WAITALL); });
    wait_for_waiter(fd->record());
    daemon.deliver(fd->record(), "ghij");
    receiver.join();
    EXPECT_EQ(got, "defghi");
    EXPECT_EQ(fd.receive(10, MSG_DONTWAIT), "j");
    EXPECT_EQ(fd.receive(10, MSG_DONTWAIT), error_text(EAGAIN));
    EXPECT_EQ(fd.receive(10, MSG_OOB), error_text(EINVAL));
    EXPECT_EQ(fd.receive(10, MSG_ERRQUEUE), error_text(EAGAIN));
}

TEST_F(StreamSocketTest, ReceiveTimeoutIsEagain) {
    Fd fd = connected();
    const timeval time{0, 20'000};
    ASSERT_EQ(fd->set_option(fd.number(), SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time), 0);
    EXPECT_EQ(fd.receive(1), error_text(EAGAIN));
}

TEST_F(StreamSocketTest, ResetIsReportedOnceThenEndOfStreamAndEpipe) {
    Fd fd = connected();
    daemon.reset(fd->record(), ECONNRESET);
    EXPECT_EQ(fd->poll_now(false) & (EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP), EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP);
    EXPECT_EQ(fd.receive(1), error_text(ECONNRESET));
    EXPECT_EQ(fd.receive(1), "");
    EXPECT_EQ(fd.send("x", MSG_NOSIGNAL), -1);
    EXPECT_EQ(errno, EPIPE);
    EXPECT_EQ(fd->poll_now(false) & EPOLLERR, 0u);
}

TEST_F(StreamSocketTest, ResetWakesAReaderAndASender) {
    Fd fd = connected();
    std::string got;
    std::thread receiver([&] { got = fd.receive(1); });
    wait_for_waiter(fd->record());
    daemon.reset(fd->record(), ECONNRESET);
    receiver.join();
    EXPECT_EQ(got, error_text(ECONNRESET));
}

std::atomic<int> sigpipes{0};

TEST_F(StreamSocketTest, SigpipeUnlessNosignal) {
    struct sigaction action{};
    struct sigaction before{};
    sigpipes = 0;
    action.sa_handler = [](int) { ++sigpipes; };
    ::sigaction(SIGPIPE, &action, &before);
    Fd fd = connected();
    ASSERT_EQ(fd->shutdown(fd.number(), SHUT_WR), 0);
    EXPECT_EQ(fd.send("x", MSG_NOSIGNAL), -1);
    EXPECT_EQ(errno, EPIPE);
    EXPECT_EQ(sigpipes, 0);
    EXPECT_EQ(fd.send("x"), -1);
    EXPECT_EQ(errno, EPIPE);
    EXPECT_EQ(sigpipes, 1);
    ::sigaction(SIGPIPE, &before, nullptr);
}

TEST_F(StreamSocketTest, ShutdownOfBothSides) {
    Fd fd = connected();
    EXPECT_EQ(fd.send("bye"), 3);
    EXPECT_EQ(fd->shutdown(fd.number(), SHUT_WR), 0);
    ASSERT_TRUE(daemon.wait_until([&] { return (fd->shared_for_test().daemon.status & shm::kStatusWriteClosed) != 0; }));
    EXPECT_EQ(daemon.received(fd->record()), "bye") << "the end comes after the data";
    EXPECT_EQ(fd->shutdown(fd.number(), 7), -1);
    EXPECT_EQ(errno, EINVAL);
    std::string got = "?";
    std::thread receiver([&] { got = fd.receive(1); });
    wait_for_waiter(fd->record());
    EXPECT_EQ(fd->shutdown(fd.number(), SHUT_RD), 0);
    receiver.join();
    EXPECT_EQ(got, "");
    EXPECT_NE(fd->poll_now(false) & EPOLLHUP, 0u);
}

TEST_F(StreamSocketTest, CloseAsksTheDaemonToClose) {
    Fd fd = connected();
    const std::uint32_t record = fd->record();
    fd.send("tail");
    fd.close();
    ASSERT_TRUE(daemon.wait_closed(record));
    EXPECT_EQ(daemon.received(record), "tail");
    EXPECT_TRUE(daemon.segment().free_sockets().test(record));
    EXPECT_FALSE(daemon.segment().holders(client->process_slot()).test(record));
}

TEST_F(StreamSocketTest, DuplicateKeepsItOpen) {
    Fd fd = connected();
    const std::uint32_t record = fd->record();
    const int second = ::fcntl(fd.number(), F_DUPFD_CLOEXEC, 0);
    preload::FdTable::instance().insert(second, *fd);
    Fd duplicate(second);
    fd.close();
    EXPECT_EQ(duplicate.send("x"), 1);
    ASSERT_TRUE(daemon.wait_received(record, 1));
    EXPECT_FALSE(daemon.closed(record));
    duplicate.close();
    EXPECT_TRUE(daemon.wait_closed(record));
}

// --- connect ------------------------------------------------------------------------------------------------------------

TEST_F(StreamSocketTest, ConnectReservesThePortInTheKernel) {
    Fd fd = connected();
    sockaddr_in name{};
    socklen_t length = sizeof name;
    ASSERT_EQ(fd->sockname(fd.number(), as_sockaddr(name), &length), 0);
    EXPECT_EQ(name.sin_addr.s_addr, ipv4("127.0.0.2", 0).sin_addr.s_addr);
    EXPECT_NE(name.sin_port, 0);
    length = sizeof name;
    ASSERT_EQ(fd->peername(fd.number(), as_sockaddr(name), &length), 0);
    EXPECT_EQ(name.sin_addr.s_addr, ipv4("10.77.0.9", 0).sin_addr.s_addr);
    EXPECT_EQ(ntohs(name.sin_port), 80);
    EXPECT_EQ(fd.connect("10.77.0.9", 80), -1);
    EXPECT_EQ(errno, EISCONN);
}

TEST_F(StreamSocketTest, RefusedConnectAndThenAnother) {
    Fd fd = open(SOCK_STREAM);
    EXPECT_EQ(fd.connect("10.77.0.9", FakeDaemon::kRefusingPort), -1);
    EXPECT_EQ(errno, ECONNREFUSED);
    EXPECT_EQ(fd.receive(1), error_text(ENOTCONN));
    EXPECT_EQ(fd.connect("10.77.0.9", 80), 0) << std::strerror(errno);
    EXPECT_EQ(fd.send("x"), 1);
}

TEST_F(StreamSocketTest, NonBlockingConnect) {
    Fd fd = open(SOCK_STREAM | SOCK_NONBLOCK);
    EXPECT_EQ(fd.connect("10.77.0.9", FakeDaemon::kSilentPort), -1);
    EXPECT_EQ(errno, EINPROGRESS);
    EXPECT_EQ(fd.connect("10.77.0.9", FakeDaemon::kSilentPort), -1);
    EXPECT_EQ(errno, EALREADY);
    EXPECT_EQ(fd->poll_now(true), 0u);
    EXPECT_EQ(fd.send("x"), -1);
    EXPECT_EQ(errno, EAGAIN);
    EXPECT_EQ(fd.receive(1), error_text(EAGAIN));
    daemon.establish(fd->record());
    EXPECT_NE(fd->poll_now(true) & EPOLLOUT, 0u);
    EXPECT_EQ(fd.get_int(SOL_SOCKET, SO_ERROR), 0);
    EXPECT_EQ(fd.connect("10.77.0.9", FakeDaemon::kSilentPort), 0) << "tells of the success once";
    EXPECT_EQ(fd.connect("10.77.0.9", FakeDaemon::kSilentPort), -1);
    EXPECT_EQ(errno, EISCONN);
}

TEST_F(StreamSocketTest, NonBlockingConnectFailsThroughSoError) {
    Fd fd = open(SOCK_STREAM | SOCK_NONBLOCK);
    EXPECT_EQ(fd.connect("10.77.0.9", FakeDaemon::kSilentPort), -1);
    daemon.reset(fd->record(), ETIMEDOUT);
    EXPECT_NE(fd->poll_now(true) & EPOLLERR, 0u);
    EXPECT_EQ(fd.get_int(SOL_SOCKET, SO_ERROR), ETIMEDOUT);
    EXPECT_EQ(fd.get_int(SOL_SOCKET, SO_ERROR), 0);
}

TEST_F(StreamSocketTest, LoopbackAndUnroutedGoThroughTheKernel) {
    Fd listener = listening();
    Fd fd = open(SOCK_STREAM);
    EXPECT_EQ(fd.connect("127.0.0.1", port), 0) << std::strerror(errno);
    EXPECT_FALSE(fd->is_ours());
    EXPECT_EQ(fd.send("via kernel"), 10);
    const int accepted = listener->accept(listener.number(), nullptr, nullptr, 0);
    ASSERT_GE(accepted, 0);
    EXPECT_FALSE(preload::FdTable::instance().contains(accepted)) << "an ordinary kernel descriptor";
    char bytes[10];
    EXPECT_EQ(::recv(accepted, bytes, sizeof bytes, MSG_WAITALL), 10);
    ::close(accepted);
}

TEST_F(StreamSocketTest, OwnBindIsKept) {
    Fd fd = open(SOCK_STREAM);
    const sockaddr_in bound = ipv4("127.0.0.3", 0);
    ASSERT_EQ(fd->bind(fd.number(), as_sockaddr(bound), sizeof bound), 0);
    ASSERT_EQ(fd.connect("10.77.0.9", 80), 0);
    EXPECT_EQ(fd->shared_for_test().local.address[15], 3);
    EXPECT_NE(fd->shared_for_test().local.port, 0);
}

TEST_F(StreamSocketTest, DisconnectAborts) {
    Fd fd = connected();
    const std::uint32_t record = fd->record();
    sockaddr none{};
    none.sa_family = AF_UNSPEC;
    EXPECT_EQ(fd->connect(fd.number(), &none, sizeof none), 0);
    EXPECT_TRUE(daemon.wait_closed(record));
    EXPECT_FALSE(fd->is_ours());
}

// --- signals --------------------------------------------------------------------------------------------------------------

std::atomic<int> interruptions{0};

/// Receives in a thread, interrupts it with SIGUSR1 while it sleeps, delivers afterwards.
void interrupted_receive(FakeDaemon& daemon, const Fd& fd, int flags, std::string& got) {
    struct sigaction action{};
    struct sigaction before{};
    action.sa_handler = [](int) { ++interruptions; };
    action.sa_flags = flags;
    ::sigaction(SIGUSR1, &action, &before);
    interruptions = 0;
    std::atomic<bool> done{false};
    std::thread receiver([&] {
        got = fd.receive(10);
        done = true;
    });
    shm::SocketRecord& record = daemon.segment().socket(fd->record());
    while (record.app.waiters.load() == 0) std::this_thread::yield();
    // The thread may not sleep in the kernel yet: a signal too early interrupts nothing, so knock until it counts.
    if (flags == 0)
        while (!done) ::pthread_kill(receiver.native_handle(), SIGUSR1), std::this_thread::yield();
    else
        while (interruptions < 3) ::pthread_kill(receiver.native_handle(), SIGUSR1), std::this_thread::yield();
    if (flags != 0) daemon.deliver(fd->record(), "after");
    receiver.join();
    ::sigaction(SIGUSR1, &before, nullptr);
}

TEST_F(StreamSocketTest, ReceiveIsInterruptedWithoutSaRestart) {
    Fd fd = connected();
    std::string got;
    interrupted_receive(daemon, fd, 0, got);
    EXPECT_EQ(got, error_text(EINTR));
}

TEST_F(StreamSocketTest, ReceiveGoesOnWithSaRestart) {
    Fd fd = connected();
    std::string got;
    interrupted_receive(daemon, fd, SA_RESTART, got);
    EXPECT_EQ(got, "after");
}

// --- sendfile, ioctl, options -----------------------------------------------------------------------------------------------

TEST_F(StreamSocketTest, SendfileWithAndWithoutOffset) {
    Fd fd = connected();
    const std::string bytes = pattern(10'000);
    const int file = ::memfd_create("file", MFD_CLOEXEC);
    ASSERT_EQ(::write(file, bytes.data(), bytes.size()), 10'000);
    off_t offset = 1000;
    EXPECT_EQ(fd->sendfile(fd.number(), file, &offset, 50'000), 9000) << "up to the end of the file";
    EXPECT_EQ(offset, 10'000);
    EXPECT_EQ(::lseek(file, 0, SEEK_CUR), 10'000) << "with an offset the file's position stays";
    ::lseek(file, 500, SEEK_SET);
    EXPECT_EQ(fd->sendfile(fd.number(), file, nullptr, 300), 300);
    EXPECT_EQ(::lseek(file, 0, SEEK_CUR), 800);
    ASSERT_TRUE(daemon.wait_received(fd->record(), 9300));
    EXPECT_TRUE(daemon.received(fd->record()) == bytes.substr(1000) + bytes.substr(500, 300));
    EXPECT_EQ(fd->sendfile(fd.number(), -1, nullptr, 1), -1);
    EXPECT_EQ(errno, EBADF);
    ::close(file);
}

TEST_F(StreamSocketTest, FionreadAndOutq) {
    Fd fd = connected();
    daemon.deliver(fd->record(), "12345");
    int count = 0;
    EXPECT_EQ(fd->ioctl(fd.number(), FIONREAD, &count), 0);
    EXPECT_EQ(count, 5);
    daemon.hold_acknowledgements(fd->record());
    fd.send("abc");
    EXPECT_EQ(fd->ioctl(fd.number(), TIOCOUTQ, &count), 0);
    EXPECT_EQ(count, 3);
}

TEST_F(StreamSocketTest, NonBlockingIsOneFlag) {
    Fd fd = connected();
    int on = 1;
    EXPECT_EQ(fd->ioctl(fd.number(), FIONBIO, &on), 0);
    EXPECT_NE(fd->get_status_flags(fd.number()) & O_NONBLOCK, 0);
    EXPECT_EQ(fd.receive(1), error_text(EAGAIN));
    EXPECT_EQ(fd->set_status_flags(fd.number(), 0), 0);
    EXPECT_FALSE(fd->nonblocking());
}

TEST_F(StreamSocketTest, OptionsReachTheRecord) {
    Fd fd = open(SOCK_STREAM);
    EXPECT_EQ(fd.set_int(IPPROTO_TCP, TCP_NODELAY, 1), 0);
    ASSERT_EQ(fd.connect("10.77.0.9", 80), 0);
    EXPECT_EQ(daemon.options(fd->record()).flags, shm::kOptionNoDelay) << "set before there was a record";
    EXPECT_EQ(fd.set_int(IPPROTO_TCP, TCP_KEEPIDLE, 42), 0);
    EXPECT_EQ(daemon.options(fd->record()).keepalive_idle_s, 42u);
    EXPECT_EQ(fd.get_int(IPPROTO_TCP, TCP_KEEPIDLE), 42);
    EXPECT_EQ(fd->shared_for_test().app.options_version % 2, 0u);
    EXPECT_EQ(fd.set_int(IPPROTO_TCP, TCP_KEEPIDLE, 0), -EINVAL);
    EXPECT_EQ(daemon.options(fd->record()).keepalive_idle_s, 42u);
    EXPECT_EQ(fd.get_int(SOL_SOCKET, SO_TYPE), SOCK_STREAM);
    tcp_info info{};
    socklen_t length = sizeof info;
    EXPECT_EQ(fd->get_option(fd.number(), IPPROTO_TCP, TCP_INFO, &info, &length), 0);
    EXPECT_EQ(info.tcpi_rtt, 777u);
}

/// What the kernel makes of the size of a buffer is what the program reads back and, halved, what the daemon is told.
TEST_F(StreamSocketTest, BufferSizesAreTheKernels) {
    const UniqueFd kernel(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const auto kernel_says = [&](int set, int get, int bytes) {
        if (::setsockopt(kernel.get(), SOL_SOCKET, set, &bytes, sizeof bytes) != 0) return -errno;
        socklen_t length = sizeof bytes;
        EXPECT_EQ(::getsockopt(kernel.get(), SOL_SOCKET, get, &bytes, &length), 0);
        return bytes;
    };
    Fd own = connected();
    Fd listener = open(SOCK_STREAM);
    const sockaddr_in any = ipv4("0.0.0.0", 0);
    ASSERT_EQ(listener->bind(listener.number(), as_sockaddr(any), sizeof any), 0);
    ASSERT_EQ(listener->listen(listener.number(), 5), 0);
    daemon.arrive(listener->record(), 1);
    Fd taken = accept(listener);
    struct Case {
        int set, get;
        std::uint32_t shm::SocketOptions::*field;
    };
    for (const Fd* fd : {&own, &taken}) {
        EXPECT_EQ(fd->get_int(SOL_SOCKET, SO_RCVBUF), 123456) << "not fixed: the daemon's";
        EXPECT_EQ(fd->get_int(IPPROTO_TCP, TCP_WINDOW_CLAMP), 123456);
        for (const Case& option : {Case{SO_RCVBUF, SO_RCVBUF, &shm::SocketOptions::receive_buffer},
                                   Case{SO_RCVBUFFORCE, SO_RCVBUF, &shm::SocketOptions::receive_buffer},
                                   Case{SO_SNDBUF, SO_SNDBUF, &shm::SocketOptions::send_buffer},
                                   Case{SO_SNDBUFFORCE, SO_SNDBUF, &shm::SocketOptions::send_buffer}})
            for (const int bytes : {30'000, 0, -5, 1 << 29}) {  // the last: beyond rmem_max, unless privileged and forced
                const int expected = kernel_says(option.set, option.get, bytes);
                const int result = fd->set_int(SOL_SOCKET, option.set, bytes);
                if (expected < 0) {
                    EXPECT_EQ(result, expected);
                    continue;
                }
                EXPECT_EQ(result, 0);
                EXPECT_EQ(fd->get_int(SOL_SOCKET, option.get), expected) << option.set << " " << bytes;
                EXPECT_EQ(daemon.options((*fd)->record()).*option.field, static_cast<std::uint32_t>(expected / 2));
            }
    }
    EXPECT_EQ(own.set_int(IPPROTO_TCP, TCP_WINDOW_CLAMP, 20000), 0);
    EXPECT_EQ(own.get_int(IPPROTO_TCP, TCP_WINDOW_CLAMP), 20000);
    EXPECT_EQ(daemon.options(own->record()).window_clamp, 20000u);
    EXPECT_EQ(own.set_int(IPPROTO_TCP, TCP_WINDOW_CLAMP, 0), -EINVAL);
    EXPECT_EQ(own.set_int(IPPROTO_TCP, TCP_NOTSENT_LOWAT, 20000), 0);
    EXPECT_EQ(daemon.options(own->record()).notsent_lowat, 20000u);
    EXPECT_EQ(own.get_int(IPPROTO_TCP, TCP_NOTSENT_LOWAT), 20000);
}

TEST_F(StreamSocketTest, FastOpenOptionsReachTheRecord) {
    Fd fd = open(SOCK_STREAM);
    EXPECT_EQ(fd.set_int(IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1), 0);
    EXPECT_EQ(fd.get_int(IPPROTO_TCP, TCP_FASTOPEN_CONNECT), 1);
    ASSERT_EQ(fd.connect("10.77.0.9", 80), 0);
    EXPECT_EQ(daemon.options(fd->record()).flags & shm::kOptionFastOpen, shm::kOptionFastOpen);

    Fd listening = open(SOCK_STREAM);
    EXPECT_EQ(listening.set_int(IPPROTO_TCP, TCP_FASTOPEN, 16), 0);
    EXPECT_EQ(listening.set_int(IPPROTO_TCP, TCP_FASTOPEN, -1), -EINVAL);
}

TEST_F(StreamSocketTest, MessageFastOpenConnectsAndSends) {
    const auto send_to = [](Fd& fd, std::uint16_t to_port, std::string_view text) {
        sockaddr_in to{};
        to.sin_family = AF_INET;
        to.sin_port = htons(to_port);
        ::inet_pton(AF_INET, "10.77.0.9", &to.sin_addr);
        iovec part{const_cast<char*>(text.data()), text.size()};
        msghdr message{};
        message.msg_name = &to;
        message.msg_namelen = sizeof to;
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        return fd->send(fd.number(), message, MSG_FASTOPEN);
    };
    Fd fd = open(SOCK_STREAM);
    EXPECT_EQ(send_to(fd, 80, "hello"), 5) << std::strerror(errno);
    EXPECT_EQ(daemon.options(fd->record()).flags & shm::kOptionFastOpen, shm::kOptionFastOpen);
    ASSERT_TRUE(daemon.wait_received(fd->record(), 5));
    EXPECT_EQ(daemon.received(fd->record()), "hello");
    EXPECT_EQ(send_to(fd, 80, "again"), -1);
    EXPECT_EQ(errno, EISCONN);

    Fd refused = open(SOCK_STREAM);
    EXPECT_EQ(send_to(refused, FakeDaemon::kRefusingPort, "x"), -1);
    EXPECT_EQ(errno, ECONNREFUSED);
    Fd later = open(SOCK_STREAM | SOCK_NONBLOCK);  // no cookie: the handshake first, and no data yet
    EXPECT_EQ(send_to(later, FakeDaemon::kSilentPort, "x"), -1);
    EXPECT_EQ(errno, EINPROGRESS);
    EXPECT_EQ(send_to(later, FakeDaemon::kSilentPort, "x"), -1);
    EXPECT_EQ(errno, EALREADY);
    daemon.establish(later->record());
    EXPECT_EQ(later.send("x"), 1);
}

// --- the daemon dies --------------------------------------------------------------------------------------------------------

TEST_F(StreamSocketTest, DaemonsDeathIsAReset) {
    Fd fd = connected();
    Fd other = connected();
    std::string got;
    std::thread receiver([&] { got = fd.receive(1); });
    wait_for_waiter(fd->record());
    daemon.die();
    receiver.join();
    EXPECT_EQ(got, error_text(ECONNRESET));
    EXPECT_EQ(fd.receive(1), "");
    EXPECT_EQ(other.send("x", MSG_NOSIGNAL), -1);
    EXPECT_EQ(errno, ECONNRESET);
    EXPECT_EQ(other.send("x", MSG_NOSIGNAL), -1);
    EXPECT_EQ(errno, EPIPE);
    EXPECT_NE(fd->poll_now(true) & EPOLLHUP, 0u);
}

}  // namespace
}  // namespace culvert::test
