// One AF_XDP socket bound to one queue of one interface, in the best mode that works there.
#pragma once

#include <xdp/xsk.h>

#include <memory>
#include <string>

#include "daemon/base/frame_pool.h"
#include "daemon/device/af_xdp/mode.h"
#include "daemon/device/af_xdp/umem.h"
#include "shm/base/error.h"

namespace culvert::device {

struct RingSizes {  // powers of two
    std::uint32_t rx = 2048;
    std::uint32_t tx = 2048;
    std::uint32_t fill = 2048;
    std::uint32_t completion = 4096;
};

class XskSocket {
public:
    /// Tries the modes of bind_modes() in order. Errors: EBUSY another AF_XDP socket has the queue.
    static Result<std::unique_ptr<XskSocket>> open(FramePool& pool, const std::string& interface, std::uint32_t queue,
                                                   const RingSizes& sizes, bool native, std::uint32_t mtu);
    ~XskSocket();
    XskSocket(const XskSocket&) = delete;
    XskSocket& operator=(const XskSocket&) = delete;

    int fd() const { return xsk_socket__fd(socket_); }
    BindMode mode() const { return mode_; }
    const xsk_ring_cons& rx() const { return rx_; }
    const xsk_ring_prod& tx() const { return tx_; }
    const Umem& umem() const { return *umem_; }
    /// Descriptors that one wake-up moves in copy mode.
    std::uint32_t tx_budget() const { return tx_budget_; }

private:
    XskSocket() = default;
    static Result<std::unique_ptr<XskSocket>> bind(FramePool& pool, const std::string& interface, std::uint32_t queue,
                                                   const RingSizes& sizes, BindMode mode);
    void tune(const RingSizes& sizes);

    std::unique_ptr<Umem> umem_;  // goes after the socket
    xsk_socket* socket_ = nullptr;
    xsk_ring_cons rx_{};
    xsk_ring_prod tx_{};
    BindMode mode_{};
    std::uint32_t tx_budget_ = 32;
};

}  // namespace culvert::device
