// Connections that a daemon before us left behind when it was killed: their peers are made to ask, and so hear of it.
//
//   shim: these were mine -->  proof: a kernel socket that holds the local port      else: unproved
//                              within the limit of all programs together             else: limited 
//                              the kernel has no such connection now                 else: alive
//                              engine: nor have we --> two ACKs with any numbers     (Stack::probe_dead_flow)
//   peer: ACK with the right numbers --> reset by whoever gets it, the stack or the kernel: neither knows the connection
//
// What can be done with it by a program that lies: have segments sent that change nothing, to peers of connections that do not exist,
// from ports that the kernel has given to it. An answer may be lost, and so may the question, while the peer's link address
// is being asked for: each is asked three times, two seconds apart.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <vector>

#include "daemon/base/token_bucket.h"
#include "daemon/control/event_loop.h"
#include "daemon/control/kernel_flows.h"
#include "daemon/control/mailbox.h"
#include "daemon/engine/fleet.h"
#include "daemon/wire/address.h"
#include "shm/attach_protocol.h"

namespace culvert::control {

/// True if `fd` is a TCP socket of our network namespace that holds the port of `local` for its owner: bound to it, and no connection.
bool holds_port(int fd, const Endpoint& local);

class DeadFlows {
public:
    using Flow = TcpFlow;
    /// Which of the flows the kernel has connections for (control thread; kernel_flows.h).
    using AskKernel = std::function<Result<std::vector<bool>>(std::span<const Flow>)>;

    struct Statistics {
        std::uint64_t reported = 0;
        std::uint64_t unproved = 0;  // without a socket that holds the port
        std::uint64_t limited = 0;   // too many at once
        std::uint64_t alive = 0;     // there is such a connection again
        std::uint64_t probed = 0;    // the first time
    };

    DeadFlows(engine::Fleet& engines, Mailbox& mailbox, AskKernel ask_kernel)
        : engines_(engines), mailbox_(mailbox), ask_kernel_(std::move(ask_kernel)) {}

    /// Control thread. `left`: how many more this program may report; it is lowered. `done` gets the number of peers that have been
    /// asked, later, on the control thread. `engine`: which one sends.
    void report(const shm::ReportDead& message, std::span<const ForeignFd> proofs, std::uint32_t& left, std::uint32_t engine,
                std::function<void(std::uint32_t)> done);
    /// Control thread, every two seconds: asks again those who have been asked less than three times.
    void tick();

    const Statistics& statistics() const { return statistics_; }

private:
    struct Again {
        Flow flow;
        std::uint32_t engine;
        std::uint32_t rounds;  // left
        std::uint64_t due;     // tick
    };

    std::vector<Flow> without_living(std::vector<Flow> flows);
    void probe(std::vector<Flow> flows, std::uint32_t engine, std::uint32_t rounds, std::function<void(std::uint32_t)> done);

    engine::Fleet& engines_;
    Mailbox& mailbox_;
    AskKernel ask_kernel_;
    TokenBucket bucket_;
    std::deque<Again> again_;  // by `due`
    std::uint64_t ticks_ = 0;
    Statistics statistics_;
};

}  // namespace culvert::control
