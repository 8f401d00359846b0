#include "preload/policy.h"

#include <atomic>
#include <cerrno>

#include "preload/address.h"
#include "preload/client.h"
#include "preload/environment.h"
#include "preload/fd_table.h"
#include "preload/libc.h"
#include "preload/socket.h"

namespace culvert::preload {

namespace {

constinit std::atomic<bool> has_ring{false};

enum class State { kNone, kGood, kBad };
constinit State state = State::kNone;
constinit shm::Policy own;

/// The daemon's, if it has one for us. One that has gone has not changed its mind.
const shm::Policy* of_daemon() noexcept {
    const Client* const client = Client::current();
    return client != nullptr ? client->policy() : nullptr;
}

}  // namespace

void set_policy_for_test(const char* text) noexcept {
    shm::PolicyError error;
    state = text == nullptr ? State::kNone : own.parse(text, error) ? State::kGood : State::kBad;
}

void read_policy() noexcept { set_policy_for_test(environment(shm::kPolicyVariable)); }

void note_io_uring() noexcept {
    if (has_ring.exchange(true, std::memory_order_relaxed)) return;
    const KeepErrno keep;
    FdTable::instance().for_each([](int fd, Description& description) {
        if (description.kind() == Description::Kind::kSocket) Socket::of(description).give_back(fd, shm::KernelReason::kIoUring);
    });
}

shm::KernelReason why_kernel(shm::Policy::Protocol protocol, shm::Policy::Call call, const shm::WireEndpoint& endpoint) noexcept {
    if (has_ring.load(std::memory_order_relaxed)) [[unlikely]] return shm::KernelReason::kIoUring;
    if (state == State::kBad) [[unlikely]] return shm::KernelReason::kBadPolicy;
    const shm::Policy* const daemons = of_daemon();
    const bool loopback = is_loopback(endpoint);
    if (state == State::kNone && daemons == nullptr) return loopback ? shm::KernelReason::kLoopback : shm::KernelReason::kUnknown;
    if (state == State::kGood && !own.allows(protocol, call, endpoint.address, endpoint.port))
        return loopback ? shm::KernelReason::kLoopback : shm::KernelReason::kPolicy;
    if (daemons != nullptr && !daemons->allows(protocol, call, endpoint.address, endpoint.port))
        return loopback ? shm::KernelReason::kLoopback : shm::KernelReason::kDaemonPolicy;
    return shm::KernelReason::kUnknown;
}

shm::KernelReason why_never(shm::Policy::Protocol protocol) noexcept {
    if (has_ring.load(std::memory_order_relaxed)) [[unlikely]] return shm::KernelReason::kIoUring;
    if (state == State::kBad) [[unlikely]] return shm::KernelReason::kBadPolicy;
    if (state == State::kGood && !own.possible(protocol)) return shm::KernelReason::kPolicy;
    // A daemon that comes in place of one that has gone may have another policy: then the socket is watched.
    const shm::Policy* const daemons = of_daemon();
    return daemons != nullptr && !Client::current()->daemon_gone() && !daemons->possible(protocol) ? shm::KernelReason::kDaemonPolicy : shm::KernelReason::kUnknown;
}

shm::KernelReason reason_of(int error, shm::KernelReason otherwise) noexcept {
    switch (error) {
        case EPERM: return shm::KernelReason::kDaemonPolicy;
        case ENETDOWN: return shm::KernelReason::kNoDaemon;
        case ENOBUFS: return shm::KernelReason::kTableFull;
        default: return otherwise;
    }
}

shm::KernelReason reason_of_route(int error, const shm::WireEndpoint& remote) noexcept {
    return reason_of(error, is_loopback(remote) ? shm::KernelReason::kLocalKernel : shm::KernelReason::kNoRoute);
}

shm::KernelReason reason_of_bind(int error, const shm::WireEndpoint& local) noexcept {
    const shm::KernelReason elsewhere = is_loopback(local) ? shm::KernelReason::kLoopback : shm::KernelReason::kNotLocal;
    return reason_of(error, error == EADDRNOTAVAIL ? elsewhere : shm::KernelReason::kRefused);
}

int strict_error(shm::KernelReason reason) noexcept {
    int error = 0;
    switch (reason) {
        case shm::KernelReason::kNoDaemon:
        case shm::KernelReason::kBadPolicy: error = ENETDOWN; break;
        case shm::KernelReason::kTableFull: error = ENOBUFS; break;
        case shm::KernelReason::kRefused: error = EADDRNOTAVAIL; break;
        case shm::KernelReason::kIoUring:
        case shm::KernelReason::kOption: error = EOPNOTSUPP; break;
        default: return 0;
    }
    return Client::strict() ? error : 0;
}

}  // namespace culvert::preload
