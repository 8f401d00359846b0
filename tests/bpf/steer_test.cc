// The verdict table of the steering program, through BPF_PROG_TEST_RUN: the real program in the real kernel, one packet
// at a time. Every case names the counter that must count it, so that a packet cannot go the right way for a wrong
// reason.
#include <bpf/bpf.h>
#include <gtest/gtest.h>
#include <linux/bpf.h>
#include <linux/if_xdp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "bpf/steer_shared.h"
#include "daemon/device/af_xdp/program.h"
#include "tests/bpf/steer_fixture.h"

namespace culvert::bpf_test {
namespace {

Bytes tcp4(unsigned port, const Address& to = kOurs4) {
    return ethernet(kIp4, ipv4(kPeer4, to, kTcp, l4(40000, port)));
}
Bytes udp4(unsigned port, const Address& to = kOurs4) {
    return ethernet(kIp4, ipv4(kPeer4, to, kUdp, l4(40000, port, 8)));
}
Bytes tcp6(unsigned port, const Address& to = kOurs6) {
    return ethernet(kIp6, ipv6(kPeer6, to, kTcp, l4(40000, port)));
}
Bytes udp6(unsigned port, const Address& to = kOurs6) {
    return ethernet(kIp6, ipv6(kPeer6, to, kUdp, l4(40000, port, 8)));
}

TEST_F(Steer, TakenPortsComeToUs) {
    EXPECT_EQ(judge(tcp4(80)), "redirected");
    EXPECT_EQ(judge(udp4(53)), "redirected");
    EXPECT_EQ(judge(tcp6(80)), "redirected");
    EXPECT_EQ(judge(udp6(53)), "redirected");
}

TEST_F(Steer, OtherPortsStayWithTheKernel) {
    for (const unsigned port : {0u, 22u, 79u, 81u, 80u + 64u, 65535u}) {
        EXPECT_EQ(judge(tcp4(port)), "passed_port") << port;
        EXPECT_EQ(judge(tcp6(port)), "passed_port") << port;
    }
    EXPECT_EQ(judge(udp4(80)), "passed_port") << "TCP 80 is taken, UDP 80 is not";
    EXPECT_EQ(judge(tcp4(53)), "passed_port");
}

TEST_F(Steer, OtherAddressesStayWithTheKernel) {
    EXPECT_EQ(judge(tcp4(80, Address::v4(10, 0, 0, 2))), "passed_address");
    EXPECT_EQ(judge(udp4(53, Address::v4(255, 255, 255, 255))), "passed_address");
    EXPECT_EQ(judge(tcp6(80, v6(2))), "passed_address");
}

TEST_F(Steer, EveryPortHasItsOwnBit) {
    for (const unsigned port : {0u, 1u, 63u, 64u, 1023u, 32768u, 65534u, 65535u}) {
        const auto number = static_cast<Port>(port);
        EXPECT_EQ(judge(udp4(port)), "passed_port") << port;
        program_->take_port(kOurs4, Protocol::kUdp, number);
        EXPECT_EQ(judge(udp4(port)), "redirected") << port;
        EXPECT_EQ(judge(udp4(port ^ 1)), "passed_port") << port;
        EXPECT_EQ(judge(udp6(port)), "passed_port") << "only of the IPv4 address";
        program_->release_port(kOurs4, Protocol::kUdp, number);
        EXPECT_EQ(judge(udp4(port)), "passed_port") << port;
    }
}

TEST_F(Steer, OtherProtocolsStayWithTheKernel) {
    EXPECT_EQ(judge(ethernet(0x0806, Bytes().zeros(28))), "passed_ethertype");  // ARP
    EXPECT_EQ(judge(ethernet(0x8100, Bytes().u16(1).u16(kIp4).add(ipv4(kPeer4, kOurs4, kTcp, l4(1, 80))))),
              "passed_vlan");
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, 132, l4(40000, 80)))), "passed_protocol");  // SCTP
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, kIcmp, icmp(8, Bytes().zeros(56))))),
              "passed_protocol");  // ping
    EXPECT_EQ(judge(ethernet(kIp6, ipv6(kPeer6, kOurs6, kIcmpv6, icmp(135, Bytes().zeros(24))))),
              "passed_protocol");  // ND
    // Each family's ICMP belongs to that family alone.
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, kIcmpv6, icmp(1, ipv4(kOurs4, kPeer4, kTcp, l4(80, 40000)))))),
              "passed_protocol");
    EXPECT_EQ(judge(ethernet(kIp6, ipv6(kPeer6, kOurs6, kIcmp, icmp(3, ipv6(kOurs6, kPeer6, kTcp, l4(80, 40000)))))),
              "passed_protocol");
}

TEST_F(Steer, OnlyTheFramesOfTheOneVlanAreLookedAt) {
    const auto tagged = [](unsigned tag, unsigned control, unsigned type, const Bytes& payload) {
        return ethernet(tag, Bytes().u16(control).u16(type).add(payload));
    };
    const Bytes packet4 = ipv4(kPeer4, kOurs4, kTcp, l4(40000, 80));
    const Bytes packet6 = ipv6(kPeer6, kOurs6, kUdp, l4(40000, 53, 8));
    constexpr unsigned kCustomer = 0x8100, kService = 0x88a8;
    for (const bool service : {false, true}) {
        program_->set_vlan(100, service);
        const unsigned ours = service ? kService : kCustomer;
        const unsigned other = service ? kCustomer : kService;
        EXPECT_EQ(judge(tagged(ours, 100, kIp4, packet4)), "redirected");
        EXPECT_EQ(judge(tagged(ours, 100, kIp6, packet6)), "redirected");
        EXPECT_EQ(judge(tagged(ours, 0xf064, kIp4, packet4)), "redirected") << "whatever its priority";
        EXPECT_EQ(judge(tagged(ours, 100, kIp4, ipv4(kPeer4, kPeer4, kTcp, l4(40000, 80)))), "passed_address");
        EXPECT_EQ(judge(tagged(ours, 100, ours, Bytes().u16(100).u16(kIp4).add(packet4))), "passed_ethertype") << "two tags";
        EXPECT_EQ(judge(tagged(other, 100, kIp4, packet4)), "passed_vlan");
        EXPECT_EQ(judge(tagged(ours, 101, kIp4, packet4)), "passed_vlan");
        EXPECT_EQ(judge(tagged(ours, 0xe000, kIp4, packet4)), "passed_vlan") << "a priority is no VLAN";
        EXPECT_EQ(judge(tcp4(80)), "passed_vlan") << "untagged";
        const Bytes whole = tagged(ours, 100, kIp4, packet4);
        for (std::size_t size = 14; size < 18 + 20 + 4; ++size)
            EXPECT_EQ(judge(whole.first(size)), "passed_malformed") << size;
    }
}

TEST_F(Steer, Ipv4OptionsAreSteppedOver) {
    for (const std::size_t options : {4u, 20u, 40u})
        EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, kTcp, l4(40000, 80), 0, options))), "redirected")
            << options;
}

TEST_F(Steer, ImpossibleHeadersStayWithTheKernel) {
    EXPECT_EQ(judge(ethernet(kIp4, Bytes().u8(0x44).zeros(39))), "passed_malformed");  // header length 16
    EXPECT_EQ(judge(ethernet(kIp4, Bytes().u8(0x65).zeros(39))), "passed_malformed");  // version 6 in an IPv4 frame
    EXPECT_EQ(judge(ethernet(kIp6, Bytes().u8(0x45).zeros(59))), "passed_malformed");
    // [RFC4291 2.5.5.2] A mapped address in an IPv6 header would cross the families.
    Bytes mapped;
    mapped.u32(0x60000000)
        .u16(20)
        .u8(kTcp)
        .u8(64)
        .address(kPeer6)
        .zeros(10)
        .u16(0xffff)
        .address(kOurs4)
        .add(l4(40000, 80));
    EXPECT_EQ(judge(ethernet(kIp6, mapped)), "passed_malformed");
}

TEST_F(Steer, TruncatedAtEveryLength) {
    struct Case {
        const char* name;
        Bytes packet;
        std::size_t needed;  // Ethernet to the ports
    };
    const Bytes quoted4 = ipv4(kOurs4, kPeer4, kTcp, l4(80, 40000, 8));
    const Bytes quoted6 = ipv6(kOurs6, kPeer6, kUdp, l4(53, 40000, 8));
    const Case cases[] = {
        {"tcp4", tcp4(80), 14 + 20 + 4},
        {"tcp4 options", ethernet(kIp4, ipv4(kPeer4, kOurs4, kTcp, l4(1, 80), 0, 12)), 14 + 32 + 4},
        {"udp6", udp6(53), 14 + 40 + 4},
        {"udp6 extensions", ethernet(kIp6, ipv6(kPeer6, kOurs6, 0, extension(60, 0, extension(kUdp, 1, l4(1, 53, 8))))),
         14 + 40 + 8 + 16 + 4},
        {"icmp4 error", ethernet(kIp4, ipv4(kPeer4, kOurs4, kIcmp, icmp(3, quoted4))), 14 + 20 + 8 + 20 + 4},
        {"icmp6 error", ethernet(kIp6, ipv6(kPeer6, kOurs6, kIcmpv6, icmp(1, quoted6))), 14 + 40 + 8 + 40 + 4},
    };
    for (const Case& test : cases) {
        // The kernel itself refuses frames shorter than an Ethernet header.
        for (std::size_t size = 14; size <= test.packet.size(); ++size)
            EXPECT_EQ(judge(test.packet.first(size)), size < test.needed ? "passed_malformed" : "redirected")
                << test.name << " cut to " << size;
    }
}

TEST_F(Steer, DatagramsThatWereJoinedStayWithTheKernel) {
    const auto udp4 = [](std::size_t size) { return ethernet(kIp4, ipv4(kPeer4, kOurs4, kUdp, l4(40000, 53, size))); };
    const auto udp6 = [](std::size_t size) { return ethernet(kIp6, ipv6(kPeer6, kOurs6, kUdp, l4(40000, 53, size))); };
    EXPECT_EQ(judge(udp4(3000)), "redirected") << "no limit is set";
    program_->limit_datagrams(1500);
    EXPECT_EQ(judge(udp4(1480)), "redirected");
    EXPECT_EQ(judge(udp4(1481)), "passed_merged");
    EXPECT_EQ(judge(udp6(1460)), "redirected");
    EXPECT_EQ(judge(udp6(1461)), "passed_merged");
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, kTcp, l4(40000, 80, 3000)))), "redirected") << "segments may be joined";
    program_->limit_datagrams(9000);
    EXPECT_EQ(judge(udp4(1481)), "redirected");
}

TEST_F(Steer, UdpFragmentsStayWithTheKernel) {
    const Bytes datagram = l4(40000, 53, 8);
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, kUdp, datagram, kMoreFragments))), "passed_fragment");
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, kUdp, datagram, kMoreFragments | 1))), "passed_fragment");
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, kUdp, datagram, 185))), "passed_fragment");
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, kUdp, datagram, 0x4000))), "redirected") << "DF is no fragment";
    EXPECT_EQ(judge(ethernet(kIp6, ipv6(kPeer6, kOurs6, kFragment, fragment6(kUdp, 1, datagram)))), "passed_fragment");
    EXPECT_EQ(judge(ethernet(kIp6, ipv6(kPeer6, kOurs6, kFragment, fragment6(kUdp, 8, datagram)))), "passed_fragment");
    // [RFC6946 4] An atomic fragment is a whole packet.
    EXPECT_EQ(judge(ethernet(kIp6, ipv6(kPeer6, kOurs6, kFragment, fragment6(kUdp, 0, datagram)))), "redirected");
}

TEST_F(Steer, TcpFragmentsComeOnlyWithTheirPorts) {
    const Bytes segment = l4(40000, 80);
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, kTcp, segment, kMoreFragments))), "redirected");
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, kTcp, segment, 100))), "passed_fragment");
    EXPECT_EQ(judge(ethernet(kIp6, ipv6(kPeer6, kOurs6, kFragment, fragment6(kTcp, 1, segment)))), "redirected");
    EXPECT_EQ(judge(ethernet(kIp6, ipv6(kPeer6, kOurs6, kFragment, fragment6(kTcp, 0xfff8, segment)))),
              "passed_fragment");
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, kTcp, l4(40000, 81), kMoreFragments))), "passed_port");
}

TEST_F(Steer, Ipv6ExtensionHeadersAreSteppedOverUpToABound) {
    Bytes inner = l4(40000, 80);
    unsigned next = kTcp;
    for (int headers = 1; headers <= STEER_MAX_EXTENSION_HEADERS + 1; ++headers) {
        inner = extension(next, static_cast<unsigned>(headers % 3), inner);
        next = 60;
        EXPECT_EQ(judge(ethernet(kIp6, ipv6(kPeer6, kOurs6, 60, inner))),
                  headers <= STEER_MAX_EXTENSION_HEADERS ? "redirected" : "passed_protocol")
            << headers;
    }
    EXPECT_EQ(judge(ethernet(kIp6, ipv6(kPeer6, kOurs6, 0, extension(kTcp, 255, l4(40000, 80))))), "redirected")
        << "2048 bytes of options";
    EXPECT_EQ(judge(ethernet(kIp6, ipv6(kPeer6, kOurs6, 43, extension(kTcp, 0, l4(40000, 80))))), "passed_protocol")
        << "routing header";
}

TEST_F(Steer, IcmpErrorsAreJudgedByTheQuotedSource) {
    const auto error4 = [](unsigned type, const Bytes& quoted) {
        return ethernet(kIp4, ipv4(Address::v4(10, 9, 9, 9), kOurs4, kIcmp, icmp(type, quoted)));
    };
    const auto error6 = [](unsigned type, const Bytes& quoted) {
        return ethernet(kIp6, ipv6(v6(77), kOurs6, kIcmpv6, icmp(type, quoted)));
    };
    const Bytes ours4 = ipv4(kOurs4, kPeer4, kTcp, l4(80, 40000, 8));
    const Bytes ours6 = ipv6(kOurs6, kPeer6, kTcp, l4(80, 40000, 8));
    for (const unsigned type : {3u, 11u, 12u}) EXPECT_EQ(judge(error4(type, ours4)), "redirected") << type;
    for (const unsigned type : {1u, 2u, 3u, 4u}) EXPECT_EQ(judge(error6(type, ours6)), "redirected") << type;
    for (const unsigned type : {0u, 5u, 8u, 13u}) EXPECT_EQ(judge(error4(type, ours4)), "passed_protocol") << type;
    for (const unsigned type : {0u, 5u, 128u, 134u, 137u})
        EXPECT_EQ(judge(error6(type, ours6)), "passed_protocol") << type;

    EXPECT_EQ(judge(error4(3, ipv4(kOurs4, kPeer4, kUdp, l4(53, 40000, 8)))), "redirected");
    EXPECT_EQ(judge(error4(3, ipv4(kOurs4, kPeer4, kUdp, l4(54, 40000, 8)))), "passed_port")
        << "a kernel socket's packet";
    EXPECT_EQ(judge(error4(3, ipv4(kOurs4, kPeer4, kUdp, l4(40000, 53, 8)))), "passed_port")
        << "the quoted destination port is the peer's";
    EXPECT_EQ(judge(error4(3, ipv4(kPeer4, kOurs4, kTcp, l4(80, 80, 8)))), "passed_address") << "we never sent that";
    EXPECT_EQ(judge(error4(3, ipv4(kOurs4, kPeer4, kTcp, l4(80, 40000, 8), 100))), "passed_fragment");
    EXPECT_EQ(judge(error4(3, ipv4(kOurs4, kPeer4, kUdp, l4(53, 40000, 8), kMoreFragments))), "redirected")
        << "quotes a first fragment of ours";
    EXPECT_EQ(judge(error4(3, ipv4(kOurs4, kPeer4, kIcmp, icmp(8, Bytes())))), "passed_protocol") << "answer to a ping";
    EXPECT_EQ(judge(error4(3, Bytes().u8(0x45).zeros(10))), "passed_malformed");
    // The error itself comes in fragments: its quotation cannot be trusted to be whole.
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, kIcmp, icmp(3, ours4), kMoreFragments))), "passed_fragment");
    // Sent to another address than ours, quoting ours.
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, Address::v4(10, 0, 0, 2), kIcmp, icmp(3, ours4)))), "passed_address");
}

TEST_F(Steer, FlowsOfTheKernelStayWithTheKernel) {
    const Endpoint local4{kOurs4, 80};
    const Endpoint remote4{kPeer4, 40000};
    ASSERT_TRUE(program_->add_kernel_flow(local4, remote4, Protocol::kTcp));
    ASSERT_TRUE(program_->add_kernel_flow(local4, remote4, Protocol::kTcp)) << "again: no harm";
    EXPECT_EQ(program_->kernel_flow_count(), 1u);
    EXPECT_EQ(judge(tcp4(80)), "passed_kernel_flow");
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, kTcp, l4(40001, 80)))), "redirected") << "another client port";
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(Address::v4(10, 0, 0, 8), kOurs4, kTcp, l4(40000, 80)))), "redirected")
        << "another client";
    EXPECT_EQ(judge(tcp6(80)), "redirected");
    EXPECT_EQ(judge(ethernet(kIp4, ipv4(kPeer4, kOurs4, kIcmp, icmp(3, ipv4(kOurs4, kPeer4, kTcp, l4(80, 40000, 8)))))),
              "passed_kernel_flow")
        << "its errors too";
    ASSERT_TRUE(program_->remove_kernel_flow(local4, remote4, Protocol::kTcp));
    ASSERT_TRUE(program_->remove_kernel_flow(local4, remote4, Protocol::kTcp)) << "again: no harm";
    EXPECT_EQ(program_->kernel_flow_count(), 0u);
    EXPECT_EQ(judge(tcp4(80)), "redirected");

    ASSERT_TRUE(program_->add_kernel_flow({kOurs6, 53}, {kPeer6, 40000}, Protocol::kUdp));
    EXPECT_EQ(judge(udp6(53)), "passed_kernel_flow");
}

/// A TCP segment with these flags.
Bytes segment(unsigned from, unsigned to, unsigned flags) { return Bytes().u16(from).u16(to).zeros(8).u8(0x50).u8(flags).zeros(6); }
constexpr unsigned kSyn = 2, kRst = 4, kAck = 16;

/// A connection of the kernel's on loopback, as its server sees it.
struct KernelConnection {
    explicit KernelConnection(int family) {
        sockaddr_storage name{};
        name.ss_family = static_cast<sa_family_t>(family);
        if (family == AF_INET)
            reinterpret_cast<sockaddr_in&>(name).sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        else
            reinterpret_cast<sockaddr_in6&>(name).sin6_addr = in6addr_loopback;
        const socklen_t size = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
        socklen_t length = size;
        listener.reset(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
        client.reset(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
        auto* const address = reinterpret_cast<sockaddr*>(&name);
        EXPECT_EQ(::bind(listener.get(), address, size), 0);
        EXPECT_EQ(::listen(listener.get(), 1), 0);
        EXPECT_EQ(::getsockname(listener.get(), address, &length), 0);
        local_port = ntohs(reinterpret_cast<sockaddr_in&>(name).sin_port);
        EXPECT_EQ(::connect(client.get(), address, size), 0);
        EXPECT_EQ(::getsockname(client.get(), address, &length), 0);
        remote_port = ntohs(reinterpret_cast<sockaddr_in&>(name).sin_port);
        server.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    }
    UniqueFd listener, client, server;
    Port local_port = 0, remote_port = 0;
};

TEST_F(Steer, AFlowOfTheKernelsThatIsOverBeginsAnewWithUs) {
    const Address loopback6 = Address::from_v6(std::as_bytes(std::span(in6addr_loopback.s6_addr)));
    for (const auto& [family, address] : {std::pair{AF_INET, Address::v4(127, 0, 0, 1)}, std::pair{AF_INET6, loopback6}}) {
        KernelConnection kernel(family);
        const Endpoint local{address, kernel.local_port}, remote{address, kernel.remote_port};
        const auto packet = [&](unsigned flags) {
            const Bytes tcp = segment(remote.port, local.port, flags);
            return address.is_v4() ? ethernet(kIp4, ipv4(address, address, kTcp, tcp)) : ethernet(kIp6, ipv6(address, address, kTcp, tcp));
        };
        ASSERT_TRUE(program_->set_address(address, true));
        ASSERT_TRUE(program_->take_port(address, Protocol::kTcp, local.port));
        ASSERT_TRUE(program_->add_kernel_flow(local, remote, Protocol::kTcp));
        EXPECT_EQ(judge(packet(kSyn)), "passed_kernel_flow") << "it answers with a challenge ACK";
        EXPECT_EQ(judge(packet(kAck)), "passed_kernel_flow");
        kernel.server.reset();
        char byte = 0;
        EXPECT_EQ(::read(kernel.client.get(), &byte, 1), 0);
        EXPECT_EQ(judge(packet(kSyn)), "passed_kernel_flow") << "half closed";
        kernel.client.reset();  // the server's end is in TIME-WAIT now
        for (const unsigned flags : {kAck, kSyn | kAck, kSyn | kRst, 0u})
            EXPECT_EQ(judge(packet(flags)), "passed_kernel_flow") << "what comes late is the kernel's, flags " << flags;
        EXPECT_EQ(judge(packet(kSyn).first(14 + (address.is_v4() ? 20 : 40) + 13)), "passed_kernel_flow") << "cut short";
        EXPECT_EQ(judge(packet(kSyn)), "redirected") << "somebody new";
        EXPECT_EQ(program_->kernel_flow_count(), 0u);
        EXPECT_EQ(judge(packet(kAck)), "redirected") << "and what follows is ours as well";
        ASSERT_TRUE(program_->remove_kernel_flow(local, remote, Protocol::kTcp));
        EXPECT_EQ(program_->kernel_flow_count(), 0u);

        const Endpoint nobody{address, 1};  // the kernel finds its listener
        ASSERT_TRUE(program_->add_kernel_flow(local, nobody, Protocol::kTcp));
        const Bytes tcp = segment(1, local.port, kSyn);
        EXPECT_EQ(judge(address.is_v4() ? ethernet(kIp4, ipv4(address, address, kTcp, tcp)) : ethernet(kIp6, ipv6(address, address, kTcp, tcp))),
                  "redirected");
    }
}

TEST_F(Steer, DisabledPassesEverything) {
    program_->enable(false);
    EXPECT_EQ(judge(tcp4(80)), "passed_disabled");
    EXPECT_EQ(judge(udp6(53)), "passed_disabled");
    program_->enable(true);
    EXPECT_EQ(judge(tcp4(80)), "redirected");
}

TEST_F(Steer, WithoutASocketTheKernelTakesOver) {
    program_->remove_socket(0);
    EXPECT_EQ(judge(tcp4(80)), "passed_no_socket");
    ASSERT_TRUE(program_->add_socket(0, xsk_.get()));
    EXPECT_EQ(judge(tcp4(80)), "redirected");
    xsk_.reset();  // what happens when the daemon is killed
    EXPECT_EQ(judge(tcp4(80)), "passed_no_socket");
}

// The daemon drops its privileges after it has attached. What it does later must need none.
TEST_F(Steer, NeedsNoPrivilegeOnceLoaded) {
    const pid_t child = ::fork();
    if (child == 0) {
        const bool dropped = ::setresgid(65534, 65534, 65534) == 0 && ::setresuid(65534, 65534, 65534) == 0;
        const Address address = Address::v4(10, 0, 0, 7);
        const bool done = program_->set_address(address, true) && program_->take_port(address, Protocol::kTcp, 80) &&
                          program_->add_kernel_flow({address, 80}, {kPeer4, 1}, Protocol::kTcp) &&
                          program_->add_socket(1, xsk_.get()) && program_->set_address(kOurs6, false) &&
                          program_->counters().at(0).value == 0;
        ::_exit(dropped && done ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    EXPECT_EQ(judge(tcp4(80, Address::v4(10, 0, 0, 7))), "redirected") << "the maps are shared with the child";
    EXPECT_EQ(judge(tcp6(80)), "passed_address");
}

TEST_F(Steer, PortsAreCounted) {
    EXPECT_TRUE(program_->take_port(kOurs4, Protocol::kTcp, 80));  // the second time
    program_->release_port(kOurs4, Protocol::kTcp, 80);
    EXPECT_TRUE(program_->owns_port(kOurs4, Protocol::kTcp, 80));
    EXPECT_EQ(judge(tcp4(80)), "redirected");
    program_->release_port(kOurs4, Protocol::kTcp, 80);
    EXPECT_FALSE(program_->owns_port(kOurs4, Protocol::kTcp, 80));
    EXPECT_EQ(judge(tcp4(80)), "passed_port");
    program_->release_port(kOurs4, Protocol::kTcp, 80);  // once too often: no harm
    EXPECT_TRUE(program_->take_port(kOurs4, Protocol::kTcp, 80));
    EXPECT_EQ(judge(tcp4(80)), "redirected");
}

TEST_F(Steer, AddressesComeAndGoWithTheirPorts) {
    ASSERT_TRUE(program_->set_address(kOurs4, false));
    EXPECT_FALSE(program_->owns_port(kOurs4, Protocol::kTcp, 80));
    EXPECT_EQ(judge(tcp4(80)), "passed_address");
    EXPECT_EQ(judge(tcp6(80)), "redirected");
    EXPECT_FALSE(program_->take_port(kOurs4, Protocol::kTcp, 443)) << "not yet";
    program_->release_port(kOurs4, Protocol::kUdp, 53);
    ASSERT_TRUE(program_->set_address(Address::v4(10, 0, 0, 3), true));  // takes the free slot: must find it clean
    EXPECT_EQ(judge(tcp4(80, Address::v4(10, 0, 0, 3))), "passed_port");
    ASSERT_TRUE(program_->set_address(kOurs4, true));
    EXPECT_EQ(judge(tcp4(80)), "redirected");
    EXPECT_EQ(judge(tcp4(443)), "redirected");
    EXPECT_EQ(judge(udp4(53)), "passed_port");
}

TEST_F(Steer, AddressesAreBounded) {
    for (unsigned i = 0; i < STEER_MAX_ADDRESSES - 2; ++i)
        ASSERT_TRUE(program_->set_address(Address::v4(10, 1, 0, static_cast<std::uint8_t>(i)), true)) << i;
    const auto one_more = program_->set_address(Address::v4(10, 2, 0, 1), true);
    ASSERT_FALSE(one_more);
    EXPECT_EQ(one_more.error().code, ENOSPC);
    EXPECT_TRUE(program_->take_port(Address::v4(10, 1, 0, 61), Protocol::kTcp, 65535)) << "the last slot's last bits";
    EXPECT_TRUE(program_->take_port(Address::v4(10, 1, 0, 61), Protocol::kUdp, 65535));
    EXPECT_EQ(judge(udp4(65535, Address::v4(10, 1, 0, 61))), "redirected");
    const Address one[] = {kOurs4};
    ASSERT_TRUE(program_->set_addresses(one));
    EXPECT_EQ(judge(tcp4(80)), "redirected");
    EXPECT_EQ(judge(tcp6(80)), "passed_address");
}

}  // namespace
}  // namespace culvert::bpf_test
