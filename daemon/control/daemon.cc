#include "daemon/control/daemon.h"

#include <fmt/format.h>
#include <pthread.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>
#include <systemd/sd-daemon.h>

#include <csignal>
#include <thread>

#include "daemon/control/capabilities.h"
#include "daemon/control/program_maps.h"
#include "daemon/control/server.h"
#include "daemon/device/af_xdp/af_xdp_device.h"
#include "shm/base/check.h"

namespace culvert::control {
namespace {

/// Everything of one interface that the engine's device stands on.
struct ServedInterface {
    std::unique_ptr<FramePool> pool;
    std::unique_ptr<device::SteeringProgram> program;
    std::unique_ptr<ProgramMaps> maps;
    std::unique_ptr<device::AfXdpDevice> device;  // until the engine takes it
};

void fill_random(void* into, std::size_t bytes) {
    CHECK(::getrandom(into, bytes, 0) == static_cast<ssize_t>(bytes));
}

stack::tcp::SynCookiePolicy syn_cookie_policy(const std::string& name) {
    using Policy = stack::tcp::SynCookiePolicy;
    return name == "off" ? Policy::kOff : name == "always" ? Policy::kAlways : Policy::kAuto;
}

engine::EngineConfig engine_config(const Config& config) {
    engine::EngineConfig engine;
    engine.spin = config.engine.spin;
    engine.cpu = config.engine.cpu;
    fill_random(&engine.seed, sizeof engine.seed);
    engine.send_limits = {config.tcp.send_buffer_bytes, config.tcp.send_buffer_max_bytes};
    stack::StackConfig& stack = engine.stack;
    stack.max_time_wait = config.limits.max_time_wait;
    stack.default_receive_buffer = config.tcp.receive_buffer_bytes;
    stack.max_receive_buffer = config.tcp.receive_buffer_max_bytes;
    stack.min_rto = config.tcp.min_rto;
    stack.time_wait = config.tcp.time_wait;
    stack.congestion = config.tcp.congestion == "newreno" ? stack::tcp::Congestion::kNewReno : stack::tcp::Congestion::kCubic;
    stack.syn_cookies = syn_cookie_policy(config.tcp.syn_cookies);
    stack.ecn = config.tcp.ecn == "on"    ? stack::tcp::EcnMode::kOn
                : config.tcp.ecn == "off" ? stack::tcp::EcnMode::kOff
                                          : stack::tcp::EcnMode::kPassive;
    fill_random(stack.secret, sizeof stack.secret);
    return engine;
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

Result<ServedInterface> open_interface(const InterfaceConfig& config, const EngineConfig& engine) {
    ServedInterface served;
    const device::XdpMode mode = config.mode == AttachMode::kGeneric ? device::XdpMode::kGeneric : device::XdpMode::kNative;
    auto program = device::SteeringProgram::attach(config.name, mode);
    if (!program) return fail(0, interface_advice(config.name, program.error()));
    served.program = std::move(*program);
    if (config.mode == AttachMode::kNative && served.program->mode() != device::XdpMode::kNative)
        return fail(0, fmt::format("{}: its driver has no native XDP ({}); set mode = \"auto\" or \"generic\"", config.name,
                                   served.program->describe()));
    served.pool = std::make_unique<FramePool>(engine.frames);
    auto device = device::AfXdpDevice::create(*served.pool, *served.program);
    if (!device) return fail(0, interface_advice(config.name, device.error()));
    served.device = std::move(*device);
    served.maps = std::make_unique<ProgramMaps>(*served.program);
    spdlog::info("{}; steering {}", served.device->describe(), served.program->describe());
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

/// Runs the engine until told to stop; ends it in order: connections first, then the loop.
class EngineThread {
public:
    explicit EngineThread(engine::Engine& engine) : engine_(engine), thread_([this] { engine_.run(); }) {
        pthread_setname_np(thread_.native_handle(), "culvert-engine");
    }
    ~EngineThread() {
        engine_.post([](engine::Engine& engine) {
            for (const auto& tenant : engine.tenants())
                for (std::uint32_t slot = 0; slot < shm::kMaxProcesses && tenant->has_processes(); ++slot)
                    tenant->remove_process(slot, engine.now());
            // In the next turn: what the closed connections have to say goes out with this one.
            engine.post([](engine::Engine& next) { next.stop(); });
        });
        thread_.join();
    }
    EngineThread(const EngineThread&) = delete;

private:
    engine::Engine& engine_;
    std::thread thread_;
};

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

    Mailbox mailbox;
    Steering steering(kernel_connections, ephemeral_ports());
    KernelFeed feed(*mirror, steering, mailbox);
    engine::Engine engine(engine_config(config), feed, steering);
    std::vector<InterfaceReport> reports;
    for (ServedInterface& interface : served) {
        device::SteeringProgram& program = *interface.program;
        device::Device& device = *interface.device;
        const stack::Interface known = stack_interface(interface.device->facts());
        engine.add_device(std::move(interface.device), known);
        steering.add_interface(program.ifindex(), *interface.maps);
        feed.add_interface(program.ifindex(), device);
        reports.push_back({program.interface(), [&program] { return program.describe(); }, [&program] { return program.counters(); }});
    }

    const std::unique_ptr<EventLoop> loop = TRY(EventLoop::create());
    const std::unique_ptr<Server> server =
        TRY(Server::create({*loop, mailbox, engine, *mirror, feed, steering, std::move(reports), std::move(reload)}, config,
                           std::move(socket), std::move(policy)));
    feed.start(engine);
    {
        const EngineThread thread(engine);
        // Ready is what the engine says when it has taken in addresses and routes.
        engine.post([&](engine::Engine&) {
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
