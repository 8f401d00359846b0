// A bounded store of equal pieces of memory: reserved once, touched only when used, recycled last-in first-out.
//
// The whole capacity is mapped at startup, but the kernel gives pages only as pieces are first used, so a pool that is
// made for the worst hour costs nothing in the others. Single-threaded: belongs to one engine.
#pragma once

#include <cstddef>
#include <cstdint>

namespace culvert {

class LazyPool {
public:
    /// Room for `count` pieces of `piece_bytes` (rounded up to 16) each. Throws std::system_error (startup only).
    LazyPool(std::size_t piece_bytes, std::uint32_t count);
    ~LazyPool();
    LazyPool(const LazyPool&) = delete;
    LazyPool& operator=(const LazyPool&) = delete;

    static constexpr std::uint32_t kNone = UINT32_MAX;

    /// Uninitialised memory, aligned to 16; kNone when all are in use.
    std::uint32_t allocate();
    void release(std::uint32_t index);

    std::byte* at(std::uint32_t index) { return base_ + std::size_t{index} * piece_bytes_; }
    std::uint32_t index_of(const void* piece) const {
        return static_cast<std::uint32_t>(static_cast<std::size_t>(static_cast<const std::byte*>(piece) - base_) /
                                          piece_bytes_);
    }
    std::uint32_t capacity() const { return count_; }
    std::uint32_t used() const { return used_; }

private:
    std::byte* base_ = nullptr;
    std::size_t piece_bytes_;
    std::uint32_t count_;
    std::uint32_t used_ = 0;
    std::uint32_t touched_ = 0;     // pieces below this were used at least once
    std::uint32_t free_ = kNone;    // list through the first word of free pieces
};

}  // namespace culvert
