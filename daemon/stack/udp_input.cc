// UDP in: from a datagram to the sockets that hear it, and from an ICMP error to the socket that caused it.
#include <algorithm>
#include <array>

#include "daemon/stack/udp.h"
#include "daemon/wire/udp.h"

namespace culvert::stack::udp {
namespace {

/// A payload in as many pieces as a packet has fragments.
struct Pieces {
    std::array<std::span<const std::byte>, kMaxFragments + 1> spans;
    std::size_t count = 0;
    operator Payload() const { return {spans.data(), count}; }

    /// Appends the part of `fragment` that is left after skipping `offset` bytes, at most `length`; counts both down.
    void take(std::span<const std::byte> fragment, std::size_t& offset, std::size_t& length) {
        if (offset >= fragment.size()) {
            offset -= fragment.size();
            return;
        }
        const std::size_t here = std::min(length, fragment.size() - offset);
        if (here != 0) spans[count++] = fragment.subspan(offset, here);
        offset = 0;
        length -= here;
    }
};

/// The payload of a datagram as it lies in the packet, cut to `length` bytes.
void gather(const RxPacket& packet, std::size_t offset, std::size_t length, Pieces& pieces) {
    pieces.take(packet.head, offset, length);
    for (const auto fragment : packet.rest) {
        if (length == 0 || pieces.count == pieces.spans.size()) break;
        pieces.take(fragment, offset, length);
    }
}

}  // namespace

/// Several engines: a socket connected to the sender, on whatever engine, comes before `found`, which is only bound.
bool Udp::passed_on(const IpPacket& packet, const Endpoint& local, const Endpoint& remote, const Socket* found) {
    if (found != nullptr && (found->remote_ || !peers_->port_elsewhere(PortOwner::Protocol::kUdp, local.port))) return false;
    if (peers_->pass_to_owner(packet, static_cast<std::uint32_t>(flow_hash(local, remote)), false)) return true;
    return found == nullptr && peers_->pass_to_listener(packet, PortOwner::Protocol::kUdp, local.port, false);
}

/// An error that concerns no socket here may concern one of another engine.
bool Udp::passed_on(const IcmpError& error, const IpPacket* message) {
    return peers_ != nullptr && message != nullptr &&
           (peers_->pass_to_owner(*message, static_cast<std::uint32_t>(flow_hash(error.local, error.remote)), false) ||
            peers_->pass_to_listener(*message, PortOwner::Protocol::kUdp, error.local.port, false));
}

bool Udp::input(const IpPacket& ip, Instant now) {
    const auto view = wire::UdpView::parse(ip.packet.head.subspan(ip.transport_offset), ip.transport_length);
    if (!view) {
        counters_.drop(view.error());
        return true;
    }
    // [RFC1122 4.1.3.5 local-address] [RFC1122 4.1.4 receive-tos] the application can have all of it
    const DatagramInfo info{.remote = {ip.source, view->source()},
                            .local = ip.destination,
                            .interface = ip.interface.index,
                            .segment_size = ip.packet.segment_size,
                            .ttl = ip.ttl,
                            .tos = ip.tos,
                            .received = now};
    const Endpoint local{ip.destination, view->destination()};
    const bool to_many = ip.cast != Cast::kUnicast;
    Socket* const socket = to_many ? nullptr : find(local, info.remote, info.interface);
    if (peers_ != nullptr && !to_many && passed_on(ip, local, info.remote, socket)) return true;
    if (socket == nullptr && !to_many) [[unlikely]] {
        counters_.drop(Drop::kUdpNoSocket);
        return false;
    }
    // [RFC1122 4.1.3.4 checksum, discard] [RFC8200 8.1] zero means "none" over IPv4 and is wrong over IPv6
    if (!wire::verify_transport_checksum(ip.packet, ip.transport_offset, view->length(), ip.source, ip.destination,
                                         wire::IpProtocol::kUdp)) [[unlikely]] {
        counters_.drop(Drop::kUdpChecksum);
        return true;
    }
    Pieces pieces;
    gather(ip.packet, ip.transport_offset + wire::kUdpHeaderLength, view->payload_length(), pieces);
    const auto length = static_cast<std::uint32_t>(view->payload_length());
    if (to_many) [[unlikely]] {
        deliver_to_all(local.port, info, pieces, length);
    } else {
        deliver(*socket, info, pieces, length);
    }
    return true;
}

void Udp::deliver(Socket& socket, const DatagramInfo& info, Payload payload, std::uint32_t length) {
    if (info.segment_size == 0 || length <= info.segment_size) [[likely]] {
        ++counters_.udp_in;
        if (!socket.owner_->on_datagram(socket, info, payload, length)) counters_.drop(Drop::kUdpQueueFull);
        return;
    }
    const std::uint32_t step = socket.options_.merged ? length : info.segment_size;
    for (std::uint32_t at = 0; at < length; at += step) {
        DatagramInfo each = info;
        if (!socket.options_.merged) each.segment_size = 0;
        Pieces pieces;
        std::size_t skip = at;
        std::size_t here = std::min(step, length - at);
        const auto size = static_cast<std::uint32_t>(here);
        for (const auto piece : payload) pieces.take(piece, skip, here);
        ++counters_.udp_in;
        if (!socket.owner_->on_datagram(socket, each, pieces, size)) counters_.drop(Drop::kUdpQueueFull);
    }
}

void Udp::deliver_to_all(Port port, const DatagramInfo& info, Payload payload, std::uint32_t length) {
    bool heard = false;
    // The next one first: an owner may close the socket that it is called for.
    for (Socket* s = bound_[port & (kBuckets - 1)]; s != nullptr;) {
        Socket* const next = s->next_bound_;
        if (hears(*s, port, info)) {
            deliver(*s, info, payload, length);
            heard = true;
        }
        s = next;
    }
    // [RFC1122 4.1.3.1] no port unreachable for what was meant for many
    if (!heard) counters_.drop(Drop::kUdpNoSocket);
}

bool Udp::hears(const Socket& socket, Port port, const DatagramInfo& info) const {
    if (socket.remote_ && *socket.remote_ != info.remote) return false;
    if (socket.interface_ != 0 && socket.interface_ != info.interface) return false;
    if (socket.bound_.port != port) return false;
    const Address& bound = socket.bound_.address;
    const bool fits = bound.is_unspecified()
                          ? bound.is_v4() == info.local.is_v4() || (socket.dual_ && info.local.is_v4())
                          : bound == info.local;
    if (!fits || !info.local.is_multicast()) return fits;
    // As Linux: its own filter if it has joined there, else whether it minds hearing what others have joined.
    if (socket.member_.empty() || !groups_->filter(socket.member_, info.interface, info.local))
        return socket.options_.all_groups;
    return groups_->accepts(socket.member_, info.interface, info.local, info.remote.address);
}

void Udp::learn_mtu(Socket& socket, const IcmpError& error, Instant now) {
    if (socket.narrow_destination_ == error.remote.address && now < socket.narrow_until_)
        socket.narrow_mtu_ = std::min(socket.narrow_mtu_, error.next_hop_mtu);
    else
        socket.narrow_mtu_ = error.next_hop_mtu;
    socket.narrow_destination_ = error.remote.address;
    socket.narrow_until_ = now + kPathMtuLife;
}

bool Udp::icmp_error(const IcmpError& error, const IpPacket* message, Instant now) {
    const Interface* const own = output_.local_addresses().owner(error.local.address);
    Socket* const socket = find(error.local, error.remote, own != nullptr ? own->index : 0);
    // [RFC1122 4.1.3.3 icmp] errors go up; without IP_RECVERR only a connected socket can tell which of its datagrams
    // is meant
    const bool too_big = error.next_hop_mtu != 0;
    if (socket == nullptr || (!too_big && !socket->options_.errors && !socket->remote_)) {
        if (!passed_on(error, message) && message != nullptr) counters_.drop(Drop::kIcmpUnmatched);
        return false;
    }
    const SocketOptions& options = socket->options_;
    ++counters_.icmp_in;
    bool hard = error.hard;
    if (too_big) {
        if (options.path_mtu == PathMtu::kProbe || options.path_mtu == PathMtu::kLink) {
            counters_.drop(Drop::kUdpPathDisbelieved);
            return false;
        }
        learn_mtu(*socket, error, now);
        if (options.path_mtu != PathMtu::kObey && !options.errors) return true;  // it cuts smaller: nothing has gone wrong
        hard = true;
    }
    if (!options.errors && !(hard && socket->remote_)) return true;
    socket->owner_->on_error(*socket, {.error = error.error,
                                       .queued = options.errors,
                                       .by_icmp = error.by_icmp,
                                       .type = error.type,
                                       .code = error.code,
                                       .info = error.next_hop_mtu,
                                       .remote = error.remote,
                                       .offender = error.offender,
                                       .payload = error.payload});
    return true;
}

}  // namespace culvert::stack::udp
