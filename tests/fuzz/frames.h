// Frames as a stranger on the link makes them: right headers around any message, checksums put right after bytes have been
// bent, and a stack's output taken apart and proved.
//
// A fuzzer that has to guess checksums finds checksum errors. So what it bends is made right again unless the input says
// otherwise, and its chance is spent on what lies behind.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "daemon/base/frame_pool.h"
#include "daemon/base/packet.h"
#include "daemon/wire/checksum.h"
#include "daemon/wire/ethernet.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"
#include "shm/base/check.h"
#include "tests/fuzz/target.h"

namespace culvert::fuzz {

using Bytes = std::vector<std::byte>;

struct Headers {
    MacAddress to, from;
    Address source, destination;
    wire::IpProtocol protocol = wire::IpProtocol::kTcp;
    std::uint8_t hop_limit = 64;
    std::uint8_t tos = 0;
    std::uint16_t vlan = 0;     // 0: untagged
    bool router_alert = false;  // as IGMP and MLD want it
};

/// Copies by memcpy: an algorithm that goes byte by byte is most of a run under AddressSanitizer.
inline void place(std::span<const std::byte> bytes, std::byte* to) {
    if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
}

/// The whole frame; the message's own checksum is put right by fix_checksums().
inline Bytes frame_of(const Headers& h, std::span<const std::byte> message) {
    const bool v4 = h.destination.is_v4();
    static constexpr std::uint8_t kAlert4[] = {0x94, 4, 0, 0};
    static constexpr std::uint8_t kAlert6[] = {58, 0, 5, 2, 0, 0, 1, 0};
    const auto alert = h.router_alert ? std::as_bytes(v4 ? std::span<const std::uint8_t>(kAlert4) : kAlert6)
                                      : std::span<const std::byte>();
    const std::size_t link = wire::kEthernetHeaderLength + (h.vlan != 0 ? wire::kVlanTagLength : 0);
    const std::size_t ip = v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength;
    Bytes frame(link + ip + alert.size() + message.size());
    const wire::EthernetHeader ethernet{h.to, h.from, v4 ? wire::EtherType::kIpv4 : wire::EtherType::kIpv6};
    if (h.vlan != 0) wire::emit_tagged(ethernet, wire::EtherType::kVlan, h.vlan, frame);
    else wire::emit(ethernet, frame);
    const auto at_ip = std::span(frame).subspan(link);
    const std::size_t length = message.size() + alert.size();
    if (v4) {
        wire::emit(wire::Ipv4Header{.source = h.source, .destination = h.destination, .protocol = h.protocol,
                                    .hop_limit = h.hop_limit, .traffic_class = h.tos}, length, at_ip);
        wire::store_8(at_ip.data(), static_cast<std::uint8_t>(0x45 + alert.size() / 4));
    } else {
        wire::emit(wire::Ipv6Header{.source = h.source, .destination = h.destination,
                                    .protocol = h.router_alert ? wire::IpProtocol::kHopByHop : h.protocol,
                                    .hop_limit = h.hop_limit, .traffic_class = h.tos}, length, at_ip);
    }
    place(alert, at_ip.data() + ip);
    place(message, at_ip.data() + ip + alert.size());
    return frame;
}

/// Makes every checksum right that the frame, whatever it is, may have.
inline void fix_checksums(Bytes& frame) {
    const auto at16 = [&](std::size_t at) { return at + 2 <= frame.size() ? wire::load_be16(frame.data() + at) : 0u; };
    std::size_t ip = wire::kEthernetHeaderLength;
    unsigned type = at16(12);
    if (type == 0x8100 || type == 0x88a8) type = at16(16), ip += wire::kVlanTagLength;
    std::size_t transport = 0, end = 0;
    unsigned protocol = 0;
    std::optional<Address> source, destination;
    if (type == 0x0800 && ip + wire::kIpv4HeaderLength <= frame.size()) {
        std::byte* const header = frame.data() + ip;
        const std::size_t length = std::size_t{wire::load_8(header) & 15u} * 4;
        if (length < wire::kIpv4HeaderLength || ip + length > frame.size()) return;
        wire::store_be16(header + 10, 0);
        wire::store_be16(header + 10, wire::checksum(wire::sum_bytes({header, length})));
        if ((at16(ip + 6) & 0x3fff) != 0) return;
        protocol = wire::load_8(header + 9);
        transport = ip + length;
        end = ip + at16(ip + 2);
        source = Address::from_v4(std::span<const std::byte, 4>(header + 12, 4));
        destination = Address::from_v4(std::span<const std::byte, 4>(header + 16, 4));
    } else if (type == 0x86dd && ip + wire::kIpv6HeaderLength <= frame.size()) {
        const std::byte* const header = frame.data() + ip;
        protocol = wire::load_8(header + 6);
        transport = ip + wire::kIpv6HeaderLength;
        end = transport + at16(ip + 4);
        source = Address::from_v6(std::span<const std::byte, 16>(header + 8, 16));
        destination = Address::from_v6(std::span<const std::byte, 16>(header + 24, 16));
        while ((protocol == 0 || protocol == 43 || protocol == 60) && transport + 8 <= frame.size()) {
            protocol = wire::load_8(frame.data() + transport);
            transport += std::size_t{wire::load_8(frame.data() + transport + 1)} * 8 + 8;
        }
    }
    if (!source || end > frame.size() || transport >= end) return;
    const std::size_t field = protocol == 6 ? 16 : protocol == 17 ? 6 : protocol == 1 || protocol == 2 || protocol == 58 ? 2 : 0;
    if (field == 0 || transport + field + 2 > end) return;
    wire::store_be16(frame.data() + transport + field, 0);
    wire::PartialSum sum = wire::sum_bytes(std::span(frame).subspan(transport, end - transport));
    if (protocol != 1 && protocol != 2)
        sum += wire::pseudo_header_sum(*source, *destination, static_cast<wire::IpProtocol>(protocol),
                                       static_cast<std::uint32_t>(end - transport));
    wire::store_be16(frame.data() + transport + field, wire::checksum(sum));
}

/// Up to three bytes changed as the input says, perhaps cut short or made longer; checksums right again, mostly.
inline void bend(Bytes& frame, Input& in) {
    const std::uint8_t how = in.u8();
    for (unsigned n = how & 3; n > 0; --n) {
        const std::uint8_t at = in.u8();
        const auto change = static_cast<std::byte>(in.u8());
        if (wire::kEthernetHeaderLength + at < frame.size()) frame[wire::kEthernetHeaderLength + at] ^= change;
    }
    if ((how & 4) != 0) frame.resize(std::max<std::size_t>(1, frame.size() - std::min<std::size_t>(frame.size(), in.u8())));
    if ((how & 8) != 0) frame.resize(frame.size() + in.u8());
    if ((how & 16) == 0) fix_checksums(frame);
}

/// Gives the frame to `act` as a packet in memory of its own, so that AddressSanitizer sees a read beyond its end.
template <class Act>
void as_packet(std::span<const std::byte> frame, Act&& act) {
    if (frame.empty()) return;
    const auto copy = std::make_unique<std::byte[]>(frame.size());
    place(frame, copy.get());
    act(RxPacket{.head = {copy.get(), frame.size()}, .rest = {}, .length = static_cast<std::uint32_t>(frame.size())});
}

/// Takes every frame out of the queue.
template <class Act>
void take_output(TxQueue& tx, Act&& act) {
    Bytes frame;
    const std::size_t count = tx.pending().size();
    std::vector<Bytes> frames;
    for (std::size_t i = 0; i < count; ++i) {
        const auto piece = tx.pending()[i];
        const std::byte* const data = tx.pool().data(piece.chunk);
        frame.insert(frame.end(), data, data + piece.length);
        tx.pool().release(piece.chunk);
        if (piece.more) continue;
        frames.push_back(std::move(frame));
        frame.clear();
    }
    tx.consume(count);
    for (const Bytes& each : frames) act(each);
}

}  // namespace culvert::fuzz
