#include "daemon/stack/source_address.h"

#include <bit>
#include <tuple>

namespace culvert::stack {
namespace {

unsigned common_prefix(const Address& a, const Address& b) {
    for (unsigned i = 0; i < 16; ++i) {
        const auto difference = static_cast<std::uint8_t>(a.bytes()[i] ^ b.bytes()[i]);
        if (difference != 0) return i * 8 + static_cast<unsigned>(std::countl_zero(difference));
    }
    return 128;
}

/// Multicast has its scope in the address: ff02:: is the link's [RFC4291 2.7].
bool link_scope(const Address& address) {
    if (address.is_multicast() && !address.is_v4()) return (address.bytes()[1] & 0x0f) <= 2;
    return address.is_link_local();
}

}  // namespace

std::optional<Address> choose_source(const Interface& interface, const Address& destination) {
    std::optional<Address> best;
    std::tuple<bool, bool, unsigned> best_score;
    for (const InterfaceAddress& own : interface.addresses) {
        if (own.address.is_v4() != destination.is_v4()) continue;
        // [RFC6724 5] rule 2: scope; rule 3: not deprecated; rule 8: longest prefix
        const std::tuple score(link_scope(own.address) == link_scope(destination), !own.deprecated,
                               common_prefix(own.address, destination));
        if (!best || score > best_score) {
            best = own.address;
            best_score = score;
        }
    }
    return best;
}

}  // namespace culvert::stack
