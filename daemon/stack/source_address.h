// Which of our addresses speaks to a destination, when the application has not said (RFC 1122 3.3.4.3, RFC 6724 5).
// [RFC1122 3.1 remote-multihoming left out] to try a peer's other addresses is the application's (getaddrinfo, RFC
// 8305)
#pragma once

#include <optional>

#include "daemon/stack/interface.h"
#include "daemon/wire/address.h"

namespace culvert::stack {

/// The best of the interface's own addresses for `destination`: same family; same scope (link-local or not) before
/// other scope [RFC6724 5 rule 2]; then the longest common prefix [rule 8]; then the first. None fits: nullopt.
std::optional<Address> choose_source(const Interface& interface, const Address& destination);

}  // namespace culvert::stack
