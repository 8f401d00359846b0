// The whole daemon, put together: interfaces, engine, control thread. main.cc reads the command line and calls run().
//
//   order of life:  control socket, netlink, frame pools, XDP programs, engine (owns the devices), server
//   the end goes backwards, so that packets go back to the kernel before anything they need is gone
#pragma once

#include <functional>

#include "daemon/control/config.h"

namespace culvert::control {

/// Serves until SIGTERM or SIGINT. `reload` gives the configuration as it is then (SIGHUP). Errors: whatever keeps it from
/// starting, in one line that says what to do.
Result<void> run_daemon(const Config& config, std::function<Result<Config>()> reload);

}  // namespace culvert::control
