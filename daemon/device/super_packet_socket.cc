#include "daemon/device/super_packet_socket.h"

#include <linux/if_packet.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <array>

#include "daemon/device/virtio_header.h"

namespace culvert::device {

Result<SuperPacketSocket> SuperPacketSocket::open(const InterfaceFacts& facts) {
    constexpr int kBufferBytes = 16 << 20;  // as an AF_XDP socket's: what the other side has not consumed counts
    UniqueFd socket(::socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!socket) return fail_errno(facts.name + ": packet socket");
    const int on = 1;
    if (::setsockopt(socket.get(), SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on) != 0) return fail_errno("PACKET_VNET_HDR");
    if (::setsockopt(socket.get(), SOL_SOCKET, SO_SNDBUFFORCE, &kBufferBytes, sizeof kBufferBytes) != 0)
        return fail_errno("SO_SNDBUFFORCE");
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_ifindex = facts.ifindex;
    if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
        return fail_errno(facts.name + ": binding the packet socket");
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
