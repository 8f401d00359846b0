// Who uses the stack: the interfaces that a tenant's sockets implement.
//
// All calls are made on the engine's thread, from within calls of the Stack. An owner may call back into the object that
// is calling it, except where noted.
#pragma once

#include <cstdint>
#include <span>

#include "daemon/base/instant.h"
#include "daemon/wire/address.h"

namespace culvert::stack {

/// Bytes to send. The memory belongs to the owner until released; it may change under us (it is the application's), so
/// it is read once per transmission and never interpreted. Intrusive: the owner has one per block, none is allocated.
struct SendChunk {
    SendChunk* next = nullptr;
    const std::byte* data = nullptr;
    std::uint32_t length = 0;
    std::uint32_t tag = 0;  // the owner's (block number)
};

/// Payload as it lies in the packet's fragments. Valid during the call only.
using Payload = std::span<const std::span<const std::byte>>;

struct IcmpError;

namespace tcp {

class Connection;

class ConnectionOwner {
public:
    virtual ~ConnectionOwner() = default;
    /// connect() has succeeded (active opens only).
    virtual void on_established(Connection& connection) = 0;
    /// `length` in-order bytes. Returns how many were taken; the rest counts as not received (the peer sends it again).
    virtual std::uint32_t on_data(Connection& connection, Payload payload, std::uint32_t length) = 0;
    /// The peer has urgent data, and its last octet comes after `ahead` more bytes (0: it is the next one). Called again for
    /// every segment that says so; an octet further on takes the place of the last. [RFC9293 3.8.5 MUST-32, MUST-33]
    virtual void on_urgent(Connection& connection, std::uint64_t ahead) { (void)connection, (void)ahead; }
    /// The peer has sent FIN and everything before it has been delivered.
    virtual void on_end_of_stream(Connection& connection) = 0;
    /// A list of chunks (linked by next, ends with nullptr) that the peer has acknowledged or that will never be sent.
    virtual void on_released(Connection& connection, SendChunk* first) = 0;
    /// A SendChunk list's front part was acknowledged: `bytes` in all since the last call. For send-buffer accounting.
    virtual void on_acknowledged(Connection& connection, std::uint32_t bytes) = 0;
    /// ICMP says of something that is on its way that it will not arrive, and the connection goes on; 0: something has arrived since.
    /// [RFC9293 3.9.1.8 SHLD-20] what an application hears of it is the owner's business
    virtual void on_soft_error(Connection& connection, int error) { (void)connection, (void)error; }
    /// The same of an attempt to connect, which on_closed ends next.
    virtual void on_attempt_refused(Connection& connection, const IcmpError& error) { (void)connection, (void)error; }
    /// The connection has ended: error 0 (closed in order), ECONNRESET, ETIMEDOUT, ECONNREFUSED, EHOSTUNREACH ...
    /// Last call; every chunk has been released before. The Connection must not be used afterwards.
    virtual void on_closed(Connection& connection, int error) = 0;
};

class ListenerOwner {
public:
    virtual ~ListenerOwner() = default;
    /// May another connection be completed? Asked before the last step of the handshake; false = keep it waiting
    /// (the ACK is dropped and counted, as on Linux when the accept queue is full).
    virtual bool can_accept() = 0;
    /// An established connection. Returns its owner, or nullptr to refuse it (it is reset).
    virtual ConnectionOwner* on_accept(Connection& connection) = 0;
};

}  // namespace tcp

namespace udp {

class Socket;

/// Where a datagram came from and to which of our addresses.
struct DatagramInfo {
    Endpoint remote;
    Address local;                   // as in the packet: may be a group or a broadcast address
    std::uint32_t interface = 0;     // through which it came
    std::uint16_t segment_size = 0;  // several datagrams of one flow in one: bytes of each but the last (UDP_GRO); 0: one
    std::uint8_t ttl = 0;
    std::uint8_t tos = 0;
    Instant received{};
};

/// What a socket may say about a group (RFC 3678).
enum class GroupChange : std::uint8_t { kJoin, kLeave, kJoinSource, kLeaveSource, kBlockSource, kUnblockSource };

/// Which datagrams may be cut on their way (IP_MTU_DISCOVER, IPV6_MTU_DISCOVER; RFC 1191, RFC 8201).
enum class PathMtu : std::uint8_t {
    kCut,    // IP_PMTUDISC_DONT and _WANT: by us to what the path takes, over IPv4 by routers, too
    kObey,   // IP_PMTUDISC_DO: never; larger than the path takes: EMSGSIZE
    kProbe,  // IP_PMTUDISC_PROBE: never; larger than our link takes: EMSGSIZE. What routers say is not believed
    kLink,   // IP_PMTUDISC_INTERFACE: not by us; what routers say is not believed, but they may cut over IPv4
};

/// Of one datagram. Zero and unspecified mean: as the socket, the route or Linux has it.
struct SendOptions {
    Address source{};                // one of ours; unspecified: the socket's, else by route
    std::uint32_t interface = 0;     // only through this one (a scope, IP_PKTINFO, IP_MULTICAST_IF)
    std::uint16_t segment_size = 0;  // cut the payload into datagrams of so many bytes (UDP_SEGMENT)
    std::uint8_t ttl = 0;            // 0: 64, to groups 1
    std::uint8_t tos = 0;
    PathMtu path_mtu = PathMtu::kCut;
    bool broadcast = false;  // SO_BROADCAST: a broadcast address is not refused
    bool stays = false;      // a TTL of 0: not beyond this host
    bool loop = true;        // IP_MULTICAST_LOOP: members on this host hear it, too
};

/// The way to a destination, as a socket without a path knows it.
struct Route {
    Address source;
    std::uint32_t mtu = 0;
    bool broadcast = false;  // needs SO_BROADCAST
};

/// What a socket wants of its datagrams, beyond those that it names when it sends.
struct SocketOptions {
    bool merged = false;         // takes several datagrams of one flow at once (UDP_GRO); false: never more than one
    bool errors = false;         // IP_RECVERR, IPV6_RECVERR: hears of soft errors, and unconnected, too
    bool all_groups = true;      // IP_MULTICAST_ALL: hears groups that others on this host have joined
    PathMtu path_mtu = PathMtu::kCut;
};

/// A datagram that went wrong, as far as anybody knows: what an error queue keeps (struct sock_extended_err of Linux).
struct DatagramError {
    int error = 0;                       // errno
    bool queued = false;                 // the socket wants to read about it (IP_RECVERR), not only its errno
    bool by_icmp = false;                // `type` and `code` are from an ICMP message that `offender` sent
    std::uint8_t type = 0;
    std::uint8_t code = 0;
    std::uint32_t info = 0;              // the MTU of "packet too big"
    Endpoint remote{};                   // where the datagram was going
    Address offender{};
    std::span<const std::byte> payload{};  // what is known of the datagram; valid during the call only
};

class SocketOwner {
public:
    virtual ~SocketOwner() = default;
    /// False: no room; the stack counts Drop::kUdpQueueFull.
    virtual bool on_datagram(Socket& socket, const DatagramInfo& info, Payload payload, std::uint32_t length) = 0;
    /// For connected sockets, and for others that want errors.
    virtual void on_error(Socket& socket, const DatagramError& error) = 0;
};

}  // namespace udp
}  // namespace culvert::stack
