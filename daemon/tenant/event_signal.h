// Wakes who waits for an eventfd that a stranger may hold, too, and never blocks.
//
// O_NONBLOCK belongs to the open file, which the stranger shares: he can clear it and fill the counter, and write(2) would
// put the engine to sleep. What the kernel itself adds to an eventfd when an asynchronous operation completes never waits, so
// each signal is such an operation: a read of no bytes that is done when io_submit(2) returns.
//
//   signal(fd) --io_submit: read 0 bytes of a file of ours, tell fd--> eventfd_signal() in the kernel
#pragma once

#include <linux/aio_abi.h>

#include <cstdint>

#include "shm/base/unique_fd.h"

namespace culvert::tenant {

class EventSignal {
public:
    EventSignal();
    ~EventSignal();
    EventSignal(const EventSignal&) = delete;

    /// Adds 1. A kernel without asynchronous I/O (guarded() is false) gets a plain write.
    void signal(int eventfd);
    /// False: a hostile holder of an eventfd could make signal() wait.
    bool guarded() const { return context_ != 0; }

private:
    static constexpr unsigned kDepth = 16;  // completions that wait to be forgotten; the host has 65536 (fs.aio-max-nr)

    void forget();

    aio_context_t context_ = 0;
    UniqueFd empty_;
    unsigned completions_ = 0;
};

}  // namespace culvert::tenant
