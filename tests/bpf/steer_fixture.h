// The steering programs in the real kernel, one packet at a time, through BPF_PROG_TEST_RUN.
#pragma once

#include <bpf/bpf.h>
#include <gtest/gtest.h>
#include <linux/bpf.h>
#include <linux/if_xdp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "bpf/steer_shared.h"
#include "daemon/device/af_xdp/program.h"
#include "tests/bpf/packet_builder.h"

namespace culvert::bpf_test {
using device::Protocol;
using device::SteeringProgram;

inline const Address kOurs4 = Address::v4(10, 0, 0, 1);
inline const Address kPeer4 = Address::v4(10, 0, 0, 9);
inline constexpr std::uint8_t kPrefix[] = {0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};

inline Address v6(unsigned last) {
    std::byte bytes[16] = {};
    for (std::size_t i = 0; i < sizeof kPrefix; ++i) bytes[i] = static_cast<std::byte>(kPrefix[i]);
    bytes[15] = static_cast<std::byte>(last);
    return Address::from_v6(bytes);
}
inline const Address kOurs6 = v6(1);
inline const Address kPeer6 = v6(9);

inline constexpr unsigned kIp4 = 0x0800;
inline constexpr unsigned kIp6 = 0x86dd;
inline constexpr unsigned kMoreFragments = 0x2000;

class Steer : public testing::Test {
protected:
    void SetUp() override {
        if (::geteuid() != 0) GTEST_SKIP() << "needs root to load a BPF program";
        auto loaded = SteeringProgram::load_detached();
        ASSERT_TRUE(loaded) << loaded.error().message();
        program_ = std::move(*loaded);
        // An AF_XDP socket with a fill ring is enough for the map; it need not be bound.
        xsk_.reset(::socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0));
        ASSERT_TRUE(xsk_);
        const int entries = 64;
        ASSERT_EQ(::setsockopt(xsk_.get(), SOL_XDP, XDP_UMEM_FILL_RING, &entries, sizeof entries), 0);
        ASSERT_EQ(::setsockopt(xsk_.get(), SOL_XDP, XDP_RX_RING, &entries, sizeof entries), 0);
        const auto added = program_->add_socket(0, xsk_.get());
        ASSERT_TRUE(added) << added.error().message();
        const Address addresses[] = {kOurs4, kOurs6};
        ASSERT_TRUE(program_->set_addresses(addresses));
        for (const Address& address : addresses) {
            ASSERT_TRUE(program_->take_port(address, Protocol::kTcp, 80));
            ASSERT_TRUE(program_->take_port(address, Protocol::kUdp, 53));
        }
    }

    static std::uint32_t run(int program, const Bytes& packet) {
        LIBBPF_OPTS(bpf_test_run_opts, run);
        run.data_in = packet.data();
        run.data_size_in = static_cast<__u32>(packet.size());
        run.repeat = 1;
        const int error = bpf_prog_test_run_opts(program, &run);
        EXPECT_EQ(error, 0) << "packet of " << packet.size() << " bytes";
        return run.retval;
    }

    /// The one counter that moved while `act` ran.
    template <class Act>
    std::string moved_by(Act act) {
        const auto before = program_->counters();
        act();
        const auto after = program_->counters();
        std::string moved;
        for (std::size_t i = 0; i < after.size(); ++i) {
            if (after[i].value == before[i].value) continue;
            EXPECT_EQ(after[i].value, before[i].value + 1);
            EXPECT_TRUE(moved.empty()) << moved << " and " << after[i].name;
            moved = after[i].name;
        }
        return moved;
    }

    /// BPF_PROG_TEST_RUN makes no socket buffer of a packet that is shorter than its Ethernet and IP headers.
    static bool makes_a_buffer(const Bytes& packet) {
        if (packet.size() < 14) return false;
        const unsigned type = std::to_integer<unsigned>(packet.data()[12]) << 8 | std::to_integer<unsigned>(packet.data()[13]);
        return packet.size() >= 14u + (type == kIp4 ? 20 : type == kIp6 ? 40 : 0);
    }

    /// Runs the packet through; returns the one counter that moved. The action must fit it. The pair of programs for packet
    /// sockets must say the same: exactly one of socket and kernel gets the packet, or the filter lets neither.
    std::string judge(const Bytes& packet) {
        std::uint32_t action = 0;
        const std::string moved = moved_by([&] { action = run(program_->program_fd(), packet); });
        const std::uint32_t expected = moved == "redirected" ? XDP_REDIRECT : moved == "filtered" ? XDP_DROP : XDP_PASS;
        EXPECT_EQ(action, expected) << moved;
        constexpr std::uint32_t kTcNext = UINT32_MAX, kTcDrop = 2;
        if (makes_a_buffer(packet) && moved != "passed_no_socket") {
            std::uint32_t left = 0, taken = 0;
            const std::string leave = moved_by([&] { left = run(program_->traffic_program_fd(), packet); });
            const std::string take = moved_by([&] { taken = run(program_->socket_filter_fd(), packet); });
            EXPECT_EQ(left, expected == XDP_PASS ? kTcNext : kTcDrop) << moved;
            EXPECT_EQ(taken != 0, expected == XDP_REDIRECT) << moved;
            EXPECT_EQ(expected == XDP_PASS ? leave : take, moved);
            EXPECT_EQ(expected == XDP_PASS ? take : leave, "") << "counted once";
        }
        return moved;
    }

    std::unique_ptr<SteeringProgram> program_;
    UniqueFd xsk_;
};

}  // namespace culvert::bpf_test
