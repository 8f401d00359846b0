#include "daemon/stack/link/link_sync.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "daemon/wire/ethernet.h"
#include "daemon/wire/icmp.h"
#include "daemon/wire/ip_protocol.h"
#include "daemon/wire/ipv6.h"
#include "shm/base/check.h"

namespace culvert::stack {
namespace {

/// The items behind a message's head.
template <class Item>
std::vector<Item> read_items(std::span<const std::byte> list, std::size_t count) {
    static_assert(std::is_trivially_copyable_v<Item>);
    CHECK(list.size() == count * sizeof(Item));
    std::vector<Item> items(count);
    if (count != 0) std::memcpy(static_cast<void*>(items.data()), list.data(), list.size());
    return items;
}

}  // namespace

bool is_link_business(std::span<const std::byte> head) {
    const auto byte = [&](std::size_t at) { return at < head.size() ? std::to_integer<unsigned>(head[at]) : 0u; };
    std::size_t at = wire::kEthernetHeaderLength;
    const auto type = [&] { return static_cast<wire::EtherType>(byte(at - 2) << 8 | byte(at - 1)); };
    if (type() == wire::EtherType::kVlan || type() == wire::EtherType::kServiceVlan) at += wire::kVlanTagLength;
    switch (type()) {
        case wire::EtherType::kArp: return true;
        case wire::EtherType::kIpv4: return byte(at + 9) == static_cast<unsigned>(wire::IpProtocol::kIgmp);
        case wire::EtherType::kIpv6: break;
        default: return false;
    }
    unsigned next = byte(at + 6);
    at += wire::kIpv6HeaderLength;
    if (next == 0) {  // hop-by-hop options: MLD has a router alert
        next = byte(at);
        at += (byte(at + 1) + 1) * 8;
    }
    if (next != static_cast<unsigned>(wire::IpProtocol::kIcmpv6)) return false;
    return wire::icmp_v6::is_link_control(static_cast<std::uint8_t>(byte(at)));
}

void LinkSync::attach(NeighborTable& table, LinkLayer& link, AddressUser& user) {
    table_ = &table;
    link_ = &link;
    user_ = &user;
    if (peers_ == nullptr) return;
    link.neighbors().set_audience(this);
    link.set_group_audience(this);
}

void LinkSync::add_interface(Interface& interface) { links_.push_back({.interface = &interface}); }

LinkSync::Link* LinkSync::find(std::uint32_t interface) {
    const auto found = std::ranges::find(links_, interface, [](const Link& link) { return link.interface->index; });
    return found == links_.end() ? nullptr : &*found;
}

bool LinkSync::tell(std::uint32_t engine, std::uint32_t interface, Head head, std::span<const std::byte> list) {
    static_assert(std::is_trivially_copyable_v<Head>);
    head.from = peers_->self();
    std::vector<std::byte> message(sizeof head + list.size());  // rare: neighbours, addresses and groups, not packets
    std::memcpy(message.data(), &head, sizeof head);
    if (!list.empty()) std::memcpy(message.data() + sizeof head, list.data(), list.size());
    return peers_->tell(engine, interface, message);
}

// --- out -------------------------------------------------------------------------------------------------------------

void LinkSync::resolve(std::uint32_t interface, const Address& next_hop) {
    const Link* const link = find(interface);
    if (link == nullptr || !link->interface->follows()) return kernel_.resolve(interface, next_hop);
    if (!tell(link->interface->link_engine, interface, {.kind = Head::Kind::kResolve, .address = next_hop}))
        counters_.drop(Drop::kHandOverFull);
}

void LinkSync::on_neighbor(const Interface& interface, const Address& address, const MacAddress& mac, NeighborState state) {
    Link& link = *find(interface.index);
    const Head head{.kind = Head::Kind::kNeighbor, .state = state, .mac = mac, .address = address};
    for (std::uint64_t left = peers_->others() & ~link.forget_for; left != 0; left &= left - 1) {
        const auto engine = static_cast<std::uint32_t>(std::countr_zero(left));
        if (tell(engine, interface.index, head)) continue;
        link.forget_for |= std::uint64_t{1} << engine;
        waiting_ = true;
    }
}

void LinkSync::addresses_changed(const Interface& interface) {
    Link* const link = find(interface.index);
    if (peers_ == nullptr || link == nullptr || interface.follows()) return;
    link->addresses_for = peers_->others();
    waiting_ = true;
}

void LinkSync::on_filter(const MulticastGroup& group) {
    const Link* const link = find(group.interface);
    if (link == nullptr || !link->interface->follows()) return;  // the kernel's groups
    changed_groups_.emplace(group.interface, group.address);
    waiting_ = true;
}

bool LinkSync::tell_group(const Interface& interface, const Address& address) {
    Head head{.kind = Head::Kind::kGroup, .address = address};
    std::vector<Address> sources;
    if (const MulticastGroup* const group = link_->groups().find(interface.index, address); group != nullptr) {
        head.mode = group->mode();
        for (const MulticastSource& source : group->sources)
            if (group->lists(source)) sources.push_back(source.address);
    }
    // More than one member may name: everything, of which our sockets take what they want.
    if (sources.size() > MulticastGroups::kMaxSources) {
        head.mode = FilterMode::kExclude;
        sources.clear();
    }
    head.count = static_cast<std::uint32_t>(sources.size());
    return tell(interface.link_engine, interface.index, head, std::as_bytes(std::span(sources)));
}

void LinkSync::tell_waiting() {
    waiting_ = false;
    const auto try_each = [this](std::uint64_t& engines, const auto& say) {
        for (std::uint64_t left = engines; left != 0; left &= left - 1) {
            const auto engine = static_cast<std::uint32_t>(std::countr_zero(left));
            if (say(engine)) engines &= ~(std::uint64_t{1} << engine);
        }
        waiting_ |= engines != 0;
    };
    for (Link& link : links_) {
        const std::vector<InterfaceAddress>& own = link.interface->addresses;
        try_each(link.addresses_for, [&](std::uint32_t engine) {
            return tell(engine, link.interface->index,
                        {.kind = Head::Kind::kAddresses, .count = static_cast<std::uint32_t>(own.size()), .address = {}},
                        std::as_bytes(std::span(own)));
        });
        try_each(link.forget_for, [&](std::uint32_t engine) {
            return tell(engine, link.interface->index, {.kind = Head::Kind::kForget, .address = {}});
        });
    }
    while (!changed_groups_.empty()) {
        const auto& [interface, group] = *changed_groups_.begin();
        if (!tell_group(*find(interface)->interface, group)) {
            waiting_ = true;
            return;
        }
        changed_groups_.erase(changed_groups_.begin());
    }
}

// --- in --------------------------------------------------------------------------------------------------------------

void LinkSync::receive(Interface& interface, std::span<const std::byte> message, Instant now) {
    Head head;
    CHECK(message.size() >= sizeof head);
    std::memcpy(static_cast<void*>(&head), message.data(), sizeof head);
    const auto list = message.subspan(sizeof head);
    switch (head.kind) {
        case Head::Kind::kResolve:
            CHECK(interface.link != nullptr);
            return link_->neighbors().resolve_for_others(*interface.link, head.address, now);
        case Head::Kind::kNeighbor:
            if (head.state == NeighborState::kIncomplete)
                return table_->remove(interface.index, head.address, *interface.tx);
            return table_->update(interface.index, head.address, head.mac, head.state, *interface.tx);
        case Head::Kind::kForget: return table_->forget(interface.index);
        case Head::Kind::kAddresses: return take_addresses(interface, head, list);
        case Head::Kind::kGroup: return take_group(interface, head, list, now);
    }
}

void LinkSync::take_addresses(Interface& interface, const Head& head, std::span<const std::byte> list) {
    CHECK(interface.follows());
    interface.addresses = read_items<InterfaceAddress>(list, head.count);
    user_->on_addresses_changed(interface);
}

/// A member for each group of each follower: what routers and switches are told is merged from all engines' sockets.
void LinkSync::take_group(Interface& interface, const Head& head, std::span<const std::byte> list, Instant now) {
    CHECK(interface.link != nullptr);
    const std::vector<Address> sources = read_items<Address>(list, head.count);
    const RemoteGroup key{head.from, interface.index, head.address};
    MulticastGroups& groups = link_->groups();
    link_->set_now(now);
    const auto found = remote_groups_.find(key);
    if (head.mode == FilterMode::kInclude && sources.empty()) {
        if (found == remote_groups_.end()) return;
        groups.leave_all(found->second);
        remote_groups_.erase(found);
        return;
    }
    MulticastMember& member = found != remote_groups_.end() ? found->second : remote_groups_[key];
    Result<void> done;
    if (member.empty())
        done = head.mode == FilterMode::kInclude ? groups.join_source(member, interface.index, head.address, sources[0])
                                                 : groups.join(member, interface.index, head.address);
    if (done) done = groups.set_filter(member, interface.index, head.address, head.mode, sources);
    if (done) return;
    counters_.drop(Drop::kGroupTableFull);  // this engine's table is full: the follower's sockets hear what others let in
    if (member.empty()) remote_groups_.erase(key);
}

}  // namespace culvert::stack
