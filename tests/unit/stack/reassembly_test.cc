#include "daemon/stack/reassembly.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "daemon/stack/ip_input.h"
#include "tests/unit/stack/fragments.h"

namespace culvert::stack {
namespace {

constexpr std::uint64_t kSecret[2] = {11, 22};

struct Timeouts final : Reassembly::Observer {
    void on_timeout(Interface&, bool, std::span<const std::byte> quote, Instant) override {
        quotes.emplace_back(quote.begin(), quote.end());
    }
    std::vector<Bytes> quotes;
};

class ReassemblyTest : public testing::TestWithParam<bool>, public IpWorld {
protected:
    IpInput input{output.local_addresses()};
    Reassembly::Limits limits;
    std::unique_ptr<Reassembly> reassembly = std::make_unique<Reassembly>(limits, kSecret, counters);
    Timeouts timeouts;
    const bool v4 = GetParam();
    const Address from = v4 ? peer4 : peer6;
    const Address to = v4 ? our4 : our6;

    /// What came out: kNone and an empty message while it is not whole.
    struct Result {
        Drop drop = Drop::kNone;
        Bytes message;
    };
    Result add(const Bytes& frame) { return add(received(frame)); }
    Result add(const RxPacket& packet) {
        const auto link = input.accept_link(eth0, packet).value();
        const auto part = input.read_fragment(link, packet);
        if (!part) return {part.error(), {}};
        const auto whole = reassembly->add(*part, now);
        if (!whole) return {whole.error(), {}};
        if (*whole == nullptr) return {};
        Result result;
        const auto ip = input.accept(*part->interface, **whole, false);
        EXPECT_TRUE(ip) << drop_name(ip.error());
        if (ip) {
            Bytes all((*whole)->head.begin(), (*whole)->head.end());
            for (const auto piece : (*whole)->rest) all.insert(all.end(), piece.begin(), piece.end());
            EXPECT_EQ(all.size(), (*whole)->length);
            result.message.assign(all.begin() + ip->transport_offset, all.end());
            EXPECT_EQ(result.message.size(), ip->transport_length);
            EXPECT_EQ(ip->source, from);
        }
        reassembly->release();
        return result;
    }
    Bytes one(std::uint32_t id, std::size_t offset, bool more, std::span<const std::byte> bytes, std::uint8_t tos = 0) const {
        return fragment_frame(from, to, wire::IpProtocol::kUdp, id, offset, more, bytes, tos);
    }
    std::uint32_t idle_chunks() const { return limits.chunks; }
};

INSTANTIATE_TEST_SUITE_P(Families, ReassemblyTest, testing::Bool(),
                         [](const auto& param) { return param.param ? "Ipv4" : "Ipv6"; });

TEST_P(ReassemblyTest, PutsAPacketTogetherInAnyOrder) {  // [RFC1122 3.2.1.4 reassembly] [RFC1122 3.3.2 reassemble] [RFC791 3.2] [RFC8200 4.5]
    const Bytes message = pattern(5000);
    auto frames = cut(from, to, wire::IpProtocol::kUdp, 77, message, 1000);
    std::ranges::sort(frames);
    do {
        for (std::size_t i = 0; i + 1 < frames.size(); ++i) EXPECT_TRUE(add(frames[i]).message.empty());
        EXPECT_EQ(add(frames.back()).message, message);
        EXPECT_EQ(reassembly->datagrams(), 0u);
    } while (std::ranges::next_permutation(frames).found);
    EXPECT_EQ(reassembly->free_chunks(), idle_chunks());
}

TEST_P(ReassemblyTest, OfAVlanItComesOutAsItsInterfaceWantsIt) {
    Interface vlan = eth0;
    vlan.index = 8;
    for (const bool alone : {false, true}) {
        Interface& of = alone ? eth0 : vlan;  // all that the device has, or one network of several
        of.vlan = 100;
        of.parent = eth0.index;
        Interface* all[] = {&of};
        input.set_interfaces(all);
        for (const std::size_t size : {5000u, v4 ? 65515u : 65535u}) {
            const Bytes message = pattern(size);
            Result last;
            for (const Bytes& frame : cut(from, to, wire::IpProtocol::kUdp, 77, message, 1480)) last = add(tagged(frame, 0x8100, 100));
            EXPECT_EQ(last.message, message) << alone;
        }
    }
}

TEST_P(ReassemblyTest, TheLongestPacketIsTakenAndNotOneByteMore) {  // [RFC1122 3.3.2 size, limit, learn]; ping of death
    const std::size_t longest = v4 ? 65515 : 65535;
    const Bytes message = pattern(longest);
    const auto frames = cut(from, to, wire::IpProtocol::kUdp, 1, message, 1480);
    Result last;
    for (const Bytes& frame : frames) last = add(frame);
    EXPECT_EQ(last.message, message);

    EXPECT_EQ(add(one(2, 65528, false, pattern(v4 ? 8 : 9))).drop, Drop::kIpFragmentTooLong);
    EXPECT_EQ(add(one(2, 65528, true, pattern(1480))).drop, Drop::kIpFragmentTooLong);
    EXPECT_EQ(reassembly->datagrams(), 0u);
}

TEST_P(ReassemblyTest, ImpossibleFragmentsAreRefusedByName) {
    EXPECT_EQ(add(one(1, 0, true, pattern(1001))).drop, Drop::kIpFragmentMalformed) << "not a multiple of eight";
    EXPECT_EQ(add(one(1, 8, true, {})).drop, Drop::kIpFragmentMalformed) << "nothing in it";
    const auto tiny = fragment_frame(from, to, wire::IpProtocol::kTcp, 1, 0, true, pattern(16));
    EXPECT_EQ(add(tiny).drop, Drop::kIpFragmentTiny);  // [RFC1858] [RFC7112]
    if (v4) {
        const auto second = fragment_frame(from, to, wire::IpProtocol::kTcp, 1, 8, true, pattern(64));
        EXPECT_EQ(add(second).drop, Drop::kIpFragmentTiny);  // [RFC3128]
    }
    EXPECT_EQ(reassembly->datagrams(), 0u);
    EXPECT_EQ(reassembly->free_chunks(), idle_chunks());
}

TEST_P(ReassemblyTest, OverlapsEndThePacket) {  // [RFC5722 3] [RFC8200 4.5]
    const struct {
        const char* name;
        std::size_t offset;
        std::size_t length;
        bool more;
    } cases[] = {
        {"tail over head", 504, 512, true},   {"inside", 256, 64, true},         {"around", 0, 2048, true},
        {"other bytes", 0, 512, true},        {"end before the end", 0, 8, false}, {"end inside", 400, 8, false},
    };
    std::uint32_t id = 100;
    for (const auto& c : cases) {
        ++id;
        const std::uint32_t before = reassembly->free_chunks();
        EXPECT_EQ(add(one(id, 0, true, pattern(512))).drop, Drop::kNone);
        Bytes other = pattern(c.length);
        for (std::byte& b : other) b ^= std::byte{0x5a};
        EXPECT_EQ(add(one(id, c.offset, c.more, other)).drop, Drop::kIpFragmentOverlap) << c.name;
        EXPECT_EQ(reassembly->free_chunks(), before) << c.name;
        // Over IPv6 also what comes later of that packet; over IPv4 the number will be used again.
        EXPECT_EQ(add(one(id, 512, false, pattern(100))).drop, v4 ? Drop::kNone : Drop::kIpFragmentOverlap) << c.name;
    }
    now += 61s;
    reassembly->advance(now, timeouts);
    EXPECT_EQ(reassembly->datagrams(), 0u);
}

TEST_P(ReassemblyTest, TwoEndsContradictEachOther) {
    EXPECT_EQ(add(one(1, 1024, false, pattern(100))).drop, Drop::kNone);
    EXPECT_EQ(add(one(1, 2048, false, pattern(100))).drop, Drop::kIpFragmentOverlap);
    EXPECT_EQ(add(one(2, 1024, false, pattern(96))).drop, Drop::kNone);
    EXPECT_EQ(add(one(2, 1120, true, pattern(96))).drop, Drop::kIpFragmentOverlap) << "goes on behind the end";
}

TEST_P(ReassemblyTest, ADuplicateOfTheNetworkIsHarmless) {  // [RFC8200 4.5]
    const Bytes message = pattern(3001);
    const auto frames = cut(from, to, wire::IpProtocol::kUdp, 5, message, 1000);
    add(frames[3]);
    add(frames[0]);
    EXPECT_EQ(add(frames[0]).drop, Drop::kIpFragmentDuplicate);
    EXPECT_EQ(add(frames[3]).drop, Drop::kIpFragmentDuplicate);
    add(frames[1]);
    EXPECT_EQ(add(frames[2]).message, message);
}

TEST_P(ReassemblyTest, TimeEndsIt) {  // [RFC1122 3.3.2 timeout] a timeout; [RFC8200 4.5] 60 seconds
    add(one(1, 0, true, pattern(1480)));
    add(one(2, 1480, false, pattern(10)));
    const Duration limit = v4 ? 30s : 60s;
    EXPECT_EQ(reassembly->next_deadline(), now + limit);
    reassembly->advance(now + limit - 1ms, timeouts);
    EXPECT_EQ(reassembly->datagrams(), 2u);
    reassembly->advance(now + limit, timeouts);
    EXPECT_EQ(reassembly->datagrams(), 0u);
    EXPECT_EQ(reassembly->next_deadline(), kNever);
    EXPECT_EQ(counters.dropped(Drop::kIpReassemblyTimeout), 2u);
    EXPECT_EQ(reassembly->free_chunks(), idle_chunks());
    ASSERT_EQ(timeouts.quotes.size(), 2u);
    const std::size_t headers = v4 ? 20 : 48;
    ASSERT_EQ(timeouts.quotes[0].size(), headers + 512);
    const Bytes begin = pattern(512);
    EXPECT_TRUE(std::ranges::equal(std::span(timeouts.quotes[0]).subspan(headers), begin));
    EXPECT_TRUE(timeouts.quotes[1].empty()) << "its first fragment never came";
}

TEST_P(ReassemblyTest, PacketsWithEqualNumbersOfOthersAreOthers) {
    const Address other = v4 ? ip("10.0.0.3") : ip("fd00::3");
    add(one(9, 0, true, pattern(512)));
    EXPECT_EQ(add(fragment_frame(other, to, wire::IpProtocol::kUdp, 9, 0, true, pattern(512))).drop, Drop::kNone);
    EXPECT_EQ(add(one(10, 0, true, pattern(512))).drop, Drop::kNone);
    EXPECT_EQ(reassembly->datagrams(), 3u);
    // [RFC791 3.2] the protocol tells IPv4 packets apart, [RFC8200 4.5] not IPv6's
    const auto icmp = fragment_frame(from, to, v4 ? wire::IpProtocol::kIcmp : wire::IpProtocol::kUdp, 9, 0, true, pattern(512));
    EXPECT_EQ(add(icmp).drop, v4 ? Drop::kNone : Drop::kIpFragmentDuplicate);
}

TEST_P(ReassemblyTest, CongestionMarksAreKept) {  // [RFC3168 5.3]
    const auto tos_of = [&](std::uint32_t id, std::uint8_t first, std::uint8_t second) {
        const Bytes a = one(id, 0, true, pattern(512), first), b = one(id, 512, false, pattern(8), second);
        add(a);
        const auto packet = received(b);
        const auto part = input.read_fragment(input.accept_link(eth0, packet).value(), packet).value();
        const auto whole = reassembly->add(part, now);
        if (!whole) return 1000 + static_cast<int>(whole.error());
        const int tos = input.accept(eth0, **whole, false)->tos;
        reassembly->release();
        return tos;
    };
    EXPECT_EQ(tos_of(1, 2, 2), 2);
    EXPECT_EQ(tos_of(2, 2, 3), 3);
    EXPECT_EQ(tos_of(3, 3, 2), 3);
    EXPECT_EQ(tos_of(4, 0, 0), 0);
    EXPECT_EQ(tos_of(5, 0, 3), 1000 + static_cast<int>(Drop::kIpFragmentEcn));
}

TEST_P(ReassemblyTest, ASourceFillsOnlyItsShareAndTheOldestGives) {
    for (std::uint32_t id = 0; id < Reassembly::kMaxPerSource + 10; ++id) add(one(id, 0, true, pattern(512)));
    EXPECT_EQ(reassembly->datagrams(), Reassembly::kMaxPerSource);
    EXPECT_EQ(counters.dropped(Drop::kIpReassemblyNoRoom), 10u);
    EXPECT_EQ(add(one(Reassembly::kMaxPerSource + 9, 512, false, pattern(10))).message.size(), 522u) << "the newest lives";
    EXPECT_TRUE(add(one(0, 512, false, pattern(10))).message.empty()) << "the oldest went";
}

TEST_P(ReassemblyTest, AFloodOfForgedSourcesLeavesRoomForAnHonestOne) {
    limits = {.datagrams = 64, .chunks = 64};
    reassembly = std::make_unique<Reassembly>(limits, kSecret, counters);
    std::mt19937 random(7);
    for (int i = 0; i < 5000; ++i) {
        const auto byte = [&] { return static_cast<std::uint8_t>(random() % 250 + 3); };
        const Address forged =
            v4 ? Address::v4(11, byte(), byte(), byte()) : ip(("fd01::" + std::to_string(random() % 9999)).c_str());
        const std::size_t offset = (random() % 8000) * 8;
        add(fragment_frame(forged, to, wire::IpProtocol::kUdp, static_cast<std::uint32_t>(random()), offset == 0 ? 8 : offset,
                           true, pattern(512)));
        ASSERT_LE(reassembly->datagrams(), 64u);
        if (i % 100 != 0) continue;
        const Bytes message = pattern(3000);
        const auto frames = cut(from, to, wire::IpProtocol::kUdp, static_cast<std::uint32_t>(i), message, 1480);
        Result last;
        for (const Bytes& frame : frames) last = add(frame);
        EXPECT_EQ(last.message, message);
    }
    now += 60s;
    reassembly->advance(now, timeouts);
    EXPECT_EQ(reassembly->free_chunks(), limits.chunks);
}

TEST_P(ReassemblyTest, AReusedNumberDoesNotMixTwoPackets) {  // [RFC4963]
    if (!v4) GTEST_SKIP() << "IPv6 numbers have 32 bits";
    add(one(1, 0, true, pattern(512)));
    for (std::uint32_t id = 1000; id < 1000 + Reassembly::kMaxDistance; ++id) {
        add(one(id, 0, true, pattern(512)));
        add(one(id, 512, false, pattern(8)));
    }
    EXPECT_TRUE(add(one(1, 512, false, pattern(8))).message.empty()) << "the end of another packet";
    EXPECT_EQ(counters.dropped(Drop::kIpReassemblyStale), 1u);
}

TEST_P(ReassemblyTest, AFragmentThatLiesInPiecesIsTaken) {
    const Bytes message = pattern(9000);
    const auto frames = cut(from, to, wire::IpProtocol::kUdp, 5, message, 4504);
    ASSERT_EQ(frames.size(), 2u);
    Result last;
    for (const Bytes& frame : frames) {
        const std::span<const std::byte> all(frame);
        const std::span<const std::byte> rest[] = {all.subspan(100, 1001), all.subspan(1101)};
        last = add(RxPacket{.head = all.first(100), .rest = rest, .length = static_cast<std::uint32_t>(frame.size())});
    }
    EXPECT_EQ(last.message, message);
}

// Thousands of packets from a seed: cut at random, shuffled together, with losses, copies and forgeries between. What comes
// out must be what a simple map of bytes says, and nothing may leak.
TEST_P(ReassemblyTest, AgreesWithASimpleOracle) {
    for (std::uint32_t seed = 1; seed <= 10; ++seed) {
        SCOPED_TRACE("seed " + std::to_string(seed));
        std::mt19937 random(seed);
        const auto below = [&](std::size_t bound) { return random() % bound; };
        struct Expected {
            std::map<std::size_t, std::byte> bytes;
            std::optional<std::size_t> end;
            bool lost = false;  // an overlap that was no copy
            bool done = false;
            std::uint32_t seen = 0;  // arrivals of the source when its latest part came
        };
        std::uint32_t arrivals = 0;
        std::map<std::uint32_t, Expected> oracle;
        std::vector<std::pair<std::uint32_t, Bytes>> frames;
        struct Info {
            std::uint32_t id;
            std::size_t offset;
            Bytes bytes;
            bool more;
        };
        std::vector<Info> parts;
        for (std::uint32_t id = 1; id <= 20; ++id) {
            const Bytes message = pattern(20 + below(20000));
            for (std::size_t at = 0; at < message.size();) {
                const std::size_t step = 8 * (3 + below(400));
                const std::size_t here = std::min(step, message.size() - at);
                const bool more = at + here < message.size();
                const Bytes piece(message.begin() + static_cast<std::ptrdiff_t>(at),
                                  message.begin() + static_cast<std::ptrdiff_t>(at + here));
                if (below(60) != 0) parts.push_back({id, at, piece, more});
                if (below(20) == 0) parts.push_back({id, at, piece, more});
                if (below(80) == 0) parts.push_back({id, 8 * below(2000), pattern(8 * (3 + below(50))), true});
                at += here;
            }
        }
        std::ranges::shuffle(parts, random);
        for (const Info& part : parts) {
            Expected& e = oracle[part.id];
            if (e.done) continue;  // a copy of what is whole begins another packet: not the oracle's business
            if (v4 && !e.lost && !e.bytes.empty() && arrivals - e.seen > Reassembly::kMaxDistance) e = {};  // [RFC4963]
            e.seen = ++arrivals;
            bool any = false, all = true, same = true;
            for (std::size_t i = 0; i < part.bytes.size(); ++i) {
                const auto found = e.bytes.find(part.offset + i);
                any |= found != e.bytes.end();
                all &= found != e.bytes.end();
                same &= found != e.bytes.end() && found->second == part.bytes[i];
            }
            const std::size_t end = part.offset + part.bytes.size();
            const std::size_t highest = e.bytes.empty() ? 0 : e.bytes.rbegin()->first + 1;
            const bool copy = all && same && (part.more || e.end == end);
            const bool contradicts = part.more ? e.end && end >= *e.end : (e.end && *e.end != end) || highest > end;
            const Result result = add(one(part.id, part.offset, part.more, part.bytes));
            if (e.lost) {
                if (v4) continue;  // the number is free again, for whatever this was a part of
                EXPECT_EQ(result.drop, Drop::kIpFragmentOverlap);
                continue;
            }
            if (copy) {
                EXPECT_EQ(result.drop, Drop::kIpFragmentDuplicate);
                continue;
            }
            if (any || contradicts) {
                EXPECT_EQ(result.drop, Drop::kIpFragmentOverlap);
                e.lost = true;
                continue;
            }
            EXPECT_EQ(result.drop, Drop::kNone);
            for (std::size_t i = 0; i < part.bytes.size(); ++i) e.bytes[part.offset + i] = part.bytes[i];
            if (!part.more) e.end = end;
            e.done = e.end && e.bytes.size() == *e.end;
            EXPECT_EQ(!result.message.empty(), e.done);
            if (!e.done) continue;
            Bytes wanted;
            for (const auto& [at, byte] : e.bytes) wanted.push_back(byte);
            EXPECT_EQ(result.message, wanted);
        }
        now += 2min;
        reassembly->advance(now, timeouts);
        EXPECT_EQ(reassembly->datagrams(), 0u);
        EXPECT_EQ(reassembly->free_chunks(), idle_chunks());
    }
}

}  // namespace
}  // namespace culvert::stack
