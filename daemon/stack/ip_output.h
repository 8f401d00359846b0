// Out of the stack: route, neighbour, Ethernet and IP headers, and the choice of queue.
//
//   path = find_path(local, remote)            once per connection, again when `stale(path)`
//   begin(path, ..., transport_length, packet) room for the packet, link and IP headers written
//   ... the caller writes transport header and payload at PacketWriter(packet, transport_offset) ...
//   end(path, packet)                          committed: to the device, to the neighbour's queue, or to ourselves
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/base/instant.h"
#include "daemon/base/packet.h"
#include "daemon/stack/interface.h"
#include "daemon/stack/local_addresses.h"
#include "daemon/stack/neighbor.h"
#include "daemon/stack/path_mtu_cache.h"
#include "daemon/stack/route_table.h"
#include "shm/base/error.h"

namespace culvert::stack {

/// The way to one destination, cached by connections.
struct Path {
    Interface* interface = nullptr;  // null: no path
    MacAddress mac;                  // valid when resolved
    bool resolved : 1 = false;
    bool local : 1 = false;          // to an address of our own: delivered inside the stack
    bool tagged : 1 = false;         // the interface is a VLAN
    std::uint32_t generation = 0;    // of routes and neighbours together: neither goes back, so the sum tells of both
    std::uint32_t mtu = 0;           // of IP packets
};
static_assert(sizeof(Path) == 24);  // every connection has one

/// Writes bytes across the fragments of a TxPacket.
class PacketWriter {
public:
    PacketWriter(TxPacket& packet, std::uint32_t offset) : packet_(packet) {
        while (fragment_ < packet.count && offset >= packet.fragments[fragment_].size()) {
            offset -= static_cast<std::uint32_t>(packet.fragments[fragment_].size());
            ++fragment_;
        }
        at_ = offset;
    }
    /// What is left of the current fragment; empty at the end of the packet.
    std::span<std::byte> room() const {
        return fragment_ < packet_.count ? packet_.fragments[fragment_].subspan(at_) : std::span<std::byte>{};
    }
    /// Copies `bytes` in, over as many fragments as they take. Requires: the packet has room for them.
    void write(std::span<const std::byte> bytes) {
        while (!bytes.empty()) {
            const std::size_t here = std::min(bytes.size(), room().size());
            std::memcpy(room().data(), bytes.data(), here);
            advance(here);
            bytes = bytes.subspan(here);
        }
    }
    /// `bytes` <= room().size() have been written.
    void advance(std::size_t bytes) {
        at_ += bytes;
        if (fragment_ < packet_.count && at_ == packet_.fragments[fragment_].size()) {
            ++fragment_;
            at_ = 0;
        }
    }

private:
    TxPacket& packet_;
    std::uint32_t fragment_ = 0;
    std::size_t at_ = 0;
};

/// Where a destination lies, before anything is asked about link-layer addresses.
struct Hop {
    Interface* interface = nullptr;
    Address next_hop;
    std::optional<Address> preferred_source;  // of the route
    bool local = false;                       // an address of our own
    std::uint32_t mtu = 0;                    // of the route; 0: the interface's
};

/// A part of an IP packet that is sent in pieces.
struct Fragment {
    std::uint32_t identification = 0;  // IPv4 takes the low 16 bits
    std::uint32_t offset = 0;          // bytes of the transport message before this part, a multiple of 8
    bool more = false;
};

class IpOutput {
public:
    /// Of paths to ourselves. Large, so that few packets are needed; not so large that a default receive buffer holds
    /// only a handful of segments.
    static constexpr std::uint32_t kLocalMtu = 16384;
    static constexpr std::size_t kMaxLocalPackets = 1024;

    IpOutput(RouteTable& routes, NeighborTable& neighbors, Counters& counters);

    /// The stack's interfaces and own addresses; set by the Stack when they change. Bumps nothing by itself.
    void set_interfaces(std::span<Interface* const> interfaces);
    bool is_local(const Address& address) const;
    /// Of packets for which nobody says it, IPv4 and (unless a router has said otherwise) IPv6. Not 0. [RFC1122 3.2.1.7 default]
    void set_default_ttl(std::uint8_t ttl) { default_ttl_ = ttl; }
    Interface* interface_by_index(std::uint32_t index) const;
    const LocalAddresses& local_addresses() const { return local_addresses_; }

    /// The route's part of find_path. `source` unspecified: not chosen yet. `interface`: only through that one (a scope,
    /// IP_PKTINFO, IP_MULTICAST_IF); 0: by route. Errors: as find_path.
    Result<Hop> find_hop(const Address& source, const Address& destination, std::uint32_t interface = 0) const;
    /// Errors: ENETUNREACH (no route, or through an interface that Culvert does not serve), EHOSTUNREACH.
    Result<Path> find_path(const Address& source, const Address& destination, Instant now,
                           std::uint32_t interface = 0);
    bool stale(const Path& path) const {
        return path.generation != generation();
    }

    /// False: no memory, or the packet exceeds the MTU (each counted). `transport_offset` tells where to write.
    bool begin(const Path& path, const Address& source, const Address& destination, std::uint8_t protocol,
               std::uint8_t tos, std::uint8_t ttl, std::uint32_t transport_length, TxPacket& packet,
               std::uint32_t& transport_offset);
    /// The same for a packet that the device cuts (Interface::segmentation_limit): the MTU does not bound it. The caller sets
    /// TxPacket::segment_size.
    bool begin_super(const Path& path, const Address& source, const Address& destination, std::uint8_t protocol,
                     std::uint8_t tos, std::uint8_t ttl, std::uint32_t transport_length, TxPacket& packet,
                     std::uint32_t& transport_offset);
    /// The same for one fragment of a message, or (offset 0, no more) for a whole one that routers may cut on its way
    /// over IPv4. Over IPv6 a fragment header is written unless the fragment is the whole.
    bool begin_fragment(const Path& path, const Address& source, const Address& destination, std::uint8_t protocol,
                        std::uint8_t tos, std::uint8_t ttl, const Fragment& fragment, std::uint32_t fragment_length,
                        TxPacket& packet, std::uint32_t& transport_offset);
    void end(Path& path, TxPacket& packet, Instant now);
    /// A transport message that lies in one piece, in as many packets as the path needs; routers may cut them further.
    /// False: no memory (counted); the fragments sent by then are lost.
    bool send_message(Path& path, const Address& source, const Address& destination, std::uint8_t protocol,
                      std::uint8_t tos, std::uint8_t ttl, std::uint32_t identification,
                      std::span<const std::byte> message, Instant now);

    /// A router's word about the path to `destination`, which the transport believes: its next packets are no larger.
    void learn_path_mtu(const Address& destination, std::uint32_t mtu, Instant now);
    /// Lets what was learned grow old.
    void advance(Instant now) {
        if (path_mtus_.forget(now)) routes_.touch();
    }
    Instant next_deadline() const { return path_mtus_.next_deadline(); }
    /// [RFC4861 7.3.1] What was sent along this path has been answered: its first hop is alive. A load while nobody waits
    /// to hear that.
    void confirm(const Path& path, const Address& destination, Instant now) {
        if (neighbors_.wants_confirmation() && path.interface != nullptr && !path.local) [[unlikely]]
            neighbors_.confirm(path.interface->index, next_hop(path, destination), now);
    }

    /// Packets sent to ourselves, in order; the Stack feeds them back to its input. Bounded.
    struct LocalPacket {
        Interface* interface;
        TxPacket packet;
    };
    std::vector<LocalPacket>& local_packets() { return local_packets_; }
    const std::vector<LocalPacket>& local_packets() const { return local_packets_; }

private:
    std::uint32_t generation() const { return routes_.generation() + neighbors_.generation(); }
    std::uint8_t ttl_for(std::uint8_t ttl, const Interface& interface, const Address& destination) const;
    bool is_directed_broadcast(const Interface& interface, const Address& address) const;
    Interface* interface_for_unrouted(const Address& source) const;
    bool write_headers(const Path& path, const Address& source, const Address& destination, std::uint8_t protocol,
                       std::uint8_t tos, std::uint8_t ttl, const Fragment* fragment, std::uint32_t length,
                       TxPacket& packet, std::uint32_t& transport_offset, bool to_be_cut = false);
    /// The first hop of `path`, which leads to `destination`.
    Address next_hop(const Path& path, const Address& destination) const;
    bool resolve(Path& path, TxPacket& packet, Instant now);
    bool reserve(const Path& path, bool v4, std::uint32_t ip_header_length, std::uint32_t payload_length,
                 TxPacket& packet, bool to_be_cut);

    RouteTable& routes_;
    NeighborTable& neighbors_;
    Counters& counters_;
    std::uint8_t default_ttl_ = 64;
    std::vector<Interface*> interfaces_;
    LocalAddresses local_addresses_;
    PathMtuCache path_mtus_;
    std::vector<LocalPacket> local_packets_;
};

}  // namespace culvert::stack
