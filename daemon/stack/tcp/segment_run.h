// Several frames of a burst that are one flow's data in order, taken as one segment: what the kernel's GRO does, for devices
// that hand over one frame at a time (AF_XDP, a packet socket). The connection's work is then done once for the run.
//
//   frame 0   [ eth ip tcp | payload ]           head of the merged packet
//   frame 1   [ eth ip tcp | payload ]                         \  rest[0]
//   frame 2   [ eth ip tcp | payload ] shorter, or with PSH    /  rest[1]: the last one
//
// Nothing is copied and no header is written: frames are merged only if their headers say the same but for the sequence
// number, and PSH of the last (as Linux' tcp_gro_receive has it): so CE is not mixed with what has none, SYN, FIN, RST, URG,
// ECE and CWR always stand alone, and acknowledgment, window and timestamps of one are those of all.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "daemon/base/packet.h"
#include "daemon/stack/ip_packet.h"
#include "daemon/wire/bytes.h"

namespace culvert::stack::tcp {

class SegmentRun {
public:
    /// May `next` go on where `first` ends? Only a glance, for frames with nothing but Ethernet and a bare IP header; gather()
    /// looks closer. False for nearly everything that is no bulk transfer, and then it costs a few instructions.
    static bool likely(const RxPacket& first, const RxPacket& next) {
        const std::size_t size = std::min(first.head.size(), next.head.size());
        if (size < kLeast) return false;
        const std::byte* const a = first.head.data();
        const std::byte* const b = next.head.data();
        // [ether type][version, header length]: 0800 45 or 86dd 6x
        const std::size_t tcp = wire::load_8(a + 13) == 0x00 ? 14 + 20 : 14 + 40;
        constexpr std::uint8_t kOnlyAck = 0x10, kPush = 0x08;
        return size > tcp + 20 && wire::load_8(a + tcp + 13) == kOnlyAck &&
               (wire::load_8(b + tcp + 13) & ~kPush) == kOnlyAck && wire::load_be32(a + tcp) == wire::load_be32(b + tcp);
    }

    /// Takes those of `frames` that continue frames[0], in order, into `whole` and `first`. Requires: `whole` is a copy of
    /// frames[0], `first` is it after IP input and its checksum is proved; at most kMaxFragments frames. Each further frame is
    /// proved here (headers, both checksums); the first that does not fit ends the run. Returns how many frames there are in
    /// it; 1: nothing has changed. `whole` points into this object and into the frames.
    std::size_t gather(IpPacket& first, RxPacket& whole, std::span<const RxPacket> frames);

private:
    static constexpr std::size_t kLeast = 14 + 20 + 20 + 1;

    UnsetArray<std::span<const std::byte>, kMaxFragments> rest_;
};

}  // namespace culvert::stack::tcp
