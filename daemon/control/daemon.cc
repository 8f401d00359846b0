#include "daemon/control/daemon.h"

#include <fmt/format.h>
#include <pthread.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-id128.h>

#include <csignal>
#include <future>
#include <thread>

#include "daemon/control/capabilities.h"
#include "daemon/control/served_interface.h"
#include "daemon/control/server.h"
#include "daemon/stack/link/address_configuration.h"
#include "shm/base/check.h"

namespace culvert::control {
namespace {

static_assert(kMostEngines == engine::kMaxEngines && kMostCpus == CPU_SETSIZE);

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

/// Known to this machine only, and the same after a restart: addresses that follow from it stay. [RFC7217 5]
void read_stable_secret(std::uint64_t (&secret)[2]) {
    constexpr sd_id128_t kWhatFor = SD_ID128_MAKE(1c, a7, 3e, 54, 0b, 6d, 49, 92, b1, 8f, 52, d0, 77, 6e, 21, 3a);
    sd_id128_t id{};
    if (::sd_id128_get_machine_app_specific(kWhatFor, &id) < 0) return fill_random(secret, sizeof secret);  // no machine id
    secret[0] = id.qwords[0];
    secret[1] = id.qwords[1];
}

engine::EngineConfig engine_config(const Config& config) {
    engine::EngineConfig engine;
    engine.spin = config.engine.spin;
    engine.slice = config.engine.slice;
    engine.send_limits = {config.tcp.send_buffer_min_bytes, config.tcp.send_buffer_bytes, config.tcp.send_buffer_max_bytes};
    stack::StackConfig& stack = engine.stack;
    stack.max_connections = (config.limits.max_connections + config.engine.count - 1) / config.engine.count;
    stack.max_time_wait = (config.limits.max_time_wait + config.engine.count - 1) / config.engine.count;
    const PortRange ephemeral = ephemeral_ports();
    stack.first_port = ephemeral.low;
    stack.last_port = ephemeral.high;
    stack.default_ttl = config.ip.default_ttl;
    stack.min_receive_buffer = config.tcp.receive_buffer_min_bytes;
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
    stack.mtu_probing = config.tcp.mtu_probing == "on"    ? stack::tcp::MtuProbing::kOn
                        : config.tcp.mtu_probing == "off" ? stack::tcp::MtuProbing::kOff
                                                          : stack::tcp::MtuProbing::kBlackHole;
    fill_random(stack.secret, sizeof stack.secret);
    read_stable_secret(stack.stable_secret);
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
            engine.stand_ins().end_all();
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

/// Says what becomes of dedicated addresses, once an event: rare, and what a person looks for when nothing answers.
class AddressReporter final : public stack::AddressObserver {
public:
    void on_address(std::uint32_t, const Address& address, unsigned prefix_length, Event event) override {
        const std::string text = fmt::format("{}/{}", address.to_string(), prefix_length);
        switch (event) {
            case Event::kAssigned: return spdlog::info("address {} is ours", text);
            case Event::kDuplicate: return spdlog::error("address {} is somebody else's on this link; it is not used", text);
            case Event::kDefended: return spdlog::warn("somebody else claimed our address {}; it was defended", text);
            case Event::kRemoved: return spdlog::info("address {} is ours no more", text);
        }
    }
};

/// Each engine gets the queues whose number fits it; of an interface without one it gets the way through another's.
void add_devices(engine::Fleet& engines, ServedInterface& served) {
    // One that has a queue runs the link of dedicated addresses for all.
    const std::uint32_t leader = served.queues.front().number % engines.size();
    const auto known = [&](std::uint32_t engine) {
        stack::Interface interface = served.described;
        if (interface.resolves_itself && engine != leader) interface.link_engine = leader;
        return interface;
    };
    std::vector<bool> has_queue(engines.size());
    for (ServedQueue& queue : served.queues) {
        const std::uint32_t engine = queue.number % engines.size();
        has_queue[engine] = true;
        engines[engine].add_device(std::move(queue.device), known(engine));
    }
    for (std::uint32_t i = 0; i < engines.size(); ++i)
        if (!has_queue[i]) engines[i].add_relay(served.queues[i % served.queues.size()].number % engines.size(), known(i));
}

}  // namespace

Result<Ended> run_daemon(const Config& config, std::function<Result<Config>()> reload) {
    if (config.interfaces.empty())
        return fail(0, "no interface to serve; name one with --interface or [[interface]] in the configuration");
    if (const std::string missing = missing_capabilities(); !missing.empty())
        return fail(0, fmt::format("missing {}; run as root or with the capabilities of culvertd.service", missing));
    Result<StandInMaker> stand_ins = StandInMaker::start();  // before any thread
    if (!stand_ins) spdlog::warn("connections cannot leave their programs: {}", stand_ins.error().message());
    Policy policy = TRY(Policy::create(config));
    ListeningSocket socket = TRY(ListeningSocket::open(config.socket));
    const std::unique_ptr<NetlinkMirror> mirror = TRY(NetlinkMirror::open());

    std::vector<ServedInterface> served;
    for (const InterfaceConfig& interface : config.interfaces) {
        if (interface.device != "tap" && mirror->find_link(interface.name) == nullptr)
            return fail(0, interface_advice(interface.name, {ENODEV, ""}));
        served.push_back(TRY(open_interface(interface, config.engine, config.forwarding.enabled)));
    }

    const auto set_filter = [&served](const FilterConfig& filter) -> Result<void> {
        for (const ServedInterface& each : served)
            if (each.program != nullptr)
                TRY_VOID(each.program->set_filter(filter.rules_for(each.described.name), filter.otherwise));
        return {};
    };
    TRY_VOID(set_filter(config.filter));

    AddressReporter reporter;  // outlives the engines
    Mailbox mailbox;
    Steering steering(kernel_connections, ephemeral_ports());
    KernelFeed feed(*mirror, steering, mailbox);
    engine::Fleet engines(engine_configs(config), feed, steering);
    std::vector<InterfaceReport> reports;
    for (ServedInterface& interface : served) {
        const int ifindex = static_cast<int>(interface.described.index);
        add_devices(engines, interface);
        if (interface.dedicated) {
            feed.add_interface(ifindex, *interface.dedicated);
        } else {
            feed.add_interface(ifindex);
            steering.add_interface(ifindex, *interface.maps);
        }
        reports.push_back({interface.described.index, interface.described.name, [&interface] { return interface.steering(); },
                           [&interface] { return interface.steering_statistics(); }});
    }

    const std::unique_ptr<EventLoop> loop = TRY(EventLoop::create());
    const std::unique_ptr<Server> server =
        TRY(Server::create({*loop, mailbox, engines, *mirror, feed, steering, std::move(reports), std::move(reload), set_filter,
                        stand_ins ? &*stand_ins : nullptr}, config,
                           std::move(socket), std::move(policy)));
    engines.post_all([&config, &reporter](engine::Engine& engine) {
        engine.stack().set_forwarding(config.forwarding.enabled, config.forwarding.reverse_path_check);
        engine.stack().set_address_observer(&reporter);
    });
    Ended ended = Ended::kForGood;
    feed.on_return([&](const std::string& name) {
        spdlog::info("interface {} is back; beginning anew", name);
        ended = Ended::kToBeginAnew;
        loop->stop();
    });
    TRY_VOID(server->listen());  // what takes long is done: whoever attaches from now on is answered at once
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
        sd_notify(0, ended == Ended::kForGood ? "STOPPING=1" : "STATUS=beginning anew");
    }
    feed.stop();
    return ended;
}

}  // namespace culvert::control
