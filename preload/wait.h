// How long a waiter looks before it sleeps.
//
// Waking somebody who sleeps costs 20-50 us on a virtual machine; looking costs a few nanoseconds. So a wait first looks
// for up to the daemon's `spin_us`, giving the core away between two looks (the daemon may need this very core to make
// what we wait for). A wait that has looked in vain a few times in a row belongs to an idle program: it sleeps at once,
// and tries looking again only now and then.
#pragma once

#include <time.h>

#include <atomic>
#include <cstdint>

#include "preload/confined.h"

namespace culvert::preload {

inline std::int64_t monotonic_ns() noexcept {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

/// What one waiting place (an epoll set, a socket) has learnt about spinning. Shared by its threads; races only blur it.
struct SpinHistory {
    std::atomic<std::uint32_t> fruitless{0};  // waits in a row that looked in vain
};

/// One wait's spinning: `while (spin.again()) look();`, then `spin.found()` if a look was lucky.
class SpinWait {
public:
    /// After so many fruitless waits in a row spinning is skipped: one lucky spin in four pays for three unlucky ones.
    static constexpr std::uint32_t kGiveUpAfter = 4;
    /// While skipping, every such wait spins all the same, to notice that the load has come back.
    static constexpr std::uint32_t kTryAgainEvery = 16;

    SpinWait(SpinHistory& history, std::uint32_t spin_us) noexcept : history_(&history), spin_us_(spin_us) {
        const std::uint32_t fruitless = history.fruitless.load(std::memory_order_relaxed);
        if (is_confined() || (fruitless >= kGiveUpAfter && fruitless % kTryAgainEvery != 0)) spin_us_ = 0;
    }

    /// True if the waiter may look once more. Gives the core away first. Counts the wait as fruitless when time is up.
    bool again() noexcept {
        const std::int64_t now = spin_us_ != 0 ? monotonic_ns() : 0;
        if (begin_ == 0) begin_ = now;
        if (spin_us_ == 0 || now - begin_ >= std::int64_t{spin_us_} * 1000) {
            history_->fruitless.store(history_->fruitless.load(std::memory_order_relaxed) + 1,
                                      std::memory_order_relaxed);
            return false;
        }
        yield_core();
        return true;
    }
    /// A look found something.
    void found() noexcept { history_->fruitless.store(0, std::memory_order_relaxed); }

private:
    SpinHistory* history_;
    std::uint32_t spin_us_;
    std::int64_t begin_ = 0;
};

}  // namespace culvert::preload
