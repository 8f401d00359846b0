// The host's side of group membership: IGMP 1, 2 and 3 (RFC 1112, 2236, 3376) and MLD 1 and 2 (RFC 2710, 3810) on
// interfaces whose link we run ourselves. One machine for both families; the newest version is "full", the others "old".
//
//   a merged filter changes  -> state change report now, and robustness - 1 times more within a second each
//   query, general           -> after a random delay every group's filter
//   query, group (source)    -> after a random delay that group's filter (for the sources asked about)
//   query of an old version  -> for as long as such a querier is about, speak like it: one report a group, kept back when
//                               another host reports first, and a "leave" from whoever reported last
//
// [RFC1122 3.3.7 igmp] Never reported: 224.0.0.1 and ff02::1, which everybody has joined, and IPv6 groups of narrower
// scope than the link.
#pragma once

#include <memory>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/stack/ip_packet.h"
#include "daemon/stack/link/address_configuration.h"
#include "daemon/stack/link/control_output.h"
#include "daemon/stack/link/link_interface.h"
#include "daemon/stack/link/multicast_groups.h"
#include "daemon/wire/group_report.h"

namespace culvert::stack {

/// A membership query of either protocol, proved.
struct GroupQuery {
    Family family = Family::kIpv4;
    bool full = false;            // IGMPv3, MLDv2
    unsigned old_version = 0;     // else: 1 or 2 of IGMP, 1 of MLD
    Address group;                // unspecified: a general query
    Duration max_response{};
    std::uint8_t robustness = 0;  // 0: not said
    Duration interval{};          // 0: not said
    std::vector<Address> sources;
};

/// Told when a merged filter has changed on an interface that GroupReporter does not know: another engine may have to report it.
class GroupAudience {
public:
    virtual ~GroupAudience() = default;
    virtual void on_filter(const MulticastGroup& group) = 0;
};

class GroupReporter final : public GroupObserver {
public:
    static constexpr std::size_t kMaxQueriedSources = 64;  // more: the answer is about the whole group

    GroupReporter(MulticastGroups& groups, AddressConfiguration& addresses, ControlOutput& output, TimerWheel& wheel,
                  Counters& counters, Rng& rng);
    ~GroupReporter() override;

    void add_interface(LinkInterface& link);
    void set_audience(GroupAudience* audience) { audience_ = audience; }
    /// The interface came up: routers may have forgotten us.
    void start(LinkInterface& link, Instant now);
    /// The time of what the stack is doing; changes of filters have none of their own.
    void set_now(Instant now) { now_ = now; }

    /// IGMP, or ICMPv6 of types 130 to 132 and 143. Counts its own drops.
    void input(LinkInterface& link, const IpPacket& packet, Instant now);

    // GroupObserver
    unsigned robustness(std::uint32_t interface, const Address& group) const override;
    void on_group_changed(MulticastGroup& group) override;
    void on_unreported_change(const MulticastGroup& group) override {
        if (audience_ != nullptr) audience_->on_filter(group);
    }
    void on_group_gone(MulticastGroup& group) override { wheel_.cancel(group); }

    /// Of a kGroupTimer, a kReporterTimer.
    Instant on_group_timer(TimerNode& node, Instant now);
    Instant on_reporter_timer(TimerNode& node, Instant now);

private:
    enum class Version : std::uint8_t { kOldest, kOld, kFull };  // of MLD only the last two

    /// One family on one interface.
    struct State : TimerNode {
        State(LinkInterface& of, Family speaks) : TimerNode(kReporterTimer), link(&of), family(speaks) {}
        LinkInterface* link;
        Family family;
        unsigned robustness = 2;                              // [RFC3376 8.1]
        Duration query_interval = std::chrono::seconds(125);  // [RFC3376 8.2]
        Instant oldest_until = Instant::min();                // [RFC3376 7.2.1] a querier of that version is about
        Instant old_until = Instant::min();
        Instant answer_at = kNever;                           // of a general query
        Version version(Instant now) const {
            return now < oldest_until ? Version::kOldest : now < old_until ? Version::kOld : Version::kFull;
        }
    };

    State* find(std::uint32_t interface, Family family);
    const State* find(std::uint32_t interface, Family family) const {
        return const_cast<GroupReporter*>(this)->find(interface, family);
    }
    Drop read_igmp(State& state, const IpPacket& packet, Instant now);
    Drop read_mld(State& state, const IpPacket& packet, Instant now);
    Drop query(State& state, const GroupQuery& query, Instant now);
    Drop old_report(State& state, const Address& group);
    void note_version(State& state, const GroupQuery& query, Instant now);
    void schedule_answer(MulticastGroup& group, const GroupQuery& query, Instant at);
    void forget_timers(State& state);

    void report_change(State& state, MulticastGroup& group, Instant now);
    void report_change_old(State& state, MulticastGroup& group, Instant now);
    void answer(State& state, MulticastGroup& group, Instant now);
    void send_old_report(State& state, const MulticastGroup& group, Version version);
    void send_leave(State& state, const MulticastGroup& group);
    Address source_of(const State& state) const;
    void arm(MulticastGroup& group);

    /// Collects records into reports and sends each that is full.
    class Report;

    MulticastGroups& groups_;
    AddressConfiguration& addresses_;
    ControlOutput& output_;
    TimerWheel& wheel_;
    Counters& counters_;
    Rng& rng_;
    GroupAudience* audience_ = nullptr;
    Instant now_{};
    std::vector<std::unique_ptr<State>> states_;
};

}  // namespace culvert::stack
