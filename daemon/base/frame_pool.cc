#include "daemon/base/frame_pool.h"

#include <sys/mman.h>

#include <cerrno>
#include <system_error>

namespace culvert {

namespace {
constexpr std::size_t kHugePage = 2 * 1024 * 1024;
}

FramePool::FramePool(std::uint32_t count) : count_(count) {
    // Aligned for huge pages, and asking for them where the kernel has them (no reservation is needed). Every packet lies in
    // a page of its own and the fill ring goes round all of them, so with small pages each packet is a TLB miss as well.
    mapped_bytes_ = size_bytes() + kHugePage;
    void* memory = ::mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mapping frame memory");
    mapping_ = static_cast<std::byte*>(memory);
    const auto address = reinterpret_cast<std::uintptr_t>(mapping_);
    base_ = mapping_ + ((address + kHugePage - 1) / kHugePage * kHugePage - address);
    ::madvise(base_, size_bytes(), MADV_HUGEPAGE);  // refused where there are none: small pages serve as well
    free_.reserve(count);
    for (ChunkIndex index = count; index > 0; --index) free_.push_back(index - 1);
}

FramePool::~FramePool() { ::munmap(mapping_, mapped_bytes_); }

}  // namespace culvert
