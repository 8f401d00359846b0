#include "daemon/stack/link/router_discovery.h"

#include <algorithm>

namespace culvert::stack {
namespace {

using std::chrono::seconds;

// [RFC7559 2.1]
constexpr Duration kFirstInterval = seconds(4);     // IRT: RTR_SOLICITATION_INTERVAL
constexpr Duration kLongestInterval = seconds(3600);  // MRT
constexpr Duration kMaxFirstDelay = seconds(1);     // [RFC4861 10] MAX_RTR_SOLICITATION_DELAY
constexpr std::uint32_t kLeastMtu = 1280;           // [RFC8200 5]
// What a router may ask of our timers: a hostile one is not to make us silent for a month, or busy.
constexpr Duration kLongestReachable = std::chrono::hours(1);  // [RFC4861 6.2.1] AdvReachableTime
constexpr Duration kLeastRetransmit = std::chrono::milliseconds(100);
constexpr Duration kLongestRetransmit = seconds(10);

const Address kAllRouters = Address::parse("ff02::2").value();

Instant lifetime_end(std::uint32_t lifetime_seconds, Instant now) {
    return lifetime_seconds == wire::NdpPrefix::kForever ? kNever : now + seconds(lifetime_seconds);
}

}  // namespace

RouterDiscovery::RouterDiscovery(RouteTable& routes, NeighborProber& neighbors, AddressConfiguration& addresses,
                                 ControlOutput& output, TimerWheel& wheel, Counters& counters, Rng& rng)
    : routes_(routes),
      neighbors_(neighbors),
      addresses_(addresses),
      output_(output),
      wheel_(wheel),
      counters_(counters),
      rng_(rng) {}

RouterDiscovery::~RouterDiscovery() {
    for (const auto& state : states_) wheel_.cancel(*state);
}

RouterDiscovery::State* RouterDiscovery::find(const Interface& interface) {
    const auto found =
        std::ranges::find_if(states_, [&](const auto& state) { return &state->link->interface == &interface; });
    return found == states_.end() ? nullptr : found->get();
}

void RouterDiscovery::start(LinkInterface& link, Instant now) {
    if (!link.interface.autoconfigures || !link.interface.up) return;
    State* state = find(link.interface);
    if (state == nullptr) state = states_.emplace_back(std::make_unique<State>(link)).get();
    state->solicit_interval = {};
    // [RFC4861 6.3.7] a random delay before the first
    state->solicit_at = now + random_duration(rng_, {}, kMaxFirstDelay);
    arm(*state);
}

void RouterDiscovery::solicit(State& state, Instant now) {
    LinkInterface& link = *state.link;
    const std::optional<Address> source = addresses_.link_local(link);
    // [RFC4861 6.3.7] from the unspecified address while there is no other, and then without the option [RFC4861 4.1]
    output_.ndp(link.interface, source.value_or(Address()), kAllRouters,
                wire::RouterSolicitation{.source_mac = source ? std::optional(link.interface.mac) : std::nullopt});
    // [RFC7559 2.1] doubled with a tenth of randomness, up to an hour, without end
    const auto jitter = [&](Duration base) { return random_duration(rng_, base - base / 10, base + base / 10); };
    if (state.solicit_interval == Duration{}) {
        state.solicit_interval = jitter(kFirstInterval);
    } else {
        state.solicit_interval += jitter(state.solicit_interval);
        if (state.solicit_interval > kLongestInterval) state.solicit_interval = jitter(kLongestInterval);
    }
    state.solicit_at = now + state.solicit_interval;
}

/// [RFC4861 6.3.4] zero means: not specified here.
void RouterDiscovery::parameters(LinkInterface& link, const wire::NdpView& message) {
    Interface& interface = link.interface;
    if (message.hop_limit() != 0) interface.hop_limit6 = message.hop_limit();
    const Duration reachable = message.reachable_time();
    if (reachable != Duration{} && reachable <= kLongestReachable && reachable != link.base_reachable_time) {
        link.base_reachable_time = reachable;
        link.reachable_time = random_duration(rng_, reachable / 2, reachable + reachable / 2);
    }
    const Duration retransmit = message.retransmit_time();
    if (retransmit != Duration{})
        link.retransmit_time = std::clamp(retransmit, kLeastRetransmit, kLongestRetransmit);
    const auto mtu = message.options().mtu;
    if (mtu && *mtu >= kLeastMtu && *mtu <= interface.mtu && interface.mtu6 != *mtu) {
        interface.mtu6 = *mtu;
        routes_.touch();  // paths remember their MTU
    }
}

Drop RouterDiscovery::default_router(State& state, const Address& router, Duration lifetime, Instant now) {
    const auto known = std::ranges::find(state.routers, router, &Router::address);
    if (lifetime == Duration{}) {
        if (known != state.routers.end()) state.routers.erase(known);
        return Drop::kNone;
    }
    if (known != state.routers.end()) {
        known->expires = now + lifetime;
        return Drop::kNone;
    }
    if (state.routers.size() >= kMaxRouters) return Drop::kNdpTooManyRouters;
    state.routers.push_back({router, now + lifetime});
    return Drop::kNone;
}

Drop RouterDiscovery::prefix(State& state, const wire::NdpPrefix& said, Instant now) {
    // [RFC4861 6.3.4] [RFC4862 5.5.3 b] the link-local prefix is everybody's already
    if (said.prefix.is_link_local() || said.prefix.is_multicast() || said.prefix_length > 128) return Drop::kNone;
    const Instant valid = lifetime_end(said.valid_seconds, now);
    Drop drop = Drop::kNone;
    if (said.on_link) {
        const auto known = std::ranges::find_if(state.prefixes, [&](const Prefix& one) {
            return one.length == said.prefix_length && one.prefix.in(said.prefix, said.prefix_length);
        });
        if (known != state.prefixes.end()) {
            known->expires = valid;
        } else if (valid > now) {
            if (state.prefixes.size() >= kMaxPrefixes) {
                drop = Drop::kNdpTooManyPrefixes;
            } else {
                state.prefixes.push_back({said.prefix, said.prefix_length, valid});
            }
        }
    }
    // [RFC4862 5.5.3 a, c, d] 64 bits of prefix and 64 of ours
    if (said.autonomous && said.preferred_seconds <= said.valid_seconds && said.prefix_length == 64)
        addresses_.autoconfigure(*state.link, said.prefix, valid, lifetime_end(said.preferred_seconds, now), now);
    return drop;
}

Drop RouterDiscovery::advertisement(LinkInterface& link, const Address& router, const wire::NdpView& message,
                                    Instant now) {
    State* const state = find(link.interface);
    if (!link.interface.autoconfigures || state == nullptr) return Drop::kNdpRouterIgnored;
    parameters(link, message);
    Drop drop = default_router(*state, router, message.router_lifetime(), now);
    // [RFC4861 6.3.4] whoever advertises is a router, and its MAC, if it is told, is learned as from a solicitation
    if (message.options().source_mac) {
        const Drop heard = neighbors_.heard(link, router, *message.options().source_mac, true, false, now);
        if (heard != Drop::kNone) drop = heard;
    }
    neighbors_.set_router(link, router, true);
    for (Router& one : state->routers)
        if (one.address == router && neighbors_.maybe_reachable(link, router)) one.lost = false;
    message.for_each_prefix([&](const wire::NdpPrefix& one) {
        const Drop refused = prefix(*state, one, now);
        if (refused != Drop::kNone) drop = refused;
    });
    // [RFC7559 2.1] satisfied by an advertisement of a default router
    if (message.router_lifetime() > Duration{}) state->solicit_at = kNever;
    expire(*state, now);
    publish();
    arm(*state);
    return drop;
}

/// [RFC4861 6.3.6] One that may be reachable, before one that is known to be silent.
const RouterDiscovery::Router* RouterDiscovery::best(const State& state) const {
    const Router* choice = nullptr;
    for (const Router& router : state.routers)
        if (choice == nullptr || (choice->lost && !router.lost)) choice = &router;
    return choice;
}

/// [RFC1122 3.3.1.5 switch] over IPv6; over IPv4 routes are configured, or the kernel's, and come and go with their
/// links.
void RouterDiscovery::neighbor_lost(Interface& interface, const Address& address, Instant now) {
    State* const state = find(interface);
    if (state == nullptr) return;
    std::erase_if(state->redirects, [&](const Redirected& one) { return one.next_hop == address; });
    const auto router = std::ranges::find(state->routers, address, &Router::address);
    if (router != state->routers.end()) {
        // All lost: round robin, each gets its turn to show that it is back.
        Router lost = *router;
        lost.lost = true;
        state->routers.erase(router);
        state->routers.push_back(lost);
    }
    expire(*state, now);
    publish();
    arm(*state);
}

void RouterDiscovery::no_router(Interface& interface, const Address& address, Instant now) {
    State* const state = find(interface);
    if (state == nullptr) return;
    std::erase_if(state->routers, [&](const Router& router) { return router.address == address; });
    std::erase_if(state->redirects, [&](const Redirected& one) { return one.next_hop == address; });
    expire(*state, now);
    publish();
    arm(*state);
}

Drop RouterDiscovery::redirect(LinkInterface& link, const Address& router, const wire::NdpView& message, Instant now) {
    State* const state = find(link.interface);
    if (!link.interface.autoconfigures || state == nullptr) return Drop::kNdpRouterIgnored;
    // [RFC4861 8.1] only the first hop in use for the destination may send us elsewhere
    const Address destination = message.destination(), next_hop = message.target();
    const Route* const route = routes_.lookup(destination);
    if (route == nullptr || route->interface != link.interface.index || route->gateway != router)
        return Drop::kNdpRedirectInvalid;
    if (message.options().target_mac)
        neighbors_.heard(link, next_hop, *message.options().target_mac, true, false, now);
    // [RFC4861 8.3] a better router, or the destination itself if it is a neighbour
    if (next_hop != destination) neighbors_.set_router(link, next_hop, true);
    const auto known = std::ranges::find(state->redirects, destination, &Redirected::destination);
    if (known != state->redirects.end()) {
        *known = {destination, next_hop, now + kRedirectLifetime};
    } else {
        if (state->redirects.size() >= kMaxRedirects) state->redirects.erase(state->redirects.begin());
        state->redirects.push_back({destination, next_hop, now + kRedirectLifetime});
    }
    publish();
    arm(*state);
    return Drop::kNone;
}

void RouterDiscovery::expire(State& state, Instant now) {
    const auto over = [now](const auto& one) { return one.expires <= now; };
    std::erase_if(state.routers, over);
    std::erase_if(state.prefixes, over);
    std::erase_if(state.redirects, over);
}

void RouterDiscovery::arm(State& state) {
    Instant due = state.solicit_at;
    for (const Router& one : state.routers) due = std::min(due, one.expires);
    for (const Prefix& one : state.prefixes) due = std::min(due, one.expires);
    for (const Redirected& one : state.redirects) due = std::min(due, one.expires);
    wheel_.schedule(state, due);
}

Instant RouterDiscovery::on_timer(TimerNode& node, Instant now) {
    auto& state = static_cast<State&>(node);
    if (state.solicit_at <= now) {
        state.solicit_at = kNever;
        if (state.link->interface.up) solicit(state, now);
    }
    const bool had_router = !state.routers.empty();
    expire(state, now);
    // [RFC7559 2.1] the last one gone: back to asking
    if (had_router && state.routers.empty() && state.solicit_at == kNever) start(*state.link, now);
    publish();
    arm(state);
    return kNever;  // armed already
}

void RouterDiscovery::publish() {
    std::vector<Route> learned;
    for (const auto& state : states_) {
        const std::uint32_t interface = state->link->interface.index;
        const auto add = [&](const Address& destination, unsigned length, std::optional<Address> gateway) {
            learned.push_back({.destination = destination,
                               .prefix_length = length,
                               .gateway = gateway,
                               .interface = interface,
                               .metric = kLearnedMetric});
        };
        for (const Prefix& one : state->prefixes) add(one.prefix, one.length, std::nullopt);
        if (const Router* const router = best(*state)) add(Address(), 0, router->address);
        for (const Redirected& one : state->redirects)
            add(one.destination, 128, one.next_hop == one.destination ? std::nullopt : std::optional(one.next_hop));
    }
    routes_.replace_learned(std::move(learned));
}

}  // namespace culvert::stack
