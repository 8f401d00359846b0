// poll and select over any mix of Culvert sockets and kernel descriptors.
//
//   nothing of ours in the list?  libc's own call, untouched
//   1  look: poll_now on ours, poll(0) on the kernel's             something: done
//   2  borrow an event queue, watch ours, look again and spin      something: done
//   3  announce sleep, look once more, ppoll({kernel's, listeners' kernel halves, eventfd, control connection}, mask)
//
// The mask is applied by the kernel's own call, so that no signal is lost. When every queue is taken, step 3 wakes each
// millisecond to look: slow, never wrong.
#pragma once

#include <poll.h>
#include <signal.h>
#include <sys/select.h>
#include <time.h>

namespace culvert::preload {

/// ppoll, except that the remaining time is not written back. `timeout` null: for ever.
int poll_wait(pollfd* fds, nfds_t count, const timespec* timeout, const sigset_t* mask);
/// True if a poll of these descriptors concerns us at all.
bool poll_concerns_us(const pollfd* fds, nfds_t count) noexcept;

/// select and pselect. `remaining` (may be null) gets the time that was left, as Linux's select does.
int select_wait(int count, fd_set* readable, fd_set* writable, fd_set* exceptional, const timespec* timeout,
                const sigset_t* mask, timespec* remaining);
/// True if a select of these sets concerns us at all.
bool select_concerns_us(int count, const fd_set* readable, const fd_set* writable, const fd_set* exceptional) noexcept;

}  // namespace culvert::preload
