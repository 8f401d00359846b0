// The TCP/IP stack of one engine: a pure library. Frames, requests and `now` in; frames and calls of owners out.
// No system calls, no clock, no threads.
//
//   device burst -> input() -> [ethernet] -> [ip] -> tcp / udp / icmp -> owner (on_data ...)
//   owner -> connection.send() ... marks the connection for output
//   flush(): every marked connection emits what its windows allow, data carrying the ACKs, into the interface's TxQueue
//   advance(): timers
//
// Order of one turn: input* , requests of tenants, advance, flush. Output is deferred to flush() so that one ACK serves
// a whole burst and an answer given in the same turn carries it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>

#include "daemon/base/counters.h"
#include "daemon/base/instant.h"
#include "daemon/base/packet.h"
#include "daemon/base/rng.h"
#include "daemon/stack/interface.h"
#include "daemon/stack/neighbor.h"
#include "daemon/stack/owner.h"
#include "daemon/stack/route_table.h"
#include "shm/base/error.h"

namespace culvert::stack {

namespace tcp {
class Listener;
class Connection;

/// When a SYN is answered with a cookie instead of being remembered. [RFC4987 3.6]
enum class SynCookiePolicy : std::uint8_t {
    kOff,     // never: the oldest half-open connection makes room
    kAuto,    // while there is no room for half-open connections
    kAlways,  // for tests, and hosts that are under attack all the time
};

/// kDefault: the stack's. The numbers are those of shm::SocketOptions::congestion.
enum class Congestion : std::uint8_t { kDefault = 0, kNewReno = 1, kCubic = 2, kBbr = 3, kDctcp = 4 };
inline constexpr std::uint8_t kCongestionCount = 5;

/// What a socket gets that wants `wanted` in a stack configured with `fallback`.
constexpr Congestion chosen_congestion(Congestion wanted, Congestion fallback) {
    return wanted == Congestion::kDefault ? fallback : wanted;
}

/// Explicit Congestion Notification, as tcp_ecn of Linux: never; only if the peer asks for it; asking for it, too.
enum class EcnMode : std::uint8_t { kOff, kPassive, kOn };

/// Packetization layer path MTU discovery (RFC 4821), as tcp_mtu_probing of Linux: never; once large packets vanish; always.
enum class MtuProbing : std::uint8_t { kOff, kBlackHole, kOn };

/// Per-socket options. Zero means the stack's default.
struct Options {
    bool no_delay = false;
    bool cork = false;
    bool keep_alive = false;
    bool quick_ack = false;
    bool fast_open = false;  // active opens: data may go with the SYN, which then waits for it [RFC7413 4.2.1]
    Duration keep_alive_idle{};
    Duration keep_alive_interval{};
    std::uint32_t keep_alive_count = 0;
    Duration user_timeout{};
    std::uint32_t receive_buffer = 0;  // bytes; set: no auto-tuning
    std::uint32_t send_buffer = 0;     // bytes; the owner enforces it, here for reference
    std::uint32_t window_clamp = 0;    // TCP_WINDOW_CLAMP: the largest window that the peer is told of; 0: any
    std::uint16_t max_segment = 0;
    Congestion congestion = Congestion::kDefault;
    std::uint64_t max_pacing_rate = 0;  // bytes a second, 0: no limit
    std::uint8_t tos = 0;
    std::uint8_t ttl = 0;

    friend bool operator==(const Options&, const Options&) = default;
};

/// What a listener has on top; its connections begin with the rest.
struct ListenerOptions : Options {
    ListenerOptions() = default;
    ListenerOptions(const Options& options) : Options(options) {}  // implicit: nothing on top
    std::uint32_t fast_open_queue = 0;  // connections accepted with their SYN that may wait for the ACK; 0: none
    Duration defer_accept{};            // so long an ACK without data does not make a connection
};

/// The values of <netinet/tcp.h> (TCP_ESTABLISHED = 1 ... TCP_CLOSING = 11), as `ss` shows them.
enum class State : std::uint8_t {
    kEstablished = 1, kSynSent, kSynReceived, kFinWait1, kFinWait2, kTimeWait, kClosed, kCloseWait, kLastAck, kListen,
    kClosing
};

/// What the sender is busy with: the values of enum tcp_ca_state (linux/tcp.h).
enum class CaState : std::uint8_t { kOpen, kDisorder, kReduced, kRecovery, kLoss };

/// What TCP_INFO and `culvert ss` show.
struct Info {
    State state = State::kClosed;
    Duration srtt{}, rttvar{}, rto{}, min_rtt{};
    std::uint32_t cwnd_bytes = 0, ssthresh_bytes = 0, mss = 0, in_flight_bytes = 0, unsent_bytes = 0;
    std::uint32_t total_retransmits = 0, backoffs = 0, receive_window = 0, send_window = 0, receive_buffer = 0;
    std::uint32_t path_mtu = 0;
    std::uint8_t send_scale = 0, receive_scale = 0;
    bool timestamps = false, sack = false, window_scaling = false;
    Congestion congestion = Congestion::kDefault;  // in use; kDefault: no connection
    CaState ca_state = CaState::kOpen;
    std::uint64_t pacing_rate = 0;  // bytes a second, 0: not paced
    bool ecn = false, ecn_seen = false;  // negotiated; the peer's data was ECN-capable
    bool syn_data = false;  // data went with a SYN and was taken (TCPI_OPT_SYN_DATA)
};
}  // namespace tcp

namespace udp {
class Socket;
}

namespace raw {
class Raw;
class Socket;
}

struct StackConfig {
    /// The receive buffer of a connection of which `wanted` bytes were asked for (SO_RCVBUF); 0: nothing was.
    std::uint32_t receive_buffer(std::uint32_t wanted) const {
        constexpr std::uint32_t kLeast = 2048;
        return std::max(std::min(wanted != 0 ? wanted : std::max(default_receive_buffer, min_receive_buffer), max_receive_buffer), kLeast);
    }

    std::uint32_t max_connections = 262144;
    std::uint32_t max_half_open = 8192;
    std::uint32_t max_time_wait = 65536;
    std::uint32_t max_listeners = 1024;
    std::uint32_t max_udp_sockets = 4096;
    std::uint32_t max_bbr = 65536;                    // connections with BBR; further ones get CUBIC
    std::uint32_t reassembly_chunks = 4096;           // 2 KiB each, for out-of-order data of all connections
    Port first_port = 0;                              // of those for outgoing connections that nobody has bound; 0: not known
    Port last_port = 0;
    std::uint8_t default_ttl = 64;                    // of packets whose socket says none; hop limit where no router says one
    std::uint32_t max_ip_reassemblies = 512;          // packets of which some fragments have come
    std::uint32_t ip_reassembly_chunks = 1024;        // 4 KiB each, for fragments of all of them
    // Bytes: what a connection keeps when memory is scarce, begins with, and may grow to.
    std::uint32_t min_receive_buffer = 2048;
    std::uint32_t default_receive_buffer = 256 * 1024;
    std::uint32_t max_receive_buffer = 4 * 1024 * 1024;
    Duration min_rto = std::chrono::milliseconds(200);
    Duration delayed_ack = std::chrono::milliseconds(40);
    // [RFC9293 3.6.1 MUST-13] twice the segment lifetime, which is 30 s as on Linux
    Duration time_wait = std::chrono::seconds(60);
    Duration fin_wait_2 = std::chrono::seconds(60);  // of a connection that the application has closed
    tcp::Congestion congestion = tcp::Congestion::kCubic;
    tcp::SynCookiePolicy syn_cookies = tcp::SynCookiePolicy::kAuto;
    tcp::EcnMode ecn = tcp::EcnMode::kPassive;
    tcp::MtuProbing mtu_probing = tcp::MtuProbing::kBlackHole;
    std::uint32_t max_mtu_searches = 4096;  // connections that look for their path's MTU at the same time
    bool fast_open_client = true;   // RFC 7413, where a socket asks for it; as net.ipv4.tcp_fastopen of Linux
    bool fast_open_server = false;
    std::uint64_t secret[2] = {0, 0};  // key of hashes and ISNs, from getrandom(2)
    std::uint64_t stable_secret[2] = {0, 0};  // of interface identifiers: the same after a restart [RFC7217 5]
};

/// Port bookkeeping of the world outside: whoever steers packets to us must know which ports are ours.
class PortOwner {
public:
    virtual ~PortOwner() = default;
    enum class Protocol : std::uint8_t { kTcp, kUdp };
    /// First socket on the port / last one gone. `address` may be unspecified: every address of Culvert's interfaces,
    /// of that family.
    virtual void take_port(Protocol protocol, const Address& address, Port port) = 0;
    virtual void release_port(Protocol protocol, const Address& address, Port port) = 0;
    /// True: the connection is one that somebody else (the kernel) had on the port when it was taken. Its segments should not come
    /// by, but those that were on their way do. Asked only before a segment of no connection is answered with a reset.
    virtual bool is_elsewhere(const Endpoint& /*local*/, const Endpoint& /*remote*/) { return false; }
};

class Peers;
struct StackUsage;
class StackImpl;
class AddressObserver;
class LinkProtocols;
class MulticastGroups;

class Stack {
public:
    /// `peers`: the other engines (peers.h); null: there are none.
    Stack(const StackConfig& config, NeighborResolver& resolver, PortOwner& ports, Counters& counters, Rng& rng,
          Peers* peers = nullptr);
    ~Stack();

    // --- the world, by commands of the control thread ---------------------------------------------------------------
    Interface& add_interface(Interface interface);
    void set_interface_state(std::uint32_t index, bool up, std::uint32_t mtu);
    void set_mac(std::uint32_t index, const MacAddress& mac);
    /// Exactly these. On an interface that resolves itself each new one is probed for first, and used when it has proved to
    /// be free: some seconds later, or never (set_address_observer tells).
    void set_addresses(std::uint32_t index, std::vector<InterfaceAddress> addresses);
    /// Hears what becomes of dedicated addresses. Must outlive the stack, or be taken out (nullptr).
    void set_address_observer(AddressObserver* observer);
    /// Which groups are joined by whom.
    MulticastGroups& groups();
    /// Takes part in the way in (input_hooks.h) instead of the stack's own link protocols. Must outlive the stack, or be
    /// taken out (nullptr) before it goes.
    void set_link_protocols(LinkProtocols* link);
    /// Packets for others go on to them (forward.h), off to start with. `reverse_path_check`: only from sources that would
    /// be reached through the interface by which they came.
    void set_forwarding(bool on, bool reverse_path_check);
    RouteTable& routes();
    NeighborTable& neighbors();
    /// Where the groups are kept that sockets join, on interfaces whose links we run ourselves; null: none can.
    void set_groups(MulticastGroups* groups);
    /// True if the address is one of Culvert's interfaces' own.
    bool is_local(const Address& address) const;
    /// True if it is ours alone (InterfaceAddress::dedicated): no kernel socket can be bound to it as it is.
    bool is_dedicated(const Address& address) const;

    // --- the turn ---------------------------------------------------------------------------------------------------
    void input(Interface& interface, const RxPacket& packet, Instant now);
    /// A burst as the device gave it: the same for each packet in order, while what the next ones need (headers, routes,
    /// connections) is on its way from memory.
    void input(Interface& interface, std::span<const RxPacket> burst, Instant now);
    /// The same for a packet that another engine has passed on. `from_ourselves`: it was sent to one of our own addresses.
    void input_passed(Interface& interface, const RxPacket& packet, bool from_ourselves, Instant now);
    /// What another engine's stack has told this one about a link (Peers::tell).
    void link_message(Interface& interface, std::span<const std::byte> message, Instant now);
    void advance(Instant now);
    void flush(Instant now);
    /// When advance() has something to do; kNever if nothing waits. Packets that wait for flush() or local delivery make
    /// it Instant::min().
    Instant next_deadline() const;
    /// What is held of the pools and tables at the moment (usage.h).
    StackUsage usage() const;

    // --- sockets ----------------------------------------------------------------------------------------------------
    /// The source address with which `destination` is reached through a Culvert interface, or through ourselves: our own
    /// address and a port on which we listen. EHOSTUNREACH / ENETUNREACH: not through us, use the kernel.
    Result<Address> source_for(const Endpoint& destination) const;

    /// `local.address` may be unspecified; `dual` makes [::] listen for IPv4 too. Several listeners on one endpoint share
    /// it (SO_REUSEPORT): connections are spread by flow hash. Errors: ENOBUFS.
    Result<tcp::Listener*> listen(const Endpoint& local, bool dual, const tcp::ListenerOptions& options,
                                  tcp::ListenerOwner& owner);
    /// Who else listens on the endpoint of `listener` and will serve its clients when it is gone; nullptr: nobody.
    tcp::ListenerOwner* heir_of(const tcp::Listener& listener) const;
    /// Connections whose handshake is under way go on with the heir, if there is one, and end otherwise.
    void close(tcp::Listener& listener);

    /// Sends SYN at the next flush. Errors: EADDRINUSE (flow exists), ENETUNREACH, ENOBUFS.
    Result<tcp::Connection*> connect(const Endpoint& local, const Endpoint& remote, const tcp::Options& options,
                                     tcp::ConnectionOwner& owner, Instant now);

    /// A random port from which connect() to `remote` would find no older flow in its way (on this engine); 0: none was found at
    /// once, or StackConfig names none. Nothing is reserved.
    Port port_for(const Address& local, const Endpoint& remote, Instant now);

    /// A flow that another stack had, before us and on the same addresses, and that died with it: its peer is made to ask for the
    /// reset that it has not had, by two ACKs of which one must be answered. Errors: EISCONN (the flow lives here), EADDRNOTAVAIL
    /// (`local` is not ours, or `remote` is), EINVAL, ENETUNREACH, EHOSTUNREACH, ENOBUFS.
    Result<void> probe_dead_flow(const Endpoint& local, const Endpoint& remote, Instant now);

    /// Errors: ENOBUFS. `dual` as above.
    /// `interface`: hears and sends through that one only; 0: all.
    Result<udp::Socket*> bind_udp(const Endpoint& local, bool dual, udp::SocketOwner& owner,
                                  std::uint32_t interface = 0);
    /// nullptr disconnects. `interface`: the scope of a link-local peer, else 0.
    void connect_udp(udp::Socket& socket, const Endpoint* remote, std::uint32_t interface = 0);
    void set_options(udp::Socket& socket, const udp::SocketOptions& options);
    void close(udp::Socket& socket);
    /// Its port is steered to us no longer, unless another socket has it, too. What has been steered already it still hears, until it
    /// is closed.
    void yield_port(udp::Socket& socket);
    /// Errors: those of MulticastGroups; EOPNOTSUPP: groups on that interface are the kernel's. `interface` 0: by route.
    Result<void> change_group(udp::Socket& socket, udp::GroupChange change, std::uint32_t interface,
                              const Address& group, const Address& source);
    /// How datagrams reach `remote` through a Culvert interface or ourselves. EHOSTUNREACH, ENETUNREACH: not through us,
    /// use the kernel; so too for groups and broadcasts on interfaces that we share with it, whose members it knows.
    Result<udp::Route> route_datagram(const udp::Socket* socket, const Endpoint& remote, std::uint32_t interface) const;
    /// One datagram, or with a segment size several, now (not deferred). Errors: EMSGSIZE (too long, or may not be cut),
    /// EINVAL (too many segments), EACCES (broadcast), EADDRNOTAVAIL (source), ENETUNREACH, EHOSTUNREACH, ENOBUFS.
    Result<void> send_datagram(udp::Socket& socket, const Endpoint& remote, Payload payload, std::uint32_t length,
                               const udp::SendOptions& options, Instant now);
    /// Bytes of the largest IP packet that reaches `remote` uncut, as far as is known; 0: no way there (IP_MTU).
    std::uint32_t path_mtu(udp::Socket& socket, const Endpoint& remote, std::uint32_t interface, Instant now);

    /// Raw and ping sockets.
    raw::Raw& raw_sockets();
    /// True if `local` is an address of Culvert's alone or, unspecified, if there may be one of its family: only there can
    /// raw and ping sockets be Culvert's, since of a shared address the kernel gets what is neither TCP nor UDP.
    bool raw_can_bind(const Address& local) const;
    /// As the same of a UDP socket.
    Result<void> change_group(raw::Socket& socket, udp::GroupChange change, std::uint32_t interface,
                              const Address& group, const Address& source);
    /// How a raw or ping socket reaches `remote` from a dedicated address. EHOSTUNREACH, ENETUNREACH: it does not.
    Result<udp::Route> route_raw(const Address& remote, std::uint32_t interface) const;

private:
    std::unique_ptr<StackImpl> impl_;
};

}  // namespace culvert::stack
