// The kernel's TCP as a script's world, in real time: real sockets in a network namespace of this process alone, behind a
// TUN device whose other end is the script.
//
// Linux only, root only. The process is given up to it: it moves into a fresh namespace, and threads may still hang in
// system calls at the end, so it must leave by _exit().
#pragma once

#include <optional>
#include <string>

#include "tests/scripts/runner/world.h"

namespace culvert::script {

/// Why this machine cannot do it; nothing if it can. Tried in a child process.
std::optional<std::string> kernel_world_obstacle();
/// Throws std::runtime_error when a step of the setup fails, Unsupported for a sysctl that cannot be set.
std::unique_ptr<World> make_kernel_world(const Setup& setup);

}  // namespace culvert::script
