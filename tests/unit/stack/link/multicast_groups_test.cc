#include "daemon/stack/link/multicast_groups.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "daemon/base/rng.h"

namespace culvert::stack {
namespace {

constexpr std::uint32_t kEth0 = 7;

Address ip(const char* text) { return Address::parse(text).value(); }
int code(const Result<void>& result) { return result ? 0 : result.error().code; }

/// The same for both families.
class MulticastGroupsTest : public testing::TestWithParam<const char*> {
protected:
    ~MulticastGroupsTest() override {
        for (MulticastMember& member : members) groups.leave_all(member);
        EXPECT_EQ(groups.group_count(), 0u);
    }
    Address source(unsigned n) const {
        return group.is_v4() ? Address::v4(10, 0, 0, static_cast<std::uint8_t>(n))
                             : ip(("fd00::" + std::to_string(n)).c_str());
    }
    bool accepts(unsigned n) const { return groups.accepts(kEth0, group, source(n)); }

    MulticastGroups groups;
    MulticastMember members[4];
    Address group = ip(GetParam());
};
INSTANTIATE_TEST_SUITE_P(Families, MulticastGroupsTest, testing::Values("239.1.1.1", "ff05::1:1"));

TEST_P(MulticastGroupsTest, JoinAndLeave) {
    EXPECT_FALSE(accepts(1));
    EXPECT_EQ(code(groups.join(members[0], kEth0, group)), 0);
    EXPECT_TRUE(accepts(1));
    EXPECT_FALSE(groups.accepts(kEth0 + 1, group, source(1))) << "another interface";
    EXPECT_EQ(code(groups.join(members[0], kEth0, group)), EADDRINUSE);
    EXPECT_EQ(code(groups.join(members[1], kEth0, group)), 0);
    EXPECT_EQ(code(groups.leave(members[0], kEth0, group)), 0);
    EXPECT_TRUE(accepts(1)) << "the other socket still has it";
    EXPECT_FALSE(groups.accepts(members[0], kEth0, group, source(1)));
    EXPECT_EQ(code(groups.leave(members[0], kEth0, group)), EADDRNOTAVAIL);
    EXPECT_EQ(code(groups.leave(members[1], kEth0, group)), 0);
    EXPECT_FALSE(accepts(1));
    EXPECT_EQ(code(groups.join(members[0], kEth0, source(1))), EINVAL) << "not a group";
}

// [RFC3376 3.2] the examples of the RFC: EXCLUDE {a,b,c,d}, EXCLUDE {b,c,d,e}, INCLUDE {d,e,f} make EXCLUDE {b,c};
// without the excluding ones, INCLUDE lists are united.
TEST_P(MulticastGroupsTest, FiltersAreMergedAsInTheRfc) {
    const auto filter = [&](int n, FilterMode mode, std::initializer_list<unsigned> list) {
        std::vector<Address> sources;
        for (const unsigned one : list) sources.push_back(source(one));
        (void)groups.join(members[n], kEth0, group);
        EXPECT_EQ(code(groups.set_filter(members[n], kEth0, group, mode, sources)), 0);
    };
    const auto accepted = [&] {
        std::set<unsigned> all;
        for (unsigned n = 1; n <= 8; ++n)
            if (accepts(n)) all.insert(n);
        return all;
    };
    filter(0, FilterMode::kExclude, {1, 2, 3, 4});
    filter(1, FilterMode::kExclude, {2, 3, 4, 5});
    filter(2, FilterMode::kInclude, {4, 5, 6});
    EXPECT_EQ(accepted(), (std::set<unsigned>{1, 4, 5, 6, 7, 8}));
    filter(0, FilterMode::kInclude, {1, 2, 3});
    filter(1, FilterMode::kInclude, {2, 3, 4});
    filter(2, FilterMode::kInclude, {5, 6});
    EXPECT_EQ(accepted(), (std::set<unsigned>{1, 2, 3, 4, 5, 6}));
    filter(1, FilterMode::kInclude, {});
    EXPECT_EQ(accepted(), (std::set<unsigned>{1, 2, 3, 5, 6})) << "INCLUDE {} leaves";
    EXPECT_FALSE(groups.filter(members[1], kEth0, group));
}

TEST_P(MulticastGroupsTest, SourcesOneByOneWithLinuxErrors) {
    MulticastMember& a = members[0];
    EXPECT_EQ(code(groups.block_source(a, kEth0, group, source(1))), EINVAL) << "not joined";
    EXPECT_EQ(code(groups.leave_source(a, kEth0, group, source(1))), EINVAL);
    EXPECT_EQ(code(groups.join_source(a, kEth0, group, source(1))), 0);
    EXPECT_EQ(code(groups.join_source(a, kEth0, group, source(1))), EADDRNOTAVAIL);
    EXPECT_EQ(code(groups.join_source(a, kEth0, group, source(2))), 0);
    EXPECT_EQ(code(groups.block_source(a, kEth0, group, source(3))), EINVAL) << "it is an INCLUDE filter";
    EXPECT_TRUE(accepts(1) && accepts(2) && !accepts(3));
    EXPECT_EQ(code(groups.leave_source(a, kEth0, group, source(1))), 0);
    EXPECT_FALSE(accepts(1));
    EXPECT_EQ(code(groups.leave_source(a, kEth0, group, source(2))), 0);
    EXPECT_EQ(code(groups.leave(a, kEth0, group)), EADDRNOTAVAIL) << "the last source has left the group";

    EXPECT_EQ(code(groups.join(a, kEth0, group)), 0);
    EXPECT_EQ(code(groups.block_source(a, kEth0, group, source(1))), 0);
    EXPECT_EQ(code(groups.block_source(a, kEth0, group, source(1))), EADDRNOTAVAIL);
    EXPECT_EQ(code(groups.join_source(a, kEth0, group, source(2))), EINVAL) << "it is an EXCLUDE filter";
    EXPECT_TRUE(!accepts(1) && accepts(2));
    EXPECT_EQ(code(groups.unblock_source(a, kEth0, group, source(2))), EADDRNOTAVAIL);
    EXPECT_EQ(code(groups.unblock_source(a, kEth0, group, source(1))), 0);
    EXPECT_TRUE(accepts(1));
    const auto filter = groups.filter(a, kEth0, group);
    ASSERT_TRUE(filter);
    EXPECT_EQ(filter->mode, FilterMode::kExclude);
    EXPECT_TRUE(filter->sources.empty());
    EXPECT_EQ(code(groups.block_source(a, kEth0, group, ip(group.is_v4() ? "fd00::1" : "10.0.0.1"))), EINVAL);
}

TEST_P(MulticastGroupsTest, EverythingIsBounded) {
    MulticastMember& a = members[0];
    ASSERT_EQ(code(groups.join(a, kEth0, group)), 0);
    for (std::uint32_t other = 1; other < MulticastGroups::kMaxPerSocket; ++other)
        ASSERT_EQ(code(groups.join(a, kEth0 + other, group)), 0);
    EXPECT_EQ(code(groups.join(a, kEth0 - 1, group)), ENOBUFS);
    for (unsigned n = 1; n <= MulticastGroups::kMaxSources; ++n)
        ASSERT_EQ(code(groups.block_source(a, kEth0, group, source(n))), 0);
    EXPECT_EQ(code(groups.block_source(a, kEth0, group, source(99))), ENOBUFS);
    EXPECT_FALSE(accepts(1));
}

TEST_P(MulticastGroupsTest, SourcesOfAllSocketsTogetherAreBounded) {
    std::vector<MulticastMember> many(MulticastGroups::kMaxGroupSources / MulticastGroups::kMaxSources);
    unsigned next = 1;
    const auto fresh = [&] {
        ++next;
        return group.is_v4() ? Address::v4(10, 1, static_cast<std::uint8_t>(next >> 8), static_cast<std::uint8_t>(next))
                             : ip(("fd01::" + std::to_string(next)).c_str());
    };
    for (MulticastMember& member : many)
        for (std::size_t n = 0; n < MulticastGroups::kMaxSources; ++n)
            ASSERT_EQ(code(groups.join_source(member, kEth0, group, fresh())), 0);
    const Address more = fresh();
    EXPECT_EQ(code(groups.join_source(members[0], kEth0, group, more)), ENOBUFS);
    EXPECT_TRUE(members[0].empty()) << "nothing is left of what failed";
    EXPECT_FALSE(groups.accepts(kEth0, group, more));
    for (MulticastMember& member : many) groups.leave_all(member);
}

/// Random changes by four sockets, compared with the sentence of RFC 3376 3.2 as it is written.
TEST_P(MulticastGroupsTest, AgreesWithTheRuleAsWritten) {
    struct Model {
        bool joined = false;
        FilterMode mode = FilterMode::kInclude;
        std::set<unsigned> sources;
    };
    Model models[4];
    Rng rng(20261121);
    for (int round = 0; round < 3000; ++round) {
        const auto who = static_cast<std::size_t>(rng.below(4));
        Model& model = models[who];
        if (rng.happens(0.2)) {
            groups.leave_all(members[who]);
            model = {};
        } else {
            if (!model.joined) (void)groups.join(members[who], kEth0, group);
            model = {true, rng.happens(0.5) ? FilterMode::kInclude : FilterMode::kExclude, {}};
            std::vector<Address> sources;
            for (unsigned n = 1; n <= 6; ++n) {
                if (!rng.happens(0.5)) continue;
                model.sources.insert(n);
                sources.push_back(source(n));
            }
            ASSERT_EQ(code(groups.set_filter(members[who], kEth0, group, model.mode, sources)), 0);
            if (model.mode == FilterMode::kInclude && model.sources.empty()) model = {};
        }
        for (unsigned n = 1; n <= 7; ++n) {
            bool wanted = false;  // somebody wants it: what the merged filter must let through, and nothing else
            for (const Model& one : models)
                wanted |= one.joined && (one.mode == FilterMode::kInclude) == one.sources.contains(n);
            ASSERT_EQ(accepts(n), wanted) << "round " << round << " source " << n;
        }
    }
}

}  // namespace
}  // namespace culvert::stack
