#include "daemon/stack/tcp/isn.h"

#include <gtest/gtest.h>

#include <set>

namespace culvert::stack::tcp {
namespace {

using namespace std::chrono_literals;

IsnGenerator::Key key(std::uint8_t first) {
    IsnGenerator::Key k{};
    k[0] = std::byte{first};
    return k;
}
const Endpoint kLocal{Address::v4(10, 0, 0, 2), 80};
const Endpoint kRemote{Address::v4(10, 0, 0, 1), 40000};

TEST(Isn, CountsFourMicrosecondsForOneFlow) {  // [RFC9293 3.4.1 MUST-8]
    const IsnGenerator isn(key(1));
    const std::uint32_t first = isn.generate(kLocal, kRemote, Instant{} + 1s);
    EXPECT_EQ(isn.generate(kLocal, kRemote, Instant{} + 1s), first);
    EXPECT_EQ(isn.generate(kLocal, kRemote, Instant{} + 1s + 4us), first + 1);
    EXPECT_EQ(isn.generate(kLocal, kRemote, Instant{} + 2s), first + 250'000);
}

TEST(Isn, EveryPartOfTheFlowAndTheKeyMatter) {  // [RFC9293 3.4.1 MUST-9, SHLD-1] [RFC6528 3]
    std::set<std::uint32_t> seen;
    const Instant now = Instant{} + 1s;
    seen.insert(IsnGenerator(key(1)).generate(kLocal, kRemote, now));
    seen.insert(IsnGenerator(key(2)).generate(kLocal, kRemote, now));
    seen.insert(IsnGenerator(key(1)).generate(kRemote, kLocal, now));
    seen.insert(IsnGenerator(key(1)).generate({kLocal.address, 81}, kRemote, now));
    seen.insert(IsnGenerator(key(1)).generate(kLocal, {kRemote.address, 40001}, now));
    seen.insert(IsnGenerator(key(1)).generate({Address::v4(10, 0, 0, 3), 80}, kRemote, now));
    EXPECT_EQ(seen.size(), 6u);
}

}  // namespace
}  // namespace culvert::stack::tcp
