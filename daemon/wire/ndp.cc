#include "daemon/wire/ndp.h"

#include <algorithm>
#include <cstring>

#include "daemon/wire/checksum.h"

namespace culvert::wire {
namespace {

enum Option : std::uint8_t { kSourceMac = 1, kTargetMac = 2, kPrefix = 3, kMtu = 5, kNonce = 14 };

/// Writes one message from front to back.
class Writer {
public:
    Writer(NdpType type, std::span<std::byte> out) : out_(out) {
        number8(static_cast<std::uint8_t>(type));
        number8(0);
        number16(0);
    }
    void number8(std::uint8_t value) {
        DCHECK(at_ < out_.size());
        store_8(out_.data() + at_, value);
        at_ += 1;
    }
    void number16(std::uint16_t value) {
        store_be16(out_, at_, value);
        at_ += 2;
    }
    void number32(std::uint32_t value) {
        store_be32(out_, at_, value);
        at_ += 4;
    }
    void address(const Address& address) {
        DCHECK(at_ + 16 <= out_.size() && !address.is_v4());
        std::memcpy(out_.data() + at_, address.bytes().data(), 16);
        at_ += 16;
    }
    void mac(Option option, const std::optional<MacAddress>& mac) {
        if (!mac) return;
        number8(option);
        number8(1);
        DCHECK(at_ + 6 <= out_.size());
        store_mac(out_.data() + at_, *mac);
        at_ += 6;
    }
    std::size_t length() const { return at_; }

private:
    std::span<std::byte> out_;
    std::size_t at_ = 0;
};

}  // namespace

std::expected<NdpView, Drop> NdpView::parse(std::span<const std::byte> message) {
    if (message.size() < 8) return std::unexpected(Drop::kNdpMalformed);
    NdpView view(message);
    const std::size_t fixed = fixed_length(view.type());
    if (fixed == 0 || message.size() < fixed || load_8(message.data() + 1) != 0)
        return std::unexpected(Drop::kNdpMalformed);
    // address.h: the mapped form means IPv4 inside the stack
    if (fixed >= 24 && view.target().is_v4()) return std::unexpected(Drop::kNdpMalformed);
    if (fixed >= 40 && view.destination().is_v4()) return std::unexpected(Drop::kNdpMalformed);
    for (std::size_t at = fixed; at < message.size();) {
        // [RFC4861 4.6] an option of length zero: the packet is silently discarded
        if (at + 8 > message.size()) return std::unexpected(Drop::kNdpMalformed);
        const std::size_t length = view.option_length(at);
        if (length == 0 || at + length > message.size() || !view.read_option(at, length))
            return std::unexpected(Drop::kNdpMalformed);
        at += length;
    }
    return view;
}

/// False: an option that we know has not the length it must have.
bool NdpView::read_option(std::size_t at, std::size_t length) {
    const std::byte* const option = message_.data() + at;
    switch (load_8(option)) {
        case kSourceMac:
        case kTargetMac: {
            if (length != kNdpMacOptionLength) return false;  // [RFC2464 6]
            auto& field = load_8(option) == kSourceMac ? options_.source_mac : options_.target_mac;
            if (!field) field = load_mac(option + 2);
            return true;
        }
        case kPrefix: return length == kNdpPrefixOptionLength;
        case kMtu:
            if (length != 8) return false;
            if (!options_.mtu) options_.mtu = load_be32(option + 4);
            return true;
        case kNonce:
            // [RFC7527 4] ours has six bytes; a longer one cannot be ours
            if (length == 8 && !options_.nonce) {
                options_.nonce.emplace();
                std::memcpy(options_.nonce->data(), option + 2, 6);
            }
            return true;
        default: return true;
    }
}

NdpPrefix NdpView::prefix_at(std::size_t at) const {
    const std::byte* const option = message_.data() + at;
    const std::uint8_t flags = load_8(option + 3);
    return {.prefix = address_at(at + 16),
            .prefix_length = load_8(option + 2),
            .on_link = (flags & 0x80) != 0,
            .autonomous = (flags & 0x40) != 0,
            .valid_seconds = load_be32(option + 4),
            .preferred_seconds = load_be32(option + 8)};
}

std::size_t emit(const RouterSolicitation& message, std::span<std::byte> out) {
    Writer writer(NdpType::kRouterSolicitation, out);
    writer.number32(0);
    writer.mac(kSourceMac, message.source_mac);
    return writer.length();
}

std::size_t emit(const RouterAdvertisement& message, std::span<std::byte> out) {
    Writer writer(NdpType::kRouterAdvertisement, out);
    writer.number8(message.hop_limit);
    writer.number8(0);
    writer.number16(static_cast<std::uint16_t>(message.router_lifetime.count()));
    writer.number32(static_cast<std::uint32_t>(message.reachable_time.count()));
    writer.number32(static_cast<std::uint32_t>(message.retransmit_time.count()));
    writer.mac(kSourceMac, message.source_mac);
    if (message.mtu) {
        writer.number8(kMtu);
        writer.number8(1);
        writer.number16(0);
        writer.number32(*message.mtu);
    }
    for (const NdpPrefix& prefix : message.prefixes) {
        writer.number8(kPrefix);
        writer.number8(4);
        writer.number8(prefix.prefix_length);
        writer.number8(static_cast<std::uint8_t>((prefix.on_link ? 0x80 : 0) | (prefix.autonomous ? 0x40 : 0)));
        writer.number32(prefix.valid_seconds);
        writer.number32(prefix.preferred_seconds);
        writer.number32(0);
        writer.address(prefix.prefix);
    }
    return writer.length();
}

std::size_t emit(const NeighborSolicitation& message, std::span<std::byte> out) {
    Writer writer(NdpType::kNeighborSolicitation, out);
    writer.number32(0);
    writer.address(message.target);
    writer.mac(kSourceMac, message.source_mac);
    if (message.nonce) {
        writer.number8(kNonce);
        writer.number8(1);
        for (const std::uint8_t byte : *message.nonce) writer.number8(byte);
    }
    return writer.length();
}

std::size_t emit(const NeighborAdvertisement& message, std::span<std::byte> out) {
    Writer writer(NdpType::kNeighborAdvertisement, out);
    writer.number32((message.router ? 0x80000000u : 0) | (message.solicited ? 0x40000000u : 0) |
                    (message.overrides ? 0x20000000u : 0));
    writer.address(message.target);
    writer.mac(kTargetMac, message.target_mac);
    return writer.length();
}

std::size_t emit(const Redirect& message, std::span<std::byte> out) {
    Writer writer(NdpType::kRedirect, out);
    writer.number32(0);
    writer.address(message.target);
    writer.address(message.destination);
    writer.mac(kTargetMac, message.target_mac);
    return writer.length();
}

void finish_icmpv6_checksum(std::span<std::byte> message, const Address& source, const Address& destination) {
    store_be16(message, 2, 0);
    PartialSum sum = pseudo_header_sum(source, destination, IpProtocol::kIcmpv6,
                                       static_cast<std::uint32_t>(message.size()));
    sum += sum_bytes(message);
    store_be16(message, 2, checksum(sum));
}

Address solicited_node_group(const Address& address) {
    std::array<std::byte, 16> group{std::byte{0xff}, std::byte{0x02}};
    group[11] = std::byte{0x01};
    group[12] = std::byte{0xff};
    for (std::size_t i = 13; i < 16; ++i) group[i] = std::byte{address.bytes()[i]};
    return Address::from_v6(group);
}

MacAddress multicast_mac(const Address& group) {
    const auto bytes = group.bytes();
    if (group.is_v4())
        return {{0x01, 0x00, 0x5e, static_cast<std::uint8_t>(bytes[13] & 0x7f), bytes[14], bytes[15]}};
    return {{0x33, 0x33, bytes[12], bytes[13], bytes[14], bytes[15]}};
}

}  // namespace culvert::wire
