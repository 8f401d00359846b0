#include "daemon/wire/ipv4.h"

namespace culvert::wire {
namespace {

constexpr std::uint8_t kEnd = 0, kNop = 1, kRouterAlert = 148;

/// Calls act(kind, offset) for each option; false if one of them says so or the list is malformed there.
template <class Act>
bool walk(std::span<const std::byte> options, std::size_t& offset, Act act) {
    for (offset = 0; offset < options.size();) {
        const std::uint8_t kind = load_8(options.data() + offset);
        if (kind == kEnd) return true;
        if (kind == kNop) {
            ++offset;
            continue;
        }
        if (!act(kind) || options.size() - offset < 2) return false;
        const std::size_t length = load_8(options.data() + offset + 1);
        if (length < 2 || length > options.size() - offset) return false;
        offset += length;
    }
    return true;
}

}  // namespace

Drop check_ipv4_options(std::span<const std::byte> options, std::size_t* offset) {
    // [RFC9293 3.9.2.1 MUST-50] [RFC1122 3.2.1.8 unknown, stream] what is not understood is ignored; record route and
    // timestamp are left as they are [RFC7126 4.5, 4.6]
    std::size_t at = 0;
    const bool fine = walk(options, at, [](std::uint8_t kind) {
        return kind != kLooseSourceRoute && kind != kStrictSourceRoute;
    });
    if (offset != nullptr) *offset = at;
    return fine ? Drop::kNone : Drop::kIpv4Options;
}

bool has_router_alert(std::span<const std::byte> options) {
    std::size_t at = 0;
    return !walk(options, at, [](std::uint8_t kind) { return kind != kRouterAlert; }) && at < options.size() &&
           load_8(options.data() + at) == kRouterAlert;
}

}  // namespace culvert::wire
