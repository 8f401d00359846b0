#include "shm/block_list.h"

#include <gtest/gtest.h>

#include <vector>

namespace culvert::shm {
namespace {

std::vector<std::uint32_t> chain(std::uint32_t link, const std::vector<BlockMeta>& meta) {
    std::vector<std::uint32_t> indices;
    for (; link != kEmptyList; link = meta[link - 1].next.load()) indices.push_back(link - 1);
    return indices;
}

TEST(BlockList, TakesEverythingNewestFirst) {
    std::vector<BlockMeta> meta(8);
    std::atomic<std::uint32_t> head{kEmptyList};
    push_block(head, meta.data(), 3);
    push_block(head, meta.data(), 0);
    meta[6].next.store(5 + 1);  // a chain of two: 6 is newer than 5
    push_chain(head, meta.data(), 6, 5);
    EXPECT_EQ(chain(take_all(head), meta), (std::vector<std::uint32_t>{6, 5, 0, 3}));
    EXPECT_EQ(take_all(head), kEmptyList);
}

TEST(TaggedStack, PopsWhatWasPushedAndEndsEmpty) {
    std::vector<BlockMeta> meta(8);
    std::atomic<std::uint64_t> head{0};
    TaggedStack stack(head, meta.data(), 8);
    EXPECT_EQ(stack.pop(), kNoIndex);
    stack.push(2);
    stack.push(7);
    meta[4].next.store(1 + 1);
    stack.push_chain(4, 1);
    std::vector<std::uint32_t> popped;
    for (std::uint32_t index; (index = stack.pop()) != kNoIndex;) popped.push_back(index);
    EXPECT_EQ(popped, (std::vector<std::uint32_t>{4, 1, 7, 2}));
    EXPECT_TRUE(stack.empty());
}

TEST(TaggedStack, TheTagMakesAStaleHeadFail) {
    std::vector<BlockMeta> meta(8);
    std::atomic<std::uint64_t> head{0};
    TaggedStack stack(head, meta.data(), 8);
    stack.push(0);
    const std::uint64_t before = head.load();
    EXPECT_EQ(stack.pop(), 0u);
    stack.push(0);  // the same block on top again
    EXPECT_NE(head.load(), before);
}

TEST(TaggedStack, AWildIndexIsNotFollowed) {
    std::vector<BlockMeta> meta(8);
    std::atomic<std::uint64_t> head{12345};
    TaggedStack stack(head, meta.data(), 8);
    EXPECT_EQ(stack.pop(), kNoIndex);
}

}  // namespace
}  // namespace culvert::shm
