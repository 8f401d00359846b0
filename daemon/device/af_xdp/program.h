// The steering programs on one interface: which packets are Culvert's. See bpf/steer.bpf.c for the verdicts. Either XDP with
// AF_XDP sockets, or tc with a packet socket (packet_socket.h); the tables and the verdicts are the same.
//
//   control thread: addresses, kernel flows, enable --(syscalls)--------> maps -----+
//   engine threads: take_port, release_port ---(one atomic operation)--> bitmaps ---+--> XDP program on the interface
//
// Threads: every member may be called from any thread. take_port and release_port hold a short mutex and do one atomic
// operation on memory that the program reads; no syscall, so the engine may call them. Addresses, kernel flows and
// counters() are syscalls and belong on the control thread.
//
// Life: the program goes when this object goes, and also when the process dies, however it dies (README, Decisions).
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "daemon/device/af_xdp/filter_tables.h"
#include "daemon/device/device.h"
#include "daemon/wire/address.h"
#include "shm/base/error.h"
#include "shm/base/unique_fd.h"

struct steer_bpf;
struct xdp_program;

namespace culvert::device {

/// Where in the kernel the program runs.
enum class XdpMode : std::uint8_t {
    kNative,   // in the driver, before an skb exists
    kGeneric,  // on the skb: any driver, slower
};

/// How the program hangs on the interface.
enum class Attachment : std::uint8_t {
    kLink,        // alone, by a bpf_link that this process holds
    kDispatcher,  // beside other programs, by libxdp's dispatcher
    kTraffic,     // tc ingress, by a bpf_link, for a packet socket
    kNone,        // loaded only
};

class SteeringProgram {
public:
    /// Loads the program and attaches it in the preferred mode, or in generic mode when the driver cannot.
    /// Steering is enabled, with no address and no port: all packets go to the kernel.
    /// Errors: ENODEV no such interface; EBUSY interface already taken by another XDP program or another culvertd;
    /// EPERM no capabilities.
    static Result<std::unique_ptr<SteeringProgram>> attach(const std::string& interface,
                                                           XdpMode preferred = XdpMode::kNative);
    /// Loads the pair for a packet socket and attaches its second half to tc ingress: from now on the kernel's stack does not
    /// get what is ours; whoever wants it gives socket_filter_fd() to a packet socket first. No port is taken yet.
    /// Errors: ENODEV; EPERM; EINVAL a kernel before 6.6, which has no links for tc.
    static Result<std::unique_ptr<SteeringProgram>> attach_traffic(const std::string& interface);
    /// Loads the programs without an interface, for BPF_PROG_TEST_RUN.
    static Result<std::unique_ptr<SteeringProgram>> load_detached();
    /// All packets to the kernel, then detached.
    ~SteeringProgram();
    SteeringProgram(const SteeringProgram&) = delete;
    SteeringProgram& operator=(const SteeringProgram&) = delete;

    /// True: `address` is one whose ports may be taken. False: its packets go to the kernel again.
    /// Ports taken on it before are remembered and count again when the address comes back.
    /// Errors: ENOSPC when there are STEER_MAX_ADDRESSES already.
    Result<void> set_address(const Address& address, bool ours);
    /// Exactly these addresses. On error those that fit have been set.
    Result<void> set_addresses(std::span<const Address> addresses);

    /// True: `address` is ours alone: every packet for it comes to Culvert, and ARP and neighbour discovery about it.
    /// set_addresses() leaves it alone. False: as if it had never been. Errors: as set_address.
    Result<void> set_dedicated(const Address& address, bool ours);

    /// Exactly these rules, in this order, then `otherwise`, for everything that would come to Culvert (ARP and neighbour
    /// discovery pass). Changes between two packets; nothing is lost. Rules that were there before keep their counts.
    /// Errors: E2BIG more than STEER_MAX_RULES - 1, or ports cut into more than STEER_MAX_CLASSES classes.
    Result<void> set_filter(std::span<const FilterRule> rules, FilterAction otherwise);
    /// How often each rule decided, in order, the default last; empty without a filter.
    std::vector<std::uint64_t> filter_counts() const;
    /// The same with the rules' texts: "filter_001 deny tcp from ...", "filter_default".
    std::vector<Statistic> filter_statistics() const;

    /// Packets to this address and port come to Culvert from now on. Counted: as many release_port calls undo it.
    /// Returns false when the address is not set (it takes effect as soon as it is). Wildcard sockets: the caller
    /// calls this for each address.
    bool take_port(const Address& address, Protocol protocol, Port port);
    /// Undoes one take_port. Without one it does nothing.
    void release_port(const Address& address, Protocol protocol, Port port);
    /// True when packets to this address and port come to Culvert: the bit that the program reads.
    bool owns_port(const Address& address, Protocol protocol, Port port) const;

    /// A flow that stays with the kernel although Culvert has its port. Errors: ENOSPC when the table is full.
    Result<void> add_kernel_flow(const Endpoint& local, const Endpoint& remote, Protocol protocol);
    /// Does nothing when the flow is not there.
    Result<void> remove_kernel_flow(const Endpoint& local, const Endpoint& remote, Protocol protocol);
    std::size_t kernel_flow_count() const;

    /// From now on only the frames of this VLAN (1 to 4094) are looked at; all others are the kernel's. `service`: of the
    /// VLANs of 802.1ad, not of 802.1Q. Before any address is set.
    void set_vlan(std::uint16_t id, bool service);

    /// True: super-packets come by, since XDP is generic.
    bool sees_merged() const { return mode_ == XdpMode::kGeneric && (attachment_ == Attachment::kLink || attachment_ == Attachment::kDispatcher); }
    /// UDP packets longer than this (bytes, with the IP header) for shared addresses go to the kernel from now on. 0: however long.
    void limit_datagrams(std::uint32_t longest);

    /// False: every packet to the kernel, whatever is in the maps.
    void enable(bool enabled);

    /// Packets of receive queue `queue` go to this AF_XDP socket. The kernel takes it out when the socket closes.
    Result<void> add_socket(std::uint32_t queue, int xsk_fd);
    void remove_socket(std::uint32_t queue);

    /// Verdicts by name ("redirected", "passed_port", ...), summed over the CPUs.
    std::vector<Statistic> counters() const;

    const std::string& interface() const { return interface_; }
    int ifindex() const { return ifindex_; }
    XdpMode mode() const { return mode_; }
    Attachment attachment() const { return attachment_; }
    /// "native, bpf_link", "generic, libxdp dispatcher"
    std::string describe() const;
    /// Of the loaded XDP program: for BPF_PROG_TEST_RUN.
    int program_fd() const;
    /// Of the filter that lets a packet socket receive what is ours (SO_ATTACH_BPF).
    int socket_filter_fd() const;
    /// Of the one at tc ingress: for BPF_PROG_TEST_RUN.
    int traffic_program_fd() const;

private:
    struct PortKey {
        Address address;
        Protocol protocol;
        Port port;
        friend bool operator==(const PortKey&, const PortKey&) = default;
    };
    struct PortKeyHash {
        std::size_t operator()(const PortKey& key) const noexcept {
            const std::size_t low = std::size_t{key.port} << 8 | static_cast<std::size_t>(key.protocol);
            return std::hash<Address>{}(key.address) ^ (low * 0x9e3779b97f4a7c15u);
        }
    };
    struct Slot {
        Address address;
        bool used = false;
        bool dedicated = false;
    };

    SteeringProgram() = default;
    enum class Programs { kXdp, kTraffic, kAll };
    Result<void> load(Programs which);
    Result<void> attach_ingress();
    Result<void> attach_link(XdpMode preferred);
    Result<void> attach_beside_others(std::uint32_t program_id);
    Result<void> map_shared_memory();
    Result<void> add_address_locked(const Address& address, bool dedicated);
    Result<void> remove_address_locked(std::size_t slot);
    int find_slot_locked(const Address& address) const;
    std::uint64_t& port_word(std::size_t slot, Protocol protocol, Port port) const;

    std::string interface_;
    int ifindex_ = 0;
    XdpMode mode_ = XdpMode::kNative;
    Attachment attachment_ = Attachment::kLink;
    std::string native_refusal_;  // why it is generic mode, if native was tried

    steer_bpf* skeleton_ = nullptr;
    xdp_program* program_ = nullptr;  // with a dispatcher only
    UniqueFd dispatcher_claim_;       // with a dispatcher only: see dispatcher.h
    UniqueFd link_;                   // without one
    std::uint64_t* ports_ = nullptr;  // [slot][protocol][word], shared with the program
    std::size_t ports_bytes_ = 0;
    std::uint64_t* control_ = nullptr;  // [STEER_CONTROL_*], shared with the program
    std::size_t control_bytes_ = 0;

    mutable std::mutex mutex_;  // guards what follows
    FilterTables filter_;
    std::vector<Slot> slots_;
    std::unordered_map<PortKey, std::uint32_t, PortKeyHash> taken_;  // how often
};

}  // namespace culvert::device
