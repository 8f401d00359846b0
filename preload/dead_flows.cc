#include "preload/dead_flows.h"

#include <netinet/in.h>

#include <algorithm>

#include "preload/address.h"
#include "preload/fd_table.h"
#include "preload/kernel_probe.h"
#include "preload/libc.h"
#include "preload/socket.h"

namespace culvert::preload {

namespace {

/// Sends flows as they come, as many as fit a message.
class Reporter {
public:
    Reporter(Client& dead, Client& fresh) noexcept : dead_(dead), fresh_(fresh) {}

    /// The connections of our own that we opened: each has its port, and the proof of it.
    void report_opened() noexcept {
        FdTable::instance().for_each([&](int fd, Description& description) {
            if (description.kind() != Description::Kind::kSocket) return;
            Socket& socket = Socket::of(description);
            if (!socket.may_hold_port()) return;
            if (socket.path() == Socket::Path::kListener) {  // whoever's it is by now: another thread may have revived it
                remember_listener(fd, socket.family());
            } else if (socket.path() == Socket::Path::kConnection && socket.home() == &dead_) {
                const std::uint32_t record = socket.record();
                if (record < dead_.segment().geometry().sockets && is_dead_flow(record) && holds(fd, record_at(record).local.port) &&
                    claim(record))
                    add(record, fd);
            }
        });
        flush();
    }

    /// All that the family has accepted, or was about to.
    void report_accepted() noexcept {
        shm::Segment& segment = dead_.segment();
        const std::uint32_t words = segment.geometry().sockets / 64;
        for (std::uint32_t slot = 0; slot < segment.geometry().processes && going_on_; ++slot) {
            if (segment.process(slot).live.load(std::memory_order_relaxed) == 0) continue;
            shm::SocketBitmap held = segment.holders(slot);
            for (std::uint32_t word = 0; word < words && going_on_; ++word)
                for (std::uint64_t bits = held.words()[word].load(std::memory_order_relaxed); bits != 0; bits &= bits - 1)
                    look(word * 64 + static_cast<std::uint32_t>(std::countr_zero(bits)), slot == dead_.process_slot());
        }
        flush();
    }

private:
    struct Proof {
        shm::WireEndpoint local;
        int fd;
        bool ours;  // to close
    };
    static constexpr std::size_t kMostProofs = 64;  // ports of listeners

public:
    ~Reporter() {
        for (std::size_t i = 0; i < proof_count_; ++i)
            if (proofs_[i].ours) raw::close(proofs_[i].fd);
    }

private:
    shm::SocketRecord& record_at(std::uint32_t record) noexcept { return dead_.segment().socket(record); }

    /// A TCP connection that was established, or has left the program, and whose peer may still believe in it.
    bool is_dead_flow(std::uint32_t record) noexcept {
        const shm::SocketRecord& shared = record_at(record);
        const std::uint32_t status = shared.daemon.status.load(std::memory_order_acquire);
        return shared.protocol.load(std::memory_order_relaxed) == IPPROTO_TCP && shared.remote.port != 0 &&
               (status & shm::kStatusReady) != 0 && (status & shm::kStatusDead) == 0 && !is_loopback(shared.remote);
    }

    bool claim(std::uint32_t record) noexcept {
        return (record_at(record).app.flags.fetch_or(shm::kAppReported, std::memory_order_relaxed) & shm::kAppReported) == 0;
    }

    void look(std::uint32_t record, bool ours) noexcept {
        const shm::SocketRecord& shared = record_at(record);
        if (shared.protocol.load(std::memory_order_relaxed) != IPPROTO_TCP) return;
        if (shared.remote.port == 0) return look_at_queue(shared);
        if (!is_dead_flow(record) || (shared.app.flags.load(std::memory_order_relaxed) & shm::kAppReported) != 0) return;
        const int proof = proof_of(shared.local, ours);
        if (proof >= 0 && claim(record)) add(record, proof);
    }

    /// A listener: connections that it had, and nobody has accepted.
    void look_at_queue(const shm::SocketRecord& listener) noexcept {
        const std::uint32_t index = listener.accept_queue.load(std::memory_order_relaxed);
        if (index >= dead_.segment().geometry().accept_queues) return;
        const shm::AcceptQueueRecord& queue = dead_.segment().accept_queue(index);
        const std::uint32_t head = queue.head.load(std::memory_order_relaxed);
        const std::uint32_t waiting = queue.tail.load(std::memory_order_acquire) - head;
        for (std::uint32_t i = 0; i < std::min(waiting, shm::kAcceptQueueLength) && going_on_; ++i) {
            const std::uint32_t record = queue.entries[(head + i) % shm::kAcceptQueueLength].load(std::memory_order_relaxed);
            if (record < dead_.segment().geometry().sockets && record_at(record).remote.port != 0) look(record, true);
        }
    }

    /// Not so where the program has accepted it, and the kernel's socket is there for its options only.
    static bool holds(int fd, std::uint16_t port) noexcept {
        sockaddr_storage name{};
        socklen_t length = sizeof name;
        // The port stands in the same place in both families.
        return libc::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length) == 0 &&
               reinterpret_cast<const sockaddr_in&>(name).sin_port == htons(port);
    }

    void remember_listener(int fd, int family) noexcept {
        sockaddr_storage name{};
        socklen_t length = sizeof name;
        auto* const address = reinterpret_cast<sockaddr*>(&name);
        if (libc::getsockname(fd, address, &length) != 0) return;
        const auto local = to_wire(address, length, family);
        if (!local) return;
        for (std::size_t i = 0; i < proof_count_; ++i)  // a duplicate, or SO_REUSEPORT
            if (proofs_[i].local.port == local->port && std::ranges::equal(proofs_[i].local.address, local->address)) return;
        remember(*local, fd, false);
    }

    bool remember(const shm::WireEndpoint& local, int fd, bool ours) noexcept {
        if (proof_count_ == kMostProofs) return false;
        proofs_[proof_count_++] = {local, fd, ours};
        return true;
    }

    /// A descriptor that holds the port, or -1. Where the listener is gone the kernel is asked for the port, for connections of
    /// our own: it says whether we may have it.
    int proof_of(const shm::WireEndpoint& local, bool ours) noexcept {
        for (std::size_t i = 0; i < proof_count_; ++i) {
            const Proof& proof = proofs_[i];
            if (proof.local.port == local.port && (is_unspecified(proof.local) || std::ranges::equal(proof.local.address, local.address)))
                return proof.fd;
        }
        if (!ours || proof_count_ == kMostProofs) return -1;
        shm::WireEndpoint wanted = local;
        const int family = is_mapped(local) ? AF_INET : AF_INET6;
        wanted.family = family == AF_INET ? 4 : 6;
        sockaddr_storage name{};
        socklen_t length = sizeof name;
        from_wire(wanted, family, reinterpret_cast<sockaddr*>(&name), &length);
        const int fd = libc::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        const int on = 1;  // what the kernel itself has in TIME-WAIT there is no obstacle
        const bool bound = fd >= 0 && libc::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, socklen_t{sizeof on}) == 0 &&
                           libc::bind(fd, reinterpret_cast<sockaddr*>(&name), length) == 0;
        if (bound && remember(local, fd, true)) return fd;
        if (fd >= 0) raw::close(fd);
        remember(local, -1, false);  // no second attempt
        return -1;
    }

    void add(std::uint32_t record, int fd) noexcept {
        if (!going_on_) return;
        const shm::SocketRecord& shared = record_at(record);
        std::uint32_t proof = 0;
        while (proof < fd_count_ && fds_[proof] != fd) ++proof;
        if (proof == fd_count_) fds_[fd_count_++] = fd;
        report_.flows[report_.count++] = {shared.local, shared.remote, proof};
        if (report_.count == shm::ReportDead::kMost) flush();
    }

    void flush() noexcept {
        if (report_.count != 0 && going_on_) going_on_ = fresh_.report_dead(report_, fds_, fd_count_).has_value();
        report_.count = fd_count_ = 0;
    }

    Client& dead_;
    Client& fresh_;
    bool going_on_ = true;  // the fresh one lives
    Proof proofs_[kMostProofs];
    std::size_t proof_count_ = 0;
    shm::ReportDead report_;
    int fds_[shm::ReportDead::kMost];
    std::uint32_t fd_count_ = 0;
};

}  // namespace

void report_dead_flows(Client& dead, Client& fresh) noexcept {
    const KeepErrno keep;
    Reporter reporter(dead, fresh);
    reporter.report_opened();
    reporter.report_accepted();
}

}  // namespace culvert::preload
