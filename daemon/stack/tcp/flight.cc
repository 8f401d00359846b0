#include "daemon/stack/tcp/flight.h"

#include <algorithm>
#include <array>

namespace culvert::stack::tcp {
namespace {

Range within(Range range, Range limits) { return {std::max(range.first, limits.first), std::min(range.end, limits.end)}; }

/// [RFC8985 6.2 step 2] RACK_sent_after(a, b)
bool sent_after(Instant a, Position a_end, Instant b, Position b_end) { return a > b || (a == b && a_end > b_end); }

/// [RFC8985 6.2 step 2] An ACK of a segment that was sent twice may be of the first copy. The echoed timestamp tells for
/// what is acknowledged; where something is missing below, it is of before the gap and says nothing of `part`. [RFC7323 4.3]
bool ambiguous(const SentRun& run, Range part, const AckFacts& facts) {
    if (!run.again) return false;
    if (facts.ts_echo && part.end <= facts.ack) {
        const auto sent_ms = std::chrono::duration_cast<std::chrono::milliseconds>(run.sent_at.time_since_epoch()).count();
        if (before(*facts.ts_echo, facts.ts_offset + static_cast<std::uint32_t>(sent_ms))) return true;
    }
    return facts.now - run.sent_at < facts.min_rtt && facts.min_rtt != Duration::max();
}

}  // namespace

bool Flight::record(const Sending& s) {
    const auto in_flight = static_cast<std::uint32_t>(std::min<std::uint64_t>(s.in_flight + s.range.size(), UINT32_MAX));
    if (SentRun* const last = log.back(); last != nullptr && last->again == s.again && last->range.end == s.range.first) {
        const bool same_flush = last->sent_at == s.now && last->delivered == delivered;
        const bool coarse = log.count() >= SentLog::kCoarseFrom && s.now - last->sent_at < s.srtt / 64;
        if (same_flush || coarse || log.count() == SentLog::kMaxRuns) {
            last->range.end = s.range.end;
            last->sent_at = s.now;
            last->flight = in_flight;
            return true;
        }
    }
    if (log.empty() && s.in_flight == 0) first_sent_at = delivered_at = s.now;  // [BBR 4.1.2.2] the pipe was empty
    return log.append({.range = s.range,
                       .sent_at = s.now,
                       .first_sent_at = first_sent_at,
                       .delivered_at = delivered_at,
                       .delivered = delivered,
                       .lost = static_cast<std::uint32_t>(s.lost_total),
                       .flight = in_flight,
                       .again = s.again,
                       .app_limited = app_limited_until != 0},
                      pool);
}

/// Nothing is lost, sent again or SACKed, and nothing was ever missing below: what deliver() does for nearly every ACK.
void Flight::deliver_in_order(const AckFacts& facts, Delivery& found) {
    found.top = facts.ack;
    while (SentRun* const run = log.front()) {
        if (run->range.first >= facts.ack) break;
        found.original = std::min(found.original, run->range.first);
        if (run->range.end > facts.ack) {
            found.newest = *run;
            found.newest.range.end = facts.ack;
            found.any = true;
            run->range.first = facts.ack;
            break;
        }
        found.newest = *run;
        found.any = true;
        log.pop_front(pool);
    }
    rack.fack = facts.ack;
    if (!found.any) return;
    rack.rtt = facts.now - found.newest.sent_at;
    rack.xmit_at = found.newest.sent_at;
    rack.end_seq = facts.ack;
}

Delivery Flight::deliver(const AckFacts& facts, const SackScoreboard* board, Position resent_below) {
    Delivery found;
    if (board == nullptr && facts.sack.empty() && lost.empty() && log.again() == 0 && rack.fack == facts.snd_una) {
        if (facts.ack > facts.snd_una) deliver_in_order(facts, found);
        return found;
    }
    std::array<Range, 1 + 4> news;
    std::size_t count = 0;
    if (facts.ack > facts.snd_una) news[count++] = {facts.snd_una, facts.ack};
    for (const Range& block : facts.sack) {
        if (block.end > facts.snd_nxt || count == news.size()) continue;
        const Range part{std::max(block.first, facts.ack), block.end};
        if (part.empty() || (board != nullptr && board->next_hole(part).empty())) continue;
        news[count++] = part;
    }
    if (count == 0) return found;
    for (std::size_t i = 0; i < count; ++i) found.top = std::max(found.top, news[i].end);

    bool timed = false;
    SentRun recent{};  // the latest that RACK may judge by
    const auto arrived = [&](const SentRun& run, Range part) {
        if (!run.again) {
            found.original = std::min(found.original, part.first);
            if (part.end < rack.fack) found.reordered = true;
        }
        if (!found.any || sent_after(run.sent_at, part.end, found.newest.sent_at, found.newest.range.end)) {
            found.newest = run;
            found.newest.range = part;
        }
        found.any = true;
        if (ambiguous(run, part, facts)) return;
        if (!timed || sent_after(run.sent_at, part.end, recent.sent_at, recent.range.end)) {
            recent.sent_at = run.sent_at;
            recent.range = part;
        }
        timed = true;
    };
    std::uint32_t left_again = log.again();
    log.for_each([&](SentRun& run) {
        // New data lies in order: beyond the highest, only segments sent again can still matter.
        if (!run.again && run.range.first >= found.top) return left_again > 0;
        left_again -= run.again;
        for (std::size_t i = 0; i < count; ++i) {
            Range part = within(run.range, news[i]);
            while (!part.empty()) {
                const Range hole = board == nullptr ? part : board->next_hole(part);
                if (hole.empty()) break;
                arrived(run, hole);
                part.first = hole.end;
            }
        }
        return true;
    });
    // What was judged lost and has arrived before it was sent again left the log when it was judged.
    for (const Range& range : lost.ranges()) {
        for (std::size_t i = 0; i < count; ++i) {
            const Range part = within({std::max(range.first, resent_below), range.end}, news[i]);
            if (unsacked(part, board) == 0) continue;
            found.original = std::min(found.original, part.first);
            if (part.end < rack.fack) found.reordered = true;
        }
    }
    if (timed) {
        rack.rtt = facts.now - recent.sent_at;
        if (sent_after(recent.sent_at, recent.range.end, rack.xmit_at, rack.end_seq)) {
            rack.xmit_at = recent.sent_at;
            rack.end_seq = recent.range.end;
        }
    }
    rack.fack = std::max(rack.fack, found.top);
    lost.advance(facts.ack);
    for (SentRun* run = log.front(); run != nullptr && run->range.first < facts.ack; run = log.front()) {
        if (run->range.end > facts.ack) {
            run->range.first = facts.ack;
            break;
        }
        log.pop_front(pool);
    }
    return found;
}

std::uint64_t Flight::mark(Range range, const SackScoreboard* board) {
    std::uint64_t bytes = unsacked(range, board);
    for (const Range& known : lost.ranges()) bytes -= unsacked(within(range, known), board);
    lost.add(range);
    return bytes;
}

std::uint64_t Flight::detect(Position snd_una, const SackScoreboard* board, Duration reordering_window, Instant now) {
    std::uint64_t marked = 0;
    Instant next = kNever;
    while (SentRun* const run = log.front()) {
        run->range.first = std::max(run->range.first, snd_una);
        if (unsacked(run->range, board) == 0) {
            log.pop_front(pool);
            continue;
        }
        Range judged = run->range;
        if (run->sent_at == rack.xmit_at) judged.end = std::min(judged.end, rack.end_seq);
        if (run->sent_at > rack.xmit_at || unsacked(judged, board) == 0) break;  // not sent before what has arrived
        const Instant deadline = run->sent_at + rack.rtt + reordering_window;
        if (deadline > now) {
            next = deadline;
            break;
        }
        marked += mark(judged, board);
        if (judged.end < run->range.end) {
            run->range.first = judged.end;
            break;
        }
        log.pop_front(pool);
    }
    timer_is_probe = false;
    timer_at = next;
    return marked;
}

std::uint64_t Flight::mark_on_timeout(Range head, Position snd_nxt, const SackScoreboard* board,
                                      Duration reordering_window, bool all, Instant now) {
    timer_at = kNever;
    if (all) {
        log.clear(pool);
        return mark({head.first, snd_nxt}, board);
    }
    std::uint64_t marked = 0;
    while (SentRun* const run = log.front()) {
        if (run->sent_at + rack.rtt + reordering_window > now) break;
        run->range.first = std::max(run->range.first, head.first);
        if (unsacked(run->range, board) > 0) marked += mark(run->range, board);
        log.pop_front(pool);
    }
    forget(head);
    return marked + mark(head, board);
}

bool Flight::append_again(Range range, Instant now) {
    return log.append({.range = range, .sent_at = now, .first_sent_at = first_sent_at, .delivered_at = delivered_at,
                       .delivered = delivered, .lost = 0, .flight = 0, .again = true, .app_limited = true},
                      pool);
}

void Flight::take_back(Range range, Instant now) {
    const auto within = [&](Range known) { return known.first <= range.first && range.end <= known.end; };
    bool known = std::ranges::any_of(lost.ranges(), within);
    log.for_each([&](const SentRun& run) { return !(known = known || within(run.range)); });
    if (!known && !append_again(range, now)) lost.add(range);
}

bool Flight::unmark(const SackScoreboard* board, Instant now) {
    for (const Range& range : lost.ranges()) {
        if (unsacked(range, board) > 0 && !append_again(range, now)) return false;
    }
    lost.clear();
    return true;
}

void Flight::forget(Range range) {
    log.for_each([&](SentRun& run) {
        if (range.first <= run.range.first && run.range.first < range.end)
            run.range.first = std::min(range.end, run.range.end);
        else if (run.range.first < range.first && run.range.end <= range.end)
            run.range.end = std::min(run.range.end, range.first);
        return true;
    });
}

}  // namespace culvert::stack::tcp
