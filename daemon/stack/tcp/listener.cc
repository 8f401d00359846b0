#include "daemon/stack/tcp/listener.h"

#include <algorithm>

#include "shm/base/check.h"

namespace culvert::stack::tcp {

Listener* ListenerTable::add(const Endpoint& local, bool dual, const ListenerOptions& options, ListenerOwner& owner) {
    if (size_ == limit_) return nullptr;
    auto& group = groups_[local];
    group.push_back(std::make_unique<Listener>(local, dual, options, owner));
    ++size_;
    return group.back().get();
}

void ListenerTable::remove(Listener& listener) {
    const auto at = groups_.find(listener.local());
    CHECK(at != groups_.end());
    const auto erased = std::erase_if(at->second, [&](const auto& entry) { return entry.get() == &listener; });
    CHECK(erased == 1);
    if (at->second.empty()) groups_.erase(at);
    --size_;
}

Listener* ListenerTable::heir_of(const Listener& listener) const {
    const auto at = groups_.find(listener.local());
    CHECK(at != groups_.end());
    const auto heir = std::ranges::find_if(
        at->second, [&](const auto& entry) { return entry.get() != &listener && entry->dual() == listener.dual(); });
    return heir == at->second.end() ? nullptr : heir->get();
}

Listener* ListenerTable::find(const Endpoint& local, std::uint32_t flow_hash) const {
    const Family family = local.address.family();
    const auto pick = [&](const Address& address, bool dual_only) -> Listener* {
        const auto at = groups_.find(Endpoint{address, local.port});
        if (at == groups_.end()) return nullptr;
        const Group& group = at->second;
        const auto wanted = [&](const auto& entry) { return !dual_only || entry->dual(); };
        auto count = static_cast<std::size_t>(std::ranges::count_if(group, wanted));
        if (count == 0) return nullptr;
        std::size_t chosen = (std::uint64_t{flow_hash} * count) >> 32;
        for (const auto& entry : group)
            if (wanted(entry) && chosen-- == 0) return entry.get();
        return nullptr;
    };
    if (Listener* exact = pick(local.address, false)) return exact;
    if (Listener* any = pick(Address::any(family), false)) return any;
    return family == Family::kIpv4 ? pick(Address::any(Family::kIpv6), true) : nullptr;
}

}  // namespace culvert::stack::tcp
