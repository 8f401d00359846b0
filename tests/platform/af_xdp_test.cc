// The AF_XDP device on a real veth pair, the kernel's own UDP sockets at the other end.
#include "daemon/device/af_xdp/af_xdp_device.h"

#include <gtest/gtest.h>
#include <linux/if_ether.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <memory>

#include "tests/platform/frames.h"
#include "tests/platform/veth_pair.h"

namespace culvert::platform {
namespace {

using device::AfXdpDevice;
using device::InterfaceFacts;
using device::Protocol;
using device::SteeringProgram;
using device::XdpMode;

constexpr Port kTaken = 7000;
constexpr Port kKernel = 7001;
constexpr std::uint32_t kPoolSize = 8192;

struct Setting {
    unsigned mtu;
    XdpMode mode;
};

class AfXdp : public testing::TestWithParam<Setting> {
protected:
    void SetUp() override {
        if (::geteuid() != 0) GTEST_SKIP() << "needs root for network namespaces and XDP";
        veth = std::make_unique<VethPair>(GetParam().mtu);
        auto attached = SteeringProgram::attach(VethPair::kOurs, GetParam().mode);
        ASSERT_TRUE(attached) << attached.error().message();
        program = std::move(*attached);
        auto created = AfXdpDevice::create(pool, *program);
        ASSERT_TRUE(created) << created.error().message();
        device = std::move(*created);
        ASSERT_TRUE(program->set_address(veth->our_address, true));
        ASSERT_TRUE(program->take_port(veth->our_address, Protocol::kUdp, kTaken));
        veth->in_their_namespace([this] { their_facts = *device::interface_facts(VethPair::kTheirs); });
    }

    std::vector<Bytes> receive(std::size_t count) {
        std::vector<Bytes> frames;
        eventually(device->readiness_fd(), [&] {
            RxPacket burst[32];
            for (const RxPacket& packet : std::span(burst).first(device->receive(burst))) {
                EXPECT_EQ(bytes_of(packet).size(), packet.length);
                EXPECT_EQ(packet.checksum, ChecksumState::kMaybePartial) << "a veth is a virtual device";
                EXPECT_GE(packet.head.size(), std::min<std::size_t>(packet.length, 128)) << "headers lie in the head";
                frames.push_back(bytes_of(packet));
            }
            return frames.size() >= count;
        });
        return frames;
    }

    Bytes frame_to(Port port, std::span<const std::byte> payload) {
        return udp_frame(device->facts().mac, their_facts.mac, {veth->our_address, kTaken}, {veth->their_address, port},
                         payload);
    }

    std::uint64_t counter(const std::string& name) {
        for (const auto& statistic : program->counters())
            if (statistic.name == name) return statistic.value;
        return UINT64_MAX;
    }

    std::uint64_t statistic(const std::string& name) const {
        for (const auto& one : device->statistics())
            if (one.name == name) return one.value;
        return UINT64_MAX;
    }

    FramePool pool{kPoolSize};
    std::unique_ptr<VethPair> veth;
    std::unique_ptr<SteeringProgram> program;
    std::unique_ptr<AfXdpDevice> device;
    InterfaceFacts their_facts;
};

TEST_P(AfXdp, SaysHowItRuns) {
    EXPECT_EQ(program->mode(), GetParam().mode);
    const std::string mode = GetParam().mode == XdpMode::kNative ? "native" : "generic";
    EXPECT_EQ(program->describe(), mode + ", bpf_link");
    EXPECT_EQ(device->describe(), "af_xdp culv0 queue 0, " + mode + " copy mode");
    EXPECT_EQ(device->facts().mtu, GetParam().mtu);
    EXPECT_EQ(device->facts().driver, "veth");
    EXPECT_EQ(device->facts().queues, 1u);
    EXPECT_TRUE(device->facts().virtual_device);
}

TEST_P(AfXdp, TakesItsPortAndLeavesTheOthers) {
    const UniqueFd under = veth->our_udp_socket(kTaken);  // the kernel's socket below a Culvert socket
    const UniqueFd other = veth->our_udp_socket(kKernel);
    const UniqueFd client = veth->their_udp_socket(0);
    send_to(client, veth->our_address, kKernel, pattern(100, 1));
    EXPECT_EQ(receive_from(other, 5000), pattern(100, 1));
    EXPECT_FALSE(device->has_input());

    send_to(client, veth->our_address, kTaken, pattern(100, 2));
    const std::vector<Bytes> frames = receive(1);
    ASSERT_EQ(frames.size(), 1u);
    EXPECT_EQ(Bytes(frames[0].begin() + kEthernet + kIpv4 + kUdp, frames[0].end()), pattern(100, 2));

    program->release_port(veth->our_address, Protocol::kUdp, kTaken);
    send_to(client, veth->our_address, kTaken, pattern(100, 3));
    EXPECT_EQ(receive_from(under, 5000), pattern(100, 3)) << "and not the packet before";
    EXPECT_EQ(counter("redirected"), 1u);
    EXPECT_GE(counter("passed_port"), 2u);
}

TEST_P(AfXdp, ReceivesIpv6) {
    std::byte bytes[16] = {std::byte{0xfd}, std::byte{0x99}};
    bytes[15] = std::byte{1};
    const Address ours = Address::from_v6(bytes);
    ASSERT_TRUE(program->set_address(ours, true));
    ASSERT_TRUE(program->take_port(ours, Protocol::kUdp, kTaken));
    const UniqueFd client = veth->their_udp_socket(0);
    send_to(client, ours, kTaken, pattern(100, 2));
    const std::vector<Bytes> frames = receive(1);
    ASSERT_EQ(frames.size(), 1u);
    EXPECT_EQ(Bytes(frames[0].begin() + kEthernet + kIpv6 + kUdp, frames[0].end()), pattern(100, 2));
}

TEST_P(AfXdp, ReceivesManyOfEverySize) {
    const UniqueFd client = veth->their_udp_socket(0);
    const std::size_t largest = GetParam().mtu - kIpv4 - kUdp;
    std::size_t sent = 0;
    for (unsigned round = 0; round < 40; ++round) {  // several times around the rings
        std::vector<std::size_t> sizes;
        for (unsigned i = 0; i < 25; ++i) sizes.push_back(i == 24 ? largest : (round * 25 + i) * 7919 % largest);
        for (unsigned i = 0; i < sizes.size(); ++i) send_to(client, veth->our_address, kTaken, pattern(sizes[i], i));
        const std::vector<Bytes> frames = receive(sizes.size());
        ASSERT_EQ(frames.size(), sizes.size()) << "round " << round;
        for (unsigned i = 0; i < sizes.size(); ++i) {
            const auto payload = frames[i].begin() + kEthernet + kIpv4 + kUdp;
            ASSERT_EQ(Bytes(payload, payload + static_cast<std::ptrdiff_t>(sizes[i])), pattern(sizes[i], i))
                << "round " << round;
        }
        sent += sizes.size();
    }
    EXPECT_EQ(counter("redirected"), sent);
}

TEST_P(AfXdp, SendsManyOfEverySize) {
    const UniqueFd server = veth->their_udp_socket(kKernel);
    const std::size_t largest = GetParam().mtu - kIpv4 - kUdp;
    const std::uint32_t at_rest = pool.available();
    EXPECT_EQ(at_rest, kPoolSize - 2048) << "the receive side has its share";
    for (unsigned round = 0; round < 40; ++round) {
        std::vector<std::size_t> sizes;
        for (unsigned i = 0; i < 25; ++i) sizes.push_back(i == 24 ? largest : (round * 25 + i) * 7919 % largest);
        for (unsigned i = 0; i < sizes.size(); ++i)
            ASSERT_TRUE(queue(device->tx(), frame_to(kKernel, pattern(sizes[i], i))));
        ASSERT_TRUE(eventually(-1, [&] { return !device->flush(); }));
        for (unsigned i = 0; i < sizes.size(); ++i)
            ASSERT_EQ(receive_from(server, 5000), pattern(sizes[i], i)) << "round " << round;
    }
    EXPECT_TRUE(eventually(-1,
                           [&] {
                               device->flush();
                               return pool.available() == at_rest;
                           }))
        << pool.available() << " of " << at_rest << " chunks came back";
}

TEST_P(AfXdp, OneFlushSendsMoreThanTheRingHolds) {
    const UniqueFd server = veth->their_udp_socket(kKernel);
    const std::uint32_t at_rest = pool.available();
    constexpr unsigned kPackets = 5000;
    for (unsigned i = 0; i < kPackets; ++i) ASSERT_TRUE(queue(device->tx(), frame_to(kKernel, pattern(4, i))));
    unsigned received = 0;
    EXPECT_TRUE(eventually(-1,
                           [&] {
                               device->flush();
                               while (!receive_from(server, 0).empty()) ++received;
                               return received == kPackets && pool.available() == at_rest;
                           }))
        << received << " received, " << pool.available() << " of " << at_rest << " chunks came back";
}

TEST_P(AfXdp, OneWakeUpMovesManyPackets) {
    if (statistic("xsk_tx_budget") == 32) GTEST_SKIP() << "kernel without XDP_MAX_TX_SKB_BUDGET (Linux 6.17)";
    const UniqueFd server = veth->their_udp_socket(kKernel);
    for (unsigned i = 0; i < 500; ++i) ASSERT_TRUE(queue(device->tx(), frame_to(kKernel, pattern(4, i))));
    EXPECT_FALSE(device->flush());
    EXPECT_EQ(statistic("xsk_tx_wakeups"), 1u);
    EXPECT_EQ(statistic("xsk_tx_wakeups_again"), 0u);
    for (unsigned i = 0; i < 500; ++i) ASSERT_EQ(receive_from(server, 5000), pattern(4, i));
}

/// A TCP packet of `count` segments of `size` bytes: the device's to cut.
void queue_super_packet(TxQueue& tx, const Bytes& frame, std::uint16_t size) {
    TxPacket packet;
    ASSERT_TRUE(tx.reserve(static_cast<std::uint32_t>(frame.size()), packet));
    std::size_t at = 0;
    for (std::uint32_t i = 0; i < packet.count; at += packet.fragments[i++].size())
        std::memcpy(packet.fragments[i].data(), frame.data() + at, packet.fragments[i].size());
    packet.segment_size = size;
    packet.transport_offset = kEthernet + kIpv4;
    tx.commit(packet);
}

// What the peer gets are three right segments, in their place between what was sent before and behind them.
TEST_P(AfXdp, TheKernelCutsSuperPackets) {
    // Else it would leave both to the peer's kernel, which does neither.
    run({"ethtool", "-K", VethPair::kOurs, "tso", "off", "tx", "off"});
    ASSERT_GT(device->segmentation_limit(), 60'000u);
    UniqueFd heard;
    veth->in_their_namespace([&] { heard = UniqueFd(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_IP))); });
    ASSERT_TRUE(heard);
    const std::uint32_t at_rest = pool.available();
    constexpr std::uint16_t kSize = 1200;
    const Bytes text = pattern(2 * kSize + 700, 9);
    ASSERT_TRUE(queue(device->tx(), frame_to(kKernel, pattern(20, 1))));
    queue_super_packet(device->tx(),
                       tcp_frame(device->facts().mac, their_facts.mac, {veth->our_address, kTaken}, {veth->their_address, kKernel},
                                 5000, text),
                       kSize);
    ASSERT_TRUE(queue(device->tx(), frame_to(kKernel, pattern(20, 2))));
    EXPECT_FALSE(device->flush());
    EXPECT_EQ(pool.available(), at_rest);

    std::vector<Bytes> frames;
    while (frames.size() < 5) {
        frames.push_back(receive_from(heard, 5000));
        ASSERT_FALSE(frames.back().empty());
        if (frames.back()[kEthernet + 9] == std::byte{1}) frames.pop_back();  // the kernel's word about our datagrams
    }
    EXPECT_EQ(Bytes(frames[0].end() - 20, frames[0].end()), pattern(20, 1));
    EXPECT_EQ(Bytes(frames[4].end() - 20, frames[4].end()), pattern(20, 2));
    for (std::size_t i = 0; i < 3; ++i) {
        const std::size_t size = i < 2 ? kSize : 700;
        EXPECT_EQ(tcp_sequence(frames[1 + i]), 5000 + i * kSize);
        EXPECT_EQ(Bytes(frames[1 + i].begin() + kEthernet + kIpv4 + kTcp, frames[1 + i].end()),
                  Bytes(text.begin() + static_cast<std::ptrdiff_t>(i * kSize), text.begin() + static_cast<std::ptrdiff_t>(i * kSize + size)));
        EXPECT_EQ(transport_sum(frames[1 + i]), 0xffff) << "segment " << i;
    }
}

TEST_P(AfXdp, ASuperPacketThatTheKernelCannotCutIsLostAndCounted) {
    const std::uint32_t at_rest = pool.available();
    Bytes frame = tcp_frame(device->facts().mac, their_facts.mac, {veth->our_address, kTaken}, {veth->their_address, kKernel}, 1,
                            pattern(3000, 1));
    frame[12] = std::byte{0x12};  // neither IPv4 nor IPv6
    queue_super_packet(device->tx(), frame, 1000);
    EXPECT_FALSE(device->flush());
    EXPECT_EQ(pool.available(), at_rest);
    EXPECT_EQ(statistic("xsk_tx_super_packets_lost"), 1u);
    EXPECT_EQ(statistic("xsk_tx_super_packets"), 0u);
}

TEST_P(AfXdp, WaitsForALinkThatIsDown) {
    const UniqueFd server = veth->their_udp_socket(kKernel);
    run({"ip", "link", "set", VethPair::kOurs, "down"});
    ASSERT_TRUE(queue(device->tx(), frame_to(kKernel, pattern(4, 1))));
    EXPECT_FALSE(device->flush()) << "nothing that an impatient caller could do";
    EXPECT_TRUE(receive_from(server, 0).empty());
    run({"ip", "link", "set", VethPair::kOurs, "up"});
    EXPECT_TRUE(eventually(-1, [&] {
        device->flush();
        return receive_from(server, 0) == pattern(4, 1);
    }));
}

TEST_P(AfXdp, TheQueueHasOneOwner) {
    FramePool another(4096);
    const auto second = AfXdpDevice::create(another, *program);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().message(),
              "culv0 queue 0: already taken by another AF_XDP socket: Device or resource busy");
}

TEST_P(AfXdp, TooSmallAPoolIsRefused) {
    device.reset();
    FramePool small(2048);
    const auto refused = AfXdpDevice::create(small, *program);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ENOMEM);
}

TEST_P(AfXdp, CanBeClosedAndOpenedAgain) {
    device.reset();
    FramePool another(4096);
    auto again = AfXdpDevice::create(another, *program);
    ASSERT_TRUE(again) << again.error().message();
    device = std::move(*again);
    const UniqueFd client = veth->their_udp_socket(0);
    send_to(client, veth->our_address, kTaken, pattern(100, 2));
    EXPECT_EQ(receive(1).size(), 1u);
    device.reset();  // before its pool
}

INSTANTIATE_TEST_SUITE_P(Veth, AfXdp,
                         testing::Values(Setting{1500, XdpMode::kNative}, Setting{9000, XdpMode::kNative},
                                         Setting{65535, XdpMode::kNative}, Setting{1500, XdpMode::kGeneric},
                                         Setting{9000, XdpMode::kGeneric}, Setting{65535, XdpMode::kGeneric}),
                         [](const testing::TestParamInfo<Setting>& test) {
                             return (test.param.mode == XdpMode::kNative ? "NativeMtu" : "GenericMtu") +
                                    std::to_string(test.param.mtu);
                         });

}  // namespace
}  // namespace culvert::platform
