// The exchange between engines under fire: each thread writes to all others' rings and reads its own, sleeping when there
// is nothing; claims flows that others claim, too. Bounded in operations, not in time; meant for TSan.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "daemon/engine/exchange.h"

namespace culvert::engine {
namespace {

constexpr std::uint32_t kEngines = 3;
constexpr std::uint64_t kPackets = 30000;  // of each pair

/// What a packet of the test says: who, which, and as many bytes as its number demands, all the same.
struct Said {
    std::uint32_t from;
    std::uint32_t zero;
    std::uint64_t number;
};
std::uint32_t length_of(std::uint64_t number) { return static_cast<std::uint32_t>(sizeof(Said) + number * 37 % 3000); }

class Talk {
public:
    void run(std::uint32_t self) {
        std::vector<std::byte> bytes(4096);
        std::array<std::uint64_t, kEngines> sent{};
        std::array<std::uint64_t, kEngines> heard{};
        std::array<HandedOver, 16> burst;
        const auto finished = [&] {
            for (std::uint32_t other = 0; other < kEngines; ++other)
                if (other != self && (sent[other] != kPackets || heard[other] != kPackets)) return false;
            return true;
        };
        while (!finished()) {
            bool busy = false;
            for (std::uint32_t to = 0; to < kEngines; ++to) {
                if (to == self) continue;
                for (int i = 0; i < 20 && sent[to] != kPackets; ++i) {
                    const std::uint32_t length = length_of(sent[to]);
                    const Said said{self, 0, sent[to]};
                    std::memset(bytes.data(), static_cast<int>(sent[to] & 0xff), length);
                    std::memcpy(bytes.data(), &said, sizeof said);
                    if (!exchange_.ring(self, to).push({.tried = sent[to]}, {.head = std::span(bytes).first(length), .rest = {}, .length = length}))
                        break;
                    ++sent[to];
                    busy = true;
                }
                exchange_.wake(to);
            }
            busy |= read(self, heard, burst);
            if (busy) continue;
            // Announce, look once more, sleep. A full ring of another is no reason to sleep: it may have room by now.
            bool more_to_send = false;
            for (std::uint32_t to = 0; to < kEngines; ++to) more_to_send |= to != self && sent[to] != kPackets;
            if (more_to_send) {
                std::this_thread::yield();
                continue;
            }
            shm::announce_sleep(exchange_.asleep(self));
            std::atomic_thread_fence(std::memory_order_seq_cst);
            if (!any(self)) sleepers_[self].wait(std::chrono::seconds(30));
            shm::cancel_sleep(exchange_.asleep(self));
        }
    }

    Talk() {
        for (std::uint32_t i = 0; i < kEngines; ++i) exchange_.set_sleeper(i, sleepers_[i]);
    }

private:
    bool any(std::uint32_t self) {
        for (std::uint32_t from = 0; from < kEngines; ++from)
            if (from != self && exchange_.ring(from, self).any()) return true;
        return false;
    }
    bool read(std::uint32_t self, std::array<std::uint64_t, kEngines>& heard, std::span<HandedOver> burst) {
        bool busy = false;
        for (std::uint32_t from = 0; from < kEngines; ++from) {
            if (from == self) continue;
            const std::size_t count = exchange_.ring(from, self).take(burst);
            for (std::size_t i = 0; i < count; ++i) {
                Said said;
                std::memcpy(&said, burst[i].packet.head.data(), sizeof said);
                EXPECT_EQ(said.from, from);
                EXPECT_EQ(said.number, heard[from]);
                EXPECT_EQ(burst[i].note.tried, said.number);
                EXPECT_EQ(burst[i].packet.length, length_of(said.number));
                if (burst[i].packet.length > sizeof said) {
                    EXPECT_EQ(burst[i].packet.head.back(), static_cast<std::byte>(said.number & 0xff));
                }
                ++heard[from];
            }
            if (count != 0) exchange_.ring(from, self).done();
            busy |= count != 0;
        }
        return busy;
    }

    Exchange exchange_{kEngines, 64};
    Sleeper sleepers_[kEngines];
};

TEST(HandOverStress, NothingIsLostTornOrReorderedAndNobodySleepsForEver) {
    Talk talk;
    std::vector<std::thread> threads;
    for (std::uint32_t i = 0; i < kEngines; ++i) threads.emplace_back([&talk, i] { talk.run(i); });
    for (std::thread& thread : threads) thread.join();
}

TEST(HandOverStress, AFlowHasOneOwner) {
    Directory directory(256);
    constexpr std::uint32_t kHashes = 64;
    std::array<std::atomic<int>, kHashes> owners{};
    std::atomic<std::uint64_t> claims{0};
    const auto work = [&](std::uint32_t engine) {
        for (std::uint32_t i = 0; i < 60000; ++i) {
            const std::uint32_t which = (i * 7 + engine * 13) % kHashes;
            const std::uint32_t hash = which * 0x03f00001u;
            const EngineSet seen = directory.owner(hash);  // may be out of date, never impossible
            EXPECT_EQ(seen & ~EngineSet{7}, 0u);
            if (!directory.flow_began(engine, hash, false)) continue;
            EXPECT_EQ(owners[which].fetch_add(1), 0);
            EXPECT_EQ(directory.owner(hash), EngineSet{1} << engine);
            owners[which].fetch_sub(1);
            directory.flow_ended(engine, hash);
            claims.fetch_add(1);
        }
    };
    std::vector<std::thread> threads;
    for (std::uint32_t i = 0; i < kEngines; ++i) threads.emplace_back(work, i);
    for (std::thread& thread : threads) thread.join();
    EXPECT_GT(claims.load(), 60000u);
    EXPECT_EQ(directory.overflows(), 0u);
    for (std::uint32_t which = 0; which < kHashes; ++which) EXPECT_EQ(directory.owner(which * 0x03f00001u), 0u);
}

}  // namespace
}  // namespace culvert::engine
