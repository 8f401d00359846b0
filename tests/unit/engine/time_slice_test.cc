#include "daemon/engine/time_slice.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <thread>

namespace culvert::engine {
namespace {

using namespace std::chrono_literals;

SchedulingAttributes attributes_of_this_thread() {
    SchedulingAttributes attributes;
    EXPECT_EQ(::syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0), 0);
    return attributes;
}

TEST(TimeSlice, IsWhatWasAskedForAndChangesNothingElse) {
    std::thread([] {
        const SchedulingAttributes before = attributes_of_this_thread();
        EXPECT_TRUE(ask_for_slice(0us));
        EXPECT_EQ(attributes_of_this_thread().runtime, before.runtime);
        ASSERT_TRUE(ask_for_slice(300us));
        const SchedulingAttributes after = attributes_of_this_thread();
        EXPECT_EQ(after.policy, before.policy);
        EXPECT_EQ(after.nice, before.nice);
        if (before.runtime == 0) GTEST_SKIP() << "a kernel without slices (before Linux 6.12)";
        EXPECT_EQ(after.runtime, 300'000u);
    }).join();
}

TEST(TimeSlice, LeavesThreadsAloneThatRunWhenNobodyElseWants) {
    std::thread([] {
        SchedulingAttributes idle;
        idle.policy = SCHED_IDLE;
        ASSERT_EQ(::syscall(SYS_sched_setattr, 0, &idle, 0), 0);
        const SchedulingAttributes before = attributes_of_this_thread();
        EXPECT_TRUE(ask_for_slice(300us));
        EXPECT_EQ(attributes_of_this_thread().policy, before.policy);
        EXPECT_EQ(attributes_of_this_thread().runtime, before.runtime);
    }).join();
}

}  // namespace
}  // namespace culvert::engine
