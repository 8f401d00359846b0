// Memory for large tables that are read in no order: in huge pages where the kernel has some to give (madvise), so that a
// lookup that misses the caches does not miss the address translation, too.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace culvert {

/// For std::vector. Small vectors are as usual; from 512 KiB on, whole huge pages. Cold: tables are built, then read.
template <class T>
struct HugeAllocator {
    using value_type = T;

    HugeAllocator() = default;
    template <class U>
    HugeAllocator(const HugeAllocator<U>&) {}  // NOLINT: as the standard wants it

    T* allocate(std::size_t count) {
        if (count > PTRDIFF_MAX / sizeof(T) - kHugePage) throw std::bad_alloc();
        const bool huge = count * sizeof(T) >= kHugePage / 4;
        const std::size_t unit = huge ? kHugePage : kLine;
        const std::size_t bytes = (count * sizeof(T) + unit - 1) / unit * unit;
        void* const memory = std::aligned_alloc(unit, bytes);
        if (memory == nullptr) throw std::bad_alloc();
        if (huge) ::madvise(memory, bytes, MADV_HUGEPAGE);  // a wish: small pages do as well, only slower
        return static_cast<T*>(memory);
    }
    void deallocate(T* memory, std::size_t) { std::free(memory); }

    friend bool operator==(const HugeAllocator&, const HugeAllocator&) { return true; }

private:
    static constexpr std::size_t kHugePage = std::size_t{2} << 20;
    static constexpr std::size_t kLine = 64;
};

}  // namespace culvert
