#include "daemon/device/af_xdp/program.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xdp/libxdp.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "bpf/steer_shared.h"
#include "daemon/device/af_xdp/bpf_log.h"
#include "daemon/device/af_xdp/dispatcher.h"
#include "shm/base/check.h"
#include "steer.skel.h"

namespace culvert::device {
namespace {

constexpr const char* kCounterNames[] = {
#define STEER_COUNTER_NAME(name, text) #name,
    STEER_COUNTERS(STEER_COUNTER_NAME)
#undef STEER_COUNTER_NAME
};

static_assert(sizeof(steer_address) == 16);
static_assert(sizeof(steer_flow) == 40);
static_assert(sizeof(steer_ports) == 8192);

steer_address to_key(const Address& address) {
    steer_address key;
    std::memcpy(key.bytes, address.bytes().data(), sizeof key.bytes);
    return key;
}

std::size_t proto_index(Protocol protocol) { return protocol == Protocol::kTcp ? STEER_PROTO_TCP : STEER_PROTO_UDP; }

steer_flow to_key(const Endpoint& local, const Endpoint& remote, Protocol protocol) {
    steer_flow flow{};
    flow.local = to_key(local.address);
    flow.remote = to_key(remote.address);
    flow.local_port = local.port;
    flow.remote_port = remote.port;
    flow.proto = static_cast<__u8>(proto_index(protocol));
    return flow;
}

// An error of a BPF call at startup, with what a person can do about it.
std::unexpected<Error> explain(int code, const std::string& what) {
    if (code == EPERM || code == EACCES)
        return fail(code, what + " needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (run culvertd as root)");
    const std::string warning = last_bpf_warning();
    return fail(code, warning.empty() ? what : what + " (" + warning + ")");
}

std::size_t round_to_pages(std::size_t bytes) {
    const std::size_t page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
}

}  // namespace

Result<std::unique_ptr<SteeringProgram>> SteeringProgram::attach(const std::string& interface, XdpMode preferred) {
    std::unique_ptr<SteeringProgram> program(new SteeringProgram);
    program->interface_ = interface;
    program->ifindex_ = static_cast<int>(::if_nametoindex(interface.c_str()));
    if (program->ifindex_ == 0) return fail(ENODEV, "interface \"" + interface + "\"");
    collect_bpf_log();
    if (has_xdp_program(program->ifindex_)) {
        program->dispatcher_claim_ = TRY(claim_interface(interface, program->ifindex_));
        TRY_VOID(remove_stale_programs(interface, program->ifindex_));
    }
    LIBBPF_OPTS(bpf_xdp_query_opts, query);
    if (const int error = bpf_xdp_query(program->ifindex_, 0, &query); error != 0)
        return explain(-error, interface + ": asking for its XDP program");
    const std::uint32_t occupant = std::max({query.prog_id, query.drv_prog_id, query.skb_prog_id});
    if (occupant != 0) {
        TRY_VOID(program->attach_beside_others(occupant));
    } else {
        program->dispatcher_claim_.reset();
        TRY_VOID(program->load(Programs::kXdp));
        TRY_VOID(program->attach_link(preferred));
    }
    TRY_VOID(program->map_shared_memory());
    program->enable(true);
    return program;
}

Result<std::unique_ptr<SteeringProgram>> SteeringProgram::attach_traffic(const std::string& interface) {
    std::unique_ptr<SteeringProgram> program(new SteeringProgram);
    program->interface_ = interface;
    program->ifindex_ = static_cast<int>(::if_nametoindex(interface.c_str()));
    if (program->ifindex_ == 0) return fail(ENODEV, "interface \"" + interface + "\"");
    collect_bpf_log();
    TRY_VOID(program->load(Programs::kTraffic));
    TRY_VOID(program->map_shared_memory());
    TRY_VOID(program->attach_ingress());
    program->enable(true);
    return program;
}

Result<std::unique_ptr<SteeringProgram>> SteeringProgram::load_detached() {
    std::unique_ptr<SteeringProgram> program(new SteeringProgram);
    program->interface_ = "(none)";
    program->attachment_ = Attachment::kNone;
    collect_bpf_log();
    TRY_VOID(program->load(Programs::kAll));
    TRY_VOID(program->map_shared_memory());
    program->enable(true);
    return program;
}

SteeringProgram::~SteeringProgram() {
    if (control_ != nullptr) enable(false);
    link_.reset();
    if (program_ != nullptr) {
        collect_bpf_log();
        xdp_program__detach(program_, ifindex_, mode_ == XdpMode::kNative ? XDP_MODE_NATIVE : XDP_MODE_SKB, 0);
        xdp_program__close(program_);
    }
    if (ports_ != nullptr) ::munmap(ports_, ports_bytes_);
    if (control_ != nullptr) ::munmap(control_, control_bytes_);
    steer_bpf__destroy(skeleton_);
}

Result<void> SteeringProgram::load(Programs which) {
    skeleton_ = steer_bpf__open();
    if (skeleton_ == nullptr) return explain(errno, interface_ + ": opening the steering program");
    bpf_program__set_autoload(skeleton_->progs.culvert_steer, which != Programs::kTraffic);
    bpf_program__set_autoload(skeleton_->progs.culvert_take, which != Programs::kXdp);
    bpf_program__set_autoload(skeleton_->progs.culvert_leave, which != Programs::kXdp);
    if (const int error = steer_bpf__load(skeleton_); error != 0)
        return explain(-error, interface_ + ": loading the steering program");
    return {};
}

Result<void> SteeringProgram::attach_link(XdpMode preferred) {
    attachment_ = Attachment::kLink;
    for (const XdpMode mode : {XdpMode::kNative, XdpMode::kGeneric}) {
        if (mode < preferred) continue;
        LIBBPF_OPTS(bpf_link_create_opts, options);
        options.flags = mode == XdpMode::kNative ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE;
        const int link = bpf_link_create(program_fd(), ifindex_, BPF_XDP, &options);
        if (link >= 0) {
            link_.reset(link);
            mode_ = mode;
            return {};
        }
        const int error = -link;
        if (error == EBUSY || error == EEXIST)
            return fail(EBUSY, interface_ + ": interface already taken by another XDP program");
        if (mode == XdpMode::kGeneric || error == EPERM)
            return explain(error, interface_ + ": attaching the steering program");
        native_refusal_ = std::strerror(error);
    }
    return fail(EINVAL, interface_ + ": no such XDP mode");
}

// By the system call itself: the libbpf of Debian 12 does not know links for tc yet.
Result<void> SteeringProgram::attach_ingress() {
    constexpr unsigned kTcxIngress = 46;  // BPF_TCX_INGRESS, linux/bpf.h since 6.6
    attachment_ = Attachment::kTraffic;
    bpf_attr request{};
    request.link_create.prog_fd = static_cast<__u32>(bpf_program__fd(skeleton_->progs.culvert_leave));
    request.link_create.target_ifindex = static_cast<__u32>(ifindex_);
    request.link_create.attach_type = kTcxIngress;
    const long link = ::syscall(SYS_bpf, BPF_LINK_CREATE, &request, sizeof request);
    if (link < 0) return explain(errno, interface_ + ": attaching the steering program to tc ingress");
    link_.reset(static_cast<int>(link));
    return {};
}

// The object is opened, not loaded: libxdp loads it as an extension of the dispatcher.
Result<void> SteeringProgram::attach_beside_others(std::uint32_t program_id) {
    attachment_ = Attachment::kDispatcher;
    const std::string occupant = describe_bpf_program(program_id);
    xdp_multiprog* others = xdp_multiprog__get_from_ifindex(ifindex_);
    if (libxdp_get_error(others) != 0)
        return fail(EBUSY, interface_ + ": interface already taken by XDP program " + occupant +
                               ", which cannot be read (" + last_bpf_warning() + ")");
    const bool dispatcher = !xdp_multiprog__is_legacy(others);
    const xdp_attach_mode mode = xdp_multiprog__attach_mode(others);
    xdp_multiprog__close(others);
    if (!dispatcher)
        return fail(EBUSY, interface_ + ": interface already taken by XDP program " + occupant +
                               (occupant.starts_with(kSteerProgramName)
                                    ? ": another culvertd serves it"
                                    : ", which is not a libxdp dispatcher; detach it, or load it with xdp-loader"));
    mode_ = mode == XDP_MODE_NATIVE ? XdpMode::kNative : XdpMode::kGeneric;

    skeleton_ = steer_bpf__open();
    if (skeleton_ == nullptr) return explain(errno, interface_ + ": opening the steering program");
    bpf_program__set_autoload(skeleton_->progs.culvert_take, false);
    bpf_program__set_autoload(skeleton_->progs.culvert_leave, false);
    DECLARE_LIBXDP_OPTS(xdp_program_opts, options);
    options.obj = skeleton_->obj;
    options.prog_name = kSteerProgramName;
    xdp_program* program = xdp_program__create(&options);
    if (const long error = libxdp_get_error(program); error != 0)
        return explain(static_cast<int>(-error), interface_ + ": preparing the steering program for the dispatcher");
    xdp_program__set_xdp_frags_support(program, true);  // libxdp does not take it from the section's name
    if (const int error = xdp_program__attach(program, ifindex_, mode, 0); error != 0) {
        xdp_program__close(program);
        return explain(-error, interface_ + ": joining the libxdp dispatcher beside " + occupant);
    }
    program_ = program;
    return {};
}

Result<void> SteeringProgram::map_shared_memory() {
    const auto map = [this](const bpf_map* which, std::size_t bytes) -> Result<std::uint64_t*> {
        void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, bpf_map__fd(which), 0);
        if (memory == MAP_FAILED) return fail_errno(interface_ + ": mapping the steering tables");
        return static_cast<std::uint64_t*>(memory);
    };
    ports_bytes_ = round_to_pages(sizeof(steer_ports) * STEER_MAX_ADDRESSES * STEER_PROTO_COUNT);
    control_bytes_ = round_to_pages(sizeof(std::uint64_t) * STEER_CONTROL_WORDS);
    ports_ = TRY(map(skeleton_->maps.ports, ports_bytes_));
    control_ = TRY(map(skeleton_->maps.control, control_bytes_));
    slots_.resize(STEER_MAX_ADDRESSES);
    filter_.open({.prefixes = bpf_map__fd(skeleton_->maps.filter_prefixes),
                  .ports = bpf_map__fd(skeleton_->maps.filter_ports),
                  .classes = bpf_map__fd(skeleton_->maps.filter_classes),
                  .actions = bpf_map__fd(skeleton_->maps.filter_actions),
                  .counts = bpf_map__fd(skeleton_->maps.filter_counts)},
                 control_ + STEER_CONTROL_FILTER);
    return {};
}

std::uint64_t& SteeringProgram::port_word(std::size_t slot, Protocol protocol, Port port) const {
    DCHECK(slot < STEER_MAX_ADDRESSES);
    return ports_[(slot * STEER_PROTO_COUNT + proto_index(protocol)) * STEER_PORT_WORDS + port / 64];
}

int SteeringProgram::find_slot_locked(const Address& address) const {
    for (std::size_t slot = 0; slot < slots_.size(); ++slot)
        if (slots_[slot].used && slots_[slot].address == address) return static_cast<int>(slot);
    return -1;
}

Result<void> SteeringProgram::add_address_locked(const Address& address, bool dedicated) {
    const auto free = std::ranges::find_if(slots_, [](const Slot& slot) { return !slot.used; });
    if (free == slots_.end())
        return fail(ENOSPC, interface_ + ": more than " + std::to_string(STEER_MAX_ADDRESSES) + " addresses to steer");
    // Ports before the address, so that the program never sees a slot half filled.
    const auto slot = static_cast<std::uint32_t>(free - slots_.begin());
    for (const auto& [key, count] : taken_)
        if (key.address == address)
            std::atomic_ref(port_word(slot, key.protocol, key.port)).fetch_or(std::uint64_t{1} << key.port % 64);
    const steer_address key = to_key(address);
    const __u32 value = dedicated ? slot | STEER_ADDRESS_WHOLE : slot;
    if (const int error = bpf_map_update_elem(bpf_map__fd(skeleton_->maps.addresses), &key, &value, BPF_ANY);
        error != 0) {
        std::memset(&port_word(slot, Protocol::kTcp, 0), 0, sizeof(steer_ports) * STEER_PROTO_COUNT);
        return fail(-error, interface_ + ": steering an address");
    }
    *free = {.address = address, .used = true, .dedicated = dedicated};
    return {};
}

Result<void> SteeringProgram::remove_address_locked(std::size_t slot) {
    const steer_address key = to_key(slots_[slot].address);
    const int error = bpf_map_delete_elem(bpf_map__fd(skeleton_->maps.addresses), &key);
    if (error != 0 && error != -ENOENT) return fail(-error, interface_ + ": no longer steering an address");
    slots_[slot].used = false;
    std::memset(&port_word(slot, Protocol::kTcp, 0), 0, sizeof(steer_ports) * STEER_PROTO_COUNT);
    return {};
}

Result<void> SteeringProgram::set_address(const Address& address, bool ours) {
    const std::lock_guard lock(mutex_);
    const int slot = find_slot_locked(address);
    if (slot >= 0 && slots_[static_cast<std::size_t>(slot)].dedicated) return {};
    if (ours) return slot >= 0 ? Result<void>{} : add_address_locked(address, false);
    return slot < 0 ? Result<void>{} : remove_address_locked(static_cast<std::size_t>(slot));
}

Result<void> SteeringProgram::set_dedicated(const Address& address, bool ours) {
    const std::lock_guard lock(mutex_);
    if (const int slot = find_slot_locked(address); slot >= 0) {
        if (slots_[static_cast<std::size_t>(slot)].dedicated == ours) return {};
        TRY_VOID(remove_address_locked(static_cast<std::size_t>(slot)));
    }
    return ours ? add_address_locked(address, true) : Result<void>{};
}

Result<void> SteeringProgram::set_filter(std::span<const FilterRule> rules, FilterAction otherwise) {
    const std::lock_guard lock(mutex_);
    auto changed = filter_.change(rules, otherwise);
    if (!changed) return fail(changed.error().code, interface_ + ": " + changed.error().what);
    return {};
}

std::vector<Statistic> SteeringProgram::filter_statistics() const {
    const std::lock_guard lock(mutex_);
    std::vector<Statistic> result;
    const std::vector<std::uint64_t> counts = filter_.counts();
    for (std::size_t i = 0; i < counts.size(); ++i) {
        const bool last = i + 1 == counts.size();
        const std::string number = std::to_string(1001 + i).substr(1);  // of three digits: the names sort as the rules
        result.push_back({last ? "filter_default" : "filter_" + number + " " + filter_.rules()[i].to_string(), counts[i]});
    }
    return result;
}

std::vector<std::uint64_t> SteeringProgram::filter_counts() const {
    const std::lock_guard lock(mutex_);
    return filter_.counts();
}

Result<void> SteeringProgram::set_addresses(std::span<const Address> addresses) {
    const std::lock_guard lock(mutex_);
    Result<void> result;
    for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
        if (!slots_[slot].used || slots_[slot].dedicated || std::ranges::find(addresses, slots_[slot].address) != addresses.end()) continue;
        if (const Result<void> removed = remove_address_locked(slot); !removed) result = removed;
    }
    for (const Address& address : addresses) {
        if (find_slot_locked(address) >= 0) continue;
        if (const Result<void> added = add_address_locked(address, false); !added) result = added;
    }
    return result;
}

bool SteeringProgram::take_port(const Address& address, Protocol protocol, Port port) {
    const std::lock_guard lock(mutex_);
    ++taken_[{address, protocol, port}];
    const int slot = find_slot_locked(address);
    if (slot < 0) return false;
    std::atomic_ref(port_word(static_cast<std::size_t>(slot), protocol, port)).fetch_or(std::uint64_t{1} << port % 64);
    return true;
}

void SteeringProgram::release_port(const Address& address, Protocol protocol, Port port) {
    const std::lock_guard lock(mutex_);
    const auto entry = taken_.find({address, protocol, port});
    if (entry == taken_.end() || --entry->second > 0) return;
    taken_.erase(entry);
    const int slot = find_slot_locked(address);
    if (slot < 0) return;
    std::atomic_ref(port_word(static_cast<std::size_t>(slot), protocol, port))
        .fetch_and(~(std::uint64_t{1} << port % 64));
}

bool SteeringProgram::owns_port(const Address& address, Protocol protocol, Port port) const {
    const std::lock_guard lock(mutex_);
    const int slot = find_slot_locked(address);
    if (slot < 0) return false;
    const std::uint64_t word = std::atomic_ref(port_word(static_cast<std::size_t>(slot), protocol, port)).load();
    return (word >> port % 64 & 1) != 0;
}

Result<void> SteeringProgram::add_kernel_flow(const Endpoint& local, const Endpoint& remote, Protocol protocol) {
    const std::lock_guard lock(mutex_);
    const steer_flow key = to_key(local, remote, protocol);
    const __u8 value = 1;
    const int error = bpf_map_update_elem(bpf_map__fd(skeleton_->maps.kernel_flows), &key, &value, BPF_NOEXIST);
    if (error == -EEXIST) return {};
    if (error == -E2BIG) return fail(ENOSPC, interface_ + ": remembering a flow of the kernel's");
    if (error != 0) return fail(-error, interface_ + ": remembering a flow of the kernel's");
    std::atomic_ref(control_[STEER_CONTROL_KERNEL_FLOWS]).fetch_add(1);
    return {};
}

Result<void> SteeringProgram::remove_kernel_flow(const Endpoint& local, const Endpoint& remote, Protocol protocol) {
    const std::lock_guard lock(mutex_);
    const steer_flow key = to_key(local, remote, protocol);
    const int error = bpf_map_delete_elem(bpf_map__fd(skeleton_->maps.kernel_flows), &key);
    if (error == -ENOENT) return {};
    if (error != 0) return fail(-error, interface_ + ": forgetting a flow of the kernel's");
    std::atomic_ref(control_[STEER_CONTROL_KERNEL_FLOWS]).fetch_sub(1);
    return {};
}

std::size_t SteeringProgram::kernel_flow_count() const {
    return std::atomic_ref(control_[STEER_CONTROL_KERNEL_FLOWS]).load();
}

void SteeringProgram::set_vlan(std::uint16_t id, bool service) {
    std::atomic_ref(control_[STEER_CONTROL_TAG]).store(STEER_TAG(service ? ETH_P_8021AD : ETH_P_8021Q, id));
}

void SteeringProgram::limit_datagrams(std::uint32_t longest) { std::atomic_ref(control_[STEER_CONTROL_DATAGRAM]).store(longest); }

void SteeringProgram::enable(bool enabled) { std::atomic_ref(control_[STEER_CONTROL_ENABLED]).store(enabled ? 1 : 0); }

Result<void> SteeringProgram::add_socket(std::uint32_t queue, int xsk_fd) {
    const int error = bpf_map_update_elem(bpf_map__fd(skeleton_->maps.xsks), &queue, &xsk_fd, BPF_ANY);
    if (error != 0)
        return fail(-error, interface_ + ": steering queue " + std::to_string(queue) + " to its AF_XDP socket");
    return {};
}

void SteeringProgram::remove_socket(std::uint32_t queue) {
    bpf_map_delete_elem(bpf_map__fd(skeleton_->maps.xsks), &queue);
}

std::vector<Statistic> SteeringProgram::counters() const {
    std::vector<Statistic> result;
    const int cpus = libbpf_num_possible_cpus();
    if (cpus <= 0) return result;
    std::vector<std::uint64_t> per_cpu(static_cast<std::size_t>(cpus));
    for (std::uint32_t index = 0; index < STEER_COUNT_TOTAL; ++index) {
        std::uint64_t sum = 0;
        if (bpf_map_lookup_elem(bpf_map__fd(skeleton_->maps.counters), &index, per_cpu.data()) == 0)
            for (const std::uint64_t value : per_cpu) sum += value;
        result.push_back({kCounterNames[index], sum});
    }
    return result;
}

std::string SteeringProgram::describe() const {
    std::string text = mode_ == XdpMode::kNative ? "native" : "generic";
    switch (attachment_) {
        case Attachment::kLink: text += ", bpf_link"; break;
        case Attachment::kDispatcher: text += ", libxdp dispatcher"; break;
        case Attachment::kTraffic: text = "tc ingress and socket filter, bpf_link"; break;
        case Attachment::kNone: text = "not attached"; break;
    }
    if (!native_refusal_.empty()) text += " (native mode refused: " + native_refusal_ + ")";
    return text;
}

int SteeringProgram::program_fd() const { return bpf_program__fd(skeleton_->progs.culvert_steer); }
int SteeringProgram::traffic_program_fd() const { return bpf_program__fd(skeleton_->progs.culvert_leave); }
int SteeringProgram::socket_filter_fd() const { return bpf_program__fd(skeleton_->progs.culvert_take); }

}  // namespace culvert::device
