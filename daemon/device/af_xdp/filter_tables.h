// Filter rules as the steering programs read them: from an ordered list to sets of rules by field.
//
//   rule 0  deny  10.1.0.0/16          any   tcp  port 22         source trie   10.1/16 -> {0,2}   everything -> {1,2}
//   rule 1  allow any                  any   tcp  port 22         port table    22 -> class 1 -> {0,1,2}   others -> class 0 -> {2}
//   rule 2  (the default)                                          a packet: the AND of its five sets, the first bit decides
//
// Five look-ups a packet, however many rules. Two generations of every table: the one that is not in use is written, then one
// store makes it the one in use. Written under SteeringProgram's mutex.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "daemon/wire/address.h"
#include "shm/base/error.h"

namespace culvert::device {

enum class Protocol : std::uint8_t { kTcp = 6, kUdp = 17 };

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

struct PortRange {
    Port first = 0;
    Port last = 65535;

    /// "80", "1024-65535", "any". Errors: EINVAL.
    static Result<PortRange> parse(const std::string& text);
    bool everything() const { return first == 0 && last == 65535; }
    std::string to_string() const;
    friend bool operator==(const PortRange&, const PortRange&) = default;
};

/// Every field must fit. A packet without ports (ICMP, later fragments) fits port ranges only if they are everything.
struct FilterRule {
    FilterAction action = FilterAction::kAllow;
    Prefix source;
    Prefix destination;
    int protocol = -1;  // IPPROTO_*; -1: any
    PortRange source_ports;
    PortRange ports;  // of the destination

    /// "deny tcp from 10.0.0.0/8 ports any to any ports 22"
    std::string to_string() const;
    friend bool operator==(const FilterRule&, const FilterRule&) = default;
};

class FilterTables {
public:
    struct Maps {
        int prefixes = -1, ports = -1, classes = -1, actions = -1, counts = -1;
    };

    /// `in_use`: the control word that the programs read.
    void open(const Maps& maps, std::uint64_t* in_use) {
        maps_ = maps;
        in_use_ = in_use;
    }

    /// No rules and `otherwise` kAllow: the filter is off and costs nothing. On error the old rules stay in force.
    Result<void> change(std::span<const FilterRule> rules, FilterAction otherwise);
    std::vector<std::uint64_t> counts() const;

private:
    Result<void> write(unsigned generation, std::span<const FilterRule> rules, FilterAction otherwise);
    Result<void> write_prefixes(unsigned generation, std::span<const FilterRule> rules);
    Result<void> write_protocols(unsigned generation, std::span<const FilterRule> rules);
    Result<void> write_ports(unsigned generation, bool destination, std::span<const FilterRule> rules);
    Result<void> write_actions(unsigned generation, std::span<const FilterRule> rules, FilterAction otherwise);
    void clear_prefixes(unsigned generation);
    std::uint64_t raw_count(unsigned generation, std::size_t rule) const;

    Maps maps_;
    std::uint64_t* in_use_ = nullptr;
    unsigned generation_ = 0;         // in use, or used last
    bool active_ = false;
    std::vector<FilterRule> rules_;   // in use
    std::vector<std::uint64_t> base_; // counts of former generations, the default's last
};

}  // namespace culvert::device
