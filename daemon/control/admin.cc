#include "daemon/control/admin.h"

#include <unistd.h>

#include <algorithm>
#include <set>

#include <nlohmann/json.hpp>

#include "daemon/control/kernel_path.h"

namespace culvert::control {
namespace {

using nlohmann::json;

constexpr std::size_t kPacketBytes = 64 * 1024;

json numbers_of(const Counters& counters) {
    json numbers = json::object();
#define CULVERT_COUNTER_JSON(name, text) numbers[#name] = counters.name;
    CULVERT_COUNTERS(CULVERT_COUNTER_JSON)
#undef CULVERT_COUNTER_JSON
    return numbers;
}

json drops_of(const Counters& counters) {
    json drops = json::object();
    for (std::size_t i = 1; i < kDropCount; ++i) {
        const Drop drop = static_cast<Drop>(i);
        drops[drop_name(drop)] = counters.dropped(drop);
    }
    return drops;
}

json numbers_of(const std::vector<device::Statistic>& statistics) {
    json numbers = json::object();
    for (const device::Statistic& statistic : statistics) numbers[statistic.name] = statistic.value;
    return numbers;
}

std::string text_of(const Endpoint& endpoint) {
    return endpoint.port == 0 && endpoint.address.is_unspecified() ? std::string() : endpoint.to_string();
}

const char* proto_of(const tenant::SocketSnapshot& socket) {
    if (socket.raw_kind != 0) return (socket.raw_kind & shm::kRawPing) != 0 ? "ping" : "raw";
    return socket.is_tcp ? "tcp" : "udp";
}

json line_of(const tenant::TenantSnapshot& tenant, const tenant::SocketSnapshot& socket) {
    const bool udp_unconnected = !socket.is_tcp && socket.state != stack::tcp::State::kEstablished;
    json line = {{"program", tenant.program},
                 {"pid", socket.pid},
                 {"tenant", tenant.id},
                 {"record", socket.record},
                 {"proto", proto_of(socket)},
                 {"state", socket.is_tcp    ? tcp_state_name(static_cast<unsigned>(socket.state))
                           : udp_unconnected ? "UNCONNECTED"
                                             : "ESTABLISHED"},
                 {"local", text_of(socket.local)},
                 {"remote", text_of(socket.remote)},
                 {"recv_q", socket.receive_queue},
                 {"send_q", socket.send_queue},
                 {"path", "culvert"},
                 {"why", ""}};
    if (socket.is_tcp && socket.info.mss != 0) {
        const stack::tcp::Info& info = socket.info;
        const auto microseconds = [](Duration duration) { return duration.count() / 1000; };
        line["tcp"] = {{"srtt_us", microseconds(info.srtt)},
                       {"rto_us", microseconds(info.rto)},
                       {"min_rtt_us", microseconds(info.min_rtt)},
                       {"cwnd_bytes", info.cwnd_bytes},
                       {"ssthresh_bytes", info.ssthresh_bytes},
                       {"mss", info.mss},
                       {"in_flight_bytes", info.in_flight_bytes},
                       {"unsent_bytes", info.unsent_bytes},
                       {"retransmits", info.total_retransmits},
                       {"send_window", info.send_window},
                       {"receive_window", info.receive_window}};
    }
    return line;
}

/// A connection that has left its program.
json line_of(const tenant::StandIn& stand_in) {
    tenant::TenantSnapshot tenant;
    tenant.id = stand_in.tenant_id;
    tenant.program = stand_in.program;
    tenant::SocketSnapshot socket;
    socket.record = shm::kNoIndex;
    socket.pid = stand_in.pid;
    socket.receive_queue = stand_in.unread();
    if (const stack::tcp::Connection* const connection = stand_in.connection()) {
        socket.local = connection->local();
        socket.remote = connection->remote();
        socket.info = connection->info();
        socket.state = socket.info.state;
        socket.send_queue = connection->unacknowledged_bytes();
    }
    json line = line_of(tenant, socket);
    line["why"] = "passed on to another program: bytes go through a kernel socket";
    return line;
}

}  // namespace

void AdminService::reply(Connection& connection, const json& answer) {
    // A program may have any name: what is no UTF-8 is replaced, not refused.
    const std::string text = answer.dump(-1, ' ', false, json::error_handler_t::replace);
    for (std::size_t at = 0; at < text.size(); at += kPacketBytes) {
        const auto* begin = reinterpret_cast<const std::byte*>(text.data() + at);
        connection.send({begin, begin + std::min(kPacketBytes, text.size() - at)});
    }
    connection.close_after_sending();
}

void AdminService::request(Connection& connection, std::string_view text) {
    const json request = json::parse(text, nullptr, false);
    const std::string what = request.is_object() && request.contains("request") && request["request"].is_string()
                                 ? request["request"].get<std::string>()
                                 : std::string();
    if (what == "ping") return reply(connection, {{"answer", "pong"}});
    if (what == "version") return reply(connection, {{"version", CULVERT_VERSION}, {"abi", shm::kAbiVersion}});
    if (what == "ss") return answer_sockets(connection);
    if (what == "stat") return answer_statistics(connection);
    refuse(connection, what.empty() ? "no request in the message" : "unknown request \"" + what + "\"");
}

void AdminService::refuse(Connection& connection, const std::string& reason) { reply(connection, {{"error", reason}}); }

void AdminService::answer_sockets(Connection& connection) {
    connection.pause();
    struct Snapshots {
        std::vector<tenant::TenantSnapshot> tenants;
        std::vector<json> passed_on;
    };
    engines_.ask_all<Snapshots>(
        [](engine::Engine& engine) {
            Snapshots snapshots;
            for (const auto& tenant : engine.tenants()) snapshots.tenants.push_back(tenant->snapshot());
            engine.stand_ins().for_each([&](const tenant::StandIn& each) { snapshots.passed_on.push_back(line_of(each)); });
            return snapshots;
        },
        [this, self = connection.shared_from_this()](std::vector<Snapshots> engines) {
            mailbox_.post([this, self, engines = std::move(engines)] {
                json sockets = json::array();
                for (std::size_t engine = 0; engine < engines.size(); ++engine) {
                    for (const tenant::TenantSnapshot& tenant : engines[engine].tenants)
                        for (const tenant::SocketSnapshot& socket : tenant.sockets) {
                            sockets.push_back(line_of(tenant, socket));
                            sockets.back()["engine"] = engine;
                        }
                    for (const json& line : engines[engine].passed_on) {
                        sockets.push_back(line);
                        sockets.back()["engine"] = engine;
                    }
                }
                for (const auto& [id, tenant] : attach_.tenants()) append_kernel_sockets(*tenant, sockets);
                reply(*self, {{"version", CULVERT_VERSION}, {"sockets", std::move(sockets)}});
            });
        });
}

void AdminService::answer_statistics(Connection& connection) {
    connection.pause();
    engines_.ask_all<EngineReport>(
        [](engine::Engine& engine) {
            EngineReport report;
            for (const engine::Engine::ServedDevice& served : engine.devices())
                report.devices.push_back({served.interface, served.device->describe(), served.device->statistics()});
            for (const auto& tenant : engine.tenants()) report.sockets += tenant->snapshot().sockets.size();
            report.sockets += engine.stand_ins().size();
            report.tenants = engine.tenants().size();
            report.counters = engine.counters();
            return report;
        },
        [this, self = connection.shared_from_this()](std::vector<EngineReport> engines) {
            mailbox_.post([this, self, engines = std::move(engines)] { reply(*self, statistics_of(engines)); });
        });
}

json AdminService::statistics_of(const std::vector<EngineReport>& engines) const {
    Counters sum;
    std::size_t tenants = 0;
    std::size_t sockets = 0;
    json devices = json::array();
    json list = json::array();
    std::set<std::uint32_t> told;  // interfaces whose steering has been said
    for (std::size_t engine = 0; engine < engines.size(); ++engine) {
        const EngineReport& report = engines[engine];
        sum.add(report.counters);
        tenants += report.tenants;
        sockets += report.sockets;
        list.push_back({{"engine", engine},
                        {"tenants", report.tenants},
                        {"sockets", report.sockets},
                        {"counters", numbers_of(report.counters)},
                        {"drops", drops_of(report.counters)}});
        for (const DeviceReport& device : report.devices) {
            json one = {{"engine", engine}, {"description", device.description}, {"statistics", numbers_of(device.statistics)}};
            const auto known = std::ranges::find(interfaces_, device.interface, &InterfaceReport::ifindex);
            if (known != interfaces_.end()) {
                one["name"] = known->name;
                one["steering"] = known->steering();
                // The program is the interface's, not the queue's: its counters stand with the first.
                if (told.insert(device.interface).second)
                    for (const device::Statistic& statistic : known->steering_counters())
                        one["statistics"]["steer_" + statistic.name] = statistic.value;
            }
            devices.push_back(std::move(one));
        }
    }
    const auto up = std::chrono::steady_clock::now() - started_;
    return {{"version", CULVERT_VERSION},
            {"pid", ::getpid()},
            {"uptime_seconds", std::chrono::duration_cast<std::chrono::seconds>(up).count()},
            {"tenants", tenants},
            {"sockets", sockets},
            {"devices", std::move(devices)},
            {"counters", numbers_of(sum)},
            {"drops", drops_of(sum)},
            {"engines", std::move(list)},
            {"control", numbers_of(numbers_())}};
}

}  // namespace culvert::control
