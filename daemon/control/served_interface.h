// One interface of the configuration, opened: the devices that the engines get, the steering that tells which packets are
// ours, and how the stack shall see it.
//
//   device     frames are ours by            devices              the kernel on this interface
//   af_xdp     an XDP program                one a queue          has everything else
//   packet     socket filter and tc          one                  has everything else
//   tap        all of them                   one                  is the other end of the link
//
// Shared (no `address` in the configuration): the kernel's addresses and neighbours, mirrored. Dedicated: our own.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/control/config.h"
#include "daemon/control/kernel_feed.h"
#include "daemon/control/program_maps.h"
#include "daemon/device/af_xdp/program.h"
#include "daemon/device/device.h"
#include "daemon/stack/interface.h"

namespace culvert::control {

/// One receive queue. Its device is the engine's as soon as there is one; the memory stays here.
struct ServedQueue {
    unsigned number;
    std::unique_ptr<FramePool> pool;
    std::unique_ptr<device::Device> device;
};

/// Everything of one interface that the engines' devices stand on. It outlives them.
struct ServedInterface {
    stack::Interface described;                          // without tx: each engine has its own
    std::unique_ptr<device::SteeringProgram> program;    // null: every frame is ours
    std::unique_ptr<ProgramMaps> maps;                   // of `program`, for shared addresses
    std::optional<KernelFeed::Dedicated> dedicated;
    std::vector<ServedQueue> queues;                     // never empty

    /// For `culvert stat`.
    std::string steering() const { return program != nullptr ? program->describe() : "none: every frame is ours"; }
    std::vector<device::Statistic> steering_statistics() const;
};

/// Startup only. Errors: one line that says what to do, code 0.
Result<ServedInterface> open_interface(const InterfaceConfig& config, const EngineConfig& engine, bool forwarding);

/// What a person can do about an interface that could not be taken.
std::string interface_advice(const std::string& name, const Error& error);

}  // namespace culvert::control
