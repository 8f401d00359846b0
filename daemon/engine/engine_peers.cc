#include "daemon/engine/engine_peers.h"

#include <bit>

namespace culvert::engine {

void EnginePeers::bound(Protocol protocol, const Endpoint& local, bool dual) {
    exchange_.directory().bound(self_, protocol, local);
    if (dual) exchange_.directory().bound(self_, protocol, {Address::any(Family::kIpv4), local.port});
}

void EnginePeers::unbound(Protocol protocol, const Endpoint& local, bool dual) {
    exchange_.directory().unbound(self_, protocol, local);
    if (dual) exchange_.directory().unbound(self_, protocol, {Address::any(Family::kIpv4), local.port});
}

bool EnginePeers::port_elsewhere(Protocol protocol, Port port) const {
    return (exchange_.directory().bound_to(protocol, port) & ~self_set()) != 0;
}

bool EnginePeers::bound_elsewhere(Protocol protocol, const Endpoint& local) const {
    return (exchange_.directory().bound_to(protocol, local) & ~self_set()) != 0;
}

bool EnginePeers::pass_to_owner(const stack::IpPacket& packet, std::uint32_t hash, bool verified) {
    const EngineSet owner = exchange_.directory().owner(hash);
    if (owner == 0 && exchange_.directory().overflows() != 0) [[unlikely]]
        return pass(packet, all(), tried_ | self_set(), verified);
    // Who has it from the device may get it back from an owner that does not know the flow: it is not among those who have
    // had it.
    return pass(packet, owner, handed_ ? tried_ | self_set() : 0, verified);
}

bool EnginePeers::pass_to_listener(const stack::IpPacket& packet, Protocol protocol, Port port, bool verified) {
    return pass(packet, exchange_.directory().bound_to(protocol, port), tried_ | self_set(), verified);
}

/// `had`: who will have had the packet by then.
bool EnginePeers::pass(const stack::IpPacket& packet, EngineSet candidates, EngineSet had, bool verified) {
    candidates &= ~(tried_ | self_set());
    if (candidates == 0) return false;
    const auto to = static_cast<std::uint32_t>(std::countr_zero(candidates));
    const HandOverNote note{
        .tried = had,
        // The frame is looked at anew from its first byte: of a VLAN, the interface that carries it.
        .interface = packet.interface.vlan != 0 ? packet.interface.parent : packet.interface.index,
        // From outside nobody speaks with our address: IpInput has refused it.
        .kind = stack_->is_local(packet.source) ? HandOverNote::Kind::kOwn : HandOverNote::Kind::kReceived,
        .checksum = verified ? ChecksumState::kVerified : packet.packet.checksum,
        .segment_size = packet.packet.segment_size};
    give(to, note, packet.packet);
    return true;
}

void EnginePeers::give(std::uint32_t engine, const HandOverNote& note, const RxPacket& packet) {
    if (exchange_.ring(self_, engine).push(note, packet)) {
        ++counters_.handed_over;
    } else {
        counters_.drop(Drop::kHandOverFull);
    }
    to_wake_ |= EngineSet{1} << engine;
}

void EnginePeers::copy_to_all(const stack::Interface& interface, const RxPacket& packet, bool from_ourselves) {
    const HandOverNote note{.tried = all(),
                            .interface = interface.vlan != 0 ? interface.parent : interface.index,
                            .kind = from_ourselves ? HandOverNote::Kind::kOwn : HandOverNote::Kind::kReceived,
                            .checksum = packet.checksum,
                            .segment_size = packet.segment_size};
    for (EngineSet others = all() & ~(tried_ | self_set()); others != 0; others &= others - 1)
        give(static_cast<std::uint32_t>(std::countr_zero(others)), note, packet);
}

bool EnginePeers::pass_to_reassembly(std::uint32_t hash, const stack::Interface& interface, const RxPacket& packet) {
    const std::uint32_t engine = hash % exchange_.count();
    if (engine == self_) return false;
    give_alone(engine, interface, packet);
    return true;
}

void EnginePeers::pass_to_link(std::uint32_t engine, const stack::Interface& interface, const RxPacket& packet) {
    give_alone(engine, interface, packet);
}

/// For one engine, whichever that is: all have had it then.
void EnginePeers::give_alone(std::uint32_t engine, const stack::Interface& interface, const RxPacket& packet) {
    give(engine,
         {.tried = all(),
          .interface = interface.vlan != 0 ? interface.parent : interface.index,
          .checksum = packet.checksum,
          .segment_size = packet.segment_size},
         packet);
}

bool EnginePeers::tell(std::uint32_t engine, std::uint32_t interface, std::span<const std::byte> message) {
    const HandOverNote note{.tried = all(), .interface = interface, .kind = HandOverNote::Kind::kLinkMessage};
    const RxPacket packet{.head = message, .rest = {}, .length = static_cast<std::uint32_t>(message.size())};
    to_wake_ |= EngineSet{1} << engine;
    return exchange_.ring(self_, engine).push(note, packet);
}

bool EnginePeers::transmit_by(std::uint32_t engine, std::uint32_t interface, const RxPacket& packet) {
    const HandOverNote note{.tried = self_set(), .interface = interface, .kind = HandOverNote::Kind::kToTransmit};
    to_wake_ |= EngineSet{1} << engine;
    if (!exchange_.ring(self_, engine).push(note, packet)) return false;
    ++counters_.handed_over;
    return true;
}

void EnginePeers::ring_bells() {
    for (; to_wake_ != 0; to_wake_ &= to_wake_ - 1)
        if (exchange_.wake(static_cast<std::uint32_t>(std::countr_zero(to_wake_)))) ++counters_.hand_over_wakeups;
}

bool EnginePeers::any_waiting() {
    for (std::uint32_t from = 0; from < exchange_.count(); ++from)
        if (from != self_ && exchange_.ring(from, self_).any()) return true;
    return false;
}

}  // namespace culvert::engine
