// From a frame to an IP packet for one of our addresses: everything is proved here once, so that the transports only
// look at their own headers.
//
//   frame -> for our MAC? -> IPv4 / IPv6 header -> for our address? -> believable source? -> whole? -> IpPacket
//
// Every "no" is a Drop. Neither ARP nor ND is spoken here: in shared-address mode the kernel does both.
#pragma once

#include <expected>

#include "daemon/base/drop.h"
#include "daemon/base/packet.h"
#include "daemon/stack/ip_packet.h"
#include "daemon/stack/local_addresses.h"

namespace culvert::stack {

class IpInput {
public:
    explicit IpInput(const LocalAddresses& local_addresses) : local_addresses_(local_addresses) {}

    /// `from_ourselves`: looped back by IpOutput, so its source may be (and is) our own.
    /// The result borrows `packet` and `interface`. Cost: no allocation, one pass over the IP header.
    std::expected<IpPacket, Drop> accept(Interface& interface, const RxPacket& packet, bool from_ourselves) const;

private:
    template <class View>
    std::expected<IpPacket, Drop> accept_ip(Interface& interface, const RxPacket& packet, bool from_ourselves) const;

    const LocalAddresses& local_addresses_;
};

}  // namespace culvert::stack
