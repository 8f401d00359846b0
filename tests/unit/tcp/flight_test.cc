// What is kept of a flight: the log as a queue over pieces, the lost ranges, and what happens without memory.
#include "daemon/stack/tcp/flight.h"

#include <gtest/gtest.h>

#include <deque>
#include <set>
#include <vector>

#include "daemon/base/rng.h"
#include "daemon/stack/tcp/loss_recovery.h"

namespace culvert::stack::tcp {
namespace {

using namespace std::chrono_literals;

SentRun run_of(Position first, Position end, bool again = false) {
    return {.range = {first, end}, .sent_at = Instant{}, .first_sent_at = Instant{}, .delivered_at = Instant{},
            .delivered = 0, .lost = 0, .flight = 0, .again = again, .app_limited = false};
}

TEST(SentLog, IsAQueueAndGivesItsPiecesBack) {
    FlightPool pool(64);
    SentLog log;
    std::deque<Position> oracle;
    Rng rng(7);
    Position next = 1;
    for (int step = 0; step < 20'000; ++step) {
        if (rng.below(100) < (step / 2'000 % 2 == 0 ? 60u : 40u)) {
            if (log.append(run_of(next, next + 1, next % 3 == 0), pool)) oracle.push_back(next++);
        } else if (!oracle.empty()) {
            ASSERT_EQ(log.front()->range.first, oracle.front());
            log.pop_front(pool);
            oracle.pop_front();
        }
        ASSERT_EQ(log.count(), oracle.size());
        ASSERT_LE(log.count(), SentLog::kMaxRuns);
        if (oracle.empty()) {
            ASSERT_EQ(pool.used(), 0u);
            continue;
        }
        ASSERT_EQ(log.back()->range.first, oracle.back());
        if (step % 64 != 0) continue;
        std::size_t at = 0;
        std::uint32_t again = 0;
        log.for_each([&](const SentRun& run) {
            EXPECT_EQ(run.range.first, oracle[at++]);
            again += run.again;
            return true;
        });
        ASSERT_EQ(at, oracle.size());
        ASSERT_EQ(log.again(), again);
    }
    log.clear(pool);
    EXPECT_EQ(pool.used(), 0u);
}

TEST(LostRanges, CoverWhatWasAddedAndNoMoreThanNeeded) {
    Rng rng(3);
    for (int round = 0; round < 500; ++round) {
        LostRanges lost;
        std::set<Position> oracle;
        for (int i = 0; i < 12; ++i) {
            if (rng.below(4) == 0) {
                const Position to = rng.below(100);
                lost.advance(to);
                std::erase_if(oracle, [&](Position p) { return p < to; });
            } else {
                const Position first = rng.below(100);
                const Position end = first + 1 + rng.below(8);
                lost.add({first, end});
                for (Position p = first; p < end; ++p) oracle.insert(p);
            }
            Position before = 0;
            ASSERT_LE(lost.ranges().size(), LostRanges::kMax);
            for (const Range& r : lost.ranges()) {
                ASSERT_FALSE(r.empty());
                ASSERT_TRUE(r.first > before || before == 0);
                before = r.end;
            }
            for (const Position p : oracle) ASSERT_TRUE(lost.contains(p));
        }
    }
}

TEST(Flight, WithoutMemoryRecoveryGoesOnByRfc6675) {
    FlightPool pool(1);  // the Flight itself, and no piece for a longer log
    SackPool boards(1);
    CongestionState cc(Algorithm::kNewReno, 1000);
    LossRecovery recovery;
    constexpr Position kFirst = Position{1} << 32;
    Position nxt = kFirst;
    Instant now{1h};
    bool logged = true;
    for (int i = 0; i < 8; ++i) {
        now += 1ms;  // a run each
        if (!recovery.record(pool, {nxt, nxt + 1000}, false, kFirst, nxt, 20ms, now)) logged = false;
        nxt += 1000;
    }
    EXPECT_FALSE(logged);
    EXPECT_FALSE(recovery.by_time());
    EXPECT_EQ(pool.used(), 0u);
    const Range sacked[] = {{kFirst + 1000, kFirst + 4000}};
    const auto verdict = recovery.on_ack({.snd_una = kFirst, .ack = kFirst, .snd_nxt = nxt, .sack_permitted = true,
                                          .duplicate = true, .sack = sacked, .ts_echo = {}, .now = now},
                                         *cc, boards);
    EXPECT_TRUE(verdict.entered_recovery);
    EXPECT_EQ(recovery.next(kFirst, nxt, *cc, false).range, (Range{kFirst, kFirst + 1000}));
    recovery.release(boards);
}

TEST(Flight, TheRateSampleIsTheSlowerOfSendingAndArriving) {  // [BBR 4.1.2.3]
    FlightPool pool(8);
    Flight* const flight = Flight::create(pool, 1000, Instant{1h});
    ASSERT_NE(flight, nullptr);
    const Instant t{1h};
    ASSERT_TRUE(flight->record({.range = {1000, 2000}, .in_flight = 0, .now = t}));
    ASSERT_TRUE(flight->record({.range = {2000, 3000}, .in_flight = 1000, .now = t + 5ms}));
    const auto first = flight->deliver({.snd_una = 1000, .ack = 2000, .snd_nxt = 3000, .sack = {}, .ts_echo = {}, .now = t + 20ms},
                                       nullptr, 0);
    ASSERT_TRUE(first.any);
    EXPECT_EQ(first.newest.sent_at, t);
    EXPECT_EQ(first.newest.flight, 1000u);
    EXPECT_EQ(flight->rack.rtt, 20ms);
    const auto second = flight->deliver({.snd_una = 2000, .ack = 3000, .snd_nxt = 3000, .sack = {}, .ts_echo = {}, .now = t + 26ms},
                                        nullptr, 0);
    EXPECT_EQ(second.newest.sent_at, t + 5ms);
    EXPECT_EQ(second.newest.flight, 2000u);
    EXPECT_TRUE(flight->log.empty());
    flight->destroy();
    EXPECT_EQ(pool.used(), 0u);
}

}  // namespace
}  // namespace culvert::stack::tcp
