// What routers have told about paths: the largest packet that passes to a destination (RFC 1191, RFC 8201).
//
// One table for the host, so that a connection learns from what another was told. Only believed messages come in here: the
// transport has matched them to something of its own that is on its way.
//
// A set-associative cache of fixed size: a destination has four places, the one that ends first gives way. Entries age, so
// that a path that has become wider is found out ([RFC1191 6.3] ten minutes after the last reduction).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "daemon/base/instant.h"
#include "daemon/wire/address.h"

namespace culvert::stack {

class PathMtuCache {
public:
    static constexpr Duration kLifetime = std::chrono::minutes(10);
    static constexpr std::size_t kSets = 1024;  // a power of two
    static constexpr std::size_t kWays = 4;
    /// Bytes of a packet: whoever says less is not believed, but taken to mean this. [RFC8201 4] IPv6 has no smaller link;
    /// for IPv4 Linux' min_pmtu, below which nothing of today is and forgers would like us to be.
    static constexpr std::uint32_t least(Family family) { return family == Family::kIpv4 ? 552 : 1280; }

    /// Bytes of an IP packet; UINT32_MAX when nothing is known. One load when nothing ever was.
    std::uint32_t find(const Address& destination, Instant now) const {
        if (entries_.empty()) [[likely]]
            return UINT32_MAX;
        const Entry* const set = &entries_[set_of(destination)];
        for (std::size_t i = 0; i < kWays; ++i)
            if (set[i].expires > now && set[i].destination == destination) return set[i].mtu;
        return UINT32_MAX;
    }
    /// True if that is news: smaller than what was known. A larger value waits until the old one has aged.
    bool learn(const Address& destination, std::uint32_t mtu, Instant now) {
        mtu = std::max(mtu, least(destination.family()));
        if (entries_.empty()) entries_.resize(kSets * kWays);  // once, by the first router that complains
        Entry* const set = &entries_[set_of(destination)];
        Entry* place = set;
        for (std::size_t i = 0; i < kWays; ++i) {
            if (set[i].expires > now && set[i].destination == destination) {
                if (mtu >= set[i].mtu) return false;
                place = &set[i];
                break;
            }
            if (set[i].expires < place->expires) place = &set[i];
        }
        *place = {destination, mtu, now + kLifetime};
        next_expiry_ = std::min(next_expiry_, place->expires);
        return true;
    }
    /// When something ages; then forget() says true, and paths are to be looked up again.
    Instant next_deadline() const { return next_expiry_; }
    bool forget(Instant now) {
        if (now < next_expiry_) return false;
        next_expiry_ = kNever;
        for (const Entry& entry : entries_)
            if (entry.expires > now) next_expiry_ = std::min(next_expiry_, entry.expires);
        return true;
    }

private:
    struct Entry {
        Address destination;
        std::uint32_t mtu = 0;
        Instant expires = Instant::min();
    };
    static std::size_t set_of(const Address& destination) {
        const std::uint64_t hash = std::hash<Address>()(destination) * 0x9e3779b97f4a7c15u;
        return (hash >> 32 & (kSets - 1)) * kWays;
    }

    std::vector<Entry> entries_;
    Instant next_expiry_ = kNever;
};

}  // namespace culvert::stack
