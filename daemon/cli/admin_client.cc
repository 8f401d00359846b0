#include "daemon/cli/admin_client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <vector>

#include <fmt/format.h>

namespace culvert::cli {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr std::size_t kMaxPacketBytes = 256 * 1024;
constexpr std::size_t kMaxAnswerBytes = 256u << 20;

/// True when readable before `deadline`.
bool wait_readable(int fd, SteadyClock::time_point deadline) {
    for (;;) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - SteadyClock::now());
        if (left.count() <= 0) return false;
        pollfd waited{fd, POLLIN, 0};
        const int ready = ::poll(&waited, 1, static_cast<int>(left.count()));
        if (ready > 0) return true;
        if (ready < 0 && errno != EINTR) return false;
    }
}

}  // namespace

Result<UniqueFd> connect_daemon(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) return fail(ENAMETOOLONG, path);
    path.copy(address.sun_path, path.size());
    UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (!fd) return fail_errno("socket");
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return fail_errno(path);
    return fd;
}

Result<nlohmann::json> ask_daemon(const std::string& path, const std::string& request, std::chrono::milliseconds timeout) {
    const UniqueFd fd = TRY(connect_daemon(path));
    const SteadyClock::time_point deadline = SteadyClock::now() + timeout;
    const std::string message = nlohmann::json{{"request", request}}.dump();
    if (::send(fd.get(), message.data(), message.size(), MSG_NOSIGNAL) < 0) return fail_errno(path);
    std::string answer;
    std::vector<char> packet(kMaxPacketBytes);
    for (;;) {
        if (!wait_readable(fd.get(), deadline)) return fail(ETIMEDOUT, path);
        const ssize_t length = ::recv(fd.get(), packet.data(), packet.size(), 0);
        if (length < 0 && errno == EINTR) continue;
        if (length < 0) return fail_errno(path);
        if (length == 0) break;
        answer.append(packet.data(), static_cast<std::size_t>(length));
        if (answer.size() > kMaxAnswerBytes) return fail(EMSGSIZE, path);
    }
    nlohmann::json parsed = nlohmann::json::parse(answer, nullptr, false);
    if (parsed.is_discarded() || !parsed.is_object()) return fail(EPROTO, path);
    if (const auto refused = parsed.find("error"); refused != parsed.end() && refused->is_string())
        return fail(0, refused->get<std::string>());
    return parsed;
}

std::string advice(const std::string& path, const Error& error) {
    if (error.code == 0) return fmt::format("culvertd refused: {}", error.what);
    const char* hint = "";
    switch (error.code) {
        case ENOENT:
        case ECONNREFUSED: hint = "; is it running? (systemctl start culvertd)"; break;
        case EACCES:
        case EPERM: hint = "; you may not use it (socket.group / socket.mode in its configuration)"; break;
        case ETIMEDOUT: hint = "; it is running but does not answer"; break;
        case EPROTO: hint = "; is it culvertd, of the same version?"; break;
        case EPROTOTYPE: hint = "; the socket is not culvertd's"; break;
        default: break;
    }
    return fmt::format("cannot reach culvertd at {}: {}{}", path, std::strerror(error.code), hint);
}

}  // namespace culvert::cli
