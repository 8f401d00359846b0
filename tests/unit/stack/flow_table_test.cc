// The flow table against std::map, with few home slots so that runs are long and wrap around the end.
#include <gtest/gtest.h>

#include <map>

#include "daemon/base/rng.h"
#include "daemon/stack/tcp/flow_table.h"

namespace culvert::stack::tcp {
namespace {

TEST(FlowTable, AgreesWithAMap) {
    Rng rng(42);
    FlowTable table(40);  // 64 slots
    std::map<std::uint32_t, std::uint32_t> oracle;  // index -> hash
    for (int step = 0; step < 20000; ++step) {
        const auto index = static_cast<std::uint32_t>(rng.below(60));
        // All homes near the last slot; several flows share a hash.
        const auto hash = static_cast<std::uint32_t>(0xfffffff0u + rng.below(20));
        const auto at = oracle.find(index);
        if (at == oracle.end()) {
            const bool inserted = table.insert(hash, {FlowRef::Kind::kConnection, index}) == FlowTable::Inserted::kYes;
            EXPECT_EQ(inserted, oracle.size() < 40);
            if (inserted) oracle[index] = hash;
        } else if (rng.below(2) == 0) {
            table.erase(at->second, {FlowRef::Kind::kConnection, index});
            oracle.erase(at);
        }
        EXPECT_EQ(table.size(), oracle.size());
        for (const auto& [each, its_hash] : oracle) {
            const FlowRef found = table.find(its_hash, [&](FlowRef ref) { return ref.index == each; });
            ASSERT_TRUE(found) << "step " << step;
            ASSERT_EQ(found.index, each);
        }
    }
}

TEST(FlowTable, ReplaceKeepsThePlace) {
    FlowTable table(4);
    ASSERT_EQ(table.insert(7, {FlowRef::Kind::kHalfOpen, 1}), FlowTable::Inserted::kYes);
    table.replace(7, {FlowRef::Kind::kHalfOpen, 1}, {FlowRef::Kind::kConnection, 3});
    const auto any = [](FlowRef) { return true; };
    EXPECT_EQ(table.find(7, any), (FlowRef{FlowRef::Kind::kConnection, 3}));
    EXPECT_EQ(table.size(), 1u);
    EXPECT_FALSE(table.find(8, any));
}

TEST(FlowHash, DependsOnEveryPartAndOnTheKey) {
    const std::uint64_t key[2] = {1, 2};
    const std::uint64_t other_key[2] = {1, 3};
    const FlowHash hash(key);
    const Endpoint a{Address::v4(10, 0, 0, 1), 80};
    const Endpoint b{Address::v4(10, 0, 0, 2), 40000};
    const auto base = hash(a, b);
    EXPECT_EQ(base, FlowHash(key)(a, b));
    EXPECT_NE(base, FlowHash(other_key)(a, b));
    EXPECT_NE(base, hash(b, a));
    EXPECT_NE(base, hash({a.address, 81}, b));
    EXPECT_NE(base, hash(a, {b.address, 40001}));
    EXPECT_NE(base, hash({Address::v4(10, 0, 0, 3), 80}, b));
}

TEST(FlowHash, SpreadsConsecutivePorts) {
    const std::uint64_t key[2] = {0x1234, 0x5678};
    const FlowHash hash(key);
    std::array<int, 64> buckets{};
    for (int port = 0; port < 6400; ++port)
        ++buckets[hash({Address::v4(10, 0, 0, 1), 80}, {Address::v4(10, 0, 0, 2), static_cast<Port>(port)}) % 64];
    for (const int count : buckets) {
        EXPECT_GT(count, 50);
        EXPECT_LT(count, 160);
    }
}

}  // namespace
}  // namespace culvert::stack::tcp
