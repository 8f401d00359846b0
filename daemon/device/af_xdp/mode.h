// How an AF_XDP socket is bound: what is tried, best first.
//
//   zero-copy   the NIC writes into our frames             drivers that can, native XDP only
//   copy        the kernel copies each frame once          every driver, native or generic XDP
//
// Multi-buffer (XDP_USE_SG, Linux 6.6) lets a packet span several chunks. Copy mode always has it where the kernel
// does; for zero-copy the driver must. Below kMaxSingleBufferMtu we can do without, above it we cannot.
#pragma once

#include <linux/if_xdp.h>

#include <cstdint>
#include <vector>

#include "daemon/base/frame_pool.h"

// Debian 12's headers are those of Linux 6.1. Values: include/uapi/linux/if_xdp.h.
#ifndef XDP_USE_SG
#define XDP_USE_SG (1 << 4)  // Linux 6.6
#endif
#ifndef XDP_PKT_CONTD
#define XDP_PKT_CONTD (1 << 0)  // Linux 6.6, in xdp_desc::options
#endif
#ifndef XDP_MAX_TX_SKB_BUDGET
#define XDP_MAX_TX_SKB_BUDGET 9  // Linux 6.17, socket option
#endif

namespace culvert::device {

/// The kernel keeps this much free before each received frame (XDP_PACKET_HEADROOM).
inline constexpr std::uint32_t kXdpHeadroom = 256;
/// What one chunk holds of a received packet.
inline constexpr std::uint32_t kRxBufferSize = FramePool::kChunkSize - kXdpHeadroom;
/// Ethernet header and one VLAN tag must fit beside it.
inline constexpr std::uint32_t kMaxSingleBufferMtu = kRxBufferSize - 18;

struct BindMode {
    bool zero_copy;
    bool multi_buffer;

    std::uint16_t bind_flags() const;
    friend bool operator==(const BindMode&, const BindMode&) = default;
};

/// What to try for an interface of this MTU, best first.
std::vector<BindMode> bind_modes(bool native, std::uint32_t mtu);

}  // namespace culvert::device
