// One engine's side of the exchange: stack::Peers, told and asked by its stack, and the rings that lead to it.
//
//   stack --pass_to_*--> ring(me, other)  ... ring_bells() once a turn --> other engine wakes
//   ring(other, me) --receive()--> stack.input_passed     with `tried` of each packet known while it is processed
#pragma once

#include <array>
#include <cstdint>

#include "daemon/base/counters.h"
#include "daemon/engine/exchange.h"
#include "daemon/stack/peers.h"

namespace culvert::engine {

class EnginePeers final : public stack::Peers {
public:
    EnginePeers(Exchange& exchange, std::uint32_t self, Counters& counters)
        : exchange_(exchange), self_(self), counters_(counters) {}

    // --- stack::Peers -------------------------------------------------------------------------------------------------
    bool flow_began(std::uint32_t hash, bool share) override {
        return exchange_.directory().flow_began(self_, hash, share);
    }
    void flow_ended(std::uint32_t hash) override { exchange_.directory().flow_ended(self_, hash); }
    void bound(Protocol protocol, const Endpoint& local, bool dual) override;
    void unbound(Protocol protocol, const Endpoint& local, bool dual) override;
    bool port_elsewhere(Protocol protocol, Port port) const override;
    bool bound_elsewhere(Protocol protocol, const Endpoint& local) const override;
    bool pass_to_owner(const stack::IpPacket& packet, std::uint32_t hash, bool verified) override;
    bool pass_to_listener(const stack::IpPacket& packet, Protocol protocol, Port port, bool verified) override;
    void copy_to_all(const stack::Interface& interface, const RxPacket& packet, bool from_ourselves) override;
    bool pass_to_reassembly(std::uint32_t hash, const stack::Interface& interface, const RxPacket& packet) override;
    void pass_to_link(std::uint32_t engine, const stack::Interface& interface, const RxPacket& packet) override;
    bool tell(std::uint32_t engine, std::uint32_t interface, std::span<const std::byte> message) override;
    std::uint32_t self() const override { return self_; }
    std::uint64_t others() const override { return all() & ~self_set(); }
    void look_again() override { tried_ = 0; }

    /// Tells whether a packet was sent by ourselves to ourselves: the stack's is_local().
    void set_own_addresses(const stack::Stack& stack) { stack_ = &stack; }

    // --- the turn -----------------------------------------------------------------------------------------------------
    /// Calls visit(HandedOver) for packets that others have handed over, some of each at a time; returns how many. What the
    /// visitor passes on does not go back to who has had it.
    template <class Visit>
    std::size_t receive(Visit&& visit) {
        std::size_t found = 0;
        for (std::uint32_t from = 0; from < exchange_.count(); ++from) {
            if (from == self_) continue;
            HandOverRing& ring = exchange_.ring(from, self_);
            const std::size_t count = ring.take(burst_);
            if (count == 0) continue;
            handed_ = true;
            for (std::size_t i = 0; i < count; ++i) {
                tried_ = burst_[i].note.tried;
                visit(burst_[i]);
            }
            ring.done();
            found += count;
        }
        tried_ = 0;
        handed_ = false;
        counters_.handed_in += found;
        return found;
    }
    /// A packet for the engine that has a queue of `interface`, to be sent from there. False: its ring is full.
    bool transmit_by(std::uint32_t engine, std::uint32_t interface, const RxPacket& packet);
    /// Wakes those to whom something was given since the last call.
    void ring_bells();

    // --- sleeping -----------------------------------------------------------------------------------------------------
    std::atomic<std::uint32_t>& asleep() { return exchange_.asleep(self_); }
    /// The second look before sleeping.
    bool any_waiting();

private:
    static constexpr std::size_t kBurst = 32;

    EngineSet self_set() const { return EngineSet{1} << self_; }
    EngineSet all() const { return (EngineSet{2} << (exchange_.count() - 1)) - 1; }
    void give(std::uint32_t engine, const HandOverNote& note, const RxPacket& packet);
    void give_alone(std::uint32_t engine, const stack::Interface& interface, const RxPacket& packet);
    bool pass(const stack::IpPacket& packet, EngineSet candidates, EngineSet had, bool verified);

    Exchange& exchange_;
    const std::uint32_t self_;
    Counters& counters_;
    const stack::Stack* stack_ = nullptr;
    EngineSet tried_ = 0;   // engines that have had the packet that is being processed
    bool handed_ = false;   // it came from another engine
    EngineSet to_wake_ = 0;
    std::array<HandedOver, kBurst> burst_{};
};

}  // namespace culvert::engine
