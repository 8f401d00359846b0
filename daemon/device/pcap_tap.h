// Writes what passes through a device into a capture file that wireshark and tcpdump read.
//
// Format: a file header (24 bytes), then for each packet a header (16 bytes) and the bytes; fields in the writer's byte
// order, told by the magic number 0xa1b23c4d, which also says that times have nanoseconds. Link type 1 is Ethernet.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "daemon/base/instant.h"
#include "daemon/device/device.h"
#include "shm/base/error.h"

namespace culvert::device {

class PcapTap final : public Device {
public:
    struct Options {
        Duration wall_offset{0};               // added to set_now() for the times in the file
        std::uint64_t max_bytes = 1ull << 30;  // then packets are only counted
    };

    /// Creates (truncates) the file. `inner` must outlive the tap.
    static Result<std::unique_ptr<PcapTap>> open(Device& inner, const std::string& path, const Options& options);
    static Result<std::unique_ptr<PcapTap>> open(Device& inner, const std::string& path) {
        return open(inner, path, Options());
    }

    /// The same, and the tap keeps the device.
    static Result<std::unique_ptr<PcapTap>> open(std::unique_ptr<Device> inner, const std::string& path, const Options& options);

    /// The time of packets from now on. What has been in a buffer for a second goes to the file.
    void set_now(Instant now) override;
    /// While something is in the buffer: when it is to go to the file.
    Instant next_deadline() const override;
    /// Bytes to the file now; otherwise after a second, when a buffer is full, and at the end.
    void sync();

    std::size_t receive(std::span<RxPacket> burst) override;
    TxQueue& tx() override { return inner_.tx(); }
    bool flush() override;
    int readiness_fd() const override { return inner_.readiness_fd(); }
    bool has_input() const override { return inner_.has_input(); }
    std::string describe() const override { return inner_.describe() + ", captured"; }
    std::vector<Statistic> statistics() const override;

private:
    struct Closer {
        void operator()(std::FILE* file) const { std::fclose(file); }
    };

    PcapTap(Device& inner, std::FILE* file, const Options& options) : inner_(inner), file_(file), options_(options) {}
    /// False: no room left in the file.
    bool start_packet(std::uint32_t length);
    void write(const void* bytes, std::size_t size);

    std::unique_ptr<Device> owned_;  // null: somebody else's
    Device& inner_;
    std::unique_ptr<std::FILE, Closer> file_;
    const Options options_;
    Instant now_{};
    Instant sync_at_ = kNever;
    std::size_t seen_ = 0;  // descriptors in front of tx().pending() that are in the file already
    std::uint64_t bytes_ = 0;
    std::uint64_t written_ = 0;
    std::uint64_t skipped_ = 0;
};

}  // namespace culvert::device
