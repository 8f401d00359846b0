// A link of dedicated addresses on several engines: one of them runs its protocols, the others follow.
//
//   leader (Interface::follows() is false)                followers
//   LinkLayer: ARP, ND, IGMP, MLD   <------ frames -----  what of these reaches them            Peers::pass_to_link
//   NeighborProber                  <----- kResolve ----  NeighborTable has nowhere to send to
//         |  ---------------------------- kNeighbor --->  NeighborTable::update
//   AddressConfiguration  -------------- kAddresses --->  Interface::addresses
//   MulticastGroups                 <------- kGroup ----  MulticastGroups: a merged filter has changed
//
// To a follower the leader is what the kernel is on a shared link: who resolves, and whose answers come when they come. So
// each address is probed, defended and answered for once, each neighbour is asked once for all engines, and a flood of ARP
// costs one copy a frame, whatever the number of engines.
//
// Messages may find no room in the ring, which is bounded. Then:
//   kResolve                    is lost, and comes again with the next packet a second later
//   kNeighbor                   the follower is told to forget all neighbours of the link (kForget) as soon as there is room,
//                               and asks again for those that it needs
//   kAddresses, kGroup, kForget wait here, as a mark and not as a message, and are tried again each turn
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/stack/link/link_layer.h"
#include "daemon/stack/neighbor.h"
#include "daemon/stack/peers.h"

namespace culvert::stack {

/// ARP, IGMP, neighbour discovery and MLD, in a frame of which nothing has been proved; `head` is its first fragment. What only
/// looks so is dropped by whoever reads it.
[[gnu::cold]] bool is_link_business(std::span<const std::byte> head);

class LinkSync final : public NeighborResolver, public NeighborAudience, public GroupAudience {
public:
    /// `kernel` resolves on shared links. `peers` null: the only engine, which leads everywhere and tells nobody.
    LinkSync(NeighborResolver& kernel, Peers* peers, Counters& counters)
        : kernel_(kernel), peers_(peers), counters_(counters) {}
    /// Startup: those whom the messages are for.
    void attach(NeighborTable& table, LinkLayer& link, AddressUser& user);
    /// One with dedicated addresses; it stays where it is.
    void add_interface(Interface& interface);

    // --- what is to be told -------------------------------------------------------------------------------------------
    /// Of NeighborTable.
    void resolve(std::uint32_t interface, const Address& next_hop) override;
    void on_neighbor(const Interface& interface, const Address& address, const MacAddress& mac, NeighborState state) override;
    void on_filter(const MulticastGroup& group) override;
    void addresses_changed(const Interface& interface);

    /// A message of another engine's. Bytes that are none are our own bug.
    void receive(Interface& interface, std::span<const std::byte> message, Instant now);
    /// Tells what waits. Once a turn.
    void flush() {
        if (waiting_) [[unlikely]]
            tell_waiting();
    }
    /// Something waits for room: the next turn must not be far.
    bool waiting() const { return waiting_; }

private:
    /// What every message begins with.
    struct Head {
        enum class Kind : std::uint8_t { kResolve, kNeighbor, kForget, kAddresses, kGroup } kind = Kind::kResolve;
        NeighborState state = NeighborState::kIncomplete;  // kNeighbor; kIncomplete: it is gone
        FilterMode mode = FilterMode::kInclude;            // kGroup
        MacAddress mac{};                                  // kNeighbor
        std::uint32_t from = 0;                            // the engine that speaks
        std::uint32_t count = 0;                           // InterfaceAddresses (kAddresses) or Addresses (kGroup) that follow
        Address address;                                   // next hop, neighbour or group
    };
    struct Link {
        Interface* interface;
        std::uint64_t addresses_for = 0;  // engines that have still to be told the addresses
        std::uint64_t forget_for = 0;     // ... to forget the neighbours
    };
    struct RemoteGroup {
        std::uint32_t engine;
        std::uint32_t interface;
        Address group;
        friend auto operator<=>(const RemoteGroup&, const RemoteGroup&) = default;
    };

    Link* find(std::uint32_t interface);
    bool tell(std::uint32_t engine, std::uint32_t interface, Head head, std::span<const std::byte> list = {});
    void tell_waiting();
    bool tell_group(const Interface& interface, const Address& group);
    void take_addresses(Interface& interface, const Head& head, std::span<const std::byte> list);
    void take_group(Interface& interface, const Head& head, std::span<const std::byte> list, Instant now);

    NeighborResolver& kernel_;
    Peers* const peers_;
    Counters& counters_;
    NeighborTable* table_ = nullptr;
    LinkLayer* link_ = nullptr;
    AddressUser* user_ = nullptr;
    std::vector<Link> links_;
    std::set<std::pair<std::uint32_t, Address>> changed_groups_;  // of followed links
    std::map<RemoteGroup, MulticastMember> remote_groups_;        // of followers, joined here for them
    bool waiting_ = false;
};

}  // namespace culvert::stack
