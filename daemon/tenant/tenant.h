// A tenant: one attached process family, its segment, its sockets. The client is hostile.
//
//   look at socket N  <- dirty bitmap          events -> ready bitmaps, futex words, eventfds
//        |                                        ^
//        v                                        |
//   operations, options, tx_list -> stack -> on_data, on_established, on_acknowledged ...
//
// Belongs to one engine and is used on its thread only. Everything that an application can write is read once into a
// local, checked, and used from there; what it gets wrong is counted and harms only itself.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/base/instant.h"
#include "daemon/stack/stack.h"
#include "daemon/tenant/block_ledger.h"
#include "daemon/tenant/commons.h"
#include "shm/base/unique_fd.h"
#include "shm/policy.h"
#include "shm/segment.h"

namespace culvert::tenant {

class StreamSocket;
class ListenSocket;
class DatagramSocket;
class RawSocket;
class StandIn;
class StandIns;

/// What a connection is called, for the kernel socket that shall stand in for it; or that socket, if it is there.
struct Leaving {
    Endpoint local;
    Endpoint remote;  // port 0 of both: the connection has ended, and has no names any more
    UniqueFd made;
};

/// What a UDP socket had not read when it came to rest. The addresses and the bytes are the application's word: they come out of
/// its segment.
struct UnreadDatagram {
    Endpoint remote;
    Endpoint local;
    std::uint32_t interface = 0;
    std::uint32_t segment_size = 0;  // several in one (UDP_GRO): bytes of each but the last; 0: one
    std::uint8_t ttl = 0;
    std::uint8_t tos = 0;
    std::vector<std::byte> payload;
};

/// One line of `culvert ss`.
struct SocketSnapshot {
    std::uint32_t record = 0;
    std::uint32_t pid = 0;  // of one process that holds it
    bool is_tcp = true;
    std::uint32_t raw_kind = 0;  // shm::raw_kind of a raw or ping socket, which has no ports; else 0
    stack::tcp::State state = stack::tcp::State::kClosed;
    Endpoint local;
    Endpoint remote;
    std::uint64_t receive_queue = 0;  // bytes delivered and not read; of a listener: connections waiting
    std::uint64_t send_queue = 0;     // bytes not acknowledged; of a listener: the backlog
    stack::tcp::Info info;
};

struct TenantSnapshot {
    std::uint32_t id = 0;
    std::string program;
    std::vector<std::uint32_t> pids;
    std::vector<SocketSnapshot> sockets;
    Counters counters;  // of requests and drops that this tenant caused
};

/// What may be queued and in flight on one connection, bytes: while blocks are scarce, to begin with, and the most to which it
/// grows, or which an application may ask for (SO_SNDBUF).
struct SendLimits {
    std::uint32_t least = 16 * 1024;
    std::uint32_t standard = 512 * 1024;
    std::uint32_t most = 16 * 1024 * 1024;
};

/// What the administrator allows a program to carry through Culvert. The shim is told, too, and obeys; what it asks for all the same
/// is refused (EPERM, Drop::kTenantPolicy).
struct Permissions {
    std::shared_ptr<const shm::Policy> policy;  // null: the configuration says nothing of this program
    bool loopback = false;                      // its 127.0.0.1 is ours: it lives in our network namespace
};

class Tenant {
public:
    /// `segment` as created by the control thread. The first process is added by add_process. `commons` is the engine's.
    Tenant(std::uint32_t id, std::string program, shm::Segment segment, stack::Stack& stack, Counters& counters,
           Commons& commons, SendLimits send_limits = {});
    ~Tenant();
    Tenant(const Tenant&) = delete;

    std::uint32_t id() const { return id_; }
    const std::string& program() const { return program_; }

    /// Before the first poll().
    void permit(Permissions permissions) { permissions_ = std::move(permissions); }

    // --- by commands of the control thread ------------------------------------------------------------------------
    /// A free process slot for a process of this family; ENOSPC when all are taken.
    Result<std::uint32_t> add_process(std::uint32_t pid);
    /// The process has ended: its holds are released, sockets that nobody holds any more are closed, its locks freed.
    void remove_process(std::uint32_t slot, Instant now);
    Result<std::uint32_t> add_queue(std::uint32_t process, UniqueFd eventfd);
    void remove_queue(std::uint32_t queue);
    /// Raw and ping sockets that a tenant may have, with those that it has been granted and not made yet.
    static constexpr std::uint32_t kMaxRawSockets = 64;
    /// One socket of that kind (shm::raw_kind) may be bound: a process of this tenant has shown the kernel's. ENOBUFS: too
    /// many; counted.
    Result<void> grant_raw(std::uint32_t kind);
    /// A connection is about to leave the program. EBADF: no such socket; ENOTCONN: it is no connection, or not one yet.
    Result<Leaving> leaving(std::uint32_t record, std::uint32_t generation);
    /// It leaves: `ours` carries its bytes from now on, and the record remembers `theirs`, of which the answer is a duplicate.
    /// Requires what leaving() says; also ENOBUFS: too many, or no memory; EBUSY: the application reads or writes meanwhile.
    Result<UniqueFd> leave(std::uint32_t record, std::uint32_t generation, StandIns& stand_ins, UniqueFd ours, UniqueFd theirs,
                           Instant now);
    /// A UDP socket that its program passes on, in two steps. First its port is the kernel's again, while it still hears what has been
    /// steered here before; may be asked again. EBADF: no such socket.
    Result<void> yield_port(std::uint32_t record, std::uint32_t generation);
    /// Then, the record's locks held by who asks: it hears nothing more until the next kBindDatagram (kStatusResting). What
    /// has not been read, oldest first, as far as kMostUnread and kMostUnreadBytes reach; the rest is lost and counted.
    Result<std::vector<UnreadDatagram>> rest_datagrams(std::uint32_t record, std::uint32_t generation);
    static constexpr std::size_t kMostUnread = 1024;
    static constexpr std::size_t kMostUnreadBytes = 1 << 20;
    /// Chunks of ours that somebody else's connection has sent.
    void take_back(stack::SendChunk* first);
    bool has_processes() const { return live_processes_ != 0; }
    /// True when no process is left and nothing of it is in the stack any more: it may be destroyed.
    bool finished() const;
    TenantSnapshot snapshot();

    // --- the turn ---------------------------------------------------------------------------------------------------
    /// True when poll() would find something: the second look before sleeping.
    bool has_requests() { return dirty_.any() || starved_left_ != 0; }
    /// When poll() has to be called even without a request; kNever usually.
    Instant next_check() const { return next_check_; }
    /// Looks at dirty sockets, some hundred at most: then it is the turn of others. Returns how many there were.
    std::uint32_t poll(Instant now);
    /// Publishes what has changed in this turn and wakes who waits for it.
    void deliver_events();
    /// The flag that tells the applications whether the engine must be woken (shm/wakeup.h).
    std::atomic<std::uint32_t>& engine_asleep() { return segment_.header().engine_asleep; }

private:
    friend class StreamSocket;
    friend class ListenSocket;
    friend class DatagramSocket;
    friend class MessageLane;
    friend class RawSocket;
    class OrphanOwner;
    enum class Kind : std::uint8_t { kFree, kIdle, kStream, kListener, kDatagram, kRaw, kMoved };
    struct Slot;

    void look(std::uint32_t index, Instant now);
    void run_operation(std::uint32_t index, std::uint32_t sequence, Instant now);
    int start_connect(std::uint32_t index, const shm::WireEndpoint& local, const shm::WireEndpoint& remote, Instant now);
    int start_listen(std::uint32_t index, const shm::WireEndpoint& local, std::uint32_t backlog);
    int rest(std::uint32_t index);
    int start_datagram(std::uint32_t index, const shm::WireEndpoint& local, const shm::WireEndpoint& remote,
                       std::uint32_t argument, Instant now);
    int refuse_by_policy();
    int wake_datagrams(std::uint32_t index, Instant now);
    DatagramSocket* datagram_to_rest(std::uint32_t index, std::uint32_t generation);
    int connect_datagram(std::uint32_t index, const shm::WireEndpoint& remote, Instant now);
    int change_group(std::uint32_t index, stack::udp::GroupChange change, std::uint32_t interface,
                     const shm::WireEndpoint& group, const shm::WireEndpoint& source);
    int bind_raw(std::uint32_t index, const shm::WireEndpoint& local, std::uint32_t kind);
    int filter_types(std::uint32_t index, const shm::WireEndpoint& low, const shm::WireEndpoint& high);
    int set_checksum_offset(std::uint32_t index, std::uint32_t offset);
    int connect_raw(std::uint32_t index, const shm::WireEndpoint& remote);
    int route_raw(std::uint32_t index, const shm::WireEndpoint& local, const shm::WireEndpoint& remote);
    int route(std::uint32_t index, const shm::WireEndpoint& local, const shm::WireEndpoint& remote, Instant now);
    int route_datagram(std::uint32_t index, const shm::WireEndpoint& local, const shm::WireEndpoint& remote);
    stack::tcp::Options read_options(std::uint32_t index);
    stack::tcp::ListenerOptions read_listener_options(std::uint32_t index);

    /// 127.0.0.1 is the program's own only in our network namespace.
    bool may_reach(const Address& address) const { return permissions_.loopback || !address.is_loopback(); }
    bool permits(shm::Policy::Protocol protocol, shm::Policy::Call call, const Endpoint& endpoint) const;
    std::uint32_t allocate_record();
    void free_record(std::uint32_t index);
    void reset_record(std::uint32_t index);
    void close_socket(std::uint32_t index);
    bool held_by_live_process(std::uint32_t index);
    void mark_changed(std::uint32_t index);
    void tell_another(std::uint32_t listener);
    void publish(std::uint32_t index);
    void notify(std::uint32_t index, std::uint32_t app_flags);
    void wake_later(std::uint32_t queue);
    void wake_starved();
    void tell_starved();
    bool has_transmit_blocks();
    void drop(Drop reason);
    stack::tcp::ConnectionOwner* orphan() const;
    void apply_options(std::uint32_t index);
    void refuse_waiting(std::uint32_t index, stack::tcp::ListenerOwner* heir);
    void close_listener(std::uint32_t index);
    void shut_listener(std::uint32_t index);
    void close_unheld(bool only_suspects);
    void release_locks(std::uint32_t slot);
    void refresh_info(std::uint32_t index);
    SocketSnapshot snapshot_of(std::uint32_t index);

    std::uint32_t id_;
    std::string program_;
    shm::Segment segment_;
    stack::Stack& stack_;
    Counters& counters_;     // of the engine
    Counters own_counters_;  // of this tenant
    BlockLedger ledger_;
    shm::ReadyBitmap dirty_;
    std::unique_ptr<OrphanOwner> orphan_;
    std::unique_ptr<Slot[]> slots_;
    std::vector<std::uint32_t> free_records_;    // of the daemon's range
    std::vector<std::uint32_t> free_accept_queues_;
    std::vector<std::uint32_t> changed_;         // records to publish at the end of the turn
    std::vector<UniqueFd> queue_fds_;            // by queue; empty: unused
    std::vector<std::uint32_t> queues_to_wake_;  // at the end of deliver_events
    std::vector<std::uint32_t> records_to_wake_;
    std::vector<std::uint32_t> queue_process_;   // by queue: the slot that made it
    SendLimits send_limits_;
    Permissions permissions_;
    Commons& commons_;
    Part connections_;                           // in the stack: with a socket, or orphans
    Part listeners_;
    Part datagram_sockets_;
    std::vector<std::uint32_t> raw_grants_;      // kinds of raw sockets that may be made
    std::unordered_map<std::uint32_t, std::unique_ptr<RawSocket>> raw_sockets_;  // by record: few, so not in the slots
    struct Moved {
        UniqueFd theirs;  // the other end of the stand-in, for others of the program that hold the record
        StandIns* all = nullptr;
    };
    void forget_moved(std::uint32_t index);
    std::unordered_map<std::uint32_t, Moved> moved_;  // by record of kMoved
    std::uint32_t queues_used_ = 0;              // highest used + 1
    std::vector<bool> live_;                     // by process slot; the record in the segment only mirrors it
    std::uint32_t processes_used_ = 0;           // highest used + 1
    std::uint32_t live_processes_ = 0;
    std::uint32_t next_exclusive_ = 0;
    std::uint32_t next_request_ = 0;             // word of dirty_ to go on with
    std::uint32_t starved_left_ = 0;             // so many records are still to be told of blocks that came back,
    std::uint32_t starved_next_ = 0;             // from this one on
    std::uint32_t orphans_ = 0;                  // closed connections that the stack still works on; no more than sockets
    Instant next_check_ = kNever;                // of the suspects
};

}  // namespace culvert::tenant
