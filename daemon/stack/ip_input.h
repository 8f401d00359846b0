// From a frame to an IP packet for one of our addresses: everything is proved here once, so that the transports only
// look at their own headers.
//
//   frame -> for our MAC or a group, our VLAN? -> IPv4 / IPv6 header -> for our address, a broadcast, a group of ours?
//         -> believable source? -> whole? -> IpPacket
//
// Every "no" is a Drop. What is done about some of them (fragments are put together, problems are told by ICMP) is the
// caller's: those packets are rare, and looked at again.
#pragma once

#include <expected>
#include <span>
#include <vector>

#include "daemon/base/drop.h"
#include "daemon/base/packet.h"
#include "daemon/stack/input_hooks.h"
#include "daemon/stack/ip_packet.h"
#include "daemon/stack/local_addresses.h"
#include "daemon/stack/reassembly.h"
#include "daemon/wire/ethernet.h"

namespace culvert::stack {

/// A frame that is meant for this host, as far as Ethernet can tell.
struct LinkFrame {
    Interface* interface = nullptr;  // of its VLAN
    wire::EtherType type = wire::EtherType::kIpv4;
    std::uint16_t offset = 0;  // of the payload
    bool group = false;        // sent to a broadcast or multicast MAC
};

class IpInput {
public:
    explicit IpInput(const LocalAddresses& local_addresses) : local_addresses_(local_addresses) {}

    /// Which VLANs there are. Cold.
    void set_interfaces(std::span<Interface* const> interfaces);
    /// Knows which groups are joined; without it none is. Cold.
    void set_link_protocols(const LinkProtocols* link) { link_ = link; }

    /// `from_ourselves`: looped back by IpOutput, so its source may be (and is) our own.
    /// A fragment is Drop::kIpFragment. The result borrows `packet` and the interface.
    /// Cost: no allocation, one pass over the IP header.
    std::expected<IpPacket, Drop> accept(Interface& interface, const RxPacket& packet, bool from_ourselves) const;
    /// The link's part of it.
    std::expected<LinkFrame, Drop> accept_link(Interface& interface, const RxPacket& packet, bool from_ourselves = false) const;

    /// A frame that accept() has called a fragment, as the reassembly wants it.
    std::expected<FragmentPart, Drop> read_fragment(const LinkFrame& frame, const RxPacket& packet) const;

    /// What has been decided about an address, and for IPv4 and IPv6 alike.
    struct Destination {
        Drop drop = Drop::kNone;
        Cast cast = Cast::kUnicast;
        bool dedicated = false;
    };
    /// Whether `destination` is one of ours, and `source` one that may speak to it.
    Destination judge(const Interface& interface, const Address& source, const Address& destination, bool link_group,
                      bool from_ourselves) const;

    /// The same for a packet whose IP header is known to be whole and nothing more (kIpNotForUs if it is not even that).
    Destination judge_header(const LinkFrame& frame, const RxPacket& packet) const;

private:
    template <class View>
    std::expected<IpPacket, Drop> accept_ip(const LinkFrame& frame, const RxPacket& packet, bool from_ourselves) const;
    std::expected<LinkFrame, Drop> accept_tagged(Interface& interface, const RxPacket& packet, bool group) const;
    Destination judge_group(const Interface& interface, const Address& source, const Address& destination,
                            bool from_ourselves) const;

    struct Vlan {
        std::uint32_t parent;
        std::uint16_t id;
        bool service_tag;
        Interface* interface;
    };

    const LocalAddresses& local_addresses_;
    const LinkProtocols* link_ = nullptr;
    std::vector<Vlan> vlans_;  // sorted by parent, id, tag
};

}  // namespace culvert::stack
