#include "daemon/device/af_xdp/xsk_socket.h"

#include <poll.h>
#include <sys/socket.h>

#include "daemon/device/af_xdp/bpf_log.h"

namespace culvert::device {
namespace {

// The kernel takes a closed socket's hold on its queue back in a work item, so a daemon that starts right after another
// died may find the queue busy for some milliseconds.
constexpr int kBusyRetries = 100;
constexpr int kBusyRetryMilliseconds = 10;

// In copy mode an skb counts against the send buffer until the other side has consumed it. The default of 208 kB is
// three full-size packets at MTU 65535.
constexpr int kSendBufferBytes = 16 << 20;

}  // namespace

Result<std::unique_ptr<XskSocket>> XskSocket::open(FramePool& pool, const std::string& interface, std::uint32_t queue,
                                                   const RingSizes& sizes, bool native, std::uint32_t mtu) {
    collect_bpf_log();
    Error last{EINVAL, interface};
    for (int attempt = 0; attempt <= kBusyRetries; ++attempt) {
        if (attempt > 0) ::poll(nullptr, 0, kBusyRetryMilliseconds);
        for (const BindMode mode : bind_modes(native, mtu)) {
            Result<std::unique_ptr<XskSocket>> socket = bind(pool, interface, queue, sizes, mode);
            if (socket) return socket;
            last = std::move(socket.error());
            if (last.code == EPERM || last.code == ENOBUFS || last.code == EBUSY) break;  // another mode will not help
        }
        if (last.code != EBUSY) break;
    }
    const std::string where = interface + " queue " + std::to_string(queue);
    if (last.code == EBUSY) return fail(EBUSY, where + ": already taken by another AF_XDP socket");
    return fail(last.code, where + ": " + last.what);
}

Result<std::unique_ptr<XskSocket>> XskSocket::bind(FramePool& pool, const std::string& interface, std::uint32_t queue,
                                                   const RingSizes& sizes, BindMode mode) {
    std::unique_ptr<XskSocket> socket(new XskSocket);
    socket->umem_ = TRY(Umem::create(pool, sizes.fill, sizes.completion));
    socket->mode_ = mode;
    xsk_socket_config config{};
    config.rx_size = sizes.rx;
    config.tx_size = sizes.tx;
    config.libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD;
    config.bind_flags = mode.bind_flags();
    const int error = xsk_socket__create(&socket->socket_, interface.c_str(), queue, socket->umem_->get(), &socket->rx_,
                                         &socket->tx_, &config);
    if (error != 0) {
        socket->socket_ = nullptr;
        return fail(-error, "binding an AF_XDP socket");
    }
    socket->tune(sizes);
    return socket;
}

void XskSocket::tune(const RingSizes& sizes) {
    // Both are optional: without them more syscalls are needed, no less is sent.
    ::setsockopt(fd(), SOL_SOCKET, SO_SNDBUFFORCE, &kSendBufferBytes, sizeof kSendBufferBytes);
    const std::uint32_t budget = sizes.tx;  // the kernel's upper bound
    if (::setsockopt(fd(), SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget, sizeof budget) == 0) tx_budget_ = budget;
}

XskSocket::~XskSocket() {
    if (socket_ != nullptr) xsk_socket__delete(socket_);
}

}  // namespace culvert::device
