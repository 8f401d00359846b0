// Which addresses are ours: asked for every packet that comes in and every path that is looked for.
//
// A host has few addresses, and a burst of packets usually goes to one of them, so the last answer is tried first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "daemon/stack/interface.h"
#include "daemon/wire/address.h"

namespace culvert::stack {

class LocalAddresses {
public:
    /// Cold.
    void assign(std::span<Interface* const> interfaces) {
        entries_.clear();
        last_ = 0;
        for (Interface* interface : interfaces)
            for (const InterfaceAddress& own : interface->addresses) entries_.push_back({own.address, interface});
        std::stable_sort(entries_.begin(), entries_.end(),
                         [](const Entry& a, const Entry& b) { return a.address < b.address; });
    }

    /// The interface that has the address; nullptr if it is not ours. Remembers the answer.
    Interface* owner(const Address& address) const {
        if (last_ < entries_.size() && entries_[last_].address == address) [[likely]] return entries_[last_].interface;
        const Entry* const found = find(address);
        if (found == nullptr) return nullptr;
        last_ = static_cast<std::size_t>(found - entries_.data());
        return found->interface;
    }
    /// The same without remembering: for addresses that are usually not ours, such as a packet's source.
    bool contains(const Address& address) const { return find(address) != nullptr; }

private:
    struct Entry {
        Address address;
        Interface* interface;
    };
    const Entry* find(const Address& address) const {
        const auto found = std::lower_bound(entries_.begin(), entries_.end(), address,
                                            [](const Entry& entry, const Address& a) { return entry.address < a; });
        return found != entries_.end() && found->address == address ? &*found : nullptr;
    }

    std::vector<Entry> entries_;     // sorted by address
    mutable std::size_t last_ = 0;   // index of the last answer of owner()
};

}  // namespace culvert::stack
