// Requests of administrators (the `culvert` command): {"request": "ping" | "version" | "ss" | "stat"} in, JSON out.
//
//   request -> command on every engine (plain structs) -> mailbox -> JSON -> packets of at most 64 KiB -> end of file
//
// What stands in the answers is written down in README.md; names of counters and drops are those of daemon/base.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "daemon/control/attach.h"
#include "daemon/control/connection.h"
#include "daemon/control/mailbox.h"
#include "daemon/device/device.h"
#include "daemon/engine/fleet.h"

namespace culvert::control {

/// What the control thread knows of an interface, for `culvert stat`.
struct InterfaceReport {
    std::uint32_t ifindex = 0;
    std::string name;
    std::function<std::string()> steering;                            // "native, bpf_link"
    std::function<std::vector<device::Statistic>()> steering_counters;  // verdicts, and how often each filter rule decided
};

class AdminService {
public:
    /// Numbers of the control thread: "malformed", "netlink_overruns" ...
    using ControlNumbers = std::function<std::vector<device::Statistic>()>;

    AdminService(Mailbox& mailbox, engine::Fleet& engines, const AttachService& attach,
                 std::vector<InterfaceReport> interfaces, ControlNumbers numbers)
        : mailbox_(mailbox), engines_(engines), attach_(attach), interfaces_(std::move(interfaces)),
          numbers_(std::move(numbers)), started_(std::chrono::steady_clock::now()) {}

    /// Answers and closes the connection.
    void request(Connection& connection, std::string_view text);
    /// Says why not and closes the connection.
    static void refuse(Connection& connection, const std::string& reason);

private:
    struct DeviceReport {
        std::uint32_t interface = 0;
        std::string description;
        std::vector<device::Statistic> statistics;
    };
    struct EngineReport {
        std::vector<DeviceReport> devices;
        std::size_t tenants = 0;
        std::size_t sockets = 0;
        Counters counters;
    };

    nlohmann::json statistics_of(const std::vector<EngineReport>& engines) const;
    void answer_sockets(Connection& connection);
    void answer_statistics(Connection& connection);
    static void reply(Connection& connection, const nlohmann::json& answer);

    Mailbox& mailbox_;
    engine::Fleet& engines_;
    const AttachService& attach_;
    std::vector<InterfaceReport> interfaces_;
    ControlNumbers numbers_;
    std::chrono::steady_clock::time_point started_;
};

}  // namespace culvert::control
