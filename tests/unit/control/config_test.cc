#include "daemon/control/config.h"

#include <gtest/gtest.h>

namespace culvert::control {
namespace {

/// The message with which `text` is refused; empty when it is accepted.
std::string refusal(std::string_view text) {
    const Result<Config> config = parse_config(text, "c.toml");
    return config ? "" : config.error().message();
}

TEST(Config, EmptyFileIsTheDefaults) {
    const Result<Config> config = parse_config("", "c.toml");
    ASSERT_TRUE(config) << config.error().message();
    EXPECT_EQ(config->socket.path, "/run/culvert/control.sock");
    EXPECT_EQ(config->limits.max_sockets, 16384u);
    EXPECT_EQ(config->limits.tx_blocks, 16384u);
    EXPECT_EQ(config->limits.max_tenants, 64u);
    EXPECT_EQ(config->tcp.congestion, "cubic");
    EXPECT_EQ(config->engine.spin, std::chrono::microseconds(100));
    EXPECT_TRUE(config->interfaces.empty());
}

TEST(Config, ReadsEveryTable) {
    const Result<Config> config = parse_config(R"(
        [[interface]]
        name = "eth0"
        mode = "generic"
        [[interface]]
        name = "eth1"
        queues = [1, 0]
        [socket]
        path = "/tmp/c.sock"
        group = "www-data"
        mode = "0660"
        allow_users = ["nginx", "redis"]
        [log]
        level = "debug"
        [limits]
        max_sockets = 131072
        [ip]
        default_ttl = 255
        [tcp]
        congestion = "newreno"
        ecn = "on"
        mtu_probing = "on"
        min_rto_ms = 20
        [engine]
        spin_us = 0
        slice_us = 700
        count = 3
        cpus = [2, 5]
    )", "c.toml");
    ASSERT_TRUE(config) << config.error().message();
    ASSERT_EQ(config->interfaces.size(), 2u);
    EXPECT_EQ(config->interfaces[0].name, "eth0");
    EXPECT_EQ(config->interfaces[0].mode, AttachMode::kGeneric);
    EXPECT_EQ(config->interfaces[1].mode, AttachMode::kAuto);
    EXPECT_EQ(config->socket.path, "/tmp/c.sock");
    EXPECT_EQ(config->socket.mode, 0660u);
    EXPECT_EQ(config->socket.allow_users, (std::vector<std::string>{"nginx", "redis"}));
    EXPECT_EQ(config->log_level, "debug");
    EXPECT_EQ(config->limits.max_sockets, 131072u);
    EXPECT_EQ(config->tcp.congestion, "newreno");
    EXPECT_EQ(config->tcp.ecn, "on");
    EXPECT_EQ(config->tcp.mtu_probing, "on");
    EXPECT_EQ(config->ip.default_ttl, 255);
    EXPECT_EQ(config->tcp.min_rto, std::chrono::milliseconds(20));
    EXPECT_EQ(config->engine.spin, std::chrono::microseconds(0));
    EXPECT_EQ(config->engine.slice, std::chrono::microseconds(700));
    EXPECT_EQ(config->engine.count, 3u);
    EXPECT_EQ(config->engine.cpus, (std::vector<unsigned>{2, 5}));
    EXPECT_TRUE(config->interfaces[0].queues.empty());
    EXPECT_EQ(config->interfaces[1].queues, (std::vector<unsigned>{1, 0}));
}

struct Refused {
    const char* text;
    const char* message;
};

class ConfigRefuses : public testing::TestWithParam<Refused> {};

TEST_P(ConfigRefuses, WithOneLineThatSaysWhere) { EXPECT_EQ(refusal(GetParam().text), GetParam().message); }

INSTANTIATE_TEST_SUITE_P(
    Table, ConfigRefuses,
    testing::Values(
        Refused{"\n[[interfcae]]\nname = \"eth0\"\n", "c.toml:2:3: unknown key 'interfcae' (did you mean 'interface'?)"},
        Refused{"[tcp]\nmin_rto = 5\n", "c.toml:2:1: unknown key 'min_rto' in [tcp] (did you mean 'min_rto_ms'?)"},
        Refused{"[log]\nfacility = \"x\"\n", "c.toml:2:1: unknown key 'facility' in [log]; known are level"},
        Refused{"[limits]\nmax_sockets = 1000000\n",
                "c.toml:2:15: limits.max_sockets = 1000000 is out of range: 64 to 131072 allowed"},
        Refused{"[limits]\nmax_sockets = \"many\"\n",
                "c.toml:2:15: limits.max_sockets is a string, must be an integer from 64 to 131072"},
        Refused{"[engine]\nspin_us = 1.5\n",
                "c.toml:2:11: engine.spin_us is a floating-point number, must be an integer from 0 to 10000"},
        Refused{"[log]\nlevel = \"loud\"\n",
                "c.toml:2:9: log.level = \"loud\" is not known: \"trace\", \"debug\", \"info\", \"warning\", \"error\" allowed"},
        Refused{"interface = \"eth0\"\n", "c.toml:1:13: interface is a string, must be an array of tables: [[interface]]"},
        Refused{"[[interface]]\nname = \"a\"\ndevice = \"tap\"\n",
                "c.toml:1:1: device = \"tap\" needs address = [\"10.0.0.2/24\"] or autoconfigure = true: the kernel's addresses "
                "are the other end's"},
        Refused{"[[interface]]\nname = \"a\"\naddress = [\"10.0.0.2\"]\n",
                "c.toml:3:11: interface.address: \"10.0.0.2\" is no address with its network, such as \"10.0.0.2/24\""},
        Refused{"[[interface]]\nname = \"a\"\naddress = [\"10.0.0.2/24\"]\ngateway = [\"10.0.1.1\"]\n",
                "c.toml:4:11: interface.gateway: 10.0.1.1 is in none of the networks of interface.address"},
        Refused{"[[interface]]\nname = \"a\"\nautoconfigure = true\n",
                "c.toml:3:17: interface.autoconfigure is for device = \"tap\" only: elsewhere routers speak to the kernel"},
        Refused{"[[interface]]\nname = \"a\"\ndevice = \"tap\"\nautoconfigure = true\n[engine]\ncount = 2\n",
                "c.toml:6:9: engine.count = 2: autoconfigure (a) is done by one engine only"},
        Refused{"[[interface]]\nname = \"a\"\ndevice = \"tap\"\naddress = [\"10.0.0.2/24\"]\n[forwarding]\nenabled = true\n[engine]\ncount = 2\n",
                "c.toml:8:9: engine.count = 2: forwarding is done by one engine only"},
        Refused{"[[interface]]\nname = \"a\"\nvlan = 100\n",
                "c.toml:3:8: interface.vlan needs an address of Culvert's own: address = [\"10.0.0.2/24\"]"},
        Refused{"[[interface]]\nname = \"a\"\naddress = [\"10.0.0.2/24\"]\nvlan = 4095\n",
                "c.toml:4:8: interface.vlan = 4095 is out of range: 1 to 4094 allowed"},
        Refused{"[[interface]]\nname = \"a\"\naddress = [\"10.0.0.2/24\"]\nvlan_tag = \"802.1ad\"\n",
                "c.toml:4:12: interface.vlan_tag needs a vlan"},
        Refused{"[[interface]]\nname = \"a\"\ndevice = \"packet\"\naddress = [\"10.0.0.2/24\"]\nvlan = 7\nvlan_tag = \"802.1ad\"\n",
                "c.toml:6:12: interface.vlan_tag = \"802.1ad\" is not for device = \"packet\""},
        Refused{"[[interface]]\nname = \"a\"\ncapture = \"a.pcap\"\n", "c.toml:3:11: interface.capture must be an absolute path"},
        Refused{"[[interface]]\nname = \"a\"\ncapture_mb = 5\n", "c.toml:3:14: interface.capture_mb needs a capture"},
        Refused{"[[interface]]\nname = \"a\"\nfaults = { loss = 1.5 }\n", "c.toml:3:19: interface.faults.loss must be a number from 0 to 1"},
        Refused{"[[interface]]\nname = \"a\"\nfaults = { lost = 1 }\n",
                "c.toml:3:12: unknown key 'lost' in [interface.faults] (did you mean 'loss'?)"},
        Refused{"[[interface]]\nname = \"a\"\nfaults = { delay_min_us = 5, delay_max_us = 4 }\n",
                "c.toml:3:45: interface.faults.delay_max_us is less than delay_min_us"},
        Refused{"[[interface]]\nname = \"a\"\n[forwarding]\nenabled = true\n",
                "c.toml:4:11: forwarding.enabled needs an interface with device = \"tap\": what comes to others for addresses that "
                "are not ours is the kernel's to forward"},
        Refused{"[[filter.rule]]\nsource = \"any\"\n", "c.toml:1:1: [[filter.rule]] needs an action: \"allow\" or \"deny\""},
        Refused{"[[filter.rule]]\naction = \"deny\"\nsource = \"10.0.0.1/8\"\n",
                "c.toml:3:10: filter.rule.source: \"10.0.0.1/8\" has bits beyond its length"},
        Refused{"[[filter.rule]]\naction = \"deny\"\nport = \"80\"\n",
                "c.toml:3:1: unknown key 'port' in [filter.rule] (did you mean 'ports'?)"},
        Refused{"[[interface]]\nname = \"a\"\n[[filter.rule]]\naction = \"deny\"\ninterface = \"b\"\n",
                "c.toml:5:13: filter.rule.interface = \"b\" is no [[interface]]"},
        Refused{"[[interface]]\nmode = \"auto\"\n", "c.toml:1:1: [[interface]] needs a name, for example name = \"eth0\""},
        Refused{"[[interface]]\nname = \"eth0\"\nqueues = [0, 1, 0]\n", "c.toml:3:17: queues names 0 twice"},
        Refused{"[[interface]]\nname = \"eth0\"\nqueues = [64]\n",
                "c.toml:3:11: each of queues must be a whole number from 0 to 63"},
        Refused{"[[interface]]\nname = \"eth0\"\nqueues = 1\n", "c.toml:3:10: interface.queues is an integer, must be an array: [0, 1]"},
        Refused{"[engine]\ncount = 65\n", "c.toml:2:9: engine.count = 65 is out of range: 1 to 64 allowed"},
        Refused{"[engine]\ncpus = [0, \"one\"]\n",
                "c.toml:2:12: each of cpus must be a whole number from 0 to 1023"},
        Refused{"[[interface]]\nname = \"a name\"\n",
                "c.toml:2:8: interface.name = \"a name\" is no interface name: 1 to 15 bytes without '/', ':' or space"},
        Refused{"[[interface]]\nname = \"eth0\"\n[[interface]]\nname = \"eth0\"\n",
                "c.toml:3:1: interface \"eth0\" is named twice"},
        Refused{"[socket]\nmode = \"0999\"\n",
                "c.toml:2:8: socket.mode = \"0999\" must be an octal file mode such as \"0660\""},
        Refused{"[socket]\npath = \"run.sock\"\n",
                "c.toml:2:8: socket.path must be an absolute path of at most 107 bytes"},
        Refused{"[tcp]\nsend_buffer = 8000000\nsend_buffer_max = 4000000\n",
                "c.toml:2:15: tcp.send_buffer = 8000000 is more than tcp.send_buffer_max = 4000000"},
        Refused{"[tcp]\nreceive_buffer_min = 300000\n",
                "c.toml:2:22: tcp.receive_buffer_min = 300000 is more than tcp.receive_buffer = 262144"}));

TEST(ConfigRefuses, BrokenTomlNamesThePlace) {
    EXPECT_TRUE(refusal("[tcp\n").starts_with("c.toml:1:5: ")) << refusal("[tcp\n");
}

TEST(Config, AbsentFileSaysWhy) {
    const Result<Config> config = load_config("/nonexistent/culvert.toml");
    ASSERT_FALSE(config);
    EXPECT_EQ(config.error().message(), "cannot read /nonexistent/culvert.toml: No such file or directory");
}

TEST(Config, SeveralEnginesMayServeDedicatedAddresses) {
    const Result<Config> config = parse_config("[[interface]]\nname = \"a\"\naddress = [\"10.0.0.2/24\"]\n[engine]\ncount = 2\n", "c.toml");
    ASSERT_TRUE(config) << config.error().message();
    EXPECT_EQ(config->engine.count, 2u);
}

TEST(Config, AnInterfaceMayBeAVlanOfItsLink) {
    const std::string address = "[[interface]]\nname = \"a\"\naddress = [\"10.0.0.2/24\"]\n";
    const Result<Config> plain = parse_config(address + "vlan = 100\n", "c.toml");
    ASSERT_TRUE(plain) << plain.error().message();
    EXPECT_EQ(plain->interfaces.at(0).vlan, 100u);
    EXPECT_FALSE(plain->interfaces.at(0).service_vlan);
    const Result<Config> service = parse_config(address + "vlan = 4094\nvlan_tag = \"802.1ad\"\n", "c.toml");
    ASSERT_TRUE(service) << service.error().message();
    EXPECT_TRUE(service->interfaces.at(0).service_vlan);
}

TEST(Config, DedicatedAddressesComeWithTheirNetworksAndRouters) {
    const Result<Config> config = parse_config(R"(
[[interface]]
name = "culvert0"
device = "tap"
address = ["10.0.0.2/24", "fd00::2/64"]
gateway = ["10.0.0.1", "fe80::1"]
autoconfigure = true
[forwarding]
enabled = true
reverse_path_check = false
)",
                                               "c.toml");
    ASSERT_TRUE(config) << config.error().message();
    const InterfaceConfig& interface = config->interfaces.at(0);
    EXPECT_TRUE(interface.dedicated());
    ASSERT_EQ(interface.addresses.size(), 2u);
    EXPECT_EQ(interface.addresses[0].address, Address::v4(10, 0, 0, 2));
    EXPECT_EQ(interface.addresses[0].prefix_length, 24u);
    EXPECT_EQ(interface.gateways.size(), 2u);
    EXPECT_TRUE(interface.autoconfigure);
    EXPECT_TRUE(config->forwarding.enabled);
    EXPECT_FALSE(config->forwarding.reverse_path_check);
}

TEST(Config, ALinkIsCapturedAndMadeBadOnRequest) {
    const Result<Config> config = parse_config(R"(
[[interface]]
name = "eth0"
capture = "/tmp/eth0.pcap"
capture_mb = 5
faults = { loss = 0.25, reorder = 1, delay_min_us = 100, seed = 7 }
)",
                                               "c.toml");
    ASSERT_TRUE(config) << config.error().message();
    const InterfaceConfig& interface = config->interfaces.at(0);
    EXPECT_EQ(interface.capture, "/tmp/eth0.pcap");
    EXPECT_EQ(interface.capture_mb, 5u);
    EXPECT_TRUE(interface.faults.any());
    EXPECT_EQ(interface.faults.loss, 0.25);
    EXPECT_EQ(interface.faults.reorder, 1.0);
    EXPECT_EQ(interface.faults.delay_min, std::chrono::microseconds(100));
    EXPECT_EQ(interface.faults.delay_max, std::chrono::microseconds(100)) << "one delay, unless another is named";
    EXPECT_EQ(interface.faults.seed, 7u);
}

TEST(Config, FilterRulesKeepTheirOrderAndTheirInterface) {
    const Result<Config> config = parse_config(R"(
[[interface]]
name = "eth0"
[[interface]]
name = "eth1"
[filter]
default = "deny"
[[filter.rule]]
action = "allow"
source = "10.0.0.0/8"
protocol = "tcp"
ports = "80"
[[filter.rule]]
action = "deny"
destination = "fd00::1"
source_ports = "1-1023"
interface = "eth1"
)",
                                               "c.toml");
    ASSERT_TRUE(config) << config.error().message();
    EXPECT_EQ(config->filter.otherwise, FilterAction::kDeny);
    ASSERT_EQ(config->filter.rules_for("eth0").size(), 1u);
    ASSERT_EQ(config->filter.rules_for("eth1").size(), 2u);
    EXPECT_EQ(config->filter.rules_for("eth1")[0].to_string(), "allow tcp from 10.0.0.0/8 ports any to any ports 80");
    EXPECT_EQ(config->filter.rules_for("eth1")[1].to_string(), "deny any from any ports 1-1023 to fd00::1/128 ports any");
}

TEST(Config, ProgramsHavePolicies) {
    const Result<Config> config = parse_config(R"(
        [[program]]
        name = "nginx"
        user = "www-data"
        policy = """
        tcp listen 80,443   # web
        udp none
        """
        [[program]]
        policy = 'tcp connect 10.0.0.0/8'
    )", "c.toml");
    ASSERT_TRUE(config) << config.error().message();
    ASSERT_EQ(config->programs.size(), 2u);
    EXPECT_EQ(config->programs[0].name, "nginx");
    EXPECT_EQ(config->programs[0].user, "www-data");
    EXPECT_EQ(config->programs[0].policy, "tcp listen 80,443;udp none;");
    EXPECT_EQ(config->programs[1].name, "");
    EXPECT_EQ(config->programs[1].policy, "tcp connect 10.0.0.0/8");
}

TEST(Config, ProgramsAreRefusedWithThePlaceInTheirPolicy) {
    EXPECT_EQ(refusal("[[program]]\nname = \"nginx\""),
              "c.toml:1:1: [[program]] needs a policy, for example policy = \"tcp listen 80,443; udp none\"");
    EXPECT_EQ(refusal("[[program]]\npolicy = \"tcp lisen 80\""),
              "c.toml:2:15: program.policy: this is not understood: tcp, udp, icmp, raw, listen, connect, not, all, none, loopback, a "
              "port or a network may stand here");
    EXPECT_TRUE(refusal("[[program]]\npolicy = 'udp none; tcp listen 0'").starts_with("c.toml:2:32: program.policy: this is no port"));
    EXPECT_TRUE(refusal("[[program]]\npolicy = \"\"\"\nudp none\ntcp listen 0\n\"\"\"").starts_with("c.toml:4:12: program.policy: this is no port"));
    EXPECT_TRUE(refusal("[[program]]\npolicy = \'\'\'udp none\ntcp listen 0\'\'\'").starts_with("c.toml:3:12: program.policy: this is no port"));
    EXPECT_TRUE(refusal("[[program]]\npolicy = \'\'\'udp nonne\n\'\'\'").starts_with("c.toml:2:17: program.policy: this is not understood"));
    // Something in the string is escaped: the string is what can be pointed at.
    EXPECT_TRUE(refusal("[[program]]\npolicy = \"udp\\u0020nonne\"").starts_with("c.toml:2:10: program.policy: this is not understood"));
    EXPECT_TRUE(refusal("[[program]]\npolicy = 80").starts_with("c.toml:2:10: program.policy is an integer, must be a string"));
    EXPECT_TRUE(refusal("[[program]]\npolicy = \"all\"\nusr = \"x\"").starts_with("c.toml:3:1: unknown key 'usr' in [program] (did you mean 'user'?)"));
    EXPECT_TRUE(refusal("[program]\npolicy = \"all\"").starts_with("c.toml:1:1: program is a table, must be an array of tables: [[program]]"));
    EXPECT_TRUE(refusal("[[program]]\nname = \"" + std::string(64, 'x') + "\"\npolicy = \"all\"").starts_with("c.toml:2:8: program.name is longer than 63 bytes"));
    std::string many;
    for (std::size_t i = 0; i <= kMostPrograms; ++i) many += "[[program]]\npolicy = \"all\"\n";
    EXPECT_NE(refusal(many).find("more than 256 [[program]] tables"), std::string::npos);
}

// The annotated example documents every key with its default: it must parse, and change nothing.
TEST(Config, ExampleIsValidAndHoldsTheDefaults) {
    const Result<Config> example = load_config(CULVERT_SOURCE_DIR "/packaging/config.example.toml");
    ASSERT_TRUE(example) << example.error().message();
    const Config defaults;
    EXPECT_EQ(example->socket.path, defaults.socket.path);
    EXPECT_EQ(example->socket.mode, defaults.socket.mode);
    EXPECT_EQ(example->log_level, defaults.log_level);
    EXPECT_EQ(example->limits.max_sockets, defaults.limits.max_sockets);
    EXPECT_EQ(example->limits.tx_blocks, defaults.limits.tx_blocks);
    EXPECT_EQ(example->limits.rx_blocks, defaults.limits.rx_blocks);
    EXPECT_EQ(example->limits.max_tenants, defaults.limits.max_tenants);
    EXPECT_EQ(example->limits.max_time_wait, defaults.limits.max_time_wait);
    EXPECT_EQ(example->tcp.congestion, defaults.tcp.congestion);
    EXPECT_EQ(example->tcp.ecn, defaults.tcp.ecn);
    EXPECT_EQ(example->tcp.mtu_probing, defaults.tcp.mtu_probing);
    EXPECT_EQ(example->ip.default_ttl, defaults.ip.default_ttl);
    EXPECT_EQ(example->tcp.receive_buffer_min_bytes, defaults.tcp.receive_buffer_min_bytes);
    EXPECT_EQ(example->tcp.send_buffer_min_bytes, defaults.tcp.send_buffer_min_bytes);
    EXPECT_EQ(example->tcp.receive_buffer_bytes, defaults.tcp.receive_buffer_bytes);
    EXPECT_EQ(example->tcp.receive_buffer_max_bytes, defaults.tcp.receive_buffer_max_bytes);
    EXPECT_EQ(example->tcp.send_buffer_bytes, defaults.tcp.send_buffer_bytes);
    EXPECT_EQ(example->tcp.send_buffer_max_bytes, defaults.tcp.send_buffer_max_bytes);
    EXPECT_EQ(example->tcp.min_rto, defaults.tcp.min_rto);
    EXPECT_EQ(example->tcp.time_wait, defaults.tcp.time_wait);
    EXPECT_EQ(example->tcp.fast_open, defaults.tcp.fast_open);
    EXPECT_EQ(example->tcp.syn_cookies, defaults.tcp.syn_cookies);
    EXPECT_EQ(example->engine.spin, defaults.engine.spin);
    EXPECT_EQ(example->engine.slice, defaults.engine.slice);
    EXPECT_EQ(example->engine.application_spin, defaults.engine.application_spin);
    EXPECT_EQ(example->engine.count, defaults.engine.count);
    EXPECT_EQ(example->engine.cpus, defaults.engine.cpus);
    ASSERT_EQ(example->interfaces.size(), 1u);
    EXPECT_EQ(example->interfaces[0].queues, InterfaceConfig{}.queues);
    EXPECT_EQ(example->engine.frames, defaults.engine.frames);
    EXPECT_FALSE(example->interfaces[0].dedicated());
    EXPECT_EQ(example->interfaces[0].vlan, 0u);
    EXPECT_TRUE(example->interfaces[0].capture.empty());
    EXPECT_FALSE(example->interfaces[0].faults.any());
    EXPECT_EQ(example->forwarding.enabled, defaults.forwarding.enabled);
    EXPECT_EQ(example->forwarding.reverse_path_check, defaults.forwarding.reverse_path_check);
    EXPECT_TRUE(example->filter.rules.empty());
    EXPECT_TRUE(example->programs.empty());
    EXPECT_EQ(example->filter.otherwise, defaults.filter.otherwise);
}

}  // namespace
}  // namespace culvert::control
