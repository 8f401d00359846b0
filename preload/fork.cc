// fork: parent and child both hold every socket.
//
//   before   a slot for the child and its control connection are asked for, the child's holder bits are set, the shim's
//            locks are taken
//   parent   closes its copy of the child's end; if fork failed, the daemon sees the end of file and frees the slot
//   child    becomes the process in that slot
//
// The child of vfork, posix_spawn or clone(CLONE_VM) comes by none of this: it only executes another program.

#include <fcntl.h>
#include <sys/syscall.h>

#include <cerrno>

#include "preload/cancel.h"
#include "preload/client.h"
#include "preload/epoll_set.h"
#include "preload/fd_table.h"
#include "preload/libc.h"
#include "preload/own_fd.h"
#include "preload/signals_off.h"
#include "preload/socket.h"
#include "shm/attach_protocol.h"
#include "shm/base/fault_point.h"

namespace culvert::preload {

namespace {
constinit std::atomic<std::uint32_t> generation{0};
constinit Client* forking = nullptr;  // between before_fork and after_fork; fork handlers run one at a time
constinit pthread_mutex_t fork_mutex = PTHREAD_MUTEX_INITIALIZER;
constinit std::uint64_t signals_before = 0;  // the forking thread's mask
constinit bool holds_taken = false;          // by before_fork itself
}  // namespace

std::uint32_t Client::fork_generation() noexcept { return generation.load(std::memory_order_relaxed); }

void Client::before_fork() noexcept {
    const KeepErrno keep;
    // A handler that forked between here and the end would wait for us.
    const std::uint64_t mask = SignalsOff::change(~std::uint64_t{0});
    ::pthread_mutex_lock(&Socket::leaving_mutex());  // held while sets are told
    EpollSet::before_fork();  // before the others: a set's lock is held while the daemon is asked for a queue
    ::pthread_mutex_lock(&fork_mutex);
    signals_before = mask;
    lock_attaching();
    forking = current();
    if (forking != nullptr) {
        forking->prepare_child();
        if (forking->child_slot_ != shm::kNoIndex) EpollSet::share_with_child(*forking, forking->child_slot_);
        ::pthread_mutex_lock(&forking->control_mutex_);
    }
}

void Client::prepare_child() noexcept {
    child_control_ = -1;
    child_slot_ = shm::kNoIndex;
    int ends[2] = {-1, -1};
    if (!daemon_gone() && ::syscall(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0) {
        const shm::AddProcess request;
        std::uint32_t slot = shm::kNoIndex;
        const bool granted = ask(&request, sizeof request, ends[1], slot) && slot < segment_.geometry().processes;
        raw::close(ends[1]);
        if (granted) {
            child_control_ = move_away(ends[0]);
            child_slot_ = slot;
        } else {
            raw::close(ends[0]);
        }
    }
    CULVERT_FAULT_POINT(fork_granted);
    // Held until the fork is done: what another thread accepts or closes meanwhile comes before or after.
    holds_taken = holds_lock_.lock();
    if (child_slot_ == shm::kNoIndex) return;
    shm::SocketBitmap held = segment_.holders(child_slot_);
    FdTable::instance().for_each([&](int, Description& description) {
        if (description.kind() != Description::Kind::kSocket) return;
        Socket& socket = Socket::of(description);
        if (!socket.is_ours() || socket.client() != this) return;
        socket.note_shared();
        held.set(socket.record());
    });
    CULVERT_FAULT_POINT(fork_held);
}

void Client::after_fork_in_parent() noexcept {
    if (forking != nullptr) {
        ::pthread_mutex_unlock(&forking->control_mutex_);
        if (holds_taken) forking->holds_lock_.unlock();
        close_own(forking->child_control_);
        forking->child_control_ = -1;
    }
    unlock_attaching();
    const std::uint64_t mask = signals_before;
    ::pthread_mutex_unlock(&fork_mutex);
    EpollSet::after_fork_in_parent();
    ::pthread_mutex_unlock(&Socket::leaving_mutex());
    SignalsOff::change(mask);
}

void Client::after_fork_in_child() noexcept {
    CancelBell::forget_all();
    const KeepErrno keep;
    claim_memory();
    generation.fetch_add(1, std::memory_order_relaxed);
    if (forking != nullptr) {
        ::pthread_mutex_unlock(&forking->control_mutex_);
        forking->become_child();
        forking->holds_lock_.unlock();  // also where a call has it that the handler we are in has interrupted: nobody else lives here
    }
    unlock_attaching();
    ::pthread_mutex_unlock(&fork_mutex);
    EpollSet::after_fork_in_child();
    ::pthread_mutex_unlock(&Socket::leaving_mutex());
    SignalsOff::change(signals_before);
}

void Client::become_child() noexcept {
    // The parent's end of file must be the parent's: its copy here goes.
    close_own(control_.load(std::memory_order_relaxed));
    close_pooled_queues();
    control_.store(child_control_, std::memory_order_relaxed);
    child_control_ = -1;
    if (child_slot_ == shm::kNoIndex) {
        // The daemon had no slot for us: our copies of the sockets are dead, new ones are the kernel's or attach anew.
        mark_gone();
        return;
    }
    CULVERT_FAULT_POINT(fork_child);
    slot_.store(child_slot_, std::memory_order_relaxed);
    segment_.process(child_slot_).pid.store(static_cast<std::uint32_t>(::syscall(SYS_getpid)),
                                            std::memory_order_relaxed);
}

}  // namespace culvert::preload
