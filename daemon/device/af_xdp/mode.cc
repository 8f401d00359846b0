#include "daemon/device/af_xdp/mode.h"

namespace culvert::device {

std::uint16_t BindMode::bind_flags() const {
    return static_cast<std::uint16_t>(XDP_USE_NEED_WAKEUP | (zero_copy ? XDP_ZEROCOPY : XDP_COPY) |
                                      (multi_buffer ? XDP_USE_SG : 0));
}

std::vector<BindMode> bind_modes(bool native, std::uint32_t mtu) {
    std::vector<BindMode> modes;
    for (const bool zero_copy : {true, false}) {
        if (zero_copy && !native) continue;
        modes.push_back({.zero_copy = zero_copy, .multi_buffer = true});
        if (mtu <= kMaxSingleBufferMtu) modes.push_back({.zero_copy = zero_copy, .multi_buffer = false});
    }
    return modes;
}

}  // namespace culvert::device
