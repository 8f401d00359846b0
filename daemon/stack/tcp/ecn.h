// Explicit Congestion Notification, RFC 3168: what the flags of a handshake mean. What a connection does with marks is in
// ecn.cc.
//
//   SYN      ECE CWR   "I can"          (anything else: I cannot)
//   SYN-ACK  ECE  -    "so can I"       (anything else, also both flags reflected by a broken host: I cannot)
//
// [RFC9293 3.8.7 SHLD-8]
#pragma once

#include <cstdint>

#include "daemon/stack/stack.h"
#include "daemon/stack/tcp/segment.h"
#include "daemon/wire/ip_protocol.h"
#include "daemon/wire/tcp.h"

namespace culvert::stack::tcp {

/// An ECN-setup SYN. [RFC3168 6.1.1]
inline bool asks_for_ecn(wire::TcpFlags flags) { return flags.ece() && flags.cwr(); }
/// An ECN-setup SYN-ACK. [RFC3168 6.1.1]
inline bool agrees_to_ecn(wire::TcpFlags flags) { return flags.ece() && !flags.cwr(); }

inline wire::Ecn ecn_of(std::uint8_t tos) { return static_cast<wire::Ecn>(tos & 3); }
/// `tos` with the ECN field set by the stack: the application's ECN bits are not its to choose, as on Linux.
inline std::uint8_t with_ecn(std::uint8_t tos, wire::Ecn ecn) {
    return static_cast<std::uint8_t>((tos & 0xfc) | static_cast<std::uint8_t>(ecn));
}

/// Whether a connection with this controller and configuration asks for ECN in its SYN. DCTCP is nothing without it.
/// [RFC8257 3]
inline bool wants_ecn(EcnMode mode, Congestion congestion) {
    return mode == EcnMode::kOn || congestion == Congestion::kDctcp;
}
/// Whether a SYN that asks gets yes. A SYN that is itself marked as ECN-capable is no RFC 3168 host's (6.1.1 forbids it):
/// it comes from DCTCP, or over a path that writes into the field and would feed us marks that mean nothing.
inline bool grants_ecn(EcnMode mode, Congestion congestion, const Segment& syn) {
    if (!asks_for_ecn(syn.flags)) return false;
    if (congestion == Congestion::kDctcp) return true;
    return mode != EcnMode::kOff && ecn_of(syn.ip.tos) == wire::Ecn::kNotCapable;
}

}  // namespace culvert::stack::tcp
