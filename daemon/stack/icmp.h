// ICMP and ICMPv6 errors that come in: what they say about a packet of ours, in the words of Linux.
//
//   [ eth | ip | icmp type code mtu | ip header of ours | 8+ bytes of our tcp/udp header ... ]
//
// Echo, ND and the rest belong to the kernel, which shares our address. What is sent is nothing: a port that is not ours
// is never steered to us, so there is nobody to whom "port unreachable" would have to be said.
#pragma once

#include <cstdint>
#include <expected>
#include <span>

#include "daemon/base/drop.h"
#include "daemon/stack/ip_packet.h"
#include "daemon/stack/local_addresses.h"
#include "daemon/wire/address.h"
#include "daemon/wire/icmp.h"

namespace culvert::stack {

/// An error about a packet that we sent.
struct IcmpError {
    wire::IpProtocol protocol = wire::IpProtocol::kTcp;  // TCP or UDP
    Endpoint local;
    Endpoint remote;
    std::uint32_t sequence = 0;      // of TCP
    int error = 0;                   // errno; EMSGSIZE for "packet too big"
    bool hard = false;               // as Linux sees it: a connected UDP socket is told
    std::uint32_t next_hop_mtu = 0;  // not 0 only for "packet too big"
    // For error queues:
    bool by_icmp = false;            // a message of `offender` (perhaps our own: a neighbour did not answer)
    std::uint8_t type = 0;
    std::uint8_t code = 0;
    Address offender{};
    std::span<const std::byte> payload{};  // of our datagram, as much as there is; borrowed from the packet
    std::span<const std::byte> quoted{};   // the same with its TCP or UDP header
};

/// What Linux makes of type and code: errno and whether a connected UDP socket hears of it. code 0: nothing at all.
struct IcmpMeaning {
    int error = 0;
    bool hard = false;
};
IcmpMeaning meaning_of(Family family, std::uint8_t type, std::uint8_t code);

/// Proves an ICMP message: checksum, type, the embedded packet, and that it is one of ours.
std::expected<IcmpError, Drop> read_icmp_error(const IpPacket& packet, const LocalAddresses& local_addresses);

/// The same for a packet of ours that never left because its neighbour did not answer. `ip_packet` from the IP header on.
std::expected<IcmpError, Drop> unresolved_error(std::span<const std::byte> ip_packet);

}  // namespace culvert::stack
