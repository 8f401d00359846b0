// An entry of a socket's error queue, for a datagram and for an attempt to connect alike.
#pragma once

#include <time.h>

#include <linux/errqueue.h>  // needs timespec

#include <algorithm>
#include <cstring>
#include <span>

#include "daemon/tenant/receive_stage.h"
#include "daemon/tenant/sockets.h"
#include "shm/segment.h"

namespace culvert::tenant {

/// `Error`: stack::IcmpError or stack::udp::DatagramError, whose words are the same.
template <class Error>
shm::DatagramErrorHeader error_header(const Error& error, std::uint16_t family) {
    shm::DatagramErrorHeader header{};
    header.remote = to_wire(error.remote, family);
    std::memcpy(header.offender, error.offender.bytes().data(), sizeof header.offender);
    header.error = error.error;
    header.origin = !error.by_icmp ? std::uint8_t{SO_EE_ORIGIN_LOCAL}
                    : error.offender.is_v4() ? std::uint8_t{SO_EE_ORIGIN_ICMP}
                                             : std::uint8_t{SO_EE_ORIGIN_ICMP6};
    header.type = error.type;
    header.code = error.code;
    return header;
}

/// The header and as much of `payload` as fits into its block. False: no block.
inline bool append_error(shm::Segment& segment, BlockLedger& ledger, ReceiveStage& stage, LentList& lent, shm::DatagramErrorHeader header,
                         std::span<const std::byte> payload) {
    const auto fits = payload.first(std::min<std::size_t>(payload.size(), shm::kBlockSize - sizeof header));
    header.length = static_cast<std::uint32_t>(fits.size());
    return stage.append_datagram(segment, ledger, lent, std::as_bytes(std::span(&header, 1)), {&fits, 1}, header.length);
}

}  // namespace culvert::tenant
