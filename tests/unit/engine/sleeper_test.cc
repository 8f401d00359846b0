// What the engine relies on of io_uring: a multishot poll is heard at every wake-up, without reading the descriptor.
#include "daemon/engine/sleeper.h"

#include <gtest/gtest.h>
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
