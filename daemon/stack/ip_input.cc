#include "daemon/stack/ip_input.h"

#include "daemon/wire/ethernet.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"

namespace culvert::stack {
namespace {

/// [RFC1122 3.2.1.3] [RFC4291 2.5.2, 2.5.3, 2.7] what may never stand as the source of a packet on a wire.
bool impossible_source(const Address& source) {
    return source.is_multicast() || source.is_unspecified() || source.is_loopback() || source.is_broadcast();
}

}  // namespace

template <class View>
std::expected<IpPacket, Drop> IpInput::accept_ip(Interface& interface, const RxPacket& packet,
                                                 bool from_ourselves) const {
    const auto view = View::parse(packet.head.subspan(wire::kEthernetHeaderLength),
                                  packet.length - wire::kEthernetHeaderLength);
    if (!view) return std::unexpected(view.error());
    const Address destination = view->destination();
    if (local_addresses_.owner(destination) == nullptr) return std::unexpected(Drop::kIpNotForUs);
    const Address source = view->source();
    if (impossible_source(source)) return std::unexpected(Drop::kIpSourceInvalid);
    // Nobody outside speaks with our address: a forged packet must not pass for one of ours (LAND and kin).
    if (!from_ourselves && local_addresses_.contains(source)) return std::unexpected(Drop::kIpSourceInvalid);
    if (view->is_fragment()) return std::unexpected(Drop::kIpFragment);
    return IpPacket{.packet = packet,
                    .interface = interface,
                    .source = source,
                    .destination = destination,
                    .transport_offset = static_cast<std::uint32_t>(wire::kEthernetHeaderLength + view->header_length()),
                    .transport_length = static_cast<std::uint32_t>(view->payload_length()),
                    .protocol = static_cast<std::uint8_t>(view->protocol()),
                    .ttl = view->hop_limit(),
                    .tos = view->traffic_class()};
}

std::expected<IpPacket, Drop> IpInput::accept(Interface& interface, const RxPacket& packet, bool from_ourselves) const {
    const auto ethernet = wire::EthernetView::parse(packet.head);
    if (!ethernet) return std::unexpected(ethernet.error());
    // [RFC1122 3.3.6] a broadcast frame around a unicast address is discarded; groups are the kernel's, so only frames to
    // our MAC can be meant for us.
    if (ethernet->destination() != interface.mac) return std::unexpected(Drop::kEthernetNotForUs);
    switch (ethernet->ether_type()) {
        case wire::EtherType::kIpv4: return accept_ip<wire::Ipv4View>(interface, packet, from_ourselves);
        case wire::EtherType::kIpv6: return accept_ip<wire::Ipv6View>(interface, packet, from_ourselves);
        default: return std::unexpected(Drop::kEtherTypeUnknown);
    }
}

}  // namespace culvert::stack
