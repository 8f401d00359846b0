// What routers say about a link, RFC 4861 6.3 and 8.3: default routers, prefixes, parameters, redirects; and asking for
// them, RFC 7559. Only on interfaces that are to configure themselves.
//
//   RS --(no answer: 4 s, 8 s ... 3600 s)--> RA --+--> parameters of the interface (hop limit, MTU, ND timers)
//                                                 +--> default routers --best--> ::/0
//                                                 +--> prefixes --on-link--> route     --autonomous--> address
//   Redirect from the router in use --> route to one host
//
// The routes go into the stack's table beside those that the control thread has put there (RouteTable::replace_learned).
// Every list is bounded; what a flood of advertisements brings beyond that is dropped by name.
#pragma once

#include <memory>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/stack/ip_packet.h"
#include "daemon/stack/link/address_configuration.h"
#include "daemon/stack/link/neighbor_prober.h"
#include "daemon/stack/route_table.h"
#include "daemon/wire/ndp.h"

namespace culvert::stack {

class RouterDiscovery {
public:
    static constexpr std::size_t kMaxRouters = 8;
    static constexpr std::size_t kMaxPrefixes = 16;
    static constexpr std::size_t kMaxRedirects = 64;
    static constexpr Duration kRedirectLifetime = std::chrono::minutes(10);
    static constexpr std::uint32_t kLearnedMetric = 1024;  // as Linux: behind whatever an administrator has set

    RouterDiscovery(RouteTable& routes, NeighborProber& neighbors, AddressConfiguration& addresses, ControlOutput& output,
                    TimerWheel& wheel, Counters& counters, Rng& rng);
    ~RouterDiscovery();

    /// The interface came up: ask (again).
    void start(LinkInterface& link, Instant now);
    /// A validated advertisement [RFC4861 6.1.2] from `router`.
    Drop advertisement(LinkInterface& link, const Address& router, const wire::NdpView& message, Instant now);
    /// A redirect whose form is right [RFC4861 8.1]; whether it may be believed is seen here.
    Drop redirect(LinkInterface& link, const Address& router, const wire::NdpView& message, Instant now);

    /// [RFC4861 6.3.6] A neighbour does not answer: if it is the router in use, another one is tried.
    void neighbor_lost(Interface& interface, const Address& address, Instant now);
    /// It is no router any more.
    void no_router(Interface& interface, const Address& address, Instant now);

    /// Of a kRouterTimer.
    Instant on_timer(TimerNode& node, Instant now);

private:
    struct Router {
        Address address;
        Instant expires;
        bool lost = false;  // did not answer; used only if all are lost
    };
    struct Prefix {
        Address prefix;
        unsigned length = 0;
        Instant expires = kNever;
    };
    struct Redirected {
        Address destination;
        Address next_hop;
        Instant expires;
    };
    struct State : TimerNode {
        explicit State(LinkInterface& of) : TimerNode(kRouterTimer), link(&of) {}
        LinkInterface* link;
        std::vector<Router> routers;
        std::vector<Prefix> prefixes;
        std::vector<Redirected> redirects;
        Instant solicit_at = kNever;
        Duration solicit_interval{};  // 0: the first is still to come
    };

    State* find(const Interface& interface);
    const Router* best(const State& state) const;
    void solicit(State& state, Instant now);
    void parameters(LinkInterface& link, const wire::NdpView& message);
    Drop default_router(State& state, const Address& router, Duration lifetime, Instant now);
    Drop prefix(State& state, const wire::NdpPrefix& prefix, Instant now);
    void expire(State& state, Instant now);
    void arm(State& state);
    void publish();

    RouteTable& routes_;
    NeighborProber& neighbors_;
    AddressConfiguration& addresses_;
    ControlOutput& output_;
    TimerWheel& wheel_;
    Counters& counters_;
    Rng& rng_;
    std::vector<std::unique_ptr<State>> states_;
};

}  // namespace culvert::stack
