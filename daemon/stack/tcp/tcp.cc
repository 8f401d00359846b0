#include "daemon/stack/tcp/tcp.h"

#include <optional>

#include "daemon/base/prefetch.h"
#include "daemon/stack/tcp/half_open.h"
#include "daemon/stack/tcp/listener.h"
#include "daemon/stack/tcp/segment_run.h"
#include "daemon/stack/tcp/shared.h"
#include "daemon/wire/ethernet.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"

namespace culvert::stack::tcp {

// An idle connection costs the daemon no more than 512 bytes: itself and its share of the flow table (8 bytes a slot, a
// fifth to two thirds of them in use), and nothing in the other pools.
static_assert(sizeof(Connection) <= 480);

class TcpImpl {
public:
    TcpImpl(const StackConfig& config, IpOutput& output, PortOwner& ports, Counters& counters, Rng& rng, Peers* peers)
        : shared_(config, output, ports, counters, rng, sizeof(Connection), sizeof(Sending), peers),
          syn_queue_(shared_),
          listeners_(config.max_listeners) {}
    ~TcpImpl();

    void input(const IpPacket& packet, Instant now);
    std::size_t input_run(IpPacket& first, RxPacket& whole, std::span<const RxPacket> frames, Instant now);
    void expect(std::span<const RxPacket> frames);
    bool icmp_error(const IcmpError& error, const IpPacket* message, Instant now);
    void advance(Instant now);
    void flush(Instant now);
    Instant next_deadline() const;
    Result<Listener*> listen(const Endpoint& local, bool dual, const ListenerOptions& options, ListenerOwner& owner);
    ListenerOwner* heir_of(const Listener& listener) const {
        const Listener* const heir = listeners_.heir_of(listener);
        return heir == nullptr ? nullptr : &heir->owner();
    }
    void close(Listener& listener);
    bool is_listening(const Endpoint& local) const { return listeners_.find(local, 0) != nullptr; }
    Result<Connection*> connect(const Endpoint& local, const Endpoint& remote, const Options& options,
                                ConnectionOwner& owner, Instant now);
    Port port_for(const Address& local, const Endpoint& remote, Instant now);
    Result<void> probe_dead_flow(const Endpoint& local, const Endpoint& remote, Instant now);
    Usage usage() const {
        return {.connections = shared_.connections.used(),
                .half_open = syn_queue_.size(),
                .time_wait = shared_.time_wait.size(),
                .flows = shared_.flows.size(),
                .reassembly_pieces = shared_.reassembly.used(),
                .sack_boards = shared_.sacks.used(),
                .bbr_models = shared_.bbr_models.used(),
                .flight_pieces = shared_.flights.used(),
                .senders = shared_.senders.used(),
                .mtu_searches = shared_.mtu_searches.used(),
                .options = shared_.options.used(),
                .ports = static_cast<std::uint32_t>(shared_.ports.size())};
    }

private:
    /// Fewer flows stay in the caches by themselves.
    static constexpr std::uint32_t kManyFlows = 512;

    std::uint32_t flow_hash(const Endpoint& local, const Endpoint& remote) const {
        return static_cast<std::uint32_t>(shared_.hash(local, remote));
    }
    void dispatch(FlowRef flow, const Segment& segment, std::uint32_t hash, Instant now);
    FlowRef find(std::uint32_t hash, const Endpoint& local, const Endpoint& remote);
    Connection& connection(std::uint32_t index) {
        return *reinterpret_cast<Connection*>(shared_.connections.at(index));
    }
    bool passed_on(const Segment& segment, std::uint32_t hash);
    void input_unmatched(const Segment& segment, std::uint32_t hash, std::optional<std::uint32_t> minimum_iss,
                         Instant now);
    void destroy(Connection& connection) {
        const std::uint32_t index = shared_.connections.index_of(&connection);
        connection.~Connection();
        shared_.connections.release(index);
    }

    Shared shared_;
    SynQueue syn_queue_;
    ListenerTable listeners_;
};

/// Owners are not told: the stack outlives them or goes with them.
TcpImpl::~TcpImpl() {
    shared_.flows.for_each([&](FlowRef ref) {
        if (ref.kind == FlowRef::Kind::kConnection) connection(ref.index).discard();
    });
    while (shared_.marked != nullptr) {
        Connection& next = *shared_.marked;
        shared_.marked = next.unmark();
        if (next.ended()) destroy(next);
    }
}

FlowRef TcpImpl::find(std::uint32_t hash, const Endpoint& local, const Endpoint& remote) {
    return shared_.flows.find(hash, [&](FlowRef ref) {
        switch (ref.kind) {
            case FlowRef::Kind::kConnection: return connection(ref.index).matches(local, remote);
            case FlowRef::Kind::kHalfOpen: return syn_queue_.matches(ref.index, local, remote);
            case FlowRef::Kind::kTimeWait: return shared_.time_wait.matches(ref.index, local, remote);
            case FlowRef::Kind::kNone: break;
        }
        return false;
    });
}

namespace {

/// The flow of a frame that carries TCP behind nothing but Ethernet and a bare IP header. Only a guess of what the way in
/// will find: nothing is proved, so nothing but prefetching may follow from it.
bool read_flow(std::span<const std::byte> frame, Endpoint& local, Endpoint& remote) {
    constexpr std::size_t kIp = wire::kEthernetHeaderLength;
    if (frame.size() < kIp + wire::kIpv4HeaderLength + wire::kTcpHeaderLength) return false;
    const std::byte* const ip = frame.data() + kIp;
    const auto type = static_cast<wire::EtherType>(wire::load_be16(frame.data() + 12));
    constexpr auto kTcp = static_cast<std::uint8_t>(wire::IpProtocol::kTcp);
    const std::byte* ports = ip + wire::kIpv4HeaderLength;
    if (type == wire::EtherType::kIpv4) {
        if (wire::load_8(ip) != 0x45 || wire::load_8(ip + 9) != kTcp) return false;
        remote.address = Address::from_v4(std::span<const std::byte, 4>(ip + 12, 4));
        local.address = Address::from_v4(std::span<const std::byte, 4>(ip + 16, 4));
    } else if (type == wire::EtherType::kIpv6) {
        if (frame.size() < kIp + wire::kIpv6HeaderLength + 4 || wire::load_8(ip + 6) != kTcp) return false;
        remote.address = Address::from_v6(std::span<const std::byte, 16>(ip + 8, 16));
        local.address = Address::from_v6(std::span<const std::byte, 16>(ip + 24, 16));
        ports = ip + wire::kIpv6HeaderLength;
    } else {
        return false;
    }
    remote.port = wire::load_be16(ports);
    local.port = wire::load_be16(ports + 2);
    return true;
}

}  // namespace

void TcpImpl::expect(std::span<const RxPacket> frames) {
    if (shared_.flows.size() < kManyFlows) return;
    DCHECK(frames.size() <= Tcp::kAhead);
    std::uint32_t hashes[Tcp::kAhead];
    std::size_t count = 0;
    for (const RxPacket& frame : frames) {
        Endpoint local, remote;
        if (!read_flow(frame.head, local, remote)) continue;
        hashes[count] = flow_hash(local, remote);
        shared_.flows.expect(hashes[count++]);
    }
    for (std::size_t i = 0; i < count; ++i) {
        const FlowRef flow = shared_.flows.guess(hashes[i]);
        if (flow.kind != FlowRef::Kind::kConnection) continue;
        const std::byte* const at = shared_.connections.at(flow.index);
        for (std::size_t line = 0; line < sizeof(Connection); line += 64) prefetch_line(at + line);
    }
}

void TcpImpl::input(const IpPacket& packet, Instant now) {
    shared_.now = now;
    ++shared_.counters.tcp_segments_in;
    const auto segment = Segment::parse(packet);
    if (!segment) {
        shared_.counters.drop(segment.error());
        return;
    }
    const std::uint32_t hash = flow_hash(segment->local, segment->remote);
    dispatch(find(hash, segment->local, segment->remote), *segment, hash, now);
}

inline void TcpImpl::dispatch(FlowRef flow, const Segment& segment, std::uint32_t hash, Instant now) {
    switch (flow.kind) {
        case FlowRef::Kind::kConnection: connection(flow.index).input(segment, now); return;
        case FlowRef::Kind::kHalfOpen:
            if (Connection* const opened = syn_queue_.on_segment(flow.index, segment, now)) opened->input(segment, now);
            return;
        case FlowRef::Kind::kTimeWait: {
            std::uint32_t minimum_iss = 0;
            const std::uint32_t offset = shared_.timestamp_offset(segment.local, segment.remote);
            if (shared_.time_wait.on_segment(flow.index, segment, offset, now, minimum_iss) ==
                TimeWaitTable::Verdict::kReuse) {
                if (shared_.peers != nullptr) shared_.peers->look_again();
                input_unmatched(segment, hash, minimum_iss, now);
            }
            return;
        }
        case FlowRef::Kind::kNone: input_unmatched(segment, hash, std::nullopt, now); return;
    }
}

/// Only what a connection gets in order is merged: what begins one, ends one, draws duplicate ACKs or belongs to another
/// engine is looked at by itself.
std::size_t TcpImpl::input_run(IpPacket& first, RxPacket& whole, std::span<const RxPacket> frames, Instant now) {
    shared_.now = now;
    ++shared_.counters.tcp_segments_in;
    auto segment = Segment::parse(first);
    if (!segment) {
        shared_.counters.drop(segment.error());
        return 1;
    }
    const std::uint32_t hash = flow_hash(segment->local, segment->remote);
    const FlowRef flow = find(hash, segment->local, segment->remote);
    SegmentRun run;
    std::size_t count = 1;
    if (flow.kind == FlowRef::Kind::kConnection && connection(flow.index).merges(*segment)) {
        const std::uint32_t alone = first.transport_length;
        count = run.gather(first, whole, frames);
        segment->payload_length += first.transport_length - alone;
        shared_.counters.tcp_segments_in += count - 1;
        shared_.counters.tcp_segments_merged += count - 1;
    }
    dispatch(flow, *segment, hash, now);
    return count;
}

/// Several engines: is the segment another's? What begins a connection is for the one that has the flow (half-open, in
/// TIME-WAIT), then for whoever listens; so is an ACK, which may bring a cookie back.
bool TcpImpl::passed_on(const Segment& segment, std::uint32_t hash) {
    if (shared_.peers->pass_to_owner(segment.ip, hash, true)) return true;
    return !segment.flags.rst() && listeners_.find(segment.local, hash) == nullptr &&
           shared_.peers->pass_to_listener(segment.ip, PortOwner::Protocol::kTcp, segment.local.port, true);
}

/// LISTEN and CLOSED. [RFC9293 3.10.7.1, 3.10.7.2]
void TcpImpl::input_unmatched(const Segment& segment, std::uint32_t hash, std::optional<std::uint32_t> minimum_iss,
                              Instant now) {
    if (shared_.peers != nullptr && passed_on(segment, hash)) return;
    if (segment.flags.rst()) {
        shared_.counters.drop(Drop::kTcpStrayReset);
        return;
    }
    if (segment.flags.syn() && !segment.flags.ack()) {
        if (Listener* const listener = listeners_.find(segment.local, hash)) {
            syn_queue_.on_syn(segment, hash, *listener, minimum_iss, now);
            return;
        }
    } else if (segment.flags.ack() && !segment.flags.syn()) {
        Listener* const listener = listeners_.find(segment.local, hash);
        Connection* opened = nullptr;
        if (listener != nullptr && syn_queue_.on_cookie(segment, hash, *listener, opened, now)) {
            if (opened != nullptr) opened->input(segment, now);
            return;
        }
    }
    // What comes late, or twice, from a connection that has ended is no sign that somebody missed a listener.
    const bool listens = !segment.flags.syn() && listeners_.find(segment.local, hash) != nullptr;
    if (listens && shared_.ports.is_elsewhere(segment.local, segment.remote)) {  // sent again, it will find its connection
        shared_.counters.drop(Drop::kTcpElsewhere);
        return;
    }
    shared_.counters.drop(listens ? Drop::kTcpStray : Drop::kTcpNoListener);
    shared_.output.send_reset(segment, now);
}

bool TcpImpl::icmp_error(const IcmpError& error, const IpPacket* message, Instant now) {
    shared_.now = now;
    const std::uint32_t hash = flow_hash(error.local, error.remote);
    const FlowRef flow = find(hash, error.local, error.remote);
    if (!flow && shared_.peers != nullptr && message != nullptr &&
        shared_.peers->pass_to_owner(*message, hash, false))
        return false;
    if (flow.kind != FlowRef::Kind::kConnection) {
        // A half-open connection's SYN-ACK is repeated, TIME-WAIT has nothing in flight.
        if (message != nullptr) shared_.counters.drop(Drop::kIcmpUnmatched);
        return false;
    }
    const std::uint64_t believed = shared_.counters.icmp_in;
    connection(flow.index).on_icmp_error(error, now);
    return shared_.counters.icmp_in != believed;
}

void TcpImpl::advance(Instant now) {
    shared_.now = now;
    shared_.wheel.advance(now, [&](TimerNode& node) -> Instant {
        switch (node.kind()) {
            case kConnectionTimer: return static_cast<Connection&>(node).on_timer(now);
            case kHalfOpenTimer: return syn_queue_.on_timer(static_cast<HalfOpen&>(node), now);
            default: return shared_.time_wait.on_timer(now);
        }
    });
}

void TcpImpl::flush(Instant now) {
    shared_.now = now;
    // Who is marked meanwhile (no frame, a long burst) has its turn at the next flush.
    Connection* next = std::exchange(shared_.marked, nullptr);
    shared_.last_marked = nullptr;
    while (next != nullptr) {
        Connection& current = *next;
        next = current.unmark();
        if (!current.ended()) current.output(now);
        if (current.ended() && !current.marked()) destroy(current);
    }
}

Instant TcpImpl::next_deadline() const {
    return shared_.marked != nullptr ? Instant::min() : shared_.wheel.next_deadline();
}

/// [RFC9293 3.9.1.1 MUST-41, MUST-42] Listeners stand in a table of their own, which connections do not look at.
Result<Listener*> TcpImpl::listen(const Endpoint& local, bool dual, const ListenerOptions& options, ListenerOwner& owner) {
    Listener* const listener = listeners_.add(local, dual, options, owner);
    if (listener == nullptr) return fail(ENOBUFS, "listen: too many listeners");
    if (shared_.peers != nullptr) shared_.peers->bound(PortOwner::Protocol::kTcp, local, dual);
    shared_.ports.take(local);
    if (dual) shared_.ports.take({Address::any(Family::kIpv4), local.port});
    return listener;
}

void TcpImpl::close(Listener& listener) {
    Listener* const heir = listeners_.heir_of(listener);
    if (heir != nullptr) heir->cookies_until = std::max(heir->cookies_until, listener.cookies_until);
    syn_queue_.forget(listener, heir);
    shared_.fast_open_pending.forget(listener);
    const Endpoint local = listener.local();
    const bool dual = listener.dual();
    listeners_.remove(listener);
    shared_.ports.release(local);
    if (dual) shared_.ports.release({Address::any(Family::kIpv4), local.port});
    if (shared_.peers != nullptr) shared_.peers->unbound(PortOwner::Protocol::kTcp, local, dual);
}

/// [RFC9293 3.9.1.1 MUST-43, MUST-45] `local` is what the application has bound or source_for() has chosen; it stays.
Result<Connection*> TcpImpl::connect(const Endpoint& local, const Endpoint& remote, const Options& options,
                                     ConnectionOwner& owner, Instant now) {
    shared_.now = now;
    const Path path = TRY(shared_.ip.find_path(local.address, remote.address, now));
    // [RFC9293 3.9.1.1 MUST-46] a connection has one peer: no broadcast, no group
    if (path.resolved && path.mac.is_multicast()) return fail(ENETUNREACH, "connect: to many");
    const std::uint32_t hash = flow_hash(local, remote);
    std::uint32_t iss = shared_.isn.generate(local, remote, now);
    std::uint32_t ts_recent = 0;
    if (const FlowRef flow = find(hash, local, remote)) {
        if (flow.kind != FlowRef::Kind::kTimeWait || !shared_.time_wait.give_way(flow.index, now, iss, ts_recent))
            return fail(EADDRINUSE, "connect: the flow exists");
    }
    const std::uint32_t index = shared_.connections.allocate();
    if (index == LazyPool::kNone) {
        shared_.counters.drop(Drop::kTcpConnectionLimit);
        return fail(ENOBUFS, "connect: connection table full");
    }
    if (const auto inserted = shared_.flows.insert(hash, {FlowRef::Kind::kConnection, index});
        inserted != FlowTable::Inserted::kYes) {
        shared_.connections.release(index);
        // A program that has ended may have left the flow in TIME-WAIT on another engine, which cannot be asked here.
        if (inserted == FlowTable::Inserted::kElsewhere) return fail(EADDRINUSE, "connect: another engine has the flow");
        shared_.counters.drop(Drop::kTcpConnectionLimit);
        return fail(ENOBUFS, "connect: flow table full");
    }
    auto* const opened = new (shared_.connections.at(index)) Connection(shared_, local, remote, hash, options);
    shared_.ports.take(local);
    ++shared_.counters.tcp_active_opens;
    opened->open(owner, path, iss, ts_recent, now);
    return opened;
}

/// [RFC6056 3.3.1] A client that closes its connections itself has most ports to a busy server in TIME-WAIT, of which only those
/// younger than a second are of no use: eight guesses find another one as good as always.
Port TcpImpl::port_for(const Address& local, const Endpoint& remote, Instant now) {
    constexpr int kGuesses = 8;
    const Port low = shared_.config.first_port;
    if (low == 0 || shared_.config.last_port < low) return 0;
    for (int i = 0; i < kGuesses; ++i) {
        const auto port = static_cast<Port>(low + shared_.rng.below(std::uint64_t{shared_.config.last_port} - low + 1));
        const Endpoint from{local, port};
        const FlowRef flow = find(flow_hash(from, remote), from, remote);
        if (!flow || (flow.kind == FlowRef::Kind::kTimeWait && shared_.time_wait.gives_way(flow.index, now))) return port;
    }
    return 0;
}

/// Whatever its numbers are, a bare ACK out of the window is answered with an ACK that bears the right ones [RFC9293 3.10.7.4
/// first], and the reset that this brings is exact. Numbers are random: those that fall into the window by chance are others
/// the next time. Two of them, since a timestamp must go along for those who drop what has none [RFC7323 3.2], and some (Linux 6.14,
/// FreeBSD) drop a bare ACK with an old one without a word: of two timestamps half the numbers apart one is not old.
Result<void> TcpImpl::probe_dead_flow(const Endpoint& local, const Endpoint& remote, Instant now) {
    shared_.now = now;
    if (local.port == 0 || remote.port == 0 || remote.address.is_unspecified() || remote.address.is_loopback())
        return fail(EINVAL, "probe: no flow of the network's");
    if (!shared_.ip.is_local(local.address) || shared_.ip.is_local(remote.address)) return fail(EADDRNOTAVAIL, "probe: not between us and others");
    const std::uint32_t hash = flow_hash(local, remote);
    if (find(hash, local, remote)) return fail(EISCONN, "probe: the flow lives");
    if (shared_.peers != nullptr) {  // asked by taking it for a moment
        if (!shared_.peers->flow_began(hash, false)) return fail(EISCONN, "probe: the flow lives with another engine");
        shared_.peers->flow_ended(hash);
    }
    const Path path = TRY(shared_.ip.find_path(local.address, remote.address, now));
    if (path.resolved && path.mac.is_multicast()) return fail(ENETUNREACH, "probe: to many");
    for (const std::uint32_t half : {0u, 0x80000000u}) {
        const wire::TcpHeader header{.source = local.port,
                                     .destination = remote.port,
                                     .sequence = static_cast<std::uint32_t>(shared_.rng.next()),
                                     .acknowledgment = static_cast<std::uint32_t>(shared_.rng.next()),
                                     .flags = wire::kAck,
                                     .window = UINT16_MAX};
        wire::TcpOptions options;
        options.timestamps = {.value = SegmentOutput::timestamp(now) + half, .echo = 0};
        if (!shared_.output.send_once(local, remote, header, options, now)) return fail(ENOBUFS, "probe");
    }
    ++shared_.counters.tcp_dead_flow_probes;
    return {};
}

Tcp::Tcp(const StackConfig& config, IpOutput& output, PortOwner& ports, Counters& counters, Rng& rng, Peers* peers)
    : impl_(std::make_unique<TcpImpl>(config, output, ports, counters, rng, peers)) {}
Tcp::~Tcp() = default;
void Tcp::input(const IpPacket& packet, Instant now) { impl_->input(packet, now); }
std::size_t Tcp::input_run(IpPacket& first, RxPacket& whole, std::span<const RxPacket> frames, Instant now) {
    return impl_->input_run(first, whole, frames, now);
}
void Tcp::expect(std::span<const RxPacket> frames) { impl_->expect(frames); }
bool Tcp::icmp_error(const IcmpError& error, const IpPacket* message, Instant now) { return impl_->icmp_error(error, message, now); }
void Tcp::advance(Instant now) { impl_->advance(now); }
void Tcp::flush(Instant now) { impl_->flush(now); }
Instant Tcp::next_deadline() const { return impl_->next_deadline(); }
Result<Listener*> Tcp::listen(const Endpoint& local, bool dual, const ListenerOptions& options, ListenerOwner& owner) {
    return impl_->listen(local, dual, options, owner);
}
ListenerOwner* Tcp::heir_of(const Listener& listener) const { return impl_->heir_of(listener); }
void Tcp::close(Listener& listener) { impl_->close(listener); }
bool Tcp::is_listening(const Endpoint& local) const { return impl_->is_listening(local); }
Result<Connection*> Tcp::connect(const Endpoint& local, const Endpoint& remote, const Options& options,
                                 ConnectionOwner& owner, Instant now) {
    return impl_->connect(local, remote, options, owner, now);
}
Port Tcp::port_for(const Address& local, const Endpoint& remote, Instant now) { return impl_->port_for(local, remote, now); }
Result<void> Tcp::probe_dead_flow(const Endpoint& local, const Endpoint& remote, Instant now) {
    return impl_->probe_dead_flow(local, remote, now);
}
Usage Tcp::usage() const { return impl_->usage(); }

}  // namespace culvert::stack::tcp
