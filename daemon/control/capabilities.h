// What the daemon must be allowed to do, looked at before it tries, so that the answer can name what is missing.
#pragma once

#include <string>

namespace culvert::control {

/// "CAP_NET_ADMIN, CAP_BPF": those of the needed ones that this process lacks; empty when it has all.
std::string missing_capabilities();

}  // namespace culvert::control
