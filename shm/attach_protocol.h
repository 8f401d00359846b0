// What shim and daemon say on the control socket (AF_UNIX, SOCK_SEQPACKET, one fixed-size struct a message).
//
//   shim                                  daemon
//   Hello (pid, version, name)   ---->    checks SO_PEERCRED, policy, version
//                                <----    Welcome (status, geometry, slot, policy) + [segment memfd, doorbell eventfd]
//   AddQueue + [eventfd]         ---->    a new epoll instance
//                                <----    Answer (status, value = queue index)
//   RemoveQueue (queue index)    ---->    (no answer)
//   AddProcess + [socket]        ---->    before fork: the parent passes one end of a new socketpair for the child
//                                <----    Answer (status, value = process slot); the child keeps the other end
//   GrantRaw + [raw socket]      ---->    looks at the kernel's raw or ping socket itself: it is the proof that the kernel
//                                         has let somebody make it who gave it to this program, and so that it may do
//                                         with it what such a socket can do
//                                <----    Answer (status); one kBindRaw of such a socket is then let through
//   AskStandIn (record)          ---->    a connection leaves the program (exec, SCM_RIGHTS): the daemon makes a pair of
//                                         kernel sockets with the connection's own names, and carries bytes between one of
//                                         them and the connection from now on. Asked again: the same one
//                                <----    Answer (status) + [the other one]
//   RestDatagrams + [UDP socket] ->       a UDP socket is passed on: the port is the kernel's again, and what lies unread is put into
//                                         the kernel's half, which is the socket that is shown
//                                <----    Answer (status, value = how many datagrams the kernel has been given)
//   ReportDead + [sockets]       ---->    connections that an earlier daemon left behind: their peers have not been told. For each
//                                         a kernel socket that holds its local port, the proof that the program may speak in
//                                         its name
//                                <----    Answer (0, value = how many peers will be asked for an answer)
//
// Each process has its own control connection; its end of file tells the daemon that the process is gone. The doorbell
// wakes a sleeping engine (shm/wakeup.h). A request of an administrator (culvert ss, stat) starts with '{' (JSON) instead
// of a MessageKind and is answered in JSON.
#pragma once

#include <cstdint>

#include "shm/layout.h"
#include "shm/policy.h"
#include "shm/socket_record.h"

namespace culvert::shm {

inline constexpr char kDefaultSocketPath[] = "/run/culvert/control.sock";
inline constexpr char kSocketPathVariable[] = "CULVERT_SOCKET";  // environment: another path
inline constexpr char kStrictVariable[] = "CULVERT_STRICT";      // environment: "1" = never fall back to the kernel

enum class MessageKind : std::uint32_t {
    kHello = 0x43560001,
    kWelcome = 0x43560002,
    kAddQueue = 0x43560003,
    kRemoveQueue = 0x43560004,
    kAddProcess = 0x43560005,
    kAnswer = 0x43560006,
    kGrantRaw = 0x43560007,
    kAskStandIn = 0x43560008,
    kReportDead = 0x43560009,
    kRestDatagrams = 0x4356000a,
};

struct Hello {
    MessageKind kind = MessageKind::kHello;
    std::uint32_t abi_version = kAbiVersion;
    std::uint64_t magic = kMagic;
    std::uint32_t pid = 0;
    std::uint32_t reserved = 0;
    char program[64] = {};  // name for people, NUL-terminated
    char version[32] = {};  // of the shim, for the message when they differ
};

enum class AttachStatus : std::uint32_t { kOk = 0, kVersion = 1, kDenied = 2, kFull = 3, kMalformed = 4 };

struct Welcome {
    MessageKind kind = MessageKind::kWelcome;
    AttachStatus status = AttachStatus::kOk;
    std::uint32_t abi_version = kAbiVersion;
    std::uint32_t process_slot = 0;
    Geometry geometry;
    std::uint32_t spin_us = 0;  // how long a waiter may look before it sleeps
    char version[32] = {};
    char reason[96] = {};  // for a person, when status is not kOk
    bool has_policy = false;
    char policy[kMostPolicyText + 1] = {};  // what the configuration says of this program (policy.h), NUL-terminated
};

struct AddQueue {
    MessageKind kind = MessageKind::kAddQueue;
};

struct RemoveQueue {
    MessageKind kind = MessageKind::kRemoveQueue;
    std::uint32_t queue = 0;
};

struct AddProcess {
    MessageKind kind = MessageKind::kAddProcess;
};

struct GrantRaw {
    MessageKind kind = MessageKind::kGrantRaw;
};
static_assert(sizeof(GrantRaw) == 4);

/// The asker holds the record's tx_lock and rx_lock: nobody reads or writes while the connection moves.
struct AskStandIn {
    MessageKind kind = MessageKind::kAskStandIn;
    std::uint32_t record = 0;
    std::uint32_t generation = 0;
    std::uint32_t family = 4;  // of the program's socket: 4 or 6
};
static_assert(sizeof(AskStandIn) == 16);

/// The asker holds the record's tx_lock and rx_lock, as with AskStandIn.
struct RestDatagrams {
    MessageKind kind = MessageKind::kRestDatagrams;
    std::uint32_t record = 0;
    std::uint32_t generation = 0;
};
static_assert(sizeof(RestDatagrams) == 12);

struct DeadFlow {
    WireEndpoint local;
    WireEndpoint remote;
    std::uint32_t proof;  // which of the descriptors that go along
};
static_assert(sizeof(DeadFlow) == 52);

struct ReportDead {
    static constexpr std::uint32_t kMost = 64;

    MessageKind kind = MessageKind::kReportDead;
    std::uint32_t count = 0;
    DeadFlow flows[kMost] = {};
};

struct Answer {
    MessageKind kind = MessageKind::kAnswer;
    std::int32_t error = 0;  // errno value
    std::uint32_t value = 0;
};

}  // namespace culvert::shm
