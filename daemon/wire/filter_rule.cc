#include "daemon/wire/filter_rule.h"

#include <netinet/in.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <string_view>
#include <utility>

namespace culvert {
namespace {

constexpr std::array<std::pair<std::string_view, int>, 6> kProtocols = {
    {{"any", -1}, {"tcp", IPPROTO_TCP}, {"udp", IPPROTO_UDP}, {"icmp", IPPROTO_ICMP}, {"icmpv6", IPPROTO_ICMPV6}, {"sctp", IPPROTO_SCTP}}};

template <class Number>
bool parse_number(std::string_view text, Number& number) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    return error == std::errc{} && end == text.data() + text.size();
}

}  // namespace

Result<int> parse_protocol(const std::string& text) {
    for (const auto& [name, number] : kProtocols)
        if (name == text) return number;
    int number = 0;
    if (!parse_number(text, number) || number < 0 || number > 255)
        return fail(EINVAL, "\"" + text + "\" is no protocol: any, tcp, udp, icmp, icmpv6, sctp or 0 to 255 allowed");
    return number;
}

std::string protocol_name(int protocol) {
    for (const auto& [name, number] : kProtocols)
        if (number == protocol) return std::string(name);
    return std::to_string(protocol);
}

Result<Prefix> Prefix::parse(const std::string& text) {
    if (text == "any") return Prefix{};
    const std::size_t slash = text.find('/');
    const auto address = Address::parse(text.substr(0, slash));
    if (!address) return fail(EINVAL, "\"" + text + "\" is no network");
    Prefix prefix{*address, address->is_v4() ? 32u : 128u};
    if (slash != std::string::npos) {
        unsigned length = 0;
        if (!parse_number(std::string_view(text).substr(slash + 1), length) || length > prefix.length)
            return fail(EINVAL, "\"" + text + "\" is no network");
        prefix.length = length;
    }
    for (unsigned bit = prefix.length; bit < (address->is_v4() ? 32u : 128u); ++bit)
        if ((address->wire_bytes()[bit / 8] >> (7 - bit % 8) & 1) != 0)
            return fail(EINVAL, "\"" + text + "\" has bits beyond its length");
    return prefix;
}

std::string Prefix::to_string() const {
    return everything() ? "any" : address.to_string() + "/" + std::to_string(length);
}

Result<PortInterval> PortInterval::parse(const std::string& text) {
    if (text == "any") return PortInterval{};
    PortInterval range;
    const std::size_t dash = text.find('-');
    bool good = parse_number(std::string_view(text).substr(0, dash), range.first);
    range.last = range.first;
    if (dash != std::string::npos) good = good && parse_number(std::string_view(text).substr(dash + 1), range.last);
    if (!good || range.first == 0 || range.last < range.first) return fail(EINVAL, "\"" + text + "\" is no port or range of ports");
    return range;
}

std::string PortInterval::to_string() const {
    if (everything()) return "any";
    return first == last ? std::to_string(first) : std::to_string(first) + "-" + std::to_string(last);
}

std::string FilterRule::to_string() const {
    return std::string(action == FilterAction::kAllow ? "allow " : "deny ") + protocol_name(protocol) + " from " +
           source.to_string() + " ports " + source_ports.to_string() + " to " + destination.to_string() + " ports " +
           ports.to_string();
}

}  // namespace culvert
