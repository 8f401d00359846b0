#include "daemon/cli/tables.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <string_view>

#include <fmt/format.h>

#include "daemon/base/counters.h"
#include "daemon/base/drop.h"

namespace culvert::cli {
namespace {

using nlohmann::json;
using Row = std::vector<std::string>;

std::string text_of(const json& object, const char* key) {
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) return "-";
    if (!found->is_string()) return found->dump();
    const std::string text = found->get<std::string>();
    return text.empty() ? "-" : text;
}

/// The sentence that belongs to a counter or drop reason; the daemon sends names only.
const std::map<std::string_view, std::string_view>& descriptions() {
    static const std::map<std::string_view, std::string_view> table = [] {
        std::map<std::string_view, std::string_view> all;
#define CULVERT_COUNTER_TEXT(name, text) all.emplace(#name, text);
        CULVERT_COUNTERS(CULVERT_COUNTER_TEXT)
#undef CULVERT_COUNTER_TEXT
        for (std::size_t i = 0; i < kDropCount; ++i) {
            const Drop drop = static_cast<Drop>(i);
            all.emplace(drop_name(drop), drop_text(drop));
        }
        return all;
    }();
    return table;
}

std::string describe(const std::string& name) {
    const auto found = descriptions().find(name);
    return found == descriptions().end() ? std::string() : std::string(found->second);
}

/// {"name": number, ...} as rows, in the order of the names.
void append_numbers(std::vector<Row>& rows, const json& numbers, bool all) {
    if (!numbers.is_object()) return;
    for (const auto& [name, value] : numbers.items()) {
        if (!value.is_number()) continue;
        if (!all && value == 0) continue;
        rows.push_back({"  " + name, value.dump(), describe(name)});
    }
}

std::string section(std::string_view title, const json& numbers, bool all) {
    std::vector<Row> rows;
    append_numbers(rows, numbers, all);
    if (rows.empty()) return {};
    return fmt::format("{}\n{}", title, format_table(rows, {1}));
}

const json& member(const json& object, const char* key) {
    static const json nothing = json::object();
    const auto found = object.find(key);
    return found == object.end() ? nothing : *found;
}

}  // namespace

std::string format_table(const std::vector<Row>& rows, const std::vector<std::size_t>& right) {
    std::vector<std::size_t> widths;
    for (const Row& row : rows) {
        widths.resize(std::max(widths.size(), row.size()));
        for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    }
    std::string out;
    for (const Row& row : rows) {
        std::string line;
        for (std::size_t i = 0; i < row.size(); ++i) {
            const bool to_the_right = std::ranges::find(right, i) != right.end();
            line += to_the_right ? fmt::format("{:>{}}", row[i], widths[i]) : fmt::format("{:<{}}", row[i], widths[i]);
            if (i + 1 < row.size()) line += "  ";
        }
        line.erase(line.find_last_not_of(' ') + 1);
        out += line + "\n";
    }
    return out;
}

std::string format_sockets(const json& answer) {
    std::vector<Row> rows{{"PROGRAM(PID)", "PROTO", "STATE", "LOCAL", "REMOTE", "RECV-Q", "SEND-Q", "PATH", "WHY"}};
    const json& sockets = member(answer, "sockets");
    for (const json& socket : sockets) {
        rows.push_back({fmt::format("{}({})", text_of(socket, "program"), text_of(socket, "pid")), text_of(socket, "proto"),
                        text_of(socket, "state"), text_of(socket, "local"), text_of(socket, "remote"),
                        text_of(socket, "recv_q"), text_of(socket, "send_q"), text_of(socket, "path"),
                        text_of(socket, "why")});
    }
    return format_table(rows, {5, 6});
}

std::string format_statistics(const json& answer, bool all, bool engines) {
    std::string out = fmt::format("culvertd {}, pid {}, up {} s, {} tenants, {} sockets\n", text_of(answer, "version"),
                                  text_of(answer, "pid"), text_of(answer, "uptime_seconds"),
                                  text_of(answer, "tenants"), text_of(answer, "sockets"));
    for (const json& device : member(answer, "devices"))
        out += section(text_of(device, "description"), member(device, "statistics"), all);
    for (const json& engine : engines ? member(answer, "engines") : json::array({answer})) {
        const std::string whose = engines ? fmt::format("engine {}: {} tenants, {} sockets, ", text_of(engine, "engine"),
                                                        text_of(engine, "tenants"), text_of(engine, "sockets"))
                                          : std::string();
        out += section(whose + "counters", member(engine, "counters"), all);
        out += section(whose + "drops", member(engine, "drops"), all);
    }
    out += section("control", member(answer, "control"), all);
    return out;
}

std::string format_difference(const json& before, const json& after) {
    std::string out;
    for (const char* group : {"counters", "drops"}) {
        const json& old = member(before, group);
        json grown = json::object();
        for (const auto& [name, value] : member(after, group).items()) {
            if (!value.is_number_integer()) continue;
            const std::uint64_t was = old.value(name, std::uint64_t{0});
            const std::uint64_t is = value.get<std::uint64_t>();
            if (is > was) grown[name] = is - was;
        }
        out += section(group, grown, false);
    }
    return out;
}

}  // namespace culvert::cli
