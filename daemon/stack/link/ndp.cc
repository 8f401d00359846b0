#include "daemon/stack/link/ndp.h"

namespace culvert::stack {
namespace {

const Address kAllNodes = Address::parse("ff02::1").value();

bool is_link_local_v6(const Address& address) { return !address.is_v4() && address.is_link_local(); }

/// [RFC2464] of one host.
bool is_host_mac(const std::optional<MacAddress>& mac) { return !mac || (!mac->is_multicast() && *mac != MacAddress{}); }

}  // namespace

void Ndp::input(LinkInterface& link, const IpPacket& packet, Instant now) {
    const Drop drop = process(link, packet, now);
    if (drop != Drop::kNone) return counters_.drop(drop);
    ++counters_.ndp_in;
}

Drop Ndp::process(LinkInterface& link, const IpPacket& packet, Instant now) {
    // [RFC4861 6.1, 7.1, 8.1] a hop limit of 255 proves that no router has forwarded it
    if (packet.ttl != wire::kNdpHopLimit) return Drop::kNdpHopLimit;
    const auto in_head = packet.packet.head.subspan(packet.transport_offset);
    if (in_head.size() < packet.transport_length) return Drop::kNdpMalformed;
    const auto message = wire::NdpView::parse(in_head.first(packet.transport_length));
    if (!message) return message.error();
    if (!is_host_mac(message->options().source_mac) || !is_host_mac(message->options().target_mac))
        return Drop::kNdpInvalid;
    switch (message->type()) {
        case wire::NdpType::kNeighborSolicitation: return solicitation(link, packet, *message, now);
        case wire::NdpType::kNeighborAdvertisement: return advertisement(link, packet, *message, now);
        case wire::NdpType::kRouterAdvertisement:
            // [RFC4861 6.1.2] routers speak from their link-local address, by which they are known
            if (!is_link_local_v6(packet.source)) return Drop::kNdpInvalid;
            return routers_.advertisement(link, packet.source, *message, now);
        case wire::NdpType::kRedirect:
            // [RFC4861 8.1] ... about a unicast destination, to a router's link-local address or the destination itself
            if (!is_link_local_v6(packet.source) || message->destination().is_multicast() ||
                (!is_link_local_v6(message->target()) && message->target() != message->destination()))
                return Drop::kNdpInvalid;
            return routers_.redirect(link, packet.source, *message, now);
        case wire::NdpType::kRouterSolicitation: break;
    }
    return Drop::kNdpRouterSolicitation;  // [RFC4861 6.2.6] for routers
}

Drop Ndp::solicitation(LinkInterface& link, const IpPacket& packet, const wire::NdpView& message, Instant now) {
    const Address target = message.target();
    const bool from_nobody = packet.source.is_unspecified();
    // [RFC4861 7.1.1]
    if (target.is_multicast()) return Drop::kNdpInvalid;
    if (from_nobody && (packet.destination != wire::solicited_node_group(target) || message.options().source_mac))
        return Drop::kNdpInvalid;

    const auto state = addresses_.state(link, target);
    if (from_nobody && message.options().nonce && addresses_.sent_nonce(link, target, *message.options().nonce))
        return Drop::kNdpLoopback;  // [RFC7527 4.2] our own probe, looped back
    if (state == AddressState::kProbing && from_nobody) {
        // [RFC4862 5.4.3] somebody else is about to use it, too
        addresses_.conflict(link, target, now);
        return Drop::kNdpDuplicate;
    }
    // [RFC4862 5.4.3] who asks for a tentative address hears nothing
    if (state != AddressState::kAssigned) return Drop::kNdpNotForUs;

    Interface& interface = link.interface;
    if (from_nobody) {
        // [RFC4861 7.2.4] the prober listens to all nodes
        if (!link.answers.take(now)) return Drop::kLinkAnswerLimited;
        output_.ndp(interface, target, kAllNodes,
                    wire::NeighborAdvertisement{.target = target, .overrides = true, .target_mac = interface.mac});
        return Drop::kNone;
    }
    MacAddress mac;
    if (message.options().source_mac) {
        mac = *message.options().source_mac;
        const Drop drop = neighbors_.heard(link, packet.source, mac, true, false, now);
        if (drop != Drop::kNone) return drop;
    } else {
        // [RFC4861 7.2.4] The option may be missing only where the asker knows our MAC; its own is in the frame.
        if (packet.destination.is_multicast()) return Drop::kNdpInvalid;
        mac = wire::load_mac(packet.packet.head.data() + 6);
        if (!is_host_mac(mac)) return Drop::kNdpInvalid;
    }
    if (!link.answers.take(now)) return Drop::kLinkAnswerLimited;
    output_.ndp(interface, target, packet.source, mac,
                wire::NeighborAdvertisement{
                    .target = target, .solicited = true, .overrides = true, .target_mac = interface.mac});
    return Drop::kNone;
}

Drop Ndp::advertisement(LinkInterface& link, const IpPacket& packet, const wire::NdpView& message, Instant now) {
    // [RFC4861 7.1.2]
    if (message.target().is_multicast()) return Drop::kNdpInvalid;
    if (packet.destination.is_multicast() && message.solicited()) return Drop::kNdpInvalid;
    if (const auto state = addresses_.state(link, message.target())) {
        // [RFC4862 5.4.4] it has an owner; if that is us, somebody is wrong, and nothing else is to be done
        addresses_.conflict(link, message.target(), now);
        return Drop::kNdpDuplicate;
    }
    return neighbors_.advertised(link, message.target(),
                                 {.mac = message.options().target_mac,
                                  .solicited = message.solicited(),
                                  .overrides = message.overrides(),
                                  .router = message.is_router()},
                                 now);
}

}  // namespace culvert::stack
