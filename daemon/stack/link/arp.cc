#include "daemon/stack/link/arp.h"

#include <algorithm>

namespace culvert::stack {
namespace {

/// In one of the interface's IPv4 networks. A neighbour elsewhere is no neighbour of ours.
bool on_link(const Interface& interface, const Address& address) {
    return std::ranges::any_of(interface.addresses, [&](const InterfaceAddress& own) {
        return own.address.is_v4() && address.in(own.address, own.prefix_length);
    });
}

}  // namespace

void Arp::input(LinkInterface& link, const RxPacket& packet, std::uint32_t offset, Instant now) {
    const Drop drop = process(link, packet, offset, now);
    if (drop != Drop::kNone) return counters_.drop(drop);
    ++counters_.arp_in;
}

Drop Arp::process(LinkInterface& link, const RxPacket& packet, std::uint32_t offset, Instant now) {
    if (offset > packet.head.size()) return Drop::kArpMalformed;
    const auto arp = wire::ArpView::parse(packet.head.subspan(offset));
    if (!arp) return arp.error();
    Interface& interface = link.interface;
    const MacAddress mac = arp->sender_mac();
    const Address sender = arp->sender(), target = arp->target();
    if (mac == interface.mac) return Drop::kArpOwn;  // our own frame, back through a loop or a mirror port
    if (mac.is_multicast() || mac == MacAddress{} || sender.is_multicast() || sender.is_broadcast() ||
        sender.is_loopback())
        return Drop::kArpSenderInvalid;

    // [RFC5227 2.1.1, 2.4] an address of ours in somebody else's mouth
    if (addresses_.state(link, sender)) {
        addresses_.conflict(link, sender, now);
        return Drop::kArpConflict;
    }
    if (sender.is_unspecified() && addresses_.state(link, target) == AddressState::kProbing) {
        addresses_.conflict(link, target, now);
        return Drop::kArpConflict;
    }

    const bool for_us = addresses_.is_assigned(link, target);
    const bool request = arp->operation() == wire::ArpOperation::kRequest;
    const bool to_us_alone = wire::load_mac(packet.head.data()) == interface.mac;
    if (!sender.is_unspecified()) {
        const bool neighbor = on_link(interface, sender);
        const auto state = neighbors_.state_of(link, sender);
        const bool asked = state == NeighborProber::State::kIncomplete || state == NeighborProber::State::kProbe;
        if (!request && (!state || state == NeighborProber::State::kFailed)) return Drop::kNeighborUnsolicited;
        if (!request && for_us && to_us_alone && asked) {
            const Drop drop = neighbors_.advertised(
                link, sender, {.mac = mac, .solicited = true, .overrides = true, .router = {}}, now);
            if (drop != Drop::kNone) return drop;
        } else {
            // [RFC826] merge flag: who is known is updated, whatever the packet says; who asks us is remembered.
            const Drop drop = neighbors_.heard(link, sender, mac, request && for_us && neighbor, true, now);
            if (drop != Drop::kNone) return drop;
        }
    }
    if (!request) return for_us ? Drop::kNone : Drop::kArpNotForUs;
    if (!for_us) return Drop::kArpNotForUs;
    if (!link.answers.take(now)) return Drop::kLinkAnswerLimited;
    output_.arp(interface,
                {.operation = wire::ArpOperation::kReply,
                 .sender_mac = interface.mac,
                 .sender = target,
                 .target_mac = mac,
                 .target = sender},
                mac);
    return Drop::kNone;
}

}  // namespace culvert::stack
