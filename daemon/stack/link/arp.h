// The Address Resolution Protocol as it comes in: RFC 826, RFC 5227, RFC 1122 2.3.2.
//
//   sender is one of our addresses, MAC is not ours        conflict: probing ends, or the address is defended
//   probe (sender 0.0.0.0) for an address that we probe    conflict
//   sender known                                           its MAC is brought up to date      [RFC826] merge flag
//   request for one of our addresses                       sender is remembered, and answered
//   reply to nobody's question                             nothing is learned: a stranger cannot fill or poison the table
#pragma once

#include "daemon/base/counters.h"
#include "daemon/base/packet.h"
#include "daemon/stack/link/address_configuration.h"
#include "daemon/stack/link/control_output.h"
#include "daemon/stack/link/neighbor_prober.h"

namespace culvert::stack {

class Arp {
public:
    Arp(AddressConfiguration& addresses, NeighborProber& neighbors, ControlOutput& output, Counters& counters)
        : addresses_(addresses), neighbors_(neighbors), output_(output), counters_(counters) {}

    /// The ARP packet at `offset` of packet.head. Cost: bounded, nothing is allocated.
    void input(LinkInterface& link, const RxPacket& packet, std::uint32_t offset, Instant now);

private:
    Drop process(LinkInterface& link, const RxPacket& packet, std::uint32_t offset, Instant now);

    AddressConfiguration& addresses_;
    NeighborProber& neighbors_;
    ControlOutput& output_;
    Counters& counters_;
};

}  // namespace culvert::stack
