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
#include <vector>

#include "daemon/wire/filter_rule.h"
#include "shm/base/error.h"

namespace culvert::device {

enum class Protocol : std::uint8_t { kTcp = 6, kUdp = 17 };

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
    /// The rules in force, without the default; empty when the filter is off.
    std::span<const FilterRule> rules() const { return rules_; }

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
    std::vector<FilterRule> rules_;    // in use
    std::vector<std::uint64_t> base_;  // counts of former generations, the default's last
};

}  // namespace culvert::device
