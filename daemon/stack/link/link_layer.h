// The link layer of dedicated addresses: joins ARP, neighbour discovery, address configuration, router discovery and
// group membership, and gives them to the stack through the three doors that it has for them.
//
//                         Stack
//    LinkProtocols          | OwnResolver (from NeighborTable)
//    ARP, ND, IGMP, MLD     | resolve, confirm
//          v                v
//   Arp, Ndp ------> NeighborProber --lost--> RouterDiscovery --> routes
//      |                                            | prefixes
//      +---conflict---> AddressConfiguration <------+
//                              | solicited-node groups
//   GroupReporter <--changes-- MulticastGroups <--join, leave-- sockets
//
// One wheel holds the timers of all of them. Interfaces with shared addresses have no part in this but for delivery to
// groups: there the kernel does it all.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "daemon/stack/input_hooks.h"
#include "daemon/stack/link/address_configuration.h"
#include "daemon/stack/link/arp.h"
#include "daemon/stack/link/control_output.h"
#include "daemon/stack/link/group_reporter.h"
#include "daemon/stack/link/link_interface.h"
#include "daemon/stack/link/multicast_groups.h"
#include "daemon/stack/link/ndp.h"
#include "daemon/stack/link/neighbor_prober.h"
#include "daemon/stack/link/router_discovery.h"
#include "daemon/stack/neighbor.h"
#include "daemon/stack/route_table.h"

namespace culvert::stack {

class LinkLayer final : public LinkProtocols, public OwnResolver, private NeighborWatcher {
public:
    LinkLayer(NeighborTable& table, RouteTable& routes, Counters& counters, Rng& rng, AddressUser& user,
              const std::uint64_t (&secret)[2], const std::uint64_t (&stable_secret)[2]);
    ~LinkLayer() override;
    void set_observer(AddressObserver* observer) { addresses_.set_observer(observer); }

    MulticastGroups& groups() { return groups_; }
    AddressConfiguration& addresses() { return addresses_; }
    NeighborProber& neighbors() { return neighbors_; }
    void set_group_audience(GroupAudience* audience) { reporter_.set_audience(audience); }
    /// The time of a change of groups that comes from nowhere else.
    void set_now(Instant now) { reporter_.set_now(now); }

    // --- the world: interfaces that resolve themselves; `interface` stays where it is ----------------------------------
    void add_interface(Interface& interface, Instant now);
    void configure(Interface& interface, std::span<const InterfaceAddress> addresses, Instant now);
    void came_up(Interface& interface, Instant now);
    void mac_changed(Interface& interface, Instant now) { addresses_.announce_all(*interface.link, now); }

    // --- the turn -----------------------------------------------------------------------------------------------------
    void advance(Instant now);
    Instant next_deadline() const { return wheel_.next_deadline(); }

    // LinkProtocols
    bool accepts_group(const Interface& interface, const Address& group, const Address& source) const override;
    bool accepts_source(const Interface& interface, const Address& group, const Address& source) const override;
    void arp(Interface& interface, const RxPacket& packet, std::uint32_t offset, Instant now) override;
    void igmp(const IpPacket& packet, Instant now) override;
    void icmpv6(const IpPacket& packet, std::uint8_t type, Instant now) override;

    // OwnResolver
    Answer resolve_own(std::uint32_t interface, const Address& next_hop, Instant now) override;
    void confirm_own(std::uint32_t interface, const Address& next_hop, Instant now) override;

private:
    void on_neighbor_lost(Interface& interface, const Address& address, Instant now) override {
        routers_.neighbor_lost(interface, address, now);
    }
    void on_no_router(Interface& interface, const Address& address, Instant now) override {
        routers_.no_router(interface, address, now);
    }
    LinkInterface* find(std::uint32_t interface);

    NeighborTable& table_;
    Counters& counters_;
    Rng& rng_;
    TimerWheel wheel_;
    ControlOutput output_;
    MulticastGroups groups_;
    std::vector<std::unique_ptr<LinkInterface>> links_;
    NeighborProber neighbors_;
    AddressConfiguration addresses_;
    RouterDiscovery routers_;
    GroupReporter reporter_;
    Arp arp_;
    Ndp ndp_;
};

}  // namespace culvert::stack
