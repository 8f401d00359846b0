// How long an idle engine looks before it sleeps.
//
// Being woken costs 20-50 us on a virtual machine, so an engine that expects work soon looks for it instead, giving the
// core away between two looks. It stops doing so when it has looked in vain several times in a row (the load has ended,
// or comes so rarely that looking costs more than waking), and then tries again only now and then.
//
//   work -> looking --(work within the limit)--> work              fruitless = 0
//              |
//              +--(limit reached)--> asleep --> work               fruitless + 1; from kGiveUpAfter on: limit = 0,
//                                                                  but for every kTryAgainEvery-th idle period
#pragma once

#include <cstdint>

#include "daemon/base/instant.h"

namespace culvert::engine {

class SpinPolicy {
public:
    static constexpr std::uint32_t kGiveUpAfter = 8;
    static constexpr std::uint32_t kTryAgainEvery = 16;

    explicit SpinPolicy(Duration longest) : longest_(longest) {}

    /// How long this idle period may be looked through. Constant between two calls of found() and slept().
    Duration limit() const {
        return fruitless_ < kGiveUpAfter || fruitless_ % kTryAgainEvery == 0 ? longest_ : Duration::zero();
    }
    /// Work came while looking.
    void found() { fruitless_ = 0; }
    /// The limit was reached and the engine went to sleep.
    void slept() { ++fruitless_; }

private:
    Duration longest_;
    std::uint64_t fruitless_ = 0;  // idle periods in a row that ended asleep
};

}  // namespace culvert::engine
