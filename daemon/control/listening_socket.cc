#include "daemon/control/listening_socket.h"

#include <grp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <thread>

namespace culvert::control {
namespace {

constexpr int kBacklog = 512;

sockaddr_un address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    return address;
}

bool accepts(const std::string& path) {
    const UniqueFd probe(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const sockaddr_un address = address_of(path);
    return ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 || errno != ECONNREFUSED;
}

/// False when nobody listens there any more. The socket of a daemon that was killed outlives it by some milliseconds, because
/// io_uring lets go of its files only after the process is gone: ask for a while before believing that it lives.
bool is_alive(const std::string& path) {
    for (int attempt = 0; attempt < 50; ++attempt) {
        if (!accepts(path)) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return true;
}

}  // namespace

Result<ListeningSocket> ListeningSocket::open(const SocketConfig& config) {
    ListeningSocket socket;
    if (config.path.size() >= sizeof(sockaddr_un::sun_path)) return fail(ENAMETOOLONG, "control socket " + config.path);
    std::error_code ignored;
    std::filesystem::create_directory(std::filesystem::path(config.path).parent_path(), ignored);  // bind says it if not

    struct stat status;
    if (::lstat(config.path.c_str(), &status) == 0) {
        if (!S_ISSOCK(status.st_mode)) return fail(EEXIST, "control socket " + config.path + " is another kind of file");
        if (is_alive(config.path))
            return fail(0, "control socket " + config.path + " is in use by a running daemon; stop it or choose another path with --socket");
        if (::unlink(config.path.c_str()) != 0) return fail_errno("remove stale control socket " + config.path);
    }
    socket.fd_.reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (!socket.fd_) return fail_errno("control socket");
    const sockaddr_un address = address_of(config.path);
    // Nobody but us until mode and group are set.
    const mode_t old_mask = ::umask(0177);
    const int bound = ::bind(socket.fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
    const int bind_error = errno;
    ::umask(old_mask);
    if (bound != 0) return fail(bind_error, "control socket " + config.path);
    socket.path_ = config.path;
    if (::lstat(config.path.c_str(), &status) != 0) return fail_errno("control socket " + config.path);
    socket.device_ = status.st_dev;
    socket.inode_ = status.st_ino;

    if (!config.group.empty()) {
        const group* entry = ::getgrnam(config.group.c_str());
        if (entry == nullptr) return fail(0, "socket.group: no group \"" + config.group + "\"");
        if (::chown(config.path.c_str(), static_cast<uid_t>(-1), entry->gr_gid) != 0)
            return fail_errno("give control socket " + config.path + " to group " + config.group);
    }
    if (::chmod(config.path.c_str(), static_cast<mode_t>(config.mode)) != 0) return fail_errno("set the mode of " + config.path);
    return socket;
}

bool ListeningSocket::is_in_place() const {
    struct stat status;
    return ::lstat(path_.c_str(), &status) == 0 && status.st_dev == device_ && status.st_ino == inode_;
}

Result<void> ListeningSocket::listen() {
    // One that is started at the same time finds nobody listening, as behind a daemon that was killed: the last one has it.
    if (!is_in_place()) return fail(0, "control socket " + path_ + " has been taken by another daemon");
    if (::listen(fd_.get(), kBacklog) != 0) return fail_errno("control socket " + path_);
    return {};
}

ListeningSocket::~ListeningSocket() {
    if (fd_ && !path_.empty() && is_in_place()) ::unlink(path_.c_str());
}

}  // namespace culvert::control
