// UDP, RFC 768: sockets, which of them gets a datagram, and datagrams out (in fragments if they must).
//
// Demultiplexing, in this order:
//   1. connected sockets       local port + remote address + remote port (+ local address)
//   2. bound sockets           local port; own address before "any of this family" before "any of both" (dual)
//   3. several that fit alike  SO_REUSEPORT: spread by a keyed hash of the flow
//
// Sockets live in a pool made at startup and hang in intrusive hash chains: nothing is allocated per datagram.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/base/instant.h"
#include "daemon/base/lazy_pool.h"
#include "daemon/base/rng.h"
#include "daemon/stack/icmp.h"
#include "daemon/stack/ip_output.h"
#include "daemon/stack/ip_packet.h"
#include "daemon/stack/owner.h"
#include "daemon/stack/peers.h"
#include "daemon/stack/stack.h"

namespace culvert::stack::udp {

/// A bound socket. Made and destroyed by Udp.
class Socket {
public:
    /// As bound; after connect() of a socket bound to any address, with the address that the route chose.
    const Endpoint& local() const { return local_; }
    const std::optional<Endpoint>& remote() const { return remote_; }
    bool dual() const { return dual_; }

private:
    friend class Udp;

    Endpoint bound_;  // as bound
    Endpoint local_;
    std::optional<Endpoint> remote_;
    bool dual_ = false;
    bool flow_told_ = false;  // the other engines know of the connected flow
    SocketOwner* owner_ = nullptr;
    Socket* next_bound_ = nullptr;      // in bound_: every socket, by local port
    Socket* next_connected_ = nullptr;  // in connected_: those with a remote
    // The way to the last destination: most sockets talk to one at a time.
    Path path_;
    Address path_source_;
    Address path_destination_;
};

class Udp {
public:
    Udp(const StackConfig& config, IpOutput& output, PortOwner& ports, Counters& counters, Rng& rng,
        Peers* peers = nullptr);
    ~Udp();
    Udp(const Udp&) = delete;
    Udp& operator=(const Udp&) = delete;

    /// A datagram for one of our addresses.
    void input(const IpPacket& packet);
    /// An ICMP error about a datagram of ours: told to the connected socket that sent it, if the error is hard. "Packet
    /// too big" makes the sockets that speak to `remote` cut smaller (until their path is looked up again).
    /// `message`: the packet that brought it, for the engine that it concerns; null when it came from ourselves.
    void icmp_error(const IcmpError& error, const IpPacket* message = nullptr);
    /// True if a datagram from `remote` to `local` would find a socket.
    bool would_receive(const Endpoint& local, const Endpoint& remote) const;

    Result<Socket*> bind(const Endpoint& local, bool dual, SocketOwner& owner);
    /// nullptr disconnects: the local address is as bound again.
    void connect(Socket& socket, const Endpoint* remote);
    void close(Socket& socket);
    Result<void> send(Socket& socket, const Endpoint& remote, const Address& local, Payload payload,
                      std::uint32_t length, std::uint8_t ttl, std::uint8_t tos, Instant now);
    std::uint32_t sockets() const { return pool_.used(); }

private:
    static constexpr std::size_t kBuckets = 4096;  // a power of two, both tables

    std::size_t connected_bucket(Port local, const Endpoint& remote) const;
    std::uint64_t flow_hash(const Endpoint& local, const Endpoint& remote) const;
    Socket* find_connected(const Endpoint& local, const Endpoint& remote) const;
    Socket* find_bound(const Endpoint& local, const Endpoint& remote) const;
    Socket* find(const Endpoint& local, const Endpoint& remote) const;
    bool passed_on(const IpPacket& packet, const Endpoint& local, const Endpoint& remote, const Socket* found);
    void unlink_connected(Socket& socket);
    /// Another socket than `self` holds the port on `address`.
    bool held_by_another(const Socket& self, const Address& address) const;
    template <class Act>
    void for_each_new_port(const Socket& socket, Act act) const;
    Result<Address> source_for(const Socket& socket, const Address& local, const Endpoint& remote) const;
    Result<void> send_whole(Path& path, const Endpoint& from, const Endpoint& to, Payload payload,
                            std::uint32_t length, std::uint8_t ttl, std::uint8_t tos, Instant now);
    Result<void> send_fragments(Path& path, const Endpoint& from, const Endpoint& to, Payload payload,
                                std::uint32_t length, std::uint8_t ttl, std::uint8_t tos, Instant now);

    IpOutput& output_;
    PortOwner& ports_;
    Counters& counters_;
    Peers* const peers_;  // null: the only engine
    std::uint64_t secret_[2];
    std::uint32_t next_identification_;
    LazyPool pool_;
    std::vector<Socket*> bound_;
    std::vector<Socket*> connected_;
    std::vector<std::byte> scratch_;  // one datagram, header and payload, on its way into fragments
};

}  // namespace culvert::stack::udp
