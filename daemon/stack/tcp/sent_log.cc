#include "daemon/stack/tcp/sent_log.h"

#include <new>

#include "shm/base/check.h"

namespace culvert::stack::tcp {

bool SentLog::append(const SentRun& run, FlightPool& pool) {
    if (count_ == kMaxRuns) return false;
    if (tail_end_ == capacity(tail_)) {
        void* const memory = pool.allocate();
        if (memory == nullptr) return false;
        auto* const piece = new (memory) Piece;
        (tail_ == nullptr ? first_ : tail_->next) = piece;
        tail_ = piece;
        tail_end_ = 0;
    }
    ++count_;
    again_ = static_cast<std::uint16_t>(again_ + run.again);
    new (tail_runs() + tail_end_) SentRun(run);
    ++tail_end_;
    return true;
}

void SentLog::pop_front(FlightPool& pool) {
    DCHECK(count_ > 0);
    again_ = static_cast<std::uint16_t>(again_ - head_runs()[head_at_].again);
    ++head_at_;
    if (--count_ == 0) return clear(pool);
    if (head_at_ < capacity(head_)) return;
    Piece* const gone = head_;
    head_ = gone == nullptr ? first_ : gone->next;
    head_at_ = 0;
    if (gone != nullptr) pool.release(gone);
}

void SentLog::clear(FlightPool& pool) {
    for (Piece* piece = head_ == nullptr ? first_ : head_; piece != nullptr;) {
        Piece* const next = piece->next;
        pool.release(piece);
        piece = next;
    }
    head_ = tail_ = first_ = nullptr;
    head_at_ = tail_end_ = count_ = again_ = 0;
}

}  // namespace culvert::stack::tcp
