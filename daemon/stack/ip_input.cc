#include "daemon/stack/ip_input.h"

#include <algorithm>
#include <tuple>

#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"

namespace culvert::stack {
namespace {

/// [RFC9293 3.9.2.3 MUST-63] [RFC1122 3.2.1.3 bad-source] [RFC1122 4.1.3.6 bad-source]
/// [RFC4291 2.5.2, 2.5.3, 2.7] what may never stand as the source of a packet on a wire.
bool impossible_source(const Address& source) {
    return source.is_multicast() || source.is_unspecified() || source.is_loopback() || source.is_broadcast();
}

constexpr IpInput::Destination refused(Drop drop) { return {.drop = drop}; }

}  // namespace

void IpInput::set_interfaces(std::span<Interface* const> interfaces) {
    vlans_.clear();
    for (Interface* interface : interfaces)
        if (interface->vlan != 0)
            vlans_.push_back({interface->parent, interface->vlan, interface->service_tag, interface});
    std::ranges::sort(vlans_, {}, [](const Vlan& v) { return std::tuple(v.parent, v.id, v.service_tag); });
}

IpInput::Destination IpInput::judge(const Interface& interface, const Address& source, const Address& destination,
                                    bool link_group, bool from_ourselves) const {
    // [RFC1122 3.2.1.3 bad-destination]
    // [RFC1122 3.3.4.2 wrong-interface left out] weak host, as Linux: an address is ours at every interface
    const LocalAddress* const own = local_addresses_.match(destination);
    if (own == nullptr) [[unlikely]]
        return judge_group(interface, source, destination, from_ourselves);
    // [RFC1122 3.3.6 unicast-in-broadcast] a link-layer broadcast around a unicast address is silently discarded
    if (link_group) [[unlikely]]
        return refused(Drop::kIpUnicastInBroadcast);
    if (impossible_source(source) && !(from_ourselves && source.is_loopback())) [[unlikely]]
        return refused(source.is_loopback() ? Drop::kIpLoopback : Drop::kIpSourceInvalid);
    // [RFC1122 3.2.1.3 loopback] [RFC4291 2.5.3]
    if (own->loopback && !from_ourselves) [[unlikely]] return refused(Drop::kIpLoopback);
    // Nobody outside speaks with our address: a forged packet must not pass for one of ours (LAND and kin).
    if (!from_ourselves && local_addresses_.contains(source)) return refused(Drop::kIpSourceInvalid);
    if (local_addresses_.directed_broadcast_of(source) != nullptr) return refused(Drop::kIpSourceInvalid);
    return {.drop = Drop::kNone, .cast = Cast::kUnicast, .dedicated = own->dedicated};
}

/// Not one of our own addresses: a broadcast, a group, or not for us.
[[gnu::cold]] IpInput::Destination IpInput::judge_group(const Interface& interface, const Address& source,
                                                        const Address& destination, bool from_ourselves) const {
    Destination result;
    if (destination.is_loopback() || (source.is_loopback() && !from_ourselves)) return refused(Drop::kIpLoopback);
    if (destination.is_multicast()) {
        // [RFC1122 3.2.1.3] [RFC1112 7.2] only groups that somebody here has joined
        if (link_ == nullptr || !link_->accepts_group(interface, destination, source))
            return refused(Drop::kIpGroupNotJoined);
        result = {.drop = Drop::kNone, .cast = Cast::kMulticast, .dedicated = interface.resolves_itself};
    } else if (destination.is_broadcast()) {
        result = {.drop = Drop::kNone, .cast = Cast::kBroadcast, .dedicated = interface.resolves_itself};
    } else {
        const LocalAddress* const broadcast = local_addresses_.directed_broadcast_of(destination);
        if (broadcast == nullptr || broadcast->interface != &interface) return refused(Drop::kIpNotForUs);
        result = {.drop = Drop::kNone, .cast = Cast::kBroadcast, .dedicated = broadcast->dedicated};
    }
    // Who has no address yet asks everybody: DHCP over IPv4, [RFC4862 5.4.2] [RFC3810 5.2.13] over IPv6.
    const bool nobody_may_ask = source.is_unspecified() && source.is_v4() == destination.is_v4();
    if (impossible_source(source) && !nobody_may_ask) return refused(Drop::kIpSourceInvalid);
    if (!from_ourselves && local_addresses_.contains(source)) return refused(Drop::kIpSourceInvalid);
    if (local_addresses_.directed_broadcast_of(source) != nullptr) return refused(Drop::kIpSourceInvalid);
    return result;
}

template <class View>
std::expected<IpPacket, Drop> IpInput::accept_ip(const LinkFrame& frame, const RxPacket& packet,
                                                 bool from_ourselves) const {
    const auto view = View::parse(packet.head.subspan(frame.offset), packet.length - frame.offset);
    if (!view) return std::unexpected(view.error());
    const Address destination = view->destination();
    const Address source = view->source();
    const Destination verdict = judge(*frame.interface, source, destination, frame.group, from_ourselves);
    if (verdict.drop != Drop::kNone) return std::unexpected(verdict.drop);
    if (view->is_fragment()) return std::unexpected(Drop::kIpFragment);
    // [RFC1122 3.2.1.6 receive-tos] [RFC1122 3.4 interface] TOS and interface go up with it;
    // [RFC1122 3.2.1.7 accept-low] any TTL will do
    return IpPacket{.packet = packet,
                    .interface = *frame.interface,
                    .source = source,
                    .destination = destination,
                    .transport_offset = static_cast<std::uint32_t>(frame.offset + view->header_length()),
                    .transport_length = static_cast<std::uint32_t>(view->payload_length()),
                    .protocol = static_cast<std::uint8_t>(view->protocol()),
                    .ttl = view->hop_limit(),
                    .tos = view->traffic_class(),
                    .cast = verdict.cast,
                    .dedicated = verdict.dedicated,
                    .network_offset = frame.offset};
}

[[gnu::cold]] std::expected<FragmentPart, Drop> IpInput::read_fragment(const LinkFrame& frame,
                                                                       const RxPacket& packet) const {
    const auto head = packet.head.subspan(frame.offset);
    const std::size_t available = packet.length - frame.offset;
    FragmentPart part;
    part.packet = &packet;
    part.interface = frame.interface;
    if (frame.type == wire::EtherType::kIpv4) {
        const auto view = wire::Ipv4View::parse(head, available);
        if (!view) return std::unexpected(view.error());
        part.source = view->source();
        part.destination = view->destination();
        part.identification = view->identification();
        part.offset = static_cast<std::uint32_t>(view->fragment_offset());
        part.data_offset = static_cast<std::uint32_t>(frame.offset + view->header_length());
        part.length = static_cast<std::uint32_t>(view->payload_length());
        part.more = view->more_fragments();
        part.protocol = static_cast<std::uint8_t>(view->protocol());
        part.ttl = view->hop_limit();
        part.tos = view->traffic_class();
    } else {
        const auto view = wire::Ipv6View::parse(head, available);
        if (!view) return std::unexpected(view.error());
        const std::size_t data = view->fragment_header() + wire::kIpv6FragmentHeaderLength;
        part.source = view->source();
        part.destination = view->destination();
        part.identification = view->identification();
        part.offset = static_cast<std::uint32_t>(view->fragment_offset());
        part.data_offset = static_cast<std::uint32_t>(frame.offset + data);
        part.length = static_cast<std::uint32_t>(view->total_length() - data);
        part.more = view->more_fragments();
        part.protocol = static_cast<std::uint8_t>(view->fragment_protocol());
        part.ttl = view->hop_limit();
        part.tos = view->traffic_class();
        // [RFC7112 5] the whole chain and the upper-layer header
        if (part.offset == 0 && view->payload_length() < 8) return std::unexpected(Drop::kIpFragmentTiny);
    }
    const Destination verdict = judge(*frame.interface, part.source, part.destination, frame.group, false);
    part.dedicated = verdict.dedicated;
    if (verdict.drop != Drop::kNone) return std::unexpected(verdict.drop);
    return part;
}

[[gnu::cold]] IpInput::Destination IpInput::judge_header(const LinkFrame& frame, const RxPacket& packet) const {
    const auto head = packet.head.subspan(frame.offset);
    const std::byte* const at = head.data();
    if (frame.type == wire::EtherType::kIpv4 && head.size() >= wire::kIpv4HeaderLength)
        return judge(*frame.interface, Address::from_v4(std::span<const std::byte, 4>(at + 12, 4)),
                     Address::from_v4(std::span<const std::byte, 4>(at + 16, 4)), frame.group, false);
    if (frame.type == wire::EtherType::kIpv6 && head.size() >= wire::kIpv6HeaderLength)
        return judge(*frame.interface, Address::from_v6(std::span<const std::byte, 16>(at + 8, 16)),
                     Address::from_v6(std::span<const std::byte, 16>(at + 24, 16)), frame.group, false);
    return refused(Drop::kIpNotForUs);
}

std::expected<LinkFrame, Drop> IpInput::accept_link(Interface& interface, const RxPacket& packet, bool from_ourselves) const {
    const auto ethernet = wire::EthernetView::parse(packet.head);
    if (!ethernet) return std::unexpected(ethernet.error());
    const MacAddress destination = ethernet->destination();
    // [RFC1122 2.4 broadcast-flag]
    const bool group = destination.is_multicast();
    if (!group && destination != interface.mac) return std::unexpected(Drop::kEthernetNotForUs);
    if (ethernet->is_tagged()) [[unlikely]]
        return accept_tagged(interface, packet, group);
    // What we send to ourselves carries no tag.
    if (interface.is_only_vlan() && !from_ourselves) [[unlikely]]
        return std::unexpected(Drop::kVlanForeign);
    return LinkFrame{&interface, ethernet->ether_type(), wire::kEthernetHeaderLength, group};
}

[[gnu::cold]] std::expected<LinkFrame, Drop> IpInput::accept_tagged(Interface& interface, const RxPacket& packet,
                                                                    bool group) const {
    const auto tag = wire::VlanView::parse(packet.head);
    if (!tag) return std::unexpected(tag.error());
    LinkFrame frame{&interface, tag->ether_type(), wire::kEthernetHeaderLength + wire::kVlanTagLength, group};
    if (tag->id() == 0 && !interface.is_only_vlan()) return frame;  // only a priority
    const bool service = wire::load_be16(packet.head.data() + 12) == static_cast<std::uint16_t>(wire::EtherType::kServiceVlan);
    const auto wanted = std::tuple(interface.index, tag->id(), service);
    const auto found = std::ranges::lower_bound(
        vlans_, wanted, {}, [](const Vlan& v) { return std::tuple(v.parent, v.id, v.service_tag); });
    if (found == vlans_.end() || std::tuple(found->parent, found->id, found->service_tag) != wanted)
        return std::unexpected(Drop::kVlanForeign);
    frame.interface = found->interface;
    return frame;
}

std::expected<IpPacket, Drop> IpInput::accept(Interface& interface, const RxPacket& packet, bool from_ourselves) const {
    const auto frame = accept_link(interface, packet, from_ourselves);
    if (!frame) return std::unexpected(frame.error());
    switch (frame->type) {
        case wire::EtherType::kIpv4: return accept_ip<wire::Ipv4View>(*frame, packet, from_ourselves);
        case wire::EtherType::kIpv6: return accept_ip<wire::Ipv6View>(*frame, packet, from_ourselves);
        default: return std::unexpected(Drop::kEtherTypeUnknown);
    }
}

}  // namespace culvert::stack
