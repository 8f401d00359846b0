#include "daemon/stack/tcp/segment_run.h"

#include <algorithm>
#include <cstring>

#include "daemon/wire/checksum.h"
#include "daemon/wire/ethernet.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"
#include "daemon/wire/tcp.h"

namespace culvert::stack::tcp {
namespace {

constexpr std::size_t kIpAt = wire::kEthernetHeaderLength;

bool same_bytes(const std::byte* a, const std::byte* b, std::size_t from, std::size_t to) {
    return std::memcmp(a + from, b + from, to - from) == 0;
}

/// The IP headers at `a` and `b` differ in nothing but length, identification and checksum, and b's is right.
bool same_ip(const std::byte* a, const std::byte* b, bool v4) {
    if (!v4) return same_bytes(a, b, 0, 4) && same_bytes(a, b, 6, wire::kIpv6HeaderLength);
    // Fragments have been sorted out: the flags and offset of the first are those of a whole packet.
    return same_bytes(a, b, 0, 2) && same_bytes(a, b, 6, 10) && same_bytes(a, b, 12, wire::kIpv4HeaderLength) &&
           wire::fold(wire::sum_bytes({b, wire::kIpv4HeaderLength})) == 0xffff;
}

/// Bytes of IP payload, by the header at `ip`.
std::size_t ip_payload(const std::byte* ip, bool v4) {
    if (!v4) return wire::load_be16(ip + 4);
    const std::size_t total = wire::load_be16(ip + 2);
    return total > wire::kIpv4HeaderLength ? total - wire::kIpv4HeaderLength : 0;
}

}  // namespace

std::size_t SegmentRun::gather(IpPacket& first, RxPacket& whole, std::span<const RxPacket> frames) {
    const bool v4 = first.source.is_v4();
    const std::size_t tcp_at = kIpAt + (v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength);
    if (first.network_offset != kIpAt || first.transport_offset != tcp_at || !whole.rest.empty() || whole.segment_size != 0)
        return 1;
    const std::byte* const head = frames[0].head.data();
    const std::size_t header = std::size_t{wire::load_8(head + tcp_at + 12)} >> 4 << 2;
    const std::size_t full = first.transport_length - header;  // payload of each but the last
    const std::size_t data_at = tcp_at + header;
    if (full == 0) return 1;

    std::uint32_t sequence = wire::load_be32(head + tcp_at + 4) + static_cast<std::uint32_t>(full);
    std::size_t count = 1, total = full;
    while (count < frames.size()) {
        const RxPacket& next = frames[count];
        const std::byte* const at = next.head.data();
        if (!next.rest.empty() || next.segment_size != 0 || next.head.size() <= data_at) break;
        if (!same_bytes(head, at, 0, kIpAt) || !same_ip(head + kIpAt, at + kIpAt, v4)) break;
        // Ports, sequence, acknowledgment; length and window around the flags; options.
        const std::byte* const a = head + tcp_at;
        const std::byte* const b = at + tcp_at;
        const wire::TcpFlags flags{wire::load_8(b + 13)};
        if (!same_bytes(a, b, 0, 4) || wire::load_be32(b + 4) != sequence || !same_bytes(a, b, 8, 13) ||
            flags.without(wire::kPsh) != wire::kAck || !same_bytes(a, b, 14, 16) ||
            !same_bytes(a, b, wire::kTcpHeaderLength, header))
            break;
        const std::size_t segment = ip_payload(at + kIpAt, v4);
        if (segment <= header || segment > full + header || tcp_at + segment > next.head.size()) break;
        if (!wire::verify_transport_checksum(next, tcp_at, segment, first.source, first.destination, wire::IpProtocol::kTcp))
            break;  // on its own it will be dropped, and counted
        const std::size_t payload = segment - header;
        rest_[count - 1] = next.head.subspan(data_at, payload);
        ++count;
        total += payload;
        sequence += static_cast<std::uint32_t>(payload);
        if (flags.psh() || payload < full) break;
    }
    if (count == 1) return 1;
    whole.head = whole.head.first(data_at + full);  // an Ethernet trailer would stand in the middle
    whole.rest = {rest_.data(), count - 1};
    whole.length = static_cast<std::uint32_t>(data_at + total);
    whole.checksum = ChecksumState::kVerified;
    whole.segment_size = static_cast<std::uint16_t>(full);
    whole.loan = nullptr;
    first.transport_length = static_cast<std::uint32_t>(header + total);
    return count;
}

}  // namespace culvert::stack::tcp
