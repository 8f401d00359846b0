// Where an idle engine sleeps: one io_uring that waits for any device, the applications' doorbell, or a deadline.
//
// Multishot polls are armed once; each wake-up of a descriptor posts a completion, so that neither the doorbell nor an
// XSK has to be read to be heard again. The caller has announced its sleep and looked once more before (shm/wakeup.h).
#pragma once

#include <liburing.h>

#include <vector>

#include "daemon/base/instant.h"
#include "shm/base/unique_fd.h"

namespace culvert::engine {

class Sleeper {
public:
    /// Throws std::system_error.
    Sleeper();
    ~Sleeper();
    Sleeper(const Sleeper&) = delete;

    /// Wakes the sleeper when `fd` becomes readable.
    void watch(int fd);
    /// Sleeps until something happens, at most `longest` (zero or less: returns at once).
    void wait(Duration longest);
    /// Closes a descriptor whose last close may take its time, on a thread of the kernel's.
    void close_elsewhere(UniqueFd fd);
    /// Wakes a sleeper, now or at its next wait. Any thread of the daemon; never blocks, whatever applications do.
    void ring();
    /// What applications ring. They share it, so none may make it useless for the others: it is emptied at each wake-up.
    int doorbell_fd() const { return doorbell_.get(); }

private:
    void arm(int fd);
    void empty_doorbell();

    io_uring ring_{};
    UniqueFd own_;       // the daemon's alone
    UniqueFd doorbell_;
    std::vector<int> watched_;
};

}  // namespace culvert::engine
