// A TUN device in a network namespace of our own.
#pragma once

#include <string>

#include "shm/base/unique_fd.h"
#include "tests/scripts/runner/world.h"

namespace culvert::script {

/// Not set as a sysctl: the kernel refuses that in a namespace, and what a namespace begins with is the machine's. Each
/// socket is told instead.
inline constexpr const char* kCongestionSysctl = "net.ipv4.tcp_congestion_control";

/// Moves the process into a fresh network namespace, sets sysctls, and makes a device with setup.local and a route to
/// everywhere. Reads and writes of the descriptor are IP packets. Throws std::runtime_error, or Unsupported (sysctl).
UniqueFd open_tun(const Setup& setup);

}  // namespace culvert::script
