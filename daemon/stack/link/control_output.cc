#include "daemon/stack/link/control_output.h"

#include <cstring>

#include "daemon/wire/ethernet.h"
#include "daemon/wire/igmp.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"

namespace culvert::stack {
namespace {

constexpr std::uint8_t kInternetworkControl = 0xc0;  // [RFC3376 4] precedence 6
constexpr std::size_t kRouterAlertV4Length = 4;
constexpr std::size_t kHopByHopLength = 8;

}  // namespace

std::span<std::byte> ControlOutput::begin(Interface& interface, const MacAddress& to, wire::EtherType type,
                                          std::size_t length, TxPacket& packet) {
    if (!interface.up || interface.tx == nullptr) return {};
    const std::size_t header = wire::kEthernetHeaderLength + (interface.vlan != 0 ? wire::kVlanTagLength : 0);
    if (!interface.tx->reserve(static_cast<std::uint32_t>(header + length), packet)) {
        counters_.drop(Drop::kTxNoFrame);
        return {};
    }
    DCHECK(packet.count == 1);
    const wire::EthernetHeader ethernet{.destination = to, .source = interface.mac, .ether_type = type};
    if (interface.vlan == 0) {
        wire::emit(ethernet, packet.fragments[0]);
    } else {
        wire::emit_tagged(ethernet, interface.service_tag ? wire::EtherType::kServiceVlan : wire::EtherType::kVlan,
                          interface.vlan, packet.fragments[0]);
    }
    return packet.fragments[0].subspan(header);
}

void ControlOutput::arp(Interface& interface, const wire::ArpHeader& header, const MacAddress& to) {
    TxPacket packet;
    const auto out = begin(interface, to, wire::EtherType::kArp, wire::kArpLength, packet);
    if (out.empty()) return;
    wire::emit(header, out);
    ++counters_.arp_out;
    interface.tx->commit(packet);
}

void ControlOutput::send_ndp(Interface& interface, const Address& source, const Address& destination,
                             const MacAddress& to, std::span<std::byte> message) {
    TxPacket packet;
    const auto out = begin(interface, to, wire::EtherType::kIpv6, wire::kIpv6HeaderLength + message.size(), packet);
    if (out.empty()) return;
    wire::finish_icmpv6_checksum(message, source, destination);
    wire::emit(wire::Ipv6Header{.source = source,
                                .destination = destination,
                                .protocol = wire::IpProtocol::kIcmpv6,
                                .hop_limit = wire::kNdpHopLimit},
               message.size(), out);
    std::memcpy(out.data() + wire::kIpv6HeaderLength, message.data(), message.size());
    ++counters_.ndp_out;
    interface.tx->commit(packet);
}

void ControlOutput::igmp(Interface& interface, const Address& source, const Address& group,
                         std::span<std::byte> message) {
    TxPacket packet;
    const std::size_t header_length = wire::kIpv4HeaderLength + kRouterAlertV4Length;
    const auto out =
        begin(interface, wire::multicast_mac(group), wire::EtherType::kIpv4, header_length + message.size(), packet);
    if (out.empty()) return;
    wire::finish_igmp_checksum(message);
    wire::emit(wire::Ipv4Header{.source = source,
                                .destination = group,
                                .protocol = wire::IpProtocol::kIgmp,
                                .hop_limit = 1,
                                .traffic_class = kInternetworkControl},
               kRouterAlertV4Length + message.size(), out);
    // One more word of header: [RFC2113 2.1] router alert, "every router examines it".
    wire::store_8(out.data(), 0x46);
    wire::store_be32(out.data() + wire::kIpv4HeaderLength, 0x94040000);
    wire::store_be16(out.data() + 10, 0);
    wire::store_be16(out.data() + 10, wire::checksum(wire::sum_bytes(out.first(header_length))));
    std::memcpy(out.data() + header_length, message.data(), message.size());
    ++counters_.group_reports_out;
    interface.tx->commit(packet);
}

void ControlOutput::mld(Interface& interface, const Address& source, const Address& group,
                        std::span<std::byte> message) {
    TxPacket packet;
    const std::size_t length = kHopByHopLength + message.size();
    const auto out = begin(interface, wire::multicast_mac(group), wire::EtherType::kIpv6,
                           wire::kIpv6HeaderLength + length, packet);
    if (out.empty()) return;
    wire::finish_icmpv6_checksum(message, source, group);
    wire::emit(wire::Ipv6Header{.source = source,
                                .destination = group,
                                .protocol = wire::IpProtocol::kHopByHop,
                                .hop_limit = 1},
               length, out);
    std::byte* const options = out.data() + wire::kIpv6HeaderLength;
    wire::store_8(options, static_cast<std::uint8_t>(wire::IpProtocol::kIcmpv6));
    wire::store_8(options + 1, 0);
    wire::store_be32(options + 2, 0x05020000);  // [RFC2711 2.1] router alert: a message of MLD
    wire::store_be16(options + 6, 0x0100);      // PadN of two bytes
    std::memcpy(options + kHopByHopLength, message.data(), message.size());
    ++counters_.group_reports_out;
    interface.tx->commit(packet);
}

}  // namespace culvert::stack
