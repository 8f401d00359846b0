// A packet socket as a device (packet(7)): for interfaces whose driver has no XDP that is worth it, and where super-packets
// matter more than the copy, since the kernel's GRO and GSO work for it.
//
//   frame --> [ socket filter: ours? ] --> this socket          the pair of programs judges alike: SteeringProgram's traffic
//         \-> [ tc ingress: ours? dropped ] --> kernel's stack   half keeps from the kernel what this socket has got
#pragma once

#include <memory>

#include "daemon/device/af_xdp/program.h"
#include "daemon/device/frame_file.h"
#include "daemon/device/interface_facts.h"
#include "shm/base/unique_fd.h"

namespace culvert::device {

/// A packet socket on the program's interface, that receives what is ours. `program`: of attach_traffic(); it must outlive the
/// device. `vlan`: what SteeringProgram::set_vlan was told (802.1Q); the kernel takes its tag off before a packet socket sees the
/// frame, so it is put back. Errors: ENETDOWN, ENOMEM, EPERM.
Result<std::unique_ptr<FrameFile>> open_packet_socket(FramePool& pool, const SteeringProgram& program, std::uint16_t vlan = 0);

/// A packet socket with virtio headers and a send buffer for bursts of super-packets. It hears nothing before it is bound.
/// Errors: EPERM (CAP_NET_RAW), ENOMEM.
Result<UniqueFd> make_packet_socket(const InterfaceFacts& facts);
/// To the interface; `protocol` (ETH_P_ALL ...) is what it hears, 0: nothing.
Result<void> bind_packet_socket(const UniqueFd& socket, const InterfaceFacts& facts, std::uint16_t protocol);

}  // namespace culvert::device
