// What all parts of one engine's TCP share: the pools, the tables, the wheel, the way out. No behaviour of its own but
// the list of connections that have something to send.
#pragma once

#include <cstring>

#include "daemon/base/counters.h"
#include "daemon/base/lazy_pool.h"
#include "daemon/base/rng.h"
#include "daemon/base/timer_wheel.h"
#include "daemon/stack/ip_output.h"
#include "daemon/stack/stack.h"
#include "daemon/stack/tcp/congestion/bbr.h"
#include "daemon/stack/tcp/fast_open.h"
#include "daemon/stack/tcp/flow_table.h"
#include "daemon/stack/tcp/isn.h"
#include "daemon/stack/tcp/mtu_search.h"
#include "daemon/stack/tcp/options_table.h"
#include "daemon/stack/tcp/port_table.h"
#include "daemon/stack/tcp/reassembler.h"
#include "daemon/stack/tcp/sack_scoreboard.h"
#include "daemon/stack/tcp/sent_log.h"
#include "daemon/stack/tcp/segment_output.h"
#include "daemon/stack/tcp/syn_cookie.h"
#include "daemon/stack/tcp/time_wait.h"
#include "daemon/stack/tcp/urgent_table.h"

namespace culvert::stack::tcp {

/// Whose TimerNode fired.
enum TimerKind : std::uint8_t { kConnectionTimer = 1, kHalfOpenTimer, kTimeWaitTimer };

struct Shared {
    Shared(const StackConfig& stack_config, IpOutput& ip_output, PortOwner& port_owner, Counters& engine_counters,
           Rng& engine_rng, std::size_t connection_bytes, std::size_t sending_bytes,
           Peers* other_engines);

    const StackConfig config;
    Peers* const peers;  // null: the only engine
    IpOutput& ip;
    Counters& counters;
    Rng& rng;
    SegmentOutput output;
    FlowHash hash;
    FlowTable flows;
    PortTable ports;
    TimerWheel wheel;
    LazyPool connections;
    LazyPool senders;               // Sending
    OptionsTable options;
    ReassemblyPool reassembly;
    SackPool sacks;
    BbrPool bbr_models;
    FlightPool flights;
    UrgentTable urgent;
    MtuSearchPool mtu_searches;
    IsnGenerator isn;
    SynCookies syn_cookies;
    FastOpenCookies fast_open_cookies;
    FastOpenCache fast_open_cache;
    FastOpenPending fast_open_pending;
    TimeWaitTable time_wait;
    Instant now{};                  // of the current or last call
    Connection* marked = nullptr;   // have output, or have ended and wait to be taken down; newest last
    Connection* last_marked = nullptr;

    /// The offset of a flow's timestamps: always the same for one flow, so that they grow from one incarnation to the
    /// next, and unlike any other's. [RFC7323 7.1]
    std::uint32_t timestamp_offset(const Endpoint& local, const Endpoint& remote) const {
        return isn.generate(remote, local, Instant{});
    }
    /// [RFC7323 2.3] the least shift that can express the largest buffer.
    std::uint8_t receive_scale() const { return receive_scale_; }

private:
    std::uint8_t receive_scale_ = 0;
};

}  // namespace culvert::stack::tcp
