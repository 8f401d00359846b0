// The memory that frames lie in: one region cut into equal chunks. For AF_XDP it is the UMEM.
//
//   base                                       base + count * chunk_size
//    |  chunk 0  |  chunk 1  |  chunk 2  | ... |
//
// A packet larger than a chunk takes several chunks (multi-buffer). Single-threaded: belongs to one engine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace culvert {

using ChunkIndex = std::uint32_t;
inline constexpr ChunkIndex kNoChunk = UINT32_MAX;

class FramePool {
public:
    static constexpr std::uint32_t kChunkSize = 4096;

    /// Maps `count` page-aligned chunks of anonymous memory. Throws std::system_error (startup only).
    explicit FramePool(std::uint32_t count);
    ~FramePool();
    FramePool(const FramePool&) = delete;
    FramePool& operator=(const FramePool&) = delete;

    /// kNoChunk when none is left.
    ChunkIndex allocate() {
        if (free_.empty()) return kNoChunk;
        const ChunkIndex index = free_.back();
        free_.pop_back();
        return index;
    }
    void release(ChunkIndex index) { free_.push_back(index); }

    std::byte* data(ChunkIndex index) { return base_ + std::size_t{index} * kChunkSize; }
    std::byte* base() { return base_; }
    std::size_t size_bytes() const { return std::size_t{count_} * kChunkSize; }
    std::uint32_t count() const { return count_; }
    std::uint32_t available() const { return static_cast<std::uint32_t>(free_.size()); }

private:
    std::byte* mapping_ = nullptr;
    std::size_t mapped_bytes_ = 0;
    std::byte* base_ = nullptr;
    std::uint32_t count_ = 0;
    std::vector<ChunkIndex> free_;
};

}  // namespace culvert
