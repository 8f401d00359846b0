// A stack's lower half on a table: one interface, a frame pool, a kernel that only writes down what it is asked.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/base/frame_pool.h"
#include "daemon/base/packet.h"
#include "daemon/stack/interface.h"
#include "daemon/stack/ip_output.h"
#include "daemon/stack/neighbor.h"
#include "daemon/stack/route_table.h"
#include "daemon/wire/ethernet.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"
#include "daemon/wire/udp.h"

namespace culvert::stack {

using namespace std::chrono_literals;
using Bytes = std::vector<std::byte>;

inline Address ip(const char* text) { return Address::parse(text).value(); }
inline constexpr MacAddress kOurMac{{2, 0, 0, 0, 0, 1}};
inline constexpr MacAddress kPeerMac{{2, 0, 0, 0, 0, 2}};
inline constexpr MacAddress kRouterMac{{2, 0, 0, 0, 0, 0xfe}};

/// The frame with a tag of the type `tag` behind its addresses.
inline Bytes tagged(Bytes frame, std::uint16_t tag, std::uint16_t control) {
    Bytes inserted(4);
    wire::store_be16(inserted.data(), tag);
    wire::store_be16(inserted.data() + 2, control);
    frame.insert(frame.begin() + 12, inserted.begin(), inserted.end());
    return frame;
}

/// The kernel's part: only writes down who was asked for.
class RecordingResolver final : public NeighborResolver {
public:
    void resolve(std::uint32_t, const Address& next_hop) override { asked.push_back(next_hop); }
    std::vector<Address> asked;
};

/// Everything committed to `tx`, packet by packet, given back to the pool.
inline std::vector<Bytes> take_frames(TxQueue& tx) {
    std::vector<Bytes> frames;
    bool more = false;
    const std::size_t count = tx.pending().size();
    for (const TxQueue::Descriptor& descriptor : tx.pending()) {
        if (!more) frames.emplace_back();
        const std::byte* const data = tx.pool().data(descriptor.chunk);
        frames.back().insert(frames.back().end(), data, data + descriptor.length);
        tx.pool().release(descriptor.chunk);
        more = descriptor.more;
    }
    tx.consume(count);
    return frames;
}

/// A received frame that lies in one piece.
inline RxPacket received(std::span<const std::byte> frame, ChecksumState state = ChecksumState::kUnverified) {
    return {.head = frame, .rest = {}, .length = static_cast<std::uint32_t>(frame.size()), .checksum = state};
}

/// Bytes 0, 1, 2 ... wrapping.
inline Bytes pattern(std::size_t length) {
    Bytes bytes(length);
    for (std::size_t i = 0; i < length; ++i) bytes[i] = static_cast<std::byte>(i * 7 + i / 251);
    return bytes;
}

/// Ethernet and IP around `transport`, correct in every field. `tweak` may break the frame afterwards.
inline Bytes ip_frame(const Address& source, const Address& destination, wire::IpProtocol protocol,
                      std::span<const std::byte> transport, const MacAddress& mac = kOurMac) {
    const bool v4 = destination.is_v4();
    const std::size_t headers = wire::kEthernetHeaderLength + (v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength);
    Bytes frame(headers + transport.size());
    wire::emit(wire::EthernetHeader{mac, kPeerMac, v4 ? wire::EtherType::kIpv4 : wire::EtherType::kIpv6}, frame);
    const auto at_ip = std::span(frame).subspan(wire::kEthernetHeaderLength);
    if (v4) {
        wire::Ipv4Header header;
        header.source = source;
        header.destination = destination;
        header.protocol = protocol;
        wire::emit(header, transport.size(), at_ip);
    } else {
        wire::Ipv6Header header;
        header.source = source;
        header.destination = destination;
        header.protocol = protocol;
        wire::emit(header, transport.size(), at_ip);
    }
    std::ranges::copy(transport, frame.begin() + static_cast<std::ptrdiff_t>(headers));
    return frame;
}

inline Bytes udp_message(const Endpoint& from, const Endpoint& to, std::span<const std::byte> payload) {
    Bytes message(wire::kUdpHeaderLength + payload.size());
    wire::emit(wire::UdpHeader{from.port, to.port}, payload.size(), message);
    std::ranges::copy(payload, message.begin() + wire::kUdpHeaderLength);
    wire::finish_udp_checksum(std::span(message).first(wire::kUdpHeaderLength), wire::sum_bytes(payload), from.address,
                              to.address);
    return message;
}

inline Bytes udp_frame(const Endpoint& from, const Endpoint& to, std::span<const std::byte> payload) {
    return ip_frame(from.address, to.address, wire::IpProtocol::kUdp, udp_message(from, to, payload));
}

/// eth0 with 10.0.0.1/24, fd00::1/64, fe80::1/64; routers 10.0.0.254 and fd00::fe.
struct IpWorld {
    FramePool pool{512};
    TxQueue tx{pool};
    Counters counters;
    RecordingResolver resolver;
    RouteTable routes;
    NeighborTable neighbors{resolver, counters};
    IpOutput output{routes, neighbors, counters};
    Interface eth0;
    Instant now{std::chrono::hours(1)};

    const Address our4 = ip("10.0.0.1");
    const Address our6 = ip("fd00::1");
    const Address peer4 = ip("10.0.0.2");
    const Address peer6 = ip("fd00::2");
    const Address router4 = ip("10.0.0.254");
    const Address router6 = ip("fd00::fe");

    IpWorld() {
        eth0.index = 7;
        eth0.name = "eth0";
        eth0.mac = kOurMac;
        eth0.up = true;
        eth0.tx = &tx;
        eth0.addresses = {{our4, 24}, {our6, 64}, {ip("fe80::1"), 64}};
        apply();
        routes.replace(default_routes());
    }
    /// After a change of eth0.
    void apply() {
        Interface* all[] = {&eth0};
        output.set_interfaces(all);
        routes.touch();
    }
    std::vector<Route> default_routes() const {
        return {{.destination = ip("10.0.0.0"), .prefix_length = 24, .interface = 7},
                {.destination = ip("0.0.0.0"), .prefix_length = 0, .gateway = router4, .interface = 7},
                {.destination = ip("fd00::"), .prefix_length = 64, .interface = 7},
                {.destination = Address(), .prefix_length = 0, .gateway = router6, .interface = 7}};
    }
    void know(const Address& neighbor, const MacAddress& mac) {
        neighbors.update(7, neighbor, mac, NeighborState::kReachable, tx);
    }
    std::uint64_t total_drops() const {
        return std::accumulate(counters.drops.begin(), counters.drops.end(), std::uint64_t{0});
    }
};

}  // namespace culvert::stack
