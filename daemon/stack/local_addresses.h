// Which addresses are ours: asked for every packet that comes in and every path that is looked for.
//
// A host has few addresses, and a burst of packets usually goes to one of them, so the last answer is tried first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "daemon/stack/interface.h"
#include "daemon/wire/address.h"

namespace culvert::stack {

/// One address of ours.
struct LocalAddress {
    Address address;
    Interface* interface;
    bool dedicated;  // ours alone, not the kernel's
    bool loopback = false;  // of the loopback interface: never on a wire
};

/// The last address of each IPv4 network. [RFC3021] a /31 has none.
inline std::optional<Address> directed_broadcast(const InterfaceAddress& own) {
    if (!own.address.is_v4() || own.prefix_length >= 31) return std::nullopt;
    const auto bytes = own.address.wire_bytes();
    const std::uint32_t hosts = 0xffffffffu >> own.prefix_length;
    const auto with = [&](unsigned i) { return static_cast<std::uint8_t>(bytes[i] | (hosts >> (24 - i * 8))); };
    return Address::v4(with(0), with(1), with(2), with(3));
}

class LocalAddresses {
public:
    /// Cold.
    void assign(std::span<Interface* const> interfaces) {
        entries_.clear();
        broadcasts_.clear();
        own_ = to_all_ = {};
        last_ = 0;
        for (Interface* interface : interfaces) {
            for (const InterfaceAddress& own : interface->addresses) {
                entries_.push_back({own.address, interface, own.dedicated || interface->resolves_itself, interface->loopback});
                // [RFC1122 3.3.6 formats left out] the obsolete form with all host bits zero is an ordinary address, as
                // on Linux since 5.14
                if (const auto broadcast = directed_broadcast(own))
                    broadcasts_.push_back({*broadcast, interface, own.dedicated || interface->resolves_itself});
            }
        }
        const auto by_address = [](const LocalAddress& a, const LocalAddress& b) { return a.address < b.address; };
        for (const LocalAddress& entry : entries_) own_.add(entry.address);
        for (const LocalAddress& entry : broadcasts_) to_all_.add(entry.address);
        std::stable_sort(entries_.begin(), entries_.end(), by_address);
        std::stable_sort(broadcasts_.begin(), broadcasts_.end(), by_address);
    }

    /// Our entry for the address; nullptr if it is not ours. Remembers the answer.
    const LocalAddress* match(const Address& address) const {
        if (last_ < entries_.size() && entries_[last_].address == address) [[likely]] return &entries_[last_];
        const LocalAddress* const found = own_.may_have(address) ? find(entries_, address) : nullptr;
        if (found != nullptr) last_ = static_cast<std::size_t>(found - entries_.data());
        return found;
    }
    /// The interface that has the address; nullptr if it is not ours.
    Interface* owner(const Address& address) const {
        const LocalAddress* const found = match(address);
        return found != nullptr ? found->interface : nullptr;
    }
    /// The same without remembering: for addresses that are usually not ours, such as a packet's source.
    bool contains(const Address& address) const { return own_.may_have(address) && find(entries_, address) != nullptr; }
    /// The directed broadcast address of a network that one of our interfaces is in; nullptr if it is none.
    /// [RFC1122 3.3.6 recognize]
    const LocalAddress* directed_broadcast_of(const Address& address) const {
        return to_all_.may_have(address) ? find(broadcasts_, address) : nullptr;
    }

private:
    /// Most addresses that are asked for are not ours, and one bit says so: a set of hashes, without false negatives.
    struct Filter {
        std::uint64_t bits[4] = {};
        static unsigned hash(const Address& address) {
            const auto bytes = address.bytes();
            return (bytes[15] + 37u * bytes[14] + 101u * bytes[13]) & 255;
        }
        void add(const Address& address) { bits[hash(address) / 64] |= std::uint64_t{1} << (hash(address) % 64); }
        bool may_have(const Address& address) const {
            return (bits[hash(address) / 64] >> (hash(address) % 64) & 1) != 0;
        }
    };
    static const LocalAddress* find(const std::vector<LocalAddress>& in, const Address& address) {
        const auto found = std::lower_bound(in.begin(), in.end(), address,
                                            [](const LocalAddress& entry, const Address& a) { return entry.address < a; });
        return found != in.end() && found->address == address ? &*found : nullptr;
    }

    std::vector<LocalAddress> entries_;     // sorted by address
    std::vector<LocalAddress> broadcasts_;  // the same
    Filter own_, to_all_;                   // of the two
    mutable std::size_t last_ = 0;          // index of the last answer of match()
};

}  // namespace culvert::stack
