// Which groups are joined on which interface, for which sources: the socket side of IGMPv3 and MLDv2.
//
//   socket A  join 239.1.1.1                     --> Membership (EXCLUDE {})  --+
//   socket B  block source 10.0.0.9 in the same  --> Membership (EXCLUDE {9}) --+--> MulticastGroup on eth0: EXCLUDE {}
//   socket C  take it from 10.0.0.7 only         --> Membership (INCLUDE {7}) --+        |               |
//                                                                                  accepts(source)   GroupReporter
//
// [RFC3376 3.2] [RFC3810 4.2] The interface's filter is merged from its sockets': EXCLUDE if any of them excludes, with
// the sources that every excluding socket blocks and no including socket wants; else INCLUDE, with what any wants. It
// is kept as counts per source, so a change of one socket costs the sources of the group, not the sockets.
//
// On an interface whose link we run ourselves each change of the merged filter is reported (group_reporter.h). Elsewhere
// the kernel reports what the kernel sockets underneath have joined, and the groups are for delivery only.
//
// Bounded in groups, memberships and sources; what does not fit is ENOBUFS to the application that asked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "daemon/base/timer_wheel.h"
#include "daemon/stack/link/link_interface.h"
#include "daemon/wire/address.h"
#include "shm/base/error.h"

namespace culvert::stack {

enum class FilterMode : std::uint8_t { kInclude, kExclude };

/// A socket's end of its memberships: embed one in whatever may join. Must be emptied by leave_all before it dies.
class MulticastMember {
public:
    bool empty() const { return first_ == kNone; }

private:
    friend class MulticastGroups;
    static constexpr std::uint32_t kNone = UINT32_MAX;
    std::uint32_t first_ = kNone;  // index of the latest membership
};

/// A source that some socket names in its filter, or that has still to be reported.
struct MulticastSource {
    Address address;
    std::uint32_t includes = 0;     // sockets that want it
    std::uint32_t excludes = 0;     // sockets that block it
    std::uint8_t retransmits = 0;   // reports that have still to name it: ALLOW or BLOCK, as it stands then
    bool was_listed = false;        // scratch of a change
};

/// A group on one interface: the merged filter, and what the reporter has still to say about it.
struct MulticastGroup : TimerNode {
    MulticastGroup() : TimerNode(kGroupTimer) {}
    std::uint32_t interface = 0;
    Address address;
    std::uint32_t including = 0;  // sockets by mode
    std::uint32_t excluding = 0;
    std::vector<MulticastSource> sources;  // sorted by address

    // --- of the reporter ---
    std::uint8_t mode_retransmits = 0;  // reports that have still to give the whole filter
    bool announced = false;             // old versions: routers have been told that we are a member
    bool last_reporter = false;         // [RFC2236 6] we, and not another host, reported last
    Instant report_at = kNever;         // the next report of a change
    Instant answer_at = kNever;         // the answer to a query about this group (old versions: to any query)
    std::vector<Address> queried;       // the sources that query asked about; empty: the whole group

    bool joined() const { return including + excluding != 0; }
    /// [RFC3376 3.2] A group nobody has joined is INCLUDE {}.
    FilterMode mode() const { return excluding != 0 ? FilterMode::kExclude : FilterMode::kInclude; }
    /// True if the merged source list has it.
    bool lists(const MulticastSource& source) const {
        return excluding != 0 ? source.excludes == excluding && source.includes == 0 : source.includes != 0;
    }
    const MulticastSource* find(const Address& source) const;
    bool accepts(const Address& source) const;
};

/// Told when a merged filter has changed, on interfaces whose groups are reported by us.
class GroupObserver {
public:
    virtual ~GroupObserver() = default;
    /// How often a change is reported; 0: this interface's groups are not ours to report.
    virtual unsigned robustness(std::uint32_t interface, const Address& group) const = 0;
    /// The counts of retransmissions in `group` have been set.
    virtual void on_group_changed(MulticastGroup& group) = 0;
    /// The merged filter has changed, on an interface whose groups are not ours to report.
    virtual void on_unreported_change(const MulticastGroup&) {}
    /// `group` is about to go; it must not be in a timer wheel afterwards.
    virtual void on_group_gone(MulticastGroup& group) = 0;
};

class MulticastGroups {
public:
    static constexpr std::size_t kMaxGroups = 4096;
    static constexpr std::size_t kMaxMemberships = 16384;
    static constexpr std::size_t kMaxPerSocket = 64;     // memberships of one socket; Linux: 20 (igmp_max_memberships)
    static constexpr std::size_t kMaxSources = 64;       // of one membership; Linux: 10 and 64 (igmp/mld_max_msf)
    static constexpr std::size_t kMaxGroupSources = 512;  // of all sockets' filters for one group

    MulticastGroups() = default;
    ~MulticastGroups();
    MulticastGroups(const MulticastGroups&) = delete;
    void set_observer(GroupObserver* observer) { observer_ = observer; }  // cold

    // --- for sockets; the errno values are those of Linux ------------------------------------------------------------
    /// IP_ADD_MEMBERSHIP, IPV6_JOIN_GROUP: from every source. Errors: EINVAL (no group), EADDRINUSE, ENOBUFS.
    Result<void> join(MulticastMember& member, std::uint32_t interface, const Address& group);
    /// IP_DROP_MEMBERSHIP, IPV6_LEAVE_GROUP. Errors: EADDRNOTAVAIL.
    Result<void> leave(MulticastMember& member, std::uint32_t interface, const Address& group);
    /// IP_ADD_SOURCE_MEMBERSHIP: joins for this source alone, or adds it. Errors: EINVAL (the filter excludes),
    /// EADDRNOTAVAIL (it has it already), ENOBUFS.
    Result<void> join_source(MulticastMember& member, std::uint32_t interface, const Address& group,
                             const Address& source);
    /// IP_DROP_SOURCE_MEMBERSHIP: the last source gone leaves the group. Errors: EINVAL, EADDRNOTAVAIL.
    Result<void> leave_source(MulticastMember& member, std::uint32_t interface, const Address& group,
                              const Address& source);
    /// IP_BLOCK_SOURCE, IP_UNBLOCK_SOURCE. Errors: EINVAL (not joined, or the filter includes), EADDRNOTAVAIL, ENOBUFS.
    Result<void> block_source(MulticastMember& member, std::uint32_t interface, const Address& group,
                              const Address& source);
    Result<void> unblock_source(MulticastMember& member, std::uint32_t interface, const Address& group,
                                const Address& source);
    /// IP_MSFILTER, MCAST_MSFILTER of a joined group; INCLUDE {} leaves it. Errors: EINVAL, ENOBUFS.
    Result<void> set_filter(MulticastMember& member, std::uint32_t interface, const Address& group, FilterMode mode,
                            std::span<const Address> sources);
    /// The socket goes.
    void leave_all(MulticastMember& member);

    struct Filter {
        FilterMode mode = FilterMode::kInclude;
        std::span<const Address> sources;  // sorted; valid until the next change
    };
    /// The socket's own filter. Errors: EADDRNOTAVAIL.
    Result<Filter> filter(const MulticastMember& member, std::uint32_t interface, const Address& group) const;

    // --- for every packet to a group ---------------------------------------------------------------------------------
    /// Does anybody here want what `source` sends to `group`? One probe of a hash table, one search of sorted sources.
    bool accepts(std::uint32_t interface, const Address& group, const Address& source) const {
        if (groups_.empty()) return false;
        const auto found = groups_.find({interface, group});
        return found != groups_.end() && found->second.accepts(source);
    }
    /// Has anybody joined it, for whatever sources?
    bool joined(std::uint32_t interface, const Address& group) const {
        const auto found = groups_.find({interface, group});
        return found != groups_.end() && found->second.joined();
    }
    /// Does this socket? Cost: its memberships, kMaxPerSocket at most.
    bool accepts(const MulticastMember& member, std::uint32_t interface, const Address& group,
                 const Address& source) const;

    // --- for the reporter ---------------------------------------------------------------------------------------------
    MulticastGroup* find(std::uint32_t interface, const Address& group);
    /// Every group of the interface, joined or still to be reported as left. `visit` must not change the table.
    template <class Visit>
    void for_each(std::uint32_t interface, Visit&& visit) {
        for (auto& [key, group] : groups_)
            if (key.interface == interface) visit(group);
    }
    /// Everything has been reported: forgets sources, and the group, that are there for the report only.
    void settle(MulticastGroup& group);
    std::size_t group_count() const { return groups_.size(); }

private:
    struct Key {
        std::uint32_t interface;
        Address group;
        friend bool operator==(const Key&, const Key&) = default;
    };
    struct KeyHash {
        std::size_t operator()(const Key& key) const { return std::hash<Address>()(key.group) + key.interface; }
    };
    struct Membership {
        std::uint32_t interface = 0;
        std::uint32_t next = MulticastMember::kNone;  // of the socket, or of the free list
        Address group;
        FilterMode mode = FilterMode::kInclude;
        std::vector<Address> sources;  // sorted
    };

    std::uint32_t find_index(const MulticastMember& member, std::uint32_t interface, const Address& group) const;
    Result<std::uint32_t> add(MulticastMember& member, std::uint32_t interface, const Address& group);
    void remove(MulticastMember& member, std::uint32_t index);
    /// The one place where a membership's filter changes. Errors: ENOBUFS, and nothing has changed.
    Result<void> change(Membership& membership, FilterMode mode, std::vector<Address> sources, bool first, bool last);
    Result<void> change_source(MulticastMember& member, std::uint32_t interface, const Address& group,
                               const Address& source, FilterMode mode, bool add_it);

    GroupObserver* observer_ = nullptr;
    std::unordered_map<Key, MulticastGroup, KeyHash> groups_;
    std::vector<Membership> memberships_;
    std::uint32_t free_ = MulticastMember::kNone;
    std::size_t used_ = 0;
};

}  // namespace culvert::stack
