#include "shm/layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "shm/ready_bitmap.h"
#include "shm/socket_record.h"

namespace culvert::shm {
namespace {

Geometry small() {
    return {.sockets = 256, .app_sockets = 64, .tx_blocks = 32, .rx_blocks = 48, .queues = 4, .processes = 3,
            .accept_queues = 2};
}

TEST(Layout, PartsDoNotOverlapAndLieWithinTheSegment) {
    const Geometry g = small();
    const Layout layout(g);
    std::vector<std::pair<std::uint64_t, std::uint64_t>> parts = {
        {0, sizeof(SegmentHeader)},
        {layout.processes, sizeof(ProcessRecord) * g.processes},
        {layout.holders, layout.holder_stride * g.processes},
        {layout.free_sockets, layout.holder_stride},
        {layout.dirty, layout.bitmap_bytes},
        {layout.queues, layout.queue_stride * g.queues},
        {layout.accept_queues, sizeof(AcceptQueueRecord) * g.accept_queues},
        {layout.sockets, sizeof(SocketRecord) * g.sockets},
        {layout.block_meta, sizeof(BlockMeta) * g.blocks()},
        {layout.blocks, std::uint64_t{kBlockSize} * g.blocks()},
    };
    std::sort(parts.begin(), parts.end());
    for (std::size_t i = 0; i < parts.size(); ++i) {
        EXPECT_EQ(parts[i].first % kCacheLine, 0u) << "part " << i;
        const std::uint64_t end = parts[i].first + parts[i].second;
        EXPECT_LE(end, i + 1 < parts.size() ? parts[i + 1].first : layout.size_bytes) << "part " << i;
    }
    EXPECT_EQ(layout.size_bytes % 4096, 0u);
}

TEST(Layout, GeometryIsCheckedAtItsBounds) {
    EXPECT_TRUE(valid(small()));
    const auto with = [](auto change) {
        Geometry g = small();
        change(g);
        return valid(g);
    };
    EXPECT_FALSE(with([](Geometry& g) { g.sockets = 0; }));
    EXPECT_FALSE(with([](Geometry& g) { g.sockets = 100; }));  // not a multiple of 64
    EXPECT_FALSE(with([](Geometry& g) { g.sockets = kMaxSockets + 64; }));
    EXPECT_TRUE(with([](Geometry& g) { g.sockets = kMaxSockets; }));
    EXPECT_FALSE(with([](Geometry& g) { g.app_sockets = 320; }));
    EXPECT_FALSE(with([](Geometry& g) { g.tx_blocks = kMaxBlocks + 1; }));
    EXPECT_FALSE(with([](Geometry& g) { g.rx_blocks = 0; }));
    EXPECT_FALSE(with([](Geometry& g) { g.queues = kMaxQueues + 1; }));
    EXPECT_FALSE(with([](Geometry& g) { g.processes = 0; }));
    EXPECT_FALSE(with([](Geometry& g) { g.accept_queues = kMaxAcceptQueues + 1; }));
}

TEST(Layout, AnIdleSocketIsSmall) {
    // 100,000 idle connections must fit in 100 MB together with the daemon's state.
    EXPECT_LE(sizeof(SocketRecord), 384u);
}

}  // namespace
}  // namespace culvert::shm
