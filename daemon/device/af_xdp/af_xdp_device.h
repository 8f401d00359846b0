// The AF_XDP device: one queue of one interface. The device that users run.
//
//                 fill ring                 tx ring
//   chunks  -------------------->  kernel  <---------------------  TxQueue (packets of the stack)
//      ^                             |  |
//      |     receive()  rx ring      |  |  completion ring
//      +----------------------------<+  +------------------------> FramePool
//
// Chunks. `ring_sizes.fill` chunks belong to the receive side for good: they are in the fill ring, in the rx ring or
// shown to the stack (from one receive() to the next). All others of the pool are for output: TxQueue takes them, they
// travel through the tx ring and come back through the completion ring.
//
// Syscalls: none in receive() in copy mode; one in flush() when there is something to send.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/device/af_xdp/program.h"
#include "daemon/device/af_xdp/rings.h"
#include "daemon/device/af_xdp/xsk_socket.h"
#include "daemon/device/device.h"
#include "daemon/device/interface_facts.h"
#include "daemon/device/super_packet_socket.h"
#include "daemon/device/virtio_header.h"

namespace culvert::device {

class AfXdpDevice final : public Device {
public:
    struct Options {
        std::uint32_t queue = 0;
        RingSizes rings;
    };

    /// Binds to a queue of the program's interface and has its packets steered here. Pool and program must outlive the
    /// device. Requires: the pool has more than options.rings.fill free chunks.
    /// Errors: EBUSY the queue is taken; ENOMEM the pool is too small; ENETDOWN the interface is down.
    static Result<std::unique_ptr<AfXdpDevice>> create(FramePool& pool, SteeringProgram& program,
                                                       const Options& options);
    static Result<std::unique_ptr<AfXdpDevice>> create(FramePool& pool, SteeringProgram& program) {
        return create(pool, program, Options());
    }
    /// The chunks that are under way stay out of the pool: the pool goes with its devices.
    ~AfXdpDevice() override;

    std::size_t receive(std::span<RxPacket> burst) override;
    TxQueue& tx() override { return tx_queue_; }
    bool flush() override;
    int readiness_fd() const override { return socket_->fd(); }
    bool has_input() const override { return !rx_.empty(); }
    std::string describe() const override;
    std::vector<Statistic> statistics() const override;

    const InterfaceFacts& facts() const { return facts_; }
    /// As Interface::segmentation_limit: what super-packets may carry; 0: there is no way out for them here.
    std::uint32_t segmentation_limit() const { return super_packets_ ? kSegmentationLimit : 0; }
    BindMode mode() const { return socket_->mode(); }

private:
    enum class Output {
        kDone,     // everything in the ring has been fetched, or will be without us
        kStuck,    // something is left that a later call may move
        kRefused,  // the kernel takes nothing: interface down or gone
    };

    AfXdpDevice(FramePool& pool, SteeringProgram& program, InterfaceFacts facts, std::unique_ptr<XskSocket> socket,
                const Options& options);
    void refill();
    void reap();
    void queue_packets();
    Output wake_for_output();
    Output send_super_packets();

    FramePool& pool_;
    std::byte* const base_;
    SteeringProgram& program_;
    const InterfaceFacts facts_;
    const std::uint32_t queue_;
    const ChecksumState checksum_;
    std::unique_ptr<XskSocket> socket_;
    ProducerRing<std::uint64_t> fill_;
    ConsumerRing<std::uint64_t> completion_;
    ConsumerRing<const xdp_desc> rx_;
    ProducerRing<xdp_desc> tx_;
    TxQueue tx_queue_;
    std::optional<SuperPacketSocket> super_packets_;
    std::vector<std::uint64_t> shown_;                   // chunk addresses lent to the stack until the next receive()
    std::vector<std::span<const std::byte>> fragments_;  // RxPacket::rest points in here

    struct {
        std::uint64_t rx_packets = 0;
        std::uint64_t rx_multi_buffer = 0;
        std::uint64_t rx_too_many_buffers = 0;
        std::uint64_t tx_packets = 0;
        std::uint64_t tx_wakeups = 0;
        std::uint64_t tx_wakeups_again = 0;
        std::uint64_t tx_left_over = 0;
        std::uint64_t tx_refused = 0;
        std::uint64_t tx_super_packets = 0;
        std::uint64_t tx_super_packets_lost = 0;
    } counts_;
};

}  // namespace culvert::device
