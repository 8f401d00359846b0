#include "daemon/stack/udp.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <utility>

#include "daemon/stack/source_address.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"
#include "daemon/wire/udp.h"

namespace culvert::stack::udp {
namespace {

constexpr std::uint32_t kHeader = static_cast<std::uint32_t>(wire::kUdpHeaderLength);
constexpr std::uint32_t kMaxMessage = 0xffff;  // header and payload, by the length field
constexpr std::uint32_t kMaxMessageV4 = 0xffff - static_cast<std::uint32_t>(wire::kIpv4HeaderLength);

std::uint64_t mix(std::uint64_t value) {  // the finalizer of SplitMix64
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

std::uint64_t hash_address(std::uint64_t state, const Address& address) {
    std::uint64_t half[2];
    std::memcpy(half, address.bytes().data(), sizeof half);
    return mix(mix(state ^ half[0]) ^ half[1]);
}

/// How well a socket bound to `bound` fits a datagram to `destination`; 0: not at all.
int fit(const Endpoint& bound, bool dual, const Endpoint& destination) {
    if (bound.port != destination.port) return 0;
    if (bound.address == destination.address) return 3;
    if (!bound.address.is_unspecified()) return 0;
    if (bound.address.is_v4() == destination.address.is_v4()) return 2;
    return dual && destination.address.is_v4() ? 1 : 0;
}

/// The payload of a datagram as it lies in the packet, cut to `length` bytes. Returns the number of pieces.
template <std::size_t N>
std::size_t gather(const RxPacket& packet, std::size_t offset, std::size_t length,
                   std::array<std::span<const std::byte>, N>& pieces) {
    std::size_t count = 0;
    const auto take = [&](std::span<const std::byte> fragment) {
        if (offset >= fragment.size()) {
            offset -= fragment.size();
            return;
        }
        const std::size_t here = std::min(length, fragment.size() - offset);
        if (here != 0) pieces[count++] = fragment.subspan(offset, here);
        offset = 0;
        length -= here;
    };
    take(packet.head);
    for (const auto fragment : packet.rest) {
        if (length == 0 || count == N) break;
        take(fragment);
    }
    return count;
}

}  // namespace

Udp::Udp(const StackConfig& config, IpOutput& output, PortOwner& ports, Counters& counters, Rng& rng, Peers* peers)
    : output_(output),
      ports_(ports),
      counters_(counters),
      peers_(peers),
      secret_{config.secret[0], config.secret[1]},
      next_identification_(static_cast<std::uint32_t>(rng.next())),
      pool_(sizeof(Socket), config.max_udp_sockets),
      bound_(kBuckets, nullptr),
      connected_(kBuckets, nullptr),
      scratch_(kMaxMessage) {}

Udp::~Udp() {
    for (Socket* socket : bound_)
        while (socket != nullptr) std::destroy_at(std::exchange(socket, socket->next_bound_));
}

// --- finding sockets -------------------------------------------------------------------------------------------------

std::size_t Udp::connected_bucket(Port local, const Endpoint& remote) const {
    const std::uint64_t ports = std::uint64_t{local} << 16 | remote.port;
    return hash_address(mix(secret_[0] ^ ports), remote.address) & (kBuckets - 1);
}

std::uint64_t Udp::flow_hash(const Endpoint& local, const Endpoint& remote) const {
    const std::uint64_t ports = std::uint64_t{local.port} << 16 | remote.port;
    return hash_address(hash_address(mix(secret_[1] ^ ports), remote.address), local.address);
}

Socket* Udp::find_connected(const Endpoint& local, const Endpoint& remote) const {
    Socket* best = nullptr;
    int best_fit = 0;
    for (Socket* s = connected_[connected_bucket(local.port, remote)]; s != nullptr; s = s->next_connected_) {
        if (*s->remote_ != remote) continue;
        const int fits = fit(s->local_, s->dual_, local);
        if (fits > best_fit) {
            best = s;
            best_fit = fits;
        }
    }
    return best;
}

Socket* Udp::find_bound(const Endpoint& local, const Endpoint& remote) const {
    Socket* const chain = bound_[local.port & (kBuckets - 1)];
    int best_fit = 0;
    std::uint64_t alike = 0;
    Socket* best = nullptr;
    for (Socket* s = chain; s != nullptr; s = s->next_bound_) {
        if (s->remote_) continue;
        const int fits = fit(s->local_, s->dual_, local);
        if (fits == 0 || fits < best_fit) continue;
        if (fits > best_fit) {
            best = s;
            best_fit = fits;
            alike = 0;
        }
        ++alike;
    }
    if (alike < 2) return best;
    std::uint64_t skip = flow_hash(local, remote) % alike;
    for (Socket* s = chain; s != nullptr; s = s->next_bound_)
        if (!s->remote_ && fit(s->local_, s->dual_, local) == best_fit && skip-- == 0) return s;
    return best;
}

Socket* Udp::find(const Endpoint& local, const Endpoint& remote) const {
    Socket* const connected = find_connected(local, remote);
    return connected != nullptr ? connected : find_bound(local, remote);
}

bool Udp::would_receive(const Endpoint& local, const Endpoint& remote) const { return find(local, remote) != nullptr; }

// --- input -----------------------------------------------------------------------------------------------------------

/// Several engines: a socket connected to the sender, on whatever engine, comes before `found`, which is only bound.
bool Udp::passed_on(const IpPacket& packet, const Endpoint& local, const Endpoint& remote, const Socket* found) {
    if (found != nullptr && (found->remote_ || !peers_->port_elsewhere(PortOwner::Protocol::kUdp, local.port))) return false;
    if (peers_->pass_to_owner(packet, static_cast<std::uint32_t>(flow_hash(local, remote)), false)) return true;
    return found == nullptr && peers_->pass_to_listener(packet, PortOwner::Protocol::kUdp, local.port, false);
}

void Udp::input(const IpPacket& ip) {
    const auto view = wire::UdpView::parse(ip.packet.head.subspan(ip.transport_offset), ip.transport_length);
    if (!view) return counters_.drop(view.error());
    const Endpoint remote{ip.source, view->source()};
    const Endpoint local{ip.destination, view->destination()};
    Socket* const socket = find(local, remote);
    if (peers_ != nullptr && passed_on(ip, local, remote, socket)) return;
    if (socket == nullptr) return counters_.drop(Drop::kUdpNoSocket);
    // [RFC1122 4.1.3.4] [RFC8200 8.1] zero means "none" over IPv4 and is wrong over IPv6
    if (!wire::verify_transport_checksum(ip.packet, ip.transport_offset, view->length(), ip.source, ip.destination,
                                         wire::IpProtocol::kUdp))
        return counters_.drop(Drop::kUdpChecksum);

    std::array<std::span<const std::byte>, kMaxFragments + 1> pieces;
    const std::size_t count =
        gather(ip.packet, ip.transport_offset + wire::kUdpHeaderLength, view->payload_length(), pieces);
    const DatagramInfo info{.remote = remote,
                            .local = ip.destination,
                            .interface = ip.interface.index,
                            .ttl = ip.ttl,
                            .tos = ip.tos};
    ++counters_.udp_in;
    if (!socket->owner_->on_datagram(*socket, info, Payload(pieces.data(), count),
                                     static_cast<std::uint32_t>(view->payload_length())))
        counters_.drop(Drop::kUdpQueueFull);
}

void Udp::icmp_error(const IcmpError& error, const IpPacket* message) {
    const auto passed = [&] {
        return peers_ != nullptr && message != nullptr &&
               (peers_->pass_to_owner(*message, static_cast<std::uint32_t>(flow_hash(error.local, error.remote)), false) ||
                peers_->pass_to_listener(*message, PortOwner::Protocol::kUdp, error.local.port, false));
    };
    if (error.next_hop_mtu != 0) {
        bool known = false;
        for (Socket* s = bound_[error.local.port & (kBuckets - 1)]; s != nullptr; s = s->next_bound_) {
            if (s->local_.port != error.local.port || s->path_.interface == nullptr) continue;
            if (s->path_destination_ != error.remote.address || s->path_source_ != error.local.address) continue;
            s->path_.mtu = std::min(s->path_.mtu, error.next_hop_mtu);
            known = true;
        }
        if (known) {
            ++counters_.icmp_in;
        } else if (!passed()) {
            counters_.drop(Drop::kIcmpUnmatched);
        }
        return;
    }
    Socket* const socket = find_connected(error.local, error.remote);
    // [RFC1122 4.1.3.3] errors go up; only a connected socket can tell which of its datagrams is meant
    if (socket == nullptr) {
        if (!passed()) counters_.drop(Drop::kIcmpUnmatched);
        return;
    }
    ++counters_.icmp_in;
    if (error.hard) socket->owner_->on_error(*socket, error.error);
}

// --- sockets ---------------------------------------------------------------------------------------------------------

bool Udp::held_by_another(const Socket& self, const Address& address) const {
    for (const Socket* s = bound_[self.bound_.port & (kBuckets - 1)]; s != nullptr; s = s->next_bound_) {
        if (s == &self || s->bound_.port != self.bound_.port) continue;
        if (s->bound_.address == address) return true;
        if (s->dual_ && s->bound_.address.is_unspecified() && address == Address::any(Family::kIpv4)) return true;
    }
    return false;
}

/// Calls act for each (address, port) that `socket` alone holds: its own, and for a dual one also IPv4's.
template <class Act>
void Udp::for_each_new_port(const Socket& socket, Act act) const {
    const Address& bound = socket.bound_.address;
    if (!held_by_another(socket, bound)) act(bound);
    const Address any_v4 = Address::any(Family::kIpv4);
    if (socket.dual_ && bound == Address() && !held_by_another(socket, any_v4)) act(any_v4);
}

Result<Socket*> Udp::bind(const Endpoint& local, bool dual, SocketOwner& owner) {
    const std::uint32_t index = pool_.allocate();
    if (index == LazyPool::kNone) return fail(ENOBUFS, "UDP sockets");
    Socket* const socket = new (pool_.at(index)) Socket();
    socket->bound_ = socket->local_ = local;
    socket->dual_ = dual && local.address == Address();
    socket->owner_ = &owner;
    if (peers_ != nullptr) peers_->bound(PortOwner::Protocol::kUdp, local, socket->dual_);
    for_each_new_port(*socket, [&](const Address& address) {
        ports_.take_port(PortOwner::Protocol::kUdp, address, local.port);
    });
    Socket*& head = bound_[local.port & (kBuckets - 1)];
    socket->next_bound_ = std::exchange(head, socket);
    return socket;
}

void Udp::unlink_connected(Socket& socket) {
    if (!socket.remote_) return;
    Socket** at = &connected_[connected_bucket(socket.local_.port, *socket.remote_)];
    while (*at != &socket) at = &(*at)->next_connected_;
    *at = socket.next_connected_;
    socket.next_connected_ = nullptr;
    if (std::exchange(socket.flow_told_, false))
        peers_->flow_ended(static_cast<std::uint32_t>(flow_hash(socket.local_, *socket.remote_)));
    socket.remote_.reset();
    socket.local_ = socket.bound_;
}

void Udp::connect(Socket& socket, const Endpoint* remote) {
    // A copy first: `remote` may be the socket's own.
    const std::optional<Endpoint> to = remote != nullptr ? std::optional(*remote) : std::nullopt;
    unlink_connected(socket);
    if (!to) return;
    // As Linux does, the route chooses the local address now. Without a route the socket stays on any address, and send()
    // reports why.
    const Result<Address> source = source_for(socket, Address::any(to->address.family()), *to);
    if (source) socket.local_.address = *source;
    socket.remote_ = to;
    Socket*& head = connected_[connected_bucket(socket.local_.port, *to)];
    socket.next_connected_ = std::exchange(head, &socket);
    if (peers_ != nullptr && source)
        socket.flow_told_ = peers_->flow_began(static_cast<std::uint32_t>(flow_hash(socket.local_, *to)));
}

void Udp::close(Socket& socket) {
    unlink_connected(socket);
    for_each_new_port(socket, [&](const Address& address) {
        ports_.release_port(PortOwner::Protocol::kUdp, address, socket.bound_.port);
    });
    if (peers_ != nullptr) peers_->unbound(PortOwner::Protocol::kUdp, socket.bound_, socket.dual_);
    Socket** at = &bound_[socket.bound_.port & (kBuckets - 1)];
    while (*at != &socket) at = &(*at)->next_bound_;
    *at = socket.next_bound_;
    const std::uint32_t index = pool_.index_of(&socket);
    std::destroy_at(&socket);
    pool_.release(index);
}

// --- output ----------------------------------------------------------------------------------------------------------

/// The source address of a datagram: the one asked for, the socket's, the route's, the interface's best.
Result<Address> Udp::source_for(const Socket& socket, const Address& local, const Endpoint& remote) const {
    const bool v4 = remote.address.is_v4();
    Address source = local.is_unspecified() ? socket.local_.address : local;
    if (!source.is_unspecified()) {
        if (source.is_v4() != v4) return fail(ENETUNREACH, "family");
        if (!output_.is_local(source)) return fail(EADDRNOTAVAIL, "source");
        return source;
    }
    if (source.is_v4() != v4 && !(socket.dual_ && v4)) return fail(ENETUNREACH, "family");
    const Hop hop = TRY(output_.find_hop(Address::any(remote.address.family()), remote.address));
    if (hop.local) return remote.address;
    if (hop.preferred_source && output_.is_local(*hop.preferred_source)) return *hop.preferred_source;
    const auto chosen = choose_source(*hop.interface, remote.address);
    if (!chosen) return fail(ENETUNREACH, "no source");
    return *chosen;
}

Result<void> Udp::send(Socket& socket, const Endpoint& remote, const Address& local, Payload payload,
                       std::uint32_t length, std::uint8_t ttl, std::uint8_t tos, Instant now) {
    const bool v4 = remote.address.is_v4();
    if (length > (v4 ? kMaxMessageV4 : kMaxMessage) - kHeader) return fail(EMSGSIZE, "datagram");
    const Address wanted = local.is_unspecified() ? socket.local_.address : local;
    // The cached path serves if it is fresh and leads there, from the wanted address (any address fits an unspecified one).
    const bool cached = socket.path_.interface != nullptr && socket.path_destination_ == remote.address &&
                        !output_.stale(socket.path_) &&
                        (wanted.is_unspecified() ? (socket.dual_ || wanted.is_v4() == v4)
                                                 : wanted == socket.path_source_);
    if (!cached) {
        const Address source = TRY(source_for(socket, local, remote));
        socket.path_ = TRY(output_.find_path(source, remote.address, now));
        socket.path_source_ = source;
        socket.path_destination_ = remote.address;
    }
    const Endpoint from{socket.path_source_, socket.local_.port};
    // Nobody listens here, but perhaps on the kernel's socket of that port: let the application's kernel socket send it.
    if (socket.path_.local && !would_receive(remote, from) &&
        (peers_ == nullptr || !peers_->bound_elsewhere(PortOwner::Protocol::kUdp, remote)))
        return fail(EHOSTUNREACH, "kernel's port");

    const std::uint32_t ip_header =
        static_cast<std::uint32_t>(v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength);
    if (socket.path_.local || ip_header + kHeader + length <= socket.path_.mtu)
        return send_whole(socket.path_, from, remote, payload, length, ttl, tos, now);
    return send_fragments(socket.path_, from, remote, payload, length, ttl, tos, now);
}

Result<void> Udp::send_whole(Path& path, const Endpoint& from, const Endpoint& to, Payload payload,
                             std::uint32_t length, std::uint8_t ttl, std::uint8_t tos, Instant now) {
    TxPacket packet;
    std::uint32_t offset = 0;
    // Not DF: a router with a smaller MTU may cut it, so no path discovery is needed over IPv4.
    const Fragment whole{.identification = next_identification_++, .offset = 0, .more = false};
    if (!output_.begin_fragment(path, from.address, to.address, static_cast<std::uint8_t>(wire::IpProtocol::kUdp), tos,
                                ttl, whole, kHeader + length, packet, offset))
        return fail(ENOBUFS, "frames");
    const auto header = packet.fragments[0].subspan(offset, wire::kUdpHeaderLength);
    wire::emit(wire::UdpHeader{.source = from.port, .destination = to.port}, length, header);

    PacketWriter writer(packet, offset + kHeader);
    wire::ChecksumAccumulator sum;
    for (std::span<const std::byte> piece : payload) {
        while (!piece.empty() && !writer.room().empty()) {
            const std::size_t here = std::min(piece.size(), writer.room().size());
            sum.add(wire::copy_and_checksum(writer.room(), piece.first(here)), here);
            writer.advance(here);
            piece = piece.subspan(here);
        }
    }
    DCHECK(writer.room().empty());  // the pieces add up to `length`
    wire::finish_udp_checksum(header, sum.sum(), from.address, to.address);
    ++counters_.udp_out;
    output_.end(path, packet, now);
    return {};
}

Result<void> Udp::send_fragments(Path& path, const Endpoint& from, const Endpoint& to, Payload payload,
                                 std::uint32_t length, std::uint8_t ttl, std::uint8_t tos, Instant now) {
    // The checksum stands in the first fragment but covers all of them, and the application's memory may change while it
    // is read: one pass makes the whole message in our own memory.
    const auto message = std::span(scratch_).first(kHeader + length);
    wire::emit(wire::UdpHeader{.source = from.port, .destination = to.port}, length, message);
    wire::ChecksumAccumulator sum;
    std::size_t at = kHeader;
    for (std::span<const std::byte> piece : payload) {
        const std::size_t here = std::min(piece.size(), message.size() - at);
        sum.add(wire::copy_and_checksum(message.subspan(at), piece.first(here)), here);
        at += here;
    }
    DCHECK(at == message.size());
    wire::finish_udp_checksum(message.first(kHeader), sum.sum(), from.address, to.address);

    // [RFC791 3.2] [RFC8200 4.5] every fragment but the last carries a multiple of 8 bytes
    const bool v4 = to.address.is_v4();
    const std::uint32_t headers = static_cast<std::uint32_t>(
        v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength + wire::kIpv6FragmentHeaderLength);
    if (path.mtu < headers + 8) return fail(EMSGSIZE, "MTU");
    const std::uint32_t step = (path.mtu - headers) & ~7u;
    const std::uint32_t identification = next_identification_++;
    const auto total = static_cast<std::uint32_t>(message.size());
    for (std::uint32_t sent = 0; sent < total; sent += step) {
        const std::uint32_t here = std::min(step, total - sent);
        TxPacket packet;
        std::uint32_t offset = 0;
        if (!output_.begin_fragment(path, from.address, to.address, static_cast<std::uint8_t>(wire::IpProtocol::kUdp),
                                    tos, ttl, {identification, sent, sent + here < total}, here, packet, offset))
            return fail(ENOBUFS, "frames");
        PacketWriter writer(packet, offset);
        auto rest = std::span<const std::byte>(message).subspan(sent, here);
        while (!rest.empty()) {
            const std::size_t fits = std::min(rest.size(), writer.room().size());
            std::memcpy(writer.room().data(), rest.data(), fits);
            writer.advance(fits);
            rest = rest.subspan(fits);
        }
        output_.end(path, packet, now);
    }
    ++counters_.udp_out;
    return {};
}

}  // namespace culvert::stack::udp
