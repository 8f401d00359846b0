// The kernel's links, addresses, routes and neighbours, mirrored over rtnetlink.
//
//   kernel --multicast groups--> events socket --+
//                                                +--> apply() --> tables --> listener
//   kernel --dump-- (start, overrun) ------------+
//
// Whatever configures the host (ip, networkd, DHCP, FRR) configures Culvert. Dumps and events are the same messages, so one
// function reads both. When the events socket overran (ENOBUFS), or the kernel is known to change routes without saying so
// (link down, address gone: IPv4 routes vanish silently), everything is dumped again and the *difference* is reported, so
// the listener never needs to know.
//
// Only the main and the local table of the network namespace in which the mirror was made.
// [RFC1122 3.3.1.6 manual] by `ip address`, `ip route`, `ip link`, or whatever else configures the host
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <variant>

#include "daemon/wire/address.h"
#include "shm/base/error.h"

struct nl_sock;
struct nlmsghdr;

namespace culvert::control {

struct LinkState {
    int ifindex = 0;
    std::string name;
    MacAddress mac;
    std::uint32_t mtu = 0;
    bool up = false;  // administratively up and carrier there

    friend bool operator==(const LinkState&, const LinkState&) = default;
};

struct AddressState {
    int ifindex = 0;
    Address address;
    std::uint8_t prefix_length = 0;
    bool usable = true;  // false: IPv6 tentative or duplicate

    friend bool operator==(const AddressState&, const AddressState&) = default;
};

enum class RouteType : std::uint8_t { kUnicast, kLocal, kBroadcast, kMulticast, kAnycast, kBlackhole, kUnreachable, kProhibit };

struct RouteState {
    Address destination;
    std::uint8_t prefix_length = 0;
    std::optional<Address> gateway;
    int ifindex = 0;
    std::uint32_t metric = 0;
    std::optional<Address> preferred_source;
    RouteType type = RouteType::kUnicast;
    std::uint32_t mtu = 0;  // RTAX_MTU; 0: none

    friend bool operator==(const RouteState&, const RouteState&) = default;
};

struct NeighborState {
    int ifindex = 0;
    Address address;
    MacAddress mac;
    bool usable = false;  // the MAC may be used
    bool stale = false;   // usable, but worth a resolve()
    bool failed = false;  // asked, nobody answered

    friend bool operator==(const NeighborState&, const NeighborState&) = default;
};

/// One thing that came, changed (`removed` false) or went. For a change the listener gets the new state.
struct MirrorChange {
    std::variant<LinkState, AddressState, RouteState, NeighborState> state;
    bool removed = false;
};

class NetlinkMirror {
public:
    using Listener = std::function<void(const MirrorChange&)>;
    using AddressKey = std::tuple<int, Address, std::uint8_t>;
    /// table, destination, prefix length, metric, TOS, interface, gateway, type
    using RouteKey = std::tuple<std::uint32_t, Address, std::uint8_t, std::uint32_t, std::uint8_t, int, std::string, RouteType>;
    using NeighborKey = std::pair<int, Address>;

    /// Opens the sockets and dumps everything. Errors: netlink refused. No capability is needed.
    static Result<std::unique_ptr<NetlinkMirror>> open();
    ~NetlinkMirror();
    NetlinkMirror(const NetlinkMirror&) = delete;
    NetlinkMirror& operator=(const NetlinkMirror&) = delete;

    /// Called from process() and resync(), never from inside open().
    void set_listener(Listener listener) { listener_ = std::move(listener); }

    /// Readable when process() has something to do. Non-blocking.
    int fd() const;
    /// Reads what the kernel has said; never blocks on the kernel being silent.
    void process();
    /// Dumps everything again and reports what differs.
    Result<void> resync();

    /// Asks the kernel to resolve, or to confirm, a neighbour (RTM_NEWNEIGH with NTF_USE). The answer comes as a change.
    /// Needs CAP_NET_ADMIN.
    Result<void> resolve(int ifindex, const Address& address);

    const std::map<int, LinkState>& links() const { return tables_.links; }
    const std::map<AddressKey, AddressState>& addresses() const { return tables_.addresses; }
    const std::map<RouteKey, RouteState>& routes() const { return tables_.routes; }
    const std::map<NeighborKey, NeighborState>& neighbors() const { return tables_.neighbors; }
    const LinkState* find_link(const std::string& name) const;

    /// How often the kernel said that events were lost.
    std::uint64_t overruns() const { return overruns_; }

private:
    struct Tables {
        std::map<int, LinkState> links;
        std::map<AddressKey, AddressState> addresses;
        std::map<RouteKey, RouteState> routes;
        std::map<NeighborKey, NeighborState> neighbors;
    };
    struct SocketDeleter {
        void operator()(nl_sock* socket) const;
    };
    using Socket = std::unique_ptr<nl_sock, SocketDeleter>;

    NetlinkMirror(Socket events, Socket requests);
    Result<void> dump(int type, Tables& into);
    Result<void> dump_all(Tables& into);
    void apply(nlmsghdr* message, Tables& tables, bool report);
    void apply_link(nlmsghdr* message, Tables& tables, bool report);
    void apply_address(nlmsghdr* message, Tables& tables, bool report);
    void apply_route(nlmsghdr* message, Tables& tables, bool report);
    void apply_neighbor(nlmsghdr* message, Tables& tables, bool report);
    template <class Map>
    void put(Map& map, const typename Map::key_type& key, const typename Map::mapped_type& state, bool report);
    template <class Map>
    void remove(Map& map, const typename Map::key_type& key, bool report);
    template <class Map>
    void replace(Map& old_map, Map& new_map);

    Socket events_;
    Socket requests_;
    Tables tables_;
    Listener listener_;
    bool resync_wanted_ = false;
    std::uint64_t overruns_ = 0;
};

}  // namespace culvert::control
