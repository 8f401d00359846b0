// The packet socket on a real veth pair: what is ours reaches it and not the kernel, what is not reaches the kernel and not
// it; and when the device goes, the kernel has everything back.
#include "daemon/device/packet_socket.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>

#include "tests/platform/frames.h"
#include "tests/platform/veth_pair.h"

namespace culvert::platform {
namespace {

using device::Protocol;
using device::SteeringProgram;

constexpr Port kTaken = 7000;
constexpr Port kKernel = 7001;

class PacketSocket : public testing::Test {
protected:
    void SetUp() override {
        if (::geteuid() != 0) GTEST_SKIP() << "needs root for network namespaces and BPF";
        veth = std::make_unique<VethPair>();
        open();
        veth->in_their_namespace([this] { their_facts = *device::interface_facts(VethPair::kTheirs); });
    }
    void open() {
        auto attached = SteeringProgram::attach_traffic(VethPair::kOurs);
        ASSERT_TRUE(attached) << attached.error().message();
        program = std::move(*attached);
        auto opened = device::open_packet_socket(pool, *program);
        ASSERT_TRUE(opened) << opened.error().message();
        device = std::move(*opened);
        ASSERT_TRUE(program->set_address(veth->our_address, true));
        ASSERT_TRUE(program->take_port(veth->our_address, Protocol::kUdp, kTaken));
    }
    std::uint64_t count(const std::string& name) const {
        for (const auto& each : program->counters())
            if (each.name == name) return each.value;
        ADD_FAILURE() << "no counter " << name;
        return 0;
    }

    FramePool pool{4096};
    std::unique_ptr<VethPair> veth;
    std::unique_ptr<SteeringProgram> program;
    std::unique_ptr<device::FrameFile> device;
    device::InterfaceFacts their_facts;
};

TEST_F(PacketSocket, TakesWhatIsOursAndLeavesTheRest) {
    const UniqueFd taken = veth->our_udp_socket(kTaken);  // the kernel's socket on the port that we took
    const UniqueFd kernel = veth->our_udp_socket(kKernel);
    const UniqueFd sender = veth->their_udp_socket(9000);
    const Bytes ours(1200, std::byte{1});
    const Bytes theirs(1100, std::byte{2});
    send_to(sender, veth->our_address, kTaken, ours);
    send_to(sender, veth->our_address, kKernel, theirs);
    EXPECT_EQ(receive_from(kernel, 5000), theirs);

    std::vector<Bytes> frames;
    ASSERT_TRUE(eventually(device->readiness_fd(), [&] {
        RxPacket burst[8];
        for (const RxPacket& packet : std::span(burst).first(device->receive(burst))) {
            EXPECT_EQ(packet.checksum, ChecksumState::kVerified) << "sent on this host";
            frames.push_back(bytes_of(packet));
        }
        return !frames.empty();
    }));
    ASSERT_EQ(frames.size(), 1u) << "the kernel's packet is not shown to us";
    EXPECT_EQ(Bytes(frames[0].begin() + kEthernet + kIpv4 + kUdp, frames[0].end()), ours);
    EXPECT_EQ(receive_from(taken, 50), Bytes{}) << "nor ours to the kernel";
    EXPECT_EQ(count("redirected"), 1u);
    EXPECT_GE(count("passed_port"), 1u);
}

TEST_F(PacketSocket, Sends) {
    const UniqueFd receiver = veth->their_udp_socket(9000);
    const Bytes payload(1300, std::byte{3});
    ASSERT_TRUE(queue(device->tx(), udp_frame(device::interface_facts(VethPair::kOurs)->mac, their_facts.mac,
                                              {veth->our_address, kTaken}, {veth->their_address, 9000}, payload)));
    EXPECT_FALSE(device->flush());
    EXPECT_EQ(receive_from(receiver, 5000), payload);
}

TEST_F(PacketSocket, WhenItGoesTheKernelHasItsTrafficBack) {
    device.reset();
    program.reset();
    const UniqueFd kernel = veth->our_udp_socket(kTaken);
    const UniqueFd sender = veth->their_udp_socket(9000);
    const Bytes payload(100, std::byte{4});
    send_to(sender, veth->our_address, kTaken, payload);
    EXPECT_EQ(receive_from(kernel, 5000), payload);
    open();  // and it can be had again
}

TEST_F(PacketSocket, AnInterfaceThatIsDownIsRefused) {
    run({"ip", "link", "set", VethPair::kOurs, "down"});
    const auto opened = device::open_packet_socket(pool, *program);
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().code, ENETDOWN);
}

}  // namespace
}  // namespace culvert::platform
