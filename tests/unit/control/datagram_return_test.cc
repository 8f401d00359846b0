// Datagrams given back to the kernel, on loopback: they arrive with their senders, and nobody else's port can be reached.
#include "daemon/control/datagram_return.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <string>

namespace culvert::control {
namespace {

using tenant::UnreadDatagram;

class DatagramReturnTest : public testing::TestWithParam<bool> {
protected:
    void SetUp() override {
        const UniqueFd raw(::socket(AF_INET, SOCK_RAW, IPPROTO_RAW));
        if (!raw) GTEST_SKIP() << "raw sockets need CAP_NET_RAW";
        half = bound(0);
        ASSERT_GE(half.get(), 0);
    }
    bool v4() const { return GetParam(); }
    Address loopback() const {
        in6_addr one = IN6ADDR_LOOPBACK_INIT;
        return v4() ? Address::v4(127, 0, 0, 1) : Address::from_v6(std::as_bytes(std::span(one.s6_addr)).first<16>());
    }
    /// SO_REUSEADDR, so that others may have the port, too. -1 in the descriptor: not to be had.
    UniqueFd bound(std::uint16_t wanted) {
        UniqueFd fd(::socket(v4() ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK, 0));
        const int on = 1;
        ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        sockaddr_storage name{};
        socklen_t length = v4() ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
        if (v4()) {
            auto& in = reinterpret_cast<sockaddr_in&>(name);
            in = {.sin_family = AF_INET, .sin_port = htons(wanted), .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_zero = {}};
        } else {
            auto& in6 = reinterpret_cast<sockaddr_in6&>(name);
            in6.sin6_family = AF_INET6;
            in6.sin6_port = htons(wanted);
            in6.sin6_addr = IN6ADDR_LOOPBACK_INIT;
        }
        if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&name), length) != 0) return UniqueFd();
        ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&name), &length);
        port = ntohs(reinterpret_cast<sockaddr_in&>(name).sin_port);
        return fd;
    }
    UnreadDatagram from(std::uint16_t sender, const std::string& text) const {
        UnreadDatagram datagram{.remote = {loopback(), sender}, .local = {loopback(), port}, .payload = {}};
        datagram.payload.resize(text.size());
        if (!text.empty()) std::memcpy(datagram.payload.data(), text.data(), text.size());
        return datagram;
    }
    /// "sender:text", or "none".
    std::string next() const {
        char text[2000];
        sockaddr_storage name{};
        socklen_t length = sizeof name;
        const ssize_t got = ::recvfrom(half.get(), text, sizeof text, 0, reinterpret_cast<sockaddr*>(&name), &length);
        if (got < 0) return "none";
        return std::to_string(ntohs(reinterpret_cast<sockaddr_in&>(name).sin_port)) + ":" + std::string(text, static_cast<std::size_t>(got));
    }

    UniqueFd half;
    std::uint16_t port = 0;
    DatagramReturn returned;
};

INSTANTIATE_TEST_SUITE_P(Families, DatagramReturnTest, testing::Bool(), [](const auto& each) { return each.param ? "IPv4" : "IPv6"; });

TEST_P(DatagramReturnTest, TheyArriveInOrderWithTheirSenders) {
    std::vector<UnreadDatagram> all{from(53, "first"), from(4000, ""), from(53, "odd"), from(7, "aaabbbc")};
    all.back().segment_size = 3;
    EXPECT_EQ(returned.give(all, half.get()), 6u);
    for (const char* expected : {"53:first", "4000:", "53:odd", "7:aaa", "7:bbb", "7:c", "none"}) EXPECT_EQ(next(), expected);
    EXPECT_EQ(returned.statistics().given, 6u);
}

TEST_P(DatagramReturnTest, OnlyToThePortAndAddressThatTheSocketHolds) {
    UnreadDatagram other_port = from(53, "x");
    ++other_port.local.port;
    UnreadDatagram other_address = from(53, "x");
    other_address.local.address = v4() ? Address::v4(127, 0, 0, 2) : Address::v4(127, 0, 0, 1);
    UnreadDatagram nobody = from(0, "x");
    UnreadDatagram group = from(53, "x");
    group.remote.address = Address::v4(224, 0, 0, 1);
    const UnreadDatagram all[] = {other_port, other_address, nobody, group};
    EXPECT_EQ(returned.give(all, half.get()), 0u);
    EXPECT_EQ(returned.statistics().refused, 4u);
    const UnreadDatagram good[] = {from(53, "x")};
    const UniqueFd stream(::socket(AF_INET, SOCK_STREAM, 0));
    const UniqueFd unbound(::socket(AF_INET, SOCK_DGRAM, 0));
    for (const int fd : {stream.get(), unbound.get(), -1}) EXPECT_EQ(returned.give(good, fd), 0u);
    EXPECT_EQ(next(), "none");
}

TEST_P(DatagramReturnTest, NotWhereAnotherUserHasASocketOnThePort) {
    const UnreadDatagram one[] = {from(53, "x")};
    ASSERT_EQ(::seteuid(65534), 0);
    const UniqueFd foreign = bound(port);
    ASSERT_EQ(::seteuid(0), 0);
    ASSERT_GE(foreign.get(), 0);
    EXPECT_EQ(returned.give(one, half.get()), 0u);
    EXPECT_EQ(returned.give(one, foreign.get()), 0u);
    EXPECT_EQ(returned.statistics().refused, 2u);
    EXPECT_EQ(next(), "none");
}

// A program may write any address into its segment, and bind to one that is not ours: nothing leaves the host in a stranger's name.
TEST_P(DatagramReturnTest, OnlyToAddressesOfThisHost) {
    const Address elsewhere = *Address::parse(v4() ? "192.0.2.1" : "2001:db8::1");
    UniqueFd anywhere(::socket(v4() ? AF_INET : AF_INET6, SOCK_DGRAM, 0));
    sockaddr_in6 name{};
    name.sin6_family = v4() ? AF_INET : AF_INET6;
    socklen_t length = v4() ? sizeof(sockaddr_in) : sizeof name;
    ASSERT_EQ(::bind(anywhere.get(), reinterpret_cast<sockaddr*>(&name), length), 0);
    ASSERT_EQ(::getsockname(anywhere.get(), reinterpret_cast<sockaddr*>(&name), &length), 0);
    UniqueFd foreign(::socket(v4() ? AF_INET : AF_INET6, SOCK_DGRAM, 0));
    const int on = 1;
    ASSERT_EQ(::setsockopt(foreign.get(), v4() ? SOL_IP : SOL_IPV6, v4() ? IP_FREEBIND : IPV6_FREEBIND, &on, sizeof on), 0);
    sockaddr_in6 far{};
    far.sin6_family = name.sin6_family;
    if (v4()) {
        reinterpret_cast<sockaddr_in&>(far).sin_addr.s_addr = inet_addr("192.0.2.1");
    } else {
        ASSERT_EQ(::inet_pton(AF_INET6, "2001:db8::1", &far.sin6_addr), 1);
    }
    ASSERT_EQ(::bind(foreign.get(), reinterpret_cast<sockaddr*>(&far), length), 0);
    ASSERT_EQ(::getsockname(foreign.get(), reinterpret_cast<sockaddr*>(&far), &length), 0);
    UnreadDatagram to_anywhere = from(53, "x");
    to_anywhere.local = {elsewhere, ntohs(name.sin6_port)};
    UnreadDatagram to_foreign = from(53, "x");
    to_foreign.local = {elsewhere, ntohs(far.sin6_port)};
    EXPECT_EQ(returned.give({&to_anywhere, 1}, anywhere.get()), 0u);
    EXPECT_EQ(returned.give({&to_foreign, 1}, foreign.get()), 0u);
    EXPECT_EQ(returned.statistics().refused, 2u);
    EXPECT_EQ(returned.statistics().lost, 0u);
}

TEST_P(DatagramReturnTest, AConnectedSocketHearsItsPeerOnly) {
    sockaddr_storage name{};
    socklen_t length = sizeof name;
    const UniqueFd peer = std::move(half);
    const std::uint16_t peer_port = port;
    half = bound(0);
    ::getsockname(peer.get(), reinterpret_cast<sockaddr*>(&name), &length);
    ASSERT_EQ(::connect(half.get(), reinterpret_cast<sockaddr*>(&name), length), 0);
    const UnreadDatagram all[] = {from(53, "stranger"), from(peer_port, "peer")};
    EXPECT_EQ(returned.give(all, half.get()), 1u);
    EXPECT_EQ(next(), std::to_string(peer_port) + ":peer");
}

}  // namespace
}  // namespace culvert::control
