// Link-layer addresses of neighbours, and the packets that wait for one.
//
// When a next hop is unknown, or its entry has gone stale, somebody is asked to resolve it, and the answer comes back as an
// update of this table. On interfaces with shared addresses that is the kernel, which does ARP and ND there
// (`NeighborResolver`); on those with dedicated addresses it is our own ARP and ND (`OwnResolver`, link/neighbor_prober.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/base/instant.h"
#include "daemon/base/packet.h"
#include "daemon/wire/address.h"

namespace culvert::stack {

/// Asks whoever owns resolution (the kernel, through the control thread). Must not block; called at most once a second
/// for a neighbour.
class NeighborResolver {
public:
    virtual ~NeighborResolver() = default;
    virtual void resolve(std::uint32_t interface, const Address& next_hop) = 0;
};

/// Our own ARP and ND. Asked first; what it does not own is the kernel's.
class OwnResolver {
public:
    struct Answer {
        enum class Kind : std::uint8_t {
            kNotOurs,      // the interface's neighbours are the kernel's business
            kAsked,        // a request is out; table.update() will say what came of it
            kReachable,    // known: `mac`
            kStale,        // known, and being confirmed in the background
            kUnreachable,  // nobody answered lately, or nobody can be asked
        };
        Kind kind = Kind::kNotOurs;
        MacAddress mac{};
    };
    virtual ~OwnResolver() = default;
    virtual Answer resolve_own(std::uint32_t interface, const Address& next_hop, Instant now) = 0;
    /// [RFC4861 7.3.1] Something above has had an answer through it.
    virtual void confirm_own(std::uint32_t interface, const Address& next_hop, Instant now) = 0;
    std::uint32_t unconfirmed = 0;  // neighbours for which confirm_own would do something
};

/// Told about packets that were given up because their neighbour did not answer, as ICMP would tell about a host behind
/// a router. `ip_packet` starts at the IP header and ends with the first fragment; valid during the call.
class UnresolvedObserver {
public:
    virtual ~UnresolvedObserver() = default;
    virtual void on_unresolved(std::span<const std::byte> ip_packet) = 0;
};

enum class NeighborState : std::uint8_t { kIncomplete, kReachable, kStale, kFailed };

/// Bounded: at most kMaxEntries neighbours and kMaxPending waiting packets each; what does not fit is dropped by name.
class NeighborTable {
public:
    static constexpr std::size_t kMaxEntries = 8192;
    /// The fragments of a 64 KB datagram over a link with the least MTU of IPv6: 65535 / 1232 and a few more.
    static constexpr std::size_t kMaxPending = 64;
    static constexpr std::size_t kMaxPendingTotal = 1024;  // of all neighbours together
    /// Between two questions about one neighbour that is unknown.
    static constexpr Duration kAskInterval = std::chrono::seconds(1);
    /// Between two questions about one that is stale.
    static constexpr Duration kConfirmInterval = std::chrono::seconds(10);
    /// The kernel gives up after three probes of a second each; twice that, and its answer was lost on the way to us.
    static constexpr Duration kPendingTimeout = std::chrono::seconds(6);

    NeighborTable(NeighborResolver& resolver, Counters& counters);
    /// Optional; cold.
    void set_observer(UnresolvedObserver* observer) { observer_ = observer; }
    void set_own_resolver(OwnResolver* own) { own_ = own; }

    /// From the mirror. A usable state sends what waited, kFailed drops it; `tx` is the interface's queue.
    void update(std::uint32_t interface, const Address& address, const MacAddress& mac, NeighborState state, TxQueue& tx);
    void remove(std::uint32_t interface, const Address& address, TxQueue& tx);

    /// Changes may have been missed: every neighbour of the interface is unknown until it has been asked about again.
    void forget(std::uint32_t interface);

    /// The MAC to send to, or nullptr: then the caller gives the finished packet to `enqueue`, which asks for
    /// resolution. Stale entries are used and confirmed in the background (at most every 10 s).
    const MacAddress* lookup(std::uint32_t interface, const Address& next_hop, Instant now);
    /// `packet` has a complete Ethernet header but for the destination MAC (its first 6 bytes). Takes it over.
    void enqueue(std::uint32_t interface, const Address& next_hop, TxPacket packet, TxQueue& tx, Instant now);
    /// Changes when a MAC, or whether there is one, changes, and when an entry goes stale: cached MACs are looked up again.
    std::uint32_t generation() const { return generation_; }

    /// Neighbours of our own wait to be confirmed: `confirm` is worth its while.
    bool wants_confirmation() const { return own_ != nullptr && own_->unconfirmed != 0; }
    void confirm(std::uint32_t interface, const Address& next_hop, Instant now) {
        own_->confirm_own(interface, next_hop, now);
    }

    /// Gives up what has waited longer than kPendingTimeout.
    void advance(Instant now);
    Instant next_deadline() const { return next_deadline_; }
    std::size_t size() const { return entries_.size(); }

private:
    bool make_room();

    struct Key {
        std::uint32_t interface;
        Address address;
        friend bool operator==(const Key&, const Key&) = default;
    };
    struct KeyHash {
        std::size_t operator()(const Key& key) const { return std::hash<Address>()(key.address) + key.interface; }
    };
    struct Entry {
        MacAddress mac;
        NeighborState state = NeighborState::kIncomplete;
        Instant last_asked = Instant::min();  // min: never
        Instant waiting_since{};              // of the oldest packet in `pending`
        TxQueue* tx = nullptr;                // where `pending` got its memory from
        std::vector<TxPacket> pending;

        bool usable() const { return state == NeighborState::kReachable || state == NeighborState::kStale; }
    };
    OwnResolver::Answer::Kind ask(const Key& key, Entry& entry, Duration interval, Instant now);
    void refuse(Entry& entry, TxPacket& packet, TxQueue& tx);
    void send_pending(Entry& entry);
    void drop_pending(Entry& entry);

    NeighborResolver& resolver_;
    Counters& counters_;
    UnresolvedObserver* observer_ = nullptr;
    OwnResolver* own_ = nullptr;
    bool refusing_ = false;           // in a notice of refuse()
    Instant next_deadline_ = kNever;  // no later than the first packet's timeout
    std::unordered_map<Key, Entry, KeyHash> entries_;
    std::size_t pending_total_ = 0;
    std::uint32_t generation_ = 1;
};

}  // namespace culvert::stack
