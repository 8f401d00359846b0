// Pairs of kernel sockets with somebody else's names.
#include "daemon/control/stand_in_maker.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

namespace culvert::control {
namespace {

std::string name_of(int fd, bool peer) {
    sockaddr_storage name{};
    socklen_t length = sizeof name;
    const int result = peer ? ::getpeername(fd, reinterpret_cast<sockaddr*>(&name), &length)
                            : ::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length);
    if (result != 0) return std::strerror(errno);
    char text[INET6_ADDRSTRLEN] = {};
    const bool v6 = name.ss_family == AF_INET6;
    const void* const address = v6 ? static_cast<const void*>(&reinterpret_cast<sockaddr_in6&>(name).sin6_addr)
                                   : static_cast<const void*>(&reinterpret_cast<sockaddr_in&>(name).sin_addr);
    ::inet_ntop(name.ss_family, address, text, sizeof text);
    return std::string(text) + " " + std::to_string(ntohs(reinterpret_cast<sockaddr_in&>(name).sin_port));
}

class StandInMakerTest : public testing::Test {
protected:
    void SetUp() override {
        auto started = StandInMaker::start();
        ASSERT_TRUE(started) << started.error().message();
        maker.emplace(std::move(*started));
        if (!maker->has_true_names()) GTEST_SKIP() << "neither CAP_SYS_ADMIN nor user namespaces";
    }
    std::optional<StandInMaker> maker;
};

TEST_F(StandInMakerTest, TellsTheTrueNames) {
    struct Case {
        const char* local;
        const char* remote;
        bool v6;
        const char* own_name;
        const char* peer_name;
    };
    const Case cases[] = {
        {"192.0.2.1", "198.51.100.7", false, "192.0.2.1 80", "198.51.100.7 40000"},
        {"192.0.2.1", "198.51.100.7", true, "::ffff:192.0.2.1 80", "::ffff:198.51.100.7 40000"},
        {"2001:db8::1", "2001:db8:ffff::2", true, "2001:db8::1 80", "2001:db8:ffff::2 40000"},
        {"fe80::1", "fe80::2", true, "fe80::1 80", "fe80::2 40000"},
        {"127.0.0.1", "127.0.0.1", false, "127.0.0.1 80", "127.0.0.1 40000"},
    };
    for (const Case& c : cases) {
        auto pair = maker->make({*Address::parse(c.local), 80}, {*Address::parse(c.remote), 40000}, c.v6);
        ASSERT_TRUE(pair) << c.local << ": " << pair.error().message();
        EXPECT_EQ(name_of(pair->theirs.get(), false), c.own_name);
        EXPECT_EQ(name_of(pair->theirs.get(), true), c.peer_name);
        ASSERT_EQ(::send(pair->theirs.get(), "hello", 5, 0), 5);
        char bytes[8];
        ASSERT_EQ(::recv(pair->ours.get(), bytes, sizeof bytes, 0), 5);
        EXPECT_EQ(::recv(pair->ours.get(), bytes, sizeof bytes, 0), -1);
        EXPECT_EQ(errno, EAGAIN) << "ours does not wait";
    }
}

TEST_F(StandInMakerTest, ManyPeersOfOneServerAndTheSameNamesAgain) {
    std::vector<StandInMaker::Pair> pairs;
    for (Port port = 40000; port < 40050; ++port) {
        auto pair = maker->make({*Address::parse("192.0.2.1"), 80}, {*Address::parse("198.51.100.7"), port}, false);
        ASSERT_TRUE(pair);
        EXPECT_EQ(name_of(pair->theirs.get(), true), "198.51.100.7 " + std::to_string(port));
        pairs.push_back(std::move(*pair));
    }
    // Ended in order from either side, the names are free at once: nobody waits in TIME-WAIT there.
    for (const bool ours_first : {true, false}) {
        for (StandInMaker::Pair& pair : pairs) {
            const linger off{0, 0};
            ::setsockopt(pair.ours.get(), SOL_SOCKET, SO_LINGER, &off, sizeof off);
            (ours_first ? pair.ours : pair.theirs).reset();
            (ours_first ? pair.theirs : pair.ours).reset();
        }
        pairs.clear();
        for (Port port = 40000; port < 40050; ++port) {
            auto pair = maker->make({*Address::parse("192.0.2.1"), 80}, {*Address::parse("198.51.100.7"), port}, false);
            ASSERT_TRUE(pair);
            EXPECT_EQ(name_of(pair->theirs.get(), true), "198.51.100.7 " + std::to_string(port));
            pairs.push_back(std::move(*pair));
        }
    }
}

TEST_F(StandInMakerTest, BothEndsOfOneConnectionAndConnectionsWithoutNamesWorkUnderOtherNames) {
    const Endpoint one{*Address::parse("192.0.2.1"), 80};
    const Endpoint other{*Address::parse("192.0.2.2"), 40000};
    auto first = maker->make(one, other, false);
    auto second = maker->make(other, one, false);
    auto nameless = maker->make({}, {}, true);
    ASSERT_TRUE(first && second && nameless);
    EXPECT_EQ(name_of(first->theirs.get(), true), "192.0.2.2 40000");
    EXPECT_EQ(name_of(second->theirs.get(), true).substr(0, 10), "127.0.0.1 ");
    EXPECT_EQ(name_of(nameless->theirs.get(), true).substr(0, 4), "::1 ");
}

TEST_F(StandInMakerTest, OurDeathIsAReset) {
    auto pair = maker->make({*Address::parse("192.0.2.1"), 80}, {*Address::parse("198.51.100.7"), 1}, false);
    ASSERT_TRUE(pair);
    pair->ours.reset();
    char byte;
    EXPECT_EQ(::recv(pair->theirs.get(), &byte, 1, 0), -1);
    EXPECT_EQ(errno, ECONNRESET);
}

/// A holder may disconnect his socket and connect it to whatever listens in the namespace: nothing does, but for a moment.
TEST_F(StandInMakerTest, AHolderReachesNobodyElse) {
    auto one = maker->make({*Address::parse("192.0.2.1"), 80}, {*Address::parse("198.51.100.7"), 1}, false);
    auto other = maker->make({*Address::parse("192.0.2.1"), 80}, {*Address::parse("198.51.100.7"), 2}, false);
    ASSERT_TRUE(one && other);
    sockaddr_in name{};
    name.sin_family = AF_UNSPEC;
    ASSERT_EQ(::connect(one->theirs.get(), reinterpret_cast<sockaddr*>(&name), sizeof name), 0);
    name.sin_family = AF_INET;
    name.sin_port = htons(80);
    ::inet_pton(AF_INET, "192.0.2.1", &name.sin_addr);
    EXPECT_EQ(::connect(one->theirs.get(), reinterpret_cast<sockaddr*>(&name), sizeof name), -1);
    ASSERT_EQ(::send(other->theirs.get(), "x", 1, 0), 1);
    char byte;
    EXPECT_EQ(::recv(other->ours.get(), &byte, 1, 0), 1);
}

}  // namespace
}  // namespace culvert::control
