// What counts as lost and was not sent again since: a few disjoint ranges, in order.
//
//   snd_una                                                  snd_nxt
//     |--[lost again]-------------[ lost, not yet sent again ]---|
//
// A range may cover SACKed bytes: readers ask the scoreboard for the holes in it. Losses are found in the order of
// transmission, so those of each round of retransmission grow together, and a handful of ranges is enough. When there are
// more, the two that lie nearest become one, which may send something in between once too often.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "daemon/base/packet.h"
#include "daemon/stack/tcp/sequence.h"

namespace culvert::stack::tcp {

class LostRanges {
public:
    static constexpr std::size_t kMax = 4;

    bool empty() const { return count_ == 0; }
    std::span<const Range> ranges() const { return {ranges_.data(), count_}; }
    bool contains(Position position) const {
        return std::ranges::any_of(ranges(), [&](const Range& r) { return r.contains(position); });
    }
    Position end() const { return count_ == 0 ? 0 : ranges_[count_ - 1].end; }

    void add(Range more) {
        if (more.empty()) return;
        std::size_t at = 0;
        while (at < count_ && ranges_[at].end < more.first) ++at;
        std::size_t after = at;
        for (; after < count_ && ranges_[after].first <= more.end; ++after) {
            more.first = std::min(more.first, ranges_[after].first);
            more.end = std::max(more.end, ranges_[after].end);
        }
        if (after == at) {
            std::move_backward(ranges_.begin() + at, ranges_.begin() + count_, ranges_.begin() + count_ + 1);
            ++count_;
        } else {
            std::move(ranges_.begin() + after, ranges_.begin() + count_, ranges_.begin() + at + 1);
            count_ -= static_cast<std::uint32_t>(after - at - 1);
        }
        ranges_[at] = more;
        if (count_ > kMax) join_nearest();
    }
    /// Nothing below `position` waits to be sent again: it was, or it has arrived.
    void advance(Position position) {
        std::size_t gone = 0;
        while (gone < count_ && ranges_[gone].end <= position) ++gone;
        std::move(ranges_.begin() + gone, ranges_.begin() + count_, ranges_.begin());
        count_ -= static_cast<std::uint32_t>(gone);
        if (count_ > 0) ranges_[0].first = std::max(ranges_[0].first, position);
    }
    void clear() { count_ = 0; }

private:
    void join_nearest() {
        std::size_t best = 0;
        for (std::size_t i = 1; i + 1 < count_; ++i)
            if (ranges_[i + 1].first - ranges_[i].end < ranges_[best + 1].first - ranges_[best].end) best = i;
        ranges_[best].end = ranges_[best + 1].end;
        std::move(ranges_.begin() + best + 2, ranges_.begin() + count_, ranges_.begin() + best + 1);
        --count_;
    }

    std::uint32_t count_ = 0;
    UnsetArray<Range, kMax + 1> ranges_;  // one more while adding
};

}  // namespace culvert::stack::tcp
