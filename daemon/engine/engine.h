// The engine: one thread that owns one queue of each interface, and every connection that comes through it.
//
//   once per turn:  frames   <- device     -> stack.input
//                   frames   <- other engines -> stack.input_passed     (only where there are several: engine_peers.h)
//                   commands <- control thread
//                   requests <- tenants' dirty bitmaps
//                   timers
//                   stack.flush -> device, one wake-up
//                   events -> tenants, one wake-up per sleeping waiter
//   nothing done: look again for a while (yielding the core), then announce sleep, look once more, sleep in io_uring
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/base/rng.h"
#include "daemon/device/device.h"
#include "daemon/engine/engine_peers.h"
#include "daemon/engine/sleeper.h"
#include "daemon/stack/stack.h"
#include "daemon/tenant/stand_in.h"
#include "daemon/tenant/tenant.h"
#include "shm/base/unique_fd.h"

namespace culvert::engine {

struct EngineConfig {
    stack::StackConfig stack;
    Duration spin = std::chrono::microseconds(100);  // longest time that an idle engine looks before it sleeps
    std::chrono::microseconds slice{0};              // time_slice.h; 0: the kernel's own
    tenant::SendLimits send_limits;
    int cpu = -1;                                   // pin to this core; -1: do not
    std::uint64_t seed = 0;                         // from getrandom(2)
};

class Engine {
public:
    /// `resolver` and `ports` are called on the engine's thread and must not block. Throws std::system_error when the
    /// kernel refuses an eventfd or a ring (startup only). `exchange`: what this engine, number `self`, shares with the
    /// others; it outlives them all. Null for the only engine. All engines have the same StackConfig::secret.
    Engine(const EngineConfig& config, stack::NeighborResolver& resolver, stack::PortOwner& ports,
           Exchange* exchange = nullptr, std::uint32_t self = 0);
    ~Engine();

    /// Before run(), or by a command. The device serves `interface` (whose tx is set here). A further device of an
    /// interface that is known (another queue) only receives: output goes through the first.
    void add_device(std::unique_ptr<device::Device> device, stack::Interface interface);
    /// An interface of which only other engines have a queue: output goes through `owner`. Requires: an exchange.
    void add_relay(std::uint32_t owner, stack::Interface interface);

    /// The loop. Returns after stop().
    void run();
    /// Any thread.
    void stop();

    /// Runs `command` on the engine's thread, in order, between turns. Any thread; allocates (control path only).
    void post(std::function<void(Engine&)> command);

    // --- on the engine's thread (in commands) -----------------------------------------------------------------------
    stack::Stack& stack() { return stack_; }
    Counters& counters() { return counters_; }
    Instant now() const { return now_; }
    tenant::Tenant& add_tenant(std::uint32_t id, std::string program, shm::Segment segment);
    /// nullptr when there is none (it may have ended meanwhile).
    tenant::Tenant* find_tenant(std::uint32_t id);
    std::vector<std::unique_ptr<tenant::Tenant>>& tenants() { return tenants_; }
    /// Connections that have left their programs.
    tenant::StandIns& stand_ins() { return stand_ins_; }
    struct ServedDevice {
        std::uint32_t interface;  // ifindex
        device::Device* device;
    };
    std::vector<ServedDevice> devices();
    /// Output of the interface with that index; nullptr if it is not served.
    TxQueue* tx_of(std::uint32_t interface);

    /// Descriptor to hand to applications: writing to it wakes a sleeping engine.
    int doorbell_fd() const { return sleeper_.doorbell_fd(); }

private:
    struct Port {
        std::unique_ptr<device::Device> device;
        stack::Interface* interface;
    };

    /// One round; true if there was anything to do.
    bool turn();
    bool receive_handed_over();
    bool run_commands();
    bool work_waits();
    void sleep();
    void remove_finished_tenants();

    /// Packets taken from a device in one go.
    static constexpr std::size_t kBurst = 64;

    EngineConfig config_;
    Counters counters_;
    Rng rng_;
    std::unique_ptr<EnginePeers> peers_;  // null: the only engine
    stack::Stack stack_;
    Sleeper sleeper_;
    std::vector<Port> ports_;
    stack::Interface* loopback_ = nullptr;  // what our programs say to each other on 127.0.0.1; known with the first device
    std::array<RxPacket, kBurst> burst_{};
    tenant::Commons commons_;
    tenant::StandIns stand_ins_;
    std::vector<std::unique_ptr<tenant::Tenant>> tenants_;
    Instant now_{};
    bool output_left_ = false;

    std::mutex command_mutex_;
    std::vector<std::function<void(Engine&)>> commands_;
    std::atomic<bool> commands_waiting_{false};
    std::atomic<bool> stopping_{false};
};

}  // namespace culvert::engine
