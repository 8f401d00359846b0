// The virtio-net header that TUN/TAP and packet sockets put before a frame: what of its checksum and segmentation is
// still to be done. (linux/virtio_net.h, linux/if_tun.h IFF_VNET_HDR, packet(7) PACKET_VNET_HDR)
//
//   in    flags NEEDS_CSUM: sent on this host, its checksum covers the pseudo-header only     -> verified
//         flags DATA_VALID: the hardware has checked it                                       -> verified
//         gso_type TCPV4/TCPV6, gso_size: several segments merged, gso_size payload bytes each
//   out   NEEDS_CSUM, gso_type, gso_size: whoever puts it on the wire cuts it and fills the checksums in
#pragma once

#include <cstdint>
#include <span>

#include "daemon/base/packet.h"

namespace culvert::device {

/// struct virtio_net_hdr, in this host's byte order as both users of it have it. Written out here because linux/virtio_net.h
/// is no C++ (it names a member "class").
struct VirtioHeader {
    static constexpr std::uint8_t kNeedsChecksum = 1;  // VIRTIO_NET_HDR_F_NEEDS_CSUM
    static constexpr std::uint8_t kDataValid = 2;      // VIRTIO_NET_HDR_F_DATA_VALID
    static constexpr std::uint8_t kNotMerged = 0;      // VIRTIO_NET_HDR_GSO_NONE
    static constexpr std::uint8_t kTcpV4 = 1;          // VIRTIO_NET_HDR_GSO_TCPV4
    static constexpr std::uint8_t kTcpV6 = 4;          // VIRTIO_NET_HDR_GSO_TCPV6
    static constexpr std::uint8_t kEcn = 0x80;         // VIRTIO_NET_HDR_GSO_ECN

    std::uint8_t flags = 0;
    std::uint8_t gso_type = kNotMerged;
    std::uint16_t hdr_len = 0;      // bytes of all headers; a hint
    std::uint16_t gso_size = 0;     // payload bytes of a segment
    std::uint16_t csum_start = 0;   // where summing begins
    std::uint16_t csum_offset = 0;  // where the sum goes, from there
};
static_assert(sizeof(VirtioHeader) == 10);

/// Largest TCP payload that the kernel takes as one packet: a length field of 16 bits, less the headers' most.
inline constexpr std::uint32_t kSegmentationLimit = 0xffff - 40 - 60;

/// What the stack is told of a received frame.
struct OffloadFacts {
    ChecksumState checksum = ChecksumState::kUnverified;
    std::uint16_t segment_size = 0;
};

/// Merged UDP datagrams (VIRTIO_NET_HDR_GSO_UDP, _UDP_L4) are never asked for; a frame that says so is refused: false.
inline bool read_virtio_header(const VirtioHeader& header, OffloadFacts& facts) {
    const bool good = (header.flags & (VirtioHeader::kNeedsChecksum | VirtioHeader::kDataValid)) != 0;
    facts.checksum = good ? ChecksumState::kVerified : ChecksumState::kUnverified;
    facts.segment_size = 0;
    switch (header.gso_type & ~VirtioHeader::kEcn) {
        case VirtioHeader::kNotMerged: return true;
        case VirtioHeader::kTcpV4:
        case VirtioHeader::kTcpV6:
            facts.segment_size = header.gso_size;  // the kernel's own byte order, as everywhere without VERSION_1
            return header.gso_size != 0;
        default: return false;
    }
}

/// For a frame of the stack. `segment_size` 0: nothing is left to do. Else `frame` begins with Ethernet, IP and TCP headers
/// (the first fragment holds them all), TCP's at `transport_offset`.
inline VirtioHeader make_virtio_header(std::span<const std::byte> frame, std::uint16_t segment_size,
                                         std::uint16_t transport_offset) {
    VirtioHeader header{};
    if (segment_size == 0) return header;
    constexpr std::size_t kEtherTypeAt = 12;
    constexpr std::size_t kTcpChecksumAt = 16;
    constexpr std::size_t kTcpOffsetAt = 12;
    const bool v4 = frame[kEtherTypeAt] == std::byte{0x08} && frame[kEtherTypeAt + 1] == std::byte{0x00};
    const auto tcp_words = static_cast<unsigned>(frame[transport_offset + kTcpOffsetAt] >> 4);
    header.flags = VirtioHeader::kNeedsChecksum;
    header.gso_type = v4 ? VirtioHeader::kTcpV4 : VirtioHeader::kTcpV6;
    header.gso_size = segment_size;
    header.hdr_len = static_cast<std::uint16_t>(transport_offset + tcp_words * 4);
    header.csum_start = transport_offset;
    header.csum_offset = kTcpChecksumAt;
    return header;
}

}  // namespace culvert::device
