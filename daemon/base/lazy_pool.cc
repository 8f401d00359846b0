#include "daemon/base/lazy_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <system_error>

namespace culvert {

LazyPool::LazyPool(std::size_t piece_bytes, std::uint32_t count)
    : piece_bytes_((piece_bytes + 15) / 16 * 16), count_(count) {
    shift_ = std::countr_zero(piece_bytes_);
    const std::uint64_t odd = piece_bytes_ >> shift_;
    // Newton: every step doubles the number of right bits, and odd * odd = 1 modulo 8 begins with three.
    inverse_ = odd;
    for (int bits = 3; bits < 64; bits *= 2) inverse_ *= 2 - odd * inverse_;
    const std::size_t bytes = std::max<std::size_t>(piece_bytes_ * count, 1);
    void* const memory =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "reserving a memory pool");
    base_ = static_cast<std::byte*>(memory);
}

LazyPool::~LazyPool() { munmap(base_, std::max<std::size_t>(piece_bytes_ * count_, 1)); }

}  // namespace culvert
