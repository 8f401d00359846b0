// Which sockets of this program may go through Culvert: its own policy (CULVERT_POLICY, read once) and the daemon's (told at
// attach). Both must allow it; with neither everything may but loopback. shm/policy.h has the rules.
//
// A CULVERT_POLICY that cannot be read - `culvert run` refuses such a one, so somebody has set it by hand - leaves everything
// to the kernel: what it was meant to forbid is not known.
#pragma once

#include "shm/policy.h"
#include "shm/socket_record.h"

namespace culvert::preload {

/// Reads CULVERT_POLICY. Once, when the library is loaded.
void read_policy() noexcept;
/// The program has made an io_uring: what it does to sockets with it, nobody beside the program sees. From now on sockets are the
/// kernel's; listeners and datagram sockets that are Culvert's already go back. Established connections stay.
void note_io_uring() noexcept;
/// As if the environment had said `text`; null: nothing. For tests.
void set_policy_for_test(const char* text) noexcept;

/// kUnknown: Culvert may carry it; else why it is the kernel's. `endpoint`: of ours with kListen, of the peer with kConnect.
shm::KernelReason why_kernel(shm::Policy::Protocol protocol, shm::Policy::Call call, const shm::WireEndpoint& endpoint) noexcept;
/// The same of every socket of that protocol; kUnknown: it depends on address and port.
shm::KernelReason why_never(shm::Policy::Protocol protocol) noexcept;

/// Why a socket is the kernel's after the daemon has answered an operation with `error`; `otherwise`: errors without a meaning
/// of their own.
shm::KernelReason reason_of(int error, shm::KernelReason otherwise) noexcept;
/// The same of kRoute.
shm::KernelReason reason_of_route(int error, const shm::WireEndpoint& remote) noexcept;
/// The same of binding and listening.
shm::KernelReason reason_of_bind(int error, const shm::WireEndpoint& local) noexcept;

/// What a --strict program is told instead of getting the kernel's socket, as an errno value; 0: it gets it all the same. What
/// a policy leaves to the kernel is meant to be there, as is what no Culvert interface leads to.
int strict_error(shm::KernelReason reason) noexcept;

}  // namespace culvert::preload
