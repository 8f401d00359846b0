#include "daemon/stack/link/link_layer.h"

#include <algorithm>
#include <utility>

namespace culvert::stack {
namespace {

const Address kAllHosts = Address::v4(224, 0, 0, 1);
const Address kAllNodes = Address::parse("ff02::1").value();
const Address kAllNodesHere = Address::parse("ff01::1").value();

/// [RFC1122 3.3.7 all-hosts] [RFC1112 4] [RFC4291 2.8] everybody is in these
bool is_everybodys(const Address& group) { return group == kAllNodes || group == kAllHosts || group == kAllNodesHere; }

}  // namespace

LinkLayer::LinkLayer(NeighborTable& table, RouteTable& routes, Counters& counters, Rng& rng, AddressUser& user,
                     const std::uint64_t (&secret)[2], const std::uint64_t (&stable_secret)[2])
    : table_(table),
      counters_(counters),
      rng_(rng),
      output_(counters),
      neighbors_(table, output_, wheel_, counters, rng, secret, unconfirmed),
      addresses_(output_, groups_, wheel_, counters, rng, user, stable_secret),
      routers_(routes, neighbors_, addresses_, output_, wheel_, counters, rng),
      reporter_(groups_, addresses_, output_, wheel_, counters, rng),
      arp_(addresses_, neighbors_, output_, counters),
      ndp_(addresses_, neighbors_, routers_, output_, counters) {
    neighbors_.set_watcher(this);
    table_.set_own_resolver(this);
}

LinkLayer::~LinkLayer() { table_.set_own_resolver(nullptr); }

LinkInterface* LinkLayer::find(std::uint32_t interface) {
    const auto found =
        std::ranges::find_if(links_, [&](const auto& link) { return link->interface.index == interface; });
    return found == links_.end() ? nullptr : found->get();
}

void LinkLayer::add_interface(Interface& interface, Instant now) {
    DCHECK(interface.resolves_itself && interface.link == nullptr && !interface.follows());
    LinkInterface& link = *links_.emplace_back(std::make_unique<LinkInterface>(interface));
    interface.link = &link;
    link.reachable_time =
        random_duration(rng_, link.base_reachable_time / 2, link.base_reachable_time + link.base_reachable_time / 2);
    reporter_.add_interface(link);
    // What has been given as own is a wish until it has been proved.
    configure(interface, std::exchange(interface.addresses, {}), now);
    routers_.start(link, now);
}

void LinkLayer::configure(Interface& interface, std::span<const InterfaceAddress> addresses, Instant now) {
    reporter_.set_now(now);
    addresses_.configure(*interface.link, addresses, now);
}

void LinkLayer::came_up(Interface& interface, Instant now) {
    LinkInterface& link = *interface.link;
    reporter_.set_now(now);
    addresses_.announce_all(link, now);
    reporter_.start(link, now);
    routers_.start(link, now);
}

void LinkLayer::advance(Instant now) {
    reporter_.set_now(now);
    wheel_.advance(now, [&](TimerNode& node) -> Instant {
        switch (static_cast<LinkTimerKind>(node.kind())) {
            case kNeighborTimer: return neighbors_.on_timer(node, now);
            case kAddressTimer: return addresses_.on_timer(node, now);
            case kRouterTimer: return routers_.on_timer(node, now);
            case kGroupTimer: return reporter_.on_group_timer(node, now);
            case kReporterTimer: return reporter_.on_reporter_timer(node, now);
        }
        return kNever;
    });
}

bool LinkLayer::accepts_group(const Interface& interface, const Address& group, const Address& source) const {
    // [RFC3376 4.1.12] A query about a group comes to the group, from a router that no filter names: where queries are ours to
    // answer, the source counts only for what is no query (accepts_source).
    if (interface.resolves_itself) return is_everybodys(group) || groups_.joined(interface.index, group);
    return groups_.accepts(interface.index, group, source);
}

bool LinkLayer::accepts_source(const Interface& interface, const Address& group, const Address& source) const {
    return (interface.resolves_itself && is_everybodys(group)) || groups_.accepts(interface.index, group, source);
}

void LinkLayer::arp(Interface& interface, const RxPacket& packet, std::uint32_t offset, Instant now) {
    if (interface.link == nullptr) return counters_.drop(Drop::kEtherTypeUnknown);  // the kernel's business
    arp_.input(*interface.link, packet, offset, now);
}

void LinkLayer::igmp(const IpPacket& packet, Instant now) {
    if (packet.interface.link == nullptr) return counters_.drop(Drop::kGroupMessageIgnored);
    reporter_.input(*packet.interface.link, packet, now);
}

void LinkLayer::icmpv6(const IpPacket& packet, std::uint8_t type, Instant now) {
    if (packet.interface.link == nullptr) return counters_.drop(Drop::kIcmpIgnored);
    reporter_.set_now(now);
    if (type >= static_cast<std::uint8_t>(wire::NdpType::kRouterSolicitation) &&
        type <= static_cast<std::uint8_t>(wire::NdpType::kRedirect))
        return ndp_.input(*packet.interface.link, packet, now);
    reporter_.input(*packet.interface.link, packet, now);
}

OwnResolver::Answer LinkLayer::resolve_own(std::uint32_t interface, const Address& next_hop, Instant now) {
    LinkInterface* const link = find(interface);
    return link == nullptr ? Answer{} : neighbors_.resolve(*link, next_hop, now);
}

void LinkLayer::confirm_own(std::uint32_t interface, const Address& next_hop, Instant now) {
    if (LinkInterface* const link = find(interface); link != nullptr) neighbors_.confirm(*link, next_hop, now);
}

}  // namespace culvert::stack
