// SteeringMaps as they really are: the maps of one interface's XDP program.
#pragma once

#include "daemon/control/steering.h"
#include "daemon/device/af_xdp/program.h"

namespace culvert::control {

class ProgramMaps final : public SteeringMaps {
public:
    explicit ProgramMaps(device::SteeringProgram& program) : program_(program) {}

    Result<void> set_address(const Address& address, bool ours) override { return program_.set_address(address, ours); }
    void set_mtu(std::uint32_t mtu) override {
        if (program_.sees_merged()) program_.limit_datagrams(mtu);
    }
    void take_port(const Address& address, Protocol protocol, Port port) override {
        program_.take_port(address, number_of(protocol), port);
    }
    void release_port(const Address& address, Protocol protocol, Port port) override {
        program_.release_port(address, number_of(protocol), port);
    }
    Result<void> add_kernel_flow(const Endpoint& local, const Endpoint& remote) override {
        return program_.add_kernel_flow(local, remote, device::Protocol::kTcp);
    }
    Result<void> remove_kernel_flow(const Endpoint& local, const Endpoint& remote) override {
        return program_.remove_kernel_flow(local, remote, device::Protocol::kTcp);
    }

private:
    static device::Protocol number_of(Protocol protocol) {
        return protocol == Protocol::kTcp ? device::Protocol::kTcp : device::Protocol::kUdp;
    }
    device::SteeringProgram& program_;
};

}  // namespace culvert::control
