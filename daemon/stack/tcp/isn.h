// Initial sequence numbers, RFC 6528:  ISN = M + F(local, remote, secret)
//
// M counts microseconds / 4, so a new incarnation of a flow starts beyond the old one. F is SipHash-2-4 with a key only
// this process knows, so what one flow reveals says nothing about another. [RFC9293 3.4.1 MUST-8, SHLD-1, MUST-9]
#pragma once

#include <cstdint>

#include "daemon/base/instant.h"
#include "daemon/stack/tcp/sip_hash.h"
#include "daemon/wire/address.h"

namespace culvert::stack::tcp {

class IsnGenerator {
public:
    using Key = SipKey;

    /// `key` from getrandom(2) in production.
    explicit IsnGenerator(const Key& key) : key_(key) {}

    std::uint32_t generate(const Endpoint& local, const Endpoint& remote, Instant now) const;

private:
    Key key_;
};

}  // namespace culvert::stack::tcp
