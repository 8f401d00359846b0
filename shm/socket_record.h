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
inline constexpr std::uint32_t kAppShutRead = 1u << 0;
inline constexpr std::uint32_t kAppShutWrite = 1u << 1;   // FIN after everything in tx_list
inline constexpr std::uint32_t kAppClosed = 1u << 2;      // last holder closed; the record may be reused
inline constexpr std::uint32_t kAppWantWrite = 1u << 3;   // tell me when there is room to send
inline constexpr std::uint32_t kAppExclusive = 1u << 4;   // wake one watcher only (EPOLLEXCLUSIVE)

/// AppLine::watch: nobody, one queue (index + 1), or look in every queue's watch bitmap.
inline constexpr std::uint32_t kWatchNone = 0;
inline constexpr std::uint32_t kWatchMany = UINT32_MAX;

// --- what the daemon knows: DaemonLine::status ---------------------------------------------------------------------
inline constexpr std::uint32_t kStatusReady = 1u << 0;       // established, listening or bound
inline constexpr std::uint32_t kStatusConnecting = 1u << 1;
inline constexpr std::uint32_t kStatusPeerClosed = 1u << 2;  // FIN received: end of stream after rx_delivered
inline constexpr std::uint32_t kStatusDead = 1u << 3;        // reset, timed out, or closed on both sides; see error
inline constexpr std::uint32_t kStatusWriteClosed = 1u << 4; // our FIN is queued; sending is EPIPE

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
};
static_assert(sizeof(AppLine) == kCacheLine);

/// Written by the daemon. Exceptions: rx_list and error are taken (exchanged with 0) by the application.
struct alignas(kCacheLine) DaemonLine {
    std::atomic<std::uint32_t> rx_list;         // received blocks, newest first
    std::atomic<std::uint32_t> status;          // kStatus*
    std::atomic<std::uint64_t> rx_delivered;    // bytes pushed to rx_list so far
    std::atomic<std::uint64_t> tx_released;     // bytes acknowledged by the peer: tx_queued - tx_released are in flight
    std::atomic<std::uint64_t> window_position; // when rx_consumed reaches it, mark dirty: the peer waits for window
    std::atomic<std::int32_t> error;            // errno value, as SO_ERROR
    std::atomic<std::uint32_t> event_sequence;  // futex word: changed whenever anything above changed and somebody waits
    std::atomic<std::uint32_t> generation;      // of the record: changes when it is freed
    std::atomic<std::uint32_t> send_limit;      // bytes that may be in flight (SO_SNDBUF)
    std::atomic<std::uint32_t> operation_done;  // last operation finished
    std::atomic<std::int32_t> operation_result; // 0 or errno value
};
static_assert(sizeof(DaemonLine) == kCacheLine);

enum class Operation : std::uint32_t {
    kNone = 0,
    kRoute = 1,       // remote -> endpoint.local = source address; result 0, or EHOSTUNREACH: use the kernel (why in detail)
    kConnect = 2,     // local (already bound in the kernel) and remote; result 0 once the SYN is on its way
    kListen = 3,      // local, backlog in argument; Bound to [::] without kOptionV6Only: both families
    kBindDatagram = 4,// local; remote if connected
    kConnectDatagram = 5,  // remote; port 0 disconnects
    kRefreshInfo = 6, // fill `info`
};

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

struct SocketOptions {
    std::uint32_t flags;             // kOption*
    std::uint32_t receive_buffer;    // bytes, 0 = default
    std::uint32_t send_buffer;       // bytes, 0 = default
    std::uint32_t keepalive_idle_s;  // 0 = default
    std::uint32_t keepalive_interval_s;
    std::uint32_t keepalive_count;
    std::uint32_t linger_s;
    std::uint32_t user_timeout_ms;
    std::uint32_t defer_accept_s;
    std::uint32_t max_segment;       // TCP_MAXSEG, 0 = from the MTU
    std::uint8_t congestion;         // 0 = default, 1 = newreno, 2 = cubic, 3 = bbr, 4 = dctcp
    std::uint8_t tos;
    std::uint8_t ttl;                // 0 = default
    std::uint8_t reserved[5];
    std::uint64_t max_pacing_rate;   // SO_MAX_PACING_RATE, bytes a second, 0 = none
};
static_assert(sizeof(SocketOptions) == 56);

/// What TCP_INFO needs; filled by kRefreshInfo.
struct SocketInfo {
    std::uint32_t tcp_state;  // as in <netinet/tcp.h>: TCP_ESTABLISHED = 1 ...
    std::uint32_t srtt_us, rttvar_us, rto_us, min_rtt_us;
    std::uint32_t cwnd_segments, ssthresh_segments, mss, peer_mss;
    std::uint32_t unacked_segments, retransmits, total_retransmits;
    std::uint32_t receive_space;
    std::uint32_t options;  // TCPI_OPT_* bits
    std::uint8_t send_scale, receive_scale;
    std::uint8_t congestion;  // in use, numbered as in SocketOptions; 0: no connection
    std::uint8_t ca_state;    // TCP_CA_Open = 0, Disorder, CWR, Recovery, Loss
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
    std::atomic<std::uint32_t> protocol;  // IPPROTO_TCP or IPPROTO_UDP; written by who takes the record
    OperationMailbox operation;           // application
    SocketOptions options;                // application; the daemon copies the listener's into an accepted connection's
    SocketInfo info;                      // daemon
};
static_assert(sizeof(SocketRecord) % kCacheLine == 0 && sizeof(SocketRecord) <= 448);

/// Stands at the start of the first block of every datagram, both ways; the payload follows it.
/// From the daemon: who sent it and to which of our addresses. From the application: where to send it.
struct DatagramHeader {
    WireEndpoint remote;
    std::uint8_t local_address[16];
    std::uint32_t length;  // of the payload, without this header
    std::uint8_t ttl, tos, reserved[2];
};
static_assert(sizeof(DatagramHeader) == 48);

}  // namespace culvert::shm
