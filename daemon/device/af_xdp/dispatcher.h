// Living beside other XDP programs: libxdp's dispatcher, for an interface that has one already.
//
// A dispatcher outlives the process that made it (it is attached by netlink and pinned in bpffs), and so does our
// program in it. Killed, we leave a program behind that passes everything: its map of AF_XDP sockets is empty. The next
// daemon must take it out, but never that of a living daemon. The living one is known by its *claim*: an abstract UNIX
// socket, which the kernel keeps per network namespace and closes with the process.
#pragma once

#include <string>

#include "shm/base/error.h"
#include "shm/base/unique_fd.h"

struct xdp_program;

namespace culvert::device {

/// Name of the program in steer.bpf.c.
inline constexpr const char* kSteerProgramName = "culvert_steer";

/// The right to be the Culvert program on an interface. Errors: EBUSY another daemon has it.
Result<UniqueFd> claim_interface(const std::string& interface, int ifindex);

/// Takes programs of daemons that died out of the interface's dispatcher. Requires: the claim is ours.
/// Errors: EBUSY the program there is not a dispatcher.
Result<void> remove_stale_programs(const std::string& interface, int ifindex);

/// True when `ifindex` has any XDP program.
bool has_xdp_program(int ifindex);

/// "xdp_drop (id 12)" for messages.
std::string describe_bpf_program(unsigned id);

}  // namespace culvert::device
