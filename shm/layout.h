// The segment: one sealed memfd per tenant, and where each part of it lies.
//
//   SegmentHeader | processes[P] | holders[P] | free_sockets | dirty | queues[Q] (header, ready, watch) |
//   accept_queues[L] | sockets[S] | block_meta[B] | blocks[B]
//
// Both sides compute the offsets from the same Geometry, so nothing that lies in the segment is ever followed as an
// offset. The daemon makes the geometry and keeps its own copy; the shim takes it from the attach reply and checks it
// against the size of the descriptor.
//
// Everything here is plain: fixed-width fields, lock-free atomics, indices instead of pointers, no constructors.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace culvert::shm {

inline constexpr std::uint64_t kMagic = 0x31305452564c5543;  // "CULVRT01"
inline constexpr std::uint32_t kAbiVersion = 12;
inline constexpr std::size_t kCacheLine = 64;

/// Bytes of payload in one block. Not a power of two: block starts spread over the cache sets.
inline constexpr std::uint32_t kBlockSize = 2112;
inline constexpr std::uint32_t kNoIndex = UINT32_MAX;

/// Lists hold index + 1, so that zeroed memory is an empty list.
inline constexpr std::uint32_t kEmptyList = 0;

/// How many of what. Chosen by the daemon, fixed for the life of the segment.
struct Geometry {
    std::uint32_t sockets = 0;         // socket records, multiple of 64
    std::uint32_t app_sockets = 0;     // the first of them are taken by the application, the others by the daemon
    std::uint32_t tx_blocks = 0;       // blocks [0, tx_blocks) carry data of the application
    std::uint32_t rx_blocks = 0;       // blocks [tx_blocks, tx_blocks + rx_blocks) carry data for it
    std::uint32_t queues = 0;          // event queues
    std::uint32_t processes = 0;       // process slots
    std::uint32_t accept_queues = 0;   // listeners

    std::uint32_t blocks() const { return tx_blocks + rx_blocks; }
    friend bool operator==(const Geometry&, const Geometry&) = default;
};

inline constexpr std::uint32_t kMaxSockets = 131072;
inline constexpr std::uint32_t kMaxBlocks = 1u << 20;
inline constexpr std::uint32_t kMaxQueues = 1024;
inline constexpr std::uint32_t kMaxProcesses = 512;
inline constexpr std::uint32_t kMaxAcceptQueues = 256;
inline constexpr std::uint32_t kAcceptQueueLength = 4096;
/// Descriptors for which a process can tell why they are on the kernel path (culvert ss).
inline constexpr std::uint32_t kReasonTableLength = 32768;

/// True when every count is within the bounds above and none is zero.
bool valid(const Geometry& geometry);

using Word = std::atomic<std::uint64_t>;
static_assert(Word::is_always_lock_free && sizeof(Word) == 8);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free && sizeof(std::atomic<std::uint32_t>) == 4);

// | field           | written by        | read by | ordering |
// | magic, abi, geometry, size | daemon, once | shim at attach | the attach reply orders it |
// | engine_asleep   | daemon sets 1, shim takes to 0 | both | seq_cst, see wakeup.h |
// | tx_free         | both              | shim    | acquire/release, tagged stack (block_list.h) |
// | tx_starved      | shim sets, daemon clears | daemon | seq_cst |
// | rx_returned     | shim pushes, daemon takes all | daemon | acquire/release |
struct alignas(kCacheLine) SegmentHeader {
    std::uint64_t magic;
    std::uint32_t abi_version;
    std::uint32_t reserved;
    Geometry geometry;
    std::uint64_t size_bytes;
    alignas(kCacheLine) std::atomic<std::uint32_t> engine_asleep;
    alignas(kCacheLine) std::atomic<std::uint64_t> tx_free;      // (tag << 32) | (index + 1)
    std::atomic<std::uint32_t> tx_starved;                      // some sender waits for a block
    alignas(kCacheLine) std::atomic<std::uint32_t> rx_returned;  // newest first
};

/// Why a socket of an attached program is not a Culvert socket. Shown by `culvert ss`.
// X(name, text)
#define CULVERT_KERNEL_REASONS(X)                                          \
    X(kUnknown, "")                                                        \
    X(kNotInternet, "not an IPv4 or IPv6 socket")                          \
    X(kType, "socket type is not handled")                                 \
    X(kPolicy, "excluded by the policy")                                   \
    X(kLoopback, "loopback address")                                       \
    X(kNoRoute, "destination is not reached through a Culvert interface")  \
    X(kLocalKernel, "own address, port served by the kernel")              \
    X(kNotLocal, "bound to an address of another interface")               \
    X(kAcceptedByKernel, "arrived through the kernel")                     \
    X(kNoDaemon, "no daemon")                                              \
    X(kTableFull, "tables of the daemon are full")                         \
    X(kUnconnected, "not bound or connected yet")                          \
    X(kOption, "a socket option needs the kernel")                         \
    X(kRefused, "refused by the daemon")                                   \
    X(kListenerPair, "kernel half of a Culvert listener")                  \
    X(kSharedAddress, "raw or ping, and no address is Culvert's alone")    \
    X(kDaemonPolicy, "excluded by the daemon's policy")                    \
    X(kBadPolicy, "CULVERT_POLICY is not understood")                      \
    X(kDatagramPair, "kernel half of a Culvert datagram socket")           \
    X(kIoUring, "the program uses io_uring")                               \
    X(kResting, "listener passed on before anybody here waited for a connection") \
    X(kPassedOn, "UDP socket passed on by a message")

enum class KernelReason : std::uint8_t {
#define CULVERT_REASON_ENUM(name, text) name,
    CULVERT_KERNEL_REASONS(CULVERT_REASON_ENUM)
#undef CULVERT_REASON_ENUM
};
const char* kernel_reason_text(KernelReason reason);

/// One process of the tenant. `live` is written by the daemon, the rest by the process.
struct alignas(kCacheLine) ProcessRecord {
    std::atomic<std::uint32_t> live;  // daemon: slot is in use
    std::atomic<std::uint32_t> pid;
    std::atomic<std::uint8_t> reasons[kReasonTableLength];  // by descriptor number, a KernelReason
};

/// One event queue: an epoll instance, or a thread in poll(). The two bitmaps (one bit a socket) follow it.
struct alignas(kCacheLine) QueueRecord {
    std::atomic<std::uint32_t> asleep;  // shim sets 1 before it waits for the eventfd, the daemon takes it to 0
    std::atomic<std::uint32_t> of_call;  // a thread in poll(), accept() ...: told also where EPOLLEXCLUSIVE tells one set only
};

/// Ready connections of a listener: the daemon adds, any process of the tenant takes (accept_queue.h).
struct alignas(kCacheLine) AcceptQueueRecord {
    std::atomic<std::uint32_t> head;  // taken so far; written by the application
    alignas(kCacheLine) std::atomic<std::uint32_t> tail;  // added so far; written by the daemon
    alignas(kCacheLine) std::atomic<std::uint32_t> entries[kAcceptQueueLength];
};

/// Describes one block; written by whoever owns the block.
struct BlockMeta {
    std::atomic<std::uint32_t> next;    // list link: index + 1
    std::atomic<std::uint32_t> length;  // bytes of payload
    std::atomic<std::uint32_t> offset;  // first byte of payload within the block
    std::atomic<std::uint32_t> flags;   // kBlockMore, kBlockUrgent, kBlockMoreToCome
};
static_assert(sizeof(BlockMeta) == 16);
/// The datagram goes on in the next block of the list.
inline constexpr std::uint32_t kBlockMore = 1;
/// Of a stream, from the application: the last byte is urgent (MSG_OOB).
inline constexpr std::uint32_t kBlockUrgent = 2;
/// The same, of the last block of a call: the program sends more at once (MSG_MORE), so a partial segment may wait.
inline constexpr std::uint32_t kBlockMoreToCome = 4;

struct SocketRecord;

/// Offsets of every part, all multiples of the cache line.
struct Layout {
    explicit Layout(const Geometry& geometry);

    Geometry geometry;
    std::uint64_t processes, holders, free_sockets, dirty, queues, accept_queues, sockets, block_meta, blocks;
    std::uint64_t holder_stride;  // bytes of one holder bitmap
    std::uint64_t bitmap_bytes;   // bytes of one two-level bitmap (ready_bitmap.h)
    std::uint64_t queue_stride;
    std::uint64_t size_bytes;     // of the whole segment, a multiple of the page size
};

}  // namespace culvert::shm
