// How often something may be done: `burst` times at once, then once an `interval`.
#pragma once

#include <cstdint>

#include "daemon/base/instant.h"

namespace culvert {

/// Tokens that come back with time: `burst` at once, then one every `interval`.
class TokenBucket {
public:
    /// `wanted` tokens must be there; one is taken.
    bool take(Instant now, Duration interval, std::uint32_t burst, std::uint32_t wanted = 1) {
        const Duration full = interval * burst;
        // `spent_until_` says when the bucket would be full again.
        const Duration used = spent_until_ > now ? spent_until_ - now : Duration{};
        if (used + interval * wanted > full) return false;
        spent_until_ = now + used + interval;
        return true;
    }

private:
    Instant spent_until_{};
};

}  // namespace culvert
