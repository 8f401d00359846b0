// From MTU to segment size, both families.
#pragma once

#include <algorithm>
#include <cstdint>

#include "daemon/wire/address.h"

namespace culvert::stack::tcp {

/// What fits behind IP and TCP headers without options in a packet of `mtu` bytes; at most what the length fields of IP
/// can express (65495 over IPv4, 65515 over IPv6). [RFC9293 3.7.1 MUST-16, MUST-67]
inline std::uint32_t mss_for_mtu(std::uint32_t mtu, const Address& remote) {
    constexpr std::uint32_t kTcpHeader = 20;
    const std::uint32_t ip_header = remote.is_v4() ? 20 : 40;
    const std::uint32_t longest = remote.is_v4() ? 0xffff : 0xffff + 40;
    const std::uint32_t packet = std::min(mtu, longest);
    return packet > ip_header + kTcpHeader + 88 ? packet - ip_header - kTcpHeader : 88;
}

}  // namespace culvert::stack::tcp
