// Cutting packets into fragments as routers and senders do, for tests of what puts them together.
#pragma once

#include <algorithm>
#include <vector>

#include "tests/unit/stack/ip_world.h"

namespace culvert::stack {

/// One fragment as a frame: `bytes` of the message from `offset` on.
inline Bytes fragment_frame(const Address& source, const Address& destination, wire::IpProtocol protocol,
                            std::uint32_t identification, std::size_t offset, bool more, std::span<const std::byte> bytes,
                            std::uint8_t tos = 0) {
    const bool v4 = destination.is_v4();
    const std::size_t headers = wire::kEthernetHeaderLength +
                                (v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength + wire::kIpv6FragmentHeaderLength);
    Bytes frame(headers + bytes.size());
    wire::emit(wire::EthernetHeader{kOurMac, kPeerMac, v4 ? wire::EtherType::kIpv4 : wire::EtherType::kIpv6}, frame);
    const auto at_ip = std::span(frame).subspan(wire::kEthernetHeaderLength);
    if (v4) {
        wire::emit(wire::Ipv4Header{.source = source,
                                    .destination = destination,
                                    .protocol = protocol,
                                    .traffic_class = tos,
                                    .identification = static_cast<std::uint16_t>(identification),
                                    .dont_fragment = false,
                                    .more_fragments = more,
                                    .fragment_offset = static_cast<std::uint16_t>(offset)},
                   bytes.size(), at_ip);
    } else {
        wire::emit(wire::Ipv6Header{.source = source,
                                    .destination = destination,
                                    .protocol = wire::IpProtocol::kFragment,
                                    .traffic_class = tos},
                   wire::kIpv6FragmentHeaderLength + bytes.size(), at_ip);
        std::byte* const to = at_ip.data() + wire::kIpv6HeaderLength;
        wire::store_8(to, static_cast<std::uint8_t>(protocol));
        wire::store_8(to + 1, 0);
        wire::store_be16(to + 2, static_cast<std::uint16_t>(offset | (more ? 1u : 0u)));
        wire::store_be32(to + 4, identification);
    }
    std::ranges::copy(bytes, frame.begin() + static_cast<std::ptrdiff_t>(headers));
    return frame;
}

/// A whole message in pieces of `step` bytes, in order.
inline std::vector<Bytes> cut(const Address& source, const Address& destination, wire::IpProtocol protocol,
                              std::uint32_t identification, std::span<const std::byte> message, std::size_t step) {
    std::vector<Bytes> frames;
    for (std::size_t at = 0; at < message.size(); at += step) {
        const std::size_t here = std::min(step, message.size() - at);
        frames.push_back(fragment_frame(source, destination, protocol, identification, at, at + here < message.size(),
                                        message.subspan(at, here)));
    }
    return frames;
}

}  // namespace culvert::stack
