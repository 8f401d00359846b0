// A received segment, proved and in host order: what every part of TCP's input works on. Borrowed, like the packet.
#pragma once

#include <array>
#include <cstdint>
#include <expected>
#include <span>

#include "daemon/base/drop.h"
#include "daemon/stack/ip_packet.h"
#include "daemon/stack/owner.h"
#include "daemon/wire/tcp.h"

namespace culvert::stack::tcp {

struct Segment {
    const IpPacket& ip;
    Endpoint local;
    Endpoint remote;
    std::uint32_t sequence = 0;
    std::uint32_t acknowledgment = 0;
    wire::TcpFlags flags;
    std::uint16_t window = 0;  // not scaled
    std::uint16_t urgent = 0;  // the pointer; means something with URG
    std::uint32_t payload_offset = 0;  // from the start of the packet
    std::uint32_t payload_length = 0;
    wire::TcpOptions options;

    /// SEG.LEN
    std::uint32_t length() const { return payload_length + (flags.syn() ? 1u : 0u) + (flags.fin() ? 1u : 0u); }

    /// Proves the header, the checksum and the options.
    static std::expected<Segment, Drop> parse(const IpPacket& packet);
};

/// A part of a segment's payload as it lies in the packet's fragments.
class PayloadSlice {
public:
    /// Bytes [skip, skip + length) of the payload.
    PayloadSlice(const Segment& segment, std::uint32_t skip, std::uint32_t length);
    Payload fragments() const { return {spans_.data(), count_}; }
    /// What was asked for; less only if the packet came in more pieces than any device hands over.
    std::uint32_t length() const { return length_; }

private:
    UnsetArray<std::span<const std::byte>, kMaxFragments> spans_;
    std::size_t count_ = 0;
    std::uint32_t length_ = 0;
};

}  // namespace culvert::stack::tcp
