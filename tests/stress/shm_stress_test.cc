// The shared structures under fire: several writers, one reader, in threads (for TSan) and in forked processes.
// Bounded in operations, not in time.
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "shm/accept_queue.h"
#include "shm/block_list.h"
#include "shm/segment.h"
#include "shm/wakeup.h"

namespace culvert::shm {
namespace {

constexpr Geometry kGeometry{.sockets = 512, .app_sockets = 512, .tx_blocks = 64, .rx_blocks = 64, .queues = 2,
                             .processes = 4, .accept_queues = 1};

/// Writers announce sockets with a counter each; the reader must see every counter's last value, sleeping when idle.
class Announcements {
public:
    static constexpr std::uint64_t kPosts = 20000;
    static constexpr std::uint32_t kWriters = 3;

    explicit Announcements(Segment& segment) : segment_(segment), eventfd_(::eventfd(0, 0)) {}

    void write(std::uint32_t writer) {
        for (std::uint64_t i = 1; i <= kPosts; ++i) {
            const std::uint32_t socket = writer * 64 + static_cast<std::uint32_t>(i % 64);
            segment_.socket(socket).app.tx_queued.store(i, std::memory_order_release);
            segment_.dirty().post(socket);
            if (must_wake(segment_.header().engine_asleep)) signal_eventfd(eventfd_.get());
        }
    }
    /// Returns when the last value of every writer has been seen: a lost post or wake-up hangs (and the test times out).
    void read() {
        std::vector<std::uint64_t> seen(kWriters, 0);
        ReadyBitmap dirty = segment_.dirty();
        const auto done = [&] {
            for (const std::uint64_t value : seen)
                if (value != kPosts) return false;
            return true;
        };
        while (!done()) {
            const std::uint32_t found = dirty.collect([&](std::uint32_t socket) {
                std::uint64_t& last = seen[socket / 64];
                last = std::max(last, segment_.socket(socket).app.tx_queued.load(std::memory_order_acquire));
            });
            if (found != 0) continue;
            announce_sleep(segment_.header().engine_asleep);
            if (dirty.any()) {
                cancel_sleep(segment_.header().engine_asleep);
                continue;
            }
            std::uint64_t count = 0;
            ASSERT_EQ(::read(eventfd_.get(), &count, sizeof count), 8);
            cancel_sleep(segment_.header().engine_asleep);
        }
    }

private:
    Segment& segment_;
    UniqueFd eventfd_;
};

TEST(ShmStress, NoAnnouncementIsLostBetweenThreads) {
    UniqueFd fd;
    auto segment = Segment::create(kGeometry, "stress", fd);
    ASSERT_TRUE(segment);
    Announcements announcements(*segment);
    std::vector<std::thread> writers;
    for (std::uint32_t w = 0; w < Announcements::kWriters; ++w) writers.emplace_back([&, w] { announcements.write(w); });
    announcements.read();
    for (std::thread& writer : writers) writer.join();
}

TEST(ShmStress, NoAnnouncementIsLostBetweenProcesses) {
    UniqueFd fd;
    auto segment = Segment::create(kGeometry, "stress", fd);
    ASSERT_TRUE(segment);
    Announcements announcements(*segment);
    std::vector<pid_t> writers;
    for (std::uint32_t w = 0; w < Announcements::kWriters; ++w) {
        const pid_t pid = ::fork();
        ASSERT_GE(pid, 0);
        if (pid == 0) {
            announcements.write(w);
            ::_exit(0);
        }
        writers.push_back(pid);
    }
    announcements.read();
    for (const pid_t pid : writers) {
        int status = -1;
        ASSERT_EQ(::waitpid(pid, &status, 0), pid);
        EXPECT_EQ(status, 0);
    }
}

/// Blocks go round: popped from the pool by senders, pushed to a list, taken by the "daemon", pushed back to the pool.
TEST(ShmStress, BlocksGoRoundAndNoneIsLostOrDoubled) {
    UniqueFd fd;
    auto segment = Segment::create(kGeometry, "stress", fd);
    ASSERT_TRUE(segment);
    BlockMeta* meta = segment->block_meta();
    std::atomic<std::uint32_t>& list = segment->socket(0).app.tx_list;
    TaggedStack pool(segment->header().tx_free, meta, kGeometry.tx_blocks);
    for (std::uint32_t block = 0; block < kGeometry.tx_blocks; ++block) pool.push(block);
    constexpr int kSenders = 3;
    constexpr std::uint64_t kRounds = 20000;
    std::vector<std::atomic<int>> owner(kGeometry.tx_blocks);  // 0 pool or list, 1 a sender
    std::vector<std::thread> senders;
    for (int s = 0; s < kSenders; ++s)
        senders.emplace_back([&] {
            TaggedStack mine(segment->header().tx_free, meta, kGeometry.tx_blocks);
            for (std::uint64_t i = 0; i < kRounds;) {
                const std::uint32_t block = mine.pop();
                if (block == kNoIndex) {
                    std::this_thread::yield();
                    continue;
                }
                ASSERT_EQ(owner[block].exchange(1), 0) << "two senders hold block " << block;
                meta[block].length.store(static_cast<std::uint32_t>(i), std::memory_order_relaxed);
                owner[block].store(0);
                push_block(list, meta, block);
                ++i;
            }
        });
    std::uint64_t taken = 0;
    while (taken < kSenders * kRounds) {
        for (std::uint32_t link = take_all(list); link != kEmptyList;) {
            const std::uint32_t block = link - 1;
            link = meta[block].next.load(std::memory_order_relaxed);
            pool.push(block);
            ++taken;
        }
    }
    for (std::thread& sender : senders) sender.join();
    std::vector<bool> present(kGeometry.tx_blocks);
    std::uint32_t count = 0;
    for (std::uint32_t block; (block = pool.pop()) != kNoIndex; ++count) {
        EXPECT_FALSE(present[block]);
        present[block] = true;
    }
    EXPECT_EQ(count, kGeometry.tx_blocks);
}

TEST(ShmStress, EveryConnectionIsAcceptedOnce) {
    auto record = std::make_unique<AcceptQueueRecord>();
    AcceptQueueProducer producer(*record, kAcceptQueueLength);
    constexpr std::uint32_t kConnections = 60000;
    constexpr int kWorkers = 3;
    std::vector<std::atomic<int>> accepted(kConnections);
    std::atomic<std::uint32_t> total{0};
    std::vector<std::thread> workers;
    for (int w = 0; w < kWorkers; ++w)
        workers.emplace_back([&] {
            AcceptQueueConsumer consumer(*record);
            while (total.load() < kConnections) {
                if (const auto connection = consumer.take()) {
                    accepted[*connection].fetch_add(1);
                    total.fetch_add(1);
                } else {
                    std::this_thread::yield();
                }
            }
        });
    for (std::uint32_t i = 0; i < kConnections;) {
        if (producer.full())
            std::this_thread::yield();
        else
            producer.add(i++);
    }
    for (std::thread& worker : workers) worker.join();
    for (const auto& times : accepted) ASSERT_EQ(times.load(), 1);
}

}  // namespace
}  // namespace culvert::shm
