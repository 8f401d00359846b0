#include "shm/layout.h"

#include <array>

#include "shm/ready_bitmap.h"
#include "shm/socket_record.h"

namespace culvert::shm {

namespace {
constexpr std::uint64_t align(std::uint64_t value, std::uint64_t to) { return (value + to - 1) / to * to; }
constexpr std::uint64_t kPage = 4096;
}  // namespace

bool valid(const Geometry& g) {
    const auto within = [](std::uint32_t value, std::uint32_t limit) { return value > 0 && value <= limit; };
    return within(g.sockets, kMaxSockets) && g.sockets % 64 == 0 && g.app_sockets % 64 == 0 &&
           within(g.app_sockets, g.sockets) && within(g.tx_blocks, kMaxBlocks) && within(g.rx_blocks, kMaxBlocks) &&
           within(g.queues, kMaxQueues) && within(g.processes, kMaxProcesses) &&
           within(g.accept_queues, kMaxAcceptQueues);
}

Layout::Layout(const Geometry& g) : geometry(g) {
    std::uint64_t at = align(sizeof(SegmentHeader), kPage);
    const auto place = [&at](std::uint64_t bytes) {
        const std::uint64_t begin = at;
        at = align(at + bytes, kCacheLine);
        return begin;
    };
    bitmap_bytes = ReadyBitmap::bytes(g.sockets);
    holder_stride = align(std::uint64_t{ReadyBitmap::words(g.sockets)} * sizeof(Word), kCacheLine);
    queue_stride = sizeof(QueueRecord) + bitmap_bytes + holder_stride;  // record, ready, watch
    processes = place(sizeof(ProcessRecord) * g.processes);
    holders = place(holder_stride * g.processes);
    free_sockets = place(holder_stride);
    dirty = place(bitmap_bytes);
    queues = place(queue_stride * g.queues);
    accept_queues = place(sizeof(AcceptQueueRecord) * g.accept_queues);
    sockets = place(sizeof(SocketRecord) * g.sockets);
    block_meta = place(sizeof(BlockMeta) * g.blocks());
    at = align(at, kPage);
    blocks = place(std::uint64_t{kBlockSize} * g.blocks());
    size_bytes = align(at, kPage);
}

const char* kernel_reason_text(KernelReason reason) {
    static constexpr std::array kTexts = {
#define CULVERT_REASON_TEXT(name, text) text,
        CULVERT_KERNEL_REASONS(CULVERT_REASON_TEXT)
#undef CULVERT_REASON_TEXT
    };
    const auto index = static_cast<std::size_t>(reason);
    return index < kTexts.size() ? kTexts[index] : "";
}

}  // namespace culvert::shm
