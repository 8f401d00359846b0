#include "shm/segment.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

namespace culvert::shm {
namespace {

constexpr Geometry kGeometry{.sockets = 128, .app_sockets = 64, .tx_blocks = 16, .rx_blocks = 16, .queues = 2,
                             .processes = 2, .accept_queues = 1};

TEST(Segment, BothSidesSeeTheSameRecords) {
    UniqueFd fd;
    auto daemon = Segment::create(kGeometry, "test", fd);
    ASSERT_TRUE(daemon) << daemon.error().message();
    auto shim = Segment::open(fd.get(), kGeometry);
    ASSERT_TRUE(shim) << shim.error().message();
    shim->socket(127).app.tx_queued.store(77);
    EXPECT_EQ(daemon->socket(127).app.tx_queued.load(), 77u);
    daemon->block(31)[kBlockSize - 1] = std::byte{9};
    EXPECT_EQ(shim->block(31)[kBlockSize - 1], std::byte{9});
    shim->ready(1).post(100);
    EXPECT_TRUE(daemon->ready(1).any());
    EXPECT_FALSE(daemon->ready(0).any());
    daemon->watched(0).set(127);
    EXPECT_TRUE(shim->watched(0).test(127));
    EXPECT_FALSE(shim->watched(1).test(127));
}

TEST(Segment, AnApplicationCannotResizeIt) {
    UniqueFd fd;
    auto daemon = Segment::create(kGeometry, "test", fd);
    ASSERT_TRUE(daemon);
    EXPECT_EQ(::ftruncate(fd.get(), 4096), -1);
    EXPECT_EQ(errno, EPERM);
    EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(daemon->layout().size_bytes * 2)), -1);
    EXPECT_EQ(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE), -1);  // nor seal it against us
}

TEST(Segment, TheShimRefusesWhatDoesNotFit) {
    UniqueFd fd;
    auto daemon = Segment::create(kGeometry, "test", fd);
    ASSERT_TRUE(daemon);
    Geometry other = kGeometry;
    other.tx_blocks = 17;
    EXPECT_EQ(Segment::open(fd.get(), other).error().code, EPROTO);
    daemon->header().abi_version = kAbiVersion + 1;
    EXPECT_EQ(Segment::open(fd.get(), kGeometry).error().code, EPROTO);
    UniqueFd loose(::memfd_create("loose", MFD_ALLOW_SEALING));
    ASSERT_EQ(::ftruncate(loose.get(), static_cast<off_t>(Layout(kGeometry).size_bytes)), 0);
    EXPECT_EQ(Segment::open(loose.get(), kGeometry).error().what, "segment is not sealed");
    EXPECT_FALSE(Segment::create(Geometry{}, "none", fd));
}

}  // namespace
}  // namespace culvert::shm
