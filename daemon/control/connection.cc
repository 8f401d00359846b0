#include "daemon/control/connection.h"

#include <cstring>

#include "shm/base/check.h"

namespace culvert::control {

namespace {

// More than fit into the send buffer that a program may give itself (2 * net.core.wmem_max = 425984, at 768 bytes each).
constexpr int kMostQueued = 600;

}  // namespace

void Connection::start(OnPacket on_packet, OnClosed on_closed) {
    on_packet_ = std::move(on_packet);
    on_closed_ = std::move(on_closed);
    receive();
}

void Connection::receive() {
    if (closed_ || paused_ || receiving_ || close_after_sending_) return;
    receiving_ = true;
    in_vector_ = {in_.data(), in_.size()};
    in_header_ = {};
    in_header_.msg_iov = &in_vector_;
    in_header_.msg_iovlen = 1;
    in_header_.msg_control = in_control_.data();
    in_header_.msg_controllen = in_control_.size();
    loop_.receive(fd_.get(), &in_header_, [self = shared_from_this()](int result) { self->received(result); });
}

std::vector<ForeignFd> Connection::take_fds(msghdr& header) {
    std::vector<ForeignFd> fds;
    for (cmsghdr* control = CMSG_FIRSTHDR(&header); control != nullptr; control = CMSG_NXTHDR(&header, control)) {
        if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS) continue;
        const std::size_t count = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (std::size_t i = 0; i < count; ++i) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(control) + i * sizeof(int), sizeof fd);
            fds.emplace_back(loop_, fd);
        }
    }
    return fds;
}

void Connection::received(int result) {
    receiving_ = false;
    Packet packet;
    if (result >= 0) packet.fds = take_fds(in_header_);  // theirs to close even when nobody wants them
    if (closed_) return;
    if (result == -EAGAIN) {  // the other end shares the socket's flags and may have made it non-blocking
        receiving_ = true;
        loop_.poll_readable(fd_.get(), [self = shared_from_this()](int) {
            self->receiving_ = false;
            self->receive();
        });
        return;
    }
    if (result == -EINTR) return receive();
    if (result <= 0) return close();
    heard_ = true;
    packet.bytes = std::span<const std::byte>(in_).first(static_cast<std::size_t>(result));
    packet.truncated = (in_header_.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
    const std::shared_ptr<Connection> self = shared_from_this();  // the handler may drop the last other reference
    on_packet_(*this, std::move(packet));
    receive();
}

void Connection::resume() {
    paused_ = false;
    receive();
}

void Connection::send(std::vector<std::byte> bytes, std::vector<UniqueFd> fds) {
    CHECK(fds.size() <= kMaxFds);
    if (closed_) return;
    queue_.push_back({std::move(bytes), std::move(fds)});
    send_next();
}

void Connection::send_next() {
    if (sending_ || closed_) return;
    if (queue_.empty()) {
        if (close_after_sending_) close();
        return;
    }
    sending_ = true;
    Outgoing& next = queue_.front();
    out_vector_ = {next.bytes.data(), next.bytes.size()};
    out_header_ = {};
    out_header_.msg_iov = &out_vector_;
    out_header_.msg_iovlen = 1;
    if (!next.fds.empty()) {
        const std::size_t payload = next.fds.size() * sizeof(int);
        out_header_.msg_control = out_control_.data();
        out_header_.msg_controllen = CMSG_SPACE(payload);
        cmsghdr* control = CMSG_FIRSTHDR(&out_header_);
        control->cmsg_level = SOL_SOCKET;
        control->cmsg_type = SCM_RIGHTS;
        control->cmsg_len = CMSG_LEN(payload);
        for (std::size_t i = 0; i < next.fds.size(); ++i) {
            const int fd = next.fds[i].get();
            std::memcpy(CMSG_DATA(control) + i * sizeof(int), &fd, sizeof fd);
        }
    }
    loop_.send(fd_.get(), &out_header_, [self = shared_from_this()](int result) { self->sent(result); });
}

void Connection::sent(int result) {
    sending_ = false;
    if (closed_) return;
    if (result == -EINTR) return send_next();
    if (result < 0) return close();
    queue_.pop_front();
    send_next();
}

void Connection::close_after_sending() {
    close_after_sending_ = true;
    if (!sending_ && queue_.empty()) close();
}

/// Takes what nobody will read: the descriptors in it must not be closed with the socket, on whatever thread that is.
/// Neither an empty message nor the end can be told from the other, so it is the number that bounds it.
void Connection::drain() {
    std::array<std::byte, 1> byte{};
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kMostFds * sizeof(int))> control;
    for (int i = 0; i < kMostQueued; ++i) {
        iovec vector{byte.data(), byte.size()};
        msghdr header{};
        header.msg_iov = &vector;
        header.msg_iovlen = 1;
        header.msg_control = control.data();
        header.msg_controllen = control.size();
        if (::recvmsg(fd_.get(), &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0) return;
        take_fds(header);
    }
}

void Connection::close() {
    if (closed_) return;
    closed_ = true;
    ::shutdown(fd_.get(), SHUT_RDWR);  // ends the operations under way; the descriptor goes with the last of them
    drain();
    const std::shared_ptr<Connection> self = shared_from_this();
    if (const OnClosed on_closed = std::exchange(on_closed_, nullptr)) on_closed(*this);
    on_packet_ = nullptr;
}

}  // namespace culvert::control
