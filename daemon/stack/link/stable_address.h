// Interface identifiers that stay the same on one network and tell nothing about the hardware, RFC 7217.
#pragma once

#include <cstdint>
#include <string_view>

#include "daemon/wire/address.h"

namespace culvert::stack {

/// The address that `interface` makes for itself in the /64 `prefix`: always the same for the same arguments.
/// `attempt` counts the duplicates met so far [RFC7217 5, DAD_Counter].
/// `secret` must outlive restarts if the address is to (StackConfig::stable_secret).
Address stable_address(const Address& prefix, std::string_view interface, unsigned attempt,
                       const std::uint64_t (&secret)[2]);

/// [RFC5453] Interface identifiers that are nobody's: the subnet-router anycast address and two reserved ranges.
bool is_reserved_interface_id(std::uint64_t id);

}  // namespace culvert::stack
