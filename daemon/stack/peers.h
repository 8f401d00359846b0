// The other engines, as one stack sees them: where a packet goes that this engine cannot place.
//
//   packet --> flow of ours? --> yes: processed, nobody is asked                                  (the common case)
//                |no
//                +--> another engine has a flow with this hash?   pass_to_owner       connection, half-open, TIME-WAIT
//                +--> a socket of ours takes it?                  processed           listener, bound UDP socket
//                +--> another engine has such a socket?           pass_to_listener
//                +--> nobody: reset or drop, here
//
// A packet remembers which engines have had it: with N engines it moves N times at most, and the last one that has it ends
// it. A stack without peers (the only engine) asks none of this.
//
// What is meant for many goes to all: each engine has its own members of a group. What is about the link itself (ARP, ND,
// IGMP, MLD) goes to the one engine that runs it.
//
// Purity: a stack calls this on its engine's thread and learns only about the present; what is behind it (rings, a
// directory) belongs to daemon/engine.
#pragma once

#include <cstdint>
#include <span>

#include "daemon/stack/ip_packet.h"
#include "daemon/stack/stack.h"
#include "daemon/wire/address.h"

namespace culvert::stack {

class Peers {
public:
    using Protocol = PortOwner::Protocol;

    virtual ~Peers() = default;

    // --- what this engine has, told before the first packet for it can come (cold) ----------------------------------
    /// A flow with this hash is this engine's from now on. The hash is keyed with StackConfig::secret, which all engines
    /// share. False: another engine has one already (the flow itself, or one of four billion with the same hash); then
    /// nothing is remembered and flow_ended() must not be called for it. `share`: it is known that the other's is another
    /// flow; then both have the hash, and the answer is true.
    virtual bool flow_began(std::uint32_t hash, bool share) = 0;
    virtual void flow_ended(std::uint32_t hash) = 0;
    /// A listener or a UDP socket; `dual`: bound to [::] for both families. One call each for each socket.
    virtual void bound(Protocol protocol, const Endpoint& local, bool dual) = 0;
    virtual void unbound(Protocol protocol, const Endpoint& local, bool dual) = 0;

    // --- questions ----------------------------------------------------------------------------------------------------
    /// Another engine has a socket bound to that port, on whatever address. Costs one load.
    virtual bool port_elsewhere(Protocol protocol, Port port) const = 0;
    /// Another engine has a socket bound to that address and port. Cold: may lock.
    virtual bool bound_elsewhere(Protocol protocol, const Endpoint& local) const = 0;

    // --- packets ------------------------------------------------------------------------------------------------------
    /// Gives a copy of the packet to the engine that has a flow with this hash. True: it is gone (or lost on the way and
    /// counted there); false: no engine that has not had it yet owns such a flow. An owner that does not know the flow (its
    /// own has the same hash, or has just ended) may give it back, once. `verified`: its checksum has been proved.
    virtual bool pass_to_owner(const IpPacket& packet, std::uint32_t hash, bool verified) = 0;
    /// The same, to an engine that has a socket bound to the port.
    virtual bool pass_to_listener(const IpPacket& packet, Protocol protocol, Port port, bool verified) = 0;
    /// Gives a copy to every other engine that has not had the packet: it is meant for many (groups, broadcasts). Nobody passes
    /// a copy on. `from_ourselves` as for Stack::input_passed.
    virtual void copy_to_all(const Interface& interface, const RxPacket& packet, bool from_ourselves) = 0;
    /// Gives a fragment for a dedicated address to the engine in which those of its datagram meet, by a hash that all engines
    /// share. False: that is this one. Nobody passes it on.
    virtual bool pass_to_reassembly(std::uint32_t hash, const Interface& interface, const RxPacket& packet) = 0;

    // --- links that one engine runs for all (link/link_sync.h) --------------------------------------------------------
    /// Gives a frame of the link's own protocols (ARP, ND, IGMP, MLD) to the engine that runs the link. Nobody passes it on.
    virtual void pass_to_link(std::uint32_t engine, const Interface& interface, const RxPacket& packet) = 0;
    /// A message for another engine's LinkSync (Stack::link_message). False: no room, nothing has been sent.
    virtual bool tell(std::uint32_t engine, std::uint32_t interface, std::span<const std::byte> message) = 0;
    virtual std::uint32_t self() const = 0;
    /// Bit i: engine i, less this one.
    virtual std::uint64_t others() const = 0;

    /// Something has ended because of the current packet (a TIME-WAIT that gives way): all may be asked once more.
    virtual void look_again() = 0;
};

}  // namespace culvert::stack
