// What IP hands to the transport protocols: addresses and where the transport header lies.
#pragma once

#include <cstdint>

#include "daemon/base/packet.h"
#include "daemon/stack/interface.h"
#include "daemon/wire/address.h"

namespace culvert::stack {

/// How a packet was addressed.
enum class Cast : std::uint8_t { kUnicast, kBroadcast, kMulticast };

/// A received packet after its IP header has been proved. Borrowed, like the RxPacket in it.
struct IpPacket {
    const RxPacket& packet;
    Interface& interface;
    Address source;
    Address destination;
    std::uint32_t transport_offset = 0;  // from the start of packet.head; headers lie in head
    std::uint32_t transport_length = 0;  // header and payload, without Ethernet padding; may reach into packet.rest
    std::uint8_t protocol = 0;
    std::uint8_t ttl = 0;
    std::uint8_t tos = 0;
    Cast cast = Cast::kUnicast;
    /// The address is ours alone (InterfaceAddress::dedicated): we answer what the kernel would answer for a shared one.
    bool dedicated = false;
    std::uint16_t network_offset = 14;  // of the IP header, from the start of packet.head
};

}  // namespace culvert::stack
