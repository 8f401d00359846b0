#include "daemon/stack/ip_output.h"

#include <algorithm>
#include <cstring>

#include "daemon/wire/ethernet.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"

namespace culvert::stack {
namespace {

/// [RFC1112 6.4] 01:00:5e and 23 bits of the group; [RFC2464 7] 33:33 and 32 bits.
/// [RFC1122 3.3.7 multicast]
MacAddress multicast_mac(const Address& group) {
    const auto bytes = group.bytes();
    if (group.is_v4())
        return {{0x01, 0x00, 0x5e, static_cast<std::uint8_t>(bytes[13] & 0x7f), bytes[14], bytes[15]}};
    return {{0x33, 0x33, bytes[12], bytes[13], bytes[14], bytes[15]}};
}

bool serves(const Interface* interface) { return interface != nullptr && interface->up && interface->tx != nullptr && !interface->loopback; }

std::uint32_t link_header_length(const Path& path) {
    return static_cast<std::uint32_t>(wire::kEthernetHeaderLength + (path.tagged ? wire::kVlanTagLength : 0));
}

}  // namespace

IpOutput::IpOutput(RouteTable& routes, NeighborTable& neighbors, Counters& counters)
    : routes_(routes), neighbors_(neighbors), counters_(counters) {
    local_packets_.reserve(kMaxLocalPackets);
}

void IpOutput::set_interfaces(std::span<Interface* const> interfaces) {
    interfaces_.assign(interfaces.begin(), interfaces.end());
    local_addresses_.assign(interfaces);
}

bool IpOutput::is_local(const Address& address) const { return local_addresses_.contains(address); }

Interface* IpOutput::interface_by_index(std::uint32_t index) const {
    const auto found = std::ranges::find(interfaces_, index, &Interface::index);
    return found == interfaces_.end() ? nullptr : *found;
}

/// For destinations that mean nothing without an interface: the source's, else the first that works.
Interface* IpOutput::interface_for_unrouted(const Address& source) const {
    Interface* const own = local_addresses_.owner(source);
    if (serves(own)) return own;
    const auto first = std::ranges::find_if(interfaces_, serves);
    return first == interfaces_.end() ? nullptr : *first;
}

Result<Hop> IpOutput::find_hop(const Address& source, const Address& destination, std::uint32_t wanted) const {
    if (destination.is_unspecified()) return fail(EHOSTUNREACH, "nowhere");
    if (Interface* const own = local_addresses_.owner(destination); own != nullptr)
        return Hop{own, destination, destination, true};
    // [RFC1122 3.2.1.3 loopback] [RFC4291 2.5.3] neither as destination nor as source outside of this host
    if (destination.is_loopback()) return fail(EHOSTUNREACH, "loopback");
    if (source.is_loopback()) [[unlikely]] return fail(EINVAL, "loopback");
    Interface* const named = wanted != 0 ? interface_by_index(wanted) : nullptr;
    if (wanted != 0 && !serves(named)) return fail(ENETUNREACH, "not served");

    const bool v6_link_local = !destination.is_v4() && destination.is_link_local();
    if (destination.is_broadcast() || v6_link_local || destination.is_multicast()) {
        const Route* const route = destination.is_multicast() ? routes_.lookup(destination) : nullptr;
        Interface* interface = named;
        if (interface == nullptr && route != nullptr) interface = interface_by_index(route->interface);
        if (!serves(interface)) interface = interface_for_unrouted(source);
        if (interface == nullptr) return fail(ENETUNREACH, "no interface");
        return Hop{interface, destination, std::nullopt, false};
    }

    // [RFC1122 3.3.1.1 mask, alone] [RFC1122 3.3.1.2 default, several] the longest prefix decides; the default route is
    // the shortest
    const Route* const route = routes_.lookup(destination);
    // As Linux: who names an interface that the routes do not, means that the destination is on its link.
    if (named != nullptr && (route == nullptr || route->interface != wanted))
        return Hop{named, destination, std::nullopt, false};
    if (route == nullptr) return fail(ENETUNREACH, "no route");
    switch (route->type) {
        case Route::Type::kUnicast: break;
        case Route::Type::kLocal: return fail(EHOSTUNREACH, "kernel's own");  // of an interface that is not Culvert's
        case Route::Type::kUnreachable: return fail(EHOSTUNREACH, "unreachable");
    }
    Interface* const interface = interface_by_index(route->interface);
    if (!serves(interface)) return fail(ENETUNREACH, "not served");
    return Hop{interface, route->gateway.value_or(destination), route->source, false, route->mtu};
}

bool IpOutput::is_directed_broadcast(const Interface& interface, const Address& address) const {
    const LocalAddress* const found = local_addresses_.directed_broadcast_of(address);
    return found != nullptr && found->interface == &interface;
}

/// [RFC1122 3.3.1.2 cache] the caller keeps it until stale() says that it is worth less.
/// [RFC1122 3.3.1.3 tos left out] routes by TOS went with RFC 2474; the kernel's rules are not mirrored
/// [RFC1122 3.3.3 learn] its MTU is the largest packet; [RFC1122 3.3.6 ones, limited] broadcasts are all ones.
/// [RFC1122 3.3.3 off-net left out] path MTU discovery has taken the place of the 576 bytes [RFC1191 1]
Result<Path> IpOutput::find_path(const Address& source, const Address& destination, Instant now,
                                 std::uint32_t interface) {
    const Hop hop = TRY(find_hop(source, destination, interface));
    Path path;
    path.interface = hop.interface;
    path.local = hop.local;
    path.tagged = !hop.local && hop.interface->vlan != 0;
    path.mtu = hop.interface->mtu_of(destination.family());
    if (hop.local) {
        path.mtu = std::max(kLocalMtu, hop.interface->mtu);
    } else {
        if (hop.mtu != 0) path.mtu = std::min(path.mtu, hop.mtu);
        path.mtu = std::min(path.mtu, path_mtus_.find(destination, now));
    }

    const Address& target = hop.next_hop;
    if (hop.local) {
        path.mac = hop.interface->mac;
        path.resolved = true;
    } else if (target.is_multicast()) {
        path.mac = multicast_mac(target);
        path.resolved = true;
    } else if (target.is_broadcast() || is_directed_broadcast(*hop.interface, target)) {
        path.mac = wire::kBroadcastMac;
        path.resolved = true;
    } else if (const MacAddress* const mac = neighbors_.lookup(hop.interface->index, target, now); mac != nullptr) {
        path.mac = *mac;
        path.resolved = true;
    }
    path.generation = generation();
    return path;
}

/// [RFC1122 3.3.3 no-larger]
bool IpOutput::reserve(const Path& path, bool v4, std::uint32_t ip_header_length, std::uint32_t payload_length,
                       TxPacket& packet, bool to_be_cut) {
    DCHECK(path.interface != nullptr);
    // A path to ourselves has no link that limits it, nor has what the device cuts: only the length fields of the headers.
    const std::uint32_t ip_length = ip_header_length + payload_length;
    const std::uint32_t longest = v4 ? 0xffff : 0xffff + static_cast<std::uint32_t>(wire::kIpv6HeaderLength);
    if (ip_length > (path.local || to_be_cut ? longest : std::min(longest, path.mtu))) {
        counters_.drop(Drop::kPacketTooBig);
        return false;
    }
    const Interface& interface = *path.interface;
    if (!interface.tx->reserve(link_header_length(path) + ip_length, packet)) {
        counters_.drop(Drop::kTxNoFrame);
        return false;
    }
    // [RFC1122 2.3.3 encapsulation, 2.3.1 trailers] Ethernet II and nothing else; [RFC1122 3.3.6 link-broadcast] to
    // whom find_path says
    // [RFC1122 2.3.3 ieee, switch left out] nobody has spoken IP in LLC frames on Ethernet since RFC 1042; Linux
    // neither
    // [RFC1122 2.4 tos left out] Ethernet has no field for it, and VLAN tags carry priorities that only an operator can
    // map
    const wire::EthernetHeader header{.destination = path.mac,
                                      .source = interface.mac,
                                      .ether_type = v4 ? wire::EtherType::kIpv4 : wire::EtherType::kIpv6};
    if (path.tagged) [[unlikely]] {
        wire::emit_tagged(header, interface.service_tag ? wire::EtherType::kServiceVlan : wire::EtherType::kVlan,
                          interface.vlan, packet.fragments[0]);
    } else {
        wire::emit(header, packet.fragments[0]);
    }
    return true;
}

/// [RFC1122 3.2.1.7 set, send-zero, default] Zero means the default. What an application wants sent with TTL 0 stays on this
/// host.
std::uint8_t IpOutput::ttl_for(std::uint8_t ttl, const Interface& interface, const Address& destination) const {
    if (ttl != 0) return ttl;
    if (destination.is_multicast()) return 1;  // [RFC1112 6.1]
    return destination.is_v4() || interface.hop_limit6 == 0 ? default_ttl_ : interface.hop_limit6;  // [RFC4861 6.3.4]
}

/// Both begin() and begin_fragment(): inlined into each, where `fragment` is known to be null or not.
[[gnu::always_inline]] inline bool IpOutput::write_headers(const Path& path, const Address& source,
                                                           const Address& destination, std::uint8_t protocol,
                                                           std::uint8_t tos, std::uint8_t ttl, const Fragment* fragment,
                                                           std::uint32_t length, TxPacket& packet,
                                                           std::uint32_t& transport_offset, bool to_be_cut) {
    const bool v4 = destination.is_v4();
    const bool fragment_header = !v4 && fragment != nullptr && (fragment->offset != 0 || fragment->more);
    std::uint32_t header_length = static_cast<std::uint32_t>(v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength);
    if (fragment_header) header_length += static_cast<std::uint32_t>(wire::kIpv6FragmentHeaderLength);
    if (!reserve(path, v4, header_length, length, packet, to_be_cut)) return false;
    const auto out = packet.fragments[0].subspan(link_header_length(path));
    if (v4) {
        // [RFC9293 3.8.1 MAY-4] [RFC1122 3.2.1.5 identification] [RFC6864 4.1] with DF set nobody will cut the packet,
        // and its identification means nothing
        wire::Ipv4Header header{.source = source,
                                .destination = destination,
                                .protocol = static_cast<wire::IpProtocol>(protocol),
                                .hop_limit = ttl_for(ttl, *path.interface, destination),
                                .traffic_class = tos};
        if (fragment != nullptr) {
            header.identification = static_cast<std::uint16_t>(fragment->identification);
            header.dont_fragment = false;
            header.more_fragments = fragment->more;
            header.fragment_offset = static_cast<std::uint16_t>(fragment->offset);
        }
        wire::emit(header, length, out);
    } else {
        wire::emit(wire::Ipv6Header{.source = source,
                                    .destination = destination,
                                    .protocol = fragment_header ? wire::IpProtocol::kFragment
                                                                : static_cast<wire::IpProtocol>(protocol),
                                    .hop_limit = ttl_for(ttl, *path.interface, destination),
                                    .traffic_class = tos},
                   header_length - wire::kIpv6HeaderLength + length, out);
        if (fragment_header) {
            // [RFC8200 4.5] next header, reserved, offset in units of 8 with M in the lowest bit, identification
            std::byte* const to = out.data() + wire::kIpv6HeaderLength;
            wire::store_8(to, protocol);
            wire::store_8(to + 1, 0);
            wire::store_be16(to + 2, static_cast<std::uint16_t>(fragment->offset | (fragment->more ? 1u : 0u)));
            wire::store_be32(to + 4, fragment->identification);
        }
    }
    transport_offset = link_header_length(path) + header_length;
    return true;
}

/// [RFC1122 3.2.1.6 send-tos] [RFC1122 3.4 services] every field is the caller's.
/// [RFC1122 3.2.1.6 mapping, 3.2.1.8 send-stream] TOS stands in the header as it is, and there are no options.
bool IpOutput::begin(const Path& path, const Address& source, const Address& destination, std::uint8_t protocol,
                     std::uint8_t tos, std::uint8_t ttl, std::uint32_t transport_length, TxPacket& packet,
                     std::uint32_t& transport_offset) {
    return write_headers(path, source, destination, protocol, tos, ttl, nullptr, transport_length, packet, transport_offset);
}

bool IpOutput::begin_super(const Path& path, const Address& source, const Address& destination, std::uint8_t protocol,
                           std::uint8_t tos, std::uint8_t ttl, std::uint32_t transport_length, TxPacket& packet,
                           std::uint32_t& transport_offset) {
    return write_headers(path, source, destination, protocol, tos, ttl, nullptr, transport_length, packet, transport_offset, true);
}

bool IpOutput::begin_fragment(const Path& path, const Address& source, const Address& destination,
                              std::uint8_t protocol, std::uint8_t tos, std::uint8_t ttl, const Fragment& fragment,
                              std::uint32_t fragment_length, TxPacket& packet, std::uint32_t& transport_offset) {
    return write_headers(path, source, destination, protocol, tos, ttl, &fragment, fragment_length, packet, transport_offset);
}

/// Asked for again when it is needed, which is nearly never: a connection has better things to keep.
Address IpOutput::next_hop(const Path& path, const Address& destination) const {
    const auto hop = find_hop(Address::any(destination.family()), destination, path.interface->index);
    return hop ? hop->next_hop : destination;
}

/// The neighbour was not known when the path was found. Is it now? False: the packet waits for it.
bool IpOutput::resolve(Path& path, TxPacket& packet, Instant now) {
    const auto ip = packet.fragments[0].subspan(link_header_length(path));
    const bool v4 = static_cast<std::uint8_t>(ip[0]) >> 4 == 4;
    const Address destination = v4 ? Address::from_v4(ip.subspan<16, 4>()) : Address::from_v6(ip.subspan<24, 16>());
    const Address hop = next_hop(path, destination);
    if (const MacAddress* const mac = neighbors_.lookup(path.interface->index, hop, now); mac != nullptr) {
        path.mac = *mac;
        path.resolved = true;
        path.generation = generation();
        wire::store_mac(packet.fragments[0].data(), path.mac);
        return true;
    }
    neighbors_.enqueue(path.interface->index, hop, packet, *path.interface->tx, now);
    packet.count = 0;
    packet.length = 0;
    return false;
}

void IpOutput::end(Path& path, TxPacket& packet, Instant now) {
    if (path.local) {
        if (local_packets_.size() >= kMaxLocalPackets) {
            counters_.drop(Drop::kLocalQueueFull);
            path.interface->tx->abandon(packet);
            return;
        }
        ++counters_.local_frames;
        local_packets_.push_back({path.interface, packet});
        packet.count = 0;
        packet.length = 0;
        return;
    }
    if (!path.resolved && !resolve(path, packet, now)) return;
    path.interface->tx->commit(packet);
}

void IpOutput::learn_path_mtu(const Address& destination, std::uint32_t mtu, Instant now) {
    const auto hop = find_hop(Address::any(destination.family()), destination);
    if (!hop || hop->local || mtu >= hop->interface->mtu) return;
    if (path_mtus_.learn(destination, mtu, now)) routes_.touch();
}

/// [RFC1122 3.3.3 fragment]
bool IpOutput::send_message(Path& path, const Address& source, const Address& destination, std::uint8_t protocol,
                            std::uint8_t tos, std::uint8_t ttl, std::uint32_t identification,
                            std::span<const std::byte> message, Instant now) {
    const bool v4 = destination.is_v4();
    const auto headers = static_cast<std::uint32_t>(v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength);
    const auto total = static_cast<std::uint32_t>(message.size());
    std::uint32_t step = total;
    if (!path.local && headers + total > path.mtu) {
        // [RFC791 3.2] [RFC8200 4.5] every fragment but the last carries a multiple of 8 bytes
        const auto used = headers + static_cast<std::uint32_t>(v4 ? 0 : wire::kIpv6FragmentHeaderLength);
        if (path.mtu < used + 8) {
            counters_.drop(Drop::kPacketTooBig);
            return false;
        }
        step = (path.mtu - used) & ~7u;
    }
    for (std::uint32_t sent = 0; sent < total; sent += step) {
        const std::uint32_t here = std::min(step, total - sent);
        TxPacket packet;
        std::uint32_t offset = 0;
        if (!begin_fragment(path, source, destination, protocol, tos, ttl, {identification, sent, sent + here < total},
                            here, packet, offset))
            return false;
        PacketWriter writer(packet, offset);
        writer.write(message.subspan(sent, here));
        end(path, packet, now);
    }
    return true;
}

}  // namespace culvert::stack
