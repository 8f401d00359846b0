// The frame pool as the kernel knows it: UMEM, with the two rings that move chunks in (fill) and out (completion).
#pragma once

#include <xdp/xsk.h>

#include <memory>

#include "daemon/base/frame_pool.h"
#include "shm/base/error.h"

namespace culvert::device {

class Umem {
public:
    /// Registers the whole pool (pins its pages). The pool must outlive this. Errors: ENOBUFS memory lock limit.
    static Result<std::unique_ptr<Umem>> create(FramePool& pool, std::uint32_t fill_size,
                                                std::uint32_t completion_size);
    ~Umem();
    Umem(const Umem&) = delete;
    Umem& operator=(const Umem&) = delete;

    xsk_umem* get() { return umem_; }
    const xsk_ring_prod& fill() const { return fill_; }
    const xsk_ring_cons& completion() const { return completion_; }

private:
    Umem() = default;
    xsk_umem* umem_ = nullptr;
    xsk_ring_prod fill_{};  // libxdp keeps pointers to these two
    xsk_ring_cons completion_{};
};

}  // namespace culvert::device
