// Hands what the kernel says about interfaces, addresses, routes and neighbours to the stack and to the steering; asks the
// kernel to resolve what the stack does not know.
//
//   NetlinkMirror --changes--> KernelFeed --commands--> every engine (stack's tables)
//        ^                         |  \--------------> Steering (addresses)
//        +----resolve---- Mailbox <-- NeighborResolver (engine's thread)
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "daemon/control/mailbox.h"
#include "daemon/control/netlink_mirror.h"
#include "daemon/control/steering.h"
#include "daemon/engine/fleet.h"

namespace culvert::control {

class KernelFeed final : public stack::NeighborResolver {
public:
    KernelFeed(NetlinkMirror& mirror, Steering& steering, Mailbox& mailbox)
        : mirror_(mirror), steering_(steering), mailbox_(mailbox) {}

    /// What is ours on an interface with dedicated addresses, whatever the kernel has there.
    struct Dedicated {
        std::vector<stack::InterfaceAddress> addresses;
        std::vector<stack::Route> routes;
        bool own_mac = false;  // of our end of a link whose other end is the kernel's
    };

    /// Startup, before start(): the kernel's addresses, neighbours and routes of this interface are ours too.
    void add_interface(int ifindex) { interfaces_.insert(ifindex); }
    /// Startup, before start(): of this one only the state of the link is the kernel's.
    void add_interface(int ifindex, Dedicated dedicated) { dedicated_.emplace(ifindex, std::move(dedicated)); }
    /// Called once, on the control thread, when an interface that had gone is there again under its name, and up. Devices and
    /// XDP program were the old one's.
    void on_return(std::function<void(const std::string& name)> handler) { on_return_ = std::move(handler); }
    /// Startup, before the engines run: posts everything that is known, and follows from now on.
    void start(engine::Fleet& engines);
    /// Control thread: the mirror's descriptor is readable.
    void process();
    /// Control thread: the engines are about to go.
    void stop() { engines_ = nullptr; }

    // stack::NeighborResolver, on an engine's thread.
    void resolve(std::uint32_t interface, const Address& next_hop) override;

private:
    void note(const MirrorChange& change);
    void send_link(const LinkState& link, bool removed);
    void send_addresses(int ifindex);
    void send_neighbor(const NeighborState& neighbor, bool removed);
    void send_routes();
    void send_what_changed();

    NetlinkMirror& mirror_;
    Steering& steering_;
    Mailbox& mailbox_;
    engine::Fleet* engines_ = nullptr;
    std::set<int> interfaces_;
    std::map<int, Dedicated> dedicated_;
    std::set<int> addresses_changed_;
    std::set<std::string> lost_;  // interfaces that have gone
    std::function<void(const std::string& name)> on_return_;
    bool routes_changed_ = false;
};

}  // namespace culvert::control
