// What an IP header carries (IANA protocol numbers), the same numbers in IPv4 and IPv6.
#pragma once

#include <cstdint>

namespace culvert::wire {

enum class IpProtocol : std::uint8_t {
    kHopByHop = 0,
    kIcmp = 1,
    kIgmp = 2,
    kTcp = 6,
    kUdp = 17,
    kRouting = 43,
    kFragment = 44,
    kIcmpv6 = 58,
    kNoNextHeader = 59,
    kDestinationOptions = 60,
};

/// The Explicit Congestion Notification field: the low two bits of the traffic class [RFC3168 5].
enum class Ecn : std::uint8_t {
    kNotCapable = 0,
    kCapable1 = 1,  // ECT(1)
    kCapable0 = 2,  // ECT(0), what we send
    kCongestion = 3,
};

}  // namespace culvert::wire
