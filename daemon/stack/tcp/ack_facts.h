// What an acceptable ACK says, in positions: what the connection tells loss recovery.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "daemon/base/instant.h"
#include "daemon/stack/tcp/sequence.h"

namespace culvert::stack::tcp {

/// An acceptable ACK (SND.UNA <= SEG.ACK <= SND.NXT; an older one passes SND.UNA as `ack`).
struct AckFacts {
    Position snd_una = 0;  // before this ACK
    Position ack = 0;      // SEG.ACK
    Position snd_nxt = 0;
    bool sack_permitted = false;  // negotiated in the handshake
    bool duplicate = false;  // RFC 5681 2: data outstanding, no payload, no SYN or FIN, SEG.ACK == SND.UNA, window unchanged
    bool echo = false;       // ECE, and ECN is in use: for DeliveryEvent::echo
    std::span<const Range> sack;             // as received, D-SACK included; empty without SACK
    std::optional<std::uint32_t> ts_echo;    // RFC 7323 TSecr
    std::uint32_t ts_offset = 0;             // of our timestamps, which are milliseconds
    Duration srtt{0};                        // zero: nothing was measured yet
    Duration min_rtt = Duration::max();      // of the last seconds (RACK.min_RTT)
    Instant now;
};

}  // namespace culvert::stack::tcp
