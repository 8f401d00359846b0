#include "daemon/stack/tcp/syn_cookie.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "daemon/wire/tcp_options.h"

namespace culvert::stack::tcp {
namespace {

// What peers announce: no less than a connection would use anyway (Connection::kMinMss), a modem, the defaults without
// the option [RFC9293 3.7.1 MUST-15], tunnels, IPv6 and IPv4 over Ethernet, jumbo frames.
constexpr std::array<std::uint16_t, 8> kMss{48, 256, 536, 1220, 1360, 1440, 1460, 8940};

constexpr std::uint32_t kMacMask = 0xffffff;
constexpr std::uint64_t kMinutesMask = 31;
constexpr std::uint32_t kOptionsMask = 63;
constexpr std::uint32_t kNoScale = 15;
constexpr std::uint32_t kSackBit = 16;
constexpr std::uint32_t kEcnBit = 32;

enum Use : std::uint64_t { kOffset = 0x73796e636f6f6b31, kMac = 0x73796e636f6f6b32 };

std::uint64_t minute_of(Instant now) {
    return static_cast<std::uint64_t>(now.time_since_epoch() / std::chrono::minutes(1));
}

}  // namespace

SynCookies::SynCookies(const SipKey& secret)
    : offset_key_(derive_key(secret, kOffset)), mac_key_(derive_key(secret, kMac)) {}

std::uint32_t SynCookies::offset(const Endpoint& local, const Endpoint& remote) const {
    std::array<std::byte, 36> flow;
    put_flow(local, remote, flow);
    return static_cast<std::uint32_t>(sip_hash(offset_key_, flow));
}

std::uint32_t SynCookies::mac(const Endpoint& local, const Endpoint& remote, std::uint32_t irs, std::uint64_t minute,
                              std::uint32_t mss_index) const {
    std::array<std::byte, 52> message;
    put_flow(local, remote, std::span(message).first<36>());
    std::memcpy(message.data() + 36, &irs, 4);
    std::memcpy(message.data() + 40, &minute, 8);
    std::memcpy(message.data() + 48, &mss_index, 4);
    return static_cast<std::uint32_t>(sip_hash(mac_key_, message)) & kMacMask;
}

std::uint32_t SynCookies::make(const Endpoint& local, const Endpoint& remote, std::uint32_t irs, std::uint32_t peer_mss,
                               Instant now) const {
    const auto above = std::ranges::upper_bound(kMss, peer_mss);
    const auto index = static_cast<std::uint32_t>(above == kMss.begin() ? 0 : above - kMss.begin() - 1);
    const std::uint64_t minute = minute_of(now);
    const auto top = static_cast<std::uint32_t>(minute & kMinutesMask) << 27 | index << 24;
    return offset(local, remote) + (top | mac(local, remote, irs, minute, index));
}

SynCookies::Verdict SynCookies::check(const Endpoint& local, const Endpoint& remote, std::uint32_t irs,
                                      std::uint32_t iss, Instant now) const {
    const std::uint32_t cookie = iss - offset(local, remote);
    const std::uint64_t minute = minute_of(now);
    const std::uint64_t age = (minute - (cookie >> 27)) & kMinutesMask;
    const std::uint32_t index = cookie >> 24 & 7;
    // The MAC first: only what we have made can be too old, all else was never good.
    if (mac(local, remote, irs, minute - age, index) != (cookie & kMacMask))
        return {.drop = Drop::kTcpSynCookieInvalid, .early = age <= 1};
    if (age > 1) return {.drop = Drop::kTcpSynCookieExpired};
    return {.drop = Drop::kNone, .mss = kMss[index]};
}

std::uint32_t StampedOptions::stamp(std::uint32_t clock) const {
    std::uint32_t bits = window_scale ? std::min<std::uint32_t>(*window_scale, wire::kMaxWindowScale) : kNoScale;
    if (sack) bits |= kSackBit;
    if (ecn) bits |= kEcnBit;
    const std::uint32_t stamp = (clock & ~kOptionsMask) | bits;
    return bits > (clock & kOptionsMask) ? stamp - (kOptionsMask + 1) : stamp;
}

StampedOptions StampedOptions::from(std::uint32_t echo) {
    StampedOptions options{.window_scale = {}, .sack = (echo & kSackBit) != 0, .ecn = (echo & kEcnBit) != 0};
    const std::uint32_t scale = echo & kNoScale;
    if (scale != kNoScale) options.window_scale = static_cast<std::uint8_t>(scale);
    return options;
}

}  // namespace culvert::stack::tcp
