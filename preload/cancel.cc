#include "preload/cancel.h"

#include <array>

#include "preload/libc.h"

namespace culvert::preload {

namespace {
constexpr int kFree = 0;
constexpr int kBeingRung = -1;
/// Eventfds, plus 1. More threads than this asleep in accept() or a UDP receive look up twice a second instead.
constinit std::array<std::atomic<int>, 64> places{};
}  // namespace

CancelBell::CancelBell(int eventfd) noexcept : word_(eventfd + 1) {
    if (eventfd < 0) return;
    for (std::atomic<int>& place : places) {
        int expected = kFree;
        if (place.load(std::memory_order_relaxed) != kFree || !place.compare_exchange_strong(expected, word_, std::memory_order_seq_cst))
            continue;
        place_ = &place;
        return;
    }
}

/// Whoever is just ringing has the descriptor in use: it is waited for, a system call at most.
CancelBell::~CancelBell() {
    if (place_ == nullptr) return;
    for (;;) {
        int expected = word_;
        if (place_->compare_exchange_weak(expected, kFree, std::memory_order_acq_rel)) return;
        if (expected != word_ && expected != kBeingRung) return;  // forgotten by a fork
    }
}

void CancelBell::ring_all() noexcept {
    const KeepErrno keep;
    const std::uint64_t one = 1;
    for (std::atomic<int>& place : places) {
        int word = place.load(std::memory_order_seq_cst);
        if (word <= kFree || !place.compare_exchange_strong(word, kBeingRung, std::memory_order_acq_rel)) continue;
        (void)raw::write(word - 1, &one, sizeof one);
        place.store(word, std::memory_order_release);
    }
}

void CancelBell::forget_all() noexcept {
    for (std::atomic<int>& place : places) place.store(kFree, std::memory_order_relaxed);
}

}  // namespace culvert::preload
