// SipHash-2-4, the keyed hash behind everything that a stranger sees and must not guess: initial sequence numbers,
// timestamp offsets, SYN cookies, Fast Open cookies.
//
// All start from the one secret of the engine. Each use has a key of its own, derived by hashing the name of the use, so
// that what one shows says nothing about another.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "daemon/wire/address.h"

namespace culvert::stack::tcp {

using SipKey = std::array<std::byte, 16>;

std::uint64_t sip_hash(const SipKey& key, std::span<const std::byte> message);

/// The key for one use. `number` tells generations of it apart.
SipKey derive_key(const SipKey& secret, std::uint64_t use, std::uint64_t number = 0);

/// The secret as the stack's configuration holds it.
SipKey sip_key(const std::uint64_t (&secret)[2]);

/// Addresses and ports of a flow, as bytes to be hashed: 36 of them.
void put_flow(const Endpoint& local, const Endpoint& remote, std::span<std::byte, 36> out);

}  // namespace culvert::stack::tcp
