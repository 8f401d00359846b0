// A filter rule: what it asks of a packet, and how a person writes it. The rules are applied by the steering programs
// (daemon/device/af_xdp/filter_tables.h), ordered, first match.
#pragma once

#include <cstdint>
#include <string>

#include "daemon/wire/address.h"
#include "shm/base/error.h"

namespace culvert {

enum class FilterAction : std::uint8_t { kDeny = 0, kAllow = 1 };

/// A network: IPv4 or IPv6. Length 0 of the unspecified IPv6 address: everything of both families.
struct Prefix {
    Address address = Address::any(Family::kIpv6);
    unsigned length = 0;

    /// "10.0.0.0/8", "fd00::/8", "192.0.2.1", "any". Errors: EINVAL, also for bits beyond the length.
    static Result<Prefix> parse(const std::string& text);
    bool everything() const { return length == 0 && !address.is_v4(); }
    /// Of the 128-bit form that the tables use.
    unsigned mapped_length() const { return address.is_v4() ? length + 96 : length; }
    std::string to_string() const;
    friend bool operator==(const Prefix&, const Prefix&) = default;
};

struct PortInterval {
    Port first = 0;
    Port last = 65535;

    /// "80", "1024-65535", "any". Errors: EINVAL.
    static Result<PortInterval> parse(const std::string& text);
    bool everything() const { return first == 0 && last == 65535; }
    std::string to_string() const;
    friend bool operator==(const PortInterval&, const PortInterval&) = default;
};

/// "any", "tcp", "udp", "icmp", "icmpv6", "sctp" or a number of 0 to 255; -1 for any. Errors: EINVAL.
Result<int> parse_protocol(const std::string& text);
std::string protocol_name(int protocol);

/// Every field must fit. A packet without ports (ICMP, later fragments) fits port ranges only if they are everything.
struct FilterRule {
    FilterAction action = FilterAction::kAllow;
    Prefix source;
    Prefix destination;
    int protocol = -1;  // IPPROTO_*; -1: any
    PortInterval source_ports;
    PortInterval ports;  // of the destination

    /// "deny tcp from 10.0.0.0/8 ports any to any ports 22"
    std::string to_string() const;
    friend bool operator==(const FilterRule&, const FilterRule&) = default;
};

}  // namespace culvert
