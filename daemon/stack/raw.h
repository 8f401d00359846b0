// Raw and ping sockets: IP packets as they are, ICMP echoes by identifier.
//
//   way in:  StackImpl -> raw()         a copy of every packet of a protocol that some raw socket wants (`wanted`)
//                      -> echo_reply()  the ping socket whose identifier it carries
//   way out: send() -> IpOutput, whole or in fragments
//
// | kind  | sends                                             | hears                                              |
// | raw   | payload of IP, or a whole IPv4 packet (HDRINCL)   | IPv4: with its IP header; IPv6: without            |
// | ping  | an echo request; identifier and checksum are ours | the echo replies that carry its identifier         |
//
// Who may have one is decided above: the stack has no notion of privileges. A source address is always one of ours, in a
// header that the application wrote, too. Sockets hang in chains by protocol or identifier; a protocol that no socket
// wants costs its packets one bit test.
//
// Left out, and refused with EOPNOTSUPP: IP options and fragments in a header of one's own, an IPv6 header of one's own
// (IPV6_HDRINCL). What goes to a group is not heard by raw sockets of this host (IP_MULTICAST_LOOP).
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/base/instant.h"
#include "daemon/base/lazy_pool.h"
#include "daemon/base/rng.h"
#include "daemon/stack/ip_output.h"
#include "daemon/stack/ip_packet.h"
#include "daemon/stack/link/multicast_groups.h"
#include "daemon/stack/owner.h"
#include "shm/base/error.h"

namespace culvert::stack::raw {

class Socket;

struct PacketInfo {
    Address remote;
    Address local;  // as in the packet
    std::uint32_t interface = 0;
    std::uint8_t ttl = 0;
    std::uint8_t tos = 0;
    Instant received{};
};

class SocketOwner {
public:
    virtual ~SocketOwner() = default;
    /// False: no room; counted as Drop::kRawQueueFull.
    virtual bool on_packet(Socket& socket, const PacketInfo& info, Payload payload, std::uint32_t length) = 0;
};

enum class Kind : std::uint8_t { kRaw, kPing };

struct SocketOptions {
    bool header_included = false;                   // IP_HDRINCL
    std::array<std::uint32_t, 8> blocked_types{};   // ICMP_FILTER (types 0 to 31), ICMP6_FILTER: a bit a type
    std::optional<std::uint16_t> checksum_offset;   // IPV6_CHECKSUM: where we put and check it; of ICMPv6 always at 2
    bool all_groups = true;                         // IP_MULTICAST_ALL: hears groups that others on this host have joined
};

/// Zero and unspecified: by route, Linux's default.
struct SendOptions {
    Address source{};
    std::uint32_t interface = 0;
    std::uint8_t ttl = 0;
    std::uint8_t tos = 0;
    bool broadcast = false;  // SO_BROADCAST: a broadcast address is not refused
};

class Socket {
public:
    Kind kind() const { return kind_; }
    std::uint8_t protocol() const { return protocol_; }
    /// Of a ping socket that is bound.
    std::uint16_t identifier() const { return identifier_; }

private:
    friend class Raw;

    Kind kind_ = Kind::kRaw;
    Family family_ = Family::kIpv4;
    std::uint8_t protocol_ = 0;
    bool bound_ = false;
    std::uint16_t identifier_ = 0;
    Address local_;                  // unspecified: any
    std::optional<Address> remote_;  // connected
    SocketOptions options_;
    SocketOwner* owner_ = nullptr;
    MulticastMember member_;  // of the groups that it has joined
    Socket* next_ = nullptr;  // raw: of the protocol; ping: of the identifier's bucket
};

class Raw {
public:
    static constexpr std::uint32_t kMaxSockets = 1024;
    static constexpr std::uint8_t kAnyProtocol = 255;  // IPPROTO_RAW: sends whole packets, hears nothing

    Raw(IpOutput& output, Counters& counters, Rng& rng);
    ~Raw();
    Raw(const Raw&) = delete;
    Raw& operator=(const Raw&) = delete;

    /// A ping socket's protocol is its family's ICMP. Errors: ENOBUFS, EPROTONOSUPPORT (raw protocol 0).
    Result<Socket*> open(Kind kind, Family family, std::uint8_t protocol, SocketOwner& owner);
    void close(Socket& socket);
    /// `identifier` is a ping socket's; 0: a free one. Errors: EADDRNOTAVAIL, EADDRINUSE.
    Result<void> bind(Socket& socket, const Address& local, std::uint16_t identifier);
    /// Hears that one only; nullptr: everybody.
    void connect(Socket& socket, const Address* remote);
    void set_options(Socket& socket, const SocketOptions& options) { socket.options_ = options; }
    /// Where groups are kept, for sockets that join some; null (as at first): joining is EOPNOTSUPP. Cold.
    void set_groups(MulticastGroups* groups) { groups_ = groups; }
    /// Errors: as MulticastGroups, and EOPNOTSUPP.
    Result<void> change_group(Socket& socket, udp::GroupChange change, std::uint32_t interface, const Address& group,
                              const Address& source);
    /// Errors: EMSGSIZE, EINVAL (malformed: ping other than an echo request, header that lies), EOPNOTSUPP (as above),
    /// EADDRNOTAVAIL (source), EACCES (broadcast), ENETUNREACH, EHOSTUNREACH, ENOBUFS.
    Result<void> send(Socket& socket, const Address& remote, Payload payload, std::uint32_t length,
                      const SendOptions& options, Instant now);
    std::uint32_t sockets() const { return pool_.used(); }

    /// True if some raw socket wants packets of that protocol.
    bool wants(std::uint8_t protocol) const { return wanted_[protocol]; }
    /// A packet for us, before its transport sees it: a copy to each raw socket that hears it.
    void input(const IpPacket& packet, Instant now);
    /// An echo reply to one of our addresses, whole and with a right checksum. True if a ping socket took it.
    bool echo_reply(const IpPacket& packet, Instant now);

private:
    static constexpr std::size_t kBuckets = 256;
    struct Outgoing {
        Path path;
        Address source;
        Address destination;
        std::uint8_t protocol = 0;
        std::uint8_t ttl = 0;
        std::uint8_t tos = 0;
        bool dont_fragment = false;
        std::uint32_t identification = 0;
    };

    Socket*& list_of(const Socket& socket);
    void unlink(Socket& socket);
    Socket* find_ping(Family family, std::uint16_t identifier) const;
    bool hears(const Socket& socket, const IpPacket& packet) const;
    void take_copy(Socket& socket, const IpPacket& packet, Instant now);
    void deliver(Socket& socket, const IpPacket& packet, std::uint32_t offset, std::uint32_t length, Instant now);
    Result<Outgoing> prepare(const Socket& socket, const Address& remote, const SendOptions& options, Instant now);
    Result<void> make_echo(const Socket& socket, const Outgoing& out, std::span<std::byte> message);
    Result<std::span<const std::byte>> read_header(Outgoing& out, std::span<const std::byte> packet);
    Result<void> transmit(Outgoing& out, std::span<const std::byte> message, Instant now);

    IpOutput& output_;
    Counters& counters_;
    Rng& rng_;
    MulticastGroups* groups_ = nullptr;
    std::bitset<256> wanted_;  // protocol numbers for which there is a raw socket
    LazyPool pool_;
    std::array<std::vector<Socket*>, 2> by_protocol_;  // [family][protocol]: chains
    std::array<std::vector<Socket*>, 2> pings_;        // [family][identifier % kBuckets]: chains
    std::vector<std::byte> scratch_;                   // one message, read once from the application's memory
};

}  // namespace culvert::stack::raw
