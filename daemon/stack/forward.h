// Forwarding between interfaces (RFC 1812, RFC 8200): what comes for somebody else goes on to him, one hop older.
//
//   frame for our MAC --> header proved --> not ours, forwardable? --> TTL --> route --> next hop --> MTU
//         |                                                             |        |                    |
//         |                                                       time exceeded  unreachable     too big, or cut (IPv4)
//         +--> in place: the chunk moves from the receiving device to the queue of the sending one; only MACs, TTL and
//              checksum are written. Where the two have no memory in common, the packet is copied once.
//
// [RFC1122 3.1 gateway-rules, gateway-switch, gateway-default, gateway-auto] Off unless configured. Never forwarded:
// link-local, loopback, broadcast (also directed, RFC 2644), multicast, and what carries a source route. The routes'
// next hops are few, so each has its MAC and MTU looked up once and kept until routes or neighbours change.
#pragma once

#include <cstdint>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/base/instant.h"
#include "daemon/base/packet.h"
#include "daemon/stack/icmp_output.h"
#include "daemon/stack/ip_output.h"
#include "daemon/stack/neighbor.h"
#include "daemon/stack/route_table.h"

namespace culvert::stack {

class Forwarder {
public:
    Forwarder(IpOutput& output, RouteTable& routes, NeighborTable& neighbors, IcmpOutput& icmp, Counters& counters)
        : output_(output), routes_(routes), neighbors_(neighbors), icmp_(icmp), counters_(counters) {}

    /// `reverse_path_check` [RFC3704 2.2]: a source must be reached through the interface that its packet came by.
    void enable(bool on, bool reverse_path_check) {
        enabled_ = on;
        reverse_path_check_ = reverse_path_check;
    }
    bool enabled() const { return enabled_; }

    /// True: the packet has been forwarded, or dropped and counted. False: it is for us, or for nobody that a router may
    /// serve, and has not been touched.
    bool forward(Interface& in, const RxPacket& packet, Instant now);
    /// Packets that will be forwarded next, at most kAhead: with a large table, their routes are brought to the caches.
    static constexpr std::size_t kAhead = RouteTable::kAhead;
    void expect(std::span<const RxPacket> packets) const;

    /// A packet that waited for a neighbour who did not answer, IP header first. True: it was somebody else's, who has been
    /// told.
    bool tell_unresolved(std::span<const std::byte> ip_packet, Instant now);

private:
    /// The way to one of the routes' next hops, as last found.
    struct Way {
        Interface* out = nullptr;  // null: we do not serve the interface
        MacAddress mac;
        bool resolved = false;
        std::uint32_t mtu = 0;
    };
    /// What was read of a packet's header.
    struct Header {
        Address source;
        Address destination;
        std::uint32_t total_length;
        std::uint16_t header_length;  // of the fixed header and IPv4's options
        std::uint8_t hops;            // TTL
        std::uint8_t protocol;
        bool v4;
        bool whole;  // no fragment
    };

    bool forward_ip(Interface& in, const RxPacket& packet, const Header& header, Instant now);
    const Way* find_way(const NextHop& next_hop, std::uint32_t index, const Address& destination, Instant now);
    void refresh();
    void refuse(const RxPacket& packet, Drop drop, std::uint8_t type, std::uint8_t code, std::uint32_t rest, Instant now);
    void too_big(const RxPacket& packet, const Header& header, const Way& way, Instant now);
    void cut(const RxPacket& packet, const Header& header, const Way& way, Instant now);
    bool copy(const RxPacket& packet, const Header& header, const Way& way, TxPacket& out);
    void send(const Way& way, const Address& next_hop, TxPacket& packet, Instant now);
    void complete_checksum(const RxPacket& packet, const Header& header, std::byte* transport) const;

    IpOutput& output_;
    RouteTable& routes_;
    NeighborTable& neighbors_;
    IcmpOutput& icmp_;
    Counters& counters_;
    bool enabled_ = false;
    bool reverse_path_check_ = false;
    std::vector<Way> ways_;  // by number of the next hop
    Way on_link_;            // the last destination that is its own next hop
    std::uint32_t route_generation_ = 0;
    std::uint32_t neighbor_generation_ = 0;
};

}  // namespace culvert::stack
