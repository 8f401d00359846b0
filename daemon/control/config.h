// The configuration file of culvertd: TOML, every key checked, every mistake one line that says where and what is allowed.
//
//   /etc/culvert/config.toml --parse--> Config --(command line wins)--> main.cc
//
// An unknown key is an error, never ignored: a misspelt limit that silently does nothing is worse than no start.
// packaging/config.example.toml shows every key with its default; a test keeps the two in step.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/wire/filter_rule.h"
#include "shm/attach_protocol.h"
#include "shm/policy.h"
#include "shm/base/error.h"

namespace culvert::control {

inline constexpr const char* kDefaultConfigPath = "/etc/culvert/config.toml";
inline constexpr const char* kDefaultSocketPath = shm::kDefaultSocketPath;

/// What the tables behind them hold: engine::kMaxEngines, STEER_MAX_QUEUES, CPU_SETSIZE.
inline constexpr std::uint32_t kMostEngines = 64;
inline constexpr std::uint32_t kMostQueues = 64;
inline constexpr std::uint32_t kMostCpus = 1024;
/// STEER_MAX_RULES, less the default.
inline constexpr std::uint32_t kMostFilterRules = 255;
/// Looked through once for each program that attaches.
inline constexpr std::size_t kMostPrograms = 256;

/// How the XDP program is attached.
enum class AttachMode : std::uint8_t { kAuto, kNative, kGeneric };
const char* attach_mode_name(AttachMode mode);

/// An address and the network that it is in.
struct NetworkAddress {
    Address address;
    unsigned prefix_length = 0;
};

/// A link made bad on purpose, to see how programs stand it (as netem does for the kernel). Both directions alike; chances a packet.
struct FaultsConfig {
    double loss = 0;
    double duplicate = 0;
    double reorder = 0;  // held back for a millisecond longer than the others
    std::chrono::microseconds delay_min{0};  // uniform between the two
    std::chrono::microseconds delay_max{0};
    std::uint32_t seed = 1;  // the same seed, the same faults for the same packets

    bool any() const { return loss > 0 || duplicate > 0 || reorder > 0 || delay_max.count() > 0; }
};

/// One interface whose packets Culvert may take.
struct InterfaceConfig {
    std::string name;
    std::vector<unsigned> queues;  // receive queues; empty: all. Queue i is served by engine i % engine.count
    AttachMode mode = AttachMode::kAuto;
    std::string device = "af_xdp";  // "af_xdp", "packet", "tap"
    /// Dedicated addresses: ours alone. With any of them, or with autoconfigure, none of the kernel's addresses on this
    /// interface is ours.
    std::vector<NetworkAddress> addresses;
    std::vector<Address> gateways;  // default routers through this interface
    bool autoconfigure = false;     // addresses, routes and parameters from routers (SLAAC)
    std::uint32_t vlan = 0;         // the dedicated addresses are in this VLAN of the link; 0: untagged
    bool service_vlan = false;      // ... whose tags are those of 802.1ad
    std::string capture;            // file for what passes, in both directions; empty: none. Queue i > 0 has ".i" behind it
    std::uint32_t capture_mb = 1024;  // largest size of each file, in MiB; then packets are only counted
    FaultsConfig faults;

    bool dedicated() const { return !addresses.empty() || autoconfigure; }
};

/// Upper bounds of what one tenant, and all of them, may use.
struct LimitsConfig {
    std::uint32_t max_sockets = 16384;  // socket records a tenant
    std::uint32_t tx_blocks = 16384;    // blocks of shm::kBlockSize a tenant for bytes it sends
    std::uint32_t rx_blocks = 16384;    // the same for bytes it receives
    std::uint32_t max_tenants = 64;
    std::uint32_t memory_mb = 0;  // of all programs' segments, were every block of them touched; 0: no limit but max_tenants
    std::uint32_t max_connections = 262144;  // TCP connections, all programs
    std::uint32_t max_time_wait = 32768;  // TIME-WAIT records, all tenants
};

struct IpConfig {
    std::uint8_t default_ttl = 64;  // [RFC1122 3.2.1.7] of packets whose socket says none
};

struct TcpConfig {
    std::string congestion = "cubic";  // a name that tcp::parse_algorithm knows
    std::string ecn = "passive";  // stack::tcp::EcnMode
    std::string mtu_probing = "blackhole";  // stack::tcp::MtuProbing
    // Of a socket: what it keeps when its program's blocks are scarce, begins with, and may grow to.
    std::uint32_t receive_buffer_min_bytes = 16 * 1024;
    std::uint32_t receive_buffer_bytes = 256 * 1024;
    std::uint32_t receive_buffer_max_bytes = 6 * 1024 * 1024;
    std::uint32_t send_buffer_min_bytes = 16 * 1024;
    std::uint32_t send_buffer_bytes = 256 * 1024;
    std::uint32_t send_buffer_max_bytes = 4 * 1024 * 1024;
    std::chrono::milliseconds min_rto{200};
    std::chrono::milliseconds time_wait{60000};
    std::string syn_cookies = "auto";
    std::string fast_open = "client";
};

struct EngineConfig {
    std::chrono::microseconds spin{100};  // longest busy wait before sleeping
    std::chrono::microseconds slice{100};  // the scheduler's time slice; 0: the kernel's own
    std::chrono::microseconds application_spin{0};  // longest busy wait of an application before it sleeps
    std::uint32_t count = 1;             // threads that carry packets, each with its queues, connections and programs
    std::vector<unsigned> cpus;          // engine i is pinned to cpus[i % size]; empty: wherever the scheduler likes
    std::uint32_t frames = 16384;        // 4 KiB chunks of packet memory an interface, split between its queues
};

struct SocketConfig {
    std::string path = kDefaultSocketPath;
    std::string group;            // group that owns the socket file; empty: the daemon's own
    std::uint32_t mode = 0666;    // who may attach at all; allow_users / allow_groups narrow it further
    std::vector<std::string> allow_users;   // empty together with allow_groups: everybody the file mode lets in
    std::vector<std::string> allow_groups;
};

/// What a program may do: those with that name (all if empty) of that user (all if empty).
struct ProgramConfig {
    std::string name;
    std::string user;
    std::string policy;  // compacted (shm::compact_policy), known to be good
};

struct ForwardingConfig {
    bool enabled = false;
    bool reverse_path_check = true;  // drop what comes from where its source does not live (RFC 3704)
};

/// Rules for what would come to Culvert, in order. One that names no interface is for all.
struct FilterConfig {
    struct Rule {
        FilterRule rule;
        std::string interface;
    };
    std::vector<Rule> rules;
    FilterAction otherwise = FilterAction::kAllow;

    /// Those that concern `interface`.
    std::vector<FilterRule> rules_for(const std::string& interface) const;
};

struct Config {
    SocketConfig socket;
    std::string log_level = "info";
    std::vector<InterfaceConfig> interfaces;
    LimitsConfig limits;
    IpConfig ip;
    TcpConfig tcp;
    EngineConfig engine;
    FilterConfig filter;
    ForwardingConfig forwarding;
    std::vector<ProgramConfig> programs;  // the first that fits counts
};

/// Parses `text`. Errors: "FILE:LINE:COLUMN: what is wrong, what is allowed", code 0.
Result<Config> parse_config(std::string_view text, const std::string& file);

/// Reads and parses a file. Errors: as parse_config, or that the file cannot be read (code = errno).
Result<Config> load_config(const std::string& file);

/// "trace", "debug", "info", "warning", "error".
bool is_log_level(std::string_view level);

/// Checks an interface name as the kernel does (1 to 15 bytes, no slash, colon or space).
bool is_interface_name(std::string_view name);

}  // namespace culvert::control
