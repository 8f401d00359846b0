#include "daemon/base/timer_wheel.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <set>
#include <vector>

#include "daemon/base/rng.h"

namespace culvert {
namespace {

using namespace std::chrono_literals;

Instant at(Duration d) { return Instant{} + d; }

/// Runs the wheel to `now` and returns the nodes that fired, in order.
std::vector<TimerNode*> fired(TimerWheel& wheel, Instant now) {
    std::vector<TimerNode*> nodes;
    wheel.advance(now, [&](TimerNode& node) {
        nodes.push_back(&node);
        return kNever;
    });
    return nodes;
}

TEST(TimerWheel, FiresNeverEarlyAndWithinATick) {
    TimerWheel wheel;
    TimerNode node(7);
    wheel.schedule(node, at(40ms));
    EXPECT_TRUE(fired(wheel, at(40ms - 1ns)).empty());
    EXPECT_TRUE(node.queued());
    const auto nodes = fired(wheel, at(40ms) + TimerWheel::kTick);
    ASSERT_EQ(nodes.size(), 1u);
    EXPECT_EQ(nodes[0], &node);
    EXPECT_EQ(node.kind(), 7);
    EXPECT_FALSE(node.queued());
    EXPECT_TRUE(wheel.empty());
}

TEST(TimerWheel, ADeadlineInThePastFiresAtTheNextTick) {
    TimerWheel wheel(at(1s));
    TimerNode node;
    wheel.schedule(node, at(10ms));
    EXPECT_EQ(fired(wheel, at(1s) + TimerWheel::kTick).size(), 1u);
}

TEST(TimerWheel, CancelledAndNeverDoNotFire) {
    TimerWheel wheel;
    TimerNode cancelled;
    TimerNode never;
    wheel.schedule(cancelled, at(1s));
    wheel.schedule(never, at(1s));
    wheel.cancel(cancelled);
    wheel.cancel(cancelled);  // twice is no harm
    wheel.schedule(never, kNever);
    EXPECT_EQ(wheel.next_deadline(), kNever);
    EXPECT_TRUE(fired(wheel, at(24h)).empty());
}

TEST(TimerWheel, LazyArmMovesOnlyEarlierAndTheOwnerSaysWhen) {
    TimerWheel wheel;
    TimerNode node;
    Instant deadline = at(200ms);
    wheel.arm(node, deadline);
    const Instant first = wheel.next_deadline();
    for (int ack = 0; ack < 1000; ++ack) {
        deadline += 1ms;
        wheel.arm(node, deadline);
        ASSERT_EQ(wheel.next_deadline(), first) << "an ACK moved the node";
    }
    int looked = 0;
    bool done = false;
    const auto owner = [&](Instant now) {
        return [&, now](TimerNode&) {
            ++looked;
            if (deadline > now) return deadline;
            done = true;
            return kNever;
        };
    };
    wheel.advance(at(201ms), owner(at(201ms)));
    EXPECT_EQ(looked, 1);
    EXPECT_TRUE(node.queued());
    wheel.advance(deadline - 1ns, owner(deadline - 1ns));
    EXPECT_FALSE(done);
    wheel.advance(deadline + TimerWheel::kTick, owner(deadline + TimerWheel::kTick));
    EXPECT_TRUE(done);

    wheel.arm(node, deadline + 10s);
    wheel.arm(node, deadline + 1s);  // earlier: must move
    EXPECT_EQ(fired(wheel, deadline + 1s + TimerWheel::kTick).size(), 1u);
}

TEST(TimerWheel, FireMayDestroyCancelAndScheduleOthers) {
    TimerWheel wheel;
    auto a = std::make_unique<TimerNode>();
    auto b = std::make_unique<TimerNode>();
    TimerNode c;
    wheel.schedule(*a, at(10ms));
    wheel.schedule(*b, at(10ms));
    int calls = 0;
    wheel.advance(at(20ms), [&](TimerNode& node) {
        ++calls;
        auto& other = &node == a.get() ? b : a;
        if (other) {
            wheel.cancel(*other);
            other.reset();
        }
        wheel.schedule(c, at(15ms));  // past already: fires at the next tick, not in this call
        return kNever;
    });
    EXPECT_EQ(calls, 1);
    EXPECT_TRUE(c.queued());
    EXPECT_EQ(fired(wheel, at(20ms) + 2 * TimerWheel::kTick).size(), 1u);
}

TEST(TimerWheel, AnOwnerThatAsksForThePastDoesNotLoop) {
    TimerWheel wheel;
    TimerNode node;
    wheel.schedule(node, at(1ms));
    int calls = 0;
    wheel.advance(at(10h), [&](TimerNode&) {
        ++calls;
        return at(1ms);
    });
    EXPECT_EQ(calls, 1);
    wheel.cancel(node);
}

TEST(TimerWheel, SleepingByNextDeadlineFindsEveryTimerAndTakesFewWakeUps) {
    TimerWheel wheel;
    TimerNode node;
    const Instant deadline = at(2h + 123456789ns);  // keepalive
    wheel.schedule(node, deadline);
    int wakeups = 0;
    for (;;) {
        const Instant next = wheel.next_deadline();
        ASSERT_NE(next, kNever);
        ASSERT_LT(next, deadline + TimerWheel::kTick);
        ++wakeups;
        if (!fired(wheel, next).empty()) {
            EXPECT_GE(next, deadline);
            break;
        }
    }
    EXPECT_LE(wakeups, 8);
}

/// The wheel against the obvious thing, with random schedules, cancels, and steps from a microsecond to hours.
TEST(TimerWheel, AgreesWithAMultimap) {
    for (std::uint64_t seed = 1; seed <= 40; ++seed) {
        SCOPED_TRACE(testing::Message() << "seed " << seed);
        Rng rng(seed);
        Instant now = at(Duration(static_cast<std::int64_t>(rng.below(1'000'000'000'000))));
        TimerWheel wheel(now);
        std::vector<TimerNode> nodes(60);
        std::map<TimerNode*, Instant> oracle;
        const auto random_duration = [&] {
            const auto bits = 10 + rng.below(36);  // 1 us .. 19 h
            return Duration(static_cast<std::int64_t>(rng.below(std::uint64_t{1} << bits)));
        };
        for (int step = 0; step < 4000; ++step) {
            TimerNode& node = nodes[rng.below(nodes.size())];
            switch (rng.below(4)) {
                case 0:
                case 1: {
                    const Instant deadline = now + random_duration();
                    wheel.schedule(node, deadline);
                    oracle[&node] = deadline;
                    break;
                }
                case 2:
                    wheel.cancel(node);
                    oracle.erase(&node);
                    break;
                default: {
                    now += random_duration();
                    Instant last{};
                    for (TimerNode* due : fired(wheel, now)) {
                        const auto it = oracle.find(due);
                        ASSERT_NE(it, oracle.end());
                        ASSERT_LE(it->second, now) << "early";
                        ASSERT_GE(it->second + 2 * TimerWheel::kTick, last) << "out of order";
                        last = std::max(last, it->second);
                        oracle.erase(it);
                    }
                    for (const auto& [left, deadline] : oracle)
                        ASSERT_GT(deadline + TimerWheel::kTick, now) << "late by more than a tick";
                }
            }
            for (auto& n : nodes) ASSERT_EQ(n.queued(), oracle.contains(&n));
            Instant earliest = kNever;
            for (const auto& [left, deadline] : oracle) earliest = std::min(earliest, std::max(deadline, now));
            if (earliest == kNever) {
                ASSERT_EQ(wheel.next_deadline(), kNever);
            } else {
                ASSERT_LE(wheel.next_deadline(), earliest + TimerWheel::kTick);
                ASSERT_GT(wheel.next_deadline(), now);  // sleeping makes progress
            }
        }
        for (auto& n : nodes) wheel.cancel(n);
    }
}

}  // namespace
}  // namespace culvert
