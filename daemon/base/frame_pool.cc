#include "daemon/base/frame_pool.h"

#include <sys/mman.h>

#include <cerrno>
#include <system_error>

namespace culvert {

FramePool::FramePool(std::uint32_t count) : count_(count) {
    void* memory = ::mmap(nullptr, size_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mapping frame memory");
    base_ = static_cast<std::byte*>(memory);
    free_.reserve(count);
    for (ChunkIndex index = count; index > 0; --index) free_.push_back(index - 1);
}

FramePool::~FramePool() { ::munmap(base_, size_bytes()); }

}  // namespace culvert
