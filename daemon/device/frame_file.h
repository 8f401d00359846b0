// A device that is a descriptor: each read gives one frame, each write takes one, both behind a virtio-net header. TAP
// interfaces and packet sockets are such files; who opens them is tap.h and packet_socket.h.
//
//   receive()   [ readv ] x n --one io_uring_enter--> frames, then EAGAIN       flush()   [ writev ] x n --one call--> kernel
//
// No operation waits (RWF_NOWAIT), so each is finished when the call returns, in the order it was asked for: io_uring is used
// as a batch of system calls, nothing is under way between two of them.
#pragma once

#include <liburing.h>
#include <sys/uio.h>

#include <array>
#include <memory>

#include "daemon/device/device.h"
#include "daemon/device/virtio_header.h"
#include "shm/base/error.h"
#include "shm/base/unique_fd.h"

namespace culvert::device {

class FrameFile final : public Device {
public:
    /// `name` is what describe() says: "tap culvert0". `pool` must outlive the device and hold
    /// more than the receive side takes (kSlots * kMaxFragments chunks). Errors: ENOMEM, or what io_uring_setup says.
    /// `tag`: the four bytes of a VLAN tag, in the order in which they travel, that the file has taken off every frame it gives
    /// (packet sockets do): the frames are shown with it. 0: they are as they came.
    static Result<std::unique_ptr<FrameFile>> create(FramePool& pool, UniqueFd fd, std::string name, std::uint32_t tag = 0);
    ~FrameFile() override;

    std::size_t receive(std::span<RxPacket> burst) override;
    TxQueue& tx() override { return tx_; }
    bool flush() override;
    int readiness_fd() const override { return fd_.get(); }
    /// One poll(2): a file has no ring to look into.
    bool has_input() const override;
    std::string describe() const override { return name_ + ", io_uring with virtio headers"; }
    std::vector<Statistic> statistics() const override;
    int fd() const { return fd_.get(); }

private:
    static constexpr std::uint32_t kSlots = 64;
    static constexpr std::uint32_t kFirstTry = 4;  // reads asked for when nothing is known of what waits
    static constexpr std::size_t kMacs = 12;       // what stands before a tag

    /// Memory of one frame on its way: the header and its pieces.
    struct Slot {
        VirtioHeader header;
        std::array<iovec, kMaxFragments + 2> pieces;  // the header; the chunks, the first in two where a tag goes between
        std::array<std::byte*, kMaxFragments> chunks{};  // of input
        std::array<std::span<const std::byte>, kMaxFragments> shown;  // RxPacket::rest points in here
    };

    FrameFile(FramePool& pool, UniqueFd fd, std::string name, std::uint32_t tag)
        : pool_(pool), fd_(std::move(fd)), name_(std::move(name)), tag_(tag), tx_(pool) {}
    Result<void> set_up();
    std::uint32_t read_frames(std::uint32_t count);
    bool show(Slot& slot, std::uint32_t bytes, RxPacket& packet);
    std::uint32_t queue_writes(std::size_t& descriptors);
    io_uring_sqe& next_entry();

    FramePool& pool_;
    UniqueFd fd_;
    std::string name_;
    std::uint32_t tag_;
    TxQueue tx_;
    io_uring ring_{};
    bool ring_ready_ = false;
    std::array<Slot, kSlots> input_{};
    std::array<Slot, kSlots> output_{};
    std::array<std::int32_t, kSlots> results_{};
    std::uint32_t next_try_ = kFirstTry;
    struct {
        std::uint64_t rx_packets = 0, rx_merged = 0, rx_refused = 0, rx_errors = 0;
        std::uint64_t tx_packets = 0, tx_segmented = 0, tx_refused = 0, tx_calls = 0;
    } counts_;
};

}  // namespace culvert::device
