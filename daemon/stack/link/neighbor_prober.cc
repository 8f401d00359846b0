#include "daemon/stack/link/neighbor_prober.h"

#include <sodium/crypto_shorthash.h>

#include <array>
#include <cstring>
#include <new>

#include "daemon/stack/source_address.h"

namespace culvert::stack {
namespace {

constexpr std::uint32_t kNone = LazyPool::kNone;
constexpr std::size_t kBuckets = NeighborProber::kMaxNeighbors;

}  // namespace

NeighborProber::NeighborProber(NeighborTable& table, ControlOutput& output, TimerWheel& wheel, Counters& counters,
                               Rng& rng, const std::uint64_t (&secret)[2], std::uint32_t& unconfirmed)
    : table_(table),
      output_(output),
      wheel_(wheel),
      counters_(counters),
      rng_(rng),
      pool_(sizeof(Neighbor), kMaxNeighbors),
      buckets_(kBuckets, kNone),
      key_{secret[0], secret[1]},
      unconfirmed_(unconfirmed) {}

NeighborProber::~NeighborProber() {
    for (std::uint32_t& first : buckets_)
        while (first != kNone) {
            at(first).in_table = at(first).in_others = false;  // nobody is to be told any more
            erase(at(first));
        }
}

/// Keyed: strangers choose the addresses that land here.
std::uint32_t& NeighborProber::bucket(const LinkInterface& link, const Address& address) {
    std::array<unsigned char, 20> bytes;
    std::memcpy(bytes.data(), address.bytes().data(), 16);
    std::memcpy(bytes.data() + 16, &link.interface.index, 4);
    std::uint64_t hash = 0;
    static_assert(crypto_shorthash_KEYBYTES == sizeof key_ && crypto_shorthash_BYTES == sizeof hash);
    crypto_shorthash(reinterpret_cast<unsigned char*>(&hash), bytes.data(), bytes.size(),
                     reinterpret_cast<const unsigned char*>(key_));
    return buckets_[hash % kBuckets];
}

NeighborProber::Neighbor* NeighborProber::find(const LinkInterface& link, const Address& address) {
    for (std::uint32_t index = bucket(link, address); index != kNone; index = at(index).next)
        if (at(index).address == address && at(index).link == &link) return &at(index);
    return nullptr;
}

NeighborProber::Neighbor* NeighborProber::add(LinkInterface& link, const Address& address) {
    if (pool_.used() == kMaxNeighbors) {
        if (oldest_ == kNone) return nullptr;
        erase(at(oldest_));
    }
    const std::uint32_t index = pool_.allocate();
    Neighbor* const neighbor = new (pool_.at(index)) Neighbor;
    neighbor->link = &link;
    neighbor->address = address;
    std::uint32_t& first = bucket(link, address);
    neighbor->next = first;
    first = index;
    return neighbor;
}

void NeighborProber::erase(Neighbor& neighbor) {
    wheel_.cancel(neighbor);
    unlist(neighbor);
    if (neighbor.state == State::kDelay || neighbor.state == State::kProbe) --unconfirmed_;
    // Nobody who uses it is cut off: whoever sends through a stale neighbour makes it DELAY.
    if (neighbor.in_table && neighbor.link->interface.tx != nullptr)
        table_.remove(neighbor.link->interface.index, neighbor.address, *neighbor.link->interface.tx);
    if (neighbor.in_others)
        audience_->on_neighbor(neighbor.link->interface, neighbor.address, neighbor.mac, NeighborState::kIncomplete);
    const std::uint32_t index = pool_.index_of(&neighbor);
    std::uint32_t* link = &bucket(*neighbor.link, neighbor.address);
    while (*link != index) link = &at(*link).next;
    *link = neighbor.next;
    neighbor.~Neighbor();
    pool_.release(index);
}

void NeighborProber::list(Neighbor& neighbor) {
    unlist(neighbor);
    const std::uint32_t index = pool_.index_of(&neighbor);
    neighbor.evictable = true;
    neighbor.older = newest_;
    neighbor.newer = kNone;
    (newest_ == kNone ? oldest_ : at(newest_).newer) = index;
    newest_ = index;
}

void NeighborProber::unlist(Neighbor& neighbor) {
    if (!neighbor.evictable) return;
    neighbor.evictable = false;
    (neighbor.older == kNone ? oldest_ : at(neighbor.older).newer) = neighbor.newer;
    (neighbor.newer == kNone ? newest_ : at(neighbor.newer).older) = neighbor.older;
}

void NeighborProber::tell_table(Neighbor& neighbor) {
    Interface& interface = neighbor.link->interface;
    NeighborState state = NeighborState::kStale;
    switch (neighbor.state) {
        case State::kIncomplete: return;  // it has asked, it waits
        case State::kReachable: state = NeighborState::kReachable; break;
        case State::kStale:
        case State::kDelay:
        case State::kProbe: break;
        case State::kFailed: state = NeighborState::kFailed; break;
    }
    // First: whoever is told by the table may send, and `neighbor` be gone.
    if (neighbor.in_others) audience_->on_neighbor(interface, neighbor.address, neighbor.mac, state);
    if (neighbor.in_table && interface.tx != nullptr)
        table_.update(interface.index, neighbor.address, neighbor.mac, state, *interface.tx);
}

void NeighborProber::enter(Neighbor& neighbor, State state, Instant now) {
    const auto counts = [](State s) { return s == State::kDelay || s == State::kProbe ? 1u : 0u; };
    unconfirmed_ += counts(state) - counts(neighbor.state);
    neighbor.state = state;
    neighbor.probes = 0;
    neighbor.deadline = kNever;
    switch (state) {
        case State::kIncomplete:
        case State::kProbe:
            unlist(neighbor);
            neighbor.deadline = now;
            break;
        case State::kReachable:
            unlist(neighbor);
            neighbor.failures = 0;
            neighbor.deadline = now + neighbor.link->reachable_time;
            break;
        case State::kStale: list(neighbor); break;
        case State::kDelay:
            unlist(neighbor);
            neighbor.deadline = now + kDelayFirstProbe;
            break;
        case State::kFailed:
            list(neighbor);
            break;
    }
    wheel_.schedule(neighbor, neighbor.deadline);
    // DELAY and PROBE are nothing new to the table: it goes on using what is stale.
    if (state != State::kDelay && state != State::kProbe) tell_table(neighbor);
}

void NeighborProber::set_mac(Neighbor& neighbor, const MacAddress& mac, Instant now) {
    if (neighbor.mac == mac) return;
    neighbor.mac = mac;
    neighbor.mac_since = now;
}

/// One request: to everybody while nothing is known, to the neighbour itself afterwards. [RFC4861 7.2.2]
/// [RFC1122 2.3.3 arp]
bool NeighborProber::solicit(Neighbor& neighbor, Instant now) {
    Interface& interface = neighbor.link->interface;
    const std::optional<Address> source = choose_source(interface, neighbor.address);
    if (!source) return false;
    if (!neighbor.link->solicitations.take(now)) {
        counters_.drop(Drop::kLinkSolicitLimited);
        return true;  // counts as sent: the scan that used up the bucket is not to last longer for it
    }
    const bool unicast = neighbor.state == State::kProbe;
    if (neighbor.address.is_v4()) {
        output_.arp(interface,
                    {.operation = wire::ArpOperation::kRequest,
                     .sender_mac = interface.mac,
                     .sender = *source,
                     .target_mac = {},
                     .target = neighbor.address},
                    unicast ? neighbor.mac : wire::kBroadcastMac);
        return true;
    }
    const wire::NeighborSolicitation message{.target = neighbor.address, .source_mac = interface.mac, .nonce = {}};
    if (unicast) {
        output_.ndp(interface, *source, neighbor.address, neighbor.mac, message);
    } else {
        output_.ndp(interface, *source, wire::solicited_node_group(neighbor.address), message);
    }
    return true;
}

void NeighborProber::resolve_for_others(LinkInterface& link, const Address& next_hop, Instant now) {
    using Kind = OwnResolver::Answer::Kind;
    const OwnResolver::Answer answer = resolve(link, next_hop, &Neighbor::in_others, now);
    if (answer.kind == Kind::kAsked) return;
    const NeighborState state = answer.kind == Kind::kReachable ? NeighborState::kReachable
                                : answer.kind == Kind::kStale   ? NeighborState::kStale
                                                                : NeighborState::kFailed;
    audience_->on_neighbor(link.interface, next_hop, answer.mac, state);
}

OwnResolver::Answer NeighborProber::resolve(LinkInterface& link, const Address& next_hop, bool Neighbor::* asked, Instant now) {
    using Kind = OwnResolver::Answer::Kind;
    Neighbor* neighbor = find(link, next_hop);
    if (neighbor == nullptr) {
        // Without an address of the family nobody can be asked, and the answer would not find us.
        if (!choose_source(link.interface, next_hop)) return {Kind::kUnreachable, {}};
        neighbor = add(link, next_hop);
        if (neighbor == nullptr) {
            counters_.drop(Drop::kNeighborTableFull);
            return {Kind::kUnreachable, {}};
        }
        neighbor->*asked = true;
        enter(*neighbor, State::kIncomplete, now);
        wheel_.schedule(*neighbor, on_timer(*neighbor, now));
        return {Kind::kAsked, {}};
    }
    neighbor->*asked = true;
    switch (neighbor->state) {
        case State::kReachable: return {Kind::kReachable, neighbor->mac};
        case State::kStale:
            enter(*neighbor, State::kDelay, now);  // [RFC4861 7.3.3] the first packet to a stale neighbour
            return {Kind::kStale, neighbor->mac};
        case State::kDelay:
        case State::kProbe: return {Kind::kStale, neighbor->mac};
        case State::kIncomplete: return {Kind::kAsked, {}};
        case State::kFailed: break;
    }
    // [RFC1122 2.3.2.1 arp-flood] no flood of requests: who has failed again and again is asked less and less.
    if (now < neighbor->mac_since) return {Kind::kUnreachable, {}};
    enter(*neighbor, State::kIncomplete, now);
    wheel_.schedule(*neighbor, on_timer(*neighbor, now));
    return {Kind::kAsked, {}};
}

void NeighborProber::fail(Neighbor& neighbor, Instant now) {
    const bool was_known = neighbor.state == State::kProbe;
    LinkInterface& link = *neighbor.link;
    const Address address = neighbor.address;
    ++counters_.neighbors_unreachable;
    // After a lost neighbour one looks again at once [RFC4861 7.3.3]; after nobody, later and later.
    const Duration hold = was_known ? Duration{} : std::min<Duration>(kMaxHold, std::chrono::seconds(1 << neighbor.failures));
    if (!was_known && neighbor.failures < 4) ++neighbor.failures;
    neighbor.mac_since = now + hold;  // in FAILED: until when nobody is asked
    enter(neighbor, State::kFailed, now);  // tells the table, whose observer may send: `neighbor` may be gone
    if (was_known && watcher_ != nullptr) watcher_->on_neighbor_lost(link.interface, address, now);
}

/// [RFC1122 2.3.2.1 arp-timeout left out] RFC 4861's times for ARP too: entries in use are asked, not timed out
/// [RFC1122 3.3.1.4 detect, forever, no-ping, traffic] Who is in use and was not heard of is asked, nobody else.
Instant NeighborProber::on_timer(TimerNode& node, Instant now) {
    auto& neighbor = static_cast<Neighbor&>(node);
    if (now < neighbor.deadline) return neighbor.deadline;
    switch (neighbor.state) {
        case State::kStale:
        case State::kFailed: return kNever;
        case State::kReachable: enter(neighbor, State::kStale, now); return kNever;
        case State::kDelay:
            enter(neighbor, State::kProbe, now);
            [[fallthrough]];
        case State::kIncomplete:
        case State::kProbe:
            if (neighbor.probes >= kMaxSolicitations || !solicit(neighbor, now)) {
                fail(neighbor, now);
                return kNever;
            }
            ++neighbor.probes;
            neighbor.deadline = now + neighbor.link->retransmit_time;
            return neighbor.deadline;
    }
    return kNever;
}

Drop NeighborProber::heard(LinkInterface& link, const Address& address, const MacAddress& mac, bool create, bool lock,
                           Instant now) {
    Neighbor* neighbor = find(link, address);
    if (neighbor == nullptr) {
        if (!create) return Drop::kNone;
        neighbor = add(link, address);
        if (neighbor == nullptr) return Drop::kNeighborTableFull;
        set_mac(*neighbor, mac, now);
        enter(*neighbor, State::kStale, now);
        return Drop::kNone;
    }
    if (neighbor->state == State::kIncomplete || neighbor->state == State::kFailed) {
        neighbor->mac = mac;
        neighbor->mac_since = now;
        enter(*neighbor, State::kStale, now);
        // Packets that waited have just left through a stale neighbour.
        if (neighbor->in_table || neighbor->in_others) enter(*neighbor, State::kDelay, now);
    } else if (neighbor->mac != mac) {
        if (lock && now - neighbor->mac_since < kLockTime) return Drop::kNeighborFlapping;
        set_mac(*neighbor, mac, now);
        enter(*neighbor, State::kStale, now);
    }
    return Drop::kNone;
}

Drop NeighborProber::advertised(LinkInterface& link, const Address& address, const Advertisement& said, Instant now) {
    Neighbor* const neighbor = find(link, address);
    // [RFC4861 7.2.5] nobody asked: nothing is learned. FAILED is as good as no entry.
    if (neighbor == nullptr || neighbor->state == State::kFailed) return Drop::kNeighborUnsolicited;
    if (neighbor->state == State::kIncomplete) {
        if (!said.mac) return Drop::kNdpInvalid;
        neighbor->mac = *said.mac;
        neighbor->mac_since = now;
        if (said.router) neighbor->router = *said.router;
        enter(*neighbor, said.solicited ? State::kReachable : State::kStale, now);
        return Drop::kNone;
    }
    const bool other_mac = said.mac && *said.mac != neighbor->mac;
    if (other_mac && !said.overrides) {
        if (neighbor->state == State::kReachable) enter(*neighbor, State::kStale, now);
        return Drop::kNone;
    }
    if (other_mac) set_mac(*neighbor, *said.mac, now);
    const bool no_router = said.router && neighbor->router && !*said.router;
    if (said.router) neighbor->router = *said.router;
    if (said.solicited) {
        enter(*neighbor, State::kReachable, now);
    } else if (other_mac) {
        enter(*neighbor, State::kStale, now);
    }
    // [RFC4861 7.2.5] IsRouter from true to false: out of the default router list
    if (no_router && watcher_ != nullptr) watcher_->on_no_router(link.interface, Address(address), now);
    return Drop::kNone;
}

/// [RFC1122 3.3.1.4 indication, advice] TCP gets on: nobody needs to be asked.
void NeighborProber::confirm(LinkInterface& link, const Address& address, Instant now) {
    Neighbor* const neighbor = find(link, address);
    if (neighbor == nullptr || (neighbor->state != State::kDelay && neighbor->state != State::kProbe)) return;
    enter(*neighbor, State::kReachable, now);
}

bool NeighborProber::maybe_reachable(const LinkInterface& link, const Address& address) const {
    const Neighbor* const neighbor = find(link, address);
    return neighbor != nullptr && neighbor->state != State::kIncomplete && neighbor->state != State::kFailed;
}

void NeighborProber::set_router(LinkInterface& link, const Address& address, bool router) {
    if (Neighbor* const neighbor = find(link, address); neighbor != nullptr) neighbor->router = router;
}

std::optional<NeighborProber::State> NeighborProber::state_of(const LinkInterface& link, const Address& address) const {
    const Neighbor* const neighbor = find(link, address);
    return neighbor == nullptr ? std::nullopt : std::optional(neighbor->state);
}

}  // namespace culvert::stack
