#include "daemon/control/daemon.h"

#include <fmt/format.h>
#include <pthread.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>
#include <systemd/sd-daemon.h>

#include <algorithm>
#include <csignal>
#include <future>
#include <numeric>
#include <thread>

#include "daemon/control/capabilities.h"
#include "daemon/control/program_maps.h"
#include "daemon/control/server.h"
#include "daemon/device/af_xdp/af_xdp_device.h"
#include "shm/base/check.h"

namespace culvert::control {
namespace {

static_assert(kMostEngines == engine::kMaxEngines && kMostCpus == CPU_SETSIZE);

/// One receive queue. Its device is the engine's as soon as there is one; the memory stays here.
struct ServedQueue {
    unsigned number;
    std::unique_ptr<FramePool> pool;
    std::unique_ptr<device::AfXdpDevice> device;
};

/// Everything of one interface that the engines' devices stand on.
struct ServedInterface {
    std::unique_ptr<device::SteeringProgram> program;
    std::unique_ptr<ProgramMaps> maps;
    std::vector<ServedQueue> queues;  // never empty
};

void fill_random(void* into, std::size_t bytes) {
    CHECK(::getrandom(into, bytes, 0) == static_cast<ssize_t>(bytes));
}

stack::tcp::SynCookiePolicy syn_cookie_policy(const std::string& name) {
    using Policy = stack::tcp::SynCookiePolicy;
    return name == "off" ? Policy::kOff : name == "always" ? Policy::kAlways : Policy::kAuto;
}

/// The name has been checked by config.cc.
stack::tcp::Congestion congestion_of(std::string_view name) {
    if (name == "bbr") return stack::tcp::Congestion::kBbr;
    if (name == "dctcp") return stack::tcp::Congestion::kDctcp;
    return name == "cubic" ? stack::tcp::Congestion::kCubic : stack::tcp::Congestion::kNewReno;
}

engine::EngineConfig engine_config(const Config& config) {
    engine::EngineConfig engine;
    engine.spin = config.engine.spin;
    engine.send_limits = {config.tcp.send_buffer_bytes, config.tcp.send_buffer_max_bytes};
    stack::StackConfig& stack = engine.stack;
    stack.max_time_wait = (config.limits.max_time_wait + config.engine.count - 1) / config.engine.count;
    stack.default_receive_buffer = config.tcp.receive_buffer_bytes;
    stack.max_receive_buffer = config.tcp.receive_buffer_max_bytes;
    stack.min_rto = config.tcp.min_rto;
    stack.time_wait = config.tcp.time_wait;
    stack.congestion = congestion_of(config.tcp.congestion);
    stack.fast_open_client = config.tcp.fast_open == "client" || config.tcp.fast_open == "both";
    stack.fast_open_server = config.tcp.fast_open == "server" || config.tcp.fast_open == "both";
    stack.syn_cookies = syn_cookie_policy(config.tcp.syn_cookies);
    stack.ecn = config.tcp.ecn == "on"    ? stack::tcp::EcnMode::kOn
                : config.tcp.ecn == "off" ? stack::tcp::EcnMode::kOff
                                          : stack::tcp::EcnMode::kPassive;
    fill_random(stack.secret, sizeof stack.secret);
    return engine;
}

/// The engines differ in their seed and their CPU, in nothing else.
std::vector<engine::EngineConfig> engine_configs(const Config& config) {
    std::vector<engine::EngineConfig> engines(config.engine.count, engine_config(config));
    const std::vector<unsigned>& cpus = config.engine.cpus;
    for (std::size_t i = 0; i < engines.size(); ++i) {
        fill_random(&engines[i].seed, sizeof engines[i].seed);
        if (!cpus.empty()) engines[i].cpu = static_cast<int>(cpus[i % cpus.size()]);
    }
    return engines;
}

/// What a person can do about an interface that could not be taken.
std::string interface_advice(const std::string& name, const Error& error) {
    switch (error.code) {
        case ENODEV: return fmt::format("{}: no such interface (ip link shows those there are)", name);
        case EBUSY: return fmt::format("{}; end that program first, or serve another interface", error.what);
        case ENETDOWN: return fmt::format("{}: the interface is down; ip link set {} up", name, name);
        case EPERM: return fmt::format("{}: not permitted ({}); run as root or with the capabilities of culvertd.service", name, error.what);
        default: return fmt::format("{}: {}", name, error.message());
    }
}

/// The queues of the configuration, or all that the interface has. A queue that is not served is the kernel's: what
/// arrives there for one of our connections misses it.
Result<std::vector<unsigned>> queues_to_serve(const InterfaceConfig& config) {
    const Result<device::InterfaceFacts> facts = device::interface_facts(config.name);
    if (!facts) return fail(0, interface_advice(config.name, facts.error()));
    if (config.queues.empty()) {
        if (facts->queues > kMostQueues)
            return fail(0, fmt::format("{}: {} receive queues are more than Culvert serves; ethtool -L {} combined {}", config.name,
                                       facts->queues, config.name, kMostQueues));
        std::vector<unsigned> all(facts->queues);
        std::iota(all.begin(), all.end(), 0u);
        return all;
    }
    for (const unsigned queue : config.queues)
        if (queue >= facts->queues)
            return fail(0, fmt::format("{}: there is no receive queue {}; it has {} (ethtool -l {})", config.name, queue,
                                       facts->queues, config.name));
    if (config.queues.size() < facts->queues)
        spdlog::warn("{} has {} receive queues, of which {} are served: packets that arrive on the others go to the kernel and "
                     "miss Culvert's connections, unless the NIC's flow rules keep them away; leave out `queues` to serve all",
                     config.name, facts->queues, config.queues.size());
    return config.queues;
}

Result<ServedInterface> open_interface(const InterfaceConfig& config, const EngineConfig& engine) {
    ServedInterface served;
    const device::XdpMode mode = config.mode == AttachMode::kGeneric ? device::XdpMode::kGeneric : device::XdpMode::kNative;
    auto program = device::SteeringProgram::attach(config.name, mode);
    if (!program) return fail(0, interface_advice(config.name, program.error()));
    served.program = std::move(*program);
    if (config.mode == AttachMode::kNative && served.program->mode() != device::XdpMode::kNative)
        return fail(0, fmt::format("{}: its driver has no native XDP ({}); set mode = \"auto\" or \"generic\"", config.name,
                                   served.program->describe()));
    const std::vector<unsigned> queues = TRY(queues_to_serve(config));
    // The receive side of a queue keeps a fill ring's worth of chunks for itself; as many more are for output.
    const std::uint32_t least = 2 * device::AfXdpDevice::Options().rings.fill;
    const std::uint32_t frames = std::max(engine.frames / static_cast<std::uint32_t>(queues.size()), least);
    for (const unsigned queue : queues) {
        auto pool = std::make_unique<FramePool>(frames);
        auto device = device::AfXdpDevice::create(*pool, *served.program, {.queue = queue, .rings = {}});
        if (!device) return fail(0, interface_advice(config.name, device.error()));
        spdlog::info("{}, engine {}; steering {}", (*device)->describe(), queue % engine.count, served.program->describe());
        served.queues.push_back({queue, std::move(pool), std::move(*device)});
    }
    served.maps = std::make_unique<ProgramMaps>(*served.program);
    return served;
}

stack::Interface stack_interface(const device::InterfaceFacts& facts) {
    stack::Interface interface;
    interface.index = static_cast<std::uint32_t>(facts.ifindex);
    interface.name = facts.name;
    interface.mac = facts.mac;
    interface.mtu = facts.mtu;
    interface.up = facts.up;
    return interface;
}

std::vector<device::Statistic> steering_statistics(const device::SteeringProgram& program) {
    std::vector<device::Statistic> numbers = program.counters();
    for (device::Statistic& each : program.filter_statistics()) numbers.push_back(std::move(each));
    return numbers;
}

/// Runs the engines until told to stop; ends them in order: connections first, then the loops.
class EngineThreads {
public:
    explicit EngineThreads(engine::Fleet& engines) : engines_(engines) {
        for (std::uint32_t i = 0; i < engines.size(); ++i) {
            threads_.emplace_back([&engine = engines[i]] { engine.run(); });
            const std::string name = i == 0 ? "culvert-engine" : fmt::format("culvert-eng-{}", i);
            pthread_setname_np(threads_.back().native_handle(), name.c_str());
        }
    }
    ~EngineThreads() {
        on_all([](engine::Engine& engine) {
            for (const auto& tenant : engine.tenants())
                for (std::uint32_t slot = 0; slot < shm::kMaxProcesses && tenant->has_processes(); ++slot)
                    tenant->remove_process(slot, engine.now());
        });
        // One turn more of all: what the closed connections have to say goes out with the first, or is handed over to the
        // engine that has the queue and goes out with the second.
        on_all([](engine::Engine&) {});
        on_all([](engine::Engine& engine) { engine.stop(); });
        for (std::thread& thread : threads_) thread.join();
    }
    EngineThreads(const EngineThreads&) = delete;

private:
    /// Returns when all have done it.
    void on_all(void (*act)(engine::Engine&)) {
        std::promise<void> done;
        engines_.all_have(act, [&done] { done.set_value(); });
        done.get_future().wait();
    }

    engine::Fleet& engines_;
    std::vector<std::thread> threads_;
};

/// Each engine gets the queues whose number fits it; of an interface without one it gets the way through another's.
void add_devices(engine::Fleet& engines, ServedInterface& served) {
    const stack::Interface known = stack_interface(served.queues.front().device->facts());
    std::vector<bool> has_queue(engines.size());
    for (ServedQueue& queue : served.queues) {
        has_queue[queue.number % engines.size()] = true;
        engines[queue.number % engines.size()].add_device(std::move(queue.device), known);
    }
    for (std::uint32_t i = 0; i < engines.size(); ++i)
        if (!has_queue[i]) engines[i].add_relay(served.queues[i % served.queues.size()].number % engines.size(), known);
}

}  // namespace

Result<void> run_daemon(const Config& config, std::function<Result<Config>()> reload) {
    if (config.interfaces.empty())
        return fail(0, "no interface to serve; name one with --interface or [[interface]] in the configuration");
    if (const std::string missing = missing_capabilities(); !missing.empty())
        return fail(0, fmt::format("missing {}; run as root or with the capabilities of culvertd.service", missing));
    Policy policy = TRY(Policy::create(config.socket));
    ListeningSocket socket = TRY(ListeningSocket::open(config.socket));
    const std::unique_ptr<NetlinkMirror> mirror = TRY(NetlinkMirror::open());

    std::vector<ServedInterface> served;
    for (const InterfaceConfig& interface : config.interfaces) {
        if (mirror->find_link(interface.name) == nullptr)
            return fail(0, interface_advice(interface.name, {ENODEV, ""}));
        served.push_back(TRY(open_interface(interface, config.engine)));
    }

    const auto set_filter = [&served](const FilterConfig& filter) -> Result<void> {
        for (const ServedInterface& each : served)
            TRY_VOID(each.program->set_filter(filter.rules_for(each.program->interface()), filter.otherwise));
        return {};
    };
    TRY_VOID(set_filter(config.filter));

    Mailbox mailbox;
    Steering steering(kernel_connections, ephemeral_ports());
    KernelFeed feed(*mirror, steering, mailbox);
    engine::Fleet engines(engine_configs(config), feed, steering);
    std::vector<InterfaceReport> reports;
    for (ServedInterface& interface : served) {
        device::SteeringProgram& program = *interface.program;
        add_devices(engines, interface);
        steering.add_interface(program.ifindex(), *interface.maps);
        feed.add_interface(program.ifindex());
        reports.push_back({static_cast<std::uint32_t>(program.ifindex()), program.interface(),
                           [&program] { return program.describe(); }, [&program] { return steering_statistics(program); }});
    }

    const std::unique_ptr<EventLoop> loop = TRY(EventLoop::create());
    const std::unique_ptr<Server> server =
        TRY(Server::create({*loop, mailbox, engines, *mirror, feed, steering, std::move(reports), std::move(reload), set_filter}, config,
                           std::move(socket), std::move(policy)));
    feed.start(engines);
    {
        const EngineThreads threads(engines);
        // Ready is what the engines say when they have taken in addresses and routes.
        engines.all_have([](engine::Engine&) {}, [&] {
            mailbox.post([&] {
                spdlog::info("culvertd {} ready on {}", CULVERT_VERSION, config.socket.path);
                sd_notify(0, "READY=1");
            });
        });
        server->run();
        sd_notify(0, "STOPPING=1");
    }
    feed.stop();
    return {};
}

}  // namespace culvert::control
