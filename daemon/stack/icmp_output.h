// ICMP and ICMPv6 that we send: answers to echo requests, and errors about packets that we could not take or pass on.
//
//   packet refused --> about what may an error be sent? --> rate limits --> quote it --> IpOutput
//
// Only for addresses that are ours alone, and for packets that we forward: for a shared address the kernel speaks, and two
// answers would be one too many. The caller decides that; here stand the rules that hold for everybody:
//   [RFC1122 3.2.2] [RFC4443 2.4 (e)] never about an ICMP error, a broadcast or group, a fragment other than the first,
//   or a source that is not one host.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/base/instant.h"
#include "daemon/base/packet.h"
#include "daemon/base/rng.h"
#include "daemon/base/token_bucket.h"
#include "daemon/stack/ip_output.h"
#include "daemon/stack/ip_packet.h"
#include "daemon/wire/address.h"
#include "daemon/wire/icmp.h"

namespace culvert::stack {

class IcmpOutput {
public:
    // [RFC1122 3.2.2] [RFC4443 2.4 (f)] [RFC1812 4.3.2.8] limits; Linux has 1000 a second with bursts of 50 for the host, and
    // one a second with bursts of six for a destination.
    static constexpr Duration kInterval = std::chrono::milliseconds(1);
    static constexpr std::uint32_t kBurst = 50;
    static constexpr Duration kDestinationInterval = std::chrono::seconds(1);
    static constexpr std::uint32_t kDestinationBurst = 6;
    /// [RFC1812 4.3.2.3] as much as fits in 576 bytes; [RFC4443 2.4 (c)] in the least MTU of IPv6.
    static constexpr std::size_t kMaxErrorV4 = 576;
    static constexpr std::size_t kMaxErrorV6 = 1280;

    IcmpOutput(IpOutput& output, Counters& counters, Rng& rng, const std::uint64_t (&secret)[2]);

    /// An error about `packet`, whose IP header starts at `ip_offset` of its head. `from`: one of our addresses; unspecified:
    /// the best for who is told. Nothing is sent where a rule or a limit forbids it; the limit is counted.
    void error(const RxPacket& packet, std::size_t ip_offset, const Address& from, const wire::IcmpHeader& header,
               Instant now);
    /// What an accepted packet for a dedicated address gave rise to; nothing for other packets.
    void error(const IpPacket& ip, const wire::IcmpHeader& header, Instant now);
    void port_unreachable(const IpPacket& ip, Instant now);
    void protocol_unreachable(const IpPacket& ip, Instant now);
    /// [RFC1122 3.2.2.6] [RFC4443 4.2] the same bytes back. Requires: an echo request whose checksum is right.
    void echo_reply(const IpPacket& ip, Instant now);

private:
    static constexpr std::size_t kDestinations = 1024;  // a power of two; coarse: those that agree share a bucket

    bool within_limits(const Address& destination, Instant now);
    std::uint32_t next_identification(const Address& from, const Address& to);

    IpOutput& output_;
    Counters& counters_;
    Rng& rng_;
    std::uint64_t secret_[2];
    TokenBucket all_;
    std::array<TokenBucket, kDestinations> destinations_{};
    std::array<std::uint32_t, kDestinations> identifications_{};
    std::vector<std::byte> scratch_;  // one message
};

}  // namespace culvert::stack
