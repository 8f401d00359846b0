// Timers of one engine: a hierarchical wheel of intrusive nodes. Schedule and cancel are O(1), nothing is allocated.
//
//   level 0   64 slots of 1 tick          bitmap 0  ..1...1.   first set bit = next slot that holds a timer
//   level 1   64 slots of 64 ticks        bitmap 1
//   ...
//   level 7   64 slots of 64^7 ticks      together they cover every Instant, so nothing is ever clamped
//
// A tick is 2^18 ns (262 us). A node lies on the level of the highest 6-bit digit in which its tick differs from the
// wheel's own tick. So every occupied slot lies ahead of the wheel's hand, the lowest level that holds anything holds
// the earliest timer, and a jump of hours costs only the slots it passes that hold something.
//
// Lazy rescheduling: a retransmission deadline moves later with every ACK, and almost never fires. The owner keeps the
// true deadline in a field of its own and calls `arm`, which leaves a node alone that is due no later. When the node
// comes up, the owner looks at its field and answers with the true deadline; the wheel puts the node back there.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "daemon/base/instant.h"
#include "shm/base/check.h"

namespace culvert {

/// One timer, embedded in what it times. May not move or die while it is queued.
class TimerNode {
public:
    TimerNode() = default;
    /// `kind` is for the owner of the wheel: it tells whose node this is when it fires.
    explicit TimerNode(std::uint8_t kind) : kind_(kind) {}
    ~TimerNode() { DCHECK(!queued()); }
    TimerNode(const TimerNode&) = delete;
    TimerNode& operator=(const TimerNode&) = delete;

    bool queued() const { return link_ != nullptr; }
    std::uint8_t kind() const { return kind_; }

private:
    friend class TimerWheel;
    TimerNode* next_ = nullptr;
    TimerNode** link_ = nullptr;  // the pointer that points at this node; null while not queued
    std::uint64_t tick_ : 56 = 0;
    std::uint64_t kind_ : 8 = 0;
};
static_assert(sizeof(TimerNode) == 24);

class TimerWheel {
public:
    static constexpr int kTickBits = 18;
    static constexpr Duration kTick{std::int64_t{1} << kTickBits};

    explicit TimerWheel(Instant start = Instant{});
    TimerWheel(const TimerWheel&) = delete;
    TimerWheel& operator=(const TimerWheel&) = delete;

    /// Puts `node` at `deadline`, wherever it was before. kNever cancels. It fires at the first advance() that is not
    /// before the deadline rounded up to a tick: never early, late by less than a tick of the clock.
    void schedule(TimerNode& node, Instant deadline);
    /// The lazy form: moves the node only if it is not queued or would come up after `deadline`. The owner must answer
    /// with its true deadline when the node comes up. kNever leaves the node where it is.
    void arm(TimerNode& node, Instant deadline) {
        if (deadline == kNever) return;
        if (node.queued() && node.tick_ <= tick_at_or_after(deadline)) return;
        schedule(node, deadline);
    }
    void cancel(TimerNode& node) {
        if (node.queued()) unlink(node);
    }

    /// Takes out every node due at `now`, in order of ticks, and calls `fire(TimerNode&) -> Instant` for each. The
    /// answer is the owner's true deadline: the node is put back there (but not before the next tick); kNever: done,
    /// the wheel does not touch the node again, so `fire` may have destroyed or scheduled it itself. `fire` may
    /// schedule, cancel and destroy any other node too.
    template <typename Fire>
    void advance(Instant now, Fire&& fire) {
        const std::uint64_t target = tick_at_or_before(now);
        if (target <= current_) return;
        earliest_ = target + 1;
        while (TimerNode* node = pop_due(target)) {
            const Instant again = fire(*node);
            if (again != kNever) schedule(*node, again);
        }
    }

    /// When advance() should be called next; kNever if nothing is queued. At most one tick later than the earliest
    /// deadline, and possibly earlier (a slot of a higher level must be dealt out first). Cost: a few instructions.
    Instant next_deadline() const;

    bool empty() const { return next_deadline() == kNever; }

private:
    static constexpr int kDigitBits = 6;
    static constexpr std::size_t kSlots = std::size_t{1} << kDigitBits;
    static constexpr std::size_t kLevels = 8;

    static std::uint64_t tick_at_or_before(Instant t) {
        const auto ns = t.time_since_epoch().count();
        return ns <= 0 ? 0 : static_cast<std::uint64_t>(ns) >> kTickBits;
    }
    static std::uint64_t tick_at_or_after(Instant t) {
        const auto ns = t.time_since_epoch().count();
        return ns <= 0 ? 0 : ((static_cast<std::uint64_t>(ns) - 1) >> kTickBits) + 1;
    }

    struct Event {
        std::uint64_t tick;  // when the slot begins
        std::size_t level;   // kLevels: none
        std::size_t slot;
    };
    Event next_event() const;
    TimerNode* pop_due(std::uint64_t target);
    void link(TimerNode& node);
    void unlink(TimerNode& node);

    std::uint64_t current_;   // everything at or before this tick has fired
    std::uint64_t earliest_;  // no node is queued before this tick
    std::array<std::uint64_t, kLevels> occupied_{};  // one bit a slot
    std::array<std::array<TimerNode*, kSlots>, kLevels> slots_{};
};

}  // namespace culvert
