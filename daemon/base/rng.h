// Randomness comes in through the door too: seeded in tests, from getrandom(2) in production.
#pragma once

#include <cstdint>

namespace culvert {

/// xoshiro256** (Blackman and Vigna), public domain algorithm. Not for secrets: keys come from getrandom(2).
class Rng {
public:
    explicit Rng(std::uint64_t seed);
    std::uint64_t next();
    /// Uniform in [0, bound), bound > 0.
    std::uint64_t below(std::uint64_t bound);
    /// True with probability `chance` in [0, 1].
    bool happens(double chance);

private:
    std::uint64_t state_[4];
};

}  // namespace culvert
