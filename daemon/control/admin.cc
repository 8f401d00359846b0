#include "daemon/control/admin.h"

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "daemon/control/kernel_path.h"

namespace culvert::control {
namespace {

using nlohmann::json;

constexpr std::size_t kPacketBytes = 64 * 1024;

struct DeviceReport {
    std::string description;
    std::vector<device::Statistic> statistics;
};

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

json line_of(const tenant::TenantSnapshot& tenant, const tenant::SocketSnapshot& socket) {
    const bool udp_unconnected = !socket.is_tcp && socket.remote.port == 0;
    json line = {{"program", tenant.program},
                 {"pid", socket.pid},
                 {"tenant", tenant.id},
                 {"record", socket.record},
                 {"proto", socket.is_tcp ? "tcp" : "udp"},
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
    engine_.post([this, self = connection.shared_from_this()](engine::Engine& engine) {
        std::vector<tenant::TenantSnapshot> snapshots;
        for (const auto& tenant : engine.tenants()) snapshots.push_back(tenant->snapshot());
        mailbox_.post([this, self, snapshots = std::move(snapshots)] {
            json sockets = json::array();
            for (const tenant::TenantSnapshot& tenant : snapshots)
                for (const tenant::SocketSnapshot& socket : tenant.sockets) sockets.push_back(line_of(tenant, socket));
            for (const auto& [id, tenant] : attach_.tenants()) append_kernel_sockets(*tenant, sockets);
            reply(*self, {{"version", CULVERT_VERSION}, {"sockets", std::move(sockets)}});
        });
    });
}

void AdminService::answer_statistics(Connection& connection) {
    connection.pause();
    engine_.post([this, self = connection.shared_from_this()](engine::Engine& engine) {
        std::vector<DeviceReport> devices;
        for (const device::Device* device : engine.devices()) devices.push_back({device->describe(), device->statistics()});
        std::size_t sockets = 0;
        for (const auto& tenant : engine.tenants()) sockets += tenant->snapshot().sockets.size();
        mailbox_.post([this, self, devices = std::move(devices), counters = engine.counters(), sockets,
                       tenants = engine.tenants().size()] {
            json device_list = json::array();
            for (std::size_t i = 0; i < devices.size(); ++i) {
                json one = {{"description", devices[i].description}, {"statistics", numbers_of(devices[i].statistics)}};
                if (i < interfaces_.size()) {  // devices stand in the order in which interfaces were added
                    one["name"] = interfaces_[i].name;
                    one["steering"] = interfaces_[i].steering();
                    for (const device::Statistic& statistic : interfaces_[i].steering_counters())
                        one["statistics"]["steer_" + statistic.name] = statistic.value;
                }
                device_list.push_back(std::move(one));
            }
            const auto up = std::chrono::steady_clock::now() - started_;
            reply(*self, {{"version", CULVERT_VERSION},
                          {"pid", ::getpid()},
                          {"uptime_seconds", std::chrono::duration_cast<std::chrono::seconds>(up).count()},
                          {"tenants", tenants},
                          {"sockets", sockets},
                          {"devices", std::move(device_list)},
                          {"counters", numbers_of(counters)},
                          {"drops", drops_of(counters)},
                          {"control", numbers_of(numbers_())}});
        });
    });
}

}  // namespace culvert::control
