// Connections that wait to be accepted: one producer (the daemon), any number of consumers (forked workers).
//
// A bounded ring. A consumer reads the entry at `head` and then claims it by moving head with compare-exchange; the
// producer does not overwrite an entry before head has passed it, so the value read is the one claimed.
// A consumer killed between the two steps has changed nothing.
#pragma once

#include <optional>

#include "shm/layout.h"

namespace culvert::shm {

/// The application's end.
class AcceptQueueConsumer {
public:
    explicit AcceptQueueConsumer(AcceptQueueRecord& record) : record_(&record) {}

    bool empty() const {
        return record_->head.load(std::memory_order_relaxed) == record_->tail.load(std::memory_order_seq_cst);
    }
    std::optional<std::uint32_t> take() {
        std::uint32_t head = record_->head.load(std::memory_order_acquire);
        for (;;) {
            if (head == record_->tail.load(std::memory_order_acquire)) return std::nullopt;
            const std::uint32_t socket =
                record_->entries[head % kAcceptQueueLength].load(std::memory_order_relaxed);
            if (record_->head.compare_exchange_weak(head, head + 1, std::memory_order_acq_rel,
                                                    std::memory_order_acquire))
                return socket;
        }
    }

private:
    AcceptQueueRecord* record_;
};

/// The daemon's end. Keeps its own tail; believes of `head` only that it lies within the ring.
class AcceptQueueProducer {
public:
    explicit AcceptQueueProducer(AcceptQueueRecord& record, std::uint32_t backlog)
        : record_(&record) {
        set_backlog(backlog);
        record_->head.store(0, std::memory_order_relaxed);
        record_->tail.store(0, std::memory_order_release);
    }

    /// How many wait. More than the ring holds (a hostile head) counts as full.
    std::uint32_t size() const {
        const std::uint32_t used = tail_ - record_->head.load(std::memory_order_acquire);
        return used <= kAcceptQueueLength ? used : kAcceptQueueLength;
    }
    bool full() const { return size() >= backlog_; }
    /// Returns the position of the entry: it has been taken once taken(position).
    std::uint32_t add(std::uint32_t socket) {
        record_->entries[tail_ % kAcceptQueueLength].store(socket, std::memory_order_relaxed);
        record_->tail.store(++tail_, std::memory_order_seq_cst);
        return tail_ - 1;
    }
    bool taken(std::uint32_t position) const {
        return static_cast<std::int32_t>(record_->head.load(std::memory_order_seq_cst) - position) > 0;
    }
    std::uint32_t backlog() const { return backlog_; }
    void set_backlog(std::uint32_t backlog) { backlog_ = backlog < kAcceptQueueLength ? backlog : kAcceptQueueLength; }

private:
    AcceptQueueRecord* record_;
    std::uint32_t backlog_ = 0;
    std::uint32_t tail_ = 0;
};

}  // namespace culvert::shm
