#include "daemon/wire/describe.h"

#include "daemon/base/drop.h"
#include "daemon/wire/arp.h"
#include "daemon/wire/ethernet.h"
#include "daemon/wire/icmp.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"
#include "daemon/wire/tcp.h"
#include "daemon/wire/udp.h"

namespace culvert::wire {
namespace {

std::string number(std::uint64_t value) { return std::to_string(value); }
std::string refused(const char* what, Drop drop) { return std::string(what) + " (" + drop_name(drop) + ")"; }

std::string describe_flags(TcpFlags flags) {
    static constexpr const char* kNames[] = {"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"};
    std::string text;
    for (unsigned bit = 0; bit < 8; ++bit)
        if ((flags.bits >> bit & 1) != 0) text += (text.empty() ? "" : "|") + std::string(kNames[bit]);
    return text.empty() ? "none" : text;
}

std::string describe_options(std::span<const std::byte> bytes) {
    const auto options = TcpOptions::parse(bytes);
    if (!options) return refused(" <?>", options.error());
    std::string text;
    const auto add = [&text](const std::string& option) { text += (text.empty() ? "" : ", ") + option; };
    if (options->mss) add("mss " + number(*options->mss));
    if (options->sack_permitted) add("sack ok");
    if (options->timestamps) add("ts " + number(options->timestamps->value) + "/" + number(options->timestamps->echo));
    if (options->window_scale) add("wscale " + number(*options->window_scale));
    for (const SackBlock& block : options->sack()) add("sack " + number(block.left) + "-" + number(block.right));
    if (options->fast_open_cookie) add("cookie of " + number(options->fast_open_cookie->size()));
    return text.empty() ? "" : " <" + text + ">";
}

/// What the upper layer needs to know of the IP packet around it.
struct Upper {
    Address source;
    Address destination;
    IpProtocol protocol;
    std::span<const std::byte> payload;
    std::size_t length;

    std::string hosts() const { return source.to_string() + " > " + destination.to_string(); }
    std::string ports(Port from, Port to) const {
        return Endpoint{source, from}.to_string() + " > " + Endpoint{destination, to}.to_string();
    }
};

std::string describe_tcp(const Upper& upper) {
    const auto tcp = TcpView::parse(upper.payload, upper.length);
    if (!tcp) return refused((upper.hosts() + " tcp").c_str(), tcp.error());
    std::string text = upper.ports(tcp->source(), tcp->destination()) + " tcp " + describe_flags(tcp->flags());
    text += " seq " + number(tcp->sequence());
    if (tcp->flags().ack()) text += " ack " + number(tcp->acknowledgment());
    text += " win " + number(tcp->window());
    if (tcp->flags().urg()) text += " urg " + number(tcp->urgent());
    return text + describe_options(tcp->options()) + " len " + number(tcp->payload_length());
}

std::string describe_udp(const Upper& upper) {
    const auto udp = UdpView::parse(upper.payload, upper.length);
    if (!udp) return refused((upper.hosts() + " udp").c_str(), udp.error());
    return upper.ports(udp->source(), udp->destination()) + " udp len " + number(udp->payload_length());
}

std::string describe_icmp(const Upper& upper, Family family) {
    const std::string name = family == Family::kIpv4 ? " icmp" : " icmpv6";
    const auto icmp = IcmpView::parse(family, upper.payload, upper.length);
    if (!icmp) return refused((upper.hosts() + name).c_str(), icmp.error());
    std::string text = upper.hosts() + name + " type " + number(icmp->type()) + " code " + number(icmp->code());
    if (icmp->is_packet_too_big()) text += " mtu " + number(icmp->mtu());
    if (icmp->is_error()) {
        const auto embedded = EmbeddedPacket::parse(family, icmp->payload_in_head());
        if (!embedded) return text + refused(" about ?", embedded.error());
        text += " about " + Endpoint{embedded->source, embedded->source_port}.to_string() + " > " +
                Endpoint{embedded->destination, embedded->destination_port}.to_string() + " protocol " +
                number(static_cast<unsigned>(embedded->protocol));
    }
    return text;
}

template <class View>
std::string describe_packet(const View& ip) {
    const Upper upper{ip.source(), ip.destination(), ip.protocol(), ip.payload_in_head(), ip.payload_length()};
    if (ip.is_fragment())
        return upper.hosts() + " fragment of protocol " + number(static_cast<unsigned>(upper.protocol)) + " offset " +
               number(ip.fragment_offset()) + (ip.more_fragments() ? "+" : "") + " len " + number(upper.length);
    switch (upper.protocol) {
        case IpProtocol::kTcp:
            return describe_tcp(upper);
        case IpProtocol::kUdp:
            return describe_udp(upper);
        case IpProtocol::kIcmp:
            return describe_icmp(upper, Family::kIpv4);
        case IpProtocol::kIcmpv6:
            return describe_icmp(upper, Family::kIpv6);
        default:
            break;
    }
    return upper.hosts() + " protocol " + number(static_cast<unsigned>(upper.protocol)) + " len " +
           number(upper.length);
}

std::string describe_arp(std::span<const std::byte> packet) {
    const auto arp = ArpView::parse(packet);
    if (!arp) return refused("arp", arp.error());
    if (arp->operation() == ArpOperation::kRequest)
        return "arp who has " + arp->target().to_string() + " tell " + arp->sender().to_string();
    return "arp " + arp->sender().to_string() + " is at " + arp->sender_mac().to_string();
}

}  // namespace

std::string describe_ip(std::span<const std::byte> packet) {
    if (!packet.empty() && (load_8(packet.data()) >> 4) == 6) {
        const auto ip = Ipv6View::parse(packet);
        return ip ? describe_packet(*ip) : refused("ipv6", ip.error());
    }
    const auto ip = Ipv4View::parse(packet);
    return ip ? describe_packet(*ip) : refused("ipv4", ip.error());
}

std::string describe(std::span<const std::byte> frame) {
    const auto ethernet = EthernetView::parse(frame);
    if (!ethernet) return refused("ethernet", ethernet.error());
    switch (ethernet->ether_type()) {
        case EtherType::kIpv4:
        case EtherType::kIpv6:
            return describe_ip(ethernet->payload_in_head());
        case EtherType::kArp:
            return describe_arp(ethernet->payload_in_head());
        default:
            break;
    }
    return ethernet->source().to_string() + " > " + ethernet->destination().to_string() + " type " +
           number(static_cast<unsigned>(ethernet->ether_type()));
}

}  // namespace culvert::wire
