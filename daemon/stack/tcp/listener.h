// A listening socket, and the table that finds the one for a SYN.
//
// Most specific first: the address itself, then every address of the family, then [::] that listens for IPv4 too
// (`dual`). Several listeners on one endpoint share it by flow hash (SO_REUSEPORT), so a client's retransmitted SYN
// always meets the same one.
#pragma once

#include <boost/unordered/unordered_flat_map.hpp>
#include <memory>
#include <vector>

#include "daemon/stack/owner.h"
#include "daemon/stack/stack.h"
#include "daemon/stack/tcp/fast_open.h"

namespace culvert::stack::tcp {

class Listener {
public:
    Listener(const Endpoint& local, bool dual, const ListenerOptions& options, ListenerOwner& owner)
        : local_(local), options_(options), owner_(&owner), dual_(dual) {}

    const Endpoint& local() const { return local_; }
    bool dual() const { return dual_; }
    /// Accepted connections begin with these.
    const ListenerOptions& options() const { return options_; }
    /// For SYNs and ACKs from now on.
    void set_options(const ListenerOptions& options) { options_ = options; }
    ListenerOwner& owner() const { return *owner_; }
    /// An ACK may bring back a SYN cookie until then.
    Instant cookies_until{};
    FastOpenQuota fast_open;

private:
    Endpoint local_;
    ListenerOptions options_;
    ListenerOwner* owner_;
    bool dual_;
};

class ListenerTable {
public:
    explicit ListenerTable(std::uint32_t limit) : limit_(limit) {}

    /// nullptr: the table is full.
    Listener* add(const Endpoint& local, bool dual, const ListenerOptions& options, ListenerOwner& owner);
    void remove(Listener& listener);
    /// Another one on the same endpoint, that its clients will meet once it is gone; nullptr: none.
    Listener* heir_of(const Listener& listener) const;
    /// Whoever listens for SYNs to `local`; nullptr if nobody does.
    Listener* find(const Endpoint& local, std::uint32_t flow_hash) const;
    std::uint32_t size() const { return size_; }

private:
    using Group = std::vector<std::unique_ptr<Listener>>;
    struct Hash {
        std::size_t operator()(const Endpoint& local) const noexcept {
            return (std::hash<Address>()(local.address) ^ local.port) * 0x9e3779b97f4a7c15u;
        }
    };
    boost::unordered_flat_map<Endpoint, Group, Hash> groups_;
    std::uint32_t limit_;
    std::uint32_t size_ = 0;
};

}  // namespace culvert::stack::tcp
