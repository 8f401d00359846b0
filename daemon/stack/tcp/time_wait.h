// TIME-WAIT, RFC 9293 3.6.1: what is left of a connection for a minute, so that old duplicates find nobody to confuse.
//
// A record is one cache line. All live equally long, so they stand in a list by age with one timer for the eldest; a
// repeated FIN sends a record to the young end. When the table is full the eldest goes early: better a small risk for
// an old flow than a new one refused.
//
//   segment                                   answer
//   SYN, newer timestamp or sequence number   the record gives way to a new connection [RFC6191] [RFC1122 4.2.2.13]
//   RST exactly at RCV.NXT                    the record goes [RFC5961 3]
//   FIN                                       ACK, a new minute
//   anything else with data or SYN            ACK
//   pure ACK                                  nothing: two ends that answered each other's would never stop
#pragma once

#include <cstdint>

#include "daemon/base/counters.h"
#include "daemon/base/lazy_pool.h"
#include "daemon/base/timer_wheel.h"
#include "daemon/stack/tcp/flow_table.h"
#include "daemon/stack/tcp/segment.h"
#include "daemon/stack/tcp/segment_output.h"

namespace culvert::stack::tcp {

struct TimeWaitRecord {
    Endpoint local;
    Endpoint remote;
    std::uint32_t hash = 0;
    std::uint32_t snd_nxt = 0;
    std::uint32_t rcv_nxt = 0;
    std::uint32_t ts_recent = 0;
    std::uint32_t older = 0;
    std::uint32_t newer = 0;
    std::uint16_t expires = 0;  // in units of kUnit, modulo 2^16
    bool timestamps = false;
};
static_assert(sizeof(TimeWaitRecord) <= 64);

class TimeWaitTable {
public:
    TimeWaitTable(std::uint32_t limit, Duration duration, FlowTable& flows, TimerWheel& wheel,
                  SegmentOutput& output, Counters& counters, std::uint8_t timer_kind);
    ~TimeWaitTable();

    /// Takes the flow over from a connection: its place in the flow table. `record` needs no links and no expiry.
    /// False only if there may be no records at all: then the caller keeps it.
    bool enter(const TimeWaitRecord& record, FlowRef connection, Instant now);

    enum class Verdict : std::uint8_t {
        kDone,   // answered or ignored
        kReuse,  // the record is gone: treat the SYN as new, with an ISS of at least `minimum_iss`
    };
    Verdict on_segment(std::uint32_t index, const Segment& segment, std::uint32_t timestamp_offset, Instant now,
                       std::uint32_t& minimum_iss);

    /// An active open wants the flow: allowed when timestamps protect it and the old ones are at least a second old.
    /// True: the record is gone. [RFC6191 2] [RFC9293 3.6.1 SHLD-4]
    bool give_way(std::uint32_t index, Instant now, std::uint32_t& minimum_iss, std::uint32_t& ts_recent);

    /// Whether it would.
    bool gives_way(std::uint32_t index, Instant now) {
        const TimeWaitRecord& record = at(index);
        return record.timestamps && now - (expiry(record, now) - duration_) >= std::chrono::seconds(1);
    }

    bool matches(std::uint32_t index, const Endpoint& local, const Endpoint& remote) {
        const TimeWaitRecord& record = at(index);
        return record.local == local && record.remote == remote;
    }
    /// The timer fired; the answer is the next deadline.
    Instant on_timer(Instant now);
    std::uint32_t size() const { return pool_.used(); }

private:
    static constexpr Duration kUnit = std::chrono::milliseconds(64);
    /// Beyond what a new incarnation's window could be confused with.
    static constexpr std::uint32_t kIssGap = 65535 + 2;

    TimeWaitRecord& at(std::uint32_t index) { return *reinterpret_cast<TimeWaitRecord*>(pool_.at(index)); }
    static std::uint16_t units(Instant t) { return static_cast<std::uint16_t>(t.time_since_epoch() / kUnit); }
    Instant expiry(const TimeWaitRecord& record, Instant now) const;
    void link_newest(std::uint32_t index, Instant now);
    void unlink(std::uint32_t index);
    void remove(std::uint32_t index);
    void acknowledge(const TimeWaitRecord& record, const Segment& segment, std::uint32_t timestamp_offset, Instant now);

    LazyPool pool_;
    Duration duration_;
    FlowTable& flows_;
    TimerWheel& wheel_;
    SegmentOutput& output_;
    Counters& counters_;
    TimerNode timer_;
    std::uint32_t oldest_ = LazyPool::kNone;
    std::uint32_t newest_ = LazyPool::kNone;
};

}  // namespace culvert::stack::tcp
