// Which seeds a run tries.
//
//   CULVERT_SEED=n               that one alone
//   CULVERT_SEED_COUNT=m         so many, from CULVERT_SEED or a fresh base on (tests/run sim SEED=n SEEDS=m)
//   CULVERT_SEED_SECONDS=s       stop after so many seconds of the machine's time (0: never); what was not tried is said
//
// Without any of them: new ones every time, the base from the clock; it is printed.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <optional>

namespace culvert::sim {

inline std::optional<std::uint64_t> number_of(const char* variable) {
    const char* const text = std::getenv(variable);
    if (text == nullptr || *text == 0) return std::nullopt;
    return std::strtoull(text, nullptr, 10);
}

struct Seeds {
    std::uint64_t first;
    std::uint64_t count;
    std::chrono::seconds longest;
    bool chosen;  // by whoever runs the test

    static Seeds choose(std::uint64_t usual, std::chrono::seconds usual_time) {
        const auto seed = number_of("CULVERT_SEED");
        const auto count = number_of("CULVERT_SEED_COUNT");
        const auto seconds = number_of("CULVERT_SEED_SECONDS");
        const auto clock = static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch() / std::chrono::milliseconds(1));
        Seeds seeds{};
        seeds.first = seed.value_or(clock * 1000);
        seeds.count = count.value_or(seed ? 1 : usual);
        seeds.longest = seconds ? std::chrono::seconds(*seconds) : count ? std::chrono::seconds(0) : usual_time;
        seeds.chosen = seed.has_value();
        return seeds;
    }
};

}  // namespace culvert::sim
