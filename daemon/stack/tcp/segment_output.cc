#include "daemon/stack/tcp/segment_output.h"

#include <algorithm>

#include "daemon/wire/checksum.h"

namespace culvert::stack::tcp {
namespace {

/// Copies `length` bytes from the chunks into the packet and sums them on the way.
wire::PartialSum gather(SendQueue::Reader& from, std::uint32_t length, PacketWriter& to) {
    wire::ChecksumAccumulator sum;
    while (length > 0) {
        const auto source = from.run();
        const auto room = to.room();
        const std::size_t n = std::min({source.size(), room.size(), std::size_t{length}});
        sum.add(wire::copy_and_checksum(room.first(n), source.first(n)), n);
        from.advance(n);
        to.advance(n);
        length -= static_cast<std::uint32_t>(n);
    }
    return sum.sum();
}

void copy(SendQueue::Reader& from, std::uint32_t length, PacketWriter& to) {
    while (length > 0) {
        const auto run = from.run();
        const auto n = static_cast<std::uint32_t>(std::min(run.size(), std::size_t{length}));
        to.write(run.first(n));
        from.advance(n);
        length -= n;
    }
}

}  // namespace

bool SegmentOutput::send(Path& path, const Address& local, const Address& remote, const wire::TcpHeader& header,
                         const wire::TcpOptions& options, SendQueue::Reader* payload, std::uint32_t length,
                         std::uint8_t tos, std::uint8_t ttl, Instant now) {
    const auto header_length = static_cast<std::uint32_t>(wire::tcp_header_length(options));
    TxPacket packet;
    std::uint32_t offset = 0;
    if (!ip_.begin(path, local, remote, static_cast<std::uint8_t>(wire::IpProtocol::kTcp), tos, ttl,
                   header_length + length, packet, offset))
        return false;
    PacketWriter writer(packet, offset);
    const auto room = writer.room();
    DCHECK(room.size() >= header_length);  // the first chunk holds every header
    const auto head = room.first(header_length);
    wire::emit(header, options, head);
    writer.advance(header_length);
    wire::PartialSum sum;
    if (length > 0) sum = gather(*payload, length, writer);
    // [RFC9293 3.1 MUST-2]
    wire::finish_tcp_checksum(head, sum, length, local, remote);
    ++counters_.tcp_segments_out;
    ip_.end(path, packet, now);
    return true;
}

bool SegmentOutput::send_super(Path& path, const Address& local, const Address& remote, const wire::TcpHeader& header,
                               const wire::TcpOptions& options, SendQueue::Reader& payload, std::uint32_t length,
                               std::uint16_t segment_size, std::uint8_t tos, std::uint8_t ttl, Instant now) {
    const auto header_length = static_cast<std::uint32_t>(wire::tcp_header_length(options));
    TxPacket packet;
    std::uint32_t offset = 0;
    if (!ip_.begin_super(path, local, remote, static_cast<std::uint8_t>(wire::IpProtocol::kTcp), tos, ttl,
                         header_length + length, packet, offset))
        return false;
    PacketWriter writer(packet, offset);
    const auto head = writer.room().first(header_length);
    wire::emit(header, options, head);
    writer.advance(header_length);
    copy(payload, length, writer);
    wire::leave_tcp_checksum(head, length, local, remote);
    packet.segment_size = segment_size;
    packet.transport_offset = static_cast<std::uint16_t>(offset);
    counters_.tcp_segments_out += (length + segment_size - 1) / segment_size;
    ++counters_.tcp_super_packets_out;
    ip_.end(path, packet, now);
    return true;
}

bool SegmentOutput::send_once(const Endpoint& local, const Endpoint& remote, const wire::TcpHeader& header,
                              const wire::TcpOptions& options, Instant now, std::uint8_t tos, std::uint8_t ttl) {
    auto path = ip_.find_path(local.address, remote.address, now);
    if (!path) {
        counters_.drop(Drop::kIpNoRoute);
        return false;
    }
    return send(*path, local.address, remote.address, header, options, nullptr, 0, tos, ttl, now);
}

void SegmentOutput::send_reset(const Segment& segment, Instant now) {
    wire::TcpHeader header{.source = segment.local.port, .destination = segment.remote.port, .flags = wire::kRst};
    if (segment.flags.ack()) {
        header.sequence = segment.acknowledgment;
    } else {
        header.flags |= wire::kAck;
        header.acknowledgment = segment.sequence + segment.length();
    }
    if (send_once(segment.local, segment.remote, header, {}, now)) ++counters_.tcp_resets_out;
}

}  // namespace culvert::stack::tcp
