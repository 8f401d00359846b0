// Neighbor Discovery for IPv6, RFC 4861: ICMPv6 messages of one link, with options behind a fixed part.
//
//    0               1               2               3
//   | type 133-137  | code 0        | checksum                      |
//   | RS: unused    NS: unused      NA: R S O flags   Redirect: unused
//   |               RA: hop limit, M O flags, router lifetime; reachable time; retransmission timer (4 bytes each)
//   | NS, NA, Redirect: target (16 bytes)                           |
//   | Redirect: destination (16 bytes)                              |
//   | options: type, length in units of 8 bytes, ...                |
//
// Options: 1 source MAC, 2 target MAC, 3 prefix, 5 MTU, 14 nonce (RFC 3971, RFC 7527). Others are skipped.
// What the IP header must look like (hop limit 255 ...) is checked where the packet is: daemon/stack/link/ndp.cc.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>

#include "daemon/base/drop.h"
#include "daemon/base/instant.h"
#include "daemon/wire/address.h"
#include "daemon/wire/bytes.h"
#include "daemon/wire/ethernet.h"

namespace culvert::wire {

enum class NdpType : std::uint8_t {
    kRouterSolicitation = 133,
    kRouterAdvertisement = 134,
    kNeighborSolicitation = 135,
    kNeighborAdvertisement = 136,
    kRedirect = 137,
};

inline constexpr std::uint8_t kNdpHopLimit = 255;
inline constexpr std::size_t kNdpMacOptionLength = 8;
inline constexpr std::size_t kNdpPrefixOptionLength = 32;

using NdpNonce = std::array<std::uint8_t, 6>;

/// What the options say, each where it came first. Prefixes: NdpView::for_each_prefix.
struct NdpOptions {
    std::optional<MacAddress> source_mac;
    std::optional<MacAddress> target_mac;
    std::optional<std::uint32_t> mtu;
    std::optional<NdpNonce> nonce;
};

/// [RFC4861 4.6.2] Lifetimes of ffffffff are forever.
struct NdpPrefix {
    Address prefix;
    std::uint8_t prefix_length = 0;
    bool on_link = false;
    bool autonomous = false;
    std::uint32_t valid_seconds = 0;
    std::uint32_t preferred_seconds = 0;

    static constexpr std::uint32_t kForever = 0xffffffff;
    friend bool operator==(const NdpPrefix&, const NdpPrefix&) = default;
};

class NdpView {
public:
    /// `message` is the whole ICMPv6 message, its checksum verified. Accepts iff code is 0, the fixed part is there, and
    /// every option has a length and lies in the message [RFC4861 6.1, 7.1, 8.1].
    static std::expected<NdpView, Drop> parse(std::span<const std::byte> message);

    NdpType type() const { return static_cast<NdpType>(load_8(message_.data())); }
    const NdpOptions& options() const { return options_; }

    /// Of a neighbour solicitation, neighbour advertisement or redirect.
    Address target() const { return address_at(8); }
    /// Of a redirect.
    Address destination() const { return address_at(24); }

    // Of a neighbour advertisement.
    bool is_router() const { return (load_8(message_.data() + 4) & 0x80) != 0; }
    bool solicited() const { return (load_8(message_.data() + 4) & 0x40) != 0; }
    bool overrides() const { return (load_8(message_.data() + 4) & 0x20) != 0; }

    // Of a router advertisement; 0: not specified by this router.
    std::uint8_t hop_limit() const { return load_8(message_.data() + 4); }
    std::chrono::seconds router_lifetime() const { return std::chrono::seconds(load_be16(message_.data() + 6)); }
    std::chrono::milliseconds reachable_time() const { return std::chrono::milliseconds(load_be32(message_.data() + 8)); }
    std::chrono::milliseconds retransmit_time() const {
        return std::chrono::milliseconds(load_be32(message_.data() + 12));
    }
    template <class Visit>
    void for_each_prefix(Visit&& visit) const {
        for (std::size_t at = fixed_length(type()); at < message_.size(); at += option_length(at))
            if (load_8(message_.data() + at) == kPrefixOption) visit(prefix_at(at));
    }

private:
    explicit NdpView(std::span<const std::byte> message) : message_(message) {}
    static constexpr std::uint8_t kPrefixOption = 3;
    static constexpr std::size_t fixed_length(NdpType type) {
        switch (type) {
            case NdpType::kRouterSolicitation: return 8;
            case NdpType::kRouterAdvertisement: return 16;
            case NdpType::kNeighborSolicitation:
            case NdpType::kNeighborAdvertisement: return 24;
            case NdpType::kRedirect: return 40;
        }
        return 0;
    }
    std::size_t option_length(std::size_t at) const { return std::size_t{load_8(message_.data() + at + 1)} * 8; }
    Address address_at(std::size_t at) const {
        return Address::from_v6(std::span<const std::byte, 16>(message_.data() + at, 16));
    }
    NdpPrefix prefix_at(std::size_t at) const;
    bool read_option(std::size_t at, std::size_t length);

    std::span<const std::byte> message_;
    NdpOptions options_;
};

struct RouterSolicitation {
    std::optional<MacAddress> source_mac;
};
struct RouterAdvertisement {
    std::uint8_t hop_limit = 0;
    std::chrono::seconds router_lifetime{0};
    std::chrono::milliseconds reachable_time{0};
    std::chrono::milliseconds retransmit_time{0};
    std::optional<MacAddress> source_mac;
    std::optional<std::uint32_t> mtu;
    std::span<const NdpPrefix> prefixes;
};
struct NeighborSolicitation {
    Address target;
    std::optional<MacAddress> source_mac;
    std::optional<NdpNonce> nonce;
};
struct NeighborAdvertisement {
    Address target;
    bool router = false;
    bool solicited = false;
    bool overrides = false;
    std::optional<MacAddress> target_mac;
};
struct Redirect {
    Address target;
    Address destination;
    std::optional<MacAddress> target_mac;
};

/// Each writes the whole ICMPv6 message but for the checksum and gives its length. Requires: room; IPv6 addresses.
std::size_t emit(const RouterSolicitation& message, std::span<std::byte> out);
std::size_t emit(const RouterAdvertisement& message, std::span<std::byte> out);
std::size_t emit(const NeighborSolicitation& message, std::span<std::byte> out);
std::size_t emit(const NeighborAdvertisement& message, std::span<std::byte> out);
std::size_t emit(const Redirect& message, std::span<std::byte> out);

/// Sets the checksum of a whole ICMPv6 message.
void finish_icmpv6_checksum(std::span<std::byte> message, const Address& source, const Address& destination);

/// ff02::1:ff00:0/104 with the last 24 bits of the address: the group of everybody whose address ends like that [RFC4291 2.7.1].
Address solicited_node_group(const Address& address);
/// 01:00:5e and 23 bits of the group [RFC1112 6.4]; 33:33 and 32 bits of it [RFC2464 7].
MacAddress multicast_mac(const Address& group);

}  // namespace culvert::wire
