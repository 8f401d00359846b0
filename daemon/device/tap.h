// A TAP interface: a network that exists between this host's kernel and us. For hosts without a NIC to share, containers,
// and tests with the kernel as the peer.
//
//   kernel: culvert0, MAC and addresses of its own  <---- frames ---->  Culvert: another MAC, addresses the kernel does not know
//
// Super-packets pass in both directions (TSO as the kernel calls it), so a stream costs one packet in 64 KiB.
#pragma once

#include <memory>
#include <string>

#include "daemon/device/frame_file.h"
#include "daemon/device/interface_facts.h"

namespace culvert::device {

struct Tap {
    std::unique_ptr<FrameFile> device;
    InterfaceFacts facts;  // of the kernel's end
};

/// Makes the interface `name`, or attaches to it if it is there, made persistent by `ip tuntap`, and free. It is left down or
/// up as it was; a new one is down, without an address. It goes with the device unless it was persistent.
/// Errors: EPERM, EBUSY somebody else has it, EINVAL it is no TAP interface.
/// `super_packets` false: every frame is one that could go on to a wire, its checksum filled in; for forwarding.
Result<Tap> open_tap(FramePool& pool, const std::string& name, bool super_packets = true);

/// A MAC for our end of a link that has none of its own: locally administered, the same for the same host and name.
MacAddress our_mac(const std::string& name);

}  // namespace culvert::device
