#include "daemon/control/policy.h"

#include <grp.h>
#include <pwd.h>
#include <sys/socket.h>

#include <algorithm>

#ifndef SO_PEERGROUPS
#define SO_PEERGROUPS 59
#endif

namespace culvert::control {

Result<Peer> peer_of(int fd) {
    ucred credentials{};
    socklen_t length = sizeof credentials;
    if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return fail_errno("SO_PEERCRED");
    Peer peer{credentials.pid, credentials.uid, credentials.gid, {}};
    // The first call says how many there are (ERANGE), the second fetches them.
    length = 0;
    if (::getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, nullptr, &length) != 0 && errno == ERANGE) {
        peer.groups.resize(length / sizeof(gid_t));
        if (::getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, peer.groups.data(), &length) != 0) peer.groups.clear();
    }
    return peer;
}

namespace {

Result<uid_t> user_named(const std::string& name, const char* key) {
    const passwd* user = ::getpwnam(name.c_str());
    if (user == nullptr) return fail(0, std::string(key) + ": no user \"" + name + "\"");
    return user->pw_uid;
}

}  // namespace

Result<Policy> Policy::create(const Config& whole) {
    const SocketConfig& config = whole.socket;
    Policy policy;
    policy.everybody_ = config.allow_users.empty() && config.allow_groups.empty();
    for (const std::string& name : config.allow_users) policy.users_.insert(TRY(user_named(name, "socket.allow_users")));
    for (const ProgramConfig& program : whole.programs) {
        Program known{program.name, std::nullopt, nullptr};
        if (!program.user.empty()) known.user = TRY(user_named(program.user, "program.user"));
        ProgramPolicy rules{program.policy, {}};
        shm::PolicyError error;
        if (!rules.rules.parse(rules.text, error)) return fail(0, std::string("program.policy: ") + error.text);
        known.policy = std::make_shared<const ProgramPolicy>(std::move(rules));
        policy.programs_.push_back(std::move(known));
    }
    for (const std::string& name : config.allow_groups) {
        const group* entry = ::getgrnam(name.c_str());
        if (entry == nullptr) return fail(0, "socket.allow_groups: no group \"" + name + "\"");
        policy.groups_.insert(entry->gr_gid);
    }
    return policy;
}

bool Policy::allows(const Peer& peer) const {
    if (everybody_ || peer.uid == 0 || users_.contains(peer.uid) || groups_.contains(peer.gid)) return true;
    return std::ranges::any_of(peer.groups, [&](gid_t group) { return groups_.contains(group); });
}

std::shared_ptr<const ProgramPolicy> Policy::of(const Peer& peer, std::string_view name) const {
    const auto found = std::ranges::find_if(programs_, [&](const Program& program) {
        return (program.name.empty() || program.name == name) && (!program.user || *program.user == peer.uid);
    });
    return found == programs_.end() ? nullptr : found->policy;
}

}  // namespace culvert::control
