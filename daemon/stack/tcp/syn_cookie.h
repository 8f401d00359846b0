// SYN cookies, RFC 4987 3.6: under a flood of SYNs the answer itself carries what a half-open record would remember, so
// that nothing is kept until an ACK proves that somebody lives at the address.
//
//   ISS of the answer = F(flow) + | minute mod 32 : 5 | MSS : 3 | MAC : 24 |
//
//   MAC   24 bits of SipHash over flow, the peer's ISN, the minute, the MSS
//   F     a keyed hash of the flow, as in RFC 6528: the ISS of one flow grows from minute to minute, and shows nobody
//         who does not know F what minute or MSS it holds
//
//   TSval of the answer = our clock, its low six bits | ECN : 1 | SACK : 1 | window scale : 4 |
//
// A peer that uses timestamps sends the TSval back in its ACK (RFC 7323 3.2), and with it the options it had asked for.
// The clock is rounded down, never up, so what we stamp later is larger: PAWS at the peer is not disturbed. Without
// timestamps there is nowhere to put window scale and SACK, and the answer does not offer them.
//
// A cookie is good in the minute it was made in and the next. One try of a forger is right with probability 2^-23 (16 M
// MACs, two minutes): at 100,000 ACKs a second that is one connection in 84 seconds, so cookies are looked at only while they are handed out.
#pragma once

#include <cstdint>
#include <optional>

#include "daemon/base/drop.h"
#include "daemon/base/instant.h"
#include "daemon/stack/tcp/sip_hash.h"

namespace culvert::stack::tcp {

class SynCookies {
public:
    /// How long after the last cookie one may still come back.
    static constexpr Duration kLifetime = std::chrono::minutes(2);

    explicit SynCookies(const SipKey& secret);

    /// The ISS that answers a SYN of sequence number `irs`. `peer_mss`: as announced, or the default; the cookie holds
    /// the largest of eight values that is not larger.
    std::uint32_t make(const Endpoint& local, const Endpoint& remote, std::uint32_t irs, std::uint32_t peer_mss,
                       Instant now) const;

    struct Verdict {
        Drop drop = Drop::kNone;  // kNone: it is ours, and fresh
        std::uint16_t mss = 0;
        bool early = false;  // kTcpSynCookieInvalid, but of these two minutes: perhaps ours, and `irs` is what is wrong
    };
    /// Judges an ISS that a peer says it got. Cost: two short hashes.
    Verdict check(const Endpoint& local, const Endpoint& remote, std::uint32_t irs, std::uint32_t iss, Instant now) const;

private:
    std::uint32_t offset(const Endpoint& local, const Endpoint& remote) const;
    std::uint32_t mac(const Endpoint& local, const Endpoint& remote, std::uint32_t irs, std::uint64_t minute,
                      std::uint32_t mss_index) const;

    SipKey offset_key_;
    SipKey mac_key_;
};

/// What the SYN's options agreed on, as the low bits of a timestamp.
struct StampedOptions {
    std::optional<std::uint8_t> window_scale;
    bool sack = false;
    bool ecn = false;

    /// The latest timestamp not after `clock` that carries the options.
    std::uint32_t stamp(std::uint32_t clock) const;
    static StampedOptions from(std::uint32_t echo);

    friend bool operator==(const StampedOptions&, const StampedOptions&) = default;
};

}  // namespace culvert::stack::tcp
