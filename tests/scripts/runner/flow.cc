#include "tests/scripts/runner/flow.h"

#include <algorithm>

namespace culvert::script {
namespace {

constexpr std::uint8_t kSyn = 0x02, kPsh = 0x08;

std::uint8_t ecn_bits(EcnField field) {
    switch (field) {
        case EcnField::kNotEct: return 0;
        case EcnField::kEct1: return 1;
        case EcnField::kEct0: return 2;
        case EcnField::kCe: return 3;
        case EcnField::kEct01: return 2;
    }
    return 0;
}
const char* ecn_name(std::uint8_t bits) {
    constexpr const char* kNames[] = {"noecn", "ect1", "ect0", "ce"};
    return kNames[bits & 3];
}

std::uint8_t traffic_class_of(const IpFields& fields) {
    const std::uint8_t tos = fields.tos.value_or(0);
    return fields.ecn ? static_cast<std::uint8_t>((tos & ~3) | ecn_bits(*fields.ecn)) : tos;
}

std::optional<std::string> match_ip(const IpFields& wanted, const WirePacket& got) {
    const std::uint8_t ecn = got.traffic_class & 3;
    if (wanted.ecn == EcnField::kEct01) {
        if (ecn != 1 && ecn != 2) return std::string("the IP header says ") + ecn_name(ecn) + ", not ect0 or ect1";
    } else if (wanted.ecn && ecn != ecn_bits(*wanted.ecn)) {
        return std::string("the IP header says ") + ecn_name(ecn) + ", not " + ecn_name(ecn_bits(*wanted.ecn));
    }
    if (wanted.tos && got.traffic_class != *wanted.tos)
        return "TOS is " + std::to_string(got.traffic_class) + ", not " + std::to_string(*wanted.tos);
    if (wanted.ttl && got.ttl != *wanted.ttl)
        return "TTL is " + std::to_string(got.ttl) + ", not " + std::to_string(*wanted.ttl);
    return std::nullopt;
}

/// Without padding, in the order of their kinds: order and alignment are a stack's own choice.
std::vector<Option> essential(const std::vector<Option>& options) {
    std::vector<Option> kept;
    for (const Option& option : options)
        if (!std::holds_alternative<NoOperation>(option) && !std::holds_alternative<EndOfOptions>(option)) kept.push_back(option);
    std::ranges::stable_sort(kept, {}, [](const Option& option) { return option.index(); });
    return kept;
}

Bytes payload_at(std::uint32_t position, std::uint32_t length) {
    Bytes bytes(length);
    for (std::uint32_t i = 0; i < length; ++i) bytes[i] = pattern(position + i);
    return bytes;
}

}  // namespace

std::uint32_t Flow::to_live_echo(std::uint32_t value) const {
    if (const auto known = stamps_.find(value); known != stamps_.end()) return known->second;
    // Not one that left: as far from the first as the script says.
    return first_stamp_ && value != 0 ? first_stamp_->live + (value - first_stamp_->script) : value;
}

std::uint32_t Flow::to_script_stamp(std::uint32_t live) const {
    for (const auto& [script, known] : stamps_)
        if (known == live) return script;
    return first_stamp_ ? first_stamp_->script + (live - first_stamp_->live) : live;
}

std::expected<Bytes, std::string> Flow::build(const Packet& packet) {
    if (const auto* icmp = std::get_if<IcmpPacket>(&packet.content)) {
        WirePacket offending{.from = local_, .to = remote_, .content = UdpPacket{}, .payload = {}};
        if (const auto* tcp = std::get_if<TcpPacket>(&icmp->about)) {
            TcpPacket quoted{.flags = 0x10, .first = local_base_ + tcp->first, .length = tcp->length};
            quoted.ack = remote_base_ + 1;
            offending.content = quoted;
            offending.payload = payload_at(tcp->first - local_first_, tcp->length);
        } else {
            const auto& udp = std::get<UdpPacket>(icmp->about);
            offending.content = udp;
            offending.payload = payload_at(1, udp.length);
        }
        const auto quoted = encode(offending);
        if (!quoted) return quoted;
        // Scripts speak of IPv4; over IPv6 the same MSS needs 20 bytes more.
        IcmpPacket message = *icmp;
        if (message.mtu && !local_.address.is_v4()) *message.mtu += 20;
        return encode_icmp(message, *quoted, router(), local_.address);
    }
    if (const auto* udp = std::get_if<UdpPacket>(&packet.content)) {
        WirePacket datagram{.from = remote_, .to = local_, .traffic_class = traffic_class_of(packet.ip),
                            .ttl = packet.ip.ttl.value_or(64), .content = *udp, .payload = payload_at(1, udp->length)};
        return encode(datagram);
    }
    return build_tcp(std::get<TcpPacket>(packet.content), packet.ip);
}

std::expected<Bytes, std::string> Flow::build_tcp(const TcpPacket& tcp, const IpFields& ip) {
    if ((tcp.flags & kSyn) != 0) {
        if (last_remote_syn_ != tcp.first && (tcp.flags & 0x10) == 0) expect_isn_ = true;
        last_remote_syn_ = tcp.first;
        remote_first_ = tcp.first;
    }
    if (tcp.urgent != 0) ignores_payload = true;
    TcpPacket live = tcp;
    live.first = remote_base_ + tcp.first;
    if (tcp.ack) live.ack = local_base_ + *tcp.ack;
    for (Option& option : live.options) {
        if (auto* stamps = std::get_if<Timestamps>(&option)) stamps->echo = to_live_echo(stamps->echo);
        if (auto* sack = std::get_if<Sack>(&option)) {
            for (auto& [left, right] : sack->blocks) {
                left += local_base_;
                right += local_base_;
            }
        }
        if (auto* fast_open = std::get_if<FastOpen>(&option); fast_open != nullptr && fast_open->captured) {
            if (cookie_.empty()) return std::unexpected("TFO_COOKIE: none has been given out so far");
            fast_open->cookie = cookie_;
        }
    }
    // The SYN takes the first number, its data begin behind it.
    const std::uint32_t position = tcp.first - remote_first_ + ((tcp.flags & kSyn) != 0 ? 1 : 0);
    WirePacket packet{.from = remote_, .to = local_, .traffic_class = traffic_class_of(ip), .ttl = ip.ttl.value_or(64),
                      .content = live, .payload = payload_at(position, tcp.length)};
    return encode(packet);
}

TcpPacket Flow::to_script(const TcpPacket& live) const {
    TcpPacket shown = live;
    shown.first -= local_base_;
    shown.last -= local_base_;
    if (shown.ack) *shown.ack -= remote_base_;
    for (Option& option : shown.options) {
        if (auto* stamps = std::get_if<Timestamps>(&option)) stamps->value = to_script_stamp(stamps->value);
        if (auto* sack = std::get_if<Sack>(&option)) {
            for (auto& [left, right] : sack->blocks) {
                left -= remote_base_;
                right -= remote_base_;
            }
        }
    }
    return shown;
}

std::string Flow::describe(const WirePacket& packet) const {
    const std::string ecn = (packet.traffic_class & 3) != 0 ? std::string("[") + ecn_name(packet.traffic_class) + "] " : "";
    if (const auto* udp = std::get_if<UdpPacket>(&packet.content)) return ecn + "udp (" + std::to_string(udp->length) + ")";
    const auto& live = std::get<TcpPacket>(packet.content);
    const TcpPacket tcp = to_script(live);
    const bool unknown = expect_isn_ && (tcp.flags & kSyn) != 0;
    const std::uint32_t first = unknown ? 0 : tcp.first;
    std::string text = ecn + describe_flags(tcp.flags) + " " + std::to_string(first) + ":" +
                       std::to_string(first + tcp.length) + "(" + std::to_string(tcp.length) + ")";
    if (tcp.ack) text += " ack " + std::to_string(*tcp.ack);
    text += " win " + std::to_string(tcp.window.value_or(0));
    if (tcp.urgent != 0) text += " urg " + std::to_string(tcp.urgent);
    const std::string options = script::describe(tcp.options);
    return options.empty() ? text : text + " " + options;
}

std::optional<std::string> Flow::match(const Packet& wanted, const WirePacket& got, Duration at) {
    if (got.from.address != local_.address || got.to != remote_)
        return "it goes from " + got.from.to_string() + " to " + got.to.to_string();
    if (expect_port_) {
        local_.port = got.from.port;
        expect_port_ = false;
    }
    if (got.from.port != local_.port) return "it comes from port " + std::to_string(got.from.port) + ", not " + std::to_string(local_.port);
    if (auto wrong = match_ip(wanted.ip, got)) return wrong;
    if (wanted.content.index() != got.content.index()) return "it is of another protocol";
    if (const auto* udp = std::get_if<UdpPacket>(&wanted.content)) {
        const auto length = std::get<UdpPacket>(got.content).length;
        if (length != udp->length) return "it has " + std::to_string(length) + " bytes, not " + std::to_string(udp->length);
        return std::nullopt;
    }
    return match_tcp(std::get<TcpPacket>(wanted.content), got, at);
}

std::optional<std::string> Flow::match_tcp(const TcpPacket& wanted, const WirePacket& got, Duration at) {
    const auto& live = std::get<TcpPacket>(got.content);
    if ((live.flags & kSyn) != 0 && expect_isn_) {
        local_base_ = live.first - wanted.first;
        local_first_ = wanted.first;
        expect_isn_ = false;
        stamps_.clear();
        first_stamp_.reset();
    }
    const auto differs = [](const char* what, std::uint32_t is, std::uint32_t wants) {
        return std::string(what) + " is " + std::to_string(is) + ", not " + std::to_string(wants);
    };
    TcpPacket tcp = to_script(live);
    if (allows_extra_push && tcp.length > 0 && (wanted.flags & kPsh) == 0) tcp.flags &= static_cast<std::uint8_t>(~kPsh);
    if (tcp.flags != wanted.flags) return "the flags are " + describe_flags(tcp.flags) + ", not " + describe_flags(wanted.flags);
    if (tcp.first != wanted.first) return differs("the sequence number", tcp.first, wanted.first);
    if (tcp.length != wanted.length) return differs("the payload's length", tcp.length, wanted.length);
    if (wanted.ack && tcp.ack != wanted.ack) return differs("the acknowledgment", tcp.ack.value_or(0), *wanted.ack);
    if (wanted.window && tcp.window != wanted.window) return differs("the window", *tcp.window, *wanted.window);
    if (tcp.urgent != wanted.urgent) return differs("the urgent pointer", tcp.urgent, wanted.urgent);
    if (!wanted.any_options)
        if (auto wrong = match_options(wanted, live, at)) return wrong;
    const std::uint32_t position = tcp.first - local_first_ + ((tcp.flags & kSyn) != 0 ? 1 : 0);
    if (!ignores_payload && got.payload != payload_at(position, tcp.length)) return "the payload is not what was written";
    return std::nullopt;
}

std::optional<std::string> Flow::match_options(const TcpPacket& wanted, const TcpPacket& got, Duration at) {
    std::vector<Option> want = essential(wanted.options);
    std::vector<Option> live = essential(got.options);
    const auto find_stamps = [](std::vector<Option>& in) {
        const auto found = std::ranges::find_if(in, [](const Option& o) { return std::holds_alternative<Timestamps>(o); });
        return found == in.end() ? nullptr : &std::get<Timestamps>(*found);
    };
    Timestamps* const want_stamps = find_stamps(want);
    Timestamps* const live_stamps = find_stamps(live);
    if (want_stamps != nullptr && live_stamps != nullptr) {
        if (!first_stamp_) first_stamp_ = Stamp{want_stamps->value, live_stamps->value, at};
        // Milliseconds on both clocks: one more or less is their granularity, four the script's own tolerance.
        const auto moved = static_cast<std::int32_t>(live_stamps->value - first_stamp_->live);
        const auto wants = static_cast<std::int32_t>(want_stamps->value - first_stamp_->script);
        if (ts_tick_ != Duration(0) && (moved < wants - 5 || moved > wants + 5))
            return "TS val has moved by " + std::to_string(moved) + ", not by " + std::to_string(wants);
        stamps_[want_stamps->value] = live_stamps->value;
        live_stamps->value = want_stamps->value;
    }
    for (Option& option : live) {
        if (auto* sack = std::get_if<Sack>(&option)) {
            for (auto& [left, right] : sack->blocks) {
                left -= remote_base_;
                right -= remote_base_;
            }
        }
        if (auto* fast_open = std::get_if<FastOpen>(&option)) {
            const bool captures = std::ranges::any_of(want, [](const Option& o) {
                const auto* mine = std::get_if<FastOpen>(&o);
                return mine != nullptr && mine->captured;
            });
            if (captures && !fast_open->cookie.empty()) {
                cookie_ = fast_open->cookie;
                *fast_open = FastOpen{.cookie = {}, .captured = true};
            }
        }
    }
    if (want == live) return std::nullopt;
    return "the options are " + (live.empty() ? "none" : script::describe(live)) + ", not " +
           (want.empty() ? "none" : script::describe(want));
}

}  // namespace culvert::script
