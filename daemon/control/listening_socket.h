// The control socket in the file system.
#pragma once

#include "daemon/control/config.h"
#include "shm/base/unique_fd.h"

namespace culvert::control {

/// Bound, and from listen() on listening; removes its file when it goes, if the file is still its own.
class ListeningSocket {
public:
    /// Makes missing parent folders' last level (RuntimeDirectory does so under systemd). A stale file, one on which nobody
    /// listens, is replaced. Errors: EADDRINUSE a live daemon is there; no such group; whatever bind(2) says.
    static Result<ListeningSocket> open(const SocketConfig& config);
    /// When the daemon can answer at once: until then whoever connects is refused, and so does without a daemon instead of waiting
    /// for one. Errors: another daemon has been started meanwhile and has taken the place.
    Result<void> listen();
    ListeningSocket(ListeningSocket&&) noexcept = default;
    ListeningSocket& operator=(ListeningSocket&&) = delete;
    ~ListeningSocket();

    int fd() const { return fd_.get(); }

private:
    ListeningSocket() = default;
    bool is_in_place() const;
    UniqueFd fd_;
    std::string path_;
    dev_t device_ = 0;
    ino_t inode_ = 0;
};

}  // namespace culvert::control
