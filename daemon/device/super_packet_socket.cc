#include "daemon/device/super_packet_socket.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <array>

#include "daemon/device/packet_socket.h"
#include "daemon/device/virtio_header.h"

namespace culvert::device {

Result<SuperPacketSocket> SuperPacketSocket::open(const InterfaceFacts& facts) {
    UniqueFd socket = TRY(make_packet_socket(facts));
    TRY_VOID(bind_packet_socket(socket, facts, 0));
    return SuperPacketSocket(std::move(socket));
}

SuperPacketSocket::Outcome SuperPacketSocket::send(FramePool& pool, std::span<const TxQueue::Descriptor> packet) {
    const TxQueue::Descriptor& first = packet.front();
    VirtioHeader header = make_virtio_header({pool.data(first.chunk), first.length}, first.segment_size, first.transport_offset);
    std::array<iovec, kMaxFragments + 1> pieces;
    pieces[0] = {&header, sizeof header};
    for (std::size_t i = 0; i < packet.size(); ++i) pieces[i + 1] = {pool.data(packet[i].chunk), packet[i].length};
    msghdr message{};
    message.msg_iov = pieces.data();
    message.msg_iovlen = packet.size() + 1;
    if (::sendmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return Outcome::kTaken;
    switch (errno) {
        case ENOBUFS: return Outcome::kTaken;
        case EAGAIN: return Outcome::kLater;
        case ENETDOWN:
        case ENXIO:
        case ENODEV: return Outcome::kRefused;
        default: return Outcome::kImpossible;
    }
}

}  // namespace culvert::device
