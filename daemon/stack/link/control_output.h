// Frames of the link's own protocols: ARP, neighbour discovery, IGMP and MLD, with exactly the headers that their RFCs
// ask for. They need no route and no neighbour: the caller names both addresses of both layers.
#pragma once

#include <array>
#include <cstddef>
#include <span>

#include "daemon/base/counters.h"
#include "daemon/stack/interface.h"
#include "daemon/wire/arp.h"
#include "daemon/wire/ndp.h"

namespace culvert::stack {

class ControlOutput {
public:
    /// Longest message of neighbour discovery or group membership that is sent: fits the least MTU of IPv6.
    static constexpr std::size_t kMaxMessage = 1280 - 48;

    explicit ControlOutput(Counters& counters) : counters_(counters) {}

    void arp(Interface& interface, const wire::ArpHeader& packet, const MacAddress& to);

    /// [RFC4861 4] hop limit 255. To a group, or to a neighbour whose MAC is given.
    template <class Message>
    void ndp(Interface& interface, const Address& source, const Address& destination, const MacAddress& to,
             const Message& message) {
        std::array<std::byte, 96> bytes;
        send_ndp(interface, source, destination, to, std::span(bytes).first(wire::emit(message, bytes)));
    }
    /// The same to a group.
    template <class Message>
    void ndp(Interface& interface, const Address& source, const Address& group, const Message& message) {
        ndp(interface, source, group, wire::multicast_mac(group), message);
    }

    /// [RFC3376 4] TTL 1, router alert, precedence 6. The checksum of `message` is filled in.
    void igmp(Interface& interface, const Address& source, const Address& group, std::span<std::byte> message);
    /// [RFC3810 5] hop limit 1, router alert in a hop-by-hop header.
    void mld(Interface& interface, const Address& source, const Address& group, std::span<std::byte> message);

private:
    void send_ndp(Interface& interface, const Address& source, const Address& destination, const MacAddress& to,
                  std::span<std::byte> message);
    /// Ethernet (with the interface's tag) around `length` bytes. Empty: the interface is down, or no memory (counted).
    std::span<std::byte> begin(Interface& interface, const MacAddress& to, wire::EtherType type, std::size_t length,
                               TxPacket& packet);

    Counters& counters_;
};

}  // namespace culvert::stack
