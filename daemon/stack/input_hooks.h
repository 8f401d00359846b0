// What the way in asks of the link protocols beside it. They are asked only for the packets that are their own, so that a
// virtual call costs the common packet nothing.
//
//   StackImpl --ARP, IGMP, ND, MLD, "is this group joined?"--> LinkProtocols
#pragma once

#include <cstdint>

#include "daemon/base/instant.h"
#include "daemon/base/packet.h"
#include "daemon/stack/interface.h"
#include "daemon/stack/ip_packet.h"
#include "daemon/wire/address.h"

namespace culvert::stack {

/// Address resolution and group membership, where we do it ourselves.
class LinkProtocols {
public:
    virtual ~LinkProtocols() = default;

    /// True if a packet from `source` to the multicast `group` that came through `interface` is for one of our sockets (or
    /// for ourselves: all nodes, solicited-node groups of dedicated addresses).
    virtual bool accepts_group(const Interface& interface, const Address& group, const Address& source) const = 0;
    /// Asked for what is not about groups itself: does anybody want that source? Queries come from routers that no filter names.
    virtual bool accepts_source(const Interface& interface, const Address& group, const Address& source) const = 0;
    /// An ARP packet, at `offset` of packet.head; nothing of it has been looked at. Counts its own drops.
    virtual void arp(Interface& interface, const RxPacket& packet, std::uint32_t offset, Instant now) = 0;
    /// An IGMP message; its checksum has not been looked at.
    virtual void igmp(const IpPacket& packet, Instant now) = 0;
    /// A neighbour discovery or MLD message (types 130 to 137 and 143), its header whole and its checksum right. What else
    /// the packet must be (hop limit 255 and so on) is for the callee to see.
    virtual void icmpv6(const IpPacket& packet, std::uint8_t type, Instant now) = 0;
};

}  // namespace culvert::stack
