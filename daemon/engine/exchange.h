// What the engines of one daemon have in common, and nothing else: the directory, a ring for each ordered pair, a bell
// for each engine.
//
//             to 0      to 1      to 2                   bell: asleep flag + the sleeper's eventfd (shm/wakeup.h)
//   from 0      -      ring      ring
//   from 1    ring       -       ring                    directory: who has which flow, who waits on which port
//   from 2    ring     ring        -
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "daemon/engine/directory.h"
#include "daemon/engine/hand_over_ring.h"
#include "daemon/engine/sleeper.h"
#include "shm/wakeup.h"

namespace culvert::engine {

class Exchange {
public:
    /// About 600 full frames of Ethernet or eight of 64 KiB: what one engine's turn may bring for another, with room to
    /// spare. Touched only as far as it fills.
    static constexpr std::size_t kRingBytes = 1 << 20;

    /// For `engines` (2 to kMaxEngines) engines with `flows` flows each at most. Throws std::system_error.
    Exchange(std::uint32_t engines, std::uint64_t flows) : count_(engines), directory_(engines * flows), bells_(engines) {
        for (std::uint32_t i = 0; i < engines * engines; ++i)
            rings_.push_back(i / engines == i % engines ? nullptr : std::make_unique<HandOverRing>(kRingBytes));
    }

    std::uint32_t count() const { return count_; }
    Directory& directory() { return directory_; }
    /// Requires: from != to.
    HandOverRing& ring(std::uint32_t from, std::uint32_t to) { return *rings_[from * count_ + to]; }

    /// Startup, before any engine runs.
    void set_sleeper(std::uint32_t engine, Sleeper& sleeper) { bells_[engine].sleeper = &sleeper; }
    std::atomic<std::uint32_t>& asleep(std::uint32_t engine) { return bells_[engine].asleep; }
    /// Wakes the engine if it sleeps; after a push to its ring. True if it did.
    bool wake(std::uint32_t engine) {
        if (!shm::must_wake(bells_[engine].asleep)) return false;
        bells_[engine].sleeper->ring();
        return true;
    }

private:
    struct alignas(shm::kCacheLine) Bell {
        std::atomic<std::uint32_t> asleep{0};
        Sleeper* sleeper = nullptr;
    };

    std::uint32_t count_;
    Directory directory_;
    std::vector<std::unique_ptr<HandOverRing>> rings_;
    std::vector<Bell> bells_;
};

}  // namespace culvert::engine
