#include "daemon/device/af_xdp/filter_tables.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <set>

#include "bpf/steer_shared.h"

namespace culvert::device {
namespace {

/// A set of rules as the tables hold it.
class RuleSet {
public:
    void add(std::size_t rule) { set_.words[rule / 64] |= std::uint64_t{1} << rule % 64; }
    const steer_rules& raw() const { return set_; }
    friend bool operator<(const RuleSet& a, const RuleSet& b) {
        return std::lexicographical_compare(a.set_.words, a.set_.words + STEER_RULE_WORDS, b.set_.words,
                                            b.set_.words + STEER_RULE_WORDS);
    }

private:
    steer_rules set_{};
};

/// Every rule that `fits`, and the default.
template <class Fits>
RuleSet rules_that(std::span<const FilterRule> rules, Fits fits) {
    RuleSet set;
    for (std::size_t i = 0; i < rules.size(); ++i)
        if (fits(rules[i])) set.add(i);
    set.add(rules.size());
    return set;
}

/// Every address of `inner` is one of `outer`.
bool contains(const Prefix& outer, const Prefix& inner) {
    if (outer.everything()) return true;
    if (inner.everything() || outer.address.is_v4() != inner.address.is_v4()) return false;
    return outer.length <= inner.length && inner.address.in(outer.address, outer.length);
}

Result<void> put(int map, const void* key, const void* value, const char* what) {
    if (const int error = bpf_map_update_elem(map, key, value, BPF_ANY); error != 0) return fail(-error, what);
    return {};
}

}  // namespace

Result<void> FilterTables::change(std::span<const FilterRule> rules, FilterAction otherwise) {
    if (rules.size() > STEER_MAX_RULES - 1)
        return fail(E2BIG, "more than " + std::to_string(STEER_MAX_RULES - 1) + " filter rules");
    const bool wanted = !rules.empty() || otherwise == FilterAction::kDeny;
    const unsigned next = 1 - generation_;
    if (wanted) TRY_VOID(write(next, rules, otherwise));

    // What is the same rule as before goes on counting from there.
    std::vector<std::uint64_t> base(wanted ? rules.size() + 1 : 0, 0);
    const std::vector<std::uint64_t> before = counts();
    std::vector<bool> passed_on(rules_.size(), false);
    for (std::size_t i = 0; i < rules.size() && active_; ++i)
        for (std::size_t old = 0; old < rules_.size(); ++old)
            if (!passed_on[old] && rules_[old] == rules[i]) {
                base[i] = before[old];
                passed_on[old] = true;
                break;
            }
    if (wanted && active_) base.back() = before.back();

    std::atomic_ref(*in_use_).store(wanted ? 1 + next : 0, std::memory_order_release);
    // Until every program that may still read the old generation has ended; only then may it be written again.
    if (::syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) != 0) return fail_errno("waiting for the steering program");
    if (wanted) generation_ = next;
    active_ = wanted;
    rules_.assign(rules.begin(), rules.end());
    base_ = std::move(base);
    return {};
}

Result<void> FilterTables::write(unsigned generation, std::span<const FilterRule> rules, FilterAction otherwise) {
    clear_prefixes(generation);
    TRY_VOID(write_prefixes(generation, rules));
    TRY_VOID(write_protocols(generation, rules));
    TRY_VOID(write_ports(generation, false, rules));
    TRY_VOID(write_ports(generation, true, rules));
    return write_actions(generation, rules, otherwise);
}

void FilterTables::clear_prefixes(unsigned generation) {
    std::vector<steer_prefix> old;
    steer_prefix key{};
    for (int error = bpf_map_get_next_key(maps_.prefixes, nullptr, &key); error == 0;
         error = bpf_map_get_next_key(maps_.prefixes, &key, &key))
        if (key.generation == generation) old.push_back(key);
    for (const steer_prefix& each : old) bpf_map_delete_elem(maps_.prefixes, &each);
}

/// The longest prefix that contains an address answers with every rule whose prefix contains that one.
Result<void> FilterTables::write_prefixes(unsigned generation, std::span<const FilterRule> rules) {
    for (const __u8 field : {STEER_FIELD_SOURCE, STEER_FIELD_DESTINATION}) {
        const auto of = [&](const FilterRule& rule) { return field == STEER_FIELD_SOURCE ? rule.source : rule.destination; };
        std::vector<Prefix> prefixes = {Prefix{}};
        for (const FilterRule& rule : rules)
            if (std::ranges::find(prefixes, of(rule)) == prefixes.end()) prefixes.push_back(of(rule));
        for (const Prefix& prefix : prefixes) {
            const RuleSet set = rules_that(rules, [&](const FilterRule& rule) { return contains(of(rule), prefix); });
            steer_prefix key{};
            key.prefix_length = 16 + prefix.mapped_length();
            key.generation = static_cast<__u8>(generation);
            key.field = field;
            std::memcpy(key.address, prefix.address.bytes().data(), sizeof key.address);
            TRY_VOID(put(maps_.prefixes, &key, &set.raw(), "writing filter prefixes"));
        }
    }
    return {};
}

Result<void> FilterTables::write_protocols(unsigned generation, std::span<const FilterRule> rules) {
    for (int protocol = 0; protocol < 256; ++protocol) {
        const RuleSet set = rules_that(
            rules, [&](const FilterRule& rule) { return rule.protocol == -1 || rule.protocol == protocol; });
        const __u32 index = STEER_CLASS_INDEX(generation, STEER_CLASS_PROTOCOL, static_cast<__u32>(protocol));
        TRY_VOID(put(maps_.classes, &index, &set.raw(), "writing filter protocols"));
    }
    return {};
}

Result<void> FilterTables::write_ports(unsigned generation, bool destination, std::span<const FilterRule> rules) {
    const auto of = [&](const FilterRule& rule) { return destination ? rule.ports : rule.source_ports; };
    std::set<unsigned> cuts = {0, 1};  // 0 stands for "no ports"
    for (const FilterRule& rule : rules) {
        cuts.insert(std::max<unsigned>(of(rule).first, 1));
        cuts.insert(of(rule).last + 1u);
    }
    std::map<RuleSet, __u16> classes;
    std::vector<__u16> class_of(65536);
    for (auto cut = cuts.begin(); cut != cuts.end() && *cut < 65536; ++cut) {
        const unsigned end = std::next(cut) == cuts.end() ? 65536 : std::min(*std::next(cut), 65536u);
        const RuleSet set = rules_that(rules, [&](const FilterRule& rule) {
            return of(rule).everything() || (*cut != 0 && of(rule).first <= *cut && *cut <= of(rule).last);
        });
        const auto [entry, fresh] = classes.try_emplace(set, static_cast<__u16>(classes.size()));
        if (classes.size() > STEER_MAX_CLASSES) return fail(E2BIG, "filter rules cut the ports into too many classes");
        for (unsigned port = *cut; port < end; ++port) class_of[port] = entry->second;
    }
    const __u32 kind = destination ? STEER_CLASS_PORT : STEER_CLASS_SOURCE_PORT;
    for (const auto& [set, number] : classes) {
        const __u32 index = STEER_CLASS_INDEX(generation, kind, number);
        TRY_VOID(put(maps_.classes, &index, &set.raw(), "writing filter port classes"));
    }
    std::vector<__u32> keys(class_of.size());
    for (std::size_t port = 0; port < keys.size(); ++port)
        keys[port] = STEER_PORT_INDEX(generation, destination ? 1u : 0u, static_cast<__u32>(port));
    __u32 count = static_cast<__u32>(keys.size());
    if (const int error = bpf_map_update_batch(maps_.ports, keys.data(), class_of.data(), &count, nullptr); error != 0)
        return fail(-error, "writing filter ports");
    return {};
}

Result<void> FilterTables::write_actions(unsigned generation, std::span<const FilterRule> rules, FilterAction otherwise) {
    const std::vector<std::uint64_t> zeros(static_cast<std::size_t>(std::max(libbpf_num_possible_cpus(), 1)), 0);
    for (std::size_t i = 0; i <= rules.size(); ++i) {
        const __u32 index = generation * STEER_MAX_RULES + static_cast<__u32>(i);
        const auto action = static_cast<__u8>(i < rules.size() ? rules[i].action : otherwise);
        TRY_VOID(put(maps_.actions, &index, &action, "writing filter actions"));
        TRY_VOID(put(maps_.counts, &index, zeros.data(), "clearing filter counts"));
    }
    return {};
}

std::uint64_t FilterTables::raw_count(unsigned generation, std::size_t rule) const {
    std::vector<std::uint64_t> per_cpu(static_cast<std::size_t>(std::max(libbpf_num_possible_cpus(), 1)), 0);
    const __u32 index = generation * STEER_MAX_RULES + static_cast<__u32>(rule);
    if (bpf_map_lookup_elem(maps_.counts, &index, per_cpu.data()) != 0) return 0;
    std::uint64_t sum = 0;
    for (const std::uint64_t value : per_cpu) sum += value;
    return sum;
}

std::vector<std::uint64_t> FilterTables::counts() const {
    std::vector<std::uint64_t> result = base_;
    for (std::size_t i = 0; i < result.size(); ++i) result[i] += raw_count(generation_, i);
    return result;
}

}  // namespace culvert::device
