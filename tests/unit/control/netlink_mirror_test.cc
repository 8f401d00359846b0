// The mirror against the real kernel, in a network namespace of its own (root; skipped otherwise).
#include "daemon/control/netlink_mirror.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>

namespace culvert::control {
namespace {

using namespace std::chrono_literals;

// Runs the test's body in a thread that has left for a new namespace; the namespace dies with the thread.
class NetlinkMirrorTest : public testing::Test {
protected:
    void SetUp() override {
        if (::geteuid() != 0) GTEST_SKIP() << "needs root: makes a network namespace";
    }

    template <class Body>
    void in_namespace(Body body) {
        std::thread([&] {
            ASSERT_EQ(::unshare(CLONE_NEWNET), 0) << "unshare: " << std::strerror(errno);
            run("ip link set lo up");
            run("ip link add cv0 type veth peer name cv1");
            run("ip link set cv1 up");
            run("ip link set cv0 up");
            run("ip addr add 10.9.0.1/24 dev cv0");
            Result<std::unique_ptr<NetlinkMirror>> opened = NetlinkMirror::open();
            ASSERT_TRUE(opened) << opened.error().message();
            mirror_ = std::move(*opened);
            body();
            mirror_.reset();
        }).join();
    }

    // A child inherits the namespace of the thread that makes it.
    static void run(const std::string& command) { ASSERT_EQ(std::system(command.c_str()), 0) << command; }

    /// Feeds the mirror until `condition` holds.
    template <class Condition>
    testing::AssertionResult eventually(Condition condition) {
        const auto deadline = std::chrono::steady_clock::now() + 30s;
        while (!condition()) {
            if (std::chrono::steady_clock::now() > deadline) return testing::AssertionFailure() << "not within 30 s";
            pollfd waited{mirror_->fd(), POLLIN, 0};
            ::poll(&waited, 1, 100);
            mirror_->process();
        }
        return testing::AssertionSuccess();
    }

    bool has_address(const char* text) const {
        for (const auto& [key, state] : mirror_->addresses())
            if (state.address == *Address::parse(text)) return true;
        return false;
    }
    const RouteState* route(const char* text, unsigned prefix) const {
        for (const auto& [key, state] : mirror_->routes())
            if (state.destination == *Address::parse(text) && state.prefix_length == prefix) return &state;
        return nullptr;
    }
    const NeighborState* neighbor(const char* text) const {
        for (const auto& [key, state] : mirror_->neighbors())
            if (state.address == *Address::parse(text)) return &state;
        return nullptr;
    }
    int ifindex() const { return mirror_->find_link("cv0")->ifindex; }

    std::unique_ptr<NetlinkMirror> mirror_;
};

TEST_F(NetlinkMirrorTest, DumpsWhatIsThereAtTheStart) {
    in_namespace([&] {
        const LinkState* link = mirror_->find_link("cv0");
        ASSERT_NE(link, nullptr);
        EXPECT_EQ(link->mtu, 1500u);
        EXPECT_NE(link->mac, MacAddress{});
        EXPECT_TRUE(has_address("10.9.0.1"));
        EXPECT_TRUE(has_address("::1"));
        ASSERT_NE(route("10.9.0.0", 24), nullptr);
        EXPECT_EQ(route("10.9.0.0", 24)->ifindex, link->ifindex);
        EXPECT_EQ(route("10.9.0.0", 24)->preferred_source, Address::parse("10.9.0.1"));
        ASSERT_NE(route("10.9.0.1", 32), nullptr);
        EXPECT_EQ(route("10.9.0.1", 32)->type, RouteType::kLocal);
        EXPECT_EQ(mirror_->find_link("none"), nullptr);
    });
}

TEST_F(NetlinkMirrorTest, FollowsChanges) {  // [RFC1122 3.3.1.6 manual]
    in_namespace([&] {
        std::vector<MirrorChange> changes;
        mirror_->set_listener([&](const MirrorChange& change) { changes.push_back(change); });
        run("ip addr add 10.9.1.1/24 dev cv0");
        run("ip route add 192.0.2.0/24 via 10.9.0.2 metric 7");
        run("ip route add blackhole 198.51.100.0/24");
        run("ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev cv0 nud permanent");
        ASSERT_TRUE(eventually([&] { return neighbor("10.9.0.2") != nullptr && route("192.0.2.0", 24) != nullptr; }));
        EXPECT_TRUE(has_address("10.9.1.1"));
        EXPECT_EQ(route("192.0.2.0", 24)->gateway, Address::parse("10.9.0.2"));
        EXPECT_EQ(route("192.0.2.0", 24)->metric, 7u);
        EXPECT_EQ(route("198.51.100.0", 24)->type, RouteType::kBlackhole);
        EXPECT_TRUE(neighbor("10.9.0.2")->usable);
        EXPECT_EQ(neighbor("10.9.0.2")->mac, (MacAddress{{2, 0, 0, 0, 0, 2}}));
        EXPECT_FALSE(changes.empty());

        run("ip addr del 10.9.1.1/24 dev cv0");
        run("ip neigh del 10.9.0.2 dev cv0");
        EXPECT_TRUE(eventually([&] {
            return !has_address("10.9.1.1") && (neighbor("10.9.0.2") == nullptr || !neighbor("10.9.0.2")->usable);
        }));
        EXPECT_NE(std::ranges::find_if(changes, [](const MirrorChange& change) {
                      const auto* address = std::get_if<AddressState>(&change.state);
                      return address != nullptr && change.removed && address->address == *Address::parse("10.9.1.1");
                  }), changes.end());
    });
}

TEST_F(NetlinkMirrorTest, ReplacedRouteLeavesNoGhost) {
    in_namespace([&] {
        run("ip route add 192.0.2.0/24 via 10.9.0.2");
        ASSERT_TRUE(eventually([&] { return route("192.0.2.0", 24) != nullptr; }));
        run("ip route replace 192.0.2.0/24 via 10.9.0.3");
        ASSERT_TRUE(eventually([&] {
            return route("192.0.2.0", 24) != nullptr && route("192.0.2.0", 24)->gateway == Address::parse("10.9.0.3");
        }));
    });
}

// The kernel does not announce IPv4 routes that die with their link.
TEST_F(NetlinkMirrorTest, RoutesOfADeadLinkGo) {
    in_namespace([&] {
        run("ip route add 192.0.2.0/24 via 10.9.0.2");
        ASSERT_TRUE(eventually([&] { return route("192.0.2.0", 24) != nullptr; }));
        run("ip link set cv0 down");
        EXPECT_TRUE(eventually([&] { return route("192.0.2.0", 24) == nullptr && !mirror_->find_link("cv0")->up; }));
    });
}

TEST_F(NetlinkMirrorTest, MultipathRouteIsOneRouteAHop) {
    in_namespace([&] {
        run("ip route add 192.0.2.0/24 nexthop via 10.9.0.2 nexthop via 10.9.0.3");
        ASSERT_TRUE(eventually([&] {
            return std::ranges::count_if(mirror_->routes(), [](const auto& entry) {
                       return entry.second.destination == *Address::parse("192.0.2.0") && entry.second.gateway;
                   }) == 2;
        }));
    });
}

TEST_F(NetlinkMirrorTest, IPv6AddressRouteAndNeighbor) {
    in_namespace([&] {
        run("ip addr add 2001:db8::1/64 dev cv0 nodad");
        run("ip -6 route add 2001:db8:1::/48 via 2001:db8::2");
        run("ip -6 neigh add 2001:db8::2 lladdr 02:00:00:00:00:02 dev cv0 nud permanent");
        // The address is announced by a work queue of the kernel's (addrconf), so it may come last.
        ASSERT_TRUE(eventually([&] {
            return route("2001:db8:1::", 48) != nullptr && neighbor("2001:db8::2") != nullptr && has_address("2001:db8::1");
        }));
        EXPECT_EQ(route("2001:db8:1::", 48)->gateway, Address::parse("2001:db8::2"));
    });
}

TEST_F(NetlinkMirrorTest, ResolveMakesTheKernelAsk) {
    in_namespace([&] {
        const Result<void> asked = mirror_->resolve(ifindex(), *Address::parse("10.9.0.77"));
        ASSERT_TRUE(asked) << asked.error().message();
        // Nobody answers on the other end (it has no address): the kernel gives up and says so.
        EXPECT_TRUE(eventually([&] { return neighbor("10.9.0.77") != nullptr && neighbor("10.9.0.77")->failed; }));
    });
}

TEST_F(NetlinkMirrorTest, ResyncFindsNothingNew) {
    in_namespace([&] {
        int changes = 0;
        mirror_->set_listener([&](const MirrorChange&) { ++changes; });
        mirror_->process();
        changes = 0;
        ASSERT_TRUE(mirror_->resync());
        ASSERT_TRUE(mirror_->resync());
        // IPv6 duplicate detection may finish meanwhile; a second dump without events in between adds nothing.
        EXPECT_LE(changes, 4);
    });
}

}  // namespace
}  // namespace culvert::control
