// Which packets are ours: joins the addresses of the interfaces (control thread) with the ports that sockets take (engine).
//
//   netlink: addresses of eth0 ----> set_addresses --+
//                                                    +--> every (address, port) pair --> the interface's program
//   stack: take_port(0.0.0.0:80) -> wildcards -------+
//   sock_diag: the kernel's connections on that port --> kernel flows (they stay with the kernel)
//
// A port taken on the unspecified address is taken on every address of the family, also on those that come later.
//
// Kernel flows must be in the map *before* the port bit, else Culvert would reset the kernel's connections. What the kernel began
// between its answer and the bit is found by asking again, and is_elsewhere() saves what has come to us meanwhile. Asking the
// kernel costs up to milliseconds, so it is done only for ports on which somebody may have listened: not for a single
// address and a port of the ephemeral range, which is what every outgoing connection takes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "daemon/control/kernel_flows.h"
#include "daemon/device/device.h"
#include "daemon/stack/stack.h"

namespace culvert::control {

/// The maps of one interface's program; see device::SteeringProgram, which main.cc puts behind it.
class SteeringMaps {
public:
    using Protocol = stack::PortOwner::Protocol;
    virtual ~SteeringMaps() = default;
    virtual Result<void> set_address(const Address& address, bool ours) = 0;
    virtual void set_mtu(std::uint32_t mtu) = 0;  // the link's
    virtual void take_port(const Address& address, Protocol protocol, Port port) = 0;
    virtual void release_port(const Address& address, Protocol protocol, Port port) = 0;
    virtual Result<void> add_kernel_flow(const Endpoint& local, const Endpoint& remote) = 0;  // TCP
    virtual Result<void> remove_kernel_flow(const Endpoint& local, const Endpoint& remote) = 0;
};

struct PortRange {
    Port low = 32768;
    Port high = 60999;
    bool contains(Port port) const { return low <= port && port <= high; }
};
/// net.ipv4.ip_local_port_range of this namespace; the kernel's default when it cannot be read.
PortRange ephemeral_ports();

class Steering final : public stack::PortOwner {
public:
    /// The kernel's connections with this local port.
    using FlowSource = std::function<Result<std::vector<KernelSocket>>(Port)>;

    Steering(FlowSource flows, PortRange ephemeral) : flow_source_(std::move(flows)), ephemeral_(ephemeral) {}

    /// Startup. `maps` must outlive this object.
    void add_interface(int ifindex, SteeringMaps& maps);

    /// Control thread: exactly these addresses are the interface's now.
    void set_addresses(int ifindex, const std::set<Address>& addresses);
    /// Control thread: the link's MTU has changed.
    void set_mtu(int ifindex, std::uint32_t mtu);
    /// Control thread, now and then: flows that the kernel has finished leave the maps.
    void forget_finished_flows();

    // stack::PortOwner, on the engine's thread.
    void take_port(Protocol protocol, const Address& address, Port port) override;
    void release_port(Protocol protocol, const Address& address, Port port) override;
    bool is_elsewhere(const Endpoint& local, const Endpoint& remote) override;

    struct Statistics {
        std::uint64_t ports = 0;
        std::uint64_t addresses = 0;
        std::uint64_t kernel_flows = 0;
        std::uint64_t kernel_flows_refused = 0;  // no room: these connections were reset
        std::uint64_t addresses_refused = 0;     // no room: their packets stay with the kernel
    };
    Statistics statistics() const;

private:
    struct Interface {
        int ifindex;
        SteeringMaps* maps;
        std::set<Address> addresses;
    };
    struct Flow {
        SteeringMaps* maps;
        Endpoint local;
        Endpoint remote;
        auto operator<=>(const Flow&) const = default;
    };
    struct TcpPort {
        std::uint32_t taken = 0;  // how often, on whatever address
        std::set<Address> asked;  // for these the kernel has been asked about flows
        std::set<Flow> flows;
    };
    struct Wildcard {
        Protocol protocol;
        Family family;
        Port port;
        auto operator<=>(const Wildcard&) const = default;
    };

    bool must_ask(const Address& address, Port port) const;
    void keep_kernel_flows(Port port, TcpPort& state);

    FlowSource flow_source_;
    PortRange ephemeral_;
    mutable std::mutex mutex_;  // guards what follows
    std::vector<Interface> interfaces_;
    std::map<Wildcard, std::uint32_t> wildcards_;
    std::map<Port, TcpPort> tcp_ports_;
    std::uint64_t taken_ = 0;
    std::uint64_t flows_refused_ = 0;
    std::uint64_t addresses_refused_ = 0;
};

}  // namespace culvert::control
