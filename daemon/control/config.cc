#include "daemon/control/config.h"

#include <algorithm>
#include <optional>
#include <charconv>
#include <array>
#include <fstream>
#include <initializer_list>
#include <numeric>
#include <set>
#include <sstream>

#include <fmt/format.h>
#include <toml++/toml.h>

namespace culvert::control {
namespace {

constexpr std::array<std::string_view, 5> kLogLevels{"trace", "debug", "info", "warning", "error"};

/// Levenshtein distance; the names here are short.
std::size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<std::size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 1; i <= a.size(); ++i) {
        std::size_t diagonal = row[0];
        row[0] = i;
        for (std::size_t j = 1; j <= b.size(); ++j) {
            const std::size_t substitute = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
            diagonal = row[j];
            row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitute});
        }
    }
    return row[b.size()];
}

/// What went wrong, on its way to parse_config; never leaves this file.
struct ConfigError {
    toml::source_position where;
    std::string text;
};

[[noreturn]] void refuse(const toml::source_position& where, std::string text) {
    throw ConfigError{where, std::move(text)};
}
[[noreturn]] void refuse(const toml::node& node, std::string text) { refuse(node.source().begin, std::move(text)); }

std::string_view type_name(toml::node_type type) {
    switch (type) {
        case toml::node_type::table: return "a table";
        case toml::node_type::array: return "an array";
        case toml::node_type::string: return "a string";
        case toml::node_type::integer: return "an integer";
        case toml::node_type::floating_point: return "a floating-point number";
        case toml::node_type::boolean: return "a boolean";
        case toml::node_type::date:
        case toml::node_type::time:
        case toml::node_type::date_time: return "a date or time";
        default: return "nothing";
    }
}

using Keys = std::vector<std::string_view>;

/// One table of the file: typed reads, and `done` refuses every key that nobody asked for.
class TableReader {
public:
    /// `name` as it stands in messages: "tcp", "interface"; empty for the top level.
    TableReader(const toml::table& table, std::string name) : table_(table), name_(std::move(name)) {}

    const toml::node* find(std::string_view key) {
        known_.push_back(key);
        return table_.get(key);
    }

    std::int64_t integer(std::string_view key, std::int64_t current, std::int64_t low, std::int64_t high) {
        const toml::node* node = find(key);
        if (node == nullptr) return current;
        const toml::value<std::int64_t>* value = node->as_integer();
        if (value == nullptr) wrong_type(*node, key, fmt::format("an integer from {} to {}", low, high));
        if (value->get() < low || value->get() > high)
            refuse(*node, fmt::format("{} = {} is out of range: {} to {} allowed", full(key), value->get(), low, high));
        return value->get();
    }
    void read(std::string_view key, std::uint32_t& target, std::int64_t low, std::int64_t high) {
        target = static_cast<std::uint32_t>(integer(key, target, low, high));
    }
    void read(std::string_view key, std::uint8_t& target, std::int64_t low, std::int64_t high) {
        target = static_cast<std::uint8_t>(integer(key, target, low, high));
    }
    /// A chance, from 0 to 1.
    void read(std::string_view key, double& target) {
        const toml::node* node = find(key);
        if (node == nullptr) return;
        const std::optional<double> value = node->value<double>();
        if (!value || *value < 0 || *value > 1) refuse(*node, fmt::format("{} must be a number from 0 to 1", full(key)));
        target = *value;
    }
    template <class Rep, class Period>
    void read(std::string_view key, std::chrono::duration<Rep, Period>& target, std::int64_t low, std::int64_t high) {
        target = std::chrono::duration<Rep, Period>(integer(key, target.count(), low, high));
    }
    void read(std::string_view key, std::string& target) {
        const toml::node* node = find(key);
        if (node == nullptr) return;
        if (!node->is_string()) wrong_type(*node, key, "a string");
        target = node->as_string()->get();
    }
    /// A string out of a fixed list.
    void read(std::string_view key, std::string& target, const Keys& allowed) {
        read(key, target);
        if (std::ranges::find(allowed, target) != allowed.end()) return;
        std::string list;
        for (const std::string_view one : allowed) list += fmt::format("{}\"{}\"", list.empty() ? "" : ", ", one);
        refuse(*table_.get(key), fmt::format("{} = \"{}\" is not known: {} allowed", full(key), target, list));
    }
    void read(std::string_view key, bool& target) {
        const toml::node* node = find(key);
        if (node == nullptr) return;
        if (!node->is_boolean()) wrong_type(*node, key, "true or false");
        target = node->as_boolean()->get();
    }
    void read(std::string_view key, std::vector<std::string>& target) {
        const toml::node* node = find(key);
        if (node == nullptr) return;
        if (!node->is_array()) wrong_type(*node, key, "an array of strings");
        target.clear();
        for (const toml::node& element : *node->as_array()) {
            if (!element.is_string()) wrong_type(element, key, "an array of strings");
            target.push_back(element.as_string()->get());
        }
    }

    [[noreturn]] void wrong_type(const toml::node& node, std::string_view key, std::string_view wanted) const {
        refuse(node, fmt::format("{} is {}, must be {}", full(key), type_name(node.type()), wanted));
    }
    std::string full(std::string_view key) const {
        return name_.empty() ? std::string(key) : fmt::format("{}.{}", name_, key);
    }

    /// Refuses the first unknown key, with the nearest known one as a suggestion.
    void done() const {
        const toml::key* first = nullptr;
        for (const auto& [key, node] : table_) {
            if (std::ranges::find(known_, key.str()) != known_.end()) continue;
            if (first == nullptr || key.source().begin < first->source().begin) first = &key;
        }
        if (first == nullptr) return;
        const auto nearest = std::ranges::min_element(
            known_, {}, [&](std::string_view candidate) { return edit_distance(first->str(), candidate); });
        std::string text = fmt::format("unknown key '{}'{}", first->str(),
                                       name_.empty() ? "" : fmt::format(" in [{}]", name_));
        if (edit_distance(first->str(), *nearest) <= std::max<std::size_t>(2, nearest->size() / 3)) {
            text += fmt::format(" (did you mean '{}'?)", *nearest);
        } else {
            text += "; known are";
            for (const std::string_view key : known_) text += fmt::format("{} {}", key == known_.front() ? "" : ",", key);
        }
        refuse(first->source().begin, std::move(text));
    }

private:
    const toml::table& table_;
    std::string name_;
    Keys known_;
};

/// Runs `read` over the sub-table `key` if it is there.
template <class Read>
void read_table(TableReader& parent, std::string_view key, Read read) {
    const toml::node* node = parent.find(key);
    if (node == nullptr) return;
    if (!node->is_table()) parent.wrong_type(*node, key, fmt::format("a table: [{}]", key));
    TableReader reader(*node->as_table(), std::string(key));
    read(reader, *node->as_table());
    reader.done();
}

void read_socket(TableReader& reader, SocketConfig& socket) {
    // sun_path holds 107 bytes and a NUL.
    reader.read("path", socket.path);
    if (socket.path.empty() || socket.path.front() != '/' || socket.path.size() > 107)
        refuse(*reader.find("path"), "socket.path must be an absolute path of at most 107 bytes");
    reader.read("group", socket.group);
    std::string mode = fmt::format("{:04o}", socket.mode);
    reader.read("mode", mode);
    const bool octal = !mode.empty() && mode.size() <= 4 && mode.find_first_not_of("01234567") == std::string::npos;
    const unsigned long bits = octal ? std::stoul(mode, nullptr, 8) : 01000;
    if (bits > 0777)
        refuse(*reader.find("mode"), fmt::format("socket.mode = \"{}\" must be an octal file mode such as \"0660\"", mode));
    socket.mode = static_cast<std::uint32_t>(bits);
    reader.read("allow_users", socket.allow_users);
    reader.read("allow_groups", socket.allow_groups);
}

/// An array of different whole numbers.
void read_numbers(TableReader& reader, std::string_view key, std::vector<unsigned>& numbers, std::int64_t low, std::int64_t high) {
    const toml::node* node = reader.find(key);
    if (node == nullptr) return;
    if (!node->is_array()) reader.wrong_type(*node, key, "an array: [0, 1]");
    numbers.clear();
    for (const toml::node& element : *node->as_array()) {
        const std::int64_t number = element.is_integer() ? element.as_integer()->get() : low - 1;
        if (number < low || number > high)
            refuse(element, fmt::format("each of {} must be a whole number from {} to {}", key, low, high));
        const auto value = static_cast<unsigned>(number);
        if (std::ranges::find(numbers, value) != numbers.end()) refuse(element, fmt::format("{} names {} twice", key, value));
        numbers.push_back(value);
    }
}

/// "10.0.0.2/24": an address in its network.
std::optional<NetworkAddress> parse_network_address(const std::string& text) {
    const std::size_t slash = text.find('/');
    if (slash == std::string::npos) return std::nullopt;
    const auto address = Address::parse(text.substr(0, slash));
    // The network itself says whether the length is one; its address must not be the network's own number.
    if (!address || address->is_unspecified() || address->is_multicast() || address->is_broadcast()) return std::nullopt;
    unsigned length = 0;
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + slash + 1, end, length);
    if (error != std::errc{} || stop != end || length == 0 || length > (address->is_v4() ? 32u : 128u)) return std::nullopt;
    return NetworkAddress{*address, length};
}

void read_vlan(TableReader& reader, const toml::table& table, InterfaceConfig& interface) {
    reader.read("vlan", interface.vlan, 1, 4094);
    std::string tag = "802.1Q";
    reader.read("vlan_tag", tag, {"802.1Q", "802.1ad"});
    interface.service_vlan = tag == "802.1ad";
    if (interface.vlan == 0 && table.get("vlan_tag") != nullptr) refuse(*table.get("vlan_tag"), "interface.vlan_tag needs a vlan");
    // A VLAN of the kernel's is an interface of its own, with its own name.
    if (interface.vlan != 0 && !interface.dedicated())
        refuse(*table.get("vlan"), "interface.vlan needs an address of Culvert's own: address = [\"10.0.0.2/24\"]");
    // The kernel holds such frames to the MTU with their tags.
    if (interface.service_vlan && interface.device == "packet")
        refuse(*table.get("vlan_tag"), "interface.vlan_tag = \"802.1ad\" is not for device = \"packet\"");
}

void read_dedicated(TableReader& reader, const toml::table& table, InterfaceConfig& interface) {
    std::vector<std::string> texts;
    reader.read("address", texts);
    for (const std::string& text : texts) {
        const auto address = parse_network_address(text);
        if (!address)
            refuse(*table.get("address"), fmt::format("interface.address: \"{}\" is no address with its network, such as \"10.0.0.2/24\"", text));
        if (std::ranges::find(interface.addresses, address->address, &NetworkAddress::address) != interface.addresses.end())
            refuse(*table.get("address"), fmt::format("interface.address names {} twice", address->address.to_string()));
        interface.addresses.push_back(*address);
    }
    texts.clear();
    reader.read("gateway", texts);
    for (const std::string& text : texts) {
        const auto gateway = Address::parse(text);
        const auto near = [&](const NetworkAddress& own) { return gateway->in(own.address, own.prefix_length); };
        if (!gateway) refuse(*table.get("gateway"), fmt::format("interface.gateway: \"{}\" is no address", text));
        if (!gateway->is_link_local() && std::ranges::none_of(interface.addresses, near))
            refuse(*table.get("gateway"), fmt::format("interface.gateway: {} is in none of the networks of interface.address", text));
        interface.gateways.push_back(*gateway);
    }
    reader.read("autoconfigure", interface.autoconfigure);
    // XDP and tc cannot give a router's word to the kernel and to us.
    if (interface.autoconfigure && interface.device != "tap")
        refuse(*table.get("autoconfigure"), "interface.autoconfigure is for device = \"tap\" only: elsewhere routers speak to the kernel");
    if (interface.device == "tap" && !interface.dedicated())
        refuse(table, "device = \"tap\" needs address = [\"10.0.0.2/24\"] or autoconfigure = true: the kernel's addresses are the other end's");
    read_vlan(reader, table, interface);
    if (interface.device != "af_xdp" && interface.queues.size() > 1)
        refuse(*table.get("queues"), fmt::format("device = \"{}\" has one queue", interface.device));
}

void read_faults(TableReader& parent, FaultsConfig& faults) {
    const toml::node* node = parent.find("faults");
    if (node == nullptr) return;
    if (!node->is_table()) parent.wrong_type(*node, "faults", "a table: { loss = 0.01 }");
    const toml::table& table = *node->as_table();
    TableReader reader(table, "interface.faults");
    reader.read("loss", faults.loss);
    reader.read("duplicate", faults.duplicate);
    reader.read("reorder", faults.reorder);
    constexpr std::int64_t kLongest = 10'000'000;
    reader.read("delay_min_us", faults.delay_min, 0, kLongest);
    faults.delay_max = faults.delay_min;
    reader.read("delay_max_us", faults.delay_max, 0, kLongest);
    if (faults.delay_max < faults.delay_min)
        refuse(*table.get("delay_max_us"), "interface.faults.delay_max_us is less than delay_min_us");
    reader.read("seed", faults.seed, 0, UINT32_MAX);
    reader.done();
}

void read_capture(TableReader& reader, const toml::table& table, InterfaceConfig& interface) {
    reader.read("capture", interface.capture);
    reader.read("capture_mb", interface.capture_mb, 1, 1 << 20);
    if (!interface.capture.empty() && interface.capture.front() != '/')
        refuse(*table.get("capture"), "interface.capture must be an absolute path");
    if (interface.capture.empty() && table.get("capture_mb") != nullptr)
        refuse(*table.get("capture_mb"), "interface.capture_mb needs a capture");
}

InterfaceConfig read_interface(const toml::table& table) {
    InterfaceConfig interface;
    TableReader reader(table, "interface");
    reader.read("name", interface.name);
    const toml::node* name = table.get("name");
    if (name == nullptr) refuse(table, "[[interface]] needs a name, for example name = \"eth0\"");
    if (!is_interface_name(interface.name))
        refuse(*name, fmt::format("interface.name = \"{}\" is no interface name: 1 to 15 bytes without '/', ':' or space",
                                  interface.name));
    read_numbers(reader, "queues", interface.queues, 0, kMostQueues - 1);
    std::string mode = attach_mode_name(interface.mode);
    reader.read("mode", mode, {"auto", "native", "generic"});
    interface.mode = mode == "native" ? AttachMode::kNative : mode == "generic" ? AttachMode::kGeneric : AttachMode::kAuto;
    reader.read("device", interface.device, {"af_xdp", "packet", "tap"});
    read_dedicated(reader, table, interface);
    read_capture(reader, table, interface);
    read_faults(reader, interface.faults);
    reader.done();
    return interface;
}

void read_interfaces(TableReader& top, std::vector<InterfaceConfig>& interfaces) {
    const toml::node* node = top.find("interface");
    if (node == nullptr) return;
    if (!node->is_array_of_tables()) top.wrong_type(*node, "interface", "an array of tables: [[interface]]");
    std::set<std::string> seen;
    for (const toml::node& element : *node->as_array()) {
        interfaces.push_back(read_interface(*element.as_table()));
        if (!seen.insert(interfaces.back().name).second)
            refuse(element, fmt::format("interface \"{}\" is named twice", interfaces.back().name));
    }
}

void read_tcp(TableReader& reader, const toml::table& table, TcpConfig& tcp) {
    constexpr std::int64_t kLowest = 4096;
    constexpr std::int64_t kHighest = 64 << 20;
    reader.read("congestion", tcp.congestion, {"cubic", "newreno", "reno", "bbr", "dctcp"});
    reader.read("ecn", tcp.ecn, {"off", "passive", "on"});
    reader.read("mtu_probing", tcp.mtu_probing, {"off", "blackhole", "on"});
    reader.read("receive_buffer_min", tcp.receive_buffer_min_bytes, kLowest, kHighest);
    reader.read("receive_buffer", tcp.receive_buffer_bytes, kLowest, kHighest);
    reader.read("receive_buffer_max", tcp.receive_buffer_max_bytes, kLowest, kHighest);
    reader.read("send_buffer_min", tcp.send_buffer_min_bytes, kLowest, kHighest);
    reader.read("send_buffer", tcp.send_buffer_bytes, kLowest, kHighest);
    reader.read("send_buffer_max", tcp.send_buffer_max_bytes, kLowest, kHighest);
    reader.read("min_rto_ms", tcp.min_rto, 1, 60000);
    reader.read("time_wait_ms", tcp.time_wait, 0, 240000);
    reader.read("fast_open", tcp.fast_open, {"off", "client", "server", "both"});
    reader.read("syn_cookies", tcp.syn_cookies, {"auto", "off", "always"});
    const auto at_most = [&](std::string_view name, std::uint32_t value, std::string_view limit, std::uint32_t most) {
        if (value <= most) return;
        const toml::node* node = table.get(name);
        refuse(node != nullptr ? *node : *table.get(limit),
               fmt::format("tcp.{} = {} is more than tcp.{} = {}", name, value, limit, most));
    };
    at_most("receive_buffer", tcp.receive_buffer_bytes, "receive_buffer_max", tcp.receive_buffer_max_bytes);
    at_most("send_buffer", tcp.send_buffer_bytes, "send_buffer_max", tcp.send_buffer_max_bytes);
    at_most("receive_buffer_min", tcp.receive_buffer_min_bytes, "receive_buffer", tcp.receive_buffer_bytes);
    at_most("send_buffer_min", tcp.send_buffer_min_bytes, "send_buffer", tcp.send_buffer_bytes);
}

FilterAction filter_action(TableReader& reader, std::string_view key, FilterAction otherwise) {
    std::string action = otherwise == FilterAction::kAllow ? "allow" : "deny";
    reader.read(key, action, {"allow", "deny"});
    return action == "allow" ? FilterAction::kAllow : FilterAction::kDeny;
}

/// A string that `parse` understands, or what it says is wrong with it.
template <class Value, class Parse>
void read_parsed(TableReader& reader, std::string_view key, Value& value, Parse parse) {
    std::string text;
    reader.read(key, text);
    const toml::node* node = reader.find(key);
    if (node == nullptr) return;
    auto parsed = parse(text);
    if (!parsed) refuse(*node, fmt::format("{}: {}", reader.full(key), parsed.error().what));
    value = *parsed;
}

FilterConfig::Rule read_filter_rule(const toml::table& table) {
    FilterConfig::Rule result;
    TableReader reader(table, "filter.rule");
    if (table.get("action") == nullptr) refuse(table, "[[filter.rule]] needs an action: \"allow\" or \"deny\"");
    result.rule.action = filter_action(reader, "action", FilterAction::kAllow);
    read_parsed(reader, "source", result.rule.source, Prefix::parse);
    read_parsed(reader, "destination", result.rule.destination, Prefix::parse);
    read_parsed(reader, "protocol", result.rule.protocol, parse_protocol);
    read_parsed(reader, "source_ports", result.rule.source_ports, PortInterval::parse);
    read_parsed(reader, "ports", result.rule.ports, PortInterval::parse);
    reader.read("interface", result.interface);
    reader.done();
    return result;
}

void read_filter(TableReader& reader, FilterConfig& filter) {
    filter.otherwise = filter_action(reader, "default", filter.otherwise);
    const toml::node* node = reader.find("rule");
    if (node == nullptr) return;
    if (!node->is_array_of_tables()) reader.wrong_type(*node, "rule", "an array of tables: [[filter.rule]]");
    for (const toml::node& element : *node->as_array()) filter.rules.push_back(read_filter_rule(*element.as_table()));
    if (filter.rules.size() > kMostFilterRules)
        refuse(*node, fmt::format("more than {} filter rules", kMostFilterRules));
}

/// Where in the file a policy's `offset` stands: the text of a string without escapes is the file's own.
toml::source_position position_of(const toml::node& node, std::string_view text, std::size_t offset) {
    const toml::source_region& source = node.source();
    const shm::TextPosition inside = shm::position_in(text, offset);
    const auto lines = static_cast<std::size_t>(source.end.line - source.begin.line);
    const auto newlines = static_cast<std::size_t>(std::ranges::count(text, '\n'));
    toml::source_position where = source.begin;
    if (lines == 0) {  // between two quotes, or something in it is escaped
        if (source.end.column - source.begin.column == text.size() + 2)
            where.column += static_cast<toml::source_index>(inside.column);
    } else if (lines == newlines || lines == newlines + 1) {  // three quotes, and perhaps a first new line that is no part of it
        const bool trimmed = lines == newlines + 1;
        where.line += static_cast<toml::source_index>(inside.line - 1 + (trimmed ? 1 : 0));
        const bool behind_quotes = inside.line == 1 && !trimmed;
        where.column = static_cast<toml::source_index>(inside.column) + (behind_quotes ? source.begin.column + 2 : 0);
    }
    return where;
}

ProgramConfig read_program(const toml::table& table) {
    ProgramConfig program;
    TableReader reader(table, "program");
    reader.read("name", program.name);
    // TASK_COMM_LEN, and what a Hello holds: a longer name would never fit.
    if (program.name.size() >= sizeof shm::Hello::program)
        refuse(*table.get("name"), fmt::format("program.name is longer than {} bytes", sizeof shm::Hello::program - 1));
    reader.read("user", program.user);
    std::string text;
    reader.read("policy", text);
    const toml::node* node = table.get("policy");
    if (node == nullptr) refuse(table, "[[program]] needs a policy, for example policy = \"tcp listen 80,443; udp none\"");
    shm::Policy policy;
    shm::PolicyError error;
    if (!policy.parse(text, error)) refuse(position_of(*node, text, error.at), fmt::format("program.policy: {}", error.text));
    std::array<char, shm::kMostPolicyText + 1> compact;
    if (!shm::compact_policy(text, compact.data()))
        refuse(*node, fmt::format("program.policy is longer than {} bytes, comments left out", shm::kMostPolicyText));
    program.policy = compact.data();
    reader.done();
    return program;
}

void read_programs(TableReader& top, std::vector<ProgramConfig>& programs) {
    const toml::node* node = top.find("program");
    if (node == nullptr) return;
    if (!node->is_array_of_tables()) top.wrong_type(*node, "program", "an array of tables: [[program]]");
    for (const toml::node& element : *node->as_array()) programs.push_back(read_program(*element.as_table()));
    if (programs.size() > kMostPrograms) refuse(*node, fmt::format("more than {} [[program]] tables", kMostPrograms));
}

/// A rule for an interface that is not served would silently protect nothing.
void check_filter_interfaces(const toml::table& file, const Config& config) {
    for (std::size_t i = 0; i < config.filter.rules.size(); ++i) {
        const std::string& name = config.filter.rules[i].interface;
        if (name.empty() || config.interfaces.empty()) continue;  // none: `--interface` names them
        if (std::ranges::find(config.interfaces, name, &InterfaceConfig::name) != config.interfaces.end()) continue;
        refuse(*file["filter"]["rule"][i]["interface"].node(), fmt::format("filter.rule.interface = \"{}\" is no [[interface]]", name));
    }
}

Config read_config(const toml::table& file) {
    Config config;
    TableReader top(file, "");
    read_interfaces(top, config.interfaces);
    read_table(top, "socket", [&](TableReader& reader, const toml::table&) { read_socket(reader, config.socket); });
    read_table(top, "log", [&](TableReader& reader, const toml::table&) {
        reader.read("level", config.log_level, Keys(kLogLevels.begin(), kLogLevels.end()));
    });
    read_table(top, "limits", [&](TableReader& reader, const toml::table&) {
        reader.read("max_sockets", config.limits.max_sockets, 64, shm::kMaxSockets);
        reader.read("tx_blocks", config.limits.tx_blocks, 64, shm::kMaxBlocks / 2);
        reader.read("rx_blocks", config.limits.rx_blocks, 64, shm::kMaxBlocks / 2);
        reader.read("max_tenants", config.limits.max_tenants, 1, 1024);
        reader.read("memory_mb", config.limits.memory_mb, 0, 1 << 22);
        reader.read("max_connections", config.limits.max_connections, 1024, 1 << 22);
        reader.read("max_time_wait", config.limits.max_time_wait, 0, 1 << 20);
    });
    read_table(top, "ip", [&](TableReader& reader, const toml::table&) { reader.read("default_ttl", config.ip.default_ttl, 1, 255); });
    read_table(top, "tcp", [&](TableReader& reader, const toml::table& table) { read_tcp(reader, table, config.tcp); });
    read_table(top, "engine", [&](TableReader& reader, const toml::table&) {
        reader.read("spin_us", config.engine.spin, 0, 10000);
        reader.read("slice_us", config.engine.slice, 0, 100'000);
        reader.read("application_spin_us", config.engine.application_spin, 0, 10000);
        reader.read("count", config.engine.count, 1, kMostEngines);
        read_numbers(reader, "cpus", config.engine.cpus, 0, kMostCpus - 1);
        reader.read("frames", config.engine.frames, 1024, 1 << 20);
    });
    read_table(top, "filter", [&](TableReader& reader, const toml::table&) { read_filter(reader, config.filter); });
    check_filter_interfaces(file, config);
    read_programs(top, config.programs);
    read_table(top, "forwarding", [&](TableReader& reader, const toml::table& table) {
        reader.read("enabled", config.forwarding.enabled);
        reader.read("reverse_path_check", config.forwarding.reverse_path_check);
        const auto is_tap = [](const InterfaceConfig& interface) { return interface.device == "tap"; };
        if (config.forwarding.enabled && !config.interfaces.empty() && std::ranges::none_of(config.interfaces, is_tap))
            refuse(*table.get("enabled"), "forwarding.enabled needs an interface with device = \"tap\": what comes to others for "
                                          "addresses that are not ours is the kernel's to forward");
    });
    // What routers say comes to the engine that runs the link; and of two engines each would forward what its queue gets.
    const auto listens = std::ranges::find_if(config.interfaces, &InterfaceConfig::autoconfigure);
    if (config.engine.count > 1 && (listens != config.interfaces.end() || config.forwarding.enabled))
        refuse(*file["engine"]["count"].node(),
               fmt::format("engine.count = {}: {} is done by one engine only", config.engine.count,
                           config.forwarding.enabled ? std::string("forwarding") : "autoconfigure (" + listens->name + ")"));
    top.done();
    return config;
}

std::unexpected<Error> fail_at(const std::string& file, const toml::source_position& where, std::string_view text) {
    return fail(0, fmt::format("{}:{}:{}: {}", file, where.line, where.column, text));
}

}  // namespace

std::vector<FilterRule> FilterConfig::rules_for(const std::string& interface) const {
    std::vector<FilterRule> result;
    for (const Rule& each : rules)
        if (each.interface.empty() || each.interface == interface) result.push_back(each.rule);
    return result;
}

const char* attach_mode_name(AttachMode mode) {
    switch (mode) {
        case AttachMode::kAuto: return "auto";
        case AttachMode::kNative: return "native";
        case AttachMode::kGeneric: return "generic";
    }
    return "?";
}

bool is_log_level(std::string_view level) { return std::ranges::find(kLogLevels, level) != kLogLevels.end(); }

bool is_interface_name(std::string_view name) {
    return !name.empty() && name.size() <= 15 && name != "." && name != ".." &&
           std::ranges::none_of(name, [](unsigned char c) { return c == '/' || c == ':' || c <= ' '; });
}

Result<Config> parse_config(std::string_view text, const std::string& file) {
    try {
        return read_config(toml::parse(text, std::string_view(file)));
    } catch (const toml::parse_error& error) {
        return fail_at(file, error.source().begin, error.description());
    } catch (const ConfigError& error) {
        return fail_at(file, error.where, error.text);
    }
}

Result<Config> load_config(const std::string& file) {
    std::ifstream stream(file);
    if (!stream) return fail_errno("cannot read " + file);
    std::stringstream text;
    text << stream.rdbuf();
    if (stream.bad() || (text.fail() && stream.peek() != std::ifstream::traits_type::eof()))
        return fail(EIO, "cannot read " + file);
    return parse_config(text.str(), file);
}

}  // namespace culvert::control
