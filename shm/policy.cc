#include "shm/policy.h"

#include <arpa/inet.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace culvert::shm {

namespace {

constexpr std::uint8_t kMappedPrefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
constexpr unsigned kMappedBits = 96;
constexpr std::string_view kProtocolNames[] = {"tcp", "udp", "icmp", "raw"};
/// icmp and raw, listen and connect: what has no ports.
constexpr unsigned kPortless = 0xf0;
constexpr unsigned kEverything = 0xff;

bool is_v4(const Policy::AddressBytes& address) noexcept {
    return std::memcmp(address, kMappedPrefix, sizeof kMappedPrefix) == 0;
}

bool is_loopback(const Policy::AddressBytes& address) noexcept {
    if (is_v4(address)) return address[12] == 127;
    return address[15] == 1 && std::all_of(address, address + 15, [](std::uint8_t byte) { return byte == 0; });
}

/// The first `bits` are the same.
bool same_bits(const Policy::AddressBytes& a, const Policy::AddressBytes& b, unsigned bits) noexcept {
    if (std::memcmp(a, b, bits / 8) != 0) return false;
    const unsigned rest = bits % 8;
    return rest == 0 || ((a[bits / 8] ^ b[bits / 8]) >> (8 - rest)) == 0;
}

bool is_blank(char c) noexcept { return c == ' ' || c == '\t' || c == '\r'; }
bool ends_rule(char c) noexcept { return c == ';' || c == '\n'; }

/// Digits only, at most `most`; -1: not such a number.
long number_of(std::string_view text, long most) noexcept {
    if (text.empty() || text.size() > 5) return -1;
    long value = 0;
    for (const char c : text) {
        if (c < '0' || c > '9') return -1;
        value = value * 10 + (c - '0');
    }
    return value <= most ? value : -1;
}

bool is_port_word(std::string_view word) noexcept {
    return !word.empty() && word.find_first_not_of("0123456789-") == std::string_view::npos;
}

}  // namespace

TextPosition position_in(std::string_view text, std::size_t offset) noexcept {
    TextPosition position;
    for (const char c : text.substr(0, std::min(offset, text.size()))) {
        if (c == '\n') {
            ++position.line;
            position.column = 1;
        } else {
            ++position.column;
        }
    }
    return position;
}

/// One rule after the other; the first mistake ends it.
class Policy::Parser {
public:
    Parser(std::string_view text, Policy& policy, PolicyError& error) noexcept : text_(text), policy_(policy), error_(error) {}

    bool run() noexcept {
        while (skip_between_rules())
            if (!rule()) return false;
        return true;
    }

private:
    bool refuse(std::size_t at, const char* why) noexcept {
        error_ = {at, why};
        return false;
    }

    void skip_blanks() noexcept {
        while (at_ < text_.size() && is_blank(text_[at_])) ++at_;
        if (at_ < text_.size() && text_[at_] == '#')
            while (at_ < text_.size() && text_[at_] != '\n') ++at_;
    }
    /// To the beginning of the next rule; false: there is none.
    bool skip_between_rules() noexcept {
        for (skip_blanks(); at_ < text_.size() && ends_rule(text_[at_]); skip_blanks()) ++at_;
        return at_ < text_.size();
    }
    bool rule_ends() noexcept {
        skip_blanks();
        return at_ == text_.size() || ends_rule(text_[at_]);
    }
    bool take_comma() noexcept {
        skip_blanks();
        if (at_ == text_.size() || text_[at_] != ',') return false;
        ++at_;
        skip_blanks();
        return true;
    }
    /// The word that comes next, without taking it; empty: none.
    std::string_view peek() noexcept {
        skip_blanks();
        std::size_t end = at_;
        while (end < text_.size() && !is_blank(text_[end]) && !ends_rule(text_[end]) && text_[end] != ',' && text_[end] != '#') ++end;
        return text_.substr(at_, end - at_);
    }
    bool take(std::string_view word) noexcept {
        if (peek() != word) return false;
        at_ += word.size();
        return true;
    }
    int protocol(std::string_view word) const noexcept {
        const auto found = std::find(std::begin(kProtocolNames), std::end(kProtocolNames), word);
        return found == std::end(kProtocolNames) ? -1 : static_cast<int>(found - std::begin(kProtocolNames));
    }

    bool rule() noexcept {
        if (policy_.rule_count_ == kMostRules) return refuse(at_, "there are more than 32 rules");
        Rule rule;
        unsigned scope = 0;
        const std::size_t begin = at_;
        while (protocol(peek()) >= 0) {
            const std::string_view word = peek();
            scope |= 3u << (protocol(word) * 2);
            at_ += word.size();
            if (!take_comma()) break;
            if (protocol(peek()) < 0) return refuse(at_, "after this comma another protocol must follow: tcp, udp, icmp or raw");
        }
        const bool named = scope != 0;
        if (!named) scope = kEverything;
        if (take("listen")) {
            scope &= 0x55;
        } else if (take("connect")) {
            scope &= 0xaa;
        }
        rule.culvert = !take("not");
        if (!target(rule)) return false;
        if (rule.ports != 0) {
            if (named && (scope & ~kPortless) == 0) return refuse(begin, "icmp and raw have no ports");
            scope &= ~kPortless;
        }
        rule.scope = static_cast<std::uint8_t>(scope);
        if (!rule_ends()) return refuse(at_, "the rule should end here: a comma, a semicolon or a new line is missing");
        policy_.rules_[policy_.rule_count_++] = rule;
        return true;
    }

    bool target(Rule& rule) noexcept {
        const std::size_t begin = (skip_blanks(), at_);
        const std::string_view word = peek();
        if (word.empty()) return refuse(begin, "the rule says nothing of what it is about: all, none, ports, networks or loopback");
        if (word == "all" || word == "none") {
            if (word == "none" && !rule.culvert) return refuse(begin, "\"not none\" says nothing: write all");
            if (word == "none") rule.culvert = false;
            rule.everywhere = true;
            at_ += word.size();
            return true;
        }
        if (is_port_word(word)) return ports(rule);
        if (!networks(rule)) return false;
        return take("port") ? ports(rule) : true;
    }

    bool ports(Rule& rule) noexcept {
        rule.first_ports = static_cast<std::uint8_t>(policy_.port_count_);
        do {
            const std::string_view word = peek();
            if (!is_port_word(word)) return refuse(at_, "here a port must stand, such as 80, or a range of ports, such as 8000-8999");
            if (policy_.port_count_ == kMostPorts) return refuse(at_, "there are more than 64 ports and ranges of ports");
            const std::size_t dash = word.find('-');
            const long first = number_of(word.substr(0, dash), 65535);
            const long last = dash == std::string_view::npos ? first : number_of(word.substr(dash + 1), 65535);
            if (first < 1 || last < 1) return refuse(at_, "this is no port: ports are numbers from 1 to 65535");
            if (last < first) return refuse(at_, "this range of ports ends before it begins");
            policy_.ports_[policy_.port_count_++] = {static_cast<std::uint16_t>(first), static_cast<std::uint16_t>(last)};
            ++rule.ports;
            at_ += word.size();
        } while (take_comma());
        return true;
    }

    bool networks(Rule& rule) noexcept {
        rule.first_network = static_cast<std::uint8_t>(policy_.network_count_);
        rule.only_loopback = true;
        do {
            const std::string_view word = peek();
            if (word == "loopback") {
                constexpr AddressBytes kLoopback4 = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127};
                constexpr AddressBytes kLoopback6 = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
                if (!add(rule, kLoopback4, kMappedBits + 8) || !add(rule, kLoopback6, 128)) return false;
            } else if (!network(rule, word)) {
                return false;
            }
            at_ += word.size();
        } while (take_comma());
        return true;
    }

    bool network(Rule& rule, std::string_view word) noexcept {
        constexpr const char* kUnknown =
            "this is not understood: tcp, udp, icmp, raw, listen, connect, not, all, none, loopback, a port or a network may stand here";
        if (is_port_word(word)) return refuse(at_, "ports and networks do not stand in one list: 10.0.0.0/8 port 80");
        const std::size_t slash = word.find('/');
        char address[INET6_ADDRSTRLEN + 1] = {};
        const std::string_view name = word.substr(0, slash);
        if (name.empty() || name.size() >= sizeof address) return refuse(at_, kUnknown);
        name.copy(address, name.size());
        AddressBytes bytes{};
        std::memcpy(bytes, kMappedPrefix, sizeof kMappedPrefix);
        bool v4 = ::inet_pton(AF_INET, address, bytes + 12) == 1;
        if (!v4 && ::inet_pton(AF_INET6, address, bytes) != 1) return refuse(at_, kUnknown);
        if (!v4 && is_v4(bytes)) return refuse(at_, "an IPv4 network is written as such: 10.0.0.0/8, not ::ffff:10.0.0.0/104");
        long length = v4 ? 32 : 128;
        if (slash != std::string_view::npos && (length = number_of(word.substr(slash + 1), length)) < 0)
            return refuse(at_ + slash + 1, v4 ? "the length of this network is a number from 0 to 32" : "the length of this network is a number from 0 to 128");
        const auto bits = static_cast<unsigned>(length) + (v4 ? kMappedBits : 0);
        for (unsigned bit = bits; bit < 128; ++bit)
            if ((bytes[bit / 8] >> (7 - bit % 8) & 1) != 0)
                return refuse(at_, "this network has bits beyond its length: 10.0.0.0/8, not 10.0.0.1/8");
        return add(rule, bytes, bits);
    }

    bool add(Rule& rule, const AddressBytes& bytes, unsigned bits) noexcept {
        if (policy_.network_count_ == kMostNetworks) return refuse(at_, "there are more than 64 networks");
        Network& network = policy_.networks_[policy_.network_count_++];
        std::memcpy(network.address, bytes, sizeof network.address);
        network.bits = static_cast<std::uint8_t>(bits);
        // A mapped prefix of less than 96 bits is of IPv6 and holds no IPv4 address.
        network.v4 = is_v4(bytes) && bits >= kMappedBits;
        network.loopback = network.v4 ? bytes[12] == 127 && bits >= kMappedBits + 8 : is_loopback(bytes) && bits == 128;
        rule.only_loopback = rule.only_loopback && network.loopback;
        ++rule.networks;
        return true;
    }

    std::string_view text_;
    Policy& policy_;
    PolicyError& error_;
    std::size_t at_ = 0;
};

bool Policy::parse(std::string_view text, PolicyError& error) noexcept {
    *this = Policy();
    // A NUL would end the text on its way through an environment, and what stands behind it would be lost.
    if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos) {
        error = {nul, "a NUL byte has no place in a policy"};
        return false;
    }
    if (Parser(text, *this, error).run()) return true;
    *this = Policy();
    return false;
}

bool Policy::fits(const Rule& rule, const AddressBytes& address, bool v4, bool loopback, std::uint16_t port) const noexcept {
    if (rule.everywhere) return !loopback;
    const auto in_network = [&](const Network& network) {
        return network.v4 == v4 && network.loopback == loopback && same_bits(network.address, address, network.bits);
    };
    const auto networks = networks_.begin() + rule.first_network;
    if (rule.networks == 0 ? loopback : !std::any_of(networks, networks + rule.networks, in_network)) return false;
    const auto ports = ports_.begin() + rule.first_ports;
    return rule.ports == 0 || std::any_of(ports, ports + rule.ports, [port](const Ports& range) {
               return range.first <= port && port <= range.last;
           });
}

bool Policy::allows(Protocol protocol, Call call, const AddressBytes& address, std::uint16_t port) const noexcept {
    const unsigned scope = scope_bit(protocol, call);
    const bool loopback = is_loopback(address);
    const bool v4 = is_v4(address);
    bool limited = loopback;
    for (std::size_t i = 0; i < rule_count_; ++i) {
        const Rule& rule = rules_[i];
        if ((rule.scope & scope) == 0) continue;
        if (fits(rule, address, v4, loopback, port)) return rule.culvert;
        limited = limited || (rule.culvert && !rule.only_loopback);
    }
    return !limited;
}

bool Policy::possible(Protocol protocol, Call call) const noexcept {
    const unsigned scope = scope_bit(protocol, call);
    bool limited = false;
    for (std::size_t i = 0; i < rule_count_; ++i) {
        const Rule& rule = rules_[i];
        if ((rule.scope & scope) == 0) continue;
        if (rule.culvert) return true;
        limited = limited || rule.everywhere;  // "none": only a rule about loopback can still fit
    }
    return !limited;
}

bool compact_policy(std::string_view text, char* out) noexcept {
    std::size_t length = 0;
    bool comment = false;
    bool blank = false;  // one is due
    for (char c : text) {
        if (c == '\n') {
            comment = false;
            c = ';';
        }
        if (c == '#') comment = true;
        if (comment) continue;
        if (is_blank(c)) {
            blank = true;
            continue;
        }
        const bool after_end = length == 0 || out[length - 1] == ';';
        if (c == ';') {
            blank = false;
            if (after_end) continue;
        }
        if (std::exchange(blank, false) && !after_end) {
            if (length == kMostPolicyText) return false;
            out[length++] = ' ';
        }
        if (length == kMostPolicyText) return false;
        out[length++] = c;
    }
    out[length] = '\0';
    return true;
}

}  // namespace culvert::shm
