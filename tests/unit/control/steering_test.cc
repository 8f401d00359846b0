// Which (address, port) pairs reach the maps, in any order of addresses and sockets. No kernel: maps and flows are fakes.
#include "daemon/control/steering.h"

#include <gtest/gtest.h>

#include <netinet/tcp.h>

#include <algorithm>
#include <string>

namespace culvert::control {
namespace {

constexpr auto kTcp = stack::PortOwner::Protocol::kTcp;
constexpr auto kUdp = stack::PortOwner::Protocol::kUdp;

Address address(const char* text) { return *Address::parse(text); }
Endpoint endpoint(const char* text, Port port) { return {address(text), port}; }

/// Counts as SteeringProgram does, and notes the order of what matters.
class FakeMaps final : public SteeringMaps {
public:
    Result<void> set_address(const Address& one, bool ours) override {
        if (refuse_addresses) return fail(ENOSPC, "set_address");
        log.push_back((ours ? "+" : "-") + one.to_string());
        if (ours) {
            addresses.insert(one);
        } else {
            addresses.erase(one);
        }
        return {};
    }
    void set_mtu(std::uint32_t bytes) override { mtu = bytes; }
    void take_port(const Address& one, Protocol protocol, Port port) override {
        log.push_back("take " + Endpoint{one, port}.to_string());
        ++taken[{one, protocol, port}];
    }
    void release_port(const Address& one, Protocol protocol, Port port) override { --taken[{one, protocol, port}]; }
    Result<void> add_kernel_flow(const Endpoint& local, const Endpoint& remote) override {
        if (refuse_flows) return fail(ENOSPC, "add_kernel_flow");
        log.push_back("keep " + local.to_string() + " " + remote.to_string());
        flows.insert({local, remote});
        return {};
    }
    Result<void> remove_kernel_flow(const Endpoint& local, const Endpoint& remote) override {
        flows.erase({local, remote});
        return {};
    }

    bool owns(const char* text, Protocol protocol, Port port) const {
        const auto found = taken.find({address(text), protocol, port});
        return addresses.contains(address(text)) && found != taken.end() && found->second > 0;
    }
    bool nothing_taken() const {
        return std::ranges::all_of(taken, [](const auto& entry) { return entry.second == 0; });
    }

    std::uint32_t mtu = 0;
    std::set<Address> addresses;
    std::map<std::tuple<Address, Protocol, Port>, int> taken;
    std::set<std::pair<Endpoint, Endpoint>> flows;
    std::vector<std::string> log;
    bool refuse_addresses = false;
    bool refuse_flows = false;
};

class SteeringTest : public testing::Test {
protected:
    SteeringTest() { steering.add_interface(2, eth0); }

    std::vector<KernelSocket> kernel;  // what the kernel would answer
    int asked = 0;
    FakeMaps eth0;
    FakeMaps eth1;
    Steering steering{[this](Port port) -> Result<std::vector<KernelSocket>> {
                          ++asked;
                          std::vector<KernelSocket> found;
                          for (const KernelSocket& one : kernel)
                              if (one.local.port == port) found.push_back(one);
                          return found;
                      },
                      PortRange{32768, 60999}};
};

KernelSocket established(const Endpoint& local, const Endpoint& remote) {
    KernelSocket socket;
    socket.local = local;
    socket.remote = remote;
    socket.state = TCP_ESTABLISHED;
    return socket;
}

TEST_F(SteeringTest, WildcardIsEveryAddressOfTheFamily) {
    steering.set_addresses(2, {address("10.0.0.1"), address("10.0.0.2"), address("fe80::1")});
    steering.take_port(kTcp, Address::any(Family::kIpv4), 80);
    EXPECT_TRUE(eth0.owns("10.0.0.1", kTcp, 80));
    EXPECT_TRUE(eth0.owns("10.0.0.2", kTcp, 80));
    EXPECT_FALSE(eth0.owns("fe80::1", kTcp, 80));
    EXPECT_FALSE(eth0.owns("10.0.0.1", kUdp, 80));
    steering.take_port(kTcp, Address::any(Family::kIpv6), 80);
    EXPECT_TRUE(eth0.owns("fe80::1", kTcp, 80));
    steering.release_port(kTcp, Address::any(Family::kIpv4), 80);
    steering.release_port(kTcp, Address::any(Family::kIpv6), 80);
    EXPECT_TRUE(eth0.nothing_taken());
}

TEST_F(SteeringTest, WildcardFollowsAddressesThatComeAndGo) {
    steering.take_port(kTcp, Address::any(Family::kIpv4), 80);
    steering.set_addresses(2, {address("10.0.0.1")});
    EXPECT_TRUE(eth0.owns("10.0.0.1", kTcp, 80));
    steering.set_addresses(2, {address("10.0.0.9")});
    EXPECT_FALSE(eth0.owns("10.0.0.1", kTcp, 80));
    EXPECT_TRUE(eth0.owns("10.0.0.9", kTcp, 80));
    steering.release_port(kTcp, Address::any(Family::kIpv4), 80);
    EXPECT_TRUE(eth0.nothing_taken());
}

TEST_F(SteeringTest, TwoSocketsOnOnePortAreTwo) {
    steering.set_addresses(2, {address("10.0.0.1")});
    steering.take_port(kTcp, Address::any(Family::kIpv4), 80);
    steering.take_port(kTcp, Address::any(Family::kIpv4), 80);
    steering.take_port(kTcp, address("10.0.0.1"), 80);
    steering.release_port(kTcp, Address::any(Family::kIpv4), 80);
    steering.release_port(kTcp, Address::any(Family::kIpv4), 80);
    EXPECT_TRUE(eth0.owns("10.0.0.1", kTcp, 80));
    steering.release_port(kTcp, address("10.0.0.1"), 80);
    EXPECT_TRUE(eth0.nothing_taken());
}

TEST_F(SteeringTest, EachInterfaceHasItsOwnAddresses) {
    steering.add_interface(3, eth1);
    steering.set_addresses(2, {address("10.0.0.1")});
    steering.set_addresses(3, {address("10.1.0.1")});
    steering.set_addresses(4, {address("10.2.0.1")});  // not ours
    steering.take_port(kUdp, Address::any(Family::kIpv4), 53);
    EXPECT_TRUE(eth0.owns("10.0.0.1", kUdp, 53));
    EXPECT_FALSE(eth0.owns("10.1.0.1", kUdp, 53));
    EXPECT_TRUE(eth1.owns("10.1.0.1", kUdp, 53));
    EXPECT_EQ(steering.statistics().addresses, 2u);
}

TEST_F(SteeringTest, KernelFlowsAreKeptBeforeThePortIsTaken) {
    steering.set_addresses(2, {address("10.0.0.1")});
    kernel = {established(endpoint("10.0.0.1", 80), endpoint("10.0.0.5", 4000)),
              established(endpoint("10.0.0.1", 22), endpoint("10.0.0.5", 4001)),
              established(endpoint("127.0.0.1", 80), endpoint("127.0.0.1", 4002))};
    eth0.log.clear();
    steering.take_port(kTcp, Address::any(Family::kIpv4), 80);
    EXPECT_EQ(eth0.log, (std::vector<std::string>{"keep 10.0.0.1:80 10.0.0.5:4000", "take 10.0.0.1:80"}));
    EXPECT_EQ(asked, 2);  // once before the bit, once behind it
    steering.take_port(kTcp, address("10.0.0.1"), 80);
    EXPECT_EQ(asked, 2);
    steering.release_port(kTcp, address("10.0.0.1"), 80);
    EXPECT_EQ(eth0.flows.size(), 1u);
    steering.release_port(kTcp, Address::any(Family::kIpv4), 80);
    EXPECT_TRUE(eth0.flows.empty());
}

// Both looks are over when the stack asks; what came in between must not be reset.
TEST_F(SteeringTest, TheKernelsConnectionsOnTakenPortsAreElsewhere) {
    steering.set_addresses(2, {address("10.0.0.1")});
    kernel = {established(endpoint("10.0.0.1", 80), endpoint("10.0.0.5", 4000))};
    EXPECT_FALSE(steering.is_elsewhere(endpoint("10.0.0.1", 80), endpoint("10.0.0.5", 4000)));
    steering.take_port(kTcp, Address::any(Family::kIpv4), 80);
    EXPECT_TRUE(steering.is_elsewhere(endpoint("10.0.0.1", 80), endpoint("10.0.0.5", 4000)));
    EXPECT_FALSE(steering.is_elsewhere(endpoint("10.0.0.1", 80), endpoint("10.0.0.5", 4001)));
    EXPECT_FALSE(steering.is_elsewhere(endpoint("10.0.0.2", 80), endpoint("10.0.0.5", 4000)));
    steering.release_port(kTcp, Address::any(Family::kIpv4), 80);
    EXPECT_FALSE(steering.is_elsewhere(endpoint("10.0.0.1", 80), endpoint("10.0.0.5", 4000)));
}

TEST_F(SteeringTest, KernelFlowsOnALaterAddressAreKeptBeforeItCounts) {
    steering.take_port(kTcp, Address::any(Family::kIpv4), 80);
    kernel = {established(endpoint("10.0.0.1", 80), endpoint("10.0.0.5", 4000))};
    eth0.log.clear();
    steering.set_addresses(2, {address("10.0.0.1")});
    EXPECT_EQ(eth0.log,
              (std::vector<std::string>{"take 10.0.0.1:80", "keep 10.0.0.1:80 10.0.0.5:4000", "+10.0.0.1"}));
}

// nginx has a socket for each family: what the kernel begins between the two is its own.
TEST_F(SteeringTest, EachFamilyOfAPortIsAskedFor) {
    steering.set_addresses(2, {address("10.0.0.1"), address("fd00::1")});
    steering.take_port(kTcp, Address::any(Family::kIpv4), 80);
    kernel = {established(endpoint("fd00::1", 80), endpoint("fd00::5", 4000))};
    steering.take_port(kTcp, Address::any(Family::kIpv6), 80);
    EXPECT_TRUE(eth0.flows.contains({endpoint("fd00::1", 80), endpoint("fd00::5", 4000)}));
    const int before = asked;
    steering.take_port(kTcp, Address::any(Family::kIpv6), 80);
    EXPECT_EQ(asked, before) << "nothing new is taken";
}

TEST_F(SteeringTest, OutgoingConnectionsDoNotAskTheKernel) {
    steering.set_addresses(2, {address("10.0.0.1")});
    steering.take_port(kTcp, address("10.0.0.1"), 40000);
    steering.take_port(kUdp, Address::any(Family::kIpv4), 53);
    EXPECT_EQ(asked, 0);
    steering.take_port(kTcp, address("10.0.0.1"), 8080);
    EXPECT_EQ(asked, 2);
    steering.take_port(kTcp, Address::any(Family::kIpv4), 40000);  // now somebody listens there
    EXPECT_EQ(asked, 4);
}

TEST_F(SteeringTest, FinishedFlowsAreForgotten) {
    steering.set_addresses(2, {address("10.0.0.1")});
    kernel = {established(endpoint("10.0.0.1", 80), endpoint("10.0.0.5", 4000)),
              established(endpoint("10.0.0.1", 80), endpoint("10.0.0.5", 4001))};
    steering.take_port(kTcp, address("10.0.0.1"), 80);
    kernel.pop_back();
    steering.forget_finished_flows();
    EXPECT_EQ(eth0.flows, (std::set<std::pair<Endpoint, Endpoint>>{{endpoint("10.0.0.1", 80), endpoint("10.0.0.5", 4000)}}));
    EXPECT_EQ(steering.statistics().kernel_flows, 1u);
    kernel.clear();
    steering.forget_finished_flows();
    asked = 0;
    steering.forget_finished_flows();
    EXPECT_EQ(asked, 0);
}

TEST_F(SteeringTest, TheLinksMtuReachesItsProgram) {
    steering.set_mtu(2, 9000);
    EXPECT_EQ(eth0.mtu, 9000u);
    steering.set_mtu(77, 1280);
    EXPECT_EQ(eth0.mtu, 9000u);
}

TEST_F(SteeringTest, FullTablesAreCountedAndHarmless) {
    eth0.refuse_addresses = true;
    steering.set_addresses(2, {address("10.0.0.1")});
    eth0.refuse_addresses = false;
    eth0.refuse_flows = true;
    kernel = {established(endpoint("10.0.0.1", 80), endpoint("10.0.0.5", 4000))};
    steering.take_port(kTcp, address("10.0.0.1"), 80);
    EXPECT_EQ(steering.statistics().addresses_refused, 1u);
    EXPECT_GE(steering.statistics().kernel_flows_refused, 1u);
    EXPECT_EQ(steering.statistics().kernel_flows, 0u);
    steering.release_port(kTcp, address("10.0.0.1"), 80);
    EXPECT_TRUE(eth0.nothing_taken());
}

TEST_F(SteeringTest, ReleaseWithoutTakeIsHarmless) {
    steering.set_addresses(2, {address("10.0.0.1")});
    steering.release_port(kTcp, Address::any(Family::kIpv4), 80);
    steering.take_port(kTcp, Address::any(Family::kIpv4), 80);
    EXPECT_TRUE(eth0.owns("10.0.0.1", kTcp, 80));
}

}  // namespace
}  // namespace culvert::control
