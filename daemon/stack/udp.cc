#include "daemon/stack/udp.h"

#include <cstring>
#include <new>
#include <utility>

#include "daemon/stack/keyed_hash.h"
#include "daemon/stack/source_address.h"
#include "daemon/wire/udp.h"

namespace culvert::stack::udp {
namespace {

/// How well a socket bound to `bound` fits a datagram to `destination`; 0: not at all.
int fit(const Endpoint& bound, bool dual, const Endpoint& destination) {
    if (bound.port != destination.port) return 0;
    if (bound.address == destination.address) return 3;
    if (!bound.address.is_unspecified()) return 0;
    if (bound.address.is_v4() == destination.address.is_v4()) return 2;
    return dual && destination.address.is_v4() ? 1 : 0;
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
      scratch_(0x10000) {}

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

Socket* Udp::find_connected(const Endpoint& local, const Endpoint& remote, std::uint32_t interface) const {
    Socket* best = nullptr;
    int best_fit = 0;
    for (Socket* s = connected_[connected_bucket(local.port, remote)]; s != nullptr; s = s->next_connected_) {
        if (*s->remote_ != remote || (s->interface_ != 0 && s->interface_ != interface)) continue;
        const int fits = fit(s->local_, s->dual_, local);
        if (fits > best_fit) {
            best = s;
            best_fit = fits;
        }
    }
    return best;
}

Socket* Udp::find_bound(const Endpoint& local, const Endpoint& remote, std::uint32_t interface) const {
    Socket* const chain = bound_[local.port & (kBuckets - 1)];
    // A socket of one interface fits better than one of all, whatever their addresses, as in Linux.
    const auto fit_of = [&](const Socket& s) {
        if (s.remote_ || (s.interface_ != 0 && s.interface_ != interface)) return 0;
        const int fits = fit(s.local_, s.dual_, local);
        return fits != 0 && s.interface_ != 0 ? fits + 4 : fits;
    };
    int best_fit = 0;
    std::uint64_t alike = 0;
    Socket* best = nullptr;
    for (Socket* s = chain; s != nullptr; s = s->next_bound_) {
        const int fits = fit_of(*s);
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
        if (fit_of(*s) == best_fit && skip-- == 0) return s;
    return best;
}

Socket* Udp::find(const Endpoint& local, const Endpoint& remote, std::uint32_t interface) const {
    if (connected_count_ != 0)
        if (Socket* const connected = find_connected(local, remote, interface)) return connected;
    return find_bound(local, remote, interface);
}

bool Udp::would_receive(const Endpoint& local, const Endpoint& remote) const {
    const Interface* const interface = output_.local_addresses().owner(local.address);
    return find(local, remote, interface != nullptr ? interface->index : 0) != nullptr;
}

// --- sockets ---------------------------------------------------------------------------------------------------------

bool Udp::held_by_another(const Socket& self, const Address& address) const {
    for (const Socket* s = bound_[self.bound_.port & (kBuckets - 1)]; s != nullptr; s = s->next_bound_) {
        if (s == &self || s->yielded_ || s->bound_.port != self.bound_.port) continue;
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

Result<Socket*> Udp::bind(const Endpoint& local, bool dual, SocketOwner& owner, std::uint32_t interface) {
    const std::uint32_t index = pool_.allocate();
    if (index == LazyPool::kNone) return fail(ENOBUFS, "UDP sockets");
    Socket* const socket = new (pool_.at(index)) Socket();
    socket->bound_ = socket->local_ = local;
    socket->dual_ = dual && local.address == Address();
    socket->owner_ = &owner;
    socket->bound_interface_ = socket->interface_ = interface;
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
    socket.interface_ = socket.bound_interface_;
    --connected_count_;
}

void Udp::connect(Socket& socket, const Endpoint* remote, std::uint32_t interface) {
    // A copy first: `remote` may be the socket's own.
    const std::optional<Endpoint> to = remote != nullptr ? std::optional(*remote) : std::nullopt;
    unlink_connected(socket);
    if (!to) return;
    // As Linux does, the route chooses the local address now. Without a route the socket stays on any address, and send()
    // reports why.
    if (interface != 0 && to->address.is_link_local()) socket.interface_ = interface;
    // [RFC1122 4.1.3.5 notified] getsockname() shows it
    const Result<Address> source = source_for(socket, Address::any(to->address.family()), *to, socket.interface_);
    if (source) socket.local_.address = *source;
    socket.remote_ = to;
    ++connected_count_;
    Socket*& head = connected_[connected_bucket(socket.local_.port, *to)];
    socket.next_connected_ = std::exchange(head, &socket);
    if (peers_ != nullptr && source)
        socket.flow_told_ = peers_->flow_began(static_cast<std::uint32_t>(flow_hash(socket.local_, *to)), true);
}

Result<void> Udp::change_group(Socket& socket, GroupChange change, std::uint32_t interface, const Address& group,
                               const Address& source) {
    if (groups_ == nullptr) return fail(EOPNOTSUPP, "groups");
    MulticastMember& member = socket.member_;
    switch (change) {
        case GroupChange::kJoin: return groups_->join(member, interface, group);
        case GroupChange::kLeave: return groups_->leave(member, interface, group);
        case GroupChange::kJoinSource: return groups_->join_source(member, interface, group, source);
        case GroupChange::kLeaveSource: return groups_->leave_source(member, interface, group, source);
        case GroupChange::kBlockSource: return groups_->block_source(member, interface, group, source);
        case GroupChange::kUnblockSource: return groups_->unblock_source(member, interface, group, source);
    }
    return fail(EINVAL, "group");
}

void Udp::yield_port(Socket& socket) {
    if (std::exchange(socket.yielded_, true)) return;
    for_each_new_port(socket, [&](const Address& address) {
        ports_.release_port(PortOwner::Protocol::kUdp, address, socket.bound_.port);
    });
    if (peers_ != nullptr) peers_->unbound(PortOwner::Protocol::kUdp, socket.bound_, socket.dual_);
}

void Udp::close(Socket& socket) {
    unlink_connected(socket);
    if (!socket.member_.empty()) groups_->leave_all(socket.member_);
    yield_port(socket);
    Socket** at = &bound_[socket.bound_.port & (kBuckets - 1)];
    while (*at != &socket) at = &(*at)->next_bound_;
    *at = socket.next_bound_;
    const std::uint32_t index = pool_.index_of(&socket);
    std::destroy_at(&socket);
    pool_.release(index);
}

/// The source address of a datagram: the one asked for, the socket's, the route's, the interface's best.
/// [RFC1122 3.2.1.3 own-source] [RFC1122 4.1.3.6 own-source] [RFC1122 3.3.4.2 choose] [RFC1122 4.1.3.5 choose, wild]
/// [RFC1122 3.3.6 source] What is asked for, if it is ours; else what the socket is bound to; else what fits the way.
Result<Address> Udp::source_for(const Socket& socket, const Address& local, const Endpoint& remote,
                                std::uint32_t interface) const {
    const bool v4 = remote.address.is_v4();
    Address source = local.is_unspecified() ? socket.local_.address : local;
    if (!source.is_unspecified()) {
        if (source.is_v4() != v4) return fail(ENETUNREACH, "family");
        if (!output_.is_local(source)) return fail(EADDRNOTAVAIL, "source");
        return source;
    }
    if (source.is_v4() != v4 && !(socket.dual_ && v4)) return fail(ENETUNREACH, "family");
    const Hop hop = TRY(output_.find_hop(Address::any(remote.address.family()), remote.address, interface));
    if (hop.local) return remote.address;
    if (hop.preferred_source && output_.is_local(*hop.preferred_source)) return *hop.preferred_source;
    const auto chosen = choose_source(*hop.interface, remote.address);
    if (!chosen) return fail(ENETUNREACH, "no source");
    return *chosen;
}

}  // namespace culvert::stack::udp
