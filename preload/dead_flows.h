// What a killed daemon owed: its peers hear nothing until they speak themselves. Its successor makes them ask, if it is told
// which connections there were.
//
//   the dead daemon's segment: records held by the family's processes, and those that nobody has accepted yet
//       --> (local, remote), each once: kAppReported, which the family shares, is set by whoever reports it
//   proof that we may speak for the port: our socket that was to connect, bound; the listener; else one that the kernel lets us
//       bind to it now
#pragma once

#include "preload/client.h"

namespace culvert::preload {

/// `fresh` has just been attached, `dead` was attached before. On the thread that attaches, which has all locks that it needs.
void report_dead_flows(Client& dead, Client& fresh) noexcept;

}  // namespace culvert::preload
