// One bulk transfer in virtual time, from one production stack to another over one wire: how fast, at what price.
#pragma once

#include <string>

#include "tests/sim/link.h"
#include "tests/sim/sim_host.h"

namespace culvert::sim {

struct Course {
    const char* name;
    Weather weather;        // of the way there; the way back has its delay only
    Duration length;        // of virtual time
    bool ecn = false;
};

struct Result {
    double goodput_mbit = 0;    // of payload that the application got, over the whole time
    double share = 0;           // of what the link carries as payload at most
    double again = 0;           // part of the segments that were sent again
    std::uint64_t timeouts = 0;
    std::uint64_t marked = 0;
    double longest_queue_ms = 0;
};

/// The same numbers every time.
Result transfer(const Course& course, stack::tcp::Congestion congestion);

}  // namespace culvert::sim
