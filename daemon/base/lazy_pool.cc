#include "daemon/base/lazy_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "shm/base/check.h"

namespace culvert {

LazyPool::LazyPool(std::size_t piece_bytes, std::uint32_t count)
    : piece_bytes_((piece_bytes + 15) / 16 * 16), count_(count) {
    const std::size_t bytes = std::max<std::size_t>(piece_bytes_ * count, 1);
    void* const memory =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "reserving a memory pool");
    base_ = static_cast<std::byte*>(memory);
}

LazyPool::~LazyPool() { munmap(base_, std::max<std::size_t>(piece_bytes_ * count_, 1)); }

std::uint32_t LazyPool::allocate() {
    std::uint32_t index = free_;
    if (index != kNone) {
        std::memcpy(&free_, at(index), sizeof free_);
    } else if (touched_ < count_) {
        index = touched_++;
    } else {
        return kNone;
    }
    ++used_;
    return index;
}

void LazyPool::release(std::uint32_t index) {
    DCHECK(index < touched_);
    DCHECK(used_ > 0);
    std::memcpy(at(index), &free_, sizeof free_);
    free_ = index;
    --used_;
}

}  // namespace culvert
