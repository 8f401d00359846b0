// A device made of memory: for unit tests, simulations and benchmarks of the stack alone.
//
//   alone:   inject() ---> inbox ---> receive()          tx() ---flush()---> take_sent()
//   paired:  a.flush() ---> b's inbox, b.flush() ---> a's inbox
//
// The inbox is a ring of buffers that are used again, so a steady run allocates nothing. Single-threaded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "daemon/device/device.h"

namespace culvert::device {

class MemoryDevice final : public Device {
public:
    struct Options {
        std::size_t inbox_packets = 4096;  // beyond that packets are dropped and counted, as a NIC does
        std::size_t rx_fragment_size =
            0;  // cut received packets into pieces of this size, as AF_XDP does; 0: one piece
        ChecksumState checksum = ChecksumState::kUnverified;
    };

    explicit MemoryDevice(FramePool& pool) : MemoryDevice(pool, Options()) {}
    MemoryDevice(FramePool& pool, const Options& options);

    /// What one sends the other receives. Both must live as long as either is used.
    static void connect(MemoryDevice& a, MemoryDevice& b);

    /// A packet arrives. False: the inbox is full.
    bool inject(std::span<const std::byte> packet);
    /// Everything flushed since the last call, in order. Empty when connected.
    std::vector<std::vector<std::byte>> take_sent();

    std::size_t receive(std::span<RxPacket> burst) override;
    TxQueue& tx() override { return tx_; }
    bool flush() override;
    int readiness_fd() const override { return -1; }
    bool has_input() const override { return filled_ > shown_; }
    std::string describe() const override { return peer_ != nullptr ? "memory, paired" : "memory"; }
    std::vector<Statistic> statistics() const override;

private:
    /// The next free buffer of the inbox, empty; null when there is none.
    std::vector<std::byte>* next_buffer();

    Options options_;
    TxQueue tx_;
    MemoryDevice* peer_ = nullptr;
    std::vector<std::vector<std::byte>> inbox_;  // ring: [head_, head_ + filled_), the first shown_ are lent out
    std::vector<std::span<const std::byte>> fragments_;  // RxPacket::rest points in here
    std::size_t head_ = 0;
    std::size_t filled_ = 0;
    std::size_t shown_ = 0;
    std::vector<std::vector<std::byte>> sent_;
    std::uint64_t received_ = 0;
    std::uint64_t transmitted_ = 0;
    std::uint64_t inbox_full_ = 0;
};

}  // namespace culvert::device
