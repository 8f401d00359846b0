#include "daemon/wire/ipv4.h"

namespace culvert::wire {

Drop check_ipv4_options(std::span<const std::byte> options) {
    constexpr std::uint8_t kEnd = 0, kNop = 1, kLooseSourceRoute = 131, kStrictSourceRoute = 137;
    while (!options.empty()) {
        const std::uint8_t kind = load_8(options.data());
        if (kind == kEnd) break;
        if (kind == kNop) {
            options = options.subspan(1);
            continue;
        }
        if (kind == kLooseSourceRoute || kind == kStrictSourceRoute) return Drop::kIpv4Options;
        if (options.size() < 2) return Drop::kIpv4Options;
        const std::size_t length = load_8(options.data() + 1);
        if (length < 2 || length > options.size()) return Drop::kIpv4Options;
        options = options.subspan(length);
    }
    return Drop::kNone;
}

}  // namespace culvert::wire
