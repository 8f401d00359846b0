// Who may attach, and what of a program may go through Culvert: users and groups by name in the configuration, by number here.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <set>
#include <span>

#include "daemon/control/config.h"
#include "shm/policy.h"

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

/// A policy of the configuration, as the shim is told it and as the daemon applies it.
struct ProgramPolicy {
    std::string text;
    shm::Policy rules;
};

class Policy {
public:
    /// Resolves the names. Errors: a user or group that does not exist.
    static Result<Policy> create(const Config& config);

    /// Root always may. With both lists empty everybody may whom the socket file's mode lets in.
    bool allows(const Peer& peer) const;
    /// Of the first [[program]] that fits; null: there is none. `name` is the program's own word, the user is the kernel's.
    std::shared_ptr<const ProgramPolicy> of(const Peer& peer, std::string_view name) const;

private:
    struct Program {
        std::string name;           // empty: any
        std::optional<uid_t> user;  // none: any
        std::shared_ptr<const ProgramPolicy> policy;
    };

    bool everybody_ = true;
    std::set<uid_t> users_;
    std::set<gid_t> groups_;
    std::vector<Program> programs_;
};

}  // namespace culvert::control
