// UDP, RFC 768: sockets, which of them gets a datagram, and datagrams out (in fragments if they must).
//
// Demultiplexing, in this order:
//   1. connected sockets       local port + remote address + remote port (+ local address)
//   2. bound sockets           local port; own address before "any of this family" before "any of both" (dual)
//   3. several that fit alike  SO_REUSEPORT: spread by a keyed hash of the flow
//
// A datagram to a group or a broadcast address goes to every socket that fits; for a group that has to be one that joined
// it, or (IP_MULTICAST_ALL) any.
//
//   udp.cc sockets and who fits | udp_input.cc datagrams and errors in | udp_output.cc datagrams out
//
// Sockets live in a pool made at startup and hang in intrusive hash chains: nothing is allocated per datagram.
// [RFC1122 3.3.7 capability left out] SIOCGIFFLAGS and getifaddrs() ask the kernel, whose interface it is
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/base/instant.h"
#include "daemon/base/lazy_pool.h"
#include "daemon/base/rng.h"
#include "daemon/stack/icmp.h"
#include "daemon/stack/ip_output.h"
#include "daemon/stack/ip_packet.h"
#include "daemon/stack/link/multicast_groups.h"
#include "daemon/stack/owner.h"
#include "daemon/stack/peers.h"
#include "daemon/stack/stack.h"

namespace culvert::stack::udp {

/// Datagrams that one send may be cut into, and one delivery merged from (UDP_MAX_SEGMENTS of Linux).
inline constexpr std::uint32_t kMaxSegments = 64;
/// Payload of one UDP datagram over IPv6, the most that a send or a delivery carries; over IPv4 it is 20 bytes less.
inline constexpr std::uint32_t kMaxPayload = 65527;

/// A bound socket. Made and destroyed by Udp.
class Socket {
public:
    /// As bound; after connect() of a socket bound to any address, with the address that the route chose.
    const Endpoint& local() const { return local_; }
    const std::optional<Endpoint>& remote() const { return remote_; }
    bool dual() const { return dual_; }
    const SocketOptions& options() const { return options_; }

private:
    friend class Udp;

    Endpoint bound_;  // as bound
    Endpoint local_;
    std::optional<Endpoint> remote_;
    bool dual_ = false;
    bool flow_told_ = false;  // the other engines know of the connected flow
    bool yielded_ = false;    // the port is the world's again
    SocketOptions options_;
    std::uint32_t bound_interface_ = 0;  // hears and sends through this one only (scope of the bound address)
    std::uint32_t interface_ = 0;        // the same, or the scope of a connected peer
    SocketOwner* owner_ = nullptr;
    MulticastMember member_;  // of the groups that it has joined
    Socket* next_bound_ = nullptr;      // in bound_: every socket, by local port
    Socket* next_connected_ = nullptr;  // in connected_: those with a remote
    // The way to the last destination: most sockets talk to one at a time.
    Path path_;
    Address path_source_;
    Address path_destination_;
    std::uint32_t path_interface_ = 0;  // as asked for
    // What an ICMP error has said about the way to one destination, believed for kPathMtuLife.
    Address narrow_destination_;
    std::uint32_t narrow_mtu_ = 0;
    Instant narrow_until_{};
};

class Udp {
public:
    /// [RFC1191 6.3] [RFC8201 4] how long a learnt MTU is believed before a larger one is tried.
    static constexpr Duration kPathMtuLife = std::chrono::minutes(10);

    Udp(const StackConfig& config, IpOutput& output, PortOwner& ports, Counters& counters, Rng& rng,
        Peers* peers = nullptr);
    ~Udp();
    Udp(const Udp&) = delete;
    Udp& operator=(const Udp&) = delete;

    /// A datagram for one of our addresses. False: nobody hears on the port (counted as kUdpNoSocket).
    bool input(const IpPacket& packet, Instant now);
    /// An ICMP error about a datagram of ours: told to the connected socket that sent it if the error is hard, to one that
    /// wants errors in any case. "Packet too big" makes the socket cut smaller.
    /// `message`: the packet that brought it, for the engine that it concerns; null when it came from ourselves.
    /// True if it speaks of a path that one of our sockets uses, and the socket believes it.
    bool icmp_error(const IcmpError& error, const IpPacket* message, Instant now);
    /// True if a datagram from `remote` to `local` would find a socket.
    bool would_receive(const Endpoint& local, const Endpoint& remote) const;

    /// `interface`: hears and sends through that one only; 0: all.
    Result<Socket*> bind(const Endpoint& local, bool dual, SocketOwner& owner, std::uint32_t interface = 0);
    /// nullptr disconnects: the local address is as bound again. `interface`: the scope of a link-local peer, else 0.
    void connect(Socket& socket, const Endpoint* remote, std::uint32_t interface = 0);
    void set_options(Socket& socket, const SocketOptions& options) { socket.options_ = options; }
    /// Where groups are kept, for sockets that join some; null (as at first): joining is EOPNOTSUPP. Cold.
    void set_groups(MulticastGroups* groups) { groups_ = groups; }
    /// Errors: as MulticastGroups, and EOPNOTSUPP.
    Result<void> change_group(Socket& socket, GroupChange change, std::uint32_t interface, const Address& group,
                              const Address& source);
    void close(Socket& socket);
    /// See Stack::yield_port.
    void yield_port(Socket& socket);
    /// See Stack::send_datagram.
    Result<void> send(Socket& socket, const Endpoint& remote, Payload payload, std::uint32_t length,
                      const SendOptions& options, Instant now);
    /// Bytes of the largest IP packet that reaches `remote` uncut, as far as is known; 0: no way there.
    std::uint32_t path_mtu(Socket& socket, const Endpoint& remote, std::uint32_t interface, Instant now);
    std::uint32_t sockets() const { return pool_.used(); }

private:
    static constexpr std::size_t kBuckets = 4096;  // a power of two, both tables

    /// What every datagram of one send has in common.
    struct Outgoing {
        Path* path;
        Endpoint from;
        Endpoint to;
        std::uint8_t ttl;
        std::uint8_t tos;
        PathMtu rule;
        std::uint32_t mtu;  // the largest IP packet of it
        Instant now;
    };

    // udp.cc
    std::size_t connected_bucket(Port local, const Endpoint& remote) const;
    std::uint64_t flow_hash(const Endpoint& local, const Endpoint& remote) const;
    Socket* find_connected(const Endpoint& local, const Endpoint& remote, std::uint32_t interface) const;
    Socket* find_bound(const Endpoint& local, const Endpoint& remote, std::uint32_t interface) const;
    Socket* find(const Endpoint& local, const Endpoint& remote, std::uint32_t interface) const;
    void unlink_connected(Socket& socket);
    /// Another socket than `self` holds the port on `address`.
    bool held_by_another(const Socket& self, const Address& address) const;
    template <class Act>
    void for_each_new_port(const Socket& socket, Act act) const;
    Result<Address> source_for(const Socket& socket, const Address& local, const Endpoint& remote,
                               std::uint32_t interface) const;

    // udp_input.cc
    bool passed_on(const IpPacket& packet, const Endpoint& local, const Endpoint& remote, const Socket* found);
    bool passed_on(const IcmpError& error, const IpPacket* message);
    void deliver(Socket& socket, const DatagramInfo& info, Payload payload, std::uint32_t length);
    void deliver_to_all(Port port, const DatagramInfo& info, Payload payload, std::uint32_t length);
    bool hears(const Socket& socket, Port port, const DatagramInfo& info) const;
    static void learn_mtu(Socket& socket, const IcmpError& error, Instant now);

    // udp_output.cc
    Result<void> find_way(Socket& socket, const Endpoint& remote, const SendOptions& options, std::uint32_t interface,
                          Instant now);
    static std::uint32_t mtu_of(const Socket& socket, PathMtu rule, Instant now);
    void loop_back(const Outgoing& out, Payload payload, std::uint32_t length, std::uint32_t segment_size);
    Result<void> send_one(const Outgoing& out, Payload payload, std::uint32_t length);
    Result<void> send_segments(const Outgoing& out, Payload payload, std::uint32_t length, std::uint32_t size);
    template <class Reader>
    Result<void> send_whole(const Outgoing& out, Reader& reader, std::uint32_t length);
    Result<void> send_fragments(const Outgoing& out, Payload payload, std::uint32_t length);

    IpOutput& output_;
    PortOwner& ports_;
    Counters& counters_;
    Peers* const peers_;  // null: the only engine
    MulticastGroups* groups_ = nullptr;
    std::uint64_t secret_[2];
    std::uint32_t next_identification_;
    std::uint32_t connected_count_ = 0;
    LazyPool pool_;
    std::vector<Socket*> bound_;
    std::vector<Socket*> connected_;
    std::vector<std::byte> scratch_;  // one datagram, header and payload, on its way into fragments
};

}  // namespace culvert::stack::udp
