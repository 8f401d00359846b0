#include "daemon/stack/link/address_configuration.h"

#include <algorithm>

#include "daemon/stack/link/stable_address.h"

namespace culvert::stack {
namespace {

using std::chrono::seconds;

constexpr Duration kMaxFirstDelay = seconds(1);  // [RFC5227 1.1] PROBE_WAIT, [RFC4861 10] MAX_RTR_SOLICITATION_DELAY
// [RFC5227 1.1]
constexpr unsigned kProbesV4 = 3;                // PROBE_NUM
constexpr Duration kProbeMin = seconds(1);
constexpr Duration kProbeMax = seconds(2);
constexpr Duration kAnnounceWait = seconds(2);
constexpr unsigned kAnnouncementsV4 = 2;         // ANNOUNCE_NUM
constexpr Duration kAnnounceInterval = seconds(2);
constexpr unsigned kProbesV6 = 1;                // [RFC4862 5.1] DupAddrDetectTransmits
constexpr unsigned kAnnouncementsV6 = 3;         // [RFC4861 10] MAX_NEIGHBOR_ADVERTISEMENT, after a change of MAC
constexpr Duration kTwoHours = std::chrono::hours(2);

const Address kAllNodes = Address::parse("ff02::1").value();
const Address kLinkLocalPrefix = Address::parse("fe80::").value();

bool is_link_local_v6(const Address& address) { return !address.is_v4() && address.is_link_local(); }

}  // namespace

AddressConfiguration::AddressConfiguration(ControlOutput& output, MulticastGroups& groups, TimerWheel& wheel,
                                           Counters& counters, Rng& rng, AddressUser& user,
                                           const std::uint64_t (&stable_secret)[2])
    : output_(output),
      groups_(groups),
      wheel_(wheel),
      counters_(counters),
      rng_(rng),
      user_(user),
      stable_secret_{stable_secret[0], stable_secret[1]} {}

AddressConfiguration::~AddressConfiguration() {
    for (const auto& entry : entries_) {
        wheel_.cancel(*entry);
        groups_.leave_all(entry->group);
    }
}

AddressConfiguration::Entry* AddressConfiguration::find(const LinkInterface& link, const Address& address) {
    const auto found = std::ranges::find_if(
        entries_, [&](const auto& entry) { return entry->link == &link && entry->address == address; });
    return found == entries_.end() ? nullptr : found->get();
}

void AddressConfiguration::tell(const Entry& entry, AddressObserver::Event event) {
    if (observer_ != nullptr)
        observer_->on_address(entry.link->interface.index, entry.address, entry.prefix_length, event);
}

void AddressConfiguration::configure(LinkInterface& link, std::span<const InterfaceAddress> addresses, Instant now) {
    std::vector<Entry*> gone;
    for (const auto& entry : entries_)
        if (entry->link == &link && entry->origin == Origin::kConfigured &&
            std::ranges::find(addresses, entry->address, &InterfaceAddress::address) == addresses.end())
            gone.push_back(entry.get());
    for (Entry* const entry : gone) remove(*entry);

    bool v6 = link.interface.autoconfigures;
    bool has_link_local = false;
    std::size_t count = 0;
    for (const InterfaceAddress& wanted : addresses) {
        v6 |= !wanted.address.is_v4();
        has_link_local |= is_link_local_v6(wanted.address);
        if (++count > kMaxConfigured) break;
        if (find(link, wanted.address) == nullptr) add(link, wanted, Origin::kConfigured, now);
    }
    const bool chosen = std::ranges::any_of(
        entries_, [&](const auto& entry) { return entry->link == &link && entry->origin == Origin::kLinkLocal; });
    if (v6 && !has_link_local && !chosen)
        add(link, {stable_address(kLinkLocalPrefix, link.interface.name, 0, stable_secret_), 64}, Origin::kLinkLocal, now);
}

void AddressConfiguration::add(LinkInterface& link, const InterfaceAddress& wanted, Origin origin, Instant now) {
    Entry& entry = *entries_.emplace_back(std::make_unique<Entry>());
    entry.link = &link;
    entry.address = wanted.address;
    entry.prefix_length = wanted.prefix_length;
    entry.origin = origin;
    start(entry, now);
}

void AddressConfiguration::remove(Entry& entry) {
    LinkInterface& link = *entry.link;
    const bool assigned = entry.state == AddressState::kAssigned;
    wheel_.cancel(entry);
    groups_.leave_all(entry.group);
    if (assigned) tell(entry, AddressObserver::Event::kRemoved);
    std::erase_if(entries_, [&](const auto& one) { return one.get() == &entry; });
    if (assigned) publish(link);
}

/// Due when the next step of probing, or the end of a lifetime, is.
void AddressConfiguration::arm(Entry& entry) {
    Instant due = std::min(entry.next_step, entry.valid_until);
    if (!entry.deprecated) due = std::min(due, entry.preferred_until);
    wheel_.schedule(entry, due);
}

void AddressConfiguration::start(Entry& entry, Instant now) {
    entry.state = AddressState::kDelayed;
    entry.sent = 0;
    if (!entry.link->interface.detects_duplicates) return assign(entry, now);
    // [RFC4862 5.4.2] [RFC5227 2.1.1] not everybody at once when the power comes back. A link that is down can refute
    // nothing: announce_all() starts when it is up.
    entry.next_step = entry.link->interface.up ? now + random_duration(rng_, {}, kMaxFirstDelay) : kNever;
    arm(entry);
}

/// [RFC5227 2.1.1] a request with no sender; [RFC4862 5.4.2] a solicitation from nobody, with a nonce [RFC7527 4.1].
void AddressConfiguration::probe(Entry& entry, Instant now) {
    Interface& interface = entry.link->interface;
    entry.state = AddressState::kProbing;
    ++entry.sent;
    if (entry.address.is_v4()) {
        output_.arp(interface,
                    {.operation = wire::ArpOperation::kRequest,
                     .sender_mac = interface.mac,
                     .sender = Address::any(Family::kIpv4),
                     .target_mac = {},
                     .target = entry.address},
                    wire::kBroadcastMac);
        entry.next_step = now + (entry.sent < kProbesV4 ? random_duration(rng_, kProbeMin, kProbeMax) : kAnnounceWait);
        return;
    }
    const Address group = wire::solicited_node_group(entry.address);
    if (entry.group.empty() && !groups_.join(entry.group, interface.index, group)) {
        // No room for the group: nobody could ask for the address, so it is no use to have it.
        counters_.drop(Drop::kGroupTableFull);
        entry.next_step = now + kRetryDuplicate;
        entry.sent = 0;
        return;
    }
    for (std::uint8_t& byte : entry.nonce) byte = static_cast<std::uint8_t>(rng_.next());
    output_.ndp(interface, Address(), group,
                wire::NeighborSolicitation{.target = entry.address, .source_mac = {}, .nonce = entry.nonce});
    entry.next_step = now + entry.link->retransmit_time;
}

void AddressConfiguration::assign(Entry& entry, Instant now) {
    if (!entry.address.is_v4() && entry.group.empty() &&
        !groups_.join(entry.group, entry.link->interface.index, wire::solicited_node_group(entry.address)))
        counters_.drop(Drop::kGroupTableFull);
    entry.state = AddressState::kAssigned;
    entry.sent = 0;
    entry.next_step = kNever;
    publish(*entry.link);
    tell(entry, AddressObserver::Event::kAssigned);
    if (entry.address.is_v4()) {
        entry.announcements = kAnnouncementsV4;
        announce(entry, now);  // [RFC5227 2.3] from now on it is ours
    }
    arm(entry);
}

void AddressConfiguration::announce(Entry& entry, Instant now) {
    Interface& interface = entry.link->interface;
    --entry.announcements;
    if (entry.address.is_v4()) {
        output_.arp(interface,
                    {.operation = wire::ArpOperation::kRequest,
                     .sender_mac = interface.mac,
                     .sender = entry.address,
                     .target_mac = {},
                     .target = entry.address},
                    wire::kBroadcastMac);
    } else {
        // [RFC4861 7.2.6] to all nodes, overriding, not solicited
        output_.ndp(interface, entry.address, kAllNodes,
                    wire::NeighborAdvertisement{.target = entry.address, .overrides = true, .target_mac = interface.mac});
    }
    const Duration interval = entry.address.is_v4() ? kAnnounceInterval : entry.link->retransmit_time;
    entry.next_step = entry.announcements != 0 ? now + interval : kNever;
}

void AddressConfiguration::announce_all(LinkInterface& link, Instant now) {
    if (!link.interface.up) return;
    for (const auto& entry : entries_) {
        if (entry->link != &link) continue;
        if (entry->state == AddressState::kAssigned) {
            entry->announcements = entry->address.is_v4() ? kAnnouncementsV4 : kAnnouncementsV6;
            announce(*entry, now);
            arm(*entry);
        } else {
            start(*entry, now);
        }
    }
}

void AddressConfiguration::conflict(LinkInterface& link, const Address& address, Instant now) {
    Entry* const entry = find(link, address);
    if (entry == nullptr) return;
    switch (entry->state) {
        case AddressState::kDelayed:
        case AddressState::kDuplicate: return;
        case AddressState::kProbing: return duplicate(*entry, now);
        case AddressState::kAssigned: break;
    }
    ++counters_.address_conflicts;
    // [RFC5227 2.4 (c)] A server's address was given to it on purpose, and connections live on it: it is defended as long as
    // it is attacked, with one announcement in ten seconds. Giving it up (a, b) would let any neighbour end them.
    // IPv6 leaves an assigned address alone [RFC4862 5.4.4].
    if (!address.is_v4()) return;
    if (entry->last_conflict != Instant::min() && now - entry->last_conflict < kDefendInterval) return;
    entry->last_conflict = now;
    entry->announcements = std::max(entry->announcements, 1u);
    announce(*entry, now);
    arm(*entry);
    tell(*entry, AddressObserver::Event::kDefended);
}

/// [RFC5227 2.1.1] [RFC4862 5.4.5] not to be used.
void AddressConfiguration::duplicate(Entry& entry, Instant now) {
    ++counters_.address_conflicts;
    groups_.leave_all(entry.group);
    tell(entry, AddressObserver::Event::kDuplicate);
    entry.state = AddressState::kDuplicate;
    entry.sent = 0;
    entry.next_step = now + kRetryDuplicate;
    if (entry.origin != Origin::kConfigured) {
        // [RFC7217 6] another identifier, a few times; then somebody answers to everything, and we give up.
        if (++entry.attempt > kIdentifierRetries) {
            entry.next_step = kNever;
        } else {
            entry.address = stable_address(entry.address, entry.link->interface.name, entry.attempt, stable_secret_);
            entry.next_step = now + seconds(1);  // [RFC7217 6] IDGEN_DELAY
        }
    }
    arm(entry);
}

std::optional<AddressState> AddressConfiguration::state(const LinkInterface& link, const Address& address) const {
    const Entry* const entry = find(link, address);
    return entry == nullptr ? std::nullopt : std::optional(entry->state);
}

std::optional<Address> AddressConfiguration::link_local(const LinkInterface& link) const {
    for (const auto& entry : entries_)
        if (entry->link == &link && entry->state == AddressState::kAssigned && is_link_local_v6(entry->address))
            return entry->address;
    return std::nullopt;
}

bool AddressConfiguration::sent_nonce(const LinkInterface& link, const Address& address,
                                      const wire::NdpNonce& nonce) const {
    const Entry* const entry = find(link, address);
    return entry != nullptr && entry->sent != 0 && entry->nonce == nonce;
}

void AddressConfiguration::autoconfigure(LinkInterface& link, const Address& prefix, Instant valid_until,
                                         Instant preferred_until, Instant now) {
    std::size_t count = 0;
    for (const auto& entry : entries_) {
        if (entry->link != &link || entry->origin != Origin::kAutoconfigured) continue;
        ++count;
        if (!entry->address.in(prefix, 64)) continue;
        // [RFC4862 5.5.3 e] An advertisement that nobody has signed may not end an address at once: the lifetime is
        // believed when it is longer than two hours or than what is left; else two hours remain.
        const Duration left = entry->valid_until == kNever ? Duration::max() : entry->valid_until - now;
        const Duration offered = valid_until == kNever ? Duration::max() : valid_until - now;
        if (offered > kTwoHours || offered > left) {
            entry->valid_until = valid_until;
        } else if (left > kTwoHours) {
            entry->valid_until = now + kTwoHours;
        }
        entry->preferred_until = preferred_until;
        if (lifetimes(*entry, now)) arm(*entry);
        return;
    }
    if (valid_until <= now) return;  // [RFC4862 5.5.3 d] nothing to begin with
    if (count >= kMaxAutoconfigured) return counters_.drop(Drop::kNdpTooManyPrefixes);
    Entry& entry = *entries_.emplace_back(std::make_unique<Entry>());
    entry.link = &link;
    entry.address = stable_address(prefix, link.interface.name, 0, stable_secret_);
    entry.prefix_length = 64;
    entry.origin = Origin::kAutoconfigured;
    entry.valid_until = valid_until;
    entry.preferred_until = preferred_until;
    entry.deprecated = preferred_until <= now;
    start(entry, now);
}

/// [RFC4862 5.5.4] preferred, deprecated, gone. False: the entry is gone.
bool AddressConfiguration::lifetimes(Entry& entry, Instant now) {
    if (entry.valid_until <= now) {
        remove(entry);
        return false;
    }
    const bool deprecated = entry.preferred_until <= now;
    if (deprecated != entry.deprecated) {
        entry.deprecated = deprecated;
        if (entry.state == AddressState::kAssigned) publish(*entry.link);
    }
    return true;
}

Instant AddressConfiguration::on_timer(TimerNode& node, Instant now) {
    auto& entry = static_cast<Entry&>(node);
    if (!lifetimes(entry, now)) return kNever;
    if (entry.next_step <= now) {
        entry.next_step = kNever;
        switch (entry.state) {
            case AddressState::kDelayed:
                if (entry.link->interface.up) probe(entry, now);
                break;
            case AddressState::kProbing: {
                const unsigned wanted = entry.address.is_v4() ? kProbesV4 : kProbesV6;
                if (!entry.link->interface.up) {
                    entry.state = AddressState::kDelayed;  // what went out while it was down proves nothing
                } else if (entry.sent < wanted) {
                    probe(entry, now);
                } else {
                    assign(entry, now);
                }
                break;
            }
            case AddressState::kAssigned:
                if (entry.announcements != 0) announce(entry, now);
                break;
            case AddressState::kDuplicate: start(entry, now); break;
        }
    }
    arm(entry);
    return kNever;  // armed already
}

void AddressConfiguration::publish(LinkInterface& link) {
    std::vector<InterfaceAddress> assigned;
    for (const auto& entry : entries_)
        if (entry->link == &link && entry->state == AddressState::kAssigned)
            assigned.push_back({.address = entry->address,
                                .prefix_length = entry->prefix_length,
                                .dedicated = true,
                                .deprecated = entry->deprecated});
    link.interface.addresses = std::move(assigned);
    user_.on_addresses_changed(link.interface);
}

}  // namespace culvert::stack
