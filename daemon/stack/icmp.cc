#include "daemon/stack/icmp.h"

#include <algorithm>
#include <cerrno>
#include <iterator>

#include "daemon/stack/path_mtu_cache.h"
#include "daemon/wire/checksum.h"

namespace culvert::stack {
namespace {

/// Codes of IPv4's destination unreachable, 0 to 15 [RFC792] [RFC1122 3.2.2.1 act, hint] [RFC1812 5.2.7.1].
constexpr IcmpMeaning kUnreachableV4[] = {
    {ENETUNREACH, false},   //  0 net
    {EHOSTUNREACH, false},  //  1 host
    {ENOPROTOOPT, true},    //  2 protocol
    {ECONNREFUSED, true},   //  3 port
    {EMSGSIZE, false},      //  4 fragmentation needed
    {EOPNOTSUPP, false},    //  5 source route failed
    {ENETUNREACH, true},    //  6 net unknown
    {EHOSTDOWN, true},      //  7 host unknown
    {ENONET, true},         //  8 source host isolated
    {ENETUNREACH, true},    //  9 net prohibited
    {EHOSTUNREACH, true},   // 10 host prohibited
    {ENETUNREACH, false},   // 11 net, for this TOS
    {EHOSTUNREACH, false},  // 12 host, for this TOS
    {EHOSTUNREACH, true},   // 13 filtered
    {EHOSTUNREACH, true},   // 14 host precedence violation
    {EHOSTUNREACH, true},   // 15 precedence cut-off
};

/// Codes of IPv6's destination unreachable, 0 to 6 [RFC4443 3.1].
constexpr IcmpMeaning kUnreachableV6[] = {
    {ENETUNREACH, false},   // 0 no route
    {EACCES, true},         // 1 prohibited
    {EHOSTUNREACH, false},  // 2 beyond the scope of the source
    {EHOSTUNREACH, false},  // 3 address
    {ECONNREFUSED, true},   // 4 port
    {EACCES, true},         // 5 source address failed policy
    {EACCES, true},         // 6 route rejected
};

std::uint32_t plausible_mtu(const wire::IcmpView& message) {
    // A router from before RFC 1191 gives no number: fall to the least that is believed.
    return std::max(message.mtu(), PathMtuCache::least(message.family()));
}

std::expected<IcmpError, Drop> about(const wire::EmbeddedPacket& ours, IcmpMeaning meaning) {
    if (ours.protocol != wire::IpProtocol::kTcp && ours.protocol != wire::IpProtocol::kUdp)
        return std::unexpected(Drop::kIcmpUnmatched);
    return IcmpError{.protocol = ours.protocol,
                     .local = {ours.source, ours.source_port},
                     .remote = {ours.destination, ours.destination_port},
                     .sequence = ours.tcp_sequence,
                     .error = meaning.error,
                     .hard = meaning.hard,
                     .payload = ours.transport.subspan(std::min(ours.transport.size(), wire::kIcmpHeaderLength)),
                     .quoted = ours.transport};
}

}  // namespace

IcmpMeaning meaning_of(Family family, std::uint8_t type, std::uint8_t code) {
    if (family == Family::kIpv4) {
        switch (type) {
            case wire::icmp_v4::kDestinationUnreachable:
                return code < std::size(kUnreachableV4) ? kUnreachableV4[code] : IcmpMeaning{};
            case wire::icmp_v4::kTimeExceeded: return {EHOSTUNREACH, false};
            case wire::icmp_v4::kParameterProblem: return {EPROTO, true};
            // [RFC1122 3.2.2.3 quench, act left out] source quench must be ignored [RFC6633 3, 5]
            default: return {};  // source quench is dead [RFC6633]
        }
    }
    switch (type) {
        case wire::icmp_v6::kDestinationUnreachable:
            return code < std::size(kUnreachableV6) ? kUnreachableV6[code] : IcmpMeaning{EPROTO, false};
        case wire::icmp_v6::kPacketTooBig: return {EMSGSIZE, false};
        case wire::icmp_v6::kTimeExceeded: return {EHOSTUNREACH, false};
        case wire::icmp_v6::kParameterProblem: return {EPROTO, true};
        default: return {};
    }
}

std::expected<IcmpError, Drop> read_icmp_error(const IpPacket& packet, const LocalAddresses& local_addresses) {
    const Family family = packet.destination.family();
    const auto protocol = family == Family::kIpv4 ? wire::IpProtocol::kIcmp : wire::IpProtocol::kIcmpv6;
    if (static_cast<wire::IpProtocol>(packet.protocol) != protocol) return std::unexpected(Drop::kIpProtocolUnknown);

    const auto message =
        wire::IcmpView::parse(family, packet.packet.head.subspan(packet.transport_offset), packet.transport_length);
    if (!message) return std::unexpected(message.error());
    if (!wire::verify_transport_checksum(packet.packet, packet.transport_offset, packet.transport_length,
                                         packet.source, packet.destination, protocol))
        return std::unexpected(Drop::kIcmpChecksum);
    if (!message->is_error()) return std::unexpected(Drop::kIcmpIgnored);
    const IcmpMeaning meaning = meaning_of(family, message->type(), message->code());
    if (meaning.error == 0) return std::unexpected(Drop::kIcmpIgnored);

    const auto embedded = wire::EmbeddedPacket::parse(family, message->payload_in_head());
    if (!embedded) return std::unexpected(embedded.error());
    // [RFC5927 4] the error must be about a packet that we sent
    if (!local_addresses.contains(embedded->source)) return std::unexpected(Drop::kIcmpUnmatched);
    auto error = about(*embedded, meaning);
    if (!error) return error;
    error->by_icmp = true;
    error->type = message->type();
    error->code = message->code();
    error->offender = packet.source;
    if (message->is_packet_too_big()) error->next_hop_mtu = plausible_mtu(*message);
    return error;
}

std::expected<IcmpError, Drop> unresolved_error(std::span<const std::byte> ip_packet) {
    if (ip_packet.empty()) return std::unexpected(Drop::kIcmpTruncated);
    const Family family = (std::to_integer<unsigned>(ip_packet[0]) >> 4) == 4 ? Family::kIpv4 : Family::kIpv6;
    const auto embedded = wire::EmbeddedPacket::parse(family, ip_packet);
    if (!embedded) return std::unexpected(embedded.error());
    auto error = about(*embedded, {EHOSTUNREACH, false});
    if (!error) return error;
    // As Linux, which sends itself an ICMP error.
    error->by_icmp = true;
    error->type = family == Family::kIpv4 ? wire::icmp_v4::kDestinationUnreachable : wire::icmp_v6::kDestinationUnreachable;
    error->code = family == Family::kIpv4 ? wire::icmp_v4::kHostUnreachable : wire::icmp_v6::kAddressUnreachable;
    error->offender = embedded->source;
    return error;
}

}  // namespace culvert::stack
