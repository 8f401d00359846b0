// Neighbour discovery as it comes in, RFC 4861: each message proved by the rules of its section, then handed to who it is
// about. IP has seen that it is for one of our addresses or groups and that its checksum is right.
//
//   NS   7.1.1   tentative target: duplicate detection;  our target: the asker is remembered, and answered
//   NA   7.1.2   about a tentative address: duplicate;   else to the neighbour's state machine
//   RA   6.1.2   RouterDiscovery
//   Redirect 8.1 RouterDiscovery
//   RS   6.1.1   we are no router: dropped
#pragma once

#include "daemon/base/counters.h"
#include "daemon/stack/ip_packet.h"
#include "daemon/stack/link/address_configuration.h"
#include "daemon/stack/link/control_output.h"
#include "daemon/stack/link/neighbor_prober.h"
#include "daemon/stack/link/router_discovery.h"

namespace culvert::stack {

class Ndp {
public:
    Ndp(AddressConfiguration& addresses, NeighborProber& neighbors, RouterDiscovery& routers, ControlOutput& output,
        Counters& counters)
        : addresses_(addresses), neighbors_(neighbors), routers_(routers), output_(output), counters_(counters) {}

    /// An ICMPv6 message of type 133 to 137. Cost: bounded; only router advertisements and redirects allocate.
    void input(LinkInterface& link, const IpPacket& packet, Instant now);

private:
    Drop process(LinkInterface& link, const IpPacket& packet, Instant now);
    Drop solicitation(LinkInterface& link, const IpPacket& packet, const wire::NdpView& message, Instant now);
    Drop advertisement(LinkInterface& link, const IpPacket& packet, const wire::NdpView& message, Instant now);

    AddressConfiguration& addresses_;
    NeighborProber& neighbors_;
    RouterDiscovery& routers_;
    ControlOutput& output_;
    Counters& counters_;
};

}  // namespace culvert::stack
