// How many of us use a port: listeners and connections, TIME-WAIT included, each hold one reference.
//
// The first reference takes the port from the outside world (the steering program then sends us its packets), the last
// one gives it back. So packets for a connection still find us after its listener has closed.
#pragma once

#include <boost/unordered/unordered_flat_map.hpp>

#include "daemon/stack/stack.h"

namespace culvert::stack::tcp {

class PortTable {
public:
    explicit PortTable(PortOwner& owner) : owner_(owner) { counts_.reserve(1024); }

    void take(const Endpoint& local) {
        if (counts_[local]++ == 0) owner_.take_port(PortOwner::Protocol::kTcp, local.address, local.port);
    }
    void release(const Endpoint& local) {
        const auto at = counts_.find(local);
        CHECK(at != counts_.end());
        if (--at->second != 0) return;
        counts_.erase(at);
        owner_.release_port(PortOwner::Protocol::kTcp, local.address, local.port);
    }
    bool is_elsewhere(const Endpoint& local, const Endpoint& remote) { return owner_.is_elsewhere(local, remote); }
    std::size_t size() const { return counts_.size(); }

private:
    struct Hash {
        std::size_t operator()(const Endpoint& local) const noexcept {
            return (std::hash<Address>()(local.address) ^ local.port) * 0x9e3779b97f4a7c15u;
        }
    };
    PortOwner& owner_;
    boost::unordered_flat_map<Endpoint, std::uint32_t, Hash> counts_;  // flat: no allocation per port
};

}  // namespace culvert::stack::tcp
