#include "daemon/stack/tcp/time_wait.h"

#include <algorithm>
#include <new>

#include "daemon/stack/tcp/sequence.h"

namespace culvert::stack::tcp {

TimeWaitTable::TimeWaitTable(std::uint32_t limit, Duration duration, FlowTable& flows,
                             TimerWheel& wheel, SegmentOutput& output, Counters& counters, std::uint8_t timer_kind)
    : pool_(sizeof(TimeWaitRecord), limit),
      duration_(std::min<Duration>(duration, std::chrono::minutes(30))),  // expires has 16 bits
      flows_(flows),
      wheel_(wheel),
      output_(output),
      counters_(counters),
      timer_(timer_kind) {}

TimeWaitTable::~TimeWaitTable() { wheel_.cancel(timer_); }

bool TimeWaitTable::enter(const TimeWaitRecord& record, FlowRef connection, Instant now) {
    if (pool_.capacity() == 0) return false;
    if (pool_.used() == pool_.capacity()) remove(oldest_);
    const std::uint32_t index = pool_.allocate();
    new (pool_.at(index)) TimeWaitRecord(record);
    flows_.replace(record.hash, connection, {FlowRef::Kind::kTimeWait, index});
    link_newest(index, now);
    ++counters_.tcp_time_wait;
    return true;
}

TimeWaitTable::Verdict TimeWaitTable::on_segment(std::uint32_t index, const Segment& segment,
                                                 std::uint32_t timestamp_offset, Instant now,
                                                 std::uint32_t& minimum_iss) {
    TimeWaitRecord& record = at(index);
    const auto& stamps = segment.options.timestamps;
    const bool stamped = record.timestamps && stamps.has_value();
    if (segment.flags.rst()) {
        if (segment.sequence == record.rcv_nxt)
            remove(index);
        else
            counters_.drop(Drop::kTcpStrayReset);
        return Verdict::kDone;
    }
    if (segment.flags.syn() && !segment.flags.ack()) {
        // [RFC6191 2] [RFC9293 3.10.7.4 MAY-2]
        const bool newer = stamped && stamps->value != record.ts_recent ? after(stamps->value, record.ts_recent)
                                                                        : after(segment.sequence, record.rcv_nxt);
        if (newer) {
            minimum_iss = record.snd_nxt + kIssGap;
            remove(index);
            return Verdict::kReuse;
        }
    }
    const bool old_stamp = stamped && before(stamps->value, record.ts_recent);
    if (old_stamp) counters_.drop(Drop::kTcpPaws);
    if (segment.length() == 0) {  // the last ACK, a late window update; answering strays could start an ACK loop
        if (segment.sequence != record.rcv_nxt) counters_.drop(Drop::kTcpOutOfWindow);
        return Verdict::kDone;
    }
    if (segment.flags.fin() && !old_stamp) {  // [RFC9293 3.10.7.4] restart the 2 MSL timeout
        unlink(index);
        link_newest(index, now);
    }
    acknowledge(record, segment, timestamp_offset, now);
    return Verdict::kDone;
}

void TimeWaitTable::acknowledge(const TimeWaitRecord& record, const Segment& segment, std::uint32_t timestamp_offset,
                                Instant now) {
    wire::TcpOptions options;
    if (record.timestamps)
        options.timestamps = {.value = timestamp_offset + SegmentOutput::timestamp(now), .echo = record.ts_recent};
    output_.send_once(segment.local, segment.remote,
                      {.source = record.local.port,
                       .destination = record.remote.port,
                       .sequence = record.snd_nxt,
                       .acknowledgment = record.rcv_nxt,
                       .flags = wire::kAck,
                       .window = 0},
                      options, now);
}

bool TimeWaitTable::give_way(std::uint32_t index, Instant now, std::uint32_t& minimum_iss, std::uint32_t& ts_recent) {
    if (!gives_way(index, now)) return false;
    const TimeWaitRecord& record = at(index);
    minimum_iss = record.snd_nxt + kIssGap;
    ts_recent = record.ts_recent;
    remove(index);
    return true;
}

Instant TimeWaitTable::on_timer(Instant now) {
    while (oldest_ != LazyPool::kNone) {
        const Instant due = expiry(at(oldest_), now);
        if (due > now) return due;
        remove(oldest_);
    }
    return kNever;
}

Instant TimeWaitTable::expiry(const TimeWaitRecord& record, Instant now) const {
    const auto left = static_cast<std::int16_t>(static_cast<std::uint16_t>(record.expires - units(now)));
    // Counted from the start of the current unit, so the answer does not drift with `now`.
    return Instant(now.time_since_epoch() / kUnit * kUnit) + left * kUnit;
}

void TimeWaitTable::link_newest(std::uint32_t index, Instant now) {
    TimeWaitRecord& record = at(index);
    record.expires = static_cast<std::uint16_t>(units(now + duration_) + 1);
    record.older = newest_;
    record.newer = LazyPool::kNone;
    (newest_ == LazyPool::kNone ? oldest_ : at(newest_).newer) = index;
    newest_ = index;
    wheel_.arm(timer_, expiry(at(oldest_), now));
}

void TimeWaitTable::unlink(std::uint32_t index) {
    const TimeWaitRecord& record = at(index);
    (record.older == LazyPool::kNone ? oldest_ : at(record.older).newer) = record.newer;
    (record.newer == LazyPool::kNone ? newest_ : at(record.newer).older) = record.older;
}

void TimeWaitTable::remove(std::uint32_t index) {
    unlink(index);
    const TimeWaitRecord& record = at(index);
    flows_.erase(record.hash, {FlowRef::Kind::kTimeWait, index});
    pool_.release(index);
    --counters_.tcp_time_wait;
}

}  // namespace culvert::stack::tcp
