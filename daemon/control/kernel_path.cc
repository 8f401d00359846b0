#include "daemon/control/kernel_path.h"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <optional>
#include <string_view>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "daemon/control/kernel_flows.h"

namespace culvert::control {
namespace {

/// The inode number of the socket behind a descriptor; 0 when we may not look; nothing when there is no such socket.
std::optional<std::uint32_t> socket_inode(std::uint32_t pid, std::uint32_t fd) {
    char target[64] = {};
    const ssize_t length = ::readlink(fmt::format("/proc/{}/fd/{}", pid, fd).c_str(), target, sizeof target - 1);
    if (length < 0) return errno == EACCES || errno == EPERM ? std::optional<std::uint32_t>(0) : std::nullopt;
    constexpr std::string_view kPrefix = "socket:[";
    const std::string_view text(target, static_cast<std::size_t>(length));
    if (!text.starts_with(kPrefix)) return std::nullopt;
    std::uint32_t inode = 0;
    std::from_chars(text.data() + kPrefix.size(), text.data() + text.size(), inode);
    return inode;
}

/// The pid is the application's word: believed only for a process of the same user.
bool belongs_to(std::uint32_t pid, uid_t uid) {
    struct stat status;
    return pid != 0 && ::stat(fmt::format("/proc/{}", pid).c_str(), &status) == 0 && (status.st_uid == uid || uid == 0);
}

}  // namespace

const char* tcp_state_name(unsigned state) {
    static constexpr std::array kNames{"?",        "ESTABLISHED", "SYN-SENT",   "SYN-RECEIVED", "FIN-WAIT-1", "FIN-WAIT-2",
                                       "TIME-WAIT", "CLOSED",      "CLOSE-WAIT", "LAST-ACK",     "LISTEN",     "CLOSING"};
    return state < kNames.size() ? kNames[state] : "?";
}

void append_kernel_sockets(const TenantRecord& tenant, nlohmann::json& sockets) {
    using Known = std::unordered_map<std::uint32_t, KernelSocket>;
    const Known by_inode = kernel_sockets_by_inode().value_or(Known());
    for (const std::uint32_t slot : tenant.slots) {
        const shm::ProcessRecord& process = tenant.segment->process(slot);
        const std::uint32_t pid = process.pid.load(std::memory_order_relaxed);
        const bool may_look = belongs_to(pid, tenant.uid);
        for (std::uint32_t fd = 0; fd < shm::kReasonTableLength; ++fd) {
            const std::uint8_t reason = process.reasons[fd].load(std::memory_order_relaxed);
            if (reason == 0) continue;
            const std::optional<std::uint32_t> inode = may_look ? socket_inode(pid, fd) : 0;
            if (!inode) continue;  // closed meanwhile
            const auto known = by_inode.find(*inode);
            nlohmann::json line = {{"program", tenant.program}, {"pid", pid},      {"fd", fd},
                                   {"proto", ""},               {"state", ""},     {"local", ""},
                                   {"remote", ""},              {"recv_q", 0},     {"send_q", 0},
                                   {"path", "kernel"},          {"why", shm::kernel_reason_text(static_cast<shm::KernelReason>(reason))}};
            if (known != by_inode.end()) {
                const KernelSocket& socket = known->second;
                const bool unconnected = !socket.is_tcp && socket.state != 1;
                line["proto"] = socket.is_tcp ? "tcp" : "udp";
                line["state"] = unconnected ? "UNCONNECTED" : tcp_state_name(socket.state);
                line["local"] = socket.local.to_string();
                if (socket.remote.port != 0) line["remote"] = socket.remote.to_string();
                line["recv_q"] = socket.receive_queue;
                line["send_q"] = socket.send_queue;
            }
            sockets.push_back(std::move(line));
        }
    }
}

}  // namespace culvert::control
