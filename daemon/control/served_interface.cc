#include "daemon/control/served_interface.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <numeric>

#include "daemon/device/af_xdp/af_xdp_device.h"
#include "daemon/device/fault_injector.h"
#include "daemon/device/packet_socket.h"
#include "daemon/device/pcap_tap.h"
#include "daemon/device/tap.h"

namespace culvert::control {
namespace {

/// As the stack shall see it; where its addresses come from is told by `config`.
stack::Interface describe(const device::InterfaceFacts& facts, const InterfaceConfig& config) {
    stack::Interface interface;
    interface.index = static_cast<std::uint32_t>(facts.ifindex);
    interface.name = facts.name;
    interface.mac = facts.mac;
    interface.mtu = facts.mtu;
    interface.up = facts.up;
    interface.resolves_itself = config.dedicated();
    interface.autoconfigures = config.autoconfigure;
    interface.vlan = static_cast<std::uint16_t>(config.vlan);
    interface.service_tag = config.service_vlan;
    interface.parent = interface.vlan != 0 ? interface.index : 0;
    return interface;
}

/// What the configuration says of an interface with dedicated addresses: each network is on the link, routers lead on.
KernelFeed::Dedicated dedicated_of(const InterfaceConfig& config, std::uint32_t ifindex) {
    KernelFeed::Dedicated result;
    for (const NetworkAddress& own : config.addresses) {
        result.addresses.push_back({.address = own.address, .prefix_length = own.prefix_length, .dedicated = true});
        stack::Route route;
        route.destination = own.address;  // of which the route table keeps the network
        route.prefix_length = own.prefix_length;
        route.interface = ifindex;
        result.routes.push_back(route);
    }
    for (const Address& gateway : config.gateways) {
        stack::Route route;
        route.destination = Address::any(gateway.family());
        route.gateway = gateway;
        route.interface = ifindex;
        result.routes.push_back(route);
    }
    return result;
}

/// The queues of the configuration, or all that the interface has. A queue that is not served is the kernel's: what
/// arrives there for one of our connections misses it.
Result<std::vector<unsigned>> queues_to_serve(const InterfaceConfig& config, const device::InterfaceFacts& facts) {
    if (config.queues.empty()) {
        if (facts.queues > kMostQueues)
            return fail(0, fmt::format("{}: {} receive queues are more than Culvert serves; ethtool -L {} combined {}", config.name,
                                       facts.queues, config.name, kMostQueues));
        std::vector<unsigned> all(facts.queues);
        std::iota(all.begin(), all.end(), 0u);
        return all;
    }
    for (const unsigned queue : config.queues)
        if (queue >= facts.queues)
            return fail(0, fmt::format("{}: there is no receive queue {}; it has {} (ethtool -l {})", config.name, queue,
                                       facts.queues, config.name));
    if (config.queues.size() < facts.queues)
        spdlog::warn("{} has {} receive queues, of which {} are served: packets that arrive on the others go to the kernel and "
                     "miss Culvert's connections, unless the NIC's flow rules keep them away; leave out `queues` to serve all",
                     config.name, facts.queues, config.queues.size());
    return config.queues;
}

/// All packets for the dedicated addresses come to us; for shared ones the ports decide, as sockets take them.
Result<void> steer(ServedInterface& served) {
    served.maps = std::make_unique<ProgramMaps>(*served.program);
    served.maps->set_mtu(served.described.mtu);
    if (served.described.vlan != 0) served.program->set_vlan(served.described.vlan, served.described.service_tag);
    if (!served.dedicated) return {};
    for (const stack::InterfaceAddress& own : served.dedicated->addresses)
        TRY_VOID(served.program->set_dedicated(own.address, true));
    return {};
}

/// XDP sees the frame as the driver left it. A tag that the NIC has taken off stands beside it, where XDP does not look.
Result<void> check_tags(const InterfaceConfig& config, const device::InterfaceFacts& facts) {
    if (!facts.takes_tags_off || config.service_vlan) return {};
    if (!facts.virtual_device)
        return fail(0, fmt::format("{}: the NIC takes VLAN tags off before XDP sees them; ethtool -K {} rxvlan off", config.name, config.name));
    spdlog::warn("{}: a virtual link may carry a VLAN's tag beside the frame, where XDP does not see it; on the sender's end: "
                 "ethtool -K ... txvlan off", config.name);
    return {};
}

Result<void> open_af_xdp(ServedInterface& served, const InterfaceConfig& config, const EngineConfig& engine,
                         const device::InterfaceFacts& facts) {
    if (served.described.vlan != 0) TRY_VOID(check_tags(config, facts));
    const device::XdpMode mode = config.mode == AttachMode::kGeneric ? device::XdpMode::kGeneric : device::XdpMode::kNative;
    served.program = TRY(device::SteeringProgram::attach(config.name, mode));
    if (config.mode == AttachMode::kNative && served.program->mode() != device::XdpMode::kNative)
        return fail(0, fmt::format("its driver has no native XDP ({}); set mode = \"auto\" or \"generic\"", served.program->describe()));
    const std::vector<unsigned> queues = TRY(queues_to_serve(config, facts));
    // The receive side of a queue keeps a fill ring's worth of chunks for itself; as many more are for output.
    const std::uint32_t least = 2 * device::AfXdpDevice::Options().rings.fill;
    const std::uint32_t frames = std::max(engine.frames / static_cast<std::uint32_t>(queues.size()), least);
    for (const unsigned queue : queues) {
        auto pool = std::make_unique<FramePool>(frames);
        std::unique_ptr<device::AfXdpDevice> device =
            TRY(device::AfXdpDevice::create(*pool, *served.program, {.queue = queue, .rings = {}}));
        served.described.segmentation_limit = device->segmentation_limit();
        served.queues.push_back({queue, std::move(pool), std::move(device)});
    }
    return steer(served);
}

Result<void> open_packet(ServedInterface& served, const InterfaceConfig& config, const EngineConfig& engine) {
    served.program = TRY(device::SteeringProgram::attach_traffic(config.name));
    auto pool = std::make_unique<FramePool>(engine.frames);
    std::unique_ptr<device::Device> device = TRY(device::open_packet_socket(*pool, *served.program, served.described.vlan));
    served.queues.push_back({0, std::move(pool), std::move(device)});
    served.described.segmentation_limit = device::kSegmentationLimit;
    return steer(served);
}

Result<ServedInterface> open_tap(const InterfaceConfig& config, const EngineConfig& engine, bool forwarding) {
    ServedInterface served;
    auto pool = std::make_unique<FramePool>(engine.frames);
    device::Tap tap = TRY(device::open_tap(*pool, config.name, !forwarding));
    served.described = describe(tap.facts, config);
    served.described.mac = device::our_mac(config.name);
    served.described.segmentation_limit = device::kSegmentationLimit;
    served.dedicated = dedicated_of(config, served.described.index);
    served.dedicated->own_mac = true;
    served.queues.push_back({0, std::move(pool), std::move(tap.device)});
    return served;
}

Result<ServedInterface> open_shared_with_kernel(const InterfaceConfig& config, const EngineConfig& engine) {
    const device::InterfaceFacts facts = TRY(device::interface_facts(config.name));
    ServedInterface served;
    served.described = describe(facts, config);
    if (config.dedicated()) served.dedicated = dedicated_of(config, served.described.index);
    if (config.device == "packet") {
        TRY_VOID(open_packet(served, config, engine));
    } else {
        TRY_VOID(open_af_xdp(served, config, engine, facts));
    }
    return served;
}

/// What CLOCK_REALTIME is ahead of the engines' clock.
Duration wall_offset() {
    timespec wall{}, engine{};
    ::clock_gettime(CLOCK_REALTIME, &wall);
    ::clock_gettime(CLOCK_MONOTONIC, &engine);
    return std::chrono::seconds(wall.tv_sec - engine.tv_sec) + std::chrono::nanoseconds(wall.tv_nsec - engine.tv_nsec);
}

/// NIC -> faults -> capture -> stack: the file shows what the stack sees.
Result<void> wrap(ServedQueue& queue, const InterfaceConfig& config) {
    if (config.faults.any()) {
        const device::Faults faults{.loss = config.faults.loss,
                                    .duplicate = config.faults.duplicate,
                                    .reorder = config.faults.reorder,
                                    .delay_min = config.faults.delay_min,
                                    .delay_max = config.faults.delay_max};
        queue.device = std::make_unique<device::FaultInjector>(std::move(queue.device), faults, faults,
                                                               std::uint64_t{config.faults.seed} + queue.number);
    }
    if (config.capture.empty()) return {};
    const std::string path = queue.number == 0 ? config.capture : fmt::format("{}.{}", config.capture, queue.number);
    const device::PcapTap::Options options{.wall_offset = wall_offset(), .max_bytes = std::uint64_t{config.capture_mb} << 20};
    queue.device = TRY(device::PcapTap::open(std::move(queue.device), path, options));
    return {};
}

}  // namespace

std::string interface_advice(const std::string& name, const Error& error) {
    switch (error.code) {
        case ENODEV: return fmt::format("{}: no such interface (ip link shows those there are)", name);
        case EBUSY: return fmt::format("{}; end that program first, or serve another interface", error.what);
        case ENETDOWN: return fmt::format("{}: the interface is down; ip link set {} up", name, name);
        case EPERM: return fmt::format("{}: not permitted ({}); run as root or with the capabilities of culvertd.service", name, error.what);
        default: return fmt::format("{}: {}", name, error.message());
    }
}

std::vector<device::Statistic> ServedInterface::steering_statistics() const {
    if (program == nullptr) return {};
    std::vector<device::Statistic> numbers = program->counters();
    for (device::Statistic& each : program->filter_statistics()) numbers.push_back(std::move(each));
    return numbers;
}

Result<ServedInterface> open_interface(const InterfaceConfig& config, const EngineConfig& engine, bool forwarding) {
    auto served = config.device == "tap" ? open_tap(config, engine, forwarding) : open_shared_with_kernel(config, engine);
    if (!served) return fail(0, interface_advice(config.name, served.error()));
    for (ServedQueue& queue : served->queues) {
        TRY_VOID(wrap(queue, config));
        spdlog::info("{}, engine {}; steering {}", queue.device->describe(), queue.number % engine.count, served->steering());
    }
    if (config.faults.any()) {
        served->described.segmentation_limit = 0;  // a link loses segments, not forty at once
        spdlog::warn("{}: packets are lost, doubled or delayed on purpose (interface.faults)", config.name);
    }
    return served;
}

}  // namespace culvert::control
