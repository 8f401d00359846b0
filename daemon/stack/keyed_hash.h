// A keyed hash of addresses for the stack's own tables: whoever does not know the key cannot aim at one place. Nobody outside
// sees its value (for what the wire shows there is SipHash).
#pragma once

#include <cstdint>
#include <cstring>

#include "daemon/wire/address.h"

namespace culvert::stack {

/// The finalizer of SplitMix64.
inline std::uint64_t mix(std::uint64_t value) {
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

/// `state`: the key, or what was hashed before.
inline std::uint64_t hash_address(std::uint64_t state, const Address& address) {
    std::uint64_t half[2];
    std::memcpy(half, address.bytes().data(), sizeof half);
    return mix(mix(state ^ half[0]) ^ half[1]);
}

}  // namespace culvert::stack
