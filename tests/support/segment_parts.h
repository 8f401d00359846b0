// Every part of a segment, by name and place, for tests that write nonsense over one after the other.
//
// The list follows shm/layout.h and shm/socket_record.h by hand; what makes sure that nothing is missing is covers_all(): the
// parts must fill the segment, and the fields their structs, but for padding. A new structure that is not listed fails the test.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "shm/segment.h"

namespace culvert::test {

/// `count` pieces of `bytes` bytes, each `stride` behind the one before.
struct SegmentPart {
    std::string name;
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;
    std::uint64_t stride = 0;
    std::uint64_t count = 1;

    std::uint64_t end() const { return offset + (count - 1) * stride + bytes; }
};

/// The large parts, in the order in which they lie. Together they are the segment.
inline std::vector<SegmentPart> segment_parts(const shm::Layout& layout) {
    const shm::Geometry& g = layout.geometry;
    const auto array = [](const char* name, std::uint64_t offset, std::uint64_t bytes, std::uint64_t count) {
        return SegmentPart{name, offset, bytes, bytes, count};
    };
    return {
        array("header", 0, sizeof(shm::SegmentHeader), 1),
        array("processes", layout.processes, sizeof(shm::ProcessRecord), g.processes),
        array("holders", layout.holders, layout.holder_stride, g.processes),
        array("free_sockets", layout.free_sockets, layout.holder_stride, 1),
        array("dirty", layout.dirty, layout.bitmap_bytes, 1),
        array("queues", layout.queues, layout.queue_stride, g.queues),
        array("accept_queues", layout.accept_queues, sizeof(shm::AcceptQueueRecord), g.accept_queues),
        array("sockets", layout.sockets, sizeof(shm::SocketRecord), g.sockets),
        array("block_meta", layout.block_meta, sizeof(shm::BlockMeta), g.blocks()),
        array("blocks", layout.blocks, shm::kBlockSize, g.blocks()),
    };
}

/// The fields of the small structs, each in all its instances.
inline std::vector<SegmentPart> segment_fields(const shm::Layout& layout) {
    const shm::Geometry& g = layout.geometry;
    std::vector<SegmentPart> fields;
#define CULVERT_FIELD(begin, type, field, number) \
    fields.push_back({#type "::" #field, (begin) + offsetof(type, field), sizeof(type::field), sizeof(type), number})
    using namespace shm;  // NOLINT: offsetof and the names above
    CULVERT_FIELD(0, SegmentHeader, magic, 1);
    CULVERT_FIELD(0, SegmentHeader, abi_version, 1);
    CULVERT_FIELD(0, SegmentHeader, reserved, 1);
    CULVERT_FIELD(0, SegmentHeader, geometry, 1);
    CULVERT_FIELD(0, SegmentHeader, size_bytes, 1);
    CULVERT_FIELD(0, SegmentHeader, engine_asleep, 1);
    CULVERT_FIELD(0, SegmentHeader, tx_free, 1);
    CULVERT_FIELD(0, SegmentHeader, tx_starved, 1);
    CULVERT_FIELD(0, SegmentHeader, rx_returned, 1);
    CULVERT_FIELD(layout.processes, ProcessRecord, live, g.processes);
    CULVERT_FIELD(layout.processes, ProcessRecord, pid, g.processes);
    CULVERT_FIELD(layout.processes, ProcessRecord, reasons, g.processes);
    CULVERT_FIELD(layout.accept_queues, AcceptQueueRecord, head, g.accept_queues);
    CULVERT_FIELD(layout.accept_queues, AcceptQueueRecord, tail, g.accept_queues);
    CULVERT_FIELD(layout.accept_queues, AcceptQueueRecord, entries, g.accept_queues);
    CULVERT_FIELD(layout.sockets, SocketRecord, app, g.sockets);
    CULVERT_FIELD(layout.sockets, SocketRecord, daemon, g.sockets);
    CULVERT_FIELD(layout.sockets, SocketRecord, local, g.sockets);
    CULVERT_FIELD(layout.sockets, SocketRecord, remote, g.sockets);
    CULVERT_FIELD(layout.sockets, SocketRecord, accept_queue, g.sockets);
    CULVERT_FIELD(layout.sockets, SocketRecord, listener, g.sockets);
    CULVERT_FIELD(layout.sockets, SocketRecord, protocol, g.sockets);
    CULVERT_FIELD(layout.sockets, SocketRecord, operation, g.sockets);
    CULVERT_FIELD(layout.sockets, SocketRecord, options, g.sockets);
    CULVERT_FIELD(layout.sockets, SocketRecord, info, g.sockets);
    CULVERT_FIELD(layout.sockets, SocketRecord, urgent, g.sockets);
    CULVERT_FIELD(layout.block_meta, BlockMeta, next, g.blocks());
    CULVERT_FIELD(layout.block_meta, BlockMeta, length, g.blocks());
    CULVERT_FIELD(layout.block_meta, BlockMeta, offset, g.blocks());
    CULVERT_FIELD(layout.block_meta, BlockMeta, flags, g.blocks());
#undef CULVERT_FIELD
    // One event queue: its flag, then the two bitmaps.
    fields.push_back({"queues: asleep", layout.queues, sizeof(shm::QueueRecord::asleep), layout.queue_stride, g.queues});
    fields.push_back({"queues: ready", layout.queues + sizeof(shm::QueueRecord), layout.bitmap_bytes, layout.queue_stride, g.queues});
    fields.push_back({"queues: watched", layout.queues + sizeof(shm::QueueRecord) + layout.bitmap_bytes, layout.holder_stride,
                      layout.queue_stride, g.queues});
    return fields;
}

/// Empty, or what lies between two parts and belongs to none. Padding up to the next page or cache line is nobody's.
inline std::string uncovered(const shm::Layout& layout) {
    constexpr std::uint64_t kPage = 4096;
    std::uint64_t at = 0;
    for (const SegmentPart& part : segment_parts(layout)) {
        if (part.offset < at) return part.name + " overlaps what lies before it";
        const std::uint64_t slack = part.name == "blocks" || part.name == "processes" ? kPage : shm::kCacheLine;
        if (part.offset - at >= slack) return "something unknown before " + part.name;
        at = part.end();
    }
    if (layout.size_bytes < at || layout.size_bytes - at >= kPage) return "something unknown at the end";
    // The same within the structs: a field ends where the next begins, but for alignment.
    const std::vector<SegmentPart> fields = segment_fields(layout);
    for (const SegmentPart& part : segment_parts(layout)) {
        std::uint64_t place = part.offset;
        bool any = false;
        for (const SegmentPart& field : fields) {
            if (field.offset < part.offset || field.offset >= part.offset + part.stride) continue;
            any = true;
            if (field.offset < place || field.offset - place >= shm::kCacheLine) return "a hole before " + field.name;
            place = field.offset + field.bytes;
        }
        if (any && part.offset + part.stride - place >= shm::kCacheLine) return "an unknown field at the end of one of " + part.name;
    }
    return "";
}

}  // namespace culvert::test
