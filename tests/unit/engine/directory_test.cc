// The directory against plain maps, and the questions it must answer exactly.
#include "daemon/engine/directory.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "daemon/base/rng.h"

namespace culvert::engine {
namespace {

using Protocol = Directory::Protocol;

TEST(Directory, AFlowBelongsToWhoCameFirst) {
    Directory directory(1024);
    EXPECT_EQ(directory.owner(5), 0u);
    EXPECT_TRUE(directory.flow_began(2, 5, false));
    EXPECT_EQ(directory.owner(5), EngineSet{1} << 2);
    EXPECT_FALSE(directory.flow_began(0, 5, false));
    EXPECT_TRUE(directory.flow_began(2, 5, false));  // another flow with the same hash
    directory.flow_ended(2, 5);
    EXPECT_EQ(directory.owner(5), EngineSet{1} << 2);
    directory.flow_ended(2, 5);
    EXPECT_EQ(directory.owner(5), 0u);
    EXPECT_TRUE(directory.flow_began(0, 5, false));
    EXPECT_EQ(directory.owner(5), EngineSet{1});
    // Another flow with that hash, and it is known to be another.
    EXPECT_FALSE(directory.flow_began(3, 5, false));
    EXPECT_TRUE(directory.flow_began(3, 5, true));
    EXPECT_TRUE(directory.flow_began(0, 5, false));
    EXPECT_EQ(directory.owner(5), EngineSet{9});
    directory.flow_ended(0, 5);
    directory.flow_ended(0, 5);
    EXPECT_EQ(directory.owner(5), EngineSet{8});
}

TEST(Directory, AgreesWithAMapAndSaysWhenItCannotKnow) {
    Directory directory(512);  // 64 sets of 16
    Rng rng(7);
    std::map<std::uint32_t, std::pair<std::uint32_t, int>> oracle;  // hash -> engine, uses
    std::size_t unlisted = 0;
    for (int step = 0; step < 20000; ++step) {
        const auto hash = static_cast<std::uint32_t>(rng.next()) & 0xf00003ff;  // crowded
        const auto engine = static_cast<std::uint32_t>(rng.below(4));
        const auto at = oracle.find(hash);
        if (at == oracle.end()) {
            if (oracle.size() > 1500) continue;
            ASSERT_TRUE(directory.flow_began(engine, hash, false));
            oracle[hash] = {engine, 1};
        } else if (rng.below(2) == 0) {
            directory.flow_ended(at->second.first, hash);
            if (--at->second.second == 0) oracle.erase(at);
        } else if (directory.owner(hash) != 0) {
            ASSERT_EQ(directory.flow_began(engine, hash, false), engine == at->second.first);
            if (engine == at->second.first) ++at->second.second;
        }
        if (step % 500 != 0) continue;
        unlisted = 0;
        for (const auto& [each, owner] : oracle) {
            const EngineSet found = directory.owner(each);
            if (found == 0)
                ++unlisted;
            else
                ASSERT_EQ(found, EngineSet{1} << owner.first);
        }
        ASSERT_EQ(directory.overflows() != 0, unlisted != 0);
    }
    EXPECT_GT(unlisted, 0u) << "the test must crowd the sets";
    while (!oracle.empty()) {
        auto& [hash, owner] = *oracle.begin();
        directory.flow_ended(owner.first, hash);
        if (--owner.second == 0) oracle.erase(oracle.begin());
    }
    EXPECT_EQ(directory.overflows(), 0u);
}

TEST(Directory, APortBelongsToEveryEngineWithASocketOnIt) {
    Directory directory(64);
    const Endpoint one{Address::v4(10, 0, 0, 1), 80};
    const Endpoint two{Address::v4(10, 0, 0, 2), 80};
    const Endpoint any{Address::any(Family::kIpv4), 80};
    directory.bound(0, Protocol::kTcp, one);
    directory.bound(0, Protocol::kTcp, two);
    directory.bound(1, Protocol::kTcp, any);
    directory.bound(1, Protocol::kTcp, any);
    EXPECT_EQ(directory.bound_to(Protocol::kTcp, Port{80}), 3u);
    EXPECT_EQ(directory.bound_to(Protocol::kUdp, Port{80}), 0u);
    EXPECT_EQ(directory.bound_to(Protocol::kTcp, Port{81}), 0u);
    EXPECT_EQ(directory.bound_to(Protocol::kTcp, one), 3u);
    EXPECT_EQ(directory.bound_to(Protocol::kTcp, {Address::v4(10, 0, 0, 3), 80}), 2u);
    EXPECT_EQ(directory.bound_to(Protocol::kTcp, {*Address::parse("fd00::1"), 80}), 0u);
    directory.unbound(1, Protocol::kTcp, any);
    EXPECT_EQ(directory.bound_to(Protocol::kTcp, Port{80}), 3u);
    directory.unbound(1, Protocol::kTcp, any);
    EXPECT_EQ(directory.bound_to(Protocol::kTcp, Port{80}), 1u);
    directory.unbound(0, Protocol::kTcp, one);
    EXPECT_EQ(directory.bound_to(Protocol::kTcp, Port{80}), 1u);
    EXPECT_EQ(directory.bound_to(Protocol::kTcp, one), 0u);
    directory.unbound(0, Protocol::kTcp, two);
    EXPECT_EQ(directory.bound_to(Protocol::kTcp, Port{80}), 0u);
}

}  // namespace
}  // namespace culvert::engine
