// Nonsense over one part of a segment after the other, as a malicious program would write it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <random>
#include <thread>

#include "tests/support/segment_parts.h"

namespace culvert::test {

struct Random {
    explicit Random(std::uint32_t seed) : engine(seed) {}
    std::uint32_t operator()() { return static_cast<std::uint32_t>(engine()) << 16 ^ static_cast<std::uint32_t>(engine()); }
    std::minstd_rand engine;
};

/// Writes over one part: random words, all ones, zeroes, small numbers, single bits.
class Scribbler {
public:
    Scribbler(shm::Segment& segment, const SegmentPart& part, std::uint32_t seed)
        : bytes_(reinterpret_cast<std::uint8_t*>(&segment.header())), part_(part), random_(seed) {}

    void scribble() {
        // The first instances are those in use, mostly.
        const std::uint64_t few = std::min<std::uint64_t>(part_.count, 72);
        const std::uint64_t instance = random_() % 4 == 0 ? random_() % part_.count : random_() % few;
        const std::uint64_t begin = part_.offset + instance * part_.stride;
        const std::uint64_t at = random_() % part_.bytes;
        const std::uint64_t length = std::min<std::uint64_t>(part_.bytes - at, random_() % 8 == 0 ? 256 : 4);
        const std::uint32_t word = value();
        for (std::uint64_t i = 0; i < length; ++i)
            __atomic_store_n(bytes_ + begin + at + i, static_cast<std::uint8_t>(word >> i % 4 * 8), __ATOMIC_RELAXED);
    }

private:
    std::uint32_t value() {
        switch (random_() % 6) {
            case 0: return 0;
            case 1: return UINT32_MAX;
            case 2: return random_() % 8;
            case 3: return random_() % 1024;
            case 4: return std::uint32_t{1} << random_() % 32;
            default: return random_();
        }
    }

    std::uint8_t* bytes_;
    SegmentPart part_;
    Random random_;
};

/// The same from a thread of its own, at any moment of a turn, until it is stopped.
class ScribblingThread {
public:
    explicit ScribblingThread(Scribbler scribbler) : scribbler_(scribbler), thread_([this] { run(); }) {}
    ~ScribblingThread() {
        stop_ = true;
        thread_.join();
    }
    ScribblingThread(const ScribblingThread&) = delete;

private:
    void run() {
        while (!stop_.load(std::memory_order_relaxed)) {
            for (int i = 0; i < 64; ++i) scribbler_.scribble();
            std::this_thread::yield();
        }
    }

    Scribbler scribbler_;
    std::atomic<bool> stop_{false};
    std::thread thread_;
};

}  // namespace culvert::test
