// Tenant: the operations that need an answer (connect, listen, bind ...), options, and the snapshot for `culvert ss`.

#include <netinet/in.h>

#include <algorithm>
#include <cstring>

#include "daemon/tenant/sockets.h"
#include "shm/base/fault_point.h"

namespace culvert::tenant {

Endpoint from_wire(const shm::WireEndpoint& wire) {
    return {Address::from_v6(std::as_bytes(std::span<const std::uint8_t, 16>(wire.address))), wire.port};
}

shm::Policy::Protocol protocol_of_raw(std::uint32_t kind) {
    const std::uint32_t number = kind & 0xff;
    const bool icmp = (kind & shm::kRawPing) != 0 || number == IPPROTO_ICMP || number == IPPROTO_ICMPV6;
    return icmp ? shm::Policy::Protocol::kIcmp : shm::Policy::Protocol::kRaw;
}

shm::WireEndpoint to_wire(const Endpoint& endpoint, std::uint16_t family) {
    shm::WireEndpoint wire{};
    std::memcpy(wire.address, endpoint.address.bytes().data(), sizeof wire.address);
    wire.port = endpoint.port;
    wire.family = family;
    return wire;
}

bool Tenant::permits(shm::Policy::Protocol protocol, shm::Policy::Call call, const Endpoint& endpoint) const {
    if (!may_reach(endpoint.address)) return false;
    if (permissions_.policy == nullptr) return true;
    shm::Policy::AddressBytes bytes;
    std::ranges::copy(endpoint.address.bytes(), bytes);
    return permissions_.policy->allows(protocol, call, bytes, endpoint.port);
}

void Tenant::run_operation(std::uint32_t index, std::uint32_t sequence, Instant now) {
    shm::SocketRecord& record = segment_.socket(index);
    const auto code = static_cast<shm::Operation>(record.operation.code.load(std::memory_order_relaxed));
    const std::uint32_t argument = record.operation.argument.load(std::memory_order_relaxed);
    const shm::WireEndpoint local = record.operation.local;
    const shm::WireEndpoint remote = record.operation.remote;
    int result = EINVAL;
    CULVERT_FAULT_POINT(operation_read);
    switch (code) {
        case shm::Operation::kRoute: result = route(index, local, remote, now); break;
        case shm::Operation::kConnect: result = start_connect(index, local, remote, now); break;
        case shm::Operation::kListen: result = start_listen(index, local, argument); break;
        case shm::Operation::kRest: result = rest(index); break;
        case shm::Operation::kBindDatagram: result = start_datagram(index, local, remote, argument, now); break;
        case shm::Operation::kConnectDatagram: result = connect_datagram(index, remote, now); break;
        case shm::Operation::kBindRaw: result = bind_raw(index, local, argument); break;
        case shm::Operation::kFilterTypes: result = filter_types(index, local, remote); break;
        case shm::Operation::kChecksumOffset: result = set_checksum_offset(index, argument); break;
        case shm::Operation::kRefreshInfo:
            refresh_info(index);
            result = 0;
            break;
        case shm::Operation::kOwnAddress:
            result = stack_.is_dedicated(from_wire(remote).address) ? 0 : EADDRNOTAVAIL;
            break;
        case shm::Operation::kJoinGroup:
        case shm::Operation::kLeaveGroup:
        case shm::Operation::kJoinSource:
        case shm::Operation::kLeaveSource:
        case shm::Operation::kBlockSource:
        case shm::Operation::kUnblockSource:
            result = change_group(index,
                                  static_cast<stack::udp::GroupChange>(static_cast<std::uint32_t>(code) -
                                                                       static_cast<std::uint32_t>(shm::Operation::kJoinGroup)),
                                  argument, remote, local);
            break;
        case shm::Operation::kNone:
        default: drop(Drop::kTenantBadRequest); break;
    }
    CULVERT_FAULT_POINT(operation_done);
    Slot& slot = slots_[index];
    slot.operation_done = sequence;
    record.daemon.operation_result.store(result, std::memory_order_relaxed);
    record.daemon.operation_done.store(sequence, std::memory_order_release);
    slot.answered = true;
    mark_changed(index);
}

int Tenant::refuse_by_policy() {
    drop(Drop::kTenantPolicy);
    return EPERM;
}

int Tenant::route(std::uint32_t index, const shm::WireEndpoint& local, const shm::WireEndpoint& remote, Instant now) {
    const std::uint32_t protocol = segment_.socket(index).protocol.load(std::memory_order_relaxed);
    if (slots_[index].kind == Kind::kRaw || protocol == IPPROTO_RAW) return route_raw(index, local, remote);
    const bool datagram = slots_[index].kind == Kind::kDatagram || protocol == IPPROTO_UDP;
    if (datagram) return route_datagram(index, local, remote);
    if (!may_reach(from_wire(remote).address)) return EHOSTUNREACH;
    if (!permits(shm::Policy::Protocol::kTcp, shm::Policy::Call::kConnect, from_wire(remote))) return refuse_by_policy();
    const auto source = stack_.source_for(from_wire(remote));
    if (!source) return source.error().code;
    segment_.socket(index).local = to_wire({*source, stack_.port_for(*source, from_wire(remote), now)}, remote.family);
    return 0;
}

int Tenant::route_datagram(std::uint32_t index, const shm::WireEndpoint& local, const shm::WireEndpoint& remote) {
    const Address from = from_wire(local).address;
    if (!from.is_unspecified() && (!stack_.is_local(from) || !may_reach(from))) return EADDRNOTAVAIL;
    if (!may_reach(from_wire(remote).address)) return EHOSTUNREACH;
    const Slot& slot = slots_[index];
    shm::SocketRecord& record = segment_.socket(index);
    const auto route = stack_.route_datagram(slot.kind == Kind::kDatagram ? slot.datagram->socket : nullptr,
                                             from_wire(remote), remote.interface);
    if (!route) return route.error().code;
    if (route->broadcast && (record.options.flags & shm::kOptionBroadcast) == 0) return EACCES;
    record.local = to_wire({route->source, 0}, remote.family);
    record.info.path_mtu = route->mtu;
    return 0;
}

int Tenant::change_group(std::uint32_t index, stack::udp::GroupChange change, std::uint32_t interface,
                         const shm::WireEndpoint& group, const shm::WireEndpoint& source) {
    Slot& slot = slots_[index];
    if (slot.kind == Kind::kRaw) {
        const auto changed = stack_.change_group(*raw_sockets_.at(index)->socket(), change, interface, from_wire(group).address,
                                                 from_wire(source).address);
        return changed ? 0 : changed.error().code;
    }
    if (slot.kind != Kind::kDatagram) return EINVAL;
    if (slot.datagram->socket == nullptr) return EINVAL;  // it rests
    const auto changed = stack_.change_group(*slot.datagram->socket, change, interface, from_wire(group).address,
                                             from_wire(source).address);
    return changed ? 0 : changed.error().code;
}

int Tenant::start_connect(std::uint32_t index, const shm::WireEndpoint& local, const shm::WireEndpoint& remote,
                          Instant now) {
    Slot& slot = slots_[index];
    if (slot.kind == Kind::kStream && slot.stream.connection() != nullptr) return EISCONN;
    if (slot.kind != Kind::kIdle && slot.kind != Kind::kStream) return EINVAL;
    const Endpoint from = from_wire(local);
    const Endpoint to = from_wire(remote);
    if (from.port == 0 || to.port == 0 || !stack_.is_local(from.address)) {
        drop(Drop::kTenantBadAddress);
        return EADDRNOTAVAIL;
    }
    if (!permits(shm::Policy::Protocol::kTcp, shm::Policy::Call::kConnect, to) || !may_reach(from.address)) return refuse_by_policy();
    if (!connections_.grants()) {
        drop(Drop::kTenantConnectionShare);
        return ENOBUFS;
    }
    apply_options(index);
    auto connection = stack_.connect(from, to, read_options(index), slot.stream, now);
    if (!connection) return connection.error().code;
    connections_.take();
    shm::SocketRecord& record = segment_.socket(index);
    record.local = local;
    record.remote = remote;
    slot.kind = Kind::kStream;
    // With a Fast Open cookie the SYN waits for data, so the application is told to write.
    slot.stream.open(**connection, (*connection)->awaits_first_data() ? shm::kStatusReady : shm::kStatusConnecting);
    return 0;
}

int Tenant::start_listen(std::uint32_t index, const shm::WireEndpoint& local, std::uint32_t backlog) {
    Slot& slot = slots_[index];
    backlog = std::clamp<std::uint32_t>(backlog, 1, shm::kAcceptQueueLength);
    if (slot.kind == Kind::kListener) {
        slot.listen->set_backlog(backlog);
        if (slot.listen->listener != nullptr) return 0;
    } else if (slot.kind != Kind::kIdle) {
        return EINVAL;
    }
    const Endpoint at = from_wire(local);
    if (at.port == 0) return EINVAL;
    if (!at.address.is_unspecified() && (!stack_.is_local(at.address) || !may_reach(at.address))) return EADDRNOTAVAIL;
    if (!permits(shm::Policy::Protocol::kTcp, shm::Policy::Call::kListen, at)) return refuse_by_policy();
    std::unique_ptr<ListenSocket> listen = std::move(slot.listen);  // one that was shut has its queue
    if (listen == nullptr) {
        if (free_accept_queues_.empty() || !listeners_.grants()) {
            drop(Drop::kTenantListenerShare);
            return ENOBUFS;
        }
        const std::uint32_t queue = free_accept_queues_.back();
        free_accept_queues_.pop_back();
        listen = std::make_unique<ListenSocket>(*this, index, queue, backlog);
        segment_.socket(index).accept_queue.store(queue, std::memory_order_relaxed);
    }
    shm::SocketRecord& record = segment_.socket(index);
    apply_options(index);
    const bool dual = !at.address.is_v4() && (record.options.flags & shm::kOptionV6Only) == 0;
    auto listener = stack_.listen(at, dual, read_listener_options(index), *listen);
    if (!listener) {
        if (slot.kind == Kind::kListener) slot.listen = std::move(listen);
        return listener.error().code;
    }
    listen->listener = *listener;
    record.local = local;
    record.daemon.status.store(shm::kStatusReady, std::memory_order_release);
    slot.listen = std::move(listen);
    slot.kind = Kind::kListener;
    return 0;
}

/// The program has passed its listener on and waits for no connection itself: whoever does is served, by the kernel or by a record of
/// his own, and none is lost in a queue that nobody looks at.
int Tenant::rest(std::uint32_t index) {
    Slot& slot = slots_[index];
    if (slot.kind != Kind::kListener) return EINVAL;
    if (slot.listen->listener == nullptr) return 0;
    stack_.close(*std::exchange(slot.listen->listener, nullptr));
    segment_.socket(index).daemon.status.fetch_or(shm::kStatusResting, std::memory_order_seq_cst);
    return 0;
}

int Tenant::start_datagram(std::uint32_t index, const shm::WireEndpoint& local, const shm::WireEndpoint& remote,
                           std::uint32_t argument, Instant now) {
    Slot& slot = slots_[index];
    if (slot.kind == Kind::kDatagram && slot.datagram->socket == nullptr) return wake_datagrams(index, now);
    if (slot.kind != Kind::kIdle) return EINVAL;
    const Endpoint at = from_wire(local);
    if (at.port == 0) return EINVAL;
    if (!at.address.is_unspecified() && (!stack_.is_local(at.address) || !may_reach(at.address))) return EADDRNOTAVAIL;
    const bool by_sending = argument == shm::kBoundBySending;
    const bool may = by_sending ? permissions_.policy == nullptr ||
                                      permissions_.policy->possible(shm::Policy::Protocol::kUdp, shm::Policy::Call::kConnect)
                                : permits(shm::Policy::Protocol::kUdp, shm::Policy::Call::kListen, at);
    if (!may) return refuse_by_policy();
    if (!datagram_sockets_.grants()) {
        drop(Drop::kTenantDatagramShare);
        return ENOBUFS;
    }
    auto datagram = std::make_unique<DatagramSocket>(*this, index);
    shm::SocketRecord& record = segment_.socket(index);
    const bool dual = !at.address.is_v4() && (record.options.flags & shm::kOptionV6Only) == 0;
    auto socket = stack_.bind_udp(at, dual, *datagram, local.interface);
    if (!socket) return socket.error().code;
    datagram->socket = *socket;
    datagram->local = at;
    datagram->interface = local.interface;
    datagram->dual = dual;
    datagram->bound_by_sending = by_sending;
    record.local = local;
    record.daemon.status.store(shm::kStatusReady, std::memory_order_release);
    slot.datagram = std::move(datagram);
    slot.kind = Kind::kDatagram;
    slot.datagram->set_options(record.options);
    return remote.port != 0 ? connect_datagram(index, remote, now) : 0;
}

/// One that rested hears again, with the peer that it had; its groups the program joins anew.
int Tenant::wake_datagrams(std::uint32_t index, Instant now) {
    DatagramSocket& datagram = *slots_[index].datagram;
    const Endpoint& at = datagram.local;
    if (!at.address.is_unspecified() && (!stack_.is_local(at.address) || !may_reach(at.address))) return EADDRNOTAVAIL;
    if (!datagram.bound_by_sending && !permits(shm::Policy::Protocol::kUdp, shm::Policy::Call::kListen, at)) return refuse_by_policy();
    auto socket = stack_.bind_udp(at, datagram.dual, datagram, datagram.interface);
    if (!socket) return socket.error().code;
    shm::SocketRecord& record = segment_.socket(index);
    datagram.socket = *socket;
    datagram.set_options(record.options);
    if (datagram.remote.port != 0) stack_.connect_udp(*datagram.socket, &datagram.remote, record.remote.interface);
    datagram.publish_path(now);
    record.daemon.status.fetch_and(~shm::kStatusResting, std::memory_order_seq_cst);
    return 0;
}

int Tenant::connect_datagram(std::uint32_t index, const shm::WireEndpoint& remote, Instant now) {
    Slot& slot = slots_[index];
    if (slot.kind == Kind::kRaw) return connect_raw(index, remote);
    if (slot.kind != Kind::kDatagram) return EINVAL;
    slot.datagram->remote = from_wire(remote);
    segment_.socket(index).remote = remote;
    if (slot.datagram->socket == nullptr) return 0;  // it rests, and will be connected when it wakes
    stack_.connect_udp(*slot.datagram->socket, remote.port != 0 ? &slot.datagram->remote : nullptr, remote.interface);
    slot.datagram->publish_path(now);
    return 0;
}

int Tenant::bind_raw(std::uint32_t index, const shm::WireEndpoint& local, std::uint32_t kind) {
    Slot& slot = slots_[index];
    const Endpoint at = from_wire(local);
    if (slot.kind == Kind::kRaw) {
        if (kind != raw_sockets_.at(index)->kind()) return EINVAL;
        if (!stack_.raw_can_bind(at.address)) return EADDRNOTAVAIL;
        const int error = raw_sockets_.at(index)->bind(at);
        if (error == 0) segment_.socket(index).local = local;
        return error;
    }
    if (slot.kind != Kind::kIdle) return EINVAL;
    // The proof first: who may not have such a socket learns nothing of addresses either.
    const auto grant = std::ranges::find(raw_grants_, kind);
    if (grant == raw_grants_.end()) {
        drop(Drop::kTenantNoGrant);
        return EPERM;
    }
    raw_grants_.erase(grant);
    if (permissions_.policy != nullptr && !permissions_.policy->possible(protocol_of_raw(kind))) return refuse_by_policy();
    if (at.address.is_v4() != ((kind & shm::kRawV6) == 0)) return EINVAL;
    if (!stack_.raw_can_bind(at.address)) return EADDRNOTAVAIL;
    auto raw = std::make_unique<RawSocket>(*this, index, kind);
    if (const int error = raw->bind(at); error != 0) return error;
    shm::SocketRecord& record = segment_.socket(index);
    record.local = local;
    record.daemon.status.store(shm::kStatusReady, std::memory_order_release);
    raw->set_options(record.options);
    raw_sockets_.emplace(index, std::move(raw));
    slot.kind = Kind::kRaw;
    return 0;
}

Result<void> Tenant::grant_raw(std::uint32_t kind) {
    if (raw_grants_.size() + raw_sockets_.size() >= kMaxRawSockets) {
        drop(Drop::kTenantNoSocket);
        return fail(ENOBUFS, "raw sockets");
    }
    raw_grants_.push_back(kind);
    return {};
}

int Tenant::connect_raw(std::uint32_t index, const shm::WireEndpoint& remote) {
    const Address peer = from_wire(remote).address;
    RawSocket& raw = *raw_sockets_.at(index);
    if (!peer.is_unspecified() && peer.is_v4() != raw.local().address.is_v4()) return EINVAL;
    raw.connect(peer);
    segment_.socket(index).remote = remote;
    return 0;
}

int Tenant::filter_types(std::uint32_t index, const shm::WireEndpoint& low, const shm::WireEndpoint& high) {
    if (slots_[index].kind != Kind::kRaw) return EINVAL;
    std::array<std::uint32_t, 8> types;
    std::memcpy(types.data(), low.address, sizeof low.address);
    std::memcpy(types.data() + 4, high.address, sizeof high.address);
    raw_sockets_.at(index)->block_types(types);
    return 0;
}

int Tenant::set_checksum_offset(std::uint32_t index, std::uint32_t offset) {
    if (slots_[index].kind != Kind::kRaw || (offset != shm::kNoIndex && (offset > 0xfffe || offset % 2 != 0))) return EINVAL;
    raw_sockets_.at(index)->set_checksum_offset(offset);
    return 0;
}

int Tenant::route_raw(std::uint32_t index, const shm::WireEndpoint& local, const shm::WireEndpoint& remote) {
    const Address from = from_wire(local).address;
    if (!from.is_unspecified() && !stack_.is_dedicated(from)) return EADDRNOTAVAIL;
    const auto route = stack_.route_raw(from_wire(remote).address, remote.interface);
    if (!route) return route.error().code;
    shm::SocketRecord& record = segment_.socket(index);
    if (route->broadcast && (record.options.flags & shm::kOptionBroadcast) == 0) return EACCES;
    record.local = to_wire({route->source, 0}, remote.family);
    record.info.path_mtu = route->mtu;
    return 0;
}

stack::tcp::Options Tenant::read_options(std::uint32_t index) {
    const shm::SocketOptions raw = segment_.socket(index).options;  // one copy; every value below is bounded
    stack::tcp::Options options;
    options.no_delay = (raw.flags & shm::kOptionNoDelay) != 0;
    options.cork = (raw.flags & shm::kOptionCork) != 0;
    options.keep_alive = (raw.flags & shm::kOptionKeepAlive) != 0;
    options.quick_ack = (raw.flags & shm::kOptionQuickAck) != 0;
    // Bounds as in tcp(7) / net/ipv4/tcp.c: MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL 32767 s, MAX_TCP_KEEPCNT 127.
    options.keep_alive_idle = std::chrono::seconds(std::min(raw.keepalive_idle_s, 32767u));
    options.keep_alive_interval = std::chrono::seconds(std::min<std::uint32_t>(raw.keepalive_interval_s, 32767));
    options.keep_alive_count = std::min<std::uint32_t>(raw.keepalive_count, 127);
    options.fast_open = (raw.flags & shm::kOptionFastOpen) != 0;
    options.user_timeout = std::chrono::milliseconds(raw.user_timeout_ms);
    options.receive_buffer = raw.receive_buffer;
    options.send_buffer = raw.send_buffer;
    options.window_clamp = raw.window_clamp;
    options.max_segment = raw.max_segment;
    if (raw.congestion < stack::tcp::kCongestionCount) options.congestion = static_cast<stack::tcp::Congestion>(raw.congestion);
    options.max_pacing_rate = raw.max_pacing_rate;
    options.tos = raw.tos;
    options.ttl = raw.ttl;
    slots_[index].linger_zero = (raw.flags & shm::kOptionLinger) != 0 && raw.linger_s == 0;
    return options;
}

stack::tcp::ListenerOptions Tenant::read_listener_options(std::uint32_t index) {
    stack::tcp::ListenerOptions options(read_options(index));
    const shm::SocketOptions raw = segment_.socket(index).options;
    // No more than could be accepted at all, and an hour: the longest that Linux makes of any larger number is less.
    options.fast_open_queue = std::min(raw.fast_open_queue, shm::kAcceptQueueLength);
    options.defer_accept = std::chrono::seconds(std::min(raw.defer_accept_s, 3600u));
    return options;
}

void Tenant::refresh_info(std::uint32_t index) {
    const Slot& slot = slots_[index];
    shm::SocketInfo info{};
    info.tcp_state = static_cast<std::uint8_t>(slot.listen != nullptr && slot.listen->listener != nullptr
                                                        ? stack::tcp::State::kListen
                                                        : stack::tcp::State::kClosed);
    if (slot.kind == Kind::kStream && slot.stream.connection() != nullptr) {
        const stack::tcp::Info from = slot.stream.connection()->info();
        const auto us = [](Duration d) {
            return static_cast<std::uint32_t>(std::chrono::duration_cast<std::chrono::microseconds>(d).count());
        };
        const std::uint32_t mss = std::max(from.mss, 1u);
        info.tcp_state = static_cast<std::uint8_t>(from.state);
        info.srtt_us = us(from.srtt);
        info.rttvar_us = us(from.rttvar);
        info.rto_us = us(from.rto);
        info.min_rtt_us = us(from.min_rtt);
        info.cwnd_segments = from.cwnd_bytes / mss;
        info.ssthresh_segments = from.ssthresh_bytes / mss;
        info.mss = info.peer_mss = mss;
        info.path_mtu = from.path_mtu;
        info.unacked_segments = (from.in_flight_bytes + mss - 1) / mss;
        info.retransmits = from.backoffs;
        info.total_retransmits = from.total_retransmits;
        info.receive_space = from.receive_window;
        info.receive_buffer = from.receive_buffer;
        // TCPI_OPT_TIMESTAMPS 1, _SACK 2, _WSCALE 4, _ECN 8, _ECN_SEEN 16, _SYN_DATA 32 (linux/tcp.h)
        info.options = static_cast<std::uint8_t>((from.timestamps ? 1u : 0u) | (from.sack ? 2u : 0u) | (from.window_scaling ? 4u : 0u) |
                       (from.ecn ? 8u : 0u) | (from.ecn_seen ? 16u : 0u) | (from.syn_data ? 32u : 0u));
        info.congestion = static_cast<std::uint8_t>(from.congestion);
        info.ca_state = static_cast<std::uint8_t>(from.ca_state);
        info.pacing_rate = from.pacing_rate;
        info.send_scale = from.send_scale;
        info.receive_scale = from.receive_scale;
    }
    segment_.socket(index).info = info;
}

SocketSnapshot Tenant::snapshot_of(std::uint32_t index) {
    const Slot& slot = slots_[index];
    const shm::SocketRecord& record = segment_.socket(index);
    SocketSnapshot line;
    line.record = index;
    for (std::uint32_t process = 0; process < processes_used_ && line.pid == 0; ++process)
        if (live_[process] && segment_.holders(process).test(index))
            line.pid = segment_.process(process).pid.load(std::memory_order_relaxed);
    line.local = from_wire(record.local);
    line.remote = from_wire(record.remote);
    if (slot.kind == Kind::kListener) {
        line.state = slot.listen->listener != nullptr ? stack::tcp::State::kListen : stack::tcp::State::kClosed;
        line.remote = {Address::any(line.local.address.family()), 0};
        line.receive_queue = slot.listen->waiting();
        line.send_queue = slot.listen->backlog();
    } else if (slot.kind == Kind::kDatagram) {
        line.is_tcp = false;
        line.local = slot.datagram->local;
        line.remote = slot.datagram->remote;
        line.state = line.remote.port != 0 ? stack::tcp::State::kEstablished : stack::tcp::State::kClosed;
    } else if (slot.kind == Kind::kRaw) {
        line.is_tcp = false;
        line.raw_kind = raw_sockets_.at(index)->kind();
        line.local = raw_sockets_.at(index)->local();
        line.remote = {raw_sockets_.at(index)->remote(), 0};
        line.state = raw_sockets_.at(index)->remote().is_unspecified() ? stack::tcp::State::kClosed : stack::tcp::State::kEstablished;
    } else if (slot.kind == Kind::kStream && slot.stream.connection() != nullptr) {
        const stack::tcp::Connection& connection = *slot.stream.connection();
        line.local = connection.local();
        line.remote = connection.remote();
        line.info = connection.info();
        line.state = line.info.state;
        line.receive_queue = slot.stream.unread();
        line.send_queue = connection.unacknowledged_bytes();
    }
    return line;
}

TenantSnapshot Tenant::snapshot() {
    TenantSnapshot snapshot;
    snapshot.id = id_;
    snapshot.program = program_;
    snapshot.counters = own_counters_;
    for (std::uint32_t slot = 0; slot < processes_used_; ++slot)
        if (live_[slot])
            snapshot.pids.push_back(segment_.process(slot).pid.load(std::memory_order_relaxed));
    for (std::uint32_t index = 0; index < segment_.geometry().sockets; ++index)
        if (slots_[index].kind != Kind::kFree && slots_[index].kind != Kind::kIdle && slots_[index].kind != Kind::kMoved)
            snapshot.sockets.push_back(snapshot_of(index));
    return snapshot;
}

}  // namespace culvert::tenant
