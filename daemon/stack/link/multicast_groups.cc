#include "daemon/stack/link/multicast_groups.h"

#include <algorithm>

namespace culvert::stack {
namespace {

auto lower_bound(auto& sources, const Address& address) {
    return std::ranges::lower_bound(sources, address, {}, &MulticastSource::address);
}

/// How many of `wanted` the group does not know yet. Both sorted.
std::size_t count_new(const std::vector<MulticastSource>& known, std::span<const Address> wanted) {
    return static_cast<std::size_t>(std::ranges::count_if(wanted, [&](const Address& address) {
        const auto at = lower_bound(known, address);
        return at == known.end() || at->address != address;
    }));
}

/// Adds one socket's filter to the counts, or takes it away.
void count_filter(MulticastGroup& group, FilterMode mode, std::span<const Address> sources, bool add) {
    const auto step = add ? 1u : ~0u;  // plus or minus one, modulo 2^32
    (mode == FilterMode::kExclude ? group.excluding : group.including) += step;
    for (const Address& address : sources) {
        auto at = lower_bound(group.sources, address);
        if (at == group.sources.end() || at->address != address)
            at = group.sources.insert(at, MulticastSource{.address = address});
        (mode == FilterMode::kExclude ? at->excludes : at->includes) += step;
    }
}

}  // namespace

const MulticastSource* MulticastGroup::find(const Address& source) const {
    const auto at = lower_bound(sources, source);
    return at != sources.end() && at->address == source ? &*at : nullptr;
}

bool MulticastGroup::accepts(const Address& source) const {
    const MulticastSource* const known = sources.empty() ? nullptr : find(source);
    const bool listed = known != nullptr && lists(*known);
    return excluding != 0 ? !listed : listed;
}

MulticastGroups::~MulticastGroups() {
    if (observer_ == nullptr) return;
    for (auto& [key, group] : groups_) observer_->on_group_gone(group);
}

MulticastGroup* MulticastGroups::find(std::uint32_t interface, const Address& group) {
    const auto found = groups_.find({interface, group});
    return found == groups_.end() ? nullptr : &found->second;
}

std::uint32_t MulticastGroups::find_index(const MulticastMember& member, std::uint32_t interface,
                                          const Address& group) const {
    std::uint32_t index = member.first_;
    while (index != MulticastMember::kNone &&
           (memberships_[index].interface != interface || memberships_[index].group != group))
        index = memberships_[index].next;
    return index;
}

/// A membership that is in the socket's list and not yet in any group.
Result<std::uint32_t> MulticastGroups::add(MulticastMember& member, std::uint32_t interface, const Address& group) {
    if (!group.is_multicast()) return fail(EINVAL, "not a group");
    std::size_t count = 0;
    for (std::uint32_t at = member.first_; at != MulticastMember::kNone; at = memberships_[at].next) ++count;
    if (count >= kMaxPerSocket || used_ >= kMaxMemberships) return fail(ENOBUFS, "memberships");
    std::uint32_t index = free_;
    if (index == MulticastMember::kNone) {
        index = static_cast<std::uint32_t>(memberships_.size());
        memberships_.emplace_back();
    } else {
        free_ = memberships_[index].next;
    }
    ++used_;
    Membership& membership = memberships_[index];
    membership.interface = interface;
    membership.group = group;
    membership.mode = FilterMode::kInclude;
    membership.sources.clear();
    membership.next = member.first_;
    member.first_ = index;
    return index;
}

void MulticastGroups::remove(MulticastMember& member, std::uint32_t index) {
    std::uint32_t* link = &member.first_;
    while (*link != index) link = &memberships_[*link].next;
    *link = memberships_[index].next;
    memberships_[index].next = free_;
    memberships_[index].sources = {};
    free_ = index;
    --used_;
}

Result<void> MulticastGroups::change(Membership& membership, FilterMode mode, std::vector<Address> sources, bool first,
                                     bool last) {
    const Key key{membership.interface, membership.group};
    auto found = groups_.find(key);
    if (found == groups_.end()) {
        if (groups_.size() >= kMaxGroups) return fail(ENOBUFS, "groups");
        found = groups_.try_emplace(key).first;
        found->second.interface = membership.interface;
        found->second.address = membership.group;
    }
    MulticastGroup& group = found->second;
    if (group.sources.size() + count_new(group.sources, sources) > kMaxGroupSources) {
        settle(group);
        return fail(ENOBUFS, "sources");
    }

    const FilterMode mode_before = group.mode();
    for (MulticastSource& source : group.sources) source.was_listed = group.lists(source);
    if (!first) count_filter(group, membership.mode, membership.sources, false);
    if (!last) count_filter(group, mode, sources, true);
    membership.mode = mode;
    membership.sources = std::move(sources);

    const unsigned robustness = observer_ != nullptr ? observer_->robustness(group.interface, group.address) : 0;
    const bool mode_changed = group.mode() != mode_before;
    bool changed = mode_changed;
    for (MulticastSource& source : group.sources) {
        // [RFC3376 5.1] a change of mode carries the whole list, so nothing is said about single sources
        if (mode_changed) {
            source.retransmits = 0;
        } else if (group.lists(source) != source.was_listed) {
            source.retransmits = static_cast<std::uint8_t>(robustness);
            changed = true;
        }
    }
    if (mode_changed) group.mode_retransmits = static_cast<std::uint8_t>(robustness);
    if (robustness == 0) {
        if (changed && observer_ != nullptr) observer_->on_unreported_change(group);
        settle(group);
    } else if (changed) {
        observer_->on_group_changed(group);
    }
    return {};
}

void MulticastGroups::settle(MulticastGroup& group) {
    std::erase_if(group.sources, [](const MulticastSource& source) {
        return source.includes == 0 && source.excludes == 0 && source.retransmits == 0;
    });
    if (group.joined() || group.mode_retransmits != 0 || !group.sources.empty()) return;
    if (observer_ != nullptr) observer_->on_group_gone(group);
    groups_.erase(Key{group.interface, group.address});
}

Result<void> MulticastGroups::join(MulticastMember& member, std::uint32_t interface, const Address& group) {
    if (find_index(member, interface, group) != MulticastMember::kNone) return fail(EADDRINUSE, "joined already");
    const std::uint32_t index = TRY(add(member, interface, group));
    auto changed = change(memberships_[index], FilterMode::kExclude, {}, true, false);
    if (!changed) remove(member, index);
    return changed;
}

Result<void> MulticastGroups::leave(MulticastMember& member, std::uint32_t interface, const Address& group) {
    const std::uint32_t index = find_index(member, interface, group);
    if (index == MulticastMember::kNone) return fail(EADDRNOTAVAIL, "not joined");
    TRY_VOID(change(memberships_[index], FilterMode::kInclude, {}, false, true));
    remove(member, index);
    return {};
}

void MulticastGroups::leave_all(MulticastMember& member) {
    while (!member.empty()) {
        const Membership& latest = memberships_[member.first_];
        CHECK(leave(member, latest.interface, Address(latest.group)).has_value());
    }
}

Result<void> MulticastGroups::change_source(MulticastMember& member, std::uint32_t interface, const Address& group,
                                            const Address& source, FilterMode mode, bool add_it) {
    const std::uint32_t index = find_index(member, interface, group);
    if (index == MulticastMember::kNone) return fail(EINVAL, "not joined");
    if (source.family() != group.family()) return fail(EINVAL, "source of another family");
    Membership& membership = memberships_[index];
    // As in Linux: an empty filter may change its mode, another may not.
    if (membership.mode != mode && !membership.sources.empty()) return fail(EINVAL, "filter of the other mode");
    std::vector<Address> sources = membership.sources;
    const auto at = std::ranges::lower_bound(sources, source);
    const bool has = at != sources.end() && *at == source;
    if (has == add_it) return fail(EADDRNOTAVAIL, "source");
    if (add_it) {
        if (sources.size() >= kMaxSources) return fail(ENOBUFS, "sources");
        sources.insert(at, source);
    } else {
        sources.erase(at);
        if (sources.empty() && mode == FilterMode::kInclude) return leave(member, interface, group);
    }
    return change(membership, mode, std::move(sources), false, false);
}

Result<void> MulticastGroups::join_source(MulticastMember& member, std::uint32_t interface, const Address& group,
                                          const Address& source) {
    if (find_index(member, interface, group) != MulticastMember::kNone)
        return change_source(member, interface, group, source, FilterMode::kInclude, true);
    if (source.family() != group.family()) return fail(EINVAL, "source of another family");
    const std::uint32_t index = TRY(add(member, interface, group));
    auto changed = change(memberships_[index], FilterMode::kInclude, {source}, true, false);
    if (!changed) remove(member, index);
    return changed;
}

Result<void> MulticastGroups::leave_source(MulticastMember& member, std::uint32_t interface, const Address& group,
                                           const Address& source) {
    return change_source(member, interface, group, source, FilterMode::kInclude, false);
}

Result<void> MulticastGroups::block_source(MulticastMember& member, std::uint32_t interface, const Address& group,
                                           const Address& source) {
    return change_source(member, interface, group, source, FilterMode::kExclude, true);
}

Result<void> MulticastGroups::unblock_source(MulticastMember& member, std::uint32_t interface, const Address& group,
                                             const Address& source) {
    return change_source(member, interface, group, source, FilterMode::kExclude, false);
}

Result<void> MulticastGroups::set_filter(MulticastMember& member, std::uint32_t interface, const Address& group,
                                         FilterMode mode, std::span<const Address> sources) {
    const std::uint32_t index = find_index(member, interface, group);
    if (index == MulticastMember::kNone) return fail(EINVAL, "not joined");
    if (mode == FilterMode::kInclude && sources.empty()) return leave(member, interface, group);
    if (sources.size() > kMaxSources) return fail(ENOBUFS, "sources");
    std::vector<Address> sorted(sources.begin(), sources.end());
    std::ranges::sort(sorted);
    sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
    if (std::ranges::any_of(sorted, [&](const Address& one) { return one.family() != group.family(); }))
        return fail(EINVAL, "source of another family");
    return change(memberships_[index], mode, std::move(sorted), false, false);
}

Result<MulticastGroups::Filter> MulticastGroups::filter(const MulticastMember& member, std::uint32_t interface,
                                                        const Address& group) const {
    const std::uint32_t index = find_index(member, interface, group);
    if (index == MulticastMember::kNone) return fail(EADDRNOTAVAIL, "not joined");
    return Filter{memberships_[index].mode, memberships_[index].sources};
}

bool MulticastGroups::accepts(const MulticastMember& member, std::uint32_t interface, const Address& group,
                              const Address& source) const {
    const std::uint32_t index = find_index(member, interface, group);
    if (index == MulticastMember::kNone) return false;
    const bool listed = std::ranges::binary_search(memberships_[index].sources, source);
    return memberships_[index].mode == FilterMode::kExclude ? !listed : listed;
}

}  // namespace culvert::stack
