// The sleep/wake protocol, every interleaving.
//
// The steps of one sleeper and of two posters, each an atomic operation in the total order of seq_cst, are interleaved
// in every possible way. A sleeper that waits while work is published and nobody will signal is a lost wake-up. The same
// search with the sleeper's second look, or the poster's order, taken away must find the loss: the test can fail.
#include "shm/wakeup.h"

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <set>
#include <tuple>

namespace culvert::shm {
namespace {

struct Protocol {
    bool second_look = true;
    bool publish_first = true;
};

struct State {
    int sleeper = 0;             // 0 announce, 1 look, 2 wait, 3 awake
    std::array<int, 2> poster{};  // 0 and 1: publish / look at the flag, 2 signal, 3 done
    bool asleep = false;
    int work = 0;
    int signals = 0;
    auto key() const { return std::tuple(sleeper, poster, asleep, work, signals); }
    bool operator<(const State& other) const { return key() < other.key(); }
};

class Search {
public:
    explicit Search(Protocol protocol) : protocol_(protocol) { visit(State{}); }
    bool lost_wakeup() const { return lost_; }
    std::size_t states() const { return seen_.size(); }

private:
    void visit(const State& s) {
        if (!seen_.insert(s).second) return;
        bool moved = false;
        if (State next = s; step_sleeper(next)) moved = true, visit(next);
        for (int p = 0; p < 2; ++p)
            if (State next = s; step_poster(next, p)) moved = true, visit(next);
        if (!moved && s.sleeper != 3) lost_ = true;  // waits for ever although both posters are done
    }
    bool step_sleeper(State& s) const {
        switch (s.sleeper) {
            case 0: s.asleep = true; s.sleeper = protocol_.second_look ? 1 : 2; return true;
            case 1:
                if (s.work > 0) {
                    s.asleep = false;
                    s.sleeper = 3;
                } else {
                    s.sleeper = 2;
                }
                return true;
            case 2:
                if (s.signals == 0) return false;
                s.sleeper = 3;
                return true;
            default: return false;
        }
    }
    bool step_poster(State& s, int p) const {
        int& at = s.poster[static_cast<std::size_t>(p)];
        const bool publishes = protocol_.publish_first ? at == 0 : at == 1;
        if (at >= 3) return false;
        if (at == 2) {
            ++s.signals;
            at = 3;
            if (!protocol_.publish_first) ++s.work;
            return true;
        }
        if (publishes && protocol_.publish_first) {
            ++s.work;
            at = 1;
            return true;
        }
        if (!protocol_.publish_first && at == 1) {  // wrong order: publishes after having seen nobody asleep
            ++s.work;
            at = 3;
            return true;
        }
        // look at the flag; the exchange lets one poster signal
        if (s.asleep) {
            s.asleep = false;
            at = 2;
        } else {
            at = protocol_.publish_first ? 3 : 1;
        }
        return true;
    }

    Protocol protocol_;
    std::set<State> seen_;
    bool lost_ = false;
};

TEST(Wakeup, NoInterleavingLosesAWakeup) {
    const Search search({});
    EXPECT_FALSE(search.lost_wakeup());
    EXPECT_GT(search.states(), 30u);
}

TEST(Wakeup, WithoutTheSecondLookOneIsLost) { EXPECT_TRUE(Search({.second_look = false}).lost_wakeup()); }

TEST(Wakeup, PublishingAfterTheLookLosesOne) { EXPECT_TRUE(Search({.publish_first = false}).lost_wakeup()); }

TEST(Wakeup, OnlyOnePosterSignals) {
    std::atomic<std::uint32_t> asleep{0};
    EXPECT_FALSE(must_wake(asleep));
    announce_sleep(asleep);
    EXPECT_TRUE(must_wake(asleep));
    EXPECT_FALSE(must_wake(asleep));
}

TEST(Wakeup, FutexWaitTellsWhyItEnded) {
    std::atomic<std::uint32_t> word{5};
    EXPECT_EQ(futex_wait(word, 4, -1), 0);  // changed already: does not wait
    EXPECT_EQ(futex_wait(word, 5, 1'000'000), ETIMEDOUT);
}

TEST(Wakeup, SignalKeepsErrno) {
    const int fd = ::eventfd(0, EFD_NONBLOCK);
    errno = 42;
    signal_eventfd(fd);
    signal_eventfd(-1);
    EXPECT_EQ(errno, 42);
    std::uint64_t value = 0;
    EXPECT_EQ(::read(fd, &value, sizeof value), 8);
    EXPECT_EQ(value, 1u);
    ::close(fd);
}

}  // namespace
}  // namespace culvert::shm
