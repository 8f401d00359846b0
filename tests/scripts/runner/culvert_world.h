// Culvert's stack as a script's world: the production stack on a frame pool, a virtual clock, and under the sockets a thin
// layer with the semantics of the system calls (what the shim and the tenant are in the product).
#pragma once

#include "tests/scripts/runner/world.h"

namespace culvert::script {

std::unique_ptr<World> make_culvert_world(const Setup& setup);

}  // namespace culvert::script
