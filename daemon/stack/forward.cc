#include "daemon/stack/forward.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "daemon/wire/checksum.h"
#include "daemon/wire/ethernet.h"
#include "daemon/wire/icmp.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"

namespace culvert::stack {
namespace {

constexpr std::size_t kLink = wire::kEthernetHeaderLength;

/// [RFC1812 5.3.7] [RFC4291 2.5.2, 2.5.3, 2.5.6] sources that must not leave the link, or cannot be.
bool martian(const Address& source) {
    return source.is_multicast() || source.is_unspecified() || source.is_loopback() || source.is_broadcast() ||
           source.is_link_local();
}

/// [RFC1812 4.2.2.11, 5.2.7.2] 0/8, 127/8, 224/3; [RFC4291 2.5.6] link-local. Decided elsewhere, or by nobody.
bool forwardable(const Address& destination) {
    if (destination.is_link_local() || destination.is_loopback() || destination.is_multicast()) return false;
    if (!destination.is_v4()) return !destination.is_unspecified();
    const std::uint8_t top = destination.bytes()[12];
    return top != 0 && top < 240;
}

/// One hop less; for IPv4 the header's checksum follows.
void take_hop(std::byte* ip, bool v4) {
    if (!v4) {
        wire::store_8(ip + 7, static_cast<std::uint8_t>(wire::load_8(ip + 7) - 1));
        return;
    }
    const std::uint16_t old_word = wire::load_be16(ip + 8);
    const auto new_word = static_cast<std::uint16_t>(old_word - 0x100);
    wire::store_be16(ip + 8, new_word);
    wire::store_be16(ip + 10, wire::updated_checksum(wire::load_be16(ip + 10), old_word, new_word));
}

std::size_t link_length(const Interface& out) { return kLink + (out.vlan != 0 ? wire::kVlanTagLength : 0); }

void write_link(const Interface& out, const MacAddress& to, bool v4, std::span<std::byte> frame) {
    const wire::EthernetHeader header{
        .destination = to, .source = out.mac, .ether_type = v4 ? wire::EtherType::kIpv4 : wire::EtherType::kIpv6};
    if (out.vlan == 0) return wire::emit(header, frame);
    wire::emit_tagged(header, out.service_tag ? wire::EtherType::kServiceVlan : wire::EtherType::kVlan, out.vlan, frame);
}

}  // namespace

void Forwarder::expect(std::span<const RxPacket> packets) const {
    if (!routes_.is_large()) return;
    DCHECK(packets.size() <= kAhead);
    std::array<Address, kAhead> destinations;
    std::size_t count = 0;
    for (const RxPacket& packet : packets) {
        const std::byte* const frame = packet.head.data();
        if (packet.head.size() < kLink + wire::kIpv4HeaderLength) continue;
        const auto type = static_cast<wire::EtherType>(wire::load_be16(frame + 12));
        if (type == wire::EtherType::kIpv4) {
            destinations[count++] = Address::from_v4(std::span<const std::byte, 4>(frame + kLink + 16, 4));
        } else if (type == wire::EtherType::kIpv6 && packet.head.size() >= kLink + wire::kIpv6HeaderLength) {
            destinations[count++] = Address::from_v6(std::span<const std::byte, 16>(frame + kLink + 24, 16));
        }
    }
    routes_.expect(std::span(destinations).first(count));
}

bool Forwarder::forward(Interface& in, const RxPacket& packet, Instant now) {
    const auto frame = packet.head;
    // Tagged frames and groups are none of a router's hurry: the VLAN's own interface is not known here.
    if (frame.size() < kLink + wire::kIpv4HeaderLength || wire::load_mac(frame.data()) != in.mac) return false;
    const auto type = static_cast<wire::EtherType>(wire::load_be16(frame.data() + 12));
    if (type == wire::EtherType::kIpv4) {
        const auto view = wire::Ipv4View::parse(frame.subspan(kLink), packet.length - kLink);
        if (!view) return false;  // whoever looks next names the reason
        return forward_ip(in, packet,
                          {.source = view->source(),
                           .destination = view->destination(),
                           .total_length = static_cast<std::uint32_t>(view->total_length()),
                           .header_length = static_cast<std::uint16_t>(view->header_length()),
                           .hops = view->hop_limit(),
                           .protocol = static_cast<std::uint8_t>(view->protocol()),
                           .v4 = true,
                           .whole = !view->is_fragment()},
                          now);
    }
    if (type != wire::EtherType::kIpv6) return false;
    // [RFC8200 4] extension headers are for the destination; hop-by-hop options may be left alone
    const auto view = wire::Ipv6View::parse_fixed(frame.subspan(kLink), packet.length - kLink);
    if (!view) return false;
    return forward_ip(in, packet,
                      {.source = view->source(),
                       .destination = view->destination(),
                       .total_length = static_cast<std::uint32_t>(view->total_length()),
                       .header_length = wire::kIpv6HeaderLength,
                       .hops = view->hop_limit(),
                       .protocol = static_cast<std::uint8_t>(view->protocol()),
                       .v4 = false,
                       .whole = true},
                      now);
}

bool Forwarder::forward_ip(Interface& in, const RxPacket& packet, const Header& header, Instant now) {
    const LocalAddresses& own = output_.local_addresses();
    if (own.contains(header.destination) || !forwardable(header.destination)) return false;
    if (own.directed_broadcast_of(header.destination) != nullptr) return false;  // [RFC2644 4]
    if (martian(header.source) || own.contains(header.source)) [[unlikely]] {
        counters_.drop(Drop::kIpSourceInvalid);
        return true;
    }
    const bool v4 = header.v4;
    // [RFC1812 5.3.1 MUST] [RFC8200 3]
    if (header.hops <= 1) [[unlikely]] {
        refuse(packet, Drop::kForwardHopLimit, v4 ? wire::icmp_v4::kTimeExceeded : wire::icmp_v6::kTimeExceeded, 0, 0, now);
        return true;
    }
    if (reverse_path_check_) {
        const std::uint32_t back = routes_.next_hop_index(header.source);
        if (back == RouteTable::kNoHop || routes_.next_hop(back).interface != in.index) {
            counters_.drop(Drop::kForwardReversePath);
            return true;
        }
    }
    const std::uint32_t index = routes_.next_hop_index(header.destination);
    const NextHop* const next = index != RouteTable::kNoHop ? &routes_.next_hop(index) : nullptr;
    if (next == nullptr || next->type != Route::Type::kUnicast) [[unlikely]] {
        const bool none = next == nullptr;
        refuse(packet, Drop::kIpNoRoute, v4 ? wire::icmp_v4::kDestinationUnreachable : wire::icmp_v6::kDestinationUnreachable,
               v4 ? (none ? wire::icmp_v4::kNetUnreachable : wire::icmp_v4::kHostUnreachable) : wire::icmp_v6::kNoRoute, 0, now);
        return true;
    }
    const Way* const way = find_way(*next, index, header.destination, now);
    if (way == nullptr) [[unlikely]] {
        refuse(packet, Drop::kForwardNotServed,
               v4 ? wire::icmp_v4::kDestinationUnreachable : wire::icmp_v6::kDestinationUnreachable,
               v4 ? wire::icmp_v4::kNetUnreachable : wire::icmp_v6::kNoRoute, 0, now);
        return true;
    }
    if (packet.segment_size != 0) [[unlikely]] {
        counters_.drop(Drop::kForwardMerged);
        return true;
    }
    if (header.total_length > way->mtu) [[unlikely]] {
        too_big(packet, header, *way, now);
        return true;
    }
    ++counters_.ip_forwarded;
    Interface& out = *way->out;
    const std::size_t length = kLink + header.total_length;
    if (packet.loan != nullptr && way->resolved && out.vlan == 0 && packet.rest.empty() &&
        packet.pool == &out.tx->pool()) [[likely]] {
        std::byte* const bytes = packet.pool->data(*packet.loan);
        wire::store_mac(bytes, way->mac);
        wire::store_mac(bytes + 6, out.mac);
        take_hop(bytes + kLink, v4);
        if (packet.checksum == ChecksumState::kMaybePartial && header.whole) [[unlikely]]
            complete_checksum(packet, header, bytes + kLink + header.header_length);
        out.tx->commit_chunk(*packet.loan, static_cast<std::uint32_t>(length));
        *packet.loan = kNoChunk;
        return true;
    }
    TxPacket copied;
    if (!copy(packet, header, *way, copied)) return true;
    send(*way, next->gateway.value_or(header.destination), copied, now);
    return true;
}

/// The MACs and MTUs of next hops hold as long as routes and neighbours stay what they are.
[[gnu::cold]] void Forwarder::refresh() {
    if (route_generation_ != routes_.generation()) ways_.assign(routes_.next_hops(), Way{});
    for (Way& way : ways_) way.resolved = false;
    route_generation_ = routes_.generation();
    neighbor_generation_ = neighbors_.generation();
}

const Forwarder::Way* Forwarder::find_way(const NextHop& next_hop, std::uint32_t index, const Address& destination,
                                          Instant now) {
    if (route_generation_ != routes_.generation() || neighbor_generation_ != neighbors_.generation()) [[unlikely]]
        refresh();
    Way* way = &ways_[index];
    if (way->resolved && next_hop.gateway) [[likely]]
        return way;
    if (way->out == nullptr) {
        Interface* const out = output_.interface_by_index(next_hop.interface);
        if (out == nullptr || !out->up || out->tx == nullptr) return nullptr;
        way->out = out;
        way->mtu = next_hop.mtu != 0 ? std::min(next_hop.mtu, out->mtu) : out->mtu;
    }
    if (!next_hop.gateway) {  // on the link: each destination has a MAC of its own
        on_link_ = *way;
        way = &on_link_;
    }
    const MacAddress* const mac = neighbors_.lookup(next_hop.interface, next_hop.gateway.value_or(destination), now);
    way->resolved = mac != nullptr;
    if (mac != nullptr) way->mac = *mac;
    // Asking may have told the kernel of a stale entry, never changed the table: the generations hold.
    return way;
}

[[gnu::cold]] void Forwarder::refuse(const RxPacket& packet, Drop drop, std::uint8_t type, std::uint8_t code,
                                     std::uint32_t rest, Instant now) {
    counters_.drop(drop);
    const bool v4 = (wire::load_8(packet.head.data() + kLink) >> 4) == 4;
    icmp_.error(packet, kLink, Address::any(v4 ? Family::kIpv4 : Family::kIpv6), {type, code, rest}, now);
}

[[gnu::cold]] bool Forwarder::tell_unresolved(std::span<const std::byte> ip_packet, Instant now) {
    const bool v4 = !ip_packet.empty() && (wire::load_8(ip_packet.data()) >> 4) == 4;
    const std::size_t length = v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength;
    if (ip_packet.size() < length) return false;
    const Address source = v4 ? Address::from_v4(std::span<const std::byte, 4>(ip_packet.data() + 12, 4))
                              : Address::from_v6(std::span<const std::byte, 16>(ip_packet.data() + 8, 16));
    if (output_.is_local(source)) return false;
    // [RFC1812 5.2.7.1] [RFC4443 3.1]
    const RxPacket packet{.head = ip_packet, .rest = {}, .length = static_cast<std::uint32_t>(ip_packet.size())};
    icmp_.error(packet, 0, Address::any(v4 ? Family::kIpv4 : Family::kIpv6),
                {v4 ? wire::icmp_v4::kDestinationUnreachable : wire::icmp_v6::kDestinationUnreachable,
                 v4 ? wire::icmp_v4::kHostUnreachable : wire::icmp_v6::kAddressUnreachable, 0},
                now);
    return true;
}

[[gnu::cold]] void Forwarder::too_big(const RxPacket& packet, const Header& header, const Way& way, Instant now) {
    // [RFC8200 4.5, 5] [RFC4443 3.2 MUST] only the source of an IPv6 packet cuts it
    if (!header.v4)
        return refuse(packet, Drop::kPacketTooBig, wire::icmp_v6::kPacketTooBig, 0, way.mtu, now);
    const std::uint16_t flags = wire::load_be16(packet.head.data() + kLink + 6);
    if ((flags & 0x4000) != 0)  // [RFC1191 4 MUST] with the MTU of the next hop
        return refuse(packet, Drop::kPacketTooBig, wire::icmp_v4::kDestinationUnreachable,
                      wire::icmp_v4::kFragmentationNeeded, way.mtu, now);
    cut(packet, header, way, now);
}

/// [RFC791 3.2] [RFC1812 4.2.2.7 MUST] an IPv4 packet in pieces that fit. Options go into every piece.
void Forwarder::cut(const RxPacket& packet, const Header& header, const Way& way, Instant now) {
    const std::uint32_t ip = header.header_length;
    const std::uint32_t data = header.total_length - ip;
    if (way.mtu < ip + 8) return counters_.drop(Drop::kPacketTooBig);
    const std::uint32_t step = (way.mtu - ip) & ~7u;
    const std::uint16_t old = wire::load_be16(packet.head.data() + kLink + 6);
    const std::size_t link = link_length(*way.out);
    ++counters_.ip_forwarded;
    for (std::uint32_t at = 0; at < data; at += step) {
        const std::uint32_t here = std::min(step, data - at);
        TxPacket out;
        if (!way.out->tx->reserve(static_cast<std::uint32_t>(link) + ip + here, out))
            return counters_.drop(Drop::kTxNoFrame);
        write_link(*way.out, way.mac, true, out.fragments[0]);
        const auto at_ip = out.fragments[0].subspan(link, ip);
        std::memcpy(at_ip.data(), packet.head.data() + kLink, ip);
        // Offsets count from the original packet, which may have been a fragment itself.
        const bool more = at + here < data || (old & 0x2000) != 0;
        wire::store_be16(at_ip.data() + 2, static_cast<std::uint16_t>(ip + here));
        wire::store_be16(at_ip.data() + 6, static_cast<std::uint16_t>(((old & 0x1fff) + at / 8) | (more ? 0x2000 : 0)));
        wire::store_8(at_ip.data() + 8, static_cast<std::uint8_t>(header.hops - 1));
        wire::store_be16(at_ip.data() + 10, 0);
        wire::store_be16(at_ip.data() + 10, wire::checksum(wire::sum_bytes(at_ip)));
        PacketWriter writer(out, static_cast<std::uint32_t>(link) + ip);
        for_each_piece(packet, kLink + ip + at, here, [&](std::span<const std::byte> piece) { writer.write(piece); });
        send(way, routes_.next_hop(routes_.next_hop_index(header.destination)).gateway.value_or(header.destination), out, now);
    }
}

bool Forwarder::copy(const RxPacket& packet, const Header& header, const Way& way, TxPacket& out) {
    const std::size_t link = link_length(*way.out);
    if (!way.out->tx->reserve(static_cast<std::uint32_t>(link) + header.total_length, out)) {
        counters_.drop(Drop::kTxNoFrame);
        return false;
    }
    write_link(*way.out, way.mac, header.v4, out.fragments[0]);
    PacketWriter writer(out, static_cast<std::uint32_t>(link));
    for_each_piece(packet, kLink, header.total_length, [&](std::span<const std::byte> piece) { writer.write(piece); });
    std::byte* const ip = out.fragments[0].data() + link;
    take_hop(ip, header.v4);
    if (packet.checksum == ChecksumState::kMaybePartial && header.whole)
        complete_checksum(packet, header, ip + header.header_length);
    return true;
}

void Forwarder::send(const Way& way, const Address& next_hop, TxPacket& packet, Instant now) {
    if (way.resolved) return way.out->tx->commit(packet);
    neighbors_.enqueue(way.out->index, next_hop, packet, *way.out->tx, now);
}

/// A local sender on a virtual link leaves the sum to a device that we are not: it is made here, before the packet goes to a
/// wire where it would be wrong.
[[gnu::cold]] void Forwarder::complete_checksum(const RxPacket& packet, const Header& header, std::byte* transport) const {
    const auto protocol = static_cast<wire::IpProtocol>(header.protocol);
    const bool tcp = protocol == wire::IpProtocol::kTcp;
    if (!tcp && protocol != wire::IpProtocol::kUdp) return;
    const std::size_t offset = kLink + header.header_length;
    const std::uint32_t length = header.total_length - header.header_length;
    const std::size_t field = tcp ? 16 : 6;
    if (length < field + 2 || packet.head.size() < offset + field + 2) return;
    const std::uint16_t pseudo =
        wire::fold(wire::pseudo_header_sum(header.source, header.destination, protocol, length));
    if (wire::load_be16(packet.head.data() + offset + field) != pseudo) return;  // a whole checksum, right or wrong
    std::uint16_t sum = wire::checksum(wire::sum_packet(packet, offset, length));
    if (!tcp && sum == 0) sum = 0xffff;
    wire::store_be16(transport + field, sum);
}

}  // namespace culvert::stack
