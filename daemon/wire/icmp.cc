#include "daemon/wire/icmp.h"

#include <algorithm>

#include "daemon/wire/checksum.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"

namespace culvert::wire {
namespace {

// An embedded packet is cut short, so it must not be measured against its own total length: the walk is a smaller one
// than Ipv4View's and Ipv6View's. We sent the packet, so it has none of the headers that we never send.

std::expected<EmbeddedPacket, Drop> parse_v4(std::span<const std::byte> packet) {
    if (packet.size() < kIpv4HeaderLength) return std::unexpected(Drop::kIcmpTruncated);
    const std::byte* data = packet.data();
    const std::size_t header_length = std::size_t{load_8(data) & 0x0fu} * 4;
    if ((load_8(data) >> 4) != 4 || header_length < kIpv4HeaderLength) return std::unexpected(Drop::kIcmpUnmatched);
    if (packet.size() < header_length) return std::unexpected(Drop::kIcmpTruncated);
    if ((load_be16(data + 6) & 0x1fff) != 0) return std::unexpected(Drop::kIcmpUnmatched);
    EmbeddedPacket embedded;
    embedded.source = Address::from_v4(std::span<const std::byte, 4>(data + 12, 4));
    embedded.destination = Address::from_v4(std::span<const std::byte, 4>(data + 16, 4));
    embedded.protocol = static_cast<IpProtocol>(load_8(data + 9));
    embedded.transport = packet.subspan(header_length);
    return embedded;
}

std::expected<EmbeddedPacket, Drop> parse_v6(std::span<const std::byte> packet) {
    if (packet.size() < kIpv6HeaderLength) return std::unexpected(Drop::kIcmpTruncated);
    const std::byte* data = packet.data();
    if ((load_8(data) >> 4) != 6) return std::unexpected(Drop::kIcmpUnmatched);
    EmbeddedPacket embedded;
    embedded.source = Address::from_v6(std::span<const std::byte, 16>(data + 8, 16));
    embedded.destination = Address::from_v6(std::span<const std::byte, 16>(data + 24, 16));
    if (embedded.source.is_v4() || embedded.destination.is_v4()) return std::unexpected(Drop::kIcmpUnmatched);
    embedded.protocol = static_cast<IpProtocol>(load_8(data + 6));
    embedded.transport = packet.subspan(kIpv6HeaderLength);
    if (embedded.protocol == IpProtocol::kFragment) {  // UDP larger than the MTU
        if (embedded.transport.size() < kIpv6FragmentHeaderLength) return std::unexpected(Drop::kIcmpTruncated);
        if ((load_be16(embedded.transport, 2) & 0xfff8) != 0) return std::unexpected(Drop::kIcmpUnmatched);
        embedded.protocol = static_cast<IpProtocol>(load_8(embedded.transport.data()));
        embedded.transport = embedded.transport.subspan(kIpv6FragmentHeaderLength);
    }
    return embedded;
}

}  // namespace

bool IcmpView::is_error() const {
    // [RFC4443 2.1] ICMPv6 errors are the types below 128
    if (family_ == Family::kIpv6) return type() < 128;
    return type() == icmp_v4::kDestinationUnreachable || type() == icmp_v4::kTimeExceeded ||
           type() == icmp_v4::kParameterProblem;
}

std::expected<EmbeddedPacket, Drop> EmbeddedPacket::parse(Family family, std::span<const std::byte> packet) {
    auto embedded = family == Family::kIpv4 ? parse_v4(packet) : parse_v6(packet);
    if (!embedded) return embedded;
    if (embedded->protocol != IpProtocol::kTcp && embedded->protocol != IpProtocol::kUdp) return embedded;
    if (embedded->transport.size() < 8) return std::unexpected(Drop::kIcmpTruncated);
    embedded->source_port = load_be16(embedded->transport, 0);
    embedded->destination_port = load_be16(embedded->transport, 2);
    if (embedded->protocol == IpProtocol::kTcp) embedded->tcp_sequence = load_be32(embedded->transport, 4);
    return embedded;
}

void emit(const IcmpHeader& header, std::span<const std::byte> payload, const Address& source,
          const Address& destination, std::span<std::byte> out) {
    const std::size_t length = kIcmpHeaderLength + payload.size();
    DCHECK(out.size() >= length && source.is_v4() == destination.is_v4());
    store_8(out.data(), header.type);
    store_8(out.data() + 1, header.code);
    store_be16(out.data() + 2, 0);
    store_be32(out.data() + 4, header.rest);
    PartialSum sum = copy_and_checksum(out.subspan(kIcmpHeaderLength), payload);
    sum += sum_bytes(out.first(kIcmpHeaderLength));
    if (!source.is_v4())
        sum += pseudo_header_sum(source, destination, IpProtocol::kIcmpv6, static_cast<std::uint32_t>(length));
    store_be16(out.data() + 2, checksum(sum));
}

}  // namespace culvert::wire
