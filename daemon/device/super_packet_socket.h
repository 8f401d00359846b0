// The way out for packets that the kernel cuts. An AF_XDP descriptor cannot say "these are forty segments"; a packet socket
// can, by a virtio-net header (packet(7), PACKET_VNET_HDR), and on a virtual link the kernel at the other end then takes the
// whole as one.
//
// It only sends: bound to no protocol, it hears nothing.
#pragma once

#include <span>

#include "daemon/base/frame_pool.h"
#include "daemon/base/packet.h"
#include "daemon/device/interface_facts.h"
#include "shm/base/error.h"
#include "shm/base/unique_fd.h"

namespace culvert::device {

class SuperPacketSocket {
public:
    enum class Outcome {
        kTaken,    // on its way, or lost as on any link (ENOBUFS)
        kLater,    // the send buffer is full
        kRefused,  // the interface is down or gone
        kImpossible,  // the kernel cannot make anything of it
    };

    /// Errors: EPERM (CAP_NET_RAW), ENODEV, ENOMEM.
    static Result<SuperPacketSocket> open(const InterfaceFacts& facts);

    /// Sends one packet, by copy: its chunks are the caller's again afterwards. Headers lie in the first chunk.
    Outcome send(FramePool& pool, std::span<const TxQueue::Descriptor> packet);

private:
    explicit SuperPacketSocket(UniqueFd fd) : fd_(std::move(fd)) {}

    UniqueFd fd_;
};

}  // namespace culvert::device
