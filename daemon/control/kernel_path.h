// Sockets of attached programs that are on the kernel's path, and why: what the shim has written into its process record,
// joined with what the kernel says about the descriptor.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "daemon/control/attach.h"

namespace culvert::control {

/// Appends one object per kernel-path socket to the array `sockets`, in the form of `culvert ss`.
void append_kernel_sockets(const TenantRecord& tenant, nlohmann::json& sockets);

/// "ESTABLISHED", "LISTEN" ... for a number of <netinet/tcp.h>.
const char* tcp_state_name(unsigned state);

}  // namespace culvert::control
