// The process's side of the segment: records, queues, descriptors, the table.

#include <sys/resource.h>
#include <sys/un.h>

#include <set>

#include "preload/own_fd.h"
#include "shm/attach_protocol.h"
#include "tests/preload/socket_fixture.h"

namespace culvert::test {
namespace {

using preload::FdTable;
using ClientTest = SocketTest;

TEST_F(ClientTest, OwnDescriptorsAreHighProtectedAndCloseOnExec) {
    const int control = client->control_fd();
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    EXPECT_GE(control, static_cast<int>(std::min<rlim_t>(limit.rlim_cur, 1u << 20) / 2));
    EXPECT_TRUE(FdTable::instance().is_protected(control));
    EXPECT_NE(::fcntl(control, F_GETFD) & FD_CLOEXEC, 0);
    EXPECT_FALSE(FdTable::instance().is_protected(0));
}

TEST_F(ClientTest, RecordsAreHeldAndRunOut) {
    std::set<std::uint32_t> taken;
    while (const auto record = client->take_record()) {
        EXPECT_TRUE(taken.insert(*record).second) << "twice the same";
        EXPECT_TRUE(daemon.segment().holders(client->process_slot()).test(*record));
        EXPECT_FALSE(daemon.segment().free_sockets().test(*record));
    }
    EXPECT_EQ(taken.size(), daemon.segment().geometry().app_sockets);
    // With none left, connections are the kernel's: an address nobody routes to fails there.
    Fd fd = open(SOCK_STREAM | SOCK_NONBLOCK);
    (void)fd.connect("10.77.0.9", 80);
    EXPECT_FALSE(fd->is_ours());
    for (const std::uint32_t record : taken) {
        client->let_go(record);
        EXPECT_FALSE(daemon.segment().holders(client->process_slot()).test(record));
        ASSERT_TRUE(daemon.wait_closed(record));
    }
    EXPECT_TRUE(client->take_record().has_value());
}

TEST_F(ClientTest, QueuesComeAndGo) {
    std::vector<preload::EventQueue> queues;
    while (const auto queue = client->add_queue()) queues.push_back(*queue);
    EXPECT_EQ(queues.size(), daemon.segment().geometry().queues);
    EXPECT_FALSE(client->daemon_gone()) << "a refusal is an answer";
    for (const auto& queue : queues) client->remove_queue(queue);
    const auto borrowed = client->borrow_poll_queue();
    ASSERT_TRUE(borrowed.has_value());
    client->give_back_poll_queue(*borrowed);
    const auto again = client->borrow_poll_queue();
    EXPECT_EQ(again->eventfd, borrowed->eventfd) << "from the pool";
    client->give_back_poll_queue(*again);
}

TEST_F(ClientTest, WatchWord) {
    Fd fd = connected();
    const std::atomic<std::uint32_t>& word = daemon.segment().socket(fd->record()).app.watch;
    client->watch(3, fd->record());
    EXPECT_EQ(word.load(), 4u);
    client->watch(3, fd->record());
    EXPECT_EQ(word.load(), 4u);
    client->unwatch(3, fd->record());
    EXPECT_EQ(word.load(), shm::kWatchNone);
    client->watch(3, fd->record());
    client->watch(5, fd->record());
    EXPECT_EQ(word.load(), shm::kWatchMany);
    EXPECT_TRUE(daemon.segment().watched(5).test(fd->record()));
}

TEST_F(ClientTest, DeathIsSeenOnce) {
    EXPECT_FALSE(client->check_daemon());
    daemon.die();
    while (!client->check_daemon()) std::this_thread::yield();
    EXPECT_TRUE(client->daemon_gone());
    EXPECT_FALSE(client->add_queue().has_value());
}

TEST_F(ClientTest, TurningAwayIsToldToTheDaemon) {
    const std::uint32_t slot = client->process_slot();
    daemon.answer_nonsense();
    EXPECT_FALSE(client->add_queue().has_value());
    EXPECT_TRUE(client->daemon_gone());
    EXPECT_TRUE(daemon.wait_process_gone(slot)) << "it sees the end of file";
}

TEST_F(ClientTest, ARecordOfAnotherGenerationIsLeftAlone) {
    Fd fd = connected();
    const std::uint32_t record = fd->record();
    shm::SocketRecord& shared = daemon.segment().socket(record);
    shared.daemon.generation.fetch_add(1);  // freed, and taken again by another socket of this process
    fd.close();
    EXPECT_TRUE(daemon.segment().holders(client->process_slot()).test(record));
    EXPECT_EQ(shared.app.flags & shm::kAppClosed, 0u);
    client->let_go(record);
    EXPECT_TRUE(daemon.wait_closed(record)) << "its holder can close it";
}

TEST_F(ClientTest, ADaemonThatSaysNothingIsLeftAloneForAWhileAfterwards) {
    // It accepts, in its queue, and never answers. The attempt lasts two seconds; the next call must not begin another.
    const std::string path = "/tmp/culvert-deaf-" + std::to_string(::getpid());
    ::unlink(path.c_str());
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    const int deaf = preload::libc::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    ASSERT_EQ(preload::libc::bind(deaf, reinterpret_cast<const sockaddr*>(&address), static_cast<socklen_t>(sizeof address)), 0);
    ASSERT_EQ(preload::libc::listen(deaf, 8), 0);
    ::setenv(shm::kSocketPathVariable, path.c_str(), 1);
    preload::Client::install(nullptr);
    const auto take = [&] { return preload::libc::accept4(deaf, nullptr, nullptr, SOCK_CLOEXEC); };
    EXPECT_EQ(preload::Client::attached(), nullptr);
    const int connection = take();
    EXPECT_GE(connection, 0);
    EXPECT_EQ(preload::Client::attached(), nullptr);
    EXPECT_LT(take(), 0) << "asked again at once";
    ::unsetenv(shm::kSocketPathVariable);
    ::unlink(path.c_str());
    preload::raw::close(connection);
    preload::raw::close(deaf);
}

TEST(FdTable, ReferencesKeepADescriptionAlive) {
    preload::Socket* socket = preload::Socket::make(AF_INET, SOCK_STREAM, false);
    FdTable& table = FdTable::instance();
    table.insert(900, *socket);
    table.insert(901, *socket);
    EXPECT_EQ(socket->descriptors, 2u);
    {
        preload::DescriptionRef ref = table.find(900);
        ASSERT_TRUE(ref);
        table.remove(900);
        table.remove(901);
        EXPECT_FALSE(table.contains(900));
        EXPECT_EQ(ref->references, 1u);
    }
    EXPECT_FALSE(table.find(901));
    preload::Socket* second = preload::Socket::make(AF_INET, SOCK_STREAM, false);
    EXPECT_EQ(second, socket) << "memory comes from the pool";
    second->dispose();
}

TEST(FdTable, FindNeverMeetsADeadDescription) {
    FdTable& table = FdTable::instance();
    std::atomic<bool> stop{false};
    std::atomic<int> wrong{0};
    std::thread reader([&] {
        while (!stop)
            if (preload::DescriptionRef ref = table.find(910))
                if (ref->references == 0 || ref->kind() != preload::Description::Kind::kSocket) ++wrong;
    });
    for (int i = 0; i < 20'000; ++i) {
        table.insert(910, *preload::Socket::make(AF_INET, SOCK_STREAM, false));
        table.remove(910);
    }
    stop = true;
    reader.join();
    EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace culvert::test
