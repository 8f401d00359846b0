// What the engine relies on of io_uring: a multishot poll is heard at every wake-up, without reading the descriptor.
#include "daemon/engine/sleeper.h"

#include <gtest/gtest.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <thread>

#include "shm/wakeup.h"

namespace culvert::engine {
namespace {

using namespace std::chrono_literals;

/// How long one wait took, as a multiple of nothing but itself: only "at once" and "the whole time" are told apart.
bool wakes_before_the_deadline(Sleeper& sleeper) {
    const auto begin = std::chrono::steady_clock::now();
    sleeper.wait(20s);
    return std::chrono::steady_clock::now() - begin < 10s;
}

TEST(Sleeper, EveryRingIsHeardWithoutReadingIt) {
    Sleeper sleeper;
    for (int i = 0; i < 200; ++i) {
        sleeper.ring();
        ASSERT_TRUE(wakes_before_the_deadline(sleeper)) << "ring " << i;
    }
}

/// Whoever holds the doorbell may clear its O_NONBLOCK and fill its counter. Then nobody of the daemon must block on it, and other
/// applications' rings must be heard as before.
TEST(Sleeper, AFilledDoorbellHarmsNobody) {
    Sleeper sleeper;
    ASSERT_EQ(::fcntl(sleeper.doorbell_fd(), F_SETFL, 0), 0);
    const std::uint64_t full = UINT64_MAX - 1;
    for (int i = 0; i < 20; ++i) {
        ASSERT_EQ(::write(sleeper.doorbell_fd(), &full, sizeof full), static_cast<ssize_t>(sizeof full));
        ASSERT_TRUE(wakes_before_the_deadline(sleeper)) << "fill " << i;
        pollfd room{sleeper.doorbell_fd(), POLLOUT, 0};
        ASSERT_EQ(::poll(&room, 1, 0), 1) << "full after the wake-up: the next ring would block";
        shm::signal_eventfd(sleeper.doorbell_fd());
        ASSERT_TRUE(wakes_before_the_deadline(sleeper)) << "ring " << i;
        sleeper.ring();
        ASSERT_TRUE(wakes_before_the_deadline(sleeper)) << "own ring " << i;
    }
    ASSERT_EQ(::write(sleeper.doorbell_fd(), &full, sizeof full), static_cast<ssize_t>(sizeof full));
    sleeper.ring();  // would never return if it went through the doorbell
    EXPECT_TRUE(wakes_before_the_deadline(sleeper));
}

TEST(Sleeper, AnyWatchedDescriptorWakes) {
    Sleeper sleeper;
    const UniqueFd first(::eventfd(0, EFD_NONBLOCK));
    const UniqueFd second(::eventfd(0, EFD_NONBLOCK));
    sleeper.watch(first.get());
    sleeper.watch(second.get());
    for (const int fd : {second.get(), first.get(), second.get()}) {
        shm::signal_eventfd(fd);
        ASSERT_TRUE(wakes_before_the_deadline(sleeper));
    }
}

TEST(Sleeper, IsWokenWhileItSleeps) {
    Sleeper sleeper;
    std::thread other([&] { sleeper.ring(); });
    EXPECT_TRUE(wakes_before_the_deadline(sleeper));
    other.join();
}

TEST(Sleeper, ADeadlineInThePastDoesNotWait) {
    Sleeper sleeper;
    sleeper.wait(Duration::zero());
    sleeper.wait(-1s);
    sleeper.wait(1us);
}

}  // namespace
}  // namespace culvert::engine
