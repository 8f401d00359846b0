// What each congestion control makes of typical links, as a table kept under review (goodput.txt, README.md): a change of the
// sender that moves a figure shows here, and is committed with it. CULVERT_UPDATE_SNAPSHOT=1 writes the new table.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>

#include "tests/sim/goodput.h"

namespace culvert::sim {
namespace {

using stack::tcp::Congestion;

Weather wire(double mbit, Duration round_trip, double queue_bytes) {
    Weather weather;
    weather.bytes_per_second = mbit * 1e6 / 8;
    weather.delay = round_trip / 2;
    weather.longest_queue = queue_bytes;
    return weather;
}

std::vector<Course> courses() {
    constexpr double kBdp = 250'000;  // of 100 Mbit/s and 20 ms
    const Weather usual = wire(100, 20ms, kBdp);
    std::vector<Course> all;
    all.push_back({"clean 100M 20ms", usual, 10s});
    all.push_back({"loss 1%", usual, 10s});
    all.back().weather.loss = 0.01;
    all.push_back({"loss 5%", usual, 10s});
    all.back().weather.loss = 0.05;
    all.push_back({"bufferbloat", wire(100, 20ms, 8 * kBdp), 10s});
    all.push_back({"tiny queue", wire(100, 20ms, 15'000), 10s});
    all.push_back({"reordering 5%", usual, 10s});
    all.back().weather.reorder = 0.05;
    all.back().weather.jitter = 8ms;
    all.push_back({"10G 1ms", wire(10'000, 1ms, 1'250'000), 500ms});
    all.push_back({"ECN marks", usual, 10s, true});
    all.back().weather.mark_above = 60'000;
    return all;
}

std::string make_table() {
    std::ostringstream table;
    table << "# Goodput of one bulk transfer in virtual time, receive buffer tuned by itself. Written by goodput_test; README.md explains it.\n"
          << "# link              control  Mbit/s   of link  sent again  timeouts   marked  longest queue\n";
    const std::pair<Congestion, const char*> controls[] = {
        {Congestion::kNewReno, "reno"}, {Congestion::kCubic, "cubic"}, {Congestion::kBbr, "bbr"}, {Congestion::kDctcp, "dctcp"}};
    for (const Course& course : courses())
        for (const auto& [congestion, name] : controls) {
            const Result r = transfer(course, congestion);
            char line[160];
            std::snprintf(line, sizeof line, "%-19s %-6s %9.2f  %6.1f %%   %6.2f %%  %8lu %8lu  %8.1f ms\n", course.name, name, r.goodput_mbit,
                          r.share * 100, r.again * 100, static_cast<unsigned long>(r.timeouts), static_cast<unsigned long>(r.marked), r.longest_queue_ms);
            table << line;
        }
    return table.str();
}

TEST(Goodput, IsWhatTheTableSays) {
    const std::string now = make_table();
    if (std::getenv("CULVERT_UPDATE_SNAPSHOT") != nullptr) {
        std::ofstream(CULVERT_GOODPUT_TABLE) << now;
        std::cout << now;
        return;
    }
    std::stringstream kept;
    kept << std::ifstream(CULVERT_GOODPUT_TABLE).rdbuf();
    EXPECT_EQ(kept.str(), now) << "the sender behaves differently now:\n"
                               << now << "if that is meant: CULVERT_UPDATE_SNAPSHOT=1, look at the difference, commit it";
}

TEST(Goodput, IsTheSameEveryTime) {
    Course course = courses()[1];
    course.length = 2s;
    const Result one = transfer(course, Congestion::kCubic), other = transfer(course, Congestion::kCubic);
    EXPECT_EQ(one.goodput_mbit, other.goodput_mbit);
    EXPECT_EQ(one.again, other.again);
}

}  // namespace
}  // namespace culvert::sim
