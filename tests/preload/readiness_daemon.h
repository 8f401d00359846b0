// Plays the daemon's side as far as readiness goes: attaches one process, hands out event queues, posts news.
//
// Sockets here are FakeSocket: a description whose readiness a test sets. What a real socket does with its record is
// tested elsewhere; here the question is who is woken, when, and what is reported.
#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "preload/client.h"
#include "preload/description.h"
#include "shm/base/unique_fd.h"
#include "shm/segment.h"

namespace culvert::preload::test {

class ReadinessDaemon {
public:
    /// Makes a segment, serves attach messages on a thread and makes this process its client.
    explicit ReadinessDaemon(std::uint32_t queues = 16, std::uint32_t spin_us = 20);
    ~ReadinessDaemon();

    Client& client() { return *client_; }
    shm::Segment& segment() { return *segment_; }
    std::uint32_t take_record() { return next_record_++; }

    /// What the tenant does when a socket has news: the bit for every queue that watches it, a signal for who sleeps.
    void post(std::uint32_t record);
    /// How many eventfds were signalled so far.
    int signals() const { return signals_.load(); }
    int queues_in_use() const { return in_use_.load(); }
    /// Waits until some queue says that its owner sleeps. False: not within thirty seconds.
    bool wait_until_asleep();
    /// Closes the control connection, as the death of the daemon does.
    void die();

private:
    void serve();

    UniqueFd memory_, daemon_end_, doorbell_;
    std::unique_ptr<shm::Segment> segment_;
    std::vector<std::atomic<int>> eventfds_;
    std::atomic<int> signals_{0}, in_use_{0};
    std::uint32_t next_record_ = 0;
    Client* client_ = nullptr;
    std::thread thread_;
};

/// A socket whose readiness is a variable. Its kernel half is one end of a socketpair.
class FakeSocket final : public Description {
public:
    FakeSocket(ReadinessDaemon& daemon, bool ours, bool kernel_too = false);
    ~FakeSocket() override;

    int fd() const { return ends_[0]; }
    int kernel_peer() const { return ends_[1]; }
    void become_ours() { ours_ = true; }
    /// Sets readiness without telling anybody / and tells as the daemon would.
    void set(std::uint32_t mask) { mask_ = mask; }
    void set_and_post(std::uint32_t mask) {
        mask_ = mask;
        daemon_.load()->post(record_);
    }
    int looks() const { return looks_; }
    int write_looks() const { return write_looks_; }
    /// What the interposed close() does.
    void close();

    void on_last_close() noexcept override { ++last_closes_; }
    void dispose() noexcept override {}
    bool is_ours() const noexcept override { return ours_; }
    std::uint32_t poll_now(bool wants_write) noexcept override {
        ++looks_;
        if (wants_write) ++write_looks_;
        return mask_;
    }
    bool polls_kernel_too() const noexcept override { return kernel_too_; }
    std::uint32_t record() const noexcept override { return record_; }
    Client* home() const noexcept override { return &daemon_.load()->client(); }
    /// As a listener does when its daemon has gone.
    void become_orphan() {
        orphan_ = true;
        Client::note_orphan();
    }
    bool wants_daemon() const noexcept override { return orphan_; }
    /// Another daemon takes it over.
    void revived_by(ReadinessDaemon& daemon) { successor_ = &daemon; }
    void revive(int fd) noexcept override;

private:
    std::atomic<bool> orphan_{false};
    std::atomic<ReadinessDaemon*> successor_{nullptr};
    std::atomic<ReadinessDaemon*> daemon_;
    std::atomic<bool> ours_;
    bool kernel_too_;
    std::atomic<std::uint32_t> record_;
    int ends_[2] = {-1, -1};
    std::atomic<std::uint32_t> mask_{0};
    std::atomic<int> looks_{0}, write_looks_{0}, last_closes_{0};
};

}  // namespace culvert::preload::test
