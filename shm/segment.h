// The segment, mapped. Typed access to every part; the same class on both sides.
//
// Every accessor takes an index that the caller has checked against geometry(). The daemon checks what comes from the
// application; the shim checks what it reads too (a broken daemon must not take the application with it).
#pragma once

#include <boost/interprocess/mapped_region.hpp>
#include <cstddef>
#include <span>

#include "shm/base/error.h"
#include "shm/base/unique_fd.h"
#include "shm/layout.h"
#include "shm/ready_bitmap.h"
#include "shm/socket_record.h"

namespace culvert::shm {

class Segment {
public:
    /// Daemon: makes a memfd of the right size, seals it against resizing, maps it and writes the header.
    /// The descriptor to send is in `fd`.
    static Result<Segment> create(const Geometry& geometry, const char* name, UniqueFd& fd);
    /// Shim: maps a received descriptor after checking seals, size, magic and version against `geometry`.
    static Result<Segment> open(int fd, const Geometry& geometry);

    const Geometry& geometry() const { return layout_.geometry; }
    const Layout& layout() const { return layout_; }

    SegmentHeader& header() { return *at<SegmentHeader>(0); }
    ProcessRecord& process(std::uint32_t slot) { return at<ProcessRecord>(layout_.processes)[slot]; }
    /// Sockets that the process in `slot` holds open.
    SocketBitmap holders(std::uint32_t slot) { return bitmap(layout_.holders + slot * layout_.holder_stride); }
    /// Records of the application's range that nobody uses (bit set = free).
    SocketBitmap free_sockets() { return bitmap(layout_.free_sockets); }
    /// Sockets that the daemon shall look at.
    ReadyBitmap dirty() { return {at<Word>(layout_.dirty), geometry().sockets}; }
    QueueRecord& queue(std::uint32_t index) { return *at<QueueRecord>(queue_offset(index)); }
    /// Sockets for which the daemon has news for this queue.
    ReadyBitmap ready(std::uint32_t index) {
        return {at<Word>(queue_offset(index) + sizeof(QueueRecord)), geometry().sockets};
    }
    /// Sockets that this queue wants news of.
    SocketBitmap watched(std::uint32_t index) {
        return bitmap(queue_offset(index) + sizeof(QueueRecord) + layout_.bitmap_bytes);
    }
    AcceptQueueRecord& accept_queue(std::uint32_t index) {
        return at<AcceptQueueRecord>(layout_.accept_queues)[index];
    }
    SocketRecord& socket(std::uint32_t index) { return at<SocketRecord>(layout_.sockets)[index]; }
    BlockMeta* block_meta() { return at<BlockMeta>(layout_.block_meta); }
    std::byte* block(std::uint32_t index) {
        return at<std::byte>(layout_.blocks) + std::size_t{index} * kBlockSize;
    }

private:
    Segment(const Geometry& geometry, boost::interprocess::mapped_region region)
        : layout_(geometry), region_(std::move(region)), base_(static_cast<std::byte*>(region_.get_address())) {}

    template <class T>
    T* at(std::uint64_t offset) {
        return reinterpret_cast<T*>(base_ + offset);
    }
    SocketBitmap bitmap(std::uint64_t offset) { return {at<Word>(offset), geometry().sockets}; }
    std::uint64_t queue_offset(std::uint32_t index) const { return layout_.queues + index * layout_.queue_stride; }

    Layout layout_;
    boost::interprocess::mapped_region region_;
    std::byte* base_;
};

}  // namespace culvert::shm
