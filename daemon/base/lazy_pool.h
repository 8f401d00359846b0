// A bounded store of equal pieces of memory: reserved once, touched only when used, recycled last-in first-out.
//
// The whole capacity is mapped at startup, but the kernel gives pages only as pieces are first used, so a pool that is
// made for the worst hour costs nothing in the others. Single-threaded: belongs to one engine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "shm/base/check.h"

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
    std::uint32_t allocate() {
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
    void release(std::uint32_t index) {
        DCHECK(index < touched_);
        DCHECK(used_ > 0);
        std::memcpy(at(index), &free_, sizeof free_);
        free_ = index;
        --used_;
    }

    std::byte* at(std::uint32_t index) { return base_ + std::size_t{index} * piece_bytes_; }
    std::uint32_t index_of(const void* piece) const {
        // An exact division, which is a multiplication: a tenth of the time, for every segment.
        const auto offset = static_cast<std::uint64_t>(static_cast<const std::byte*>(piece) - base_);
        return static_cast<std::uint32_t>((offset >> shift_) * inverse_);
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
    int shift_;                     // piece_bytes_ is (an odd number) << shift_,
    std::uint64_t inverse_;         // and this is the odd number's inverse modulo 2^64
};

}  // namespace culvert
