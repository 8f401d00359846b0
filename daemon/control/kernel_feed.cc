#include "daemon/control/kernel_feed.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

namespace culvert::control {
namespace {

stack::Route::Type route_type(RouteType type) {
    switch (type) {
        case RouteType::kUnicast: return stack::Route::Type::kUnicast;
        case RouteType::kLocal: return stack::Route::Type::kLocal;
        default: return stack::Route::Type::kUnreachable;  // broadcast, multicast, blackhole ...: the kernel's business
    }
}

stack::NeighborState neighbor_state(const NeighborState& neighbor) {
    if (neighbor.failed) return stack::NeighborState::kFailed;
    if (!neighbor.usable) return stack::NeighborState::kIncomplete;
    return neighbor.stale ? stack::NeighborState::kStale : stack::NeighborState::kReachable;
}

}  // namespace

void KernelFeed::start(engine::Fleet& engines) {
    engines_ = &engines;
    mirror_.set_listener([this](const MirrorChange& change) { note(change); });
    for (const auto& [ifindex, link] : mirror_.links()) send_link(link, false);
    addresses_changed_ = interfaces_;
    for (const auto& [ifindex, own] : dedicated_)
        engines.post_all([index = static_cast<std::uint32_t>(ifindex), addresses = own.addresses](engine::Engine& engine) {
            engine.stack().set_addresses(index, addresses);
        });
    routes_changed_ = true;
    send_what_changed();
    for (const auto& [key, neighbor] : mirror_.neighbors()) send_neighbor(neighbor, false);
}

void KernelFeed::process() {
    mirror_.process();
    send_what_changed();
}

void KernelFeed::send_what_changed() {
    for (const int ifindex : std::exchange(addresses_changed_, {})) send_addresses(ifindex);
    if (std::exchange(routes_changed_, false)) send_routes();
}

void KernelFeed::note(const MirrorChange& change) {
    if (const auto* link = std::get_if<LinkState>(&change.state)) {
        send_link(*link, change.removed);
        if (!change.removed && link->up && lost_.contains(link->name) && on_return_) std::exchange(on_return_, nullptr)(link->name);
    } else if (const auto* address = std::get_if<AddressState>(&change.state)) {
        if (interfaces_.contains(address->ifindex)) addresses_changed_.insert(address->ifindex);
    } else if (std::holds_alternative<RouteState>(change.state)) {
        routes_changed_ = true;
    } else {
        send_neighbor(std::get<NeighborState>(change.state), change.removed);
    }
}

void KernelFeed::send_link(const LinkState& link, bool removed) {
    const auto own = dedicated_.find(link.ifindex);
    if (engines_ == nullptr || (!interfaces_.contains(link.ifindex) && own == dedicated_.end())) return;
    const bool our_mac = own != dedicated_.end() && own->second.own_mac;
    bool up = link.up && !removed;
    if (removed && our_mac) {
        // Our end of it is a descriptor, which goes on working: into a container, most likely. It no longer tells its state.
        spdlog::info("interface {} has gone to another network namespace, or away", link.name);
        up = true;
    } else if (removed) {
        spdlog::error("interface {} is gone; culvertd begins anew when one of that name is up", link.name);
        lost_.insert(link.name);
    }
    engines_->post_all([index = static_cast<std::uint32_t>(link.ifindex), up, mtu = link.mtu, mac = link.mac, our_mac](engine::Engine& engine) {
        engine.stack().set_interface_state(index, up, mtu);
        if (!our_mac) engine.stack().set_mac(index, mac);
    });
    if (!removed) steering_.set_mtu(link.ifindex, link.mtu);
}

void KernelFeed::send_addresses(int ifindex) {
    std::vector<stack::InterfaceAddress> addresses;
    std::set<Address> steered;
    for (const auto& [key, state] : mirror_.addresses()) {
        if (state.ifindex != ifindex || !state.usable) continue;
        addresses.push_back({state.address, state.prefix_length});
        steered.insert(state.address);
        spdlog::debug("interface {} has {}/{}", ifindex, state.address.to_string(), state.prefix_length);
    }
    if (engines_ == nullptr) return;
    // The stack knows an address before packets for it come.
    engines_->post_all([index = static_cast<std::uint32_t>(ifindex), addresses](engine::Engine& engine) {
        engine.stack().set_addresses(index, addresses);
    });
    steering_.set_addresses(ifindex, steered);
}

void KernelFeed::send_routes() {
    if (engines_ == nullptr) return;
    std::vector<stack::Route> routes;
    routes.reserve(mirror_.routes().size());
    for (const auto& [ifindex, own] : dedicated_) routes.insert(routes.end(), own.routes.begin(), own.routes.end());
    for (const auto& [key, state] : mirror_.routes()) {
        // The kernel's ways through such an interface are not ours. Its own addresses there stay its own, unless they are the
        // other end of the link.
        if (const auto own = dedicated_.find(state.ifindex);
            own != dedicated_.end() && (own->second.own_mac || state.type != RouteType::kLocal))
            continue;
        stack::Route route;
        route.destination = state.destination;
        route.prefix_length = state.prefix_length;
        route.gateway = state.gateway;
        route.interface = static_cast<std::uint32_t>(state.ifindex);
        route.metric = state.metric;
        route.source = state.preferred_source;
        route.type = route_type(state.type);
        route.mtu = state.mtu;
        routes.push_back(route);
    }
    engines_->post_all([routes = std::move(routes)](engine::Engine& engine) { engine.stack().routes().replace(routes); });
}

void KernelFeed::send_neighbor(const NeighborState& neighbor, bool removed) {
    if (engines_ == nullptr || !interfaces_.contains(neighbor.ifindex)) return;
    const stack::NeighborState state = neighbor_state(neighbor);
    // Being asked about is no news to the stack: it is what asked, or it has not asked.
    if (!removed && state == stack::NeighborState::kIncomplete) return;
    engines_->post_all([neighbor, removed, state](engine::Engine& engine) {
        const auto index = static_cast<std::uint32_t>(neighbor.ifindex);
        TxQueue& tx = *engine.tx_of(index);
        if (removed) {
            engine.stack().neighbors().remove(index, neighbor.address, tx);
        } else {
            engine.stack().neighbors().update(index, neighbor.address, neighbor.mac, state, tx);
        }
    });
}

void KernelFeed::resolve(std::uint32_t interface, const Address& next_hop) {
    mailbox_.post([this, interface, next_hop] {
        const Result<void> asked = mirror_.resolve(static_cast<int>(interface), next_hop);
        if (!asked) spdlog::debug("{}: {}", next_hop.to_string(), asked.error().message());
    });
}

}  // namespace culvert::control
