#include "daemon/stack/icmp_output.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "daemon/stack/keyed_hash.h"
#include "daemon/stack/source_address.h"
#include "daemon/wire/checksum.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"

namespace culvert::stack {
namespace {

/// [RFC1812 4.3.2.5] internetwork control, with normal service [RFC1122 3.2.2 tos].
constexpr std::uint8_t kErrorTos = 0xc0;
constexpr std::size_t kMaxMessage = 65535;

/// What the rules need to know of the packet that an error would be about.
struct Subject {
    Address source;
    Address destination;
    std::size_t total_length;
};

/// [RFC1122 3.2.2 about-error] [RFC4443 2.4 (e.1), (e.2)] only questions may be complained about.
bool is_query(Family family, std::uint8_t type) {
    if (family == Family::kIpv6) return type >= 128 && type != wire::icmp_v6::kRedirect;
    return type == wire::icmp_v4::kEchoReply || type == wire::icmp_v4::kEchoRequest || (type >= 13 && type <= 18);
}

std::optional<Subject> examine_v4(std::span<const std::byte> packet) {
    if (packet.size() < wire::kIpv4HeaderLength) return std::nullopt;
    const std::byte* const data = packet.data();
    const std::size_t header = std::size_t{wire::load_8(data) & 0x0fu} * 4;
    if ((wire::load_be16(data + 6) & 0x1fff) != 0) return std::nullopt;  // [RFC1122 3.2.2 about-fragment]
    if (static_cast<wire::IpProtocol>(wire::load_8(data + 9)) == wire::IpProtocol::kIcmp &&
        (packet.size() <= header || !is_query(Family::kIpv4, wire::load_8(data + header))))
        return std::nullopt;
    return Subject{Address::from_v4(std::span<const std::byte, 4>(data + 12, 4)),
                   Address::from_v4(std::span<const std::byte, 4>(data + 16, 4)), wire::load_be16(data + 2)};
}

std::optional<Subject> examine_v6(std::span<const std::byte> packet) {
    if (packet.size() < wire::kIpv6HeaderLength) return std::nullopt;
    const std::byte* const data = packet.data();
    const Subject subject{Address::from_v6(std::span<const std::byte, 16>(data + 8, 16)),
                          Address::from_v6(std::span<const std::byte, 16>(data + 24, 16)),
                          wire::kIpv6HeaderLength + wire::load_be16(data + 4)};
    auto next = static_cast<wire::IpProtocol>(wire::load_8(data + 6));
    std::size_t at = wire::kIpv6HeaderLength;
    // The chain may be what is wrong with the packet, so only what must be known is read: is there an ICMP error at its end?
    for (int i = 0; i < wire::kMaxExtensionHeaders && at + 8 <= packet.size(); ++i) {
        switch (next) {
            case wire::IpProtocol::kFragment:
                if ((wire::load_be16(data + at + 2) & 0xfff8) != 0) return std::nullopt;
                next = static_cast<wire::IpProtocol>(wire::load_8(data + at));
                at += wire::kIpv6FragmentHeaderLength;
                continue;
            case wire::IpProtocol::kHopByHop:
            case wire::IpProtocol::kRouting:
            case wire::IpProtocol::kDestinationOptions:
                next = static_cast<wire::IpProtocol>(wire::load_8(data + at));
                at += (std::size_t{wire::load_8(data + at + 1)} + 1) * 8;
                continue;
            default: break;
        }
        break;
    }
    if (next == wire::IpProtocol::kIcmpv6 &&
        (at >= packet.size() || !is_query(Family::kIpv6, wire::load_8(data + at))))
        return std::nullopt;
    return subject;
}

/// Copies what follows `offset` of the packet to `out`; returns how much there was.
std::size_t copy_out(const RxPacket& packet, std::size_t offset, std::span<std::byte> out) {
    std::size_t done = 0;
    for_each_piece(packet, offset, out.size(), [&](std::span<const std::byte> piece) {
        std::memcpy(out.data() + done, piece.data(), piece.size());
        done += piece.size();
    });
    return done;
}

}  // namespace

IcmpOutput::IcmpOutput(IpOutput& output, Counters& counters, Rng& rng, const std::uint64_t (&secret)[2])
    : output_(output), counters_(counters), rng_(rng), secret_{secret[0], secret[1]}, scratch_(kMaxMessage) {}

bool IcmpOutput::within_limits(const Address& destination, Instant now) {
    TokenBucket& own = destinations_[hash_address(secret_[0], destination) & (kDestinations - 1)];
    // A limit for all that is exact tells a stranger how many errors others have caused, and so which ports are open
    // ("SAD DNS"): how much must be left of it is different each time.
    if (own.take(now, kDestinationInterval, kDestinationBurst) &&
        all_.take(now, kInterval, kBurst, 1 + static_cast<std::uint32_t>(rng_.below(4))))
        return true;
    ++counters_.icmp_limited;
    return false;
}

std::uint32_t IcmpOutput::next_identification(const Address& from, const Address& to) {
    // [RFC7739 5.3] a counter per pair of addresses from an unguessable start: nothing can be learned from one's own
    const std::uint64_t pair = hash_address(secret_[1], from) * 3 + hash_address(secret_[0], to);
    return static_cast<std::uint32_t>(pair >> 32) + identifications_[pair & (kDestinations - 1)]++;
}

/// [RFC1122 3.3.8 errors] [RFC1122 3.4 icmp] whatever no rule or limit forbids.
/// [RFC1122 3.2.2.2 send] Never a redirect.
void IcmpOutput::error(const RxPacket& packet, std::size_t ip_offset, const Address& from,
                       const wire::IcmpHeader& header, Instant now) {
    const auto ip = packet.head.subspan(ip_offset);
    const bool v4 = !ip.empty() && (wire::load_8(ip.data()) >> 4) == 4;
    const auto subject = v4 ? examine_v4(ip) : examine_v6(ip);
    if (!subject) return;
    const LocalAddresses& own = output_.local_addresses();
    const Address& to = subject->source;
    // [RFC1122 3.2.2 about-source]
    if (to.is_unspecified() || to.is_multicast() || to.is_broadcast() || to.is_loopback() ||
        own.directed_broadcast_of(to) != nullptr)
        return;
    // [RFC4443 2.4 (e.3)] a group may hear of a path's MTU and of an option that it must understand
    const bool for_groups = !v4 && (header.type == wire::icmp_v6::kPacketTooBig ||
                                    (header.type == wire::icmp_v6::kParameterProblem &&
                                     header.code == wire::icmp_v6::kUnknownOption));
    // [RFC1122 3.2.2 about-broadcast]; about-link-broadcast: judge() has dropped it,
    // [RFC1122 3.2.2 about-link-broadcast]
    const Address& addressed = subject->destination;
    if ((addressed.is_multicast() && !for_groups) || addressed.is_broadcast() ||
        own.directed_broadcast_of(addressed) != nullptr)
        return;
    if (!within_limits(to, now)) return;

    Address source = from;
    if (source.is_unspecified()) {
        const auto hop = output_.find_hop(Address::any(to.family()), to);
        if (!hop) return counters_.drop(Drop::kIpNoRoute);
        const auto chosen = hop->local ? std::optional(to) : choose_source(*hop->interface, to);
        if (!chosen) return counters_.drop(Drop::kIpNoRoute);
        source = *chosen;
    }
    auto path = output_.find_path(source, to, now);
    if (!path) return counters_.drop(Drop::kIpNoRoute);

    const std::size_t ip_header = v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength;
    const std::size_t room = (v4 ? kMaxErrorV4 : kMaxErrorV6) - ip_header - wire::kIcmpHeaderLength;
    const std::size_t there = std::min<std::size_t>(subject->total_length, packet.length - ip_offset);
    const auto quote = std::span(scratch_).first(std::min(room, there));
    // [RFC1122 3.2.2 quote]
    const std::size_t quoted = copy_out(packet, ip_offset, quote);
    TxPacket out;
    std::uint32_t offset = 0;
    const auto protocol = v4 ? wire::IpProtocol::kIcmp : wire::IpProtocol::kIcmpv6;
    if (!output_.begin(*path, source, to, static_cast<std::uint8_t>(protocol), kErrorTos, 0,
                       static_cast<std::uint32_t>(wire::kIcmpHeaderLength + quoted), out, offset))
        return;
    wire::emit(header, quote.first(quoted), source, to, out.fragments[0].subspan(offset));
    ++counters_.icmp_out;
    output_.end(*path, out, now);
}

void IcmpOutput::error(const IpPacket& ip, const wire::IcmpHeader& header, Instant now) {
    if (!ip.dedicated) return;
    const bool group = ip.cast != Cast::kUnicast;
    error(ip.packet, ip.network_offset, group ? Address::any(ip.destination.family()) : ip.destination, header, now);
}

void IcmpOutput::port_unreachable(const IpPacket& ip, Instant now) {
    // [RFC1122 4.1.3.1 port-unreachable] [RFC1122 3.2.2.1 generate] [RFC4443 3.1]
    const bool v4 = ip.destination.is_v4();
    error(ip,
          {.type = v4 ? wire::icmp_v4::kDestinationUnreachable : wire::icmp_v6::kDestinationUnreachable,
           .code = v4 ? wire::icmp_v4::kPortUnreachable : wire::icmp_v6::kPortUnreachable},
          now);
}

void IcmpOutput::protocol_unreachable(const IpPacket& ip, Instant now) {
    // [RFC1122 3.2.2.1 generate] [RFC8200 4] over IPv6 the pointer names the field that named the protocol
    if (ip.destination.is_v4())
        return error(ip, {wire::icmp_v4::kDestinationUnreachable, wire::icmp_v4::kProtocolUnreachable, 0}, now);
    const auto view = wire::Ipv6View::parse(ip.packet.head.subspan(ip.network_offset), ip.packet.length - ip.network_offset);
    if (!view || view->protocol() == wire::IpProtocol::kNoNextHeader) return;
    error(ip, {wire::icmp_v6::kParameterProblem, wire::icmp_v6::kUnknownNextHeader, view->protocol_field()}, now);
}

void IcmpOutput::echo_reply(const IpPacket& ip, Instant now) {
    // [RFC1122 3.2.2.6 server, source, data, broadcast] a broadcast or group is not answered, and neither is
    // [RFC4443 4.2]'s: who sends one may forge the source, and everybody would answer it. Options of the request are
    // not reversed: what we send has none.
    // [RFC1122 3.2.2.6 reflect, reverse left out] what we send has no options; who traces a way does it with TTLs
    if (ip.cast != Cast::kUnicast) return counters_.drop(Drop::kIcmpEchoToMany);
    if (!ip.dedicated) return counters_.drop(Drop::kIcmpIgnored);
    if (ip.transport_length > scratch_.size()) return counters_.drop(Drop::kIcmpEchoTooLong);
    auto path = output_.find_path(ip.destination, ip.source, now);
    if (!path) return counters_.drop(Drop::kIpNoRoute);
    const bool v4 = ip.destination.is_v4();
    const auto message = std::span(scratch_).first(ip.transport_length);
    if (copy_out(ip.packet, ip.transport_offset, message) != message.size()) return counters_.drop(Drop::kIcmpTruncated);
    // The type changes, the pseudo-header's sum does not: [RFC1624 3] the checksum follows.
    const std::uint16_t old_word = wire::load_be16(message.data());
    wire::store_8(message.data(), v4 ? wire::icmp_v4::kEchoReply : wire::icmp_v6::kEchoReply);
    const std::uint16_t new_word = wire::load_be16(message.data());
    wire::store_be16(message.data() + 2, wire::updated_checksum(wire::load_be16(message.data() + 2), old_word, new_word));
    if (output_.send_message(*path, ip.destination, ip.source,
                             static_cast<std::uint8_t>(v4 ? wire::IpProtocol::kIcmp : wire::IpProtocol::kIcmpv6), ip.tos,
                             0, next_identification(ip.destination, ip.source), message, now))
        ++counters_.icmp_out;
}

}  // namespace culvert::stack
