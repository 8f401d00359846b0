#include "daemon/control/netlink_mirror.h"

#include <linux/if.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <netlink/attr.h>
#include <netlink/errno.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <vector>

namespace culvert::control {
namespace {

constexpr std::array kGroups{RTNLGRP_LINK,        RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR,
                             RTNLGRP_IPV4_ROUTE,  RTNLGRP_IPV6_ROUTE,  RTNLGRP_NEIGH};
// A burst such as a routing daemon's full table must not overrun us at once; SO_RCVBUFFORCE needs CAP_NET_ADMIN, this does not.
constexpr int kReceiveBufferBytes = 4 << 20;

std::unexpected<Error> fail_netlink(int code, const char* what) {
    return fail(0, std::string("netlink: ") + what + ": " + nl_geterror(code));
}

/// An attribute that holds an address of `family`; nothing when its length is wrong.
std::optional<Address> address_of(const nlattr* attribute, int family) {
    if (attribute == nullptr) return std::nullopt;
    const auto* bytes = static_cast<const std::byte*>(nla_data(attribute));
    const int length = nla_len(attribute);
    if (family == AF_INET && length == 4) return Address::from_v4(std::span<const std::byte, 4>(bytes, 4));
    if (family == AF_INET6 && length == 16) return Address::from_v6(std::span<const std::byte, 16>(bytes, 16));
    return std::nullopt;
}

std::optional<MacAddress> mac_of(const nlattr* attribute) {
    MacAddress mac;
    if (attribute == nullptr || nla_len(attribute) != static_cast<int>(mac.bytes.size())) return std::nullopt;
    std::memcpy(mac.bytes.data(), nla_data(attribute), mac.bytes.size());
    return mac;
}

Address any_of(int family) { return Address::any(family == AF_INET ? Family::kIpv4 : Family::kIpv6); }

std::optional<RouteType> route_type(std::uint8_t type) {
    switch (type) {
        case RTN_UNICAST: return RouteType::kUnicast;
        case RTN_LOCAL: return RouteType::kLocal;
        case RTN_BROADCAST: return RouteType::kBroadcast;
        case RTN_MULTICAST: return RouteType::kMulticast;
        case RTN_ANYCAST: return RouteType::kAnycast;
        case RTN_BLACKHOLE: return RouteType::kBlackhole;
        case RTN_UNREACHABLE: return RouteType::kUnreachable;
        case RTN_PROHIBIT: return RouteType::kProhibit;
        default: return std::nullopt;
    }
}

template <std::size_t N>
bool parse_attributes(nlmsghdr* message, std::size_t header, std::array<nlattr*, N>& attributes) {
    attributes.fill(nullptr);
    return nlmsg_parse(message, static_cast<int>(header), attributes.data(), static_cast<int>(N) - 1, nullptr) >= 0;
}

}  // namespace

void NetlinkMirror::SocketDeleter::operator()(nl_sock* socket) const { nl_socket_free(socket); }

NetlinkMirror::NetlinkMirror(Socket events, Socket requests)
    : events_(std::move(events)), requests_(std::move(requests)) {}
NetlinkMirror::~NetlinkMirror() = default;

Result<std::unique_ptr<NetlinkMirror>> NetlinkMirror::open() {
    Socket events(nl_socket_alloc());
    Socket requests(nl_socket_alloc());
    if (!events || !requests) return fail(ENOMEM, "netlink socket");
    nl_socket_disable_seq_check(events.get());
    if (const int code = nl_connect(events.get(), NETLINK_ROUTE); code < 0) return fail_netlink(code, "open");
    if (const int code = nl_connect(requests.get(), NETLINK_ROUTE); code < 0) return fail_netlink(code, "open");
    nl_socket_set_buffer_size(events.get(), kReceiveBufferBytes, 0);
    nl_socket_set_nonblocking(events.get());
    for (const auto group : kGroups)
        if (const int code = nl_socket_add_memberships(events.get(), group, 0); code < 0)
            return fail_netlink(code, "join a multicast group");
    // Subscribed before dumped: what changes in between arrives as an event and is applied on top.
    std::unique_ptr<NetlinkMirror> mirror(new NetlinkMirror(std::move(events), std::move(requests)));
    TRY_VOID(mirror->dump_all(mirror->tables_));
    return mirror;
}

int NetlinkMirror::fd() const { return nl_socket_get_fd(events_.get()); }

Result<void> NetlinkMirror::dump(int type, Tables& into) {
    rtgenmsg request{};
    request.rtgen_family = AF_UNSPEC;
    if (const int code = nl_send_simple(requests_.get(), type, NLM_F_DUMP, &request, sizeof request); code < 0)
        return fail_netlink(code, "dump");
    struct Context {
        NetlinkMirror* mirror;
        Tables* tables;
    } context{this, &into};
    const auto on_message = [](nl_msg* message, void* argument) -> int {
        const Context& to = *static_cast<Context*>(argument);
        to.mirror->apply(nlmsg_hdr(message), *to.tables, false);
        return NL_OK;
    };
    nl_socket_modify_cb(requests_.get(), NL_CB_VALID, NL_CB_CUSTOM, on_message, &context);
    if (const int code = nl_recvmsgs_default(requests_.get()); code < 0) return fail_netlink(code, "dump");
    return {};
}

Result<void> NetlinkMirror::dump_all(Tables& into) {
    for (const int type : {RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH}) {
        // NLE_DUMP_INTR: the tables changed under the dump; what changed comes as events too, but ask again to be exact.
        Result<void> done = dump(type, into);
        for (int attempt = 0; !done && attempt < 3; ++attempt) done = dump(type, into);
        TRY_VOID(std::move(done));
    }
    return {};
}

void NetlinkMirror::process() {
    const auto on_message = [](nl_msg* message, void* argument) -> int {
        auto* self = static_cast<NetlinkMirror*>(argument);
        self->apply(nlmsg_hdr(message), self->tables_, true);
        return NL_OK;
    };
    nl_socket_modify_cb(events_.get(), NL_CB_VALID, NL_CB_CUSTOM, on_message, this);
    for (;;) {
        const int code = nl_recvmsgs_default(events_.get());
        if (code == -NLE_AGAIN) break;
        if (code < 0) {  // ENOBUFS (libnl: NLE_NOMEM) or a message cut off: what we hold may be out of date
            ++overruns_;
            resync_wanted_ = true;
            if (code != -NLE_NOMEM) break;
        }
    }
    if (resync_wanted_) (void)resync();  // fails only when the kernel cannot dump; the next event tries again
}

template <class Map>
void NetlinkMirror::put(Map& map, const typename Map::key_type& key, const typename Map::mapped_type& state, bool report) {
    const auto [where, inserted] = map.try_emplace(key, state);
    if (!inserted) {
        if (where->second == state) return;
        where->second = state;
    }
    if (report && listener_) listener_({state, false});
}

template <class Map>
void NetlinkMirror::remove(Map& map, const typename Map::key_type& key, bool report) {
    auto node = map.extract(key);
    if (!node.empty() && report && listener_) listener_({node.mapped(), true});
}

template <class Map>
void NetlinkMirror::replace(Map& old_map, Map& new_map) {
    std::vector<typename Map::key_type> gone;
    for (const auto& [key, state] : old_map)
        if (!new_map.contains(key)) gone.push_back(key);
    for (const auto& key : gone) remove(old_map, key, true);
    for (const auto& [key, state] : new_map) put(old_map, key, state, true);
}

Result<void> NetlinkMirror::resync() {
    Tables fresh;
    TRY_VOID(dump_all(fresh));
    resync_wanted_ = false;
    replace(tables_.links, fresh.links);
    replace(tables_.addresses, fresh.addresses);
    replace(tables_.routes, fresh.routes);
    replace(tables_.neighbors, fresh.neighbors);
    return {};
}

void NetlinkMirror::apply(nlmsghdr* message, Tables& tables, bool report) {
    switch (message->nlmsg_type) {
        case RTM_NEWLINK:
        case RTM_DELLINK: return apply_link(message, tables, report);
        case RTM_NEWADDR:
        case RTM_DELADDR: return apply_address(message, tables, report);
        case RTM_NEWROUTE:
        case RTM_DELROUTE: return apply_route(message, tables, report);
        case RTM_NEWNEIGH:
        case RTM_DELNEIGH: return apply_neighbor(message, tables, report);
        default: return;
    }
}

void NetlinkMirror::apply_link(nlmsghdr* message, Tables& tables, bool report) {
    std::array<nlattr*, IFLA_MAX + 1> attributes;
    if (!parse_attributes(message, sizeof(ifinfomsg), attributes)) return;
    const auto& header = *static_cast<const ifinfomsg*>(nlmsg_data(message));
    if (header.ifi_family != AF_UNSPEC) return;  // bridge ports speak AF_BRIDGE about the same link
    const auto old = tables.links.find(header.ifi_index);
    const bool was_up = old != tables.links.end() && old->second.up;
    if (message->nlmsg_type == RTM_DELLINK) {
        remove(tables.links, header.ifi_index, report);
        resync_wanted_ |= report;
        return;
    }
    LinkState link;
    link.ifindex = header.ifi_index;
    if (attributes[IFLA_IFNAME] != nullptr) link.name = nla_get_string(attributes[IFLA_IFNAME]);
    link.mac = mac_of(attributes[IFLA_ADDRESS]).value_or(MacAddress{});
    if (attributes[IFLA_MTU] != nullptr) link.mtu = nla_get_u32(attributes[IFLA_MTU]);
    // Not IFF_RUNNING: it follows the carrier up to a second later (linkwatch), the kernel's routes follow it at once.
    link.up = (header.ifi_flags & IFF_UP) != 0 && (header.ifi_flags & IFF_LOWER_UP) != 0;
    put(tables.links, link.ifindex, link, report);
    // The kernel drops a dead link's IPv4 routes without a word.
    if (report && was_up != link.up) resync_wanted_ = true;
}

void NetlinkMirror::apply_address(nlmsghdr* message, Tables& tables, bool report) {
    std::array<nlattr*, IFA_MAX + 1> attributes;
    if (!parse_attributes(message, sizeof(ifaddrmsg), attributes)) return;
    const auto& header = *static_cast<const ifaddrmsg*>(nlmsg_data(message));
    // On a point-to-point link IFA_ADDRESS is the peer and IFA_LOCAL is ours; IPv6 sets IFA_LOCAL only there.
    const nlattr* local = attributes[IFA_LOCAL] != nullptr ? attributes[IFA_LOCAL] : attributes[IFA_ADDRESS];
    const std::optional<Address> address = address_of(local, header.ifa_family);
    if (!address) return;
    AddressState state{static_cast<int>(header.ifa_index), *address, header.ifa_prefixlen, true};
    const std::uint32_t flags =
        attributes[IFA_FLAGS] != nullptr ? nla_get_u32(attributes[IFA_FLAGS]) : std::uint32_t{header.ifa_flags};
    const bool optimistic = (flags & IFA_F_OPTIMISTIC) != 0;
    state.usable = (flags & IFA_F_DADFAILED) == 0 && ((flags & IFA_F_TENTATIVE) == 0 || optimistic);
    const AddressKey key{state.ifindex, state.address, state.prefix_length};
    if (message->nlmsg_type == RTM_NEWADDR) return put(tables.addresses, key, state, report);
    remove(tables.addresses, key, report);
    resync_wanted_ |= report;  // routes with this preferred source go silently
}

void NetlinkMirror::apply_route(nlmsghdr* message, Tables& tables, bool report) {
    std::array<nlattr*, RTA_MAX + 1> attributes;
    if (!parse_attributes(message, sizeof(rtmsg), attributes)) return;
    const auto& header = *static_cast<const rtmsg*>(nlmsg_data(message));
    const int family = header.rtm_family;
    if (family != AF_INET && family != AF_INET6) return;
    if ((header.rtm_flags & RTM_F_CLONED) != 0) return;  // a cached exception, not configuration
    const std::uint32_t table =
        attributes[RTA_TABLE] != nullptr ? nla_get_u32(attributes[RTA_TABLE]) : std::uint32_t{header.rtm_table};
    if (table != RT_TABLE_MAIN && table != RT_TABLE_LOCAL) return;
    const std::optional<RouteType> type = route_type(header.rtm_type);
    if (!type) return;

    RouteState route;
    route.type = *type;
    route.prefix_length = header.rtm_dst_len;
    route.destination = address_of(attributes[RTA_DST], family).value_or(any_of(family));
    if (attributes[RTA_PRIORITY] != nullptr) route.metric = nla_get_u32(attributes[RTA_PRIORITY]);
    route.preferred_source = address_of(attributes[RTA_PREFSRC], family);
    if (attributes[RTA_METRICS] != nullptr) {
        std::array<nlattr*, RTAX_MAX + 1> metrics{};
        if (nla_parse_nested(metrics.data(), RTAX_MAX, attributes[RTA_METRICS], nullptr) >= 0 && metrics[RTAX_MTU] != nullptr)
            route.mtu = nla_get_u32(metrics[RTAX_MTU]);
    }
    // RTA_VIA (a gateway of the other family) is left out: no such route is usable by Culvert.
    std::vector<std::pair<std::optional<Address>, int>> hops;
    if (const nlattr* multipath = attributes[RTA_MULTIPATH]) {
        auto* hop = static_cast<rtnexthop*>(nla_data(multipath));
        int left = nla_len(multipath);
        while (left >= static_cast<int>(sizeof *hop) && RTNH_OK(hop, left)) {
            nlattr* gateway = nla_find(reinterpret_cast<nlattr*>(RTNH_DATA(hop)),
                                       static_cast<int>(hop->rtnh_len - sizeof *hop), RTA_GATEWAY);
            hops.emplace_back(address_of(gateway, family), hop->rtnh_ifindex);
            left -= static_cast<int>(RTNH_ALIGN(hop->rtnh_len));
            hop = RTNH_NEXT(hop);
        }
    } else {
        const int ifindex = attributes[RTA_OIF] != nullptr ? static_cast<int>(nla_get_u32(attributes[RTA_OIF])) : 0;
        hops.emplace_back(address_of(attributes[RTA_GATEWAY], family), ifindex);
    }

    const auto key_of = [&](const RouteState& one) {
        const std::string gateway = one.gateway ? one.gateway->to_string() : std::string();
        return RouteKey{table, one.destination, one.prefix_length, one.metric, header.rtm_tos, one.ifindex, gateway, one.type};
    };
    const bool added = message->nlmsg_type == RTM_NEWROUTE;
    if (added && report && (message->nlmsg_flags & NLM_F_REPLACE) != 0) {
        // The replaced route is not named in the message: the dump after this batch finds what has gone.
        resync_wanted_ = true;
    }
    for (const auto& [gateway, ifindex] : hops) {
        route.gateway = gateway;
        route.ifindex = ifindex;
        if (added) {
            put(tables.routes, key_of(route), route, report);
        } else {
            remove(tables.routes, key_of(route), report);
        }
    }
}

void NetlinkMirror::apply_neighbor(nlmsghdr* message, Tables& tables, bool report) {
    std::array<nlattr*, NDA_MAX + 1> attributes;
    if (!parse_attributes(message, sizeof(ndmsg), attributes)) return;
    const auto& header = *static_cast<const ndmsg*>(nlmsg_data(message));
    const std::optional<Address> address = address_of(attributes[NDA_DST], header.ndm_family);
    if (!address || (header.ndm_flags & NTF_PROXY) != 0) return;
    NeighborState neighbor;
    neighbor.ifindex = header.ndm_ifindex;
    neighbor.address = *address;
    const std::optional<MacAddress> mac = mac_of(attributes[NDA_LLADDR]);
    neighbor.mac = mac.value_or(MacAddress{});
    const unsigned state = header.ndm_state;
    constexpr unsigned kValid = NUD_PERMANENT | NUD_NOARP | NUD_REACHABLE | NUD_PROBE | NUD_STALE | NUD_DELAY;
    neighbor.usable = mac.has_value() && (state & kValid) != 0;
    neighbor.stale = (state & NUD_STALE) != 0;
    neighbor.failed = (state & NUD_FAILED) != 0;
    const NeighborKey key{neighbor.ifindex, neighbor.address};
    if (message->nlmsg_type == RTM_NEWNEIGH) {
        put(tables.neighbors, key, neighbor, report);
    } else {
        remove(tables.neighbors, key, report);
    }
}

Result<void> NetlinkMirror::resolve(int ifindex, const Address& address) {
    struct MessageDeleter {
        void operator()(nl_msg* message) const { nlmsg_free(message); }
    };
    const std::unique_ptr<nl_msg, MessageDeleter> message(
        nlmsg_alloc_simple(RTM_NEWNEIGH, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE));
    if (!message) return fail(ENOMEM, "netlink: resolve");
    ndmsg header{};
    header.ndm_family = static_cast<unsigned char>(address.is_v4() ? AF_INET : AF_INET6);
    header.ndm_ifindex = ifindex;
    header.ndm_state = NUD_NONE;
    header.ndm_flags = NTF_USE;
    const std::span<const std::uint8_t> bytes = address.wire_bytes();
    if (nlmsg_append(message.get(), &header, sizeof header, NLMSG_ALIGNTO) < 0 ||
        nla_put(message.get(), NDA_DST, static_cast<int>(bytes.size()), bytes.data()) < 0)
        return fail(ENOMEM, "netlink: resolve");
    if (const int code = nl_send_auto(requests_.get(), message.get()); code < 0) return fail_netlink(code, "resolve");
    if (const int code = nl_wait_for_ack(requests_.get()); code < 0) return fail_netlink(code, "resolve");
    return {};
}

const LinkState* NetlinkMirror::find_link(const std::string& name) const {
    const auto found = std::ranges::find_if(tables_.links, [&](const auto& entry) { return entry.second.name == name; });
    return found == tables_.links.end() ? nullptr : &found->second;
}

}  // namespace culvert::control
