// Makes the kernel sockets that stand in for a connection which has left its program.
//
//   stranger --- theirs <== TCP over a loopback of its own ==> ours --- engine --- Culvert connection --- peer
//
// `theirs` is a socket like the one that the kernel would have given the program: same family, and getsockname and
// getpeername tell the connection's true addresses; options, MSG_OOB, half-close and reset are the kernel's. That works
// because the pair lives in a network namespace where every address is a local one. The namespace is kept by a helper
// process, since to make sockets in it somebody must live there, and the daemon's threads must not:
//
//   daemon -- local, remote --> helper: bind, listen, connect, accept, compare names -- two descriptors --> daemon
//
// The helper needs no privilege where unprivileged user namespaces are allowed. Without a namespace the pair stands on
// the host's own loopback, with names that are not true, and a warning at the start says so.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <utility>

#include "daemon/wire/address.h"
#include "shm/base/error.h"
#include "shm/base/unique_fd.h"

namespace culvert::control {

class StandInMaker {
public:
    struct Pair {
        UniqueFd ours;    // non-blocking; resets the other end if it is closed without shutdown(), also by our death
        UniqueFd theirs;
    };

    /// Forks the helper. Requires: the process has no other thread yet.
    static Result<StandInMaker> start();
    StandInMaker(StandInMaker&& other) noexcept
        : helper_(std::move(other.helper_)), pid_(std::exchange(other.pid_, 0)), true_names_(other.true_names_) {}
    /// Ends the helper.
    ~StandInMaker();

    /// A connected pair; `theirs` has `local` as its own name and `remote` as its peer's if that can be had, otherwise, and if
    /// `local` has no port, names on loopback. Takes the time of three system calls of the helper's; a helper that does not answer
    /// within a second is given up. `v6`: family of the sockets, also for IPv4 addresses (mapped ones then).
    Result<Pair> make(const Endpoint& local, const Endpoint& remote, bool v6);
    /// The pairs stand in a network namespace of their own.
    bool has_true_names() const { return true_names_; }

private:
    StandInMaker(UniqueFd helper, pid_t pid, bool true_names) : helper_(std::move(helper)), pid_(pid), true_names_(true_names) {}

    UniqueFd helper_;  // none: given up
    pid_t pid_ = 0;
    bool true_names_ = false;
};

}  // namespace culvert::control
