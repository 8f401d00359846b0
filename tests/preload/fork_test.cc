// fork: both processes hold every socket; whoever is last closes it.

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "preload/socket_lock.h"
#include "tests/preload/socket_fixture.h"

namespace culvert::test {
namespace {

/// The fork handlers are installed as in a program; the child must not run the fixture's destructors.
class ForkTest : public SocketTest {
protected:
    ForkTest() { preload::start_once(); }
    /// Runs `work` in a child; returns its exit status.
    template <class Work>
    int in_child(Work&& work) {
        const pid_t child = ::fork();
        if (child == 0) ::_exit(work());
        int status = 0;
        ::waitpid(child, &status, 0);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    }
};

TEST_F(ForkTest, ChildUsesTheConnectionAndItsExitClosesNothing) {
    Fd fd = connected();
    const std::uint32_t record = fd->record();
    const std::uint32_t parent_slot = client->process_slot();
    const int status = in_child([&] {
        if (client->process_slot() == parent_slot) return 1;
        if (!daemon.segment().holders(client->process_slot()).test(record)) return 2;
        return fd.send("from the child") == 14 ? 0 : 3;
    });
    EXPECT_EQ(status, 0);
    EXPECT_TRUE(daemon.wait_received(record, 14));
    EXPECT_TRUE(daemon.wait_process_gone(parent_slot + 1));
    EXPECT_FALSE(daemon.closed(record)) << "the parent still holds it";
    EXPECT_EQ(fd.send("!"), 1);
    fd.close();
    EXPECT_TRUE(daemon.wait_closed(record));
}

TEST_F(ForkTest, TheLastOfBothCloses) {
    Fd fd = connected();
    const std::uint32_t record = fd->record();
    int to_child[2];
    ASSERT_EQ(::pipe(to_child), 0);
    const pid_t child = ::fork();
    if (child == 0) {
        char byte = 0;
        (void)!::read(to_child[0], &byte, 1);  // the parent has closed
        const bool open = fd.send("last words") == 10;
        fd.close();
        ::_exit(open ? 0 : 1);
    }
    fd.close();
    Fd other = connected();  // a question and its answer: the daemon has seen whatever came before
    EXPECT_FALSE(daemon.closed(record));
    (void)!::write(to_child[1], "x", 1);
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
    EXPECT_TRUE(daemon.wait_closed(record));
    EXPECT_EQ(daemon.received(record), "last words");
    ::close(to_child[0]);
    ::close(to_child[1]);
}

TEST_F(ForkTest, WorkersAcceptFromOneListener) {
    Fd listener = listening();
    const pid_t child = ::fork();
    if (child == 0) {
        Fd fd = accept(listener);
        ::_exit(fd.number() >= 0 && fd.send("worker") == 6 ? 0 : 1);
    }
    const auto record = daemon.arrive(listener->record(), 1);
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
    EXPECT_TRUE(daemon.wait_closed(*record)) << "the worker's exit closed what only it held";
    EXPECT_EQ(daemon.received(*record), "worker");
    EXPECT_FALSE(daemon.closed(listener->record()));
}

TEST_F(ForkTest, GrandchildAndManyForks) {
    Fd fd = connected();
    const std::uint32_t record = fd->record();
    for (int i = 0; i < 20; ++i) {  // more than there are process slots: each is given back
        ASSERT_EQ(in_child([&] { return in_child([&] { return fd.send("x") == 1 ? 0 : 1; }); }), 0) << i;
        ASSERT_TRUE(daemon.wait_process_gone(1));
        ASSERT_TRUE(daemon.wait_process_gone(2));
    }
    EXPECT_TRUE(daemon.wait_received(record, 20));
    EXPECT_FALSE(daemon.closed(record));
}

TEST_F(ForkTest, ParentsEndIsSeenWhileItsChildLives) {
    int hold[2];
    ASSERT_EQ(::pipe(hold), 0);
    const std::uint32_t slot = client->process_slot() + 1;
    EXPECT_EQ(in_child([&] {
                  if (::fork() == 0) {  // lives until the test closes the pipe
                      ::close(hold[1]);
                      char byte = 0;
                      (void)!::read(hold[0], &byte, 1);
                      ::_exit(0);
                  }
                  return 0;
              }),
              0);
    EXPECT_TRUE(daemon.wait_process_gone(slot)) << "the grandchild must not keep its parent's connection open";
    EXPECT_EQ(daemon.segment().process(slot + 1).live, 1u);
    ::close(hold[0]);
    ::close(hold[1]);
    EXPECT_TRUE(daemon.wait_process_gone(slot + 1));
}

TEST_F(ForkTest, FileFlagsAreOfTheFile) {
    Fd listener = listening();
    daemon.arrive(listener->record(), 1);
    Fd accepted = accept(listener);  // behind a placeholder
    Fd made = connected();
    EXPECT_EQ(in_child([&] {
                  for (const Fd* fd : {&listener, &accepted, &made})
                      (*fd)->set_status_flags(fd->number(), O_NONBLOCK | O_APPEND);
                  return 0;
              }),
              0);
    for (const Fd* fd : {&listener, &accepted, &made}) {
        EXPECT_TRUE((*fd)->nonblocking());
        EXPECT_EQ((*fd)->get_status_flags(fd->number()) & (O_NONBLOCK | O_APPEND), O_NONBLOCK | O_APPEND);
    }
    EXPECT_EQ(accepted.receive(1), error_text(EAGAIN));
    int off = 0;
    EXPECT_EQ(accepted->ioctl(accepted.number(), FIONBIO, &off), 0);
    EXPECT_EQ(in_child([&] { return accepted->nonblocking() || !made->nonblocking() ? 1 : 0; }), 0);
    daemon.die();
    EXPECT_TRUE(made->nonblocking()) << "what was known last";
}

TEST_F(ForkTest, AListenerThatOneHasShutIsShutForAll) {
    Fd listener = listening();
    EXPECT_EQ(in_child([&] { return listener->shutdown(listener.number(), SHUT_RD); }), 0);
    EXPECT_EQ(listener->poll_now(false) & EPOLLHUP, static_cast<std::uint32_t>(EPOLLHUP));
    EXPECT_EQ(listener->accept(listener.number(), nullptr, nullptr, 0), -1);
    EXPECT_EQ(errno, EINVAL);
    EXPECT_EQ(listener->path(), preload::Socket::Path::kListener) << "the record stays: one of them may listen again";
    EXPECT_EQ(in_child([&] { return listener->listen(listener.number(), 4); }), 0);
    EXPECT_EQ(listener->poll_now(false), 0u);
    daemon.arrive(listener->record(), 1);
    EXPECT_GE(accept(listener).number(), 0);
}

TEST_F(ForkTest, NoSlotLeftMeansAResetInTheChildOnly) {
    for (std::uint32_t slot = 1; slot < daemon.segment().geometry().processes; ++slot)
        daemon.segment().process(slot).live.store(1);
    Fd fd = connected();
    EXPECT_EQ(in_child([&] {
                  preload::Client::install(nullptr);
                  return fd.receive(1) == error_text(ECONNRESET) ? 0 : 1;
              }),
              0);
    EXPECT_EQ(fd.send("x"), 1);
    for (std::uint32_t slot = 1; slot < daemon.segment().geometry().processes; ++slot)
        daemon.segment().process(slot).live.store(0);
}

TEST_F(ForkTest, VforkChildIsNoticed) {
#ifdef __SANITIZE_THREAD__
    GTEST_SKIP() << "ThreadSanitizer turns vfork into fork";
#endif
    EXPECT_FALSE(preload::in_borrowed_memory());
    volatile int seen = -1;
    const pid_t child = ::vfork();
    if (child == 0) {
        seen = preload::in_borrowed_memory() ? 1 : 0;
        ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(seen, 1);
    EXPECT_FALSE(preload::in_borrowed_memory());
}

TEST_F(ForkTest, LockOfADeadProcessIsFreed) {
    Fd fd = connected();
    const std::uint32_t record = fd->record();
    const pid_t child = ::fork();
    if (child == 0) {
        new preload::SocketLock(*client, daemon.segment().socket(record).app.tx_lock);
        ::kill(::getpid(), SIGKILL);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(fd.send("x"), 1) << "the daemon frees what the dead held";
}

}  // namespace
}  // namespace culvert::test
