// An interface as the stack sees it: a name, a MAC, an MTU, the addresses that are ours, and a queue for output.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "daemon/base/packet.h"
#include "daemon/wire/address.h"

namespace culvert::stack {

struct InterfaceAddress {
    Address address;
    unsigned prefix_length = 0;
    /// Ours alone: the kernel does not know it, so we answer ARP, ND and echo for it, and reassemble its fragments.
    /// False: shared with the kernel, who does all that.
    bool dedicated = false;
    /// [RFC4862 5.5.4] Its preferred lifetime is over: not a source of what is new, if there is another.
    bool deprecated = false;
};

struct LinkInterface;  // link/link_interface.h

/// Owned by the Stack; changed only on the engine's thread.
struct Interface {
    std::uint32_t index = 0;  // the kernel's ifindex
    std::string name;
    MacAddress mac;
    std::uint32_t mtu = 1500;
    bool up = false;
    std::vector<InterfaceAddress> addresses;
    TxQueue* tx = nullptr;  // of this engine's queue of the device
    /// A VLAN of another interface's link: its frames carry this tag (1 to 4094). 0: untagged.
    std::uint16_t vlan = 0;
    bool service_tag = false;  // the tag is 802.1ad's
    std::uint32_t parent = 0;  // with `vlan`: ifindex of the interface whose device carries the frames; `index`: see is_only_vlan
    /// Neighbours are resolved by our own ARP and ND (link/), not by asking the kernel: every address is dedicated.
    bool resolves_itself = false;
    /// 127.0.0.1 and ::1: our programs among themselves. No device, no link, no route leads here; `tx` only lends memory.
    bool loopback = false;
    /// With `resolves_itself`: routers are listened to, which give addresses, routes and parameters (SLAAC).
    bool autoconfigures = false;
    /// With `resolves_itself`: an address is probed for before it is used [RFC5227] [RFC4862 5.4].
    bool detects_duplicates = true;
    std::uint32_t mtu6 = 0;       // of IPv6 packets, as a router has said; 0: `mtu`
    std::uint8_t hop_limit6 = 0;  // of IPv6 packets, as a router has said; 0: StackConfig::default_ttl
    LinkInterface* link = nullptr;  // the link layer's; set with `resolves_itself`, where this engine runs the link
    /// With `resolves_itself` and several engines: the one that runs the link's protocols for all (link/link_sync.h).
    static constexpr std::uint32_t kThisEngine = UINT32_MAX;
    std::uint32_t link_engine = kThisEngine;
    bool follows() const { return link_engine != kThisEngine; }
    /// Largest TCP payload the device takes as one packet and cuts itself (TxPacket::segment_size); 0: none.
    std::uint32_t segmentation_limit = 0;
    /// The device fills in TCP and UDP checksums (TxPacket::checksum_start).
    bool offloads_checksum = false;

    /// The device carries this VLAN alone: whatever else comes is not for us.
    bool is_only_vlan() const { return vlan != 0 && parent == index; }
    std::uint32_t mtu_of(Family family) const {
        return family == Family::kIpv6 && mtu6 != 0 && mtu6 < mtu ? mtu6 : mtu;
    }
};

/// The kernel's ifindex of `lo`, in every network namespace.
inline constexpr std::uint32_t kLoopbackIndex = 1;

/// The loopback interface, whose packets borrow their memory from `tx`, of which nothing is ever sent. Only 127.0.0.1 of 127/8: the
/// rest is the kernel's.
inline Interface loopback_interface(TxQueue& tx) {
    Interface interface;
    interface.index = kLoopbackIndex;
    interface.name = "lo";
    interface.mtu = 65535;
    interface.up = true;
    interface.addresses = {{.address = Address::v4(127, 0, 0, 1), .prefix_length = 32},
                           {.address = Address::parse("::1").value(), .prefix_length = 128}};
    interface.tx = &tx;
    interface.loopback = true;
    return interface;
}

}  // namespace culvert::stack
