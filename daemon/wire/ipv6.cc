#include "daemon/wire/ipv6.h"

#include "daemon/wire/icmp.h"

namespace culvert::wire {

/// The options of a hop-by-hop or destination options header.
Drop Ipv6View::walk_options(std::size_t begin, std::size_t end, Ipv6Problem* problem) {
    constexpr std::uint8_t kPad1 = 0, kRouterAlert = 5;
    for (std::size_t offset = begin; offset < end;) {
        const std::uint8_t type = load_8(at(offset));
        if (type == kPad1) {
            ++offset;
            continue;
        }
        const std::size_t length = offset + 1 < end ? 2 + std::size_t{load_8(at(offset + 1))} : 2;
        if (offset + length > end) {
            if (problem != nullptr)
                *problem = {.tell = true, .code = icmp_v6::kHeaderField, .pointer = static_cast<std::uint32_t>(offset + 1)};
            return Drop::kIpv6ExtensionHeader;
        }
        if (type == kRouterAlert) router_alert_ = true;
        // [RFC8200 4.2] the two highest bits say what to do with an unknown option: 00 skip it; 01 discard the packet;
        // 10 and tell the sender; 11 only if it was not sent to a group
        if (const unsigned action = type >> 6; action != 0) {
            if (problem != nullptr && action != 1)
                *problem = {.tell = true,
                            .even_group = action == 2,
                            .code = icmp_v6::kUnknownOption,
                            .pointer = static_cast<std::uint32_t>(offset)};
            return Drop::kIpv6ExtensionHeader;
        }
        offset += length;
    }
    return Drop::kNone;
}

Drop Ipv6View::walk_extensions(Ipv6Problem* problem) {
    const std::size_t end = total_length();
    std::size_t offset = kIpv6HeaderLength;
    for (int count = 0; is_extension(protocol_); ++count) {
        if (count == kMaxExtensionHeaders) return Drop::kIpv6ExtensionHeader;
        // [RFC8200 4.1] hop-by-hop options stand right behind the IPv6 header or nowhere
        if (protocol_ == IpProtocol::kHopByHop && count != 0) {
            if (problem != nullptr)
                *problem = {.tell = true, .code = icmp_v6::kUnknownNextHeader, .pointer = protocol_field_};
            return Drop::kIpv6ExtensionHeader;
        }
        const bool fits = offset + 8 <= end && offset + 8 <= head_.size();
        const std::size_t length = !fits || protocol_ == IpProtocol::kFragment
                                       ? kIpv6FragmentHeaderLength
                                       : (std::size_t{load_8(at(offset + 1))} + 1) * 8;
        if (!fits || offset + length > end || offset + length > head_.size()) {
            // [RFC7112 5] the first fragment has all headers
            if (problem != nullptr && is_fragment())
                *problem = {.tell = true, .code = icmp_v6::kIncompleteFirstFragment, .pointer = 0};
            return Drop::kIpv6Truncated;
        }
        const IpProtocol next = static_cast<IpProtocol>(load_8(at(offset)));
        if (protocol_ == IpProtocol::kFragment) {
            if (fragment_at_ != 0) return Drop::kIpv6ExtensionHeader;
            fragment_at_ = static_cast<std::uint16_t>(offset);
            fragment_ = load_be16(at(offset + 2)) & 0xfff9;
            identification_ = load_be32(at(offset + 4));
        } else if (protocol_ == IpProtocol::kRouting) {
            // [RFC5095 3] [RFC8200 4.4] we follow nobody's route: only a routing header that is used up is ignored
            if (load_8(at(offset + 3)) != 0) {
                if (problem != nullptr)
                    *problem = {.tell = true,
                                .code = icmp_v6::kHeaderField,
                                .pointer = static_cast<std::uint32_t>(offset + 2)};
                return Drop::kIpv6ExtensionHeader;
            }
        } else if (const Drop drop = walk_options(offset + 2, offset + length, problem); drop != Drop::kNone) {
            return drop;
        }
        protocol_field_ = static_cast<std::uint16_t>(offset);
        offset += length;
        protocol_ = next;
        if (fragment_offset() != 0) break;  // what follows is the middle of something
    }
    header_length_ = static_cast<std::uint16_t>(offset);
    return Drop::kNone;
}

Ipv6Problem find_ipv6_problem(std::span<const std::byte> head, std::size_t available) {
    Ipv6Problem problem;
    auto view = Ipv6View::parse_fixed(head, available);
    if (view) view->walk_extensions(&problem);
    return problem;
}

}  // namespace culvert::wire
