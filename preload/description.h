// An open file description that the shim knows about: what one or several descriptors of this process refer to.
//
//   descriptor --(fd_table)--> Description --(record index)--> SocketRecord in shared memory
//
// Descriptions are type-stable: they come from a pool and are never unmapped, so a thread may look at one that another
// thread is just closing; `acquire`/`release` (fd_table.h) keep it alive during a call.
//
// Every Culvert descriptor is also a real kernel descriptor: the socket that the application made, or for an accepted
// connection a placeholder duplicated from one.
#pragma once

#include <sys/epoll.h>

#include <atomic>
#include <cstdint>

namespace culvert::preload {

class Client;

class Description {
public:
    enum class Kind : std::uint8_t {
        kSocket,  // an AF_INET/AF_INET6 stream or datagram socket
        kEpoll,
    };

    /// Calls that interposed functions may hand to libc at once, without counting themselves in: a descriptor that is merely
    /// watched costs a load more than one that we do not know. As seen at some moment of the call, like everything between threads.
    enum Passes : std::uint8_t {
        kPassesNothing = 0,
        kPassesReceives = 1,  // whatever only asks or takes: read, recv, getsockopt, getsockname ...
        kPassesSends = 2,
        kPassesPolls = 4,
    };

    explicit Description(Kind kind, std::uint8_t passes) : passes_(passes), kind_(kind) {}
    virtual ~Description() = default;
    Description(const Description&) = delete;
    Description& operator=(const Description&) = delete;

    Kind kind() const { return kind_; }
    bool passes(Passes calls) const noexcept { return (passes_.load(std::memory_order_relaxed) & calls) != 0; }

    /// Last descriptor of this process closed (or overwritten by dup2). The kernel descriptor is closed by the caller.
    virtual void on_last_close() noexcept = 0;
    /// The last reference is gone: destroys the object and gives its memory back to its pool (description_pool.h).
    virtual void dispose() noexcept {}

    // --- readiness, for epoll, poll and select -----------------------------------------------------------------------
    /// True if readiness must be asked of us (a connection, a listener, a datagram socket in Culvert). False: the kernel
    /// descriptor tells the whole truth, and the shim passes it through.
    virtual bool is_ours() const noexcept = 0;
    /// EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI as they are now, of the Culvert side alone.
    /// If `wants_write` and there is no room to send, arms the daemon's notice of room *before* the last look.
    virtual std::uint32_t poll_now(bool wants_write) noexcept = 0;
    /// True if the kernel descriptor must be polled too: a listener takes connections from both sides.
    virtual bool polls_kernel_too() const noexcept = 0;
    /// True if the connection has left the program by another's hand (leave.cc); then poll_now() says nothing, and leave()
    /// makes it the kernel's here, too. Not to be called with a set's lock held.
    virtual bool has_left() const noexcept { return false; }
    virtual bool leave() noexcept { return false; }
    /// Number of the shared socket record; valid while is_ours().
    virtual std::uint32_t record() const noexcept = 0;
    /// Whose segment that is. Null: nobody's.
    virtual Client* home() const noexcept { return nullptr; }
    /// True for a listener or datagram socket whose daemon has gone, or that has never had one: it would be Culvert's again if
    /// a daemon took it. Until then the kernel's half does everything.
    virtual bool wants_daemon() const noexcept { return false; }
    /// Gives it to the daemon that this process is attached to now. Called by those who wait for it or use it, never for a
    /// process that merely holds it. Afterwards it is Culvert's or the kernel's for good, unless that daemon has gone too.
    virtual void revive(int /*fd*/) noexcept {}

    std::atomic<std::uint32_t> references{0};   // descriptors + calls in progress
    std::atomic<std::uint32_t> descriptors{0};  // descriptors of this process
    /// Epoll sets of this process that hold a descriptor of this description; lets close() skip the search.
    std::atomic<std::uint32_t> epoll_registrations{0};

protected:
    void let_pass(std::uint8_t passes) noexcept { passes_.store(passes, std::memory_order_relaxed); }

private:
    std::atomic<std::uint8_t> passes_;
    Kind kind_;
};

}  // namespace culvert::preload
