#include "daemon/device/af_xdp/umem.h"

namespace culvert::device {

Result<std::unique_ptr<Umem>> Umem::create(FramePool& pool, std::uint32_t fill_size, std::uint32_t completion_size) {
    std::unique_ptr<Umem> umem(new Umem);
    xsk_umem_config config{};
    config.fill_size = fill_size;
    config.comp_size = completion_size;
    config.frame_size = FramePool::kChunkSize;
    const int error =
        xsk_umem__create(&umem->umem_, pool.base(), pool.size_bytes(), &umem->fill_, &umem->completion_, &config);
    if (error == -EPERM) return fail(EPERM, "AF_XDP needs CAP_NET_RAW (run culvertd as root)");
    if (error == -ENOBUFS) return fail(ENOBUFS, "frame memory exceeds the locked-memory limit (CAP_IPC_LOCK lifts it)");
    if (error != 0) return fail(-error, "registering frame memory for AF_XDP");
    return umem;
}

Umem::~Umem() {
    if (umem_ != nullptr) xsk_umem__delete(umem_);
}

}  // namespace culvert::device
