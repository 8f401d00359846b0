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
};

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
    std::uint32_t parent = 0;  // with `vlan`: ifindex of the interface whose device carries the frames
    /// Neighbours are resolved by our own ARP and ND (link.h), not by asking the kernel: every address is dedicated.
    bool resolves_itself = false;
    /// Largest TCP payload the device takes as one packet and cuts itself (TxPacket::segment_size); 0: none.
    std::uint32_t segmentation_limit = 0;
    /// The device fills in TCP and UDP checksums (TxPacket::checksum_start).
    bool offloads_checksum = false;
};

}  // namespace culvert::stack
