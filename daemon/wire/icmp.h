// ICMP (RFC 792) and ICMPv6 (RFC 4443): one shape, two lists of types.
//
//    0               1               2               3
//   | type          | code          | checksum                      |
//   | MTU, or identifier and sequence number, or unused             |
//   | echo data, or as much of the packet that caused the error as the sender gave ...
//
// The family comes from the IP header, so types are compared only within their family.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>

#include "daemon/base/drop.h"
#include "daemon/wire/address.h"
#include "daemon/wire/bytes.h"
#include "daemon/wire/ip_protocol.h"

namespace culvert::wire {

inline constexpr std::size_t kIcmpHeaderLength = 8;

namespace icmp_v4 {
inline constexpr std::uint8_t kEchoReply = 0;
inline constexpr std::uint8_t kDestinationUnreachable = 3;
inline constexpr std::uint8_t kRedirect = 5;
inline constexpr std::uint8_t kEchoRequest = 8;
inline constexpr std::uint8_t kTimeExceeded = 11;
inline constexpr std::uint8_t kParameterProblem = 12;
// codes of kDestinationUnreachable
inline constexpr std::uint8_t kNetUnreachable = 0;
inline constexpr std::uint8_t kHostUnreachable = 1;
inline constexpr std::uint8_t kProtocolUnreachable = 2;
inline constexpr std::uint8_t kPortUnreachable = 3;
inline constexpr std::uint8_t kFragmentationNeeded = 4;
inline constexpr std::uint8_t kSourceRouteFailed = 5;
inline constexpr std::uint8_t kAdminProhibited = 13;
// codes of kTimeExceeded
inline constexpr std::uint8_t kTtlExceeded = 0;
inline constexpr std::uint8_t kReassemblyTimeExceeded = 1;
}  // namespace icmp_v4

namespace icmp_v6 {
inline constexpr std::uint8_t kDestinationUnreachable = 1;
inline constexpr std::uint8_t kPacketTooBig = 2;
inline constexpr std::uint8_t kTimeExceeded = 3;
inline constexpr std::uint8_t kParameterProblem = 4;
inline constexpr std::uint8_t kEchoRequest = 128;
inline constexpr std::uint8_t kEchoReply = 129;
inline constexpr std::uint8_t kRedirect = 137;
// codes of kDestinationUnreachable
inline constexpr std::uint8_t kNoRoute = 0;
inline constexpr std::uint8_t kAdminProhibited = 1;
inline constexpr std::uint8_t kAddressUnreachable = 3;
inline constexpr std::uint8_t kPortUnreachable = 4;
inline constexpr std::uint8_t kBeyondScope = 2;
// codes of kTimeExceeded
inline constexpr std::uint8_t kHopLimitExceeded = 0;
inline constexpr std::uint8_t kReassemblyTimeExceeded = 1;
// codes of kParameterProblem
inline constexpr std::uint8_t kHeaderField = 0;
inline constexpr std::uint8_t kUnknownNextHeader = 1;
inline constexpr std::uint8_t kUnknownOption = 2;
inline constexpr std::uint8_t kIncompleteFirstFragment = 3;  // RFC 7112

/// Multicast listener discovery (130 to 132, 143) or neighbour discovery (133 to 137): the link's own protocols.
constexpr bool is_link_control(std::uint8_t type) { return (type >= 130 && type <= 137) || type == 143; }
}  // namespace icmp_v6

class IcmpView {
public:
    /// `head` starts at the ICMP header; `available` is the length of the IP payload. The checksum is
    /// verify_transport_checksum's. Errors and echoes only need to be looked at as far as they lie in `head`.
    static std::expected<IcmpView, Drop> parse(Family family, std::span<const std::byte> head, std::size_t available) {
        if (head.size() < kIcmpHeaderLength || available < kIcmpHeaderLength)
            return std::unexpected(Drop::kIcmpTruncated);
        return IcmpView(family, head.first(head.size() < available ? head.size() : available), available);
    }
    static std::expected<IcmpView, Drop> parse(Family family, std::span<const std::byte> message) {
        return parse(family, message, message.size());
    }

    Family family() const { return family_; }
    std::uint8_t type() const { return load_8(head_.data()); }
    std::uint8_t code() const { return load_8(head_.data() + 1); }
    std::uint16_t checksum() const { return load_be16(head_.data() + 2); }
    /// One of the types that carry the packet that caused them.
    bool is_error() const;
    bool is_link_control() const { return family_ == Family::kIpv6 && icmp_v6::is_link_control(type()); }
    bool is_echo_request() const {
        return type() == (family_ == Family::kIpv4 ? icmp_v4::kEchoRequest : icmp_v6::kEchoRequest);
    }
    bool is_echo_reply() const {
        return type() == (family_ == Family::kIpv4 ? icmp_v4::kEchoReply : icmp_v6::kEchoReply);
    }
    /// "Fragmentation needed" or "packet too big".
    bool is_packet_too_big() const {
        return family_ == Family::kIpv4
                   ? type() == icmp_v4::kDestinationUnreachable && code() == icmp_v4::kFragmentationNeeded
                   : type() == icmp_v6::kPacketTooBig;
    }
    /// The next hop's MTU of a packet-too-big; 0 from routers older than RFC 1191.
    std::uint32_t mtu() const {
        return family_ == Family::kIpv4 ? load_be16(head_.data() + 6) : load_be32(head_.data() + 4);
    }
    /// Of an echo.
    std::uint16_t identifier() const { return load_be16(head_.data() + 4); }
    std::uint16_t sequence() const { return load_be16(head_.data() + 6); }
    static constexpr std::size_t header_length() { return kIcmpHeaderLength; }
    std::size_t payload_length() const { return payload_length_; }
    /// Echo data or the embedded packet, as far as it lies in `head`.
    std::span<const std::byte> payload_in_head() const { return head_.subspan(kIcmpHeaderLength); }

private:
    IcmpView(Family family, std::span<const std::byte> head, std::size_t available)
        : head_(head), payload_length_(static_cast<std::uint32_t>(available - kIcmpHeaderLength)), family_(family) {}
    std::span<const std::byte> head_;
    std::uint32_t payload_length_;
    Family family_;
};

/// The packet inside an ICMP error: one of ours, if `source` is. Usually cut short, its checksums not to be trusted.
struct EmbeddedPacket {
    Address source;
    Address destination;
    IpProtocol protocol = IpProtocol::kTcp;
    Port source_port = 0;  // of TCP and UDP
    Port destination_port = 0;
    std::uint32_t tcp_sequence = 0;        // of TCP
    std::span<const std::byte> transport;  // what there is of the upper layer

    /// Accepts TCP and UDP iff the first 8 bytes of their header are there, as RFC 792 guarantees; a fragment
    /// other than the first is kIcmpUnmatched.
    static std::expected<EmbeddedPacket, Drop> parse(Family family, std::span<const std::byte> packet);
};

struct IcmpHeader {
    std::uint8_t type = 0;
    std::uint8_t code = 0;
    std::uint32_t rest = 0;  // MTU, or identifier << 16 | sequence, or zero

    friend bool operator==(const IcmpHeader&, const IcmpHeader&) = default;
};

/// Writes header, payload and checksum: kIcmpHeaderLength + payload.size() bytes. The family of the addresses decides
/// whether it is ICMP or ICMPv6. Requires: room; `payload` does not overlap `out`.
void emit(const IcmpHeader& header, std::span<const std::byte> payload, const Address& source,
          const Address& destination, std::span<std::byte> out);

}  // namespace culvert::wire
