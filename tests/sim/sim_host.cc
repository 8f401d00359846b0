#include "tests/sim/sim_host.h"

#include <algorithm>
#include <array>

#include "daemon/wire/bytes.h"
#include "daemon/wire/checksum.h"
#include "daemon/wire/ethernet.h"
#include "daemon/wire/icmp.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"

namespace culvert::sim {
namespace {

bool is_v4(const Bytes& frame) { return frame.size() >= 34 && frame[12] == std::byte{0x08} && frame[13] == std::byte{0}; }
bool is_v6(const Bytes& frame) { return frame.size() >= 54 && frame[12] == std::byte{0x86} && frame[13] == std::byte{0xdd}; }

void finish_ipv4_header(Bytes& frame) {
    wire::store_be16(frame.data() + 24, 0);
    wire::store_be16(frame.data() + 24, wire::checksum(wire::sum_bytes(std::span(frame).subspan(14, 20))));
}

}  // namespace

SimHost::SimHost(std::string host_name, const stack::StackConfig& stack_config, std::uint32_t frames, std::uint64_t seed,
                 Failures& failures)
    : name(std::move(host_name)),
      config(stack_config),
      rng(seed),
      pool(frames),
      stack(stack_config, *this, *this, counters, rng),
      failures_(failures) {}

MacAddress SimHost::mac(std::uint32_t index) const {
    return {{2, 0, static_cast<std::uint8_t>(name[0]), 0, 0, static_cast<std::uint8_t>(index)}};
}

void SimHost::add_interface(std::uint32_t mtu, std::vector<stack::InterfaceAddress> addresses) {
    auto& made = cards_.emplace_back(new Card{nullptr, TxQueue(pool)});
    stack::Interface interface;
    interface.index = static_cast<std::uint32_t>(cards_.size());
    interface.name = name + std::to_string(interface.index);
    interface.mac = mac(interface.index);
    interface.mtu = mtu;
    interface.up = true;
    interface.tx = &made->tx;
    made->interface = &stack.add_interface(interface);
    stack.set_addresses(interface.index, std::move(addresses));
}

void SimHost::know(std::uint32_t index, std::span<const Address> others, const MacAddress& their_mac) {
    for (const Address& other : others)
        stack.neighbors().update(index, other, their_mac, stack::NeighborState::kReachable, card(index).tx);
}

void SimHost::receive(std::uint32_t index, const Bytes& frame, bool lends, Instant now) {
    ++counters.rx_frames;
    RxPacket packet{.head = frame, .rest = {}, .length = static_cast<std::uint32_t>(frame.size()), .checksum = ChecksumState::kUnverified};
    ChunkIndex chunk = kNoChunk;
    if (lends && frame.size() <= FramePool::kChunkSize) chunk = pool.allocate();
    if (chunk != kNoChunk) {
        std::ranges::copy(frame, pool.data(chunk));
        packet.head = {pool.data(chunk), frame.size()};
        packet.loan = &chunk;
        packet.pool = &pool;
        stack.input(*card(index).interface, packet, now);
        if (chunk != kNoChunk) pool.release(chunk);
        return;
    }
    std::array<std::span<const std::byte>, kMaxFragments> rest;
    std::size_t pieces = 0;
    for (std::size_t at = FramePool::kChunkSize; at < frame.size(); at += FramePool::kChunkSize)
        rest[pieces++] = std::span(frame).subspan(at, std::min<std::size_t>(FramePool::kChunkSize, frame.size() - at));
    packet.head = std::span(frame).first(std::min<std::size_t>(FramePool::kChunkSize, frame.size()));
    packet.rest = std::span(rest).first(pieces);
    stack.input(*card(index).interface, packet, now);
}

void SimHost::receive(std::uint32_t index, std::span<const Bytes> burst, Instant now) {
    counters.rx_frames += burst.size();
    // As a device with chunks has it: what is longer than one lies in several.
    std::vector<std::vector<std::span<const std::byte>>> rest(burst.size());
    std::vector<RxPacket> packets;
    for (std::size_t i = 0; i < burst.size(); ++i) {
        const std::span<const std::byte> frame = burst[i];
        for (std::size_t at = FramePool::kChunkSize; at < frame.size(); at += FramePool::kChunkSize)
            rest[i].push_back(frame.subspan(at, std::min<std::size_t>(FramePool::kChunkSize, frame.size() - at)));
        packets.push_back({.head = frame.first(std::min<std::size_t>(FramePool::kChunkSize, frame.size())),
                           .rest = rest[i],
                           .length = static_cast<std::uint32_t>(frame.size()),
                           .checksum = ChecksumState::kUnverified});
    }
    stack.input(*card(index).interface, packets, now);
}

std::vector<Bytes> SimHost::take_frames(std::uint32_t index) {
    TxQueue& tx = card(index).tx;
    std::vector<Bytes> frames;
    bool more = false;
    const std::size_t count = tx.pending().size();
    for (const TxQueue::Descriptor& descriptor : tx.pending()) {
        if (!more) frames.emplace_back();
        const std::byte* const data = pool.data(descriptor.chunk);
        frames.back().insert(frames.back().end(), data, data + descriptor.length);
        pool.release(descriptor.chunk);
        more = descriptor.more;
    }
    tx.consume(count);
    return frames;
}

void SimHost::take_port(Protocol protocol, const Address& address, Port port) {
    failures_.expect(held_.emplace(std::pair{protocol, std::pair{address, port}}, 1).second, name + ": a port taken twice");
}
void SimHost::release_port(Protocol protocol, const Address& address, Port port) {
    failures_.expect(held_.erase({protocol, {address, port}}) == 1, name + ": a port released that was not taken");
}

void SimHost::check_budgets() {
    const auto use = stack.usage();
    const auto within = [&](const char* what, std::uint64_t used, std::uint64_t most) {
        failures_.expect(used <= most, name + ": " + what + " " + std::to_string(used) + " of " + std::to_string(most));
    };
    within("connections", use.tcp.connections, config.max_connections);
    within("half-open connections", use.tcp.half_open, config.max_half_open);
    within("TIME-WAIT records", use.tcp.time_wait, config.max_time_wait);
    within("BBR models", use.tcp.bbr_models, config.max_bbr);
    within("TCP reassembly pieces", use.tcp.reassembly_pieces, config.reassembly_chunks);
    within("SACK boards", use.tcp.sack_boards, config.max_connections);
    within("unfinished IP packets", use.ip_reassemblies, config.max_ip_reassemblies);
    within("free IP chunks", use.ip_reassembly_free, config.ip_reassembly_chunks);
    within("UDP sockets", use.udp_sockets, config.max_udp_sockets);
    within("flows", use.tcp.flows, use.tcp.connections + use.tcp.half_open + use.tcp.time_wait);
    within("established", counters.tcp_established, use.tcp.connections);
}

void SimHost::check_nothing_left(std::uint32_t expected_sockets) {
    const auto use = stack.usage();
    const auto same = [&](const char* what, std::uint64_t left, std::uint64_t wanted = 0) {
        failures_.expect(left == wanted, name + ": " + std::to_string(left) + " " + what + " left, not " + std::to_string(wanted));
    };
    same("connections", use.tcp.connections);
    same("half-open connections", use.tcp.half_open);
    same("TIME-WAIT records", use.tcp.time_wait);
    same("flows", use.tcp.flows);
    same("TCP reassembly pieces", use.tcp.reassembly_pieces);
    same("SACK boards", use.tcp.sack_boards);
    same("BBR models", use.tcp.bbr_models);
    same("flight pieces", use.tcp.flight_pieces);
    same("TCP ports", use.tcp.ports);
    same("UDP sockets", use.udp_sockets, expected_sockets);
    same("unfinished IP packets", use.ip_reassemblies);
    same("free IP reassembly chunks", use.ip_reassembly_free, config.ip_reassembly_chunks);
    same("packets to itself", use.local_packets);
    same("ports held outside", held_.size(), expected_sockets);
    same("free frames", pool.available(), pool.count());
    same("established connections counted", counters.tcp_established);
    same("TIME-WAIT records counted", counters.tcp_time_wait);
    failures_.expect(stack.next_deadline() == kNever, name + ": a timer is left");
}

Bytes too_big(const Bytes& frame, std::uint32_t mtu) {
    const bool v4 = is_v4(frame);
    if (!v4 && !is_v6(frame)) return {};
    const std::span<const std::byte> packet = std::span(frame).subspan(14);
    if (v4 && (std::to_integer<unsigned>(packet[6]) & 0x40u) == 0) return {};  // may be cut: whoever cuts is not simulated
    const std::size_t quote = std::min<std::size_t>(packet.size(), v4 ? 548 : 1232);
    const Address to = v4 ? Address::from_v4(packet.subspan<12, 4>()) : Address::from_v6(packet.subspan<8, 16>());
    // The router stands in the network that the packet was going to.
    Bytes router(packet.begin() + (v4 ? 16 : 24), packet.begin() + (v4 ? 20 : 40));
    router.back() = std::byte{9};
    const Address from = v4 ? Address::from_v4(std::span(router).first<4>()) : Address::from_v6(std::span(router).first<16>());
    const std::size_t ip = v4 ? 20 : 40;
    Bytes answer(14 + ip + 8 + quote);
    std::ranges::copy(std::span(frame).subspan(6, 6), answer.begin());  // back to where it came from
    std::ranges::copy(std::span(frame).first(6), answer.begin() + 6);
    std::ranges::copy(std::span(frame).subspan(12, 2), answer.begin() + 12);
    const auto at_ip = std::span(answer).subspan(14);
    if (v4)
        wire::emit(wire::Ipv4Header{.source = from, .destination = to, .protocol = wire::IpProtocol::kIcmp}, 8 + quote, at_ip);
    else
        wire::emit(wire::Ipv6Header{.source = from, .destination = to, .protocol = wire::IpProtocol::kIcmpv6}, 8 + quote, at_ip);
    const wire::IcmpHeader header = v4 ? wire::IcmpHeader{3, 4, mtu} : wire::IcmpHeader{2, 0, mtu};
    wire::emit(header, packet.first(quote), from, to, at_ip.subspan(ip));
    return answer;
}

bool mark_congestion(Bytes& frame) {
    if (is_v4(frame)) {
        if ((std::to_integer<unsigned>(frame[15]) & 3u) == 0) return false;
        frame[15] |= std::byte{3};
        finish_ipv4_header(frame);
        return true;
    }
    if (!is_v6(frame) || (std::to_integer<unsigned>(frame[15]) & 0x30u) == 0) return false;
    frame[15] |= std::byte{0x30};
    return true;
}

}  // namespace culvert::sim
