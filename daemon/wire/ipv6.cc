#include "daemon/wire/ipv6.h"

namespace culvert::wire {
namespace {

// More extension headers than any honest sender uses.
constexpr int kMaxExtensionHeaders = 8;

/// The options of a hop-by-hop or destination options header: true if all of them may be skipped.
bool options_acceptable(std::span<const std::byte> options) {
    constexpr std::uint8_t kPad1 = 0;
    while (!options.empty()) {
        const std::uint8_t type = load_8(options.data());
        if (type == kPad1) {
            options = options.subspan(1);
            continue;
        }
        // [RFC8200 4.2] the two highest bits say what to do with an unknown option: 00 skip, else discard
        if ((type >> 6) != 0 || options.size() < 2) return false;
        const std::size_t length = 2 + std::size_t{load_8(options.data() + 1)};
        if (length > options.size()) return false;
        options = options.subspan(length);
    }
    return true;
}

}  // namespace

Drop Ipv6View::walk_extensions() {
    const std::size_t end = total_length();
    std::size_t offset = kIpv6HeaderLength;
    for (int count = 0; is_extension(protocol_); ++count) {
        if (count == kMaxExtensionHeaders) return Drop::kIpv6ExtensionHeader;
        // [RFC8200 4.1] hop-by-hop options stand right behind the IPv6 header or nowhere
        if (protocol_ == IpProtocol::kHopByHop && count != 0) return Drop::kIpv6ExtensionHeader;
        if (offset + 8 > end || offset + 8 > head_.size()) return Drop::kIpv6Truncated;
        const IpProtocol next = static_cast<IpProtocol>(load_8(at(offset)));

        if (protocol_ == IpProtocol::kFragment) {
            if (is_fragment()) return Drop::kIpv6ExtensionHeader;
            fragment_ = load_be16(at(offset + 2)) & 0xfff9;
            identification_ = load_be32(at(offset + 4));
            offset += kIpv6FragmentHeaderLength;
            protocol_ = next;
            if (fragment_offset() != 0) break;  // what follows is the middle of something
            continue;
        }

        const std::size_t length = (std::size_t{load_8(at(offset + 1))} + 1) * 8;
        if (offset + length > end || offset + length > head_.size()) return Drop::kIpv6Truncated;
        if (protocol_ == IpProtocol::kRouting) {
            // [RFC5095 3] [RFC8200 4.4] we forward for nobody: only a routing header that is used up is ignored
            if (load_8(at(offset + 3)) != 0) return Drop::kIpv6ExtensionHeader;
        } else if (!options_acceptable({at(offset + 2), length - 2})) {
            return Drop::kIpv6ExtensionHeader;
        }
        offset += length;
        protocol_ = next;
    }
    header_length_ = static_cast<std::uint16_t>(offset);
    return Drop::kNone;
}

}  // namespace culvert::wire
