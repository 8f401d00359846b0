#include "daemon/device/af_xdp/mode.h"

#include <gtest/gtest.h>

namespace culvert::device {
namespace {

TEST(BindModes, BestFirst) {
    const std::vector<BindMode> expected = {{true, true}, {true, false}, {false, true}, {false, false}};
    EXPECT_EQ(bind_modes(true, 1500), expected);
}

TEST(BindModes, GenericXdpHasNoZeroCopy) {
    const std::vector<BindMode> expected = {{false, true}, {false, false}};
    EXPECT_EQ(bind_modes(false, 1500), expected);
}

TEST(BindModes, JumboFramesNeedMultiBuffer) {
    const std::vector<BindMode> expected = {{true, true}, {false, true}};
    EXPECT_EQ(bind_modes(true, kMaxSingleBufferMtu + 1), expected);
    EXPECT_EQ(bind_modes(true, kMaxSingleBufferMtu).size(), 4u);
}

TEST(BindModes, AlwaysAskForWakeups) {
    for (const BindMode mode : bind_modes(true, 1500)) EXPECT_TRUE(mode.bind_flags() & XDP_USE_NEED_WAKEUP);
    EXPECT_TRUE((BindMode{true, false}.bind_flags()) & XDP_ZEROCOPY);
    EXPECT_TRUE((BindMode{false, true}.bind_flags()) & XDP_COPY);
    EXPECT_TRUE((BindMode{false, true}.bind_flags()) & XDP_USE_SG);
}

}  // namespace
}  // namespace culvert::device
