// The send queue against a plain string: any chunk sizes (also none), any order of reading and acknowledging.
#include <gtest/gtest.h>

#include <deque>
#include <string>

#include "daemon/base/rng.h"
#include "daemon/stack/tcp/send_queue.h"

namespace culvert::stack::tcp {
namespace {

std::string read(SendQueue& queue, Position from, std::size_t length, bool advance) {
    std::string text;
    auto reader = queue.read(from, advance);
    while (text.size() < length) {
        const auto run = reader.run();
        const std::size_t n = std::min(run.size(), length - text.size());
        text.append(reinterpret_cast<const char*>(run.data()), n);
        reader.advance(n);
    }
    return text;
}

TEST(SendQueue, AgreesWithAString) {
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
        Rng rng(seed);
        SendQueue queue;
        const Position start = (Position{1} << 32) - 100;
        queue.start(start);
        std::string stream;
        std::deque<std::string> memory;
        std::deque<SendChunk> chunks;
        Position una = start;
        Position sent = start;
        std::size_t out = 0;
        for (int step = 0; step < 400; ++step) {
            switch (rng.below(4)) {
                case 0: {  // one to three chunks in one call
                    SendChunk* first = nullptr;
                    SendChunk* last = nullptr;
                    for (std::uint64_t n = 1 + rng.below(3); n > 0; --n) {
                        std::string& text = memory.emplace_back(rng.below(40), 'a' + static_cast<char>(rng.below(26)));
                        SendChunk& chunk = chunks.emplace_back();
                        chunk.data = reinterpret_cast<const std::byte*>(text.data());
                        chunk.length = static_cast<std::uint32_t>(text.size());
                        stream += text;
                        (first == nullptr ? first : last->next) = &chunk;
                        last = &chunk;
                        ++out;
                    }
                    queue.append(first, last);
                    break;
                }
                case 1: {  // new data
                    const std::size_t length = std::min<std::size_t>(rng.below(60), start + stream.size() - sent);
                    if (length == 0) break;
                    ASSERT_EQ(read(queue, sent, length, true), stream.substr(sent - start, length)) << "seed " << seed;
                    sent += length;
                    break;
                }
                case 2: {  // a retransmission
                    if (una == sent) break;
                    const Position from = una + rng.below(sent - una);
                    const std::size_t length = 1 + rng.below(sent - from);
                    ASSERT_EQ(read(queue, from, length, false), stream.substr(from - start, length)) << "seed " << seed;
                    break;
                }
                default: {
                    una += rng.below(sent - una + 1);
                    for (SendChunk* chunk = queue.acknowledge(una); chunk != nullptr; chunk = chunk->next) --out;
                    break;
                }
            }
            ASSERT_EQ(queue.end(), start + stream.size());
        }
        for (SendChunk* chunk = queue.take_all(); chunk != nullptr; chunk = chunk->next) --out;
        EXPECT_EQ(out, 0u) << "seed " << seed;
        EXPECT_TRUE(queue.empty());
    }
}

}  // namespace
}  // namespace culvert::stack::tcp
