// A host of the simulation: the production Stack with its interfaces, pool and counters, and nothing of an engine. Frames
// go in as a device gives them (in pieces of a chunk), and come out as bytes.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/base/frame_pool.h"
#include "daemon/base/packet.h"
#include "daemon/base/rng.h"
#include "daemon/stack/stack.h"
#include "daemon/stack/usage.h"

namespace culvert::sim {

using namespace std::chrono_literals;
using Bytes = std::vector<std::byte>;

/// What went wrong, in words.
class Failures {
public:
    void add(std::string what) {
        if (lines_.size() < 20) lines_.push_back(std::move(what));
    }
    void expect(bool holds, const std::string& what) {
        if (!holds) add(what);
    }
    bool none() const { return lines_.empty(); }
    const std::vector<std::string>& lines() const { return lines_; }

private:
    std::vector<std::string> lines_;
};

class SimHost final : public stack::NeighborResolver, public stack::PortOwner {
public:
    SimHost(std::string name, const stack::StackConfig& config, std::uint32_t frames, std::uint64_t seed,
            Failures& failures);

    /// Interfaces are numbered from 1.
    void add_interface(std::uint32_t mtu, std::vector<stack::InterfaceAddress> addresses);
    /// Everything that is not on a link of ours goes to `gateways`, one a family; `others`: who answers on interface
    /// `index`, with the MAC of host `mac`.
    void know(std::uint32_t index, std::span<const Address> others, const MacAddress& mac);
    void set_routes(std::vector<stack::Route> routes) { stack.routes().replace(std::move(routes)); }
    void set_mtu(std::uint32_t index, std::uint32_t mtu) { stack.set_interface_state(index, true, mtu); }
    MacAddress mac(std::uint32_t index) const;

    /// `lends`: the device's memory may be taken over (forwarding in place).
    void receive(std::uint32_t index, const Bytes& frame, bool lends, Instant now);
    /// All at once, as a device hands them over.
    void receive(std::uint32_t index, std::span<const Bytes> burst, Instant now);
    /// What has been sent through one interface.
    std::vector<Bytes> take_frames(std::uint32_t index);

    /// All is over: nothing may be held. `expect_sockets`: UDP sockets that are still open.
    void check_nothing_left(std::uint32_t expected_sockets);
    /// At any moment: within what was configured.
    void check_budgets();

    void resolve(std::uint32_t, const Address&) override {}
    void take_port(Protocol protocol, const Address& address, Port port) override;
    void release_port(Protocol protocol, const Address& address, Port port) override;

    const std::string name;
    const stack::StackConfig config;
    Counters counters;
    Rng rng;
    FramePool pool;
    stack::Stack stack;

private:
    struct Card {
        stack::Interface* interface;
        TxQueue tx;
    };
    Card& card(std::uint32_t index) { return *cards_[index - 1]; }

    Failures& failures_;
    std::vector<std::unique_ptr<Card>> cards_;
    std::map<std::pair<Protocol, std::pair<Address, Port>>, int> held_;
};

/// An ICMP "too big" about `frame`, as a router on the way would send it back; empty: it would not (no IP packet, or one
/// that may be cut).
Bytes too_big(const Bytes& frame, std::uint32_t mtu);
/// Sets CE if the packet is ECN-capable.
bool mark_congestion(Bytes& frame);

}  // namespace culvert::sim
