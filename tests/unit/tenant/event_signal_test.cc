#include "daemon/tenant/event_signal.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tests/unit/tenant/tenant_world.h"

namespace culvert::tenant {
namespace {

/// O_NONBLOCK belongs to the open file, which the application shares: it fills the counter and waits for the engine to write.
TEST_F(TenantTest, AFilledEventQueueDoesNotStopTheEngine) {
    if (!EventSignal().guarded()) GTEST_SKIP() << "no asynchronous I/O in this kernel";
    const std::uint32_t listener = listen(80);
    const int fd = ::eventfd(0, EFD_NONBLOCK);
    const std::uint32_t queue = *server_tenant->add_queue(0, UniqueFd(::dup(fd)));
    ASSERT_EQ(::fcntl(fd, F_SETFL, 0), 0);
    const std::uint64_t full = UINT64_MAX - 1;
    ASSERT_EQ(::write(fd, &full, sizeof full), 8);
    server.segment.watched(queue).set(listener);
    server.segment.socket(listener).app.watch.store(queue + 1);
    for (Port port = 40020; port < 40024; ++port) {
        server.segment.queue(queue).asleep.store(1);
        connect(port, 80);  // would never return
        EXPECT_EQ(server.segment.queue(queue).asleep.load(), 0u);
    }
    std::uint64_t count = 0;
    EXPECT_EQ(::read(fd, &count, sizeof count), 8);
    EXPECT_GE(count, full);
    ::close(fd);
}

TEST(EventSignal, EverySignalCounts) {
    EventSignal signal;
    const UniqueFd event(::eventfd(0, EFD_NONBLOCK));
    for (int i = 0; i < 500; ++i) signal.signal(event.get());  // more than completions are kept
    std::uint64_t count = 0;
    EXPECT_EQ(::read(event.get(), &count, sizeof count), 8);
    EXPECT_EQ(count, 500u);
}

}  // namespace
}  // namespace culvert::tenant
