#include "daemon/base/timer_wheel.h"

#include <algorithm>

namespace culvert {

TimerWheel::TimerWheel(Instant start) : current_(tick_at_or_before(start)), earliest_(current_ + 1) {}

void TimerWheel::schedule(TimerNode& node, Instant deadline) {
    if (node.queued()) unlink(node);
    if (deadline == kNever) return;
    node.tick_ = std::max(tick_at_or_after(deadline), earliest_) & ((std::uint64_t{1} << 56) - 1);
    link(node);
}

void TimerWheel::link(TimerNode& node) {
    DCHECK(node.tick_ >= current_);
    const std::uint64_t differs = (node.tick_ ^ current_) | 1;
    const auto level = static_cast<std::size_t>((std::bit_width(differs) - 1) / kDigitBits);
    const auto slot = static_cast<std::size_t>((node.tick_ >> (level * kDigitBits)) & (kSlots - 1));
    TimerNode*& head = slots_[level][slot];
    node.next_ = head;
    node.link_ = &head;
    if (head != nullptr) head->link_ = &node.next_;
    head = &node;
    occupied_[level] |= std::uint64_t{1} << slot;
}

void TimerWheel::unlink(TimerNode& node) {
    *node.link_ = node.next_;
    if (node.next_ != nullptr) {
        node.next_->link_ = node.link_;
    } else {
        // The last of its list; if it was the first too, link_ points into the table and the slot is empty now.
        TimerNode** const table = &slots_[0][0];
        if (node.link_ >= table && node.link_ < table + kLevels * kSlots) {
            const auto index = static_cast<std::size_t>(node.link_ - table);
            occupied_[index / kSlots] &= ~(std::uint64_t{1} << (index % kSlots));
        }
    }
    node.next_ = nullptr;
    node.link_ = nullptr;
}

TimerWheel::Event TimerWheel::next_event() const {
    for (std::size_t level = 0; level < kLevels; ++level) {
        if (occupied_[level] == 0) continue;
        const auto slot = static_cast<std::size_t>(std::countr_zero(occupied_[level]));
        const std::size_t shift = level * kDigitBits;
        const std::uint64_t above = current_ >> shift >> kDigitBits << kDigitBits;  // the digits over this level
        return {(above | slot) << shift, level, slot};
    }
    return {UINT64_MAX, kLevels, 0};
}

TimerNode* TimerWheel::pop_due(std::uint64_t target) {
    for (;;) {
        const Event event = next_event();
        if (event.level == kLevels || event.tick > target) {
            current_ = target;  // passes no occupied slot, so every node stays on its level
            return nullptr;
        }
        current_ = event.tick;
        TimerNode*& head = slots_[event.level][event.slot];
        if (event.level == 0) {
            TimerNode* const node = head;
            unlink(*node);
            return node;
        }
        // Deal the slot out to the levels below. Nodes due right now land on level 0, under the hand.
        TimerNode* list = head;
        head = nullptr;
        occupied_[event.level] &= ~(std::uint64_t{1} << event.slot);
        while (list != nullptr) {
            TimerNode& node = *list;
            list = node.next_;
            link(node);
        }
    }
}

Instant TimerWheel::next_deadline() const {
    const Event event = next_event();
    if (event.level == kLevels) return kNever;
    if (event.tick > (static_cast<std::uint64_t>(INT64_MAX) >> kTickBits)) return kNever;
    return Instant{Duration{static_cast<std::int64_t>(event.tick << kTickBits)}};
}

}  // namespace culvert
