// One control connection: packets with descriptors in, packets with descriptors out, on the event loop.
//
// Reading stops while a handler owes an answer (pause/resume), so an application cannot make us queue work without bound.
// Shared: each operation under way keeps the connection, and so its buffers and its descriptor, alive.
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "daemon/control/event_loop.h"
#include "daemon/control/policy.h"
#include "shm/base/unique_fd.h"

namespace culvert::control {

/// What came: the bytes are valid during the call.
struct Packet {
    std::span<const std::byte> bytes;
    std::vector<ForeignFd> fds;
    bool truncated = false;  // larger than any message we know
};

class Connection : public std::enable_shared_from_this<Connection> {
public:
    static constexpr std::size_t kMaxMessageBytes = 4096;
    static constexpr std::size_t kMaxFds = 4;  // sent
    /// Received: the most that the kernel lets a message carry (SCM_MAX_FD). What did not fit it would close on this thread.
    static constexpr std::size_t kMostFds = 253;

    using OnPacket = std::function<void(Connection&, Packet)>;
    using OnClosed = std::function<void(Connection&)>;

    Connection(EventLoop& loop, UniqueFd fd, Peer peer) : loop_(loop), fd_(std::move(fd)), peer_(std::move(peer)) {}

    /// Begins to read. `on_closed` runs once, whoever closes.
    void start(OnPacket on_packet, OnClosed on_closed);
    /// Queues one packet; the descriptors are sent with it and then closed here.
    void send(std::vector<std::byte> bytes, std::vector<UniqueFd> fds = {});
    template <class Message>
    void send_struct(const Message& message, std::vector<UniqueFd> fds = {}) {
        const auto* bytes = reinterpret_cast<const std::byte*>(&message);
        send({bytes, bytes + sizeof message}, std::move(fds));
    }
    /// No packet is handed over until resume().
    void pause() { paused_ = true; }
    void resume();
    void close();
    /// Closes when everything queued has been sent.
    void close_after_sending();

    bool closed() const { return closed_; }
    /// Something has come through it.
    bool heard() const { return heard_; }
    const Peer& peer() const { return peer_; }
    /// The control connection itself, to ask the kernel about its other end.
    int fd() const { return fd_.get(); }

private:
    struct Outgoing {
        std::vector<std::byte> bytes;
        std::vector<UniqueFd> fds;
    };

    void receive();
    void received(int result);
    std::vector<ForeignFd> take_fds(msghdr& header);
    void drain();
    void send_next();
    void sent(int result);

    EventLoop& loop_;
    UniqueFd fd_;
    Peer peer_;
    OnPacket on_packet_;
    OnClosed on_closed_;
    bool receiving_ = false;
    bool sending_ = false;
    bool paused_ = false;
    bool closed_ = false;
    bool heard_ = false;
    bool close_after_sending_ = false;

    std::array<std::byte, kMaxMessageBytes> in_{};
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kMostFds * sizeof(int))> in_control_{};
    iovec in_vector_{};
    msghdr in_header_{};

    std::deque<Outgoing> queue_;
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kMaxFds * sizeof(int))> out_control_{};
    iovec out_vector_{};
    msghdr out_header_{};
};

}  // namespace culvert::control
