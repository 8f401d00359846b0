#include "daemon/control/steering.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <fstream>

namespace culvert::control {

PortRange ephemeral_ports() {
    std::ifstream stream("/proc/sys/net/ipv4/ip_local_port_range");
    PortRange range;
    unsigned low = 0;
    unsigned high = 0;
    if (stream >> low >> high && low <= high && high <= 65535) range = {static_cast<Port>(low), static_cast<Port>(high)};
    return range;
}

void Steering::add_interface(int ifindex, SteeringMaps& maps) {
    const std::lock_guard lock(mutex_);
    interfaces_.push_back({ifindex, &maps, {}});
}

void Steering::set_addresses(int ifindex, const std::set<Address>& addresses) {
    const std::lock_guard lock(mutex_);
    const auto interface = std::ranges::find(interfaces_, ifindex, &Interface::ifindex);
    if (interface == interfaces_.end()) return;
    const std::set<Address> old = std::exchange(interface->addresses, addresses);
    for (const Address& address : old) {
        if (addresses.contains(address)) continue;
        (void)interface->maps->set_address(address, false);
        for (const auto& [wildcard, count] : wildcards_)
            if (wildcard.family == address.family()) interface->maps->release_port(address, wildcard.protocol, wildcard.port);
    }
    bool came = false;
    for (const Address& address : addresses) {
        if (old.contains(address)) continue;
        came = true;
        for (const auto& [wildcard, count] : wildcards_)
            if (wildcard.family == address.family()) interface->maps->take_port(address, wildcard.protocol, wildcard.port);
    }
    if (!came) return;
    // The ports count from set_address on: the kernel's flows on the new addresses first.
    for (auto& [port, state] : tcp_ports_)
        if (!state.asked.empty()) keep_kernel_flows(port, state);
    for (const Address& address : addresses) {
        if (old.contains(address)) continue;
        const Result<void> set = interface->maps->set_address(address, true);
        if (set) continue;
        ++addresses_refused_;
        spdlog::warn("{} stays with the kernel: {}", address.to_string(), set.error().message());
    }
}

void Steering::set_mtu(int ifindex, std::uint32_t mtu) {
    const std::lock_guard lock(mutex_);
    const auto interface = std::ranges::find(interfaces_, ifindex, &Interface::ifindex);
    if (interface != interfaces_.end()) interface->maps->set_mtu(mtu);
}

bool Steering::must_ask(const Address& address, Port port) const {
    return address.is_unspecified() || !ephemeral_.contains(port);
}

void Steering::keep_kernel_flows(Port port, TcpPort& state) {
    const Result<std::vector<KernelSocket>> connections = flow_source_(port);
    if (!connections) {
        spdlog::warn("cannot ask which connections on port {} are the kernel's: {}", port, connections.error().message());
        return;
    }
    for (const KernelSocket& connection : *connections) {
        for (const Interface& interface : interfaces_) {
            if (!interface.addresses.contains(connection.local.address)) continue;
            const Flow flow{interface.maps, connection.local, connection.remote};
            if (state.flows.contains(flow)) continue;
            const Result<void> added = interface.maps->add_kernel_flow(flow.local, flow.remote);
            if (added) {
                state.flows.insert(flow);
            } else if (flows_refused_++ == 0) {
                spdlog::warn("connection {} of the kernel will be reset: {}", flow.remote.to_string(), added.error().message());
            }
        }
    }
}

void Steering::take_port(Protocol protocol, const Address& address, Port port) {
    if (address.is_loopback()) return;  // never comes by an interface
    const std::lock_guard lock(mutex_);
    ++taken_;
    const bool ask = protocol == Protocol::kTcp && must_ask(address, port);
    TcpPort* tcp = nullptr;
    if (protocol == Protocol::kTcp) {
        tcp = &tcp_ports_[port];
        ++tcp->taken;
    }
    const bool covered = ask && tcp->asked.contains(Address::any(address.family()));  // it takes nothing new
    const bool first_time = ask && !covered && tcp->asked.insert(address).second;
    if (first_time) keep_kernel_flows(port, *tcp);
    if (!address.is_unspecified()) {
        for (const Interface& interface : interfaces_) interface.maps->take_port(address, protocol, port);
    } else if (++wildcards_[{protocol, address.family(), port}] == 1) {
        for (const Interface& interface : interfaces_)
            for (const Address& own : interface.addresses)
                if (own.family() == address.family()) interface.maps->take_port(own, protocol, port);
    }
    // Once more: a handshake that the kernel finished between the first look and the bit. What its client has sent since then
    // has come to us; is_elsewhere() keeps the stack from resetting it.
    if (first_time) keep_kernel_flows(port, *tcp);
}

void Steering::release_port(Protocol protocol, const Address& address, Port port) {
    if (address.is_loopback()) return;
    const std::lock_guard lock(mutex_);
    --taken_;
    if (!address.is_unspecified()) {
        for (const Interface& interface : interfaces_) interface.maps->release_port(address, protocol, port);
    } else if (const auto found = wildcards_.find({protocol, address.family(), port});
               found != wildcards_.end() && --found->second == 0) {
        wildcards_.erase(found);
        if (const auto tcp = tcp_ports_.find(port); protocol == Protocol::kTcp && tcp != tcp_ports_.end()) tcp->second.asked.erase(address);
        for (const Interface& interface : interfaces_)
            for (const Address& own : interface.addresses)
                if (own.family() == address.family()) interface.maps->release_port(own, protocol, port);
    }
    if (protocol != Protocol::kTcp) return;
    const auto tcp = tcp_ports_.find(port);
    if (tcp == tcp_ports_.end() || --tcp->second.taken != 0) return;
    for (const Flow& flow : tcp->second.flows) (void)flow.maps->remove_kernel_flow(flow.local, flow.remote);
    tcp_ports_.erase(tcp);
}

bool Steering::is_elsewhere(const Endpoint& local, const Endpoint& remote) {
    const std::lock_guard lock(mutex_);  // of another engine it waits here until that has asked the kernel twice
    const auto tcp = tcp_ports_.find(local.port);
    return tcp != tcp_ports_.end() && std::ranges::any_of(interfaces_, [&](const Interface& interface) {
               return tcp->second.flows.contains(Flow{interface.maps, local, remote});
           });
}

void Steering::forget_finished_flows() {
    const std::lock_guard lock(mutex_);
    for (auto& [port, state] : tcp_ports_) {
        if (state.flows.empty()) continue;
        const Result<std::vector<KernelSocket>> connections = flow_source_(port);
        if (!connections) continue;
        std::set<std::pair<Endpoint, Endpoint>> alive;
        for (const KernelSocket& connection : *connections) alive.emplace(connection.local, connection.remote);
        std::erase_if(state.flows, [&](const Flow& flow) {
            if (alive.contains({flow.local, flow.remote})) return false;
            (void)flow.maps->remove_kernel_flow(flow.local, flow.remote);
            return true;
        });
    }
}

Steering::Statistics Steering::statistics() const {
    const std::lock_guard lock(mutex_);
    Statistics statistics;
    statistics.ports = taken_;
    for (const Interface& interface : interfaces_) statistics.addresses += interface.addresses.size();
    for (const auto& [port, state] : tcp_ports_) statistics.kernel_flows += state.flows.size();
    statistics.kernel_flows_refused = flows_refused_;
    statistics.addresses_refused = addresses_refused_;
    return statistics;
}

}  // namespace culvert::control
