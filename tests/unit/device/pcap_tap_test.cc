#include "daemon/device/pcap_tap.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "daemon/device/memory.h"
#include "tests/unit/device/packets.h"

namespace culvert::device {
namespace {

using namespace std::chrono_literals;

struct Captured {
    std::uint64_t nanoseconds;
    Bytes bytes;
    friend bool operator==(const Captured&, const Captured&) = default;
};

class PcapTapTest : public testing::Test {
protected:
    ~PcapTapTest() override { ::unlink(path.c_str()); }

    /// Reads the file back, and checks its header.
    std::vector<Captured> read() {
        std::ifstream file(path, std::ios::binary);
        const std::vector<char> raw{std::istreambuf_iterator<char>(file), {}};
        const auto word = [&raw](std::size_t position) {
            std::uint32_t value;
            std::memcpy(&value, raw.data() + position, sizeof value);
            return value;
        };
        EXPECT_GE(raw.size(), 24u);
        EXPECT_EQ(word(0), 0xa1b23c4du);
        EXPECT_EQ(word(4), 4u << 16 | 2u);
        EXPECT_EQ(word(20), 1u);
        std::vector<Captured> packets;
        for (std::size_t position = 24; position < raw.size();) {
            Captured packet{word(position) * 1'000'000'000ull + word(position + 4), Bytes(word(position + 8))};
            EXPECT_EQ(word(position + 8), word(position + 12));
            std::memcpy(packet.bytes.data(), raw.data() + position + 16, packet.bytes.size());
            position += 16 + packet.bytes.size();
            packets.push_back(std::move(packet));
        }
        return packets;
    }

    const std::string path = testing::TempDir() + "culvert_tap_" + std::to_string(::getpid()) + ".pcap";
    FramePool pool{64};
    MemoryDevice memory{pool, {.rx_fragment_size = 1000}};
};

TEST_F(PcapTapTest, WritesBothDirectionsWithTimes) {
    auto tap = PcapTap::open(memory, path, {.wall_offset = 100s});
    ASSERT_TRUE(tap) << tap.error().message();
    Device& device = **tap;
    memory.inject(pattern(2500, 1));
    (*tap)->set_now(Instant(3s + 7ns));
    EXPECT_EQ(drain(device).size(), 1u);
    (*tap)->set_now(Instant(4s));
    queue(device.tx(), pattern(60, 2));
    queue(device.tx(), pattern(9000, 3));
    EXPECT_FALSE(device.flush());
    EXPECT_FALSE(device.flush()) << "nothing more to send, nothing more to write";
    EXPECT_EQ(memory.take_sent().size(), 2u);
    (*tap)->sync();
    EXPECT_EQ(read(), (std::vector<Captured>{{103'000'000'007, pattern(2500, 1)},
                                             {104'000'000'000, pattern(60, 2)},
                                             {104'000'000'000, pattern(9000, 3)}}));
}

// A device that sends one descriptor's packet per flush: what stays queued must not be captured twice.
class SlowDevice final : public Device {
public:
    explicit SlowDevice(FramePool& pool) : tx_(pool) {}
    std::size_t receive(std::span<RxPacket>) override { return 0; }
    TxQueue& tx() override { return tx_; }
    bool flush() override {
        if (!tx_.pending().empty()) {
            tx_.pool().release(tx_.pending()[0].chunk);
            tx_.consume(1);
        }
        return !tx_.pending().empty();
    }
    int readiness_fd() const override { return -1; }
    bool has_input() const override { return false; }
    std::string describe() const override { return "slow"; }
    std::vector<Statistic> statistics() const override { return {}; }

private:
    TxQueue tx_;
};

TEST_F(PcapTapTest, WritesAPacketOnceHoweverLongItWaits) {
    SlowDevice slow(pool);
    auto tap = PcapTap::open(slow, path);
    ASSERT_TRUE(tap);
    for (unsigned i = 0; i < 3; ++i) queue(slow.tx(), pattern(60, i));
    while ((*tap)->flush()) {
    }
    (*tap)->sync();
    const std::vector<Captured> packets = read();
    ASSERT_EQ(packets.size(), 3u);
    for (unsigned i = 0; i < 3; ++i) EXPECT_EQ(packets[i].bytes, pattern(60, i));
}

TEST_F(PcapTapTest, WhatPassedIsInTheFileASecondLater) {
    auto tap = PcapTap::open(memory, path);
    ASSERT_TRUE(tap);
    (*tap)->set_now(Instant(5s));
    EXPECT_EQ((*tap)->next_deadline(), kNever) << "nothing waits";
    memory.inject(pattern(60, 1));
    RxPacket burst[1];
    ASSERT_EQ((*tap)->receive(burst), 1u);
    EXPECT_EQ((*tap)->next_deadline(), Instant(6s));
    const auto size = [&] { return std::filesystem::file_size(path); };
    EXPECT_EQ(size(), 24u);
    (*tap)->set_now(Instant(6s));
    EXPECT_EQ(size(), 24u + 16 + 60);
    EXPECT_EQ((*tap)->next_deadline(), kNever);
}

TEST_F(PcapTapTest, StopsAtItsLimitAndCounts) {
    auto tap = PcapTap::open(memory, path, {.max_bytes = 24 + 2 * (16 + 60)});
    ASSERT_TRUE(tap);
    for (unsigned i = 0; i < 3; ++i) memory.inject(pattern(60, i));
    EXPECT_EQ(drain(**tap).size(), 3u);
    (*tap)->sync();
    EXPECT_EQ(read().size(), 2u);
    EXPECT_EQ(statistic(**tap, "pcap_skipped"), 1u);
}

TEST_F(PcapTapTest, SaysWhyItCannotOpen) {
    const auto tap = PcapTap::open(memory, "/nonexistent/x.pcap");
    ASSERT_FALSE(tap);
    EXPECT_EQ(tap.error().message(), "creating the capture file /nonexistent/x.pcap: No such file or directory");
}

}  // namespace
}  // namespace culvert::device
