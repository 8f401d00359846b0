// Attaching: the shim's messages (shm/attach_protocol.h), tenants and their processes.
//
//   Hello -> policy, version -> segment made here -> engine: add_tenant, add_process -> Welcome + descriptors
//   end of file -> engine: remove_process; the engine ends the tenant when nothing of it is left
//
// The client is hostile: a message of the wrong length, kind, or time closes its connection and is counted. The engine's
// answers come back through the mailbox; a connection is paused meanwhile.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "daemon/control/config.h"
#include "daemon/control/connection.h"
#include "daemon/control/datagram_return.h"
#include "daemon/control/dead_flows.h"
#include "daemon/control/kernel_flows.h"
#include "daemon/control/mailbox.h"
#include "daemon/control/policy.h"
#include "daemon/control/stand_in_maker.h"
#include "daemon/engine/fleet.h"
#include "shm/attach_protocol.h"
#include "shm/segment.h"

namespace culvert::control {

/// How many of what a tenant gets. Of the sockets a quarter is for those that the application opens; accepted ones, which
/// the daemon opens, are the many.
shm::Geometry geometry_of(const LimitsConfig& limits);

/// One attached process family as the control thread knows it. Its engine has the sockets.
struct TenantRecord {
    std::uint32_t id = 0;
    std::uint32_t engine = 0;                 // number of the engine that serves all of it
    std::string program;
    uid_t uid = 0;
    std::uint32_t processes = 0;              // control connections open
    std::set<std::uint32_t> slots;            // of those processes
    std::uint32_t may_report = 0;             // dead connections: as many as one had sockets
    std::set<std::uint32_t> queues;           // event queues made and not removed
    std::shared_ptr<shm::Segment> segment;    // a mapping of our own, for the reasons that the shim leaves there
};

class AttachService {
public:
    struct Statistics {
        std::uint64_t attached = 0;         // tenants, since the start
        std::uint64_t processes = 0;        // now
        std::uint64_t version_refused = 0;
        std::uint64_t full_refused = 0;
        std::uint64_t memory_refused = 0;   // limits.memory_mb
        std::uint64_t malformed = 0;        // messages that closed a connection
    };

    /// Without `stand_ins` no connection can leave its program.
    AttachService(EventLoop& loop, Mailbox& mailbox, engine::Fleet& engines, const Config& config, StandInMaker* stand_ins = nullptr)
        : loop_(loop),
          mailbox_(mailbox),
          engines_(engines),
          limits_(config.limits),
          spin_(config.engine.application_spin),
          stand_ins_(stand_ins),
          dead_flows_(engines, mailbox, kernel_has) {}

    /// Takes over a connection whose first packet is this one (not an administrator's).
    void first_packet(Connection& connection, Packet packet, const Policy& policy);
    /// Answers a Hello with why not, and closes the connection.
    void refuse(Connection& connection, shm::AttachStatus status, const std::string& reason);

    const std::map<std::uint32_t, std::shared_ptr<TenantRecord>>& tenants() const { return tenants_; }
    const Statistics& statistics() const { return statistics_; }
    DeadFlows& dead_flows() { return dead_flows_; }
    const DeadFlows& dead_flows() const { return dead_flows_; }
    const DatagramReturn& datagram_return() const { return datagram_return_; }
    /// Counts it, logs the first of each kind, closes the connection.
    void malformed(Connection& connection, const char* what);

private:
    struct Process {
        std::shared_ptr<TenantRecord> tenant;
        std::uint32_t slot = 0;
    };

    void hello(Connection& connection, const shm::Hello& message, const Policy& policy);
    void refuse_full(Connection& connection, const shm::Hello& message, const std::string& reason);
    void serve(const std::shared_ptr<Connection>& connection, const Process& process);
    void packet(Connection& connection, const Process& process, Packet packet);
    void add_queue(Connection& connection, const Process& process, ForeignFd eventfd);
    void add_process(Connection& connection, const Process& process, ForeignFd socket);
    void grant_raw(Connection& connection, const Process& process, const ForeignFd& socket);
    void report_dead(Connection& connection, const Process& process, const shm::ReportDead& message, std::span<const ForeignFd> proofs);
    void ask_stand_in(Connection& connection, const Process& process, const shm::AskStandIn& message);
    void make_stand_in(Connection& connection, const Process& process, const shm::AskStandIn& message, const tenant::Leaving& names);
    /// A UDP socket that comes to rest (tenant::Tenant::yield_port). Here, not in the engine's commands: a stranger's descriptor is
    /// closed on this thread.
    struct Rest {
        Process process;
        shm::RestDatagrams message;
        ForeignFd half;
        std::shared_ptr<Connection> connection;  // paused
        std::uint64_t frames = 0;                // of the engine, when it was asked last
        std::uint32_t rounds = 0;
    };
    void rest_datagrams(Connection& connection, const Process& process, const shm::RestDatagrams& message, ForeignFd half);
    void empty_rings(std::uint32_t id);
    void take_unread(std::uint32_t id);
    void rested(std::uint32_t id, std::int32_t error, std::span<const tenant::UnreadDatagram> unread);
    void process_gone(const Process& process);
    std::uint32_t least_busy_engine();
    engine::Engine& engine_of(const TenantRecord& tenant) { return engines_[tenant.engine]; }

    EventLoop& loop_;
    Mailbox& mailbox_;
    engine::Fleet& engines_;
    LimitsConfig limits_;
    std::chrono::microseconds spin_;
    StandInMaker* stand_ins_;
    DeadFlows dead_flows_;
    DatagramReturn datagram_return_;
    std::map<std::uint32_t, Rest> rests_;  // by a number of their own
    std::uint32_t next_rest_ = 0;
    std::map<std::uint32_t, std::shared_ptr<TenantRecord>> tenants_;
    std::uint32_t next_id_ = 1;
    std::uint32_t last_engine_ = UINT32_MAX;  // given to the program that came last
    std::set<std::string> logged_;  // what has been said once
    bool full_logged_ = false;
    Statistics statistics_;
};

}  // namespace culvert::control
