// One socket, as application and daemon share it.
//
// State, not messages: what an application wants stands in its line (flags, options, positions); it then marks the
// socket dirty and the daemon looks. What the daemon knows stands in the daemon's line. Only listen, connect and bind,
// which need an answer, use the small mailbox.
//
//   application                                          daemon
//   tx_list  --(blocks, newest first)-->  exchange(0), reverse, check in the ledger, send
//   rx_list  <--(blocks, newest first)--  push; the application exchanges, reverses, keeps its rest in `stash`
//
// Every word has one writing side. The daemon reads each application word once, checks the copy, and uses the copy.
#pragma once

#include "shm/layout.h"

namespace culvert::shm {

/// An IP endpoint in fixed form: IPv6 or IPv4-mapped address in network order, port in host order.
struct WireEndpoint {
    std::uint8_t address[16];
    std::uint16_t port;
    std::uint16_t family;     // 4 or 6: the family of the *socket* (a v6 socket may hold a mapped address)
    std::uint32_t interface;  // scope of a link-local address, else 0
};
static_assert(sizeof(WireEndpoint) == 24);

// --- what the application wants: AppLine::flags -------------------------------------------------------------------
inline constexpr std::uint32_t kAppShutRead = 1u << 0;    // of a listener: it has ended, until it listens again
inline constexpr std::uint32_t kAppShutWrite = 1u << 1;   // FIN after everything in tx_list
inline constexpr std::uint32_t kAppClosed = 1u << 2;      // last holder closed; the record may be reused
inline constexpr std::uint32_t kAppWantWrite = 1u << 3;   // tell me when there is room to send
inline constexpr std::uint32_t kAppExclusive = 1u << 4;   // of those who sleep wake one (EPOLLEXCLUSIVE)
inline constexpr std::uint32_t kAppAwaited = 1u << 5;     // of a listener: somebody has waited for a connection here; the shim's own
inline constexpr std::uint32_t kAppReported = 1u << 6;    // after the daemon's death: its successor has been told, or is being told
inline constexpr std::uint32_t kAppTellAnother = 1u << 7; // of a listener: who may have been the one told (kAppExclusive) watches no more
inline constexpr std::uint32_t kAppPassedOn = 1u << 12;   // of a UDP socket: by a message, so that it shall rest for good; the shim's own
/// Status flags of the file, once several processes hold it (fork): theirs alone, the daemon does not care.
inline constexpr std::uint32_t kAppNonBlocking = 1u << 8;
inline constexpr std::uint32_t kAppAppend = 1u << 9;
inline constexpr std::uint32_t kAppNoAccessTime = 1u << 10;
inline constexpr std::uint32_t kAppAsync = 1u << 11;
inline constexpr std::uint32_t kAppFileFlags = kAppNonBlocking | kAppAppend | kAppNoAccessTime | kAppAsync;

/// AppLine::watch: nobody, one queue (index + 1), or look in every queue's watch bitmap.
inline constexpr std::uint32_t kWatchNone = 0;
inline constexpr std::uint32_t kWatchMany = UINT32_MAX;

// --- what the daemon knows: DaemonLine::status ---------------------------------------------------------------------
inline constexpr std::uint32_t kStatusReady = 1u << 0;       // established, listening or bound
inline constexpr std::uint32_t kStatusConnecting = 1u << 1;
inline constexpr std::uint32_t kStatusPeerClosed = 1u << 2;  // FIN received: end of stream after rx_delivered
inline constexpr std::uint32_t kStatusDead = 1u << 3;        // reset, timed out, or closed on both sides; see error
inline constexpr std::uint32_t kStatusWriteClosed = 1u << 4; // our FIN is queued; sending is EPIPE
inline constexpr std::uint32_t kStatusUrgent = 1u << 5;      // SocketRecord::urgent may lie ahead of the reader
inline constexpr std::uint32_t kStatusMoved = 1u << 6;       // left the program: the bytes go through a stand-in, which whoever
                                                             // holds the record gets with AskStandIn (attach_protocol.h)
inline constexpr std::uint32_t kStatusResting = 1u << 7;     // a listener that takes no connections until the next kListen; a UDP
                                                             // socket (RestDatagrams) until the next kBindDatagram

/// Written by the application (any thread or process of it that holds the socket).
struct alignas(kCacheLine) AppLine {
    std::atomic<std::uint32_t> tx_list;      // blocks to send, newest first; the daemon exchanges it with 0
    std::atomic<std::uint32_t> flags;        // kApp*
    std::atomic<std::uint64_t> tx_queued;    // bytes given to tx_list so far
    std::atomic<std::uint64_t> rx_consumed;  // bytes read so far
    std::atomic<std::uint32_t> watch;        // who wants events: kWatch*
    std::atomic<std::uint32_t> waiters;      // threads in futex wait on event_sequence
    std::atomic<std::uint32_t> options_version;  // odd while SocketOptions are being written (seqlock)
    std::atomic<std::uint32_t> operation_sequence;  // submitted operations; see OperationMailbox
    std::atomic<std::uint32_t> tx_lock;      // 0 or process slot + 1: serialises senders (socket_lock.h)
    std::atomic<std::uint32_t> rx_lock;      // 0 or process slot + 1: serialises receivers
    std::atomic<std::uint32_t> stash_head;   // blocks taken off rx_list and not read yet, oldest first (index + 1)
    std::atomic<std::uint32_t> stash_tail;
    std::atomic<std::uint32_t> error_stash;  // blocks taken off error_list, oldest first
    std::atomic<std::uint32_t> urgent_read;  // of a stream: urgent_mark() of the octet that was taken out of band; 0: none
};
static_assert(sizeof(AppLine) == kCacheLine);

/// Written by the daemon. Exceptions: rx_list, error_list, error and soft_error() are taken (exchanged with 0) by the application.
struct alignas(kCacheLine) DaemonLine {
    std::atomic<std::uint32_t> rx_list;         // received blocks, newest first
    std::atomic<std::uint32_t> status;          // kStatus*
    std::atomic<std::uint64_t> rx_delivered;    // bytes pushed to rx_list so far
    std::atomic<std::uint64_t> tx_released;     // bytes acknowledged by the peer: tx_queued - tx_released are in flight
    std::atomic<std::uint64_t> window_position; // when rx_consumed reaches it, mark dirty: the peer waits for window
    std::atomic<std::int32_t> error;            // errno value, as SO_ERROR
    std::atomic<std::uint32_t> event_sequence;  // futex word: changed whenever anything above changed and somebody waits
    std::atomic<std::uint32_t> generation;      // of the record: changes when it is freed
    std::atomic<std::uint32_t> send_limit;      // bytes that may be queued and in flight: the send buffer; moves with the window
    std::atomic<std::uint32_t> operation_done;  // last operation finished
    std::atomic<std::int32_t> operation_result; // 0 or errno value
    std::atomic<std::uint32_t> error_list;      // what went wrong (DatagramErrorHeader), newest first
    std::atomic<std::uint32_t> path_mtu;        // of a connected datagram socket: bytes of the largest IP packet; 0: unknown
                                                // Of a stream: see soft_error()
};
static_assert(sizeof(DaemonLine) == kCacheLine);

/// Of a stream: what ICMP has said of something that is on its way, 0 again when something has arrived. SO_ERROR takes it (0).
inline std::atomic<std::uint32_t>& soft_error(DaemonLine& line) { return line.path_mtu; }

enum class Operation : std::uint32_t {
    kNone = 0,
    kRoute = 1,       // remote -> endpoint.local = source address; result 0, or EHOSTUNREACH: use the kernel (why in detail)
                      // Of a stream endpoint.local.port is one from which connect() will find no older flow in its way, if
                      // the kernel has it; 0: none is known
                      // Of a datagram socket also info.path_mtu; EACCES: a broadcast without kOptionBroadcast;
                      // EADDRNOTAVAIL: `local`, if given, is not ours
    kConnect = 2,     // local (already bound in the kernel) and remote; result 0 once the SYN is on its way. Like kRoute and
                      // kListen EPERM if the configuration's policy for this program forbids it
    kListen = 3,      // local, backlog in argument; Bound to [::] without kOptionV6Only: both families
    kBindDatagram = 4,// local; remote if connected; argument: kBoundByProgram or kBoundBySending. EPERM: the policy forbids it
                      // One that rests (kStatusResting) hears again, where and with whom it did; all these are ignored
    kConnectDatagram = 5,  // remote; port 0 disconnects
    kRefreshInfo = 6, // fill `info`
    // Of a datagram socket: a group (remote) on an interface (argument), one of its sources (local) where it says so.
    // EOPNOTSUPP: the kernel does groups on that interface; then what the kernel's socket has joined is all that counts.
    kJoinGroup = 7,
    kLeaveGroup = 8,
    kJoinSource = 9,
    kLeaveSource = 10,
    kBlockSource = 11,
    kUnblockSource = 12,
    kOwnAddress = 13,  // 0: remote.address is the daemon's alone, so the kernel's socket is bound with IP_FREEBIND; else EADDRNOTAVAIL
    // Raw and ping sockets. Their datagrams have the headers and the lists of the others, ports unused (0).
    kBindRaw = 14,        // local (port: a ping socket's identifier); argument: raw_kind(). The first time it consumes a grant
                          // (attach_protocol.h): EPERM without; EADDRNOTAVAIL: no address there is Culvert's alone
    kFilterTypes = 15,    // ICMP_FILTER, ICMP6_FILTER: a bit for each blocked type, 0 to 127 in local.address, then remote's
    kChecksumOffset = 16, // IPV6_CHECKSUM: argument = where; kNoIndex: nowhere
    kRest = 17,           // a listener: connections are the kernel's from now on, what waits for accept() stays; kListen wakes it
};

/// Of kBindDatagram: by bind(), so that the policy of listening counts, or by the first datagram sent, so that the policy of
/// connecting counts for each peer.
inline constexpr std::uint32_t kBoundByProgram = 0;
inline constexpr std::uint32_t kBoundBySending = 1;

/// Of kBindRaw and of a grant: what kind of socket.
inline constexpr std::uint32_t kRawPing = 1u << 8;  // SOCK_DGRAM with the family's ICMP; else SOCK_RAW
inline constexpr std::uint32_t kRawV6 = 1u << 9;
constexpr std::uint32_t raw_kind(bool ping, bool v6, std::uint8_t protocol) {
    return (ping ? kRawPing : 0) | (v6 ? kRawV6 : 0) | protocol;
}

/// An operation that needs an answer. Written by the application, then operation_sequence + 1 and mark dirty; the daemon
/// answers with operation_done = that sequence. One at a time per socket: the shim holds tx_lock meanwhile.
struct OperationMailbox {
    std::atomic<std::uint32_t> code;      // Operation
    std::atomic<std::uint32_t> argument;  // backlog
    WireEndpoint local;
    WireEndpoint remote;
};
static_assert(sizeof(OperationMailbox) == 56);

// --- options, declarative: written by the application under a seqlock, read by the daemon when it looks -------------
inline constexpr std::uint32_t kOptionNoDelay = 1u << 0;
inline constexpr std::uint32_t kOptionCork = 1u << 1;
inline constexpr std::uint32_t kOptionKeepAlive = 1u << 2;
inline constexpr std::uint32_t kOptionQuickAck = 1u << 3;
inline constexpr std::uint32_t kOptionV6Only = 1u << 4;
inline constexpr std::uint32_t kOptionReusePort = 1u << 5;
inline constexpr std::uint32_t kOptionLinger = 1u << 6;
inline constexpr std::uint32_t kOptionBroadcast = 1u << 7;
inline constexpr std::uint32_t kOptionFastOpen = 1u << 8;  // TCP_FASTOPEN_CONNECT: the SYN may wait for the first data
inline constexpr std::uint32_t kOptionUrgentInline = 1u << 9;  // SO_OOBINLINE
inline constexpr std::uint32_t kOptionReuseAddress = 1u << 10;  // this and the next are kept for who asks, and mean nothing here
inline constexpr std::uint32_t kOptionDontRoute = 1u << 11;
inline constexpr std::uint32_t kOptionNoQuickAck = 1u << 12;  // TCP_QUICKACK has been turned off: reads back as 0
// of datagram sockets
inline constexpr std::uint32_t kOptionMerged = 1u << 16;         // UDP_GRO
inline constexpr std::uint32_t kOptionErrors4 = 1u << 17;        // IP_RECVERR
inline constexpr std::uint32_t kOptionErrors6 = 1u << 18;        // IPV6_RECVERR
inline constexpr std::uint32_t kOptionOnlyOwnGroups = 1u << 19;  // IP_MULTICAST_ALL off
inline constexpr std::uint32_t kOptionOnlyOwnGroups6 = 1u << 20;
inline constexpr std::uint32_t kOptionHeaderIncluded = 1u << 25;  // IP_HDRINCL
/// PathRule of IPv4 and of IPv6, two bits each.
inline constexpr std::uint32_t kOptionPathRule4Shift = 21;
inline constexpr std::uint32_t kOptionPathRule6Shift = 23;

/// Which datagrams may be cut (IP_MTU_DISCOVER); stack::udp::PathMtu has the meanings.
enum class PathRule : std::uint8_t { kCut = 0, kObey = 1, kProbe = 2, kLink = 3 };

struct SocketOptions {
    std::uint32_t flags;             // kOption*
    std::uint32_t receive_buffer;    // bytes of data: half of what getsockopt says; 0: the daemon sees to it (auto-tuning)
    std::uint32_t send_buffer;
    std::uint32_t keepalive_idle_s;  // 0 = default
    std::uint32_t linger_s;
    std::uint32_t user_timeout_ms;
    std::uint32_t defer_accept_s;
    std::uint32_t fast_open_queue;   // TCP_FASTOPEN of a listener: connections that may be accepted with their SYN
    std::uint32_t notsent_lowat;     // TCP_NOTSENT_LOWAT: bytes that may wait to be sent for the first time, 0 = any
    std::uint32_t window_clamp;      // TCP_WINDOW_CLAMP, bytes, 0 = none
    std::uint16_t keepalive_interval_s;
    std::uint16_t max_segment;       // TCP_MAXSEG, 0 = from the MTU
    std::uint8_t congestion;         // 0 = default, 1 = newreno, 2 = cubic, 3 = bbr, 4 = dctcp
    std::uint8_t tos;
    std::uint8_t ttl;                // 0 = default
    std::uint8_t keepalive_count;
    std::uint64_t max_pacing_rate;   // SO_MAX_PACING_RATE, bytes a second, 0 = none
};
static_assert(sizeof(SocketOptions) == 56);

/// What TCP_INFO needs; filled by kRefreshInfo.
struct SocketInfo {
    std::uint8_t tcp_state;   // as in <netinet/tcp.h>: TCP_ESTABLISHED = 1 ...
    std::uint8_t options;     // TCPI_OPT_* bits
    std::uint8_t send_scale, receive_scale;
    std::uint8_t congestion;  // in use, numbered as in SocketOptions; 0: no connection
    std::uint8_t ca_state;    // TCP_CA_Open = 0, Disorder, CWR, Recovery, Loss
    std::uint8_t reserved[2];
    std::uint32_t srtt_us, rttvar_us, rto_us, min_rtt_us;
    std::uint32_t cwnd_segments, ssthresh_segments, mss, peer_mss;
    std::uint32_t unacked_segments, retransmits, total_retransmits;
    std::uint32_t receive_space;
    std::uint32_t receive_buffer;  // bytes that may lie unread
    std::uint32_t path_mtu;     // of a datagram socket, by kRoute: of the way to `remote`
    std::uint64_t pacing_rate;  // bytes a second, 0: not paced
};

struct alignas(kCacheLine) SocketRecord {
    AppLine app;
    DaemonLine daemon;
    // Cold. local and remote are written by the daemon before status says so (accept, connect); accept_queue by the
    // daemon before a listen is answered; listener is the record of the listener a connection came from.
    WireEndpoint local;
    WireEndpoint remote;
    std::atomic<std::uint32_t> accept_queue;
    std::atomic<std::uint32_t> listener;
    std::atomic<std::uint32_t> protocol;  // IPPROTO_TCP, _UDP, or _RAW for raw and ping; written by who takes the record
    OperationMailbox operation;           // application
    SocketOptions options;                // application; the daemon copies the listener's into an accepted connection's
    SocketInfo info;                      // daemon
    std::atomic<std::uint64_t> urgent;    // daemon, before it pushes the octet's block to rx_list; see urgent.h
};
static_assert(sizeof(SocketRecord) % kCacheLine == 0 && sizeof(SocketRecord) <= 384);

// --- datagrams ----------------------------------------------------------------------------------------------------
/// DatagramHeader::flags, of what an application sends.
inline constexpr std::uint32_t kDatagramTtl = 1u << 0;        // `ttl` is meant, 0 too; without: Linux's default
inline constexpr std::uint32_t kDatagramLoop = 1u << 1;       // to a group: members on this host hear it, too
inline constexpr std::uint32_t kDatagramBroadcast = 1u << 2;  // SO_BROADCAST was set
inline constexpr std::uint32_t kDatagramPathRuleShift = 4;    // a PathRule, two bits

/// Room for new data that is worth telling a sender of, or worth his while: a third of the buffer, as sk_stream_is_writeable
/// of Linux; with TCP_NOTSENT_LOWAT half of that. Both sides must judge alike, or a sender waits for ever.
constexpr bool worth_writing(std::uint64_t room, std::uint32_t send_limit, std::uint32_t notsent_lowat) {
    if (notsent_lowat != 0 && notsent_lowat <= send_limit) return room * 2 > notsent_lowat;
    return room != 0 && room * 3 >= send_limit;
}

/// Stands at the start of the first block of every datagram, both ways; the payload follows it.
/// From the daemon: who sent it, to which of our addresses, through which interface. From the application: where to send
/// it, from which address (unspecified: the daemon's choice), through which interface (0: by route).
struct DatagramHeader {
    WireEndpoint remote;          // `interface`: scope, where the address has one
    std::uint8_t local_address[16];
    std::int64_t received_ns;     // from the daemon: CLOCK_MONOTONIC
    std::uint32_t length;         // of the payload, without this header
    std::uint32_t interface;
    std::uint16_t segment_size;   // several datagrams in one (UDP_SEGMENT, UDP_GRO): bytes of each but the last; 0: one
    std::uint8_t ttl, tos;
    std::uint32_t flags;          // kDatagram*
    std::uint32_t overflow;       // from the daemon: datagrams that found no room so far (SO_RXQ_OVFL)
    std::uint32_t reserved;
};
static_assert(sizeof(DatagramHeader) == 72);

/// Stands at the start of a block in error_list; what is known of the datagram's payload follows it, in the same block.
struct DatagramErrorHeader {
    WireEndpoint remote;       // where the datagram was going
    std::uint8_t offender[16];  // who said so, if origin is ICMP
    std::int32_t error;
    std::uint8_t origin;        // SO_EE_ORIGIN_LOCAL, _ICMP, _ICMP6 of <linux/errqueue.h>
    std::uint8_t type, code, reserved;
    std::uint32_t info;         // the MTU of "packet too big"
    std::uint32_t length;       // of the payload
};
static_assert(sizeof(DatagramErrorHeader) == 56);

}  // namespace culvert::shm
