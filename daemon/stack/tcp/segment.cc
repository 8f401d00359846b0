#include "daemon/stack/tcp/segment.h"

#include <algorithm>

namespace culvert::stack::tcp {

std::expected<Segment, Drop> Segment::parse(const IpPacket& packet) {
    if (packet.transport_offset > packet.packet.head.size()) return std::unexpected(Drop::kTcpTruncated);
    const auto head = packet.packet.head.subspan(packet.transport_offset);
    const auto view = wire::TcpView::parse(head, packet.transport_length);
    if (!view) return std::unexpected(view.error());
    // [RFC9293 3.1 MUST-3]
    if (!wire::verify_transport_checksum(packet.packet, packet.transport_offset, packet.transport_length, packet.source,
                                         packet.destination, wire::IpProtocol::kTcp))
        return std::unexpected(Drop::kTcpChecksum);
    const wire::TcpFlags flags = view->flags();
    if (flags.syn() && flags.any_of(wire::kFin | wire::kRst)) return std::unexpected(Drop::kTcpFlagsInvalid);
    // Made where it will stay: copying what was just written piece by piece waits for the store buffer.
    std::expected<Segment, Drop> segment(std::in_place, packet, Endpoint{packet.destination, view->destination()},
                                         Endpoint{packet.source, view->source()});
    segment->sequence = view->sequence();
    segment->acknowledgment = view->acknowledgment();
    segment->flags = flags;
    segment->window = view->window();
    segment->urgent = view->urgent();
    segment->payload_offset = packet.transport_offset + static_cast<std::uint32_t>(view->header_length());
    segment->payload_length = static_cast<std::uint32_t>(view->payload_length());
    // [RFC9293 3.1 MUST-5] in any segment
    const Drop drop = wire::TcpOptions::parse_into(view->options(), segment->options);
    if (drop != Drop::kNone) [[unlikely]]
        return std::unexpected(drop);
    return segment;
}

PayloadSlice::PayloadSlice(const Segment& segment, std::uint32_t skip, std::uint32_t length) {
    const RxPacket& packet = segment.ip.packet;
    std::size_t offset = std::size_t{segment.payload_offset} + skip;
    std::size_t left = length;
    const auto take = [&](std::span<const std::byte> fragment) {
        if (offset >= fragment.size()) {
            offset -= fragment.size();
            return;
        }
        const std::size_t n = std::min(left, fragment.size() - offset);
        spans_[count_++] = fragment.subspan(offset, n);
        offset = 0;
        left -= n;
    };
    take(packet.head);
    for (std::size_t i = 0; left > 0 && i < packet.rest.size() && count_ < spans_.size(); ++i) take(packet.rest[i]);
    length_ = length - static_cast<std::uint32_t>(left);
}

}  // namespace culvert::stack::tcp
