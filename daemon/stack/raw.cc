#include "daemon/stack/raw.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "daemon/stack/source_address.h"
#include "daemon/wire/checksum.h"
#include "daemon/wire/icmp.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"

namespace culvert::stack::raw {
namespace {

constexpr std::size_t kMaxMessage = 0xffff;
constexpr auto kIcmp = static_cast<std::uint8_t>(wire::IpProtocol::kIcmp);
constexpr auto kIcmpv6 = static_cast<std::uint8_t>(wire::IpProtocol::kIcmpv6);

std::size_t index_of(Family family) { return family == Family::kIpv4 ? 0 : 1; }
std::uint8_t icmp_of(Family family) { return family == Family::kIpv4 ? kIcmp : kIcmpv6; }

}  // namespace

Raw::Raw(IpOutput& output, Counters& counters, Rng& rng)
    : output_(output), counters_(counters), rng_(rng), pool_(sizeof(Socket), kMaxSockets), scratch_(kMaxMessage) {
    for (auto& lists : by_protocol_) lists.resize(256, nullptr);
    for (auto& lists : pings_) lists.resize(kBuckets, nullptr);
}

Raw::~Raw() {
    for (auto* const table : {&by_protocol_, &pings_})
        for (auto& lists : *table)
            for (Socket* socket : lists)
                while (socket != nullptr) std::destroy_at(std::exchange(socket, socket->next_));
}

// --- sockets ---------------------------------------------------------------------------------------------------------

Socket*& Raw::list_of(const Socket& socket) {
    const std::size_t family = index_of(socket.family_);
    return socket.kind_ == Kind::kRaw ? by_protocol_[family][socket.protocol_]
                                      : pings_[family][socket.identifier_ % kBuckets];
}

void Raw::unlink(Socket& socket) {
    Socket** at = &list_of(socket);
    while (*at != &socket) at = &(*at)->next_;
    *at = socket.next_;
}

Result<Socket*> Raw::open(Kind kind, Family family, std::uint8_t protocol, SocketOwner& owner) {
    if (kind == Kind::kRaw && protocol == 0) return fail(EPROTONOSUPPORT, "protocol");
    const std::uint32_t index = pool_.allocate();
    if (index == LazyPool::kNone) return fail(ENOBUFS, "raw sockets");
    Socket* const socket = new (pool_.at(index)) Socket();
    socket->kind_ = kind;
    socket->family_ = family;
    socket->protocol_ = kind == Kind::kPing ? icmp_of(family) : protocol;
    socket->local_ = Address::any(family);
    socket->owner_ = &owner;
    socket->options_.header_included = kind == Kind::kRaw && protocol == kAnyProtocol;
    Socket*& head = list_of(*socket);
    socket->next_ = std::exchange(head, socket);
    if (kind == Kind::kRaw && protocol != kAnyProtocol) wanted_.set(protocol);
    return socket;
}

void Raw::close(Socket& socket) {
    if (!socket.member_.empty()) groups_->leave_all(socket.member_);
    unlink(socket);
    if (socket.kind_ == Kind::kRaw && by_protocol_[0][socket.protocol_] == nullptr &&
        by_protocol_[1][socket.protocol_] == nullptr)
        wanted_.reset(socket.protocol_);
    const std::uint32_t index = pool_.index_of(&socket);
    std::destroy_at(&socket);
    pool_.release(index);
}

Socket* Raw::find_ping(Family family, std::uint16_t identifier) const {
    for (Socket* s = pings_[index_of(family)][identifier % kBuckets]; s != nullptr; s = s->next_)
        if (s->bound_ && s->identifier_ == identifier) return s;
    return nullptr;
}

Result<void> Raw::bind(Socket& socket, const Address& local, std::uint16_t identifier) {
    if (local.family() != socket.family_ || (!local.is_unspecified() && !output_.is_local(local)))
        return fail(EADDRNOTAVAIL, "address");
    if (socket.kind_ == Kind::kPing) {
        if (identifier != 0 && find_ping(socket.family_, identifier) != nullptr) return fail(EADDRINUSE, "identifier");
        // More identifiers than sockets: a few draws find a free one.
        while (identifier == 0 || find_ping(socket.family_, identifier) != nullptr)
            identifier = static_cast<std::uint16_t>(rng_.next());
        unlink(socket);
        socket.identifier_ = identifier;
        socket.bound_ = true;
        Socket*& head = list_of(socket);
        socket.next_ = std::exchange(head, &socket);
    }
    socket.local_ = local;
    return {};
}

Result<void> Raw::change_group(Socket& socket, udp::GroupChange change, std::uint32_t interface, const Address& group,
                               const Address& source) {
    if (groups_ == nullptr) return fail(EOPNOTSUPP, "groups");
    if (group.family() != socket.family_) return fail(EINVAL, "family");
    MulticastMember& member = socket.member_;
    switch (change) {
        case udp::GroupChange::kJoin: return groups_->join(member, interface, group);
        case udp::GroupChange::kLeave: return groups_->leave(member, interface, group);
        case udp::GroupChange::kJoinSource: return groups_->join_source(member, interface, group, source);
        case udp::GroupChange::kLeaveSource: return groups_->leave_source(member, interface, group, source);
        case udp::GroupChange::kBlockSource: return groups_->block_source(member, interface, group, source);
        case udp::GroupChange::kUnblockSource: return groups_->unblock_source(member, interface, group, source);
    }
    return fail(EINVAL, "group");
}

void Raw::connect(Socket& socket, const Address* remote) {
    socket.remote_ = remote != nullptr ? std::optional(*remote) : std::nullopt;
}

// --- in --------------------------------------------------------------------------------------------------------------

bool Raw::hears(const Socket& socket, const IpPacket& packet) const {
    if (!socket.local_.is_unspecified() && socket.local_ != packet.destination) return false;
    if (socket.kind_ == Kind::kPing) return true;  // as Linux: who pings a group hears each member
    if (socket.remote_ && *socket.remote_ != packet.source) return false;
    if (packet.cast != Cast::kMulticast) return true;
    if (socket.member_.empty() || !groups_->filter(socket.member_, packet.interface.index, packet.destination))
        return socket.options_.all_groups;
    return groups_->accepts(socket.member_, packet.interface.index, packet.destination, packet.source);
}

void Raw::deliver(Socket& socket, const IpPacket& packet, std::uint32_t offset, std::uint32_t length, Instant now) {
    std::array<std::span<const std::byte>, kMaxFragments + 1> pieces;
    std::size_t count = 0;
    std::size_t skip = offset;
    std::size_t left = length;
    const auto take = [&](std::span<const std::byte> fragment) {
        const std::size_t from = std::min(skip, fragment.size());
        const std::size_t here = std::min(left, fragment.size() - from);
        skip -= from;
        left -= here;
        if (here != 0) pieces[count++] = fragment.subspan(from, here);
    };
    take(packet.packet.head);
    for (const auto fragment : packet.packet.rest) {
        if (left == 0 || count == pieces.size()) break;
        take(fragment);
    }
    const PacketInfo info{.remote = packet.source,
                          .local = packet.destination,
                          .interface = packet.interface.index,
                          .ttl = packet.ttl,
                          .tos = packet.tos,
                          .received = now};
    if (!socket.owner_->on_packet(socket, info, Payload(pieces.data(), count), length))
        return counters_.drop(Drop::kRawQueueFull);
    ++counters_.raw_in;
}

void Raw::take_copy(Socket& socket, const IpPacket& packet, Instant now) {
    const Family family = packet.destination.family();
    const bool v4 = family == Family::kIpv4;
    if (!hears(socket, packet)) return;
    if (packet.protocol == icmp_of(family) && packet.transport_length != 0 &&
        packet.transport_offset < packet.packet.head.size()) {
        const auto type = std::to_integer<std::size_t>(packet.packet.head[packet.transport_offset]);
        // ICMP_FILTER knows 32 types, ICMP6_FILTER all.
        if (type < (v4 ? 32u : 256u) && (socket.options_.blocked_types[type / 32] >> (type % 32) & 1) != 0) return;
    }
    // [RFC3542 3.1] what the socket has us put we also check; of ICMPv6 always
    const bool checked = !v4 && (packet.protocol == kIcmpv6 || socket.options_.checksum_offset);
    if (checked && packet.packet.checksum != ChecksumState::kVerified) {
        wire::PartialSum sum = wire::sum_packet(packet.packet, packet.transport_offset, packet.transport_length);
        sum += wire::pseudo_header_sum(packet.source, packet.destination,
                                       static_cast<wire::IpProtocol>(packet.protocol), packet.transport_length);
        if (wire::fold(sum) != 0xffff) return counters_.drop(Drop::kRawChecksum);
    }
    const std::uint32_t from = v4 ? packet.network_offset : packet.transport_offset;
    deliver(socket, packet, from, packet.transport_offset - from + packet.transport_length, now);
}

void Raw::input(const IpPacket& packet, Instant now) {
    for (Socket* s = by_protocol_[index_of(packet.destination.family())][packet.protocol]; s != nullptr;) {
        Socket* const next = s->next_;  // an owner may close the socket that it is called for
        take_copy(*s, packet, now);
        s = next;
    }
}

bool Raw::echo_reply(const IpPacket& packet, Instant now) {
    const Family family = packet.destination.family();
    const auto message =
        wire::IcmpView::parse(family, packet.packet.head.subspan(packet.transport_offset), packet.transport_length);
    if (!message) return false;
    Socket* const socket = find_ping(family, message->identifier());
    if (socket == nullptr || !hears(*socket, packet)) return false;
    deliver(*socket, packet, packet.transport_offset, packet.transport_length, now);
    return true;
}

// --- out -------------------------------------------------------------------------------------------------------------

Result<Raw::Outgoing> Raw::prepare(const Socket& socket, const Address& remote, const SendOptions& options, Instant now) {
    Outgoing out;
    out.source = options.source.is_unspecified() ? socket.local_ : options.source;
    if (out.source.is_unspecified()) {
        const Hop hop = TRY(output_.find_hop(Address::any(remote.family()), remote, options.interface));
        const auto chosen = hop.local ? std::optional(remote) : choose_source(*hop.interface, remote);
        if (!chosen) return fail(ENETUNREACH, "no source");
        out.source = hop.preferred_source && output_.is_local(*hop.preferred_source) ? *hop.preferred_source : *chosen;
    }
    if (out.source.family() != remote.family() || !output_.is_local(out.source)) return fail(EADDRNOTAVAIL, "source");
    out.path = TRY(output_.find_path(out.source, remote, now, options.interface));
    // [RFC1122 3.2.1.3] a broadcast only by those who mean it
    if (out.path.resolved && out.path.mac.is_multicast() && !remote.is_multicast() && !options.broadcast)
        return fail(EACCES, "broadcast");
    out.destination = remote;
    out.protocol = socket.protocol_;
    out.ttl = options.ttl;
    out.tos = options.tos;
    out.identification = static_cast<std::uint32_t>(rng_.next());
    return out;
}

/// As Linux: only echo requests, whose identifier is the socket's.
Result<void> Raw::make_echo(const Socket& socket, const Outgoing& out, std::span<std::byte> message) {
    const bool v4 = socket.family_ == Family::kIpv4;
    const std::uint8_t request = v4 ? wire::icmp_v4::kEchoRequest : wire::icmp_v6::kEchoRequest;
    if (message.size() < wire::kIcmpHeaderLength) return fail(EINVAL, "short echo");
    if (wire::load_8(message.data()) != request || wire::load_8(message.data() + 1) != 0) return fail(EINVAL, "no echo");
    wire::store_be16(message.data() + 4, socket.identifier_);
    wire::store_be16(message.data() + 2, 0);
    wire::PartialSum sum = wire::sum_bytes(message);
    if (!v4)
        sum += wire::pseudo_header_sum(out.source, out.destination, wire::IpProtocol::kIcmpv6,
                                       static_cast<std::uint32_t>(message.size()));
    wire::store_be16(message.data() + 2, wire::checksum(sum));
    return {};
}

/// IP_HDRINCL: what the application's header says, as far as it may. Length and checksum are ours, a source and an
/// identification of zero too (raw(7)). Options cannot be kept: EOPNOTSUPP. The rest after the header.
Result<std::span<const std::byte>> Raw::read_header(Outgoing& out, std::span<const std::byte> packet) {
    if (packet.size() < wire::kIpv4HeaderLength) return fail(EINVAL, "short header");
    const unsigned version_length = wire::load_8(packet.data());
    if (version_length >> 4 != 4 || (version_length & 15) < 5) return fail(EINVAL, "header");
    if ((version_length & 15) != 5) return fail(EOPNOTSUPP, "IP options");
    const std::uint16_t fragment = wire::load_be16(packet.data() + 6);
    if ((fragment & 0x3fff) != 0) return fail(EOPNOTSUPP, "fragment");
    const auto source = Address::from_v4(packet.subspan<12, 4>());
    const auto destination = Address::from_v4(packet.subspan<16, 4>());
    if (!source.is_unspecified()) {
        if (!output_.is_local(source)) return fail(EADDRNOTAVAIL, "source");
        out.source = source;
    }
    out.destination = destination;  // the way there is that of sendto's address, as in Linux
    out.tos = wire::load_8(packet.data() + 1);
    if (const std::uint16_t given = wire::load_be16(packet.data() + 4); given != 0) out.identification = given;
    out.dont_fragment = (fragment & 0x4000) != 0;
    out.ttl = wire::load_8(packet.data() + 8);
    out.protocol = wire::load_8(packet.data() + 9);
    const std::span<const std::byte> rest = packet.subspan(wire::kIpv4HeaderLength);
    // What comes with its own header is never cut.
    if (!out.path.local && packet.size() > out.path.mtu) return fail(EMSGSIZE, "MTU");
    return rest;
}

Result<void> Raw::send(Socket& socket, const Address& remote, Payload payload, std::uint32_t length,
                       const SendOptions& options, Instant now) {
    const bool v4 = socket.family_ == Family::kIpv4;
    if (remote.family() != socket.family_) return fail(EINVAL, "family");
    if (length > kMaxMessage - (v4 ? wire::kIpv4HeaderLength : 0)) return fail(EMSGSIZE, "message");
    if (socket.kind_ == Kind::kPing && !socket.bound_) TRY_VOID(bind(socket, socket.local_, 0));
    Outgoing out = TRY(prepare(socket, remote, options, now));
    // Read once: the application's memory may change meanwhile.
    const auto message = std::span(scratch_).first(length);
    std::size_t at = 0;
    for (const auto piece : payload) {
        const std::size_t here = std::min(piece.size(), message.size() - at);
        std::ranges::copy(piece.first(here), message.begin() + static_cast<std::ptrdiff_t>(at));
        at += here;
    }
    if (socket.kind_ == Kind::kPing) {
        TRY_VOID(make_echo(socket, out, message));
        return transmit(out, message, now);
    }
    if (socket.options_.header_included) {
        if (!v4) return fail(EOPNOTSUPP, "IPv6 header");
        const auto rest = TRY(read_header(out, message));
        return transmit(out, rest, now);
    }
    // [RFC3542 3.1] the checksum where the socket says; of ICMPv6 always
    const auto offset = !v4 && socket.protocol_ == kIcmpv6 ? std::optional<std::uint16_t>(2) : socket.options_.checksum_offset;
    if (!v4 && offset) {
        if (*offset + 2u > message.size() || *offset % 2 != 0) return fail(EINVAL, "checksum offset");
        wire::store_be16(message.data() + *offset, 0);
        wire::PartialSum sum = wire::sum_bytes(message);
        sum += wire::pseudo_header_sum(out.source, out.destination, static_cast<wire::IpProtocol>(socket.protocol_), length);
        wire::store_be16(message.data() + *offset, wire::checksum(sum));
    }
    return transmit(out, message, now);
}

Result<void> Raw::transmit(Outgoing& out, std::span<const std::byte> message, Instant now) {
    const bool v4 = out.destination.is_v4();
    const auto ip_header = static_cast<std::uint32_t>(v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength);
    const auto total = static_cast<std::uint32_t>(message.size());
    const bool whole = out.path.local || ip_header + total <= out.path.mtu;
    if (!whole && out.dont_fragment) return fail(EMSGSIZE, "MTU");
    const std::uint32_t headers = ip_header + (v4 || whole ? 0 : static_cast<std::uint32_t>(wire::kIpv6FragmentHeaderLength));
    if (!whole && out.path.mtu < headers + 8) return fail(EMSGSIZE, "MTU");
    const std::uint32_t step = whole ? std::max(total, 1u) : (out.path.mtu - headers) & ~7u;
    std::uint32_t sent = 0;
    do {
        const std::uint32_t here = std::min(step, total - sent);
        TxPacket packet;
        std::uint32_t offset = 0;
        const bool begun =
            out.dont_fragment
                ? output_.begin(out.path, out.source, out.destination, out.protocol, out.tos, out.ttl, here, packet, offset)
                : output_.begin_fragment(out.path, out.source, out.destination, out.protocol, out.tos, out.ttl,
                                         {out.identification, sent, sent + here < total}, here, packet, offset);
        if (!begun) return fail(ENOBUFS, "frames");
        PacketWriter writer(packet, offset);
        writer.write(message.subspan(sent, here));
        output_.end(out.path, packet, now);
        sent += here;
    } while (sent < total);
    ++counters_.raw_out;
    return {};
}

}  // namespace culvert::stack::raw
