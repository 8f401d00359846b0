// Who may attach: users and groups by name in the configuration, by number here.
#pragma once

#include <sys/types.h>

#include <set>
#include <span>

#include "daemon/control/config.h"

namespace culvert::control {

/// Who is on the other end of a control connection, as the kernel says (SO_PEERCRED, SO_PEERGROUPS).
struct Peer {
    pid_t pid = 0;
    uid_t uid = 0;
    gid_t gid = 0;
    std::vector<gid_t> groups;
};

/// Errors: the descriptor is no AF_UNIX socket.
Result<Peer> peer_of(int fd);

class Policy {
public:
    /// Resolves the names. Errors: a user or group that does not exist.
    static Result<Policy> create(const SocketConfig& config);

    /// Root always may. With both lists empty everybody may whom the socket file's mode lets in.
    bool allows(const Peer& peer) const;

private:
    bool everybody_ = true;
    std::set<uid_t> users_;
    std::set<gid_t> groups_;
};

}  // namespace culvert::control
