// The whole daemon, put together: interfaces, engine, control thread. main.cc reads the command line and calls run().
//
//   order of life:  control socket, netlink, frame pools, XDP programs, engine (owns the devices), server
//   the end goes backwards, so that packets go back to the kernel before anything they need is gone
#pragma once

#include <functional>

#include "daemon/control/config.h"

namespace culvert::control {

enum class Ended {
    kForGood,    // SIGTERM, SIGINT
    kToBeginAnew // an interface has gone and come back: another one of the same name, to be opened like the first
};

/// Serves until SIGTERM or SIGINT. `reload` gives the configuration as it is then (SIGHUP). Errors: whatever keeps it from
/// starting, in one line that says what to do.
Result<Ended> run_daemon(const Config& config, std::function<Result<Config>()> reload);

}  // namespace culvert::control
