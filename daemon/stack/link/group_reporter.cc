#include "daemon/stack/link/group_reporter.h"

#include <algorithm>
#include <array>

#include "daemon/stack/source_address.h"
#include "daemon/wire/igmp.h"
#include "daemon/wire/ip_protocol.h"
#include "daemon/wire/ipv6.h"
#include "daemon/wire/mld.h"

namespace culvert::stack {
namespace {

using std::chrono::seconds;
using wire::GroupRecordType;

constexpr Duration kUnsolicitedInterval = seconds(1);      // [RFC3376 8.11]
constexpr Duration kUnsolicitedIntervalOld = seconds(10);  // [RFC2236 8.10] [RFC2710 7.10]
constexpr Duration kQueryResponse = seconds(10);           // [RFC3376 8.3]

const Address kAllHosts = Address::v4(224, 0, 0, 1);
const Address kAllRouters4 = Address::v4(224, 0, 0, 2);
const Address kV3Routers = Address::v4(224, 0, 0, 22);
const Address kAllNodes = Address::parse("ff02::1").value();
const Address kAllRouters6 = Address::parse("ff02::2").value();
const Address kV2Routers = Address::parse("ff02::16").value();

/// [RFC3376 5] [RFC3810 5] groups of which nothing is ever said.
bool unreported(const Address& group) {
    if (group.is_v4()) return group == kAllHosts;
    return group == kAllNodes || (group.bytes()[1] & 0x0f) <= 1;
}

/// [RFC2711] [RFC3810 5] A router alert in the hop-by-hop header of the IPv6 packet.
bool has_router_alert(const IpPacket& packet) {
    const auto head = packet.packet.head.subspan(packet.network_offset);
    const std::size_t end = packet.transport_offset - packet.network_offset;
    if (end < wire::kIpv6HeaderLength + 8 || wire::load_8(head.data() + 6) != 0) return false;
    const std::size_t length = (std::size_t{wire::load_8(head.data() + wire::kIpv6HeaderLength + 1)} + 1) * 8;
    const std::size_t stop = std::min(end, wire::kIpv6HeaderLength + length);
    for (std::size_t at = wire::kIpv6HeaderLength + 2; at + 4 <= stop;) {
        const std::uint8_t type = wire::load_8(head.data() + at);
        if (type == 5) return wire::load_be16(head.data() + at + 2) == 0;
        at += type == 0 ? 1 : 2 + std::size_t{wire::load_8(head.data() + at + 1)};
    }
    return false;
}

/// What a query of the newest version says beyond those of the older ones: IGMPv3 and MLDv2 say the same.
template <class Message, class Query>
void read_details(const Message& message, Query& read) {
    read.robustness = message.robustness();
    read.interval = message.interval();
    for (std::size_t i = 0; i < std::min(message.source_count(), GroupReporter::kMaxQueriedSources + 1); ++i)
        read.sources.push_back(message.source(i));
}

}  // namespace

/// Reports of the newest version: one, or as many as the records need.
class GroupReporter::Report {
public:
    Report(GroupReporter& reporter, State& state) : reporter_(reporter), state_(state) { open(); }
    ~Report() { send(); }
    Report(const Report&) = delete;

    /// One record, cut where the report is full: [RFC3376 4.2.16] the rest follows in another one, but a list that is
    /// excluded cannot be cut, since each part would let in the sources of the other.
    void record(GroupRecordType type, const Address& group, std::span<const Address> sources) {
        const bool may_cut = type != GroupRecordType::kModeIsExclude && type != GroupRecordType::kChangeToExclude;
        const std::size_t address = group.wire_bytes().size();
        if (writer_->length() + 4 + address * (1 + sources.size()) > bytes_.size()) next();
        begin(type, group);
        for (const Address& source : sources) {
            if (writer_->add(source)) continue;
            if (!may_cut) return;
            next();
            begin(type, group);
            writer_->add(source);
        }
    }

private:
    void open() {
        const bool v4 = state_.family == Family::kIpv4;
        writer_.emplace(state_.family,
                        v4 ? static_cast<std::uint8_t>(wire::IgmpType::kV3Report)
                           : static_cast<std::uint8_t>(wire::MldType::kV2Report),
                        std::span(bytes_));
    }
    void begin(GroupRecordType type, const Address& group) {
        if (writer_->begin(type, group)) return;
        next();
        CHECK(writer_->begin(type, group));
    }
    void next() {
        send();
        open();
    }
    void send() {
        if (writer_->records() == 0) return;
        const auto message = std::span(bytes_).first(writer_->length());
        const Address source = reporter_.source_of(state_);
        if (state_.family == Family::kIpv4) {
            reporter_.output_.igmp(state_.link->interface, source, kV3Routers, message);
        } else {
            reporter_.output_.mld(state_.link->interface, source, kV2Routers, message);
        }
    }

    GroupReporter& reporter_;
    State& state_;
    std::array<std::byte, ControlOutput::kMaxMessage> bytes_;
    std::optional<wire::GroupReportWriter> writer_;
};

GroupReporter::GroupReporter(MulticastGroups& groups, AddressConfiguration& addresses, ControlOutput& output,
                             TimerWheel& wheel, Counters& counters, Rng& rng)
    : groups_(groups), addresses_(addresses), output_(output), wheel_(wheel), counters_(counters), rng_(rng) {
    groups_.set_observer(this);
}

GroupReporter::~GroupReporter() {
    groups_.set_observer(nullptr);
    for (const auto& state : states_) {
        groups_.for_each(state->link->interface.index, [&](MulticastGroup& group) { wheel_.cancel(group); });
        wheel_.cancel(*state);
    }
}

void GroupReporter::add_interface(LinkInterface& link) {
    for (const Family family : {Family::kIpv4, Family::kIpv6}) states_.push_back(std::make_unique<State>(link, family));
}

GroupReporter::State* GroupReporter::find(std::uint32_t interface, Family family) {
    const auto found = std::ranges::find_if(states_, [&](const auto& state) {
        return state->link->interface.index == interface && state->family == family;
    });
    return found == states_.end() ? nullptr : found->get();
}

/// [RFC3376 4.2.13] 0.0.0.0, and [RFC3590 4] ::, while there is no address that may be used.
Address GroupReporter::source_of(const State& state) const {
    if (state.family == Family::kIpv6) return addresses_.link_local(*state.link).value_or(Address());
    return choose_source(state.link->interface, kV3Routers).value_or(Address::any(Family::kIpv4));
}

void GroupReporter::arm(MulticastGroup& group) { wheel_.schedule(group, std::min(group.report_at, group.answer_at)); }

// --- what changes here -------------------------------------------------------------------------------------------------

unsigned GroupReporter::robustness(std::uint32_t interface, const Address& group) const {
    const State* const state = find(interface, group.family());
    return state == nullptr || unreported(group) ? 0 : state->robustness;
}

/// [RFC3376 5.1] the first report at once; sockets that change many groups in a row do it in one turn.
void GroupReporter::on_group_changed(MulticastGroup& group) {
    group.report_at = now_;
    arm(group);
}

void GroupReporter::start(LinkInterface& link, Instant now) {
    groups_.for_each(link.interface.index, [&](MulticastGroup& group) {
        const unsigned times = robustness(group.interface, group.address);
        if (times == 0 || !group.joined()) return;
        group.mode_retransmits = static_cast<std::uint8_t>(times);
        group.report_at = now;
        arm(group);
    });
}

Instant GroupReporter::on_group_timer(TimerNode& node, Instant now) {
    auto& group = static_cast<MulticastGroup&>(node);
    State* const state = find(group.interface, group.address.family());
    if (state == nullptr) return kNever;
    if (group.answer_at <= now) answer(*state, group, now);
    if (group.report_at > now) {
        arm(group);
        return kNever;
    }
    group.report_at = kNever;
    const bool full = state->version(now) == Version::kFull;
    full ? report_change(*state, group, now) : report_change_old(*state, group, now);
    const bool more = group.mode_retransmits != 0 ||
                      std::ranges::any_of(group.sources, [](const MulticastSource& one) { return one.retransmits != 0; });
    // [RFC3376 5.1] the others at random times within the interval
    if (more) group.report_at = now + random_duration(rng_, {}, full ? kUnsolicitedInterval : kUnsolicitedIntervalOld);
    arm(group);
    groups_.settle(group);  // the group may be gone
    return kNever;          // armed already
}

/// [RFC3376 5.1] [RFC3810 6.1]
void GroupReporter::report_change(State& state, MulticastGroup& group, Instant) {
    Report report(*this, state);
    group.announced = group.joined();
    std::vector<Address> list;
    if (group.mode_retransmits != 0) {
        --group.mode_retransmits;
        for (const MulticastSource& source : group.sources)
            if (group.lists(source)) list.push_back(source.address);
        report.record(group.mode() == FilterMode::kExclude ? GroupRecordType::kChangeToExclude
                                                           : GroupRecordType::kChangeToInclude,
                      group.address, list);
        return;
    }
    std::vector<Address> blocked;
    for (MulticastSource& source : group.sources) {
        if (source.retransmits == 0) continue;
        --source.retransmits;
        const bool wanted = group.lists(source) == (group.mode() == FilterMode::kInclude);
        (wanted ? list : blocked).push_back(source.address);
    }
    if (!list.empty()) report.record(GroupRecordType::kAllowNewSources, group.address, list);
    if (!blocked.empty()) report.record(GroupRecordType::kBlockOldSources, group.address, blocked);
}

/// [RFC2236 3] [RFC2710 4] a report when the first joins, again soon after; a leave when the last has gone.
void GroupReporter::report_change_old(State& state, MulticastGroup& group, Instant now) {
    const bool first = group.joined() != group.announced;
    for (MulticastSource& source : group.sources) source.retransmits = 0;
    if (group.joined()) {
        if (first) group.mode_retransmits = static_cast<std::uint8_t>(state.robustness);
        group.announced = true;
        if (group.mode_retransmits == 0) return;
        --group.mode_retransmits;
        send_old_report(state, group, state.version(now));
        group.last_reporter = true;
        return;
    }
    group.announced = false;
    group.mode_retransmits = 0;
    if (first && group.last_reporter && state.version(now) == Version::kOld) send_leave(state, group);
}

void GroupReporter::send_old_report(State& state, const MulticastGroup& group, Version version) {
    if (state.family == Family::kIpv4) {
        std::array<std::byte, wire::kIgmpLength> message;
        wire::emit(wire::IgmpHeader{.type = version == Version::kOldest ? wire::IgmpType::kV1Report
                                                                        : wire::IgmpType::kV2Report,
                                    .group = group.address},
                   message);
        output_.igmp(state.link->interface, source_of(state), group.address, message);
        return;
    }
    std::array<std::byte, wire::kMldLength> message;
    wire::emit(wire::MldHeader{.type = wire::MldType::kV1Report, .group = group.address}, message);
    output_.mld(state.link->interface, source_of(state), group.address, message);
}

void GroupReporter::send_leave(State& state, const MulticastGroup& group) {
    if (state.family == Family::kIpv4) {
        std::array<std::byte, wire::kIgmpLength> message;
        wire::emit(wire::IgmpHeader{.type = wire::IgmpType::kLeave, .group = group.address}, message);
        output_.igmp(state.link->interface, source_of(state), kAllRouters4, message);
        return;
    }
    std::array<std::byte, wire::kMldLength> message;
    wire::emit(wire::MldHeader{.type = wire::MldType::kDone, .group = group.address}, message);
    output_.mld(state.link->interface, source_of(state), kAllRouters6, message);
}

// --- what comes in -----------------------------------------------------------------------------------------------------

void GroupReporter::input(LinkInterface& link, const IpPacket& packet, Instant now) {
    now_ = now;
    const Family family = packet.destination.family();
    State* const state = find(link.interface.index, family);
    if (state == nullptr) return counters_.drop(Drop::kGroupMessageIgnored);
    const Drop drop = family == Family::kIpv4 ? read_igmp(*state, packet, now) : read_mld(*state, packet, now);
    if (drop != Drop::kNone) return counters_.drop(drop);
    ++counters_.group_queries_in;
}

Drop GroupReporter::read_igmp(State& state, const IpPacket& packet, Instant now) {
    const auto head = packet.packet.head.subspan(packet.transport_offset);
    if (head.size() < packet.transport_length) return Drop::kGroupMessageMalformed;
    const auto message = wire::IgmpView::parse(head.first(packet.transport_length));
    if (!message) return message.error();
    // [RFC3376 4] TTL 1: no router has forwarded it
    if (packet.ttl != 1) return Drop::kGroupMessageInvalid;
    switch (message->type()) {
        case wire::IgmpType::kV1Report:
        case wire::IgmpType::kV2Report: return old_report(state, message->group());
        case wire::IgmpType::kQuery: break;
        default: return Drop::kGroupMessageIgnored;  // for routers
    }
    const bool general = message->group().is_unspecified();
    // [RFC3376 4.1.12] to all hosts, or to the group; a query to our own address is accepted, too
    if (packet.cast == Cast::kMulticast && packet.destination != (general ? kAllHosts : message->group()))
        return Drop::kGroupMessageInvalid;
    const unsigned version = message->version();
    GroupQuery read{.family = Family::kIpv4,
                    .full = version == 3,
                    .old_version = version,
                    .group = message->group(),
                    .max_response = message->max_response(),
                    .sources = {}};
    if (read.full) read_details(*message, read);
    return query(state, read, now);
}

Drop GroupReporter::read_mld(State& state, const IpPacket& packet, Instant now) {
    const auto head = packet.packet.head.subspan(packet.transport_offset);
    if (head.size() < packet.transport_length) return Drop::kGroupMessageMalformed;
    // [RFC3810 5.1.14, 6.2] from a link-local address, hop limit 1, router alert: else silently ignored
    if (packet.ttl != 1 || !packet.source.is_link_local() || !has_router_alert(packet))
        return Drop::kGroupMessageInvalid;
    const auto type = static_cast<wire::MldType>(wire::load_8(head.data()));
    if (type == wire::MldType::kV2Report || type == wire::MldType::kDone) return Drop::kGroupMessageIgnored;
    const auto message = wire::MldView::parse(head.first(packet.transport_length));
    if (!message) return message.error();
    if (message->type() == wire::MldType::kV1Report) return old_report(state, message->group());
    const bool general = message->group().is_unspecified();
    if (packet.cast == Cast::kMulticast && packet.destination != (general ? kAllNodes : message->group()))
        return Drop::kGroupMessageInvalid;
    GroupQuery read{.family = Family::kIpv6,
                    .full = message->version() == 2,
                    .old_version = 1,
                    .group = message->group(),
                    .max_response = message->max_response(),
                    .sources = {}};
    if (read.full) read_details(*message, read);
    return query(state, read, now);
}

/// [RFC2236 3] [RFC2710 4] another member has answered: routers know of the group, that is all they want.
Drop GroupReporter::old_report(State& state, const Address& address) {
    MulticastGroup* const group = groups_.find(state.link->interface.index, address);
    if (group == nullptr || state.version(now_) == Version::kFull) return Drop::kGroupMessageIgnored;
    group->answer_at = kNever;
    group->mode_retransmits = 0;
    group->report_at = group->joined() == group->announced ? kNever : group->report_at;
    group->last_reporter = false;
    arm(*group);
    return Drop::kNone;
}

/// [RFC3376 7.2.1] [RFC3810 8.2.1]
void GroupReporter::note_version(State& state, const GroupQuery& query, Instant now) {
    const Version before = state.version(now);
    if (query.full) {
        if (query.robustness != 0) state.robustness = query.robustness;  // [RFC3376 4.1.6]
        if (query.interval != Duration{}) state.query_interval = query.interval;
    } else {
        // [RFC3376 8.12] Older Version Querier Present Timeout
        const Instant until = now + state.robustness * state.query_interval + kQueryResponse;
        const bool oldest = state.family == Family::kIpv4 && query.old_version == 1;
        (oldest ? state.oldest_until : state.old_until) = until;
    }
    if (state.version(now) != before) forget_timers(state);
}

/// [RFC3376 7.2.1] a change of version cancels what was pending; the querier is about to ask again anyway.
void GroupReporter::forget_timers(State& state) {
    state.answer_at = kNever;
    wheel_.cancel(state);
    std::vector<MulticastGroup*> left;
    groups_.for_each(state.link->interface.index, [&](MulticastGroup& group) {
        if (group.address.family() != state.family) return;
        group.answer_at = group.report_at = kNever;
        group.queried.clear();
        group.mode_retransmits = 0;
        group.announced = group.joined();
        for (MulticastSource& source : group.sources) source.retransmits = 0;
        wheel_.cancel(group);
        left.push_back(&group);
    });
    for (MulticastGroup* const group : left) groups_.settle(*group);
}

Drop GroupReporter::query(State& state, const GroupQuery& query, Instant now) {
    const bool general = query.group.is_unspecified();
    if (!general && !query.group.is_multicast()) return Drop::kGroupMessageInvalid;
    note_version(state, query, now);
    const bool full = state.version(now) == Version::kFull;
    const Instant at = now + random_duration(rng_, {}, query.max_response);
    if (general && full) {
        // [RFC3376 5.2 1, 2] one answer for everything, at the sooner of the two times
        if (state.answer_at > at) {
            state.answer_at = at;
            wheel_.schedule(state, at);
        }
        return Drop::kNone;
    }
    if (general) {
        // [RFC2236 3] each group has a delay of its own
        groups_.for_each(state.link->interface.index, [&](MulticastGroup& group) {
            if (group.address.family() != state.family || unreported(group.address) || !group.joined()) return;
            schedule_answer(group, query, now + random_duration(rng_, {}, query.max_response));
        });
        return Drop::kNone;
    }
    MulticastGroup* const group = groups_.find(state.link->interface.index, query.group);
    if (group == nullptr || !group->joined() || unreported(query.group)) return Drop::kGroupMessageIgnored;
    if (full && state.answer_at <= at) return Drop::kNone;  // [RFC3376 5.2 1] that one will say it all
    schedule_answer(*group, query, at);
    return Drop::kNone;
}

/// [RFC3376 5.2 3, 4, 5]
void GroupReporter::schedule_answer(MulticastGroup& group, const GroupQuery& query, Instant at) {
    const bool pending = group.answer_at != kNever;
    const bool whole = query.sources.empty() || query.sources.size() > kMaxQueriedSources;
    if (whole || (pending && group.queried.empty())) {
        group.queried.clear();
    } else {
        for (const Address& source : query.sources)
            if (std::ranges::find(group.queried, source) == group.queried.end()) group.queried.push_back(source);
        if (group.queried.size() > kMaxQueriedSources) group.queried.clear();
    }
    group.answer_at = std::min(group.answer_at, at);
    arm(group);
}

/// [RFC3376 5.2] the answer to a query about one group.
void GroupReporter::answer(State& state, MulticastGroup& group, Instant now) {
    group.answer_at = kNever;
    const std::vector<Address> queried = std::move(group.queried);
    group.queried.clear();
    if (!group.joined()) return;
    if (state.version(now) != Version::kFull) {
        send_old_report(state, group, state.version(now));
        group.last_reporter = true;
        group.announced = true;
        return;
    }
    Report report(*this, state);
    std::vector<Address> list;
    if (queried.empty()) {
        for (const MulticastSource& source : group.sources)
            if (group.lists(source)) list.push_back(source.address);
        report.record(group.mode() == FilterMode::kExclude ? GroupRecordType::kModeIsExclude
                                                           : GroupRecordType::kModeIsInclude,
                      group.address, list);
        return;
    }
    for (const Address& source : queried)
        if (group.accepts(source)) list.push_back(source);
    if (!list.empty()) report.record(GroupRecordType::kModeIsInclude, group.address, list);
}

/// [RFC3376 5.2] the answer to a general query.
Instant GroupReporter::on_reporter_timer(TimerNode& node, Instant now) {
    auto& state = static_cast<State&>(node);
    if (state.answer_at > now) return state.answer_at;
    state.answer_at = kNever;
    Report report(*this, state);
    std::vector<Address> list;
    groups_.for_each(state.link->interface.index, [&](MulticastGroup& group) {
        if (group.address.family() != state.family || unreported(group.address) || !group.joined()) return;
        list.clear();
        for (const MulticastSource& source : group.sources)
            if (group.lists(source)) list.push_back(source.address);
        report.record(group.mode() == FilterMode::kExclude ? GroupRecordType::kModeIsExclude
                                                           : GroupRecordType::kModeIsInclude,
                      group.address, list);
    });
    return kNever;
}

}  // namespace culvert::stack
