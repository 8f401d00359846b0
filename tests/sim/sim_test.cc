// The production stack on both ends of a seeded bad link: see README.md, world.h.
#include <gtest/gtest.h>

#include <iostream>

#include "tests/sim/seeds.h"
#include "tests/sim/world.h"

namespace culvert::sim {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::uint64_t kNewSeeds = 60;
constexpr std::chrono::seconds kLongest{40};
#else
constexpr std::uint64_t kNewSeeds = 200;
constexpr std::chrono::seconds kLongest{45};
#endif

/// Runs one world; when it fails, once more with a transcript of the connection that failed first.
bool passes(std::uint64_t seed, Totals& totals) {
    World world(seed);
    world.run();
    totals += world.totals();
    if (world.failures().none()) return true;
    World again(seed, world.first_culprit());
    again.run();
    std::string text = "seed " + std::to_string(seed) + " (replay: tests/run sim SEED=" + std::to_string(seed) + ")\n" +
                       world.plan().describe() + "\n";
    for (const std::string& line : world.failures().lines()) text += "  " + line + "\n";
    ADD_FAILURE() << text << "--- the last frames ---\n" << again.transcript();
    if (again.failures().lines() != world.failures().lines()) ADD_FAILURE() << "and the same seed went another way: not deterministic";
    return false;
}

/// Seeds that have failed once (or came close), each with its reason in README.md.
constexpr std::uint64_t kRegressions[] = {48, 84, 130, 198, 216, 451, 619, 683, 1365, 1518, 1643, 3706, 7909, 20824, 21753, 27450, 1795274519414296};
/// And one whose queue marks congestion (ECN on both ends and a link that marks: one world in seventy).
constexpr std::uint64_t kMarked = 53;

TEST(Simulation, SeedsThatOnceFailed) {
    if (number_of("CULVERT_SEED")) GTEST_SKIP() << "one seed was asked for";
    Totals totals;
    for (const std::uint64_t seed : kRegressions) passes(seed, totals);
    passes(kMarked, totals);
    std::cout << totals.describe() << "\n";
    // What only some worlds have, and so a handful of new seeds may lack: these worlds are always the same.
    EXPECT_GT(totals.forwarded, 500u);
    EXPECT_GT(totals.reassembled, 10u);
    EXPECT_GT(totals.marked, 10u);
    EXPECT_GT(totals.cookies, 10u);
}

TEST(Simulation, NewSeeds) {
    const Seeds seeds = Seeds::choose(kNewSeeds, kLongest);
    const auto began = std::chrono::steady_clock::now();
    std::cout << "seeds from " << seeds.first << " on, " << seeds.count << " of them\n";
    Totals totals;
    int failed = 0;
    for (std::uint64_t seed = seeds.first; seed < seeds.first + seeds.count && failed < 3; ++seed) {
        if (seeds.longest.count() != 0 && std::chrono::steady_clock::now() - began > seeds.longest) break;
        if (!passes(seed, totals)) ++failed;
    }
    std::cout << totals.describe() << "\n";
    if (seeds.chosen || failed != 0 || totals.worlds < 50) return;
    // The weather must have been bad enough to mean something.
    EXPECT_GT(totals.in_order, 50u);
    EXPECT_GT(totals.with_error, 10u);
    EXPECT_GT(totals.retransmits, 500u);
    EXPECT_GT(totals.timeouts, 100u);
    EXPECT_GT(totals.recoveries, 50u);
    EXPECT_GT(totals.out_of_order, 500u);
}

TEST(Simulation, ASeedDecidesEverything) {
    for (const std::uint64_t seed : {11u, 12u, 13u}) {
        World one(seed, "all"), other(seed, "all");
        one.run();
        other.run();
        EXPECT_EQ(one.totals().segments, other.totals().segments);
        EXPECT_EQ(one.transcript(), other.transcript());
        EXPECT_FALSE(one.transcript().empty());
    }
}

}  // namespace
}  // namespace culvert::sim
